"""Interpreted: every rounding has the bits of the other kernels and of the oracle."""

import math

import pytest
import torch
from native_checks import SEED, same_bits
from tables import (
    CARRIERS,
    FORMATS,
    MODES,
    PAIRS,
    SATURATIONS,
    VARIANTS,
    fits,
    name_of,
)

import lowprec as lp
from lowprec import kernels
from lowprec.kernels import portable, triton
from lowprec.testing import boundary_inputs, exact_round, random_word

pytestmark = [
    pytest.mark.skipif(not triton.interpreted(), reason="not interpreted"),
    # The interpreter is numpy, which warns of infinities and NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
# Beyond 2^32, where both words of the key and of the block number count, and neither
# at the start of a block.
OFFSET = 2**34 + 6
WORDS = [("A", 5), ("B", 11), ("C", 3), ("C", 32)]


def roundings(target):
    """Every mode and saturation, and every variant of random words."""
    for mode in MODES:
        for saturation in SATURATIONS:
            yield lp.Rounding(target, mode, saturation)
    for variant, bits in WORDS:
        yield lp.Rounding(target, "stochastic", random_bits=bits, variant=variant)


def rounded(x, rounding, offset=OFFSET):
    """The results of the Triton kernel and of the usual one."""
    if not rounding.stochastic:
        return triton.round(x, rounding.code), kernels.round(x, rounding.code)
    rest = (rounding.code, torch.tensor(SEED), offset)
    return triton.round_stochastic(x, *rest), kernels.round_stochastic(x, *rest)


def slow_pair(target, carrier):
    """Whether float32, which is quicker, holds the format as well."""
    return carrier == torch.float64 and fits(target, torch.float32)


@pytest.mark.parametrize(
    ("target", "carrier"),
    [
        pytest.param(*pair, marks=pytest.mark.slow if slow_pair(*pair) else ())
        for pair in PAIRS
    ],
    ids=name_of,
)
def test_boundaries_of_every_format_in_every_mode(target, carrier):
    x = boundary_inputs(target, carrier)
    x = x[:: 1 + len(x) // 2000]
    for rounding in roundings(target):
        actual, expected = rounded(x, rounding)
        assert same_bits(actual, expected), rounding


@pytest.mark.parametrize("target", FORMATS, ids=name_of)
def test_results_are_those_of_the_oracle(target):
    carrier = torch.float32 if fits(target, torch.float32) else torch.float64
    x = boundary_inputs(target, carrier)
    x = x[~x.isnan()][:: max(1, len(x) // 40)]
    words = [random_word(SEED % 2**64, OFFSET + i) for i in range(len(x))]
    for mode in MODES:
        rounding = lp.Rounding(target, mode)
        wanted = [
            float(exact_round(value, rounding, word))
            for value, word in zip(x.tolist(), words, strict=True)
        ]
        actual, _ = rounded(x, rounding)
        expected = torch.tensor(wanted, dtype=carrier)
        assert torch.equal(actual.isnan(), expected.isnan()), rounding
        number = ~expected.isnan()
        assert same_bits(actual[number], expected[number]), rounding


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
def test_random_bit_patterns(carrier):
    integer = torch.int32 if carrier == torch.float32 else torch.int64
    limits = torch.iinfo(integer)
    x = torch.randint(limits.min, limits.max, (1 << 14,), dtype=integer).view(carrier)
    for name in ("e4m3fn", "bfloat16", "binary16", "e2m1", "e8m1", "e8m15"):
        for mode in MODES:
            actual, expected = rounded(x, lp.Rounding(name, mode))
            assert same_bits(actual, expected), (name, mode)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
@pytest.mark.parametrize("bits", range(1, 33))
def test_every_number_of_random_bits(bits, variant):
    for target, carrier in (("e5m2", torch.float32), ("bfloat16", torch.float64)):
        rounding = lp.Rounding(target, "stochastic", random_bits=bits, variant=variant)
        x = torch.randn(1 << 14, dtype=carrier) * 2.0 ** torch.randint(-140, 20, ())
        actual, expected = rounded(x.to(carrier), rounding)
        assert same_bits(actual, expected)


@pytest.mark.parametrize("count", [*range(7), 63, 64, 65, 130])
def test_every_count_and_offset_across_programs(count, monkeypatch):
    from lowprec.kernels.triton import _elementwise

    monkeypatch.setattr(_elementwise, "_LARGEST_BLOCK", 64)
    x = torch.randn(count)
    actual, expected = rounded(x, lp.Rounding("e5m2"))
    assert same_bits(actual, expected)
    for offset in range(5):
        for base in (0, 2**32 - 2):
            pair = rounded(x, lp.Rounding("e5m2", "stochastic"), base + offset)
            assert same_bits(*pair), (base, offset)


@pytest.mark.parametrize("seed", [0, 1, 2**31 + 7, 2**40 + 17, 2**63 - 1, -1, SEED])
def test_every_seed(seed):
    x = torch.randn(1000)
    code = lp.Rounding("e6m8", "stochastic").code
    rest = (code, torch.tensor(seed), 3)
    expected = portable.round_stochastic(x, *rest)
    assert same_bits(triton.round_stochastic(x, *rest), expected)


def test_layouts_do_not_matter():
    for rounding in (lp.Rounding("e5m2"), lp.Rounding("bfloat16", "stochastic")):
        wide = torch.full((14, 20), math.nan)
        wide[::2, 1::2] = torch.randn(7, 10)
        for x in (wide[::2, 1::2], wide[::2, 1::2].T, wide[3], wide[3, 1:]):
            actual, expected = rounded(x, rounding)
            assert actual.is_contiguous()
            assert actual.shape == x.shape
            assert same_bits(actual, expected)
        for x in (torch.tensor(1.3), torch.empty(0, 3), torch.randn(1, 1, 1)):
            actual, expected = rounded(x, rounding)
            assert actual.shape == x.shape
            assert torch.equal(actual, expected)


def test_inputs_are_not_changed():
    x = torch.randn(100)
    before = x.clone()
    rounded(x, lp.Rounding("e5m2"))
    rounded(x, lp.Rounding("e5m2", "stochastic"))
    assert torch.equal(x, before)


def test_operations_reach_the_kernel(monkeypatch):
    from lowprec.kernels.triton import _elementwise

    calls = []
    for name in ("round", "round_stochastic"):
        kernel = getattr(_elementwise, name)
        monkeypatch.setattr(
            _elementwise, name, lambda *a, k=kernel: calls.append(k) or k(*a)
        )
    x = torch.randn(5, requires_grad=True)
    stochastic = lp.Rounding("e5m2", "stochastic")
    expected = lp.round(x, "e5m2"), lp.round(x, stochastic, seed=4)
    with kernels.using("triton"):
        actual = lp.round(x, "e5m2"), lp.round(x, stochastic, seed=4)
        actual[0].sum().backward()
    assert len(calls) == 2
    assert all(map(torch.equal, actual, expected))
    assert torch.equal(x.grad, torch.ones(5))


def test_formats_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="use a float64 carrier"):
        triton.round(torch.ones(2), lp.Rounding("e11m5").code)
    with pytest.raises(
        TypeError, match="takes float32, float64 cpu tensors, got int32"
    ):
        triton.round(torch.ones(2, dtype=torch.int32), lp.Rounding("e5m2").code)
