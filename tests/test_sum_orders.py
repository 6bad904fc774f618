"""Block sums in a format of their own, and compensated sums."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tables import MODES, fits, name_of

import lowprec as lp
from lowprec.testing import assert_bit_equal, exact_dot, exact_matmul
from lowprec.testing import strategies as lps

pytestmark = pytest.mark.usefixtures("backend")

SEED = 91
PROMOTED = lp.Accumulator("e8m10", order="blocked", block_size=4, within="binary32")


def compare(a, b, accumulator):
    """Compare a batch of dots [N, K] x [N, K] with the oracle."""
    seed = SEED if accumulator.stochastic else None
    actual = lp.dot(a, b, accumulator=accumulator, seed=seed)
    expected = [
        exact_dot(x, y, accumulator, SEED, index)
        for index, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True))
    ]
    try:
        assert_bit_equal(actual, torch.tensor(expected, dtype=a.dtype))
    except AssertionError as error:
        raise AssertionError(f"{accumulator}: {error}") from None


def pair(n, k, seed, dtype=torch.float32):
    source = torch.Generator().manual_seed(seed)
    return (torch.randn((n, k), generator=source).to(dtype) for _ in range(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("within", ["binary32", "e8m15", "e5m2", "binary16"])
@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_block_sums_round_within(within, size, dtype):
    a, b = pair(4, 11, size, dtype)
    for rounding in ("bfloat16", "e8m15", lp.Rounding("e5m2", "toward_zero")):
        for product in ("exact", "accumulator", "e8m3"):
            compare(
                a, b, lp.Accumulator(rounding, product, "blocked", size, within=within)
            )


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_every_mode_within_blocks(mode):
    a, b = pair(5, 9, 3)
    for outer in ("nearest_even", "stochastic"):
        accumulator = lp.Accumulator(
            lp.Rounding("bfloat16", outer, random_bits=9),
            "exact",
            "blocked",
            4,
            lp.Rounding("e6m9", mode, random_bits=13, variant="C"),
        )
        compare(a, b, accumulator)


def test_promotion_in_two_formats_differs_from_one():
    # 256 + 1 + 1 + 1 + 1 is 256 in bfloat16 and 260 if the ones are summed in binary32.
    a = torch.tensor([[256.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]])
    promoted = PROMOTED.replace(rounding=lp.Rounding("bfloat16"))
    assert lp.dot(a, torch.ones_like(a), accumulator=promoted).item() == 262.0
    narrow = lp.Accumulator("bfloat16")
    assert lp.dot(a, torch.ones_like(a), accumulator=narrow).item() == 256.0


def test_block_sums_that_overflow_or_vanish():
    a = torch.tensor(
        [
            [3e38, 3e38, -3e38, 1.0, 1.0],
            [1e-38, 1e-38, -1e-38, 1e-40, 1e-45],
            [math.inf, 1.0, -math.inf, 1.0, 1.0],
            [math.nan, 1.0, 2.0, 3.0, 4.0],
            [-1e-45, 1e-45, -1e-45, 0.0, -0.0],
            [3e38, -3e38, 3e38, 3e38, 1.0],
        ]
    )
    for within in ("binary32", "e11m40", lp.Rounding("e11m40", saturation="finite")):
        for saturation in ("none", "finite"):
            outer = lp.Rounding("e8m10", saturation=saturation)
            accumulator = PROMOTED.replace(rounding=outer, within=within)
            for rows in (a, *a.split(1)):  # what is proved depends on all elements
                compare(rows, torch.ones_like(rows), accumulator)


def test_within_is_part_of_the_value():
    assert eval(repr(PROMOTED), {**vars(lp)}) == PROMOTED
    precision = lp.Precision(accumulator=PROMOTED)
    assert lp.Precision.from_json(precision.to_json()) == precision
    assert precision.to_json()["accumulator"]["within"] == "binary32"
    coin = PROMOTED.replace(within=lp.Rounding("binary32", "stochastic"))
    assert coin.stochastic
    assert not PROMOTED.stochastic
    assert lp.Precision.from_json(lp.Precision(accumulator=coin).to_json()) == (
        lp.Precision(accumulator=coin)
    )


@pytest.mark.parametrize("order", ["sequential", "pairwise", "kahan"])
def test_within_needs_blocks(order):
    with pytest.raises(ValueError, match="within='binary32' needs order='blocked'"):
        lp.Accumulator("bfloat16", order=order, within="binary32")


def test_within_of_too_many_bits_is_refused():
    wide = PROMOTED.replace(within="binary64")
    with pytest.raises(NotImplementedError, match="53 significant bits"):
        lp.matmul(torch.ones(2, 2), torch.ones(2, 2), accumulator=wide)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_compensated_sums(mode, dtype):
    a, b = pair(4, 12, 5, dtype)
    for name in ("bfloat16", "e5m2", "e8m15"):
        for product in ("exact", "accumulator"):
            rounding = lp.Rounding(name, mode, random_bits=10)
            compare(a, b, lp.Accumulator(rounding, product, "kahan"))


def test_compensation_keeps_what_recursion_loses():
    # Recursive summation in 8 bits stops at 256; the compensated error is below 2 u.
    ones = torch.ones(1, 1000)
    kahan = lp.Accumulator("bfloat16", order="kahan")
    assert lp.dot(ones, ones, accumulator="bfloat16").item() == 256.0
    total = lp.dot(ones, ones, accumulator=kahan).item()
    assert abs(total - 1000) <= 2 * 2.0**-8 * 1000 + 1


def test_compensated_sums_of_specials_and_zeros():
    # An infinity makes the correction NaN, as the formulas say.
    a = torch.tensor(
        [
            [math.inf, 1.0, 1.0],
            [1.0, math.nan, 1.0],
            [-0.0, -0.0, -0.0],
            [1.0, -1.0, 0.0],
            [3e38, 3e38, -3e38],
            [1e-45, -1e-45, 1e-45],
        ]
    )
    for name in ("bfloat16", "e8m15", "e4m3fn", "e4m3fnuz"):
        for saturation in ("none", "finite"):
            for mode in ("nearest_even", "toward_negative"):
                rounding = lp.Rounding(name, mode, saturation)
                accumulator = lp.Accumulator(rounding, order="kahan")
                compare(a, torch.ones_like(a), accumulator)
    infinite = lp.Accumulator("bfloat16", order="kahan")
    ones = torch.ones(3)
    assert lp.dot(a[0, :1], ones[:1], accumulator=infinite).item() == math.inf
    assert lp.dot(a[0], ones, accumulator=infinite).isnan()


def test_compensated_products_of_more_than_53_bits():
    a, b = (x * (1 + 2.0**-40) for x in pair(6, 7, 8, torch.float64))
    compare(a, b, lp.Accumulator("e8m15", order="kahan"))
    compare(a, b, lp.Accumulator(lp.Rounding("e8m40", "to_odd"), order="kahan"))


def test_theory_of_recursive_sums_refuses_compensated_ones():
    with pytest.raises(ValueError, match="order='kahan' is no sum of independent"):
        lp.theory.summation.roundings_per_term(10, order="kahan")


@given(accumulator=lps.accumulators(max_block_size=4), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_any_accumulator_equals_the_oracle(accumulator, seed):
    source = torch.Generator().manual_seed(seed)
    a = torch.randn((2, 7), generator=source, dtype=torch.float64)
    b = torch.randn((7, 2), generator=source, dtype=torch.float64)
    roundings = (accumulator.rounding, accumulator.product_rounding, accumulator.within)
    assume(all(r is None or fits(r.format, torch.float64) for r in roundings))
    expected = exact_matmul(a, b, accumulator, SEED)
    random = SEED if accumulator.stochastic else None
    assert_bit_equal(lp.matmul(a, b, accumulator=accumulator, seed=random), expected)


def test_sums_of_one_block_are_rounded_twice():
    # Once within, to 9 bits, and once more, to 8: 1 + 2^-8 + 2^-9 up, up.
    a = torch.tensor([[1.0, 2.0**-8 + 2.0**-9]])
    accumulator = lp.Accumulator("e8m7", "exact", "blocked", 2, within="e8m8")
    exact = Fraction(1) + Fraction(3, 512)
    assert exact < 1 + Fraction(1, 128)
    assert lp.dot(a, torch.ones_like(a), accumulator=accumulator).item() == 1 + 2.0**-7
