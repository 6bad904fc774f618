"""Laws of rounding, by hypothesis over formats, modes and tensors.

Posits, levels, blocks and what wraps have laws of their own: `test_laws_of_kinds.py`.
"""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import lowprec as lp
from lowprec.testing import assert_bit_equal, exact_dot, exact_round
from lowprec.testing import strategies as lps

SYMMETRIC = [
    "nearest_even",
    "nearest_away",
    "nearest_zero",
    "toward_zero",
    "to_odd",
    "stochastic",
    "stochastic_equal",
]
MONOTONE = [*SYMMETRIC[:4], "toward_positive", "toward_negative"]
SEEDS = st.integers(0, 2**63 - 1)


def seed_of(rounding, seed):
    return seed if rounding.stochastic else None


# Of IEEE 754's kind, of P3109's, fixed point, and what no parameters say.
FAMILIES = (
    lps.formats()
    | lps.p3109_formats()
    | lps.fixed_point_formats()
    | st.sampled_from(list(map(lp.format, ["e8m0fnu", "dlfloat16", "hfp8_e4m3"])))
)

SIGNED = FAMILIES.filter(lambda fmt: fmt.min == -fmt.max)


@st.composite
def cases(draw, formats=FAMILIES, **options):
    """A rounding and a tensor near the boundaries of its format."""
    rounding = draw(lps.roundings(formats, **options))
    x = draw(lps.tensors(shape=(8,), near=rounding.format))
    return rounding, x


