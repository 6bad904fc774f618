"""What the tests of the C++ kernels share: builds, bit comparison, calls."""

import math

import pytest
import torch
from tables import FORMATS, ORDERS

from lowprec.kernels import native, sums

ISAS = native.instruction_sets() if native.available() else ()
ISA_NAMES = {2: "baseline", 3: "v3", 4: "v4"}
needs_library = pytest.mark.skipif(not native.available(), reason=native.status())
SEED = -7_000_000_000_000_000_001
BY_NAME = {target.name: target for target in FORMATS}
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def with_isa(isa):
    """Body of a fixture: run with one instruction set."""
    if not native.available():
        pytest.skip(native.status())
    native.set_instruction_set(isa)
    yield isa
    native.set_instruction_set()


def with_all_isas():
    """Body of a fixture for tests that switch instruction sets themselves."""
    if not native.available():
        pytest.skip(native.status())
    yield ISAS
    native.set_instruction_set()


def same_bits(x, y):
    integer = _INTEGERS[x.dtype]
    return torch.equal(x.contiguous().view(integer), y.contiguous().view(integer))


def same_numbers(x, y):
    """Equal bits, but any NaN equals any NaN."""
    return same_bits(
        x.nan_to_num(1.5, math.inf, -math.inf), y.nan_to_num(1.5, math.inf, -math.inf)
    ) and torch.equal(x.isnan(), y.isnan())


def arguments(accumulator):
    rounded, within = accumulator.product_rounding, accumulator.within
    return (
        accumulator.rounding.code,
        () if rounded is None else rounded.code,
        () if within is None else within.code,
        ORDERS.index(accumulator.order),
        accumulator.block_size or 0,
    )


def product(a, b, accumulator, offset=0):
    return native.matmul(a, b, *arguments(accumulator), SEED, offset)


def portable_product(a, b, accumulator, offset=0):
    seed = torch.tensor(SEED)
    return sums.matmul(a, b, *arguments(accumulator), seed, offset)
