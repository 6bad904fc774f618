"""Laws of rounding to posits, levels, blocks and words that wrap, by hypothesis.

Those of floating and fixed point are in `test_laws.py`. Where a law does not hold for a
kind, a test shows it.
"""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, find, given
from hypothesis import strategies as st

import lowprec as lp
from lowprec.testing import (
    assert_bit_equal,
    exact_block_scale,
    exact_round,
    exact_tensor_scale,
)
from lowprec.testing import strategies as lps

MONOTONE = ["nearest_even", "nearest_away", "nearest_zero", "toward_zero"]
MONOTONE += ["toward_positive", "toward_negative"]
NEAREST = MONOTONE[:3]
SYMMETRIC = [*MONOTONE[:4], "to_odd", "stochastic", "stochastic_equal"]
SEEDS = st.integers(0, 2**63 - 1)


def seed_of(rounding, seed):
    return seed if rounding.stochastic else None


def without_signs_of_zeros(x):
    return torch.where(x == 0, 0.0, x)


@st.composite
def table_cases(draw, formats=None, dtype=torch.float32, **options):
    """A rounding to posits or levels and a tensor near its decisions."""
    rounding = draw(lps.table_roundings(formats, **options))
    return rounding, draw(lps.tensors((8,), dtype, near=rounding.format))


def members(rounding):
    return torch.tensor(rounding.format.table.values, dtype=torch.float64)


def finite(x):
    return x[x.isfinite()]