@given(cases(), SEEDS)
def test_idempotent(case, seed):
    rounding, x = case
    y = lp.round(x, rounding, seed=seed_of(rounding, seed))
    # Infinity in a format without it is not a value: rounding it again may matter.
    again = lp.round(y, rounding, seed=seed_of(rounding, seed // 2))
    assert_bit_equal(again, y)


@given(cases(modes=MONOTONE))
def test_monotone(case):
    rounding, x = case
    x = x[~x.isnan()].sort().values
    y = lp.round(x, rounding)
    y = y[~y.isnan()]
    assert bool((y[1:] >= y[:-1]).all())


@given(cases(SIGNED, modes=SYMMETRIC), SEEDS)
def test_odd(case, seed):
    rounding, x = case
    key = seed_of(rounding, seed)
    negated = lp.round(-x, rounding, seed=key)
    y = lp.round(x, rounding, seed=key)
    expected = -y if rounding.format.signed_zero else torch.where(y == 0, y, -y)
    assert_bit_equal(negated, expected)


@given(cases(SIGNED, modes=["toward_positive"]))
def test_directed_modes_mirror_each_other(case):
    up, x = case
    down = lp.Rounding(up.format, "toward_negative", up.saturation)
    mirrored = -lp.round(-x, down)
    if not up.format.signed_zero:
        mirrored = torch.where(mirrored == 0, 0.0, mirrored)
    assert_bit_equal(lp.round(x, up), mirrored)


@given(cases(modes=["nearest_even", "nearest_away", "nearest_zero"]))
def test_relative_error_is_at_most_u_over_one_plus_u(case):
    rounding, x = case
    target = rounding.format
    u = Fraction(target.unit_roundoff)
    low = Fraction(target.smallest_normal)
    least, most = Fraction(target.min), Fraction(target.max)
    y = lp.round(x, rounding)
    for exact, rounded in zip(x.tolist(), y.tolist(), strict=True):
        if not math.isfinite(exact) or abs(Fraction(exact)) < low:
            continue
        if least <= Fraction(exact) <= most:
            error = abs(Fraction(rounded) - Fraction(exact))
            assert error <= u / (1 + u) * abs(Fraction(exact))


@given(cases(), SEEDS)
def test_error_is_less_than_one_ulp_and_result_a_neighbour(case, seed):
    rounding, x = case
    target = rounding.format
    x = x[(x >= float(target.min)) & (x <= float(target.max))]
    y = lp.round(x, rounding, seed=seed_of(rounding, seed))
    down = lp.round(x, target, "toward_negative")
    up = lp.round(x, target, "toward_positive")
    assert bool(((y == down) | (y == up)).all())
    assert bool(((down <= x) & (x <= up)).all())


@given(cases())
def test_nearest_is_nearest(case):
    rounding, x = case
    target = rounding.format
    x = x[(x >= float(target.min)) & (x <= float(target.max))]
    down = lp.round(x, target, "toward_negative").double()
    up = lp.round(x, target, "toward_positive").double()
    y = lp.round(x, target).double()
    exact = x.double()
    # Differences of float32 numbers to the values beside them are exact in float64.
    error = (y - exact).abs()
    assert bool((error <= (exact - down).abs()).all())
    assert bool((error <= (up - exact).abs()).all())


@given(cases(saturations=["finite"]), SEEDS)
def test_finite_saturation_stays_in_range(case, seed):
    rounding, x = case
    y = lp.round(x, rounding, seed=seed_of(rounding, seed))
    assert bool((y.isnan() == x.isnan()).all())
    y = y[~y.isnan()]
    target = rounding.format
    assert bool(((y >= float(target.min)) & (y <= float(target.max))).all())


@given(cases(), SEEDS)
def test_results_are_values_of_the_format(case, seed):
    rounding, x = case
    for value in lp.round(x, rounding, seed=seed_of(rounding, seed)).tolist():
        if math.isfinite(value):
            assert rounding.format.is_representable(value)


@given(cases(modes=["nearest_even", "nearest_away", "nearest_zero"]))
def test_error_is_at_most_half_an_ulp(case):
    rounding, x = case
    target = rounding.format
    x = x[(x >= float(target.min)) & (x <= float(target.max))]
    smallest = Fraction(target.smallest_subnormal)
    pairs = zip(x.tolist(), lp.round(x, rounding).tolist(), strict=True)
    for exact, rounded in pairs:
        # Where there are no subnormals the first step, from zero, is longer.
        step = max(Fraction(target.ulp(exact)), smallest * (abs(exact) < smallest))
        assert abs(Fraction(rounded) - Fraction(exact)) <= step / 2


@given(cases(), st.data())
def test_values_stay_in_every_mode(case, data):
    rounding, x = case
    values = lp.round(x, rounding.format, "toward_zero")
    other = data.draw(lps.roundings(st.just(rounding.format)))
    if other.saturation is lp.Saturation.FINITE:
        values = values[~values.isinf()]
    again = lp.round(values, other, seed=seed_of(other, 3))
    assert_bit_equal(again, values)


def has_codes(target):
    try:
        return target.bits > 0
    except ValueError:  # too few codes for infinity and NaN
        return False


@given(cases(), SEEDS)
def test_codes_carry_what_was_rounded(case, seed):
    rounding, x = case
    target = rounding.format
    assume(has_codes(target))
    y = lp.round(x, rounding, seed=seed_of(rounding, seed))
    y = y if target.nans else y[~y.isnan()]
    codes = target.encode(y)
    assert_bit_equal(target.decode(codes).to(y.dtype), y)
    one_by_one = [target.encode(value) for value in y.tolist()]
    assert codes.tolist() == one_by_one
    assert all(0 <= code < 1 << target.bits for code in one_by_one)


@given(st.fractions(), lps.roundings(modes=["nearest_even"], saturations=["propagate"]))
def test_oracle_is_idempotent_and_nearest(x, rounding):
    y = exact_round(x, rounding)
    assert exact_round(y, rounding) == y
    target = rounding.format
    assume(abs(x) <= Fraction(target.max))
    half_quantum = Fraction(target.ulp(y)) / 2
    if not target.subnormals and abs(x) < Fraction(target.smallest_normal):
        half_quantum = Fraction(target.smallest_normal) / 2
    assert abs(Fraction(y) - x) <= half_quantum


@pytest.mark.parametrize("carrier", [torch.float32, torch.float64], ids=str)
@given(data=st.data())
def test_dot_equals_oracle(data, carrier):
    accumulator = data.draw(lps.accumulators())
    k = data.draw(st.integers(0, 9))
    near = accumulator.rounding.format
    # Magnitudes whose products float64 holds exactly.
    a, b = (data.draw(lps.tensors(shape=(k,), near=near)).to(carrier) for _ in range(2))
    seed = data.draw(SEEDS)
    expected = exact_dot(a.tolist(), b.tolist(), accumulator, seed)
    actual = lp.dot(
        a, b, accumulator=accumulator, seed=seed if accumulator.stochastic else None
    )
    assert_bit_equal(actual, torch.tensor(expected, dtype=carrier))
