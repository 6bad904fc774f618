"""What the conformance suites share: the roundings under test, and the comparison."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..arithmetic import fits
from ..formats import Format, Levels, Posit, any_format
from ..rounding import Rounding, RoundingMode, Saturation
from ..table_rounding import TableRounding
from ._conformance import assert_bit_equal
from ._oracle import Real, exact_round

__all__ = ["SEED", "Suite", "as_tensor", "compare", "random_patterns"]

SEED = 20
_DETERMINISTIC = tuple(
    mode.value for mode in RoundingMode if not mode.value.startswith("stochastic")
)
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_CARRIERS = {torch.float32: "binary32", torch.float64: "binary64"}


def as_tensor(values: Sequence[Real], dtype: torch.dtype) -> Tensor:
    """Return numbers as a tensor; those that it does not hold are rounded once."""
    held = [
        value if isinstance(value, float) else exact_round(value, _CARRIERS[dtype])
        for value in values
    ]
    return torch.tensor(held, dtype=dtype)


def compare(actual: Tensor, expected: Tensor, what: str) -> None:
    """Compare bit for bit, naming the case."""
    try:
        assert_bit_equal(actual, expected)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def random_patterns(count: int, dtype: torch.dtype) -> Tensor:
    """Return numbers with arbitrary bits, always the same."""
    integer = _INTEGERS[dtype]
    limits = torch.iinfo(integer)
    source = torch.Generator().manual_seed(SEED)
    bits = torch.randint(
        limits.min, limits.max, (count,), dtype=integer, generator=source
    )
    return bits.view(dtype)


class Suite:
    """What a kernel is tested with; override what it does not have."""

    formats: ClassVar[Sequence[Format | Posit | Levels | str]] = (
        "e5m2",
        "e4m3fn",
        "bfloat16",
    )
    modes: ClassVar[Sequence[RoundingMode | str]] = _DETERMINISTIC
    saturations: ClassVar[Sequence[Saturation | str]] = ("none", "finite")
    dtype: ClassVar[torch.dtype] = torch.float32

    def targets(self) -> Iterator[Format | Posit | Levels]:
        """Yield the formats under test, those that the dtype can hold.

        Raises:
            TypeError: for a block format, which has suites of its own.
        """
        for given in self.formats:
            target = any_format(given)
            if not isinstance(target, (Format, Posit, Levels)):
                raise TypeError(
                    f"{given!r} is a block format: test it by a BlockRoundingSuite"
                )
            if fits(target, self.dtype):
                yield target

    def roundings(self) -> Iterator[Rounding | TableRounding]:
        """Yield the roundings under test: posits and levels have no saturation."""
        for target, mode in itertools.product(self.targets(), self.modes):
            if not isinstance(target, Format):
                if mode != "to_odd" or target.table.odd is not None:
                    yield TableRounding(target, mode)
                continue
            for saturation in self.saturations:
                if saturation != "wrap" or _wraps(target):
                    yield Rounding(target, mode, saturation)


def _wraps(target: Format) -> bool:
    """Whether every integer of a word is a value."""
    return target.encoding == "integer" and target.signed == target.asymmetric