@given(table_cases(), SEEDS)
def test_tables_idempotent(case, seed):
    rounding, x = case
    y = lp.round(x, rounding, seed=seed_of(rounding, seed))
    again = lp.round(y, rounding, seed=seed_of(rounding, seed // 2))
    assert_bit_equal(again, y)
    assert bool(torch.isin(y[~y.isnan()].double(), members(rounding)).all())


@given(
    table_cases(lps.posits(max_bits=32, carrier=torch.float64), torch.float64), SEEDS
)
def test_posits_of_any_width_idempotent_and_equal_to_the_oracle(case, seed):
    rounding, x = case
    key = seed_of(rounding, seed)
    y = lp.round(x, rounding, seed=key)
    assert_bit_equal(lp.round(y, rounding, seed=seed_of(rounding, seed // 2)), y)
    if not rounding.stochastic:
        wanted = [exact_round(value, rounding) for value in x.tolist()]
        assert_bit_equal(y, torch.tensor(wanted, dtype=torch.float64))


@given(lps.table_roundings(), SEEDS)
def test_values_of_tables_stay(rounding, seed):
    values = members(rounding)
    y = lp.round(values, rounding, seed=seed_of(rounding, seed))
    assert_bit_equal(y, values)


@given(table_cases(modes=MONOTONE))
def test_tables_monotone(case):
    rounding, x = case
    x = x[~x.isnan()].sort().values
    y = lp.round(x, rounding)
    y = y[~y.isnan()]  # infinities among posits
    assert bool((y[1:] >= y[:-1]).all())


@given(table_cases(lps.posits(), modes=SYMMETRIC), SEEDS)
def test_posits_odd(case, seed):
    rounding, x = case
    key = seed_of(rounding, seed)
    negated = without_signs_of_zeros(-lp.round(-x, rounding, seed=key))
    assert_bit_equal(negated, lp.round(x, rounding, seed=key))


def test_levels_are_not_odd_at_ties():
    x = torch.tensor([-0.5, 0.5])
    assert lp.round(x, lp.Levels.ternary()).tolist() == [0.0, 1.0]
    assert lp.round(x, lp.Levels.ternary(), "nearest_away").tolist() == [-1.0, 1.0]


@given(table_cases(lps.level_sets(), torch.float64, modes=NEAREST))
def test_error_of_levels_is_at_most_half_the_gap(case):
    rounding, x = case
    levels = [Fraction(value) for value in rounding.format.values]
    x = finite(x)
    for exact, y in zip(x.tolist(), lp.round(x, rounding).tolist(), strict=True):
        distances = [abs(level - Fraction(exact)) for level in levels]
        assert abs(Fraction(y) - Fraction(exact)) == min(distances)


@given(table_cases(lps.posits(), torch.float64, modes=NEAREST))
def test_error_of_posits_is_at_most_half_the_gap_where_ties_are_means(case):
    rounding, x = case
    table = rounding.format.table
    x = finite(x)
    for exact, y in zip(x.tolist(), lp.round(x, rounding).tolist(), strict=True):
        i = sum(value <= exact for value in table.values) - 1
        if 0 <= i < len(table.values) - 1:
            low, high = Fraction(table.values[i]), Fraction(table.values[i + 1])
            if table.ties[i] == (low + high) / 2:
                assert abs(Fraction(y) - Fraction(exact)) <= (high - low) / 2


def test_the_nearest_posit_is_nearest_by_its_code():
    x = torch.tensor([2.0**23])  # nearer to 2^24, of which 2^22 is the lower tie
    assert lp.round(x, "posit8").item() == 2.0**24
    x = torch.tensor([2.0**22 - 1])
    assert lp.round(x, "posit8").item() == 2.0**20
    x = torch.tensor([2.0**22 + 1])  # nearer to 2^20
    assert lp.round(x, "posit8").item() == 2.0**24


@given(table_cases(lps.posits()), SEEDS)
def test_posits_never_vanish_and_never_overflow(case, seed):
    rounding, x = case
    y = lp.round(x, rounding, seed=seed_of(rounding, seed))
    assert bool((y.isnan() == ~x.isfinite()).all())
    if rounding.mode in NEAREST:
        assert bool(((y == 0) == (x == 0)).all())


@given(table_cases(modes=["stochastic", "stochastic_equal"]), SEEDS)
def test_stochastic_tables_land_on_a_neighbour(case, seed):
    rounding, x = case
    x = finite(x)
    y = lp.round(x, rounding, seed=seed)
    down = lp.round(x, rounding.format, "toward_negative")
    up = lp.round(x, rounding.format, "toward_positive")
    assert bool(((y == down) | (y == up)).all())


@given(table_cases(), SEEDS)
def test_codes_of_tables_carry_what_was_rounded(case, seed):
    rounding, x = case
    y = lp.round(x, rounding, seed=seed_of(rounding, seed))
    y = y if isinstance(rounding.format, lp.Posit) else y[~y.isnan()]
    codes = lp.encode(y, rounding.format)
    assert_bit_equal(lp.decode(codes, rounding.format).to(y.dtype), y)
    assert codes.tolist() == [rounding.format.encode(value) for value in y.tolist()]


@st.composite
def block_cases(draw, formats=None, **options):
    """A rounding to blocks and a tensor whose elements lie at ties of some scale."""
    rounding = draw(lps.block_roundings(formats, **options))
    x = draw(lps.tensors((9,), torch.float64, near=rounding.format.element))
    return rounding, x * 2.0 ** draw(st.integers(-130, 130))


SHARED = lps.block_formats().filter(
    lambda fmt: isinstance(fmt.scale, lp.SharedExponent)
)
ONCE = lps.block_formats().filter(lambda fmt: fmt.rule != "nv")


@given(block_cases(SHARED), SEEDS, st.data())
def test_values_of_blocks_with_shared_exponents_stay_in_every_mode(case, seed, data):
    rounding, x = case
    y = lp.round(x, rounding, seed=seed_of(rounding, seed))
    again = lp.round(y, rounding, seed=seed_of(rounding, seed // 2))
    assert_bit_equal(again, y)
    other = data.draw(lps.block_roundings(st.just(rounding.format)))
    assert_bit_equal(lp.round(y, other, seed=seed_of(other, seed)), y)


def test_blocks_whose_scales_round_are_not_idempotent():
    target = lp.BlockFormat("e3m3", "e4m3fn", 2)
    once = lp.round(torch.full((2,), 0.25, dtype=torch.float64), target)
    # fl(0.25 / 15) = 9 / 512, 14 of which lead to the scale 8.4 / 512.
    assert once.tolist() == [0.24609375] * 2
    assert lp.round(once, target).tolist() == [0.234375] * 2


@given(block_cases(modes=MONOTONE))
def test_monotone_within_a_block(case):
    rounding, x = case
    order = x.isnan(), x
    y = lp.round(x, rounding)
    size = rounding.format.block_size
    for first in range(0, len(x), size):
        block, rounded = x[first : first + size], y[first : first + size]
        if bool(order[0][first : first + size].any()):
            continue
        sorted_y = rounded[block.sort(stable=True).indices]
        kept = sorted_y[~sorted_y.isnan()]
        assert bool((kept[1:] >= kept[:-1]).all())


@given(block_cases(modes=SYMMETRIC), SEEDS)
def test_blocks_odd(case, seed):
    rounding, x = case
    key = seed_of(rounding, seed)
    negated, y = -lp.round(-x, rounding, seed=key), lp.round(x, rounding, seed=key)
    if not rounding.format.element.signed_zero:
        negated = without_signs_of_zeros(negated)
    assert_bit_equal(negated, y)


def scales(x, rounding):
    """The exact scale s t of every element, None in blocks without one."""
    size, every = rounding.format.block_size, x.tolist()
    blocks = [every[first : first + size] for first in range(0, len(every), size)]
    known = [block for block in blocks if all(map(math.isfinite, block))]
    t = exact_tensor_scale(list(itertools.chain(*known)), rounding.format)
    for block in blocks:
        s = exact_block_scale(block, rounding.format, t)
        product = None if math.isnan(s) else Fraction(s) * Fraction(t)
        yield from [product] * len(block)


@given(block_cases(ONCE, modes=NEAREST))
def test_error_in_blocks_is_at_most_half_an_ulp_of_the_element(case):
    rounding, x = case
    element = rounding.format.element
    smallest = Fraction(element.smallest_subnormal)
    y = lp.round(x, rounding)
    for exact, rounded, scale in zip(
        x.tolist(), y.tolist(), scales(x, rounding), strict=True
    ):
        if scale is None:
            assert math.isnan(rounded)
            continue
        quotient = Fraction(exact) / scale
        if abs(quotient) > element.max:
            assert abs(Fraction(rounded)) == Fraction(element.max) * scale
            continue
        step = Fraction(element.ulp(quotient))
        step = max(step, smallest * (abs(quotient) < smallest))
        assert abs(Fraction(rounded) - Fraction(exact)) <= step / 2 * scale


@given(block_cases(modes=["stochastic", "stochastic_equal"]), SEEDS)
def test_stochastic_blocks_land_on_a_neighbour(case, seed):
    rounding, x = case
    y = lp.round(x, rounding, seed=seed)
    down = lp.round(x, rounding.format, "toward_negative")
    up = lp.round(x, rounding.format, "toward_positive")
    assert bool(((y == down) | (y == up) | y.isnan()).all())
    assert bool((y.isnan() == down.isnan()).all())


def has_codes(element):
    """Whether there are enough codes for infinity and NaN."""
    try:
        return element.bits > 0
    except ValueError:
        return False


@given(block_cases(), SEEDS)
def test_codes_of_blocks_carry_what_was_rounded(case, seed):
    rounding, x = case
    assume(has_codes(rounding.format.element))
    key = seed_of(rounding, seed)
    blocks = lp.encode_blocks(x, rounding, seed=key)
    values = lp.decode_blocks(blocks, rounding.format, dtype=x.dtype)
    assert_bit_equal(values, lp.round(x, rounding, seed=key))


WORDS = lps.fixed_point_formats(max_word=12).filter(
    lambda fmt: fmt.signed == fmt.asymmetric
)


@st.composite
def wrapping_cases(draw, **options):
    """A rounding that wraps, and numbers of which quarters of the quantum are exact."""
    rounding = draw(lps.roundings(WORDS, saturations=["wrap"], **options))
    quantum = float(rounding.format.smallest_subnormal)
    counts = draw(st.lists(st.integers(-(2**16), 2**16), min_size=1, max_size=8))
    return rounding, torch.tensor(counts, dtype=torch.float64) / 4 * quantum


def span(target):
    quantum = float(target.smallest_subnormal)
    return float(target.max) - float(target.min) + quantum


@given(wrapping_cases(), SEEDS)
def test_wrapped_numbers_are_values_and_stay(case, seed):
    rounding, x = case
    target = rounding.format
    y = lp.round(x, rounding, seed=seed_of(rounding, seed))
    assert all(map(target.is_representable, y.tolist()))
    assert_bit_equal(lp.round(y, rounding, seed=seed_of(rounding, seed // 2)), y)
    codes = lp.encode(y, target)
    assert_bit_equal(lp.decode(codes, target).to(y.dtype), y)


@given(wrapping_cases(), SEEDS)
def test_wrapped_numbers_differ_from_neighbours_by_spans(case, seed):
    rounding, x = case
    target = rounding.format
    quantum = float(target.smallest_subnormal)
    y = lp.round(x, rounding, seed=seed_of(rounding, seed))
    down, up = (x / quantum).floor() * quantum, (x / quantum).ceil() * quantum
    apart = [((y - side) / span(target)) % 1 == 0 for side in (down, up)]
    assert bool((apart[0] | apart[1]).all())
    if rounding.mode in NEAREST:
        distance = (y - x) % span(target)
        distance = torch.minimum(distance, span(target) - distance)
        assert bool((distance <= quantum / 2).all())


@given(wrapping_cases(), SEEDS)
def test_what_fits_does_not_wrap(case, seed):
    rounding, x = case
    target = rounding.format
    key = seed_of(rounding, seed)
    inside = (x >= float(target.min)) & (x <= float(target.max))
    plain = lp.round(x, rounding, saturation="finite", seed=key)
    assert_bit_equal(lp.round(x, rounding, seed=key)[inside], plain[inside])


PERIODIC = ["nearest_even", "toward_positive", "toward_negative", "to_odd"]


@given(wrapping_cases(modes=PERIODIC), st.integers(-5, 5))
def test_wrapping_is_periodic(case, count):
    rounding, x = case
    shifted = lp.round(x + count * span(rounding.format), rounding)
    assert_bit_equal(shifted, lp.round(x, rounding))


@pytest.mark.parametrize("mode", MONOTONE)
def test_wrapping_is_neither_monotone_nor_odd(mode):
    rounding = lp.Rounding("int8", mode, "wrap")
    x = torch.tensor([127.0, 128.0, -128.0])
    assert lp.round(x, rounding).tolist() == [127.0, -128.0, -128.0]


@given(st.data())
def test_strategies_give_what_they_say(data):
    posit = data.draw(lps.posits(max_bits=7, max_es=1))
    assert posit.bits <= 7
    assert posit.es <= 1
    levels = data.draw(lps.level_sets(max_size=3))
    assert 1 <= len(levels) <= 3
    x = data.draw(lps.values_near(levels))
    assert math.isnan(x) or torch.tensor(x).item() == x


def test_examples_shrink_to_simple_ones():
    assert find(lps.posits(), lambda posit: posit.bits > 4) == lp.Posit(5, 0)
    assert find(lps.level_sets(), lambda q: len(q) > 1).values == (0.0, 1.0)
    assert find(lps.values_near("e4m3fn"), lambda x: x != 0) == 1.0
    assert find(lps.values_near("posit8"), lambda x: True) == 0.0
    rounding = find(lps.table_roundings(), lambda r: r.stochastic)
    assert rounding.random_bits == 1
