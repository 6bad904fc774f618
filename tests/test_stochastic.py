"""Stochastic rounding: probabilities enumerated, words reproducible, layout fixed."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from tables import FORMATS, VARIANTS, fits, name_of

import lowprec as lp
from lowprec.kernels.portable import round_with_words
from lowprec.random import philox_words
from lowprec.testing import (
    assert_bit_equal,
    boundary_inputs,
    exact_round,
    philox4x32,
    random_word,
    up_probability,
)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # Known answers of Random123.
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (2**32 - 1,) * 4,
            (2**32 - 1,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert philox4x32(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1, -1, -(2**63)])
@pytest.mark.parametrize(
    ("step", "purpose"), [(0, 0), (7, 1), (2**31 + 5, 2), (2**32 - 1, 3)]
)
def test_tensor_words_equal_python_words(seed, step, purpose):
    index = torch.tensor([0, 1, 2, 3, 4, 1023, 2**32 - 1, 2**34, 2**34 + 3, 2**62 + 1])
    actual = philox_words(index, torch.tensor(seed), step, purpose).tolist()
    assert actual == [random_word(seed, i, step, purpose) for i in index.tolist()]


@pytest.mark.parametrize("carrier", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("r", [1, 2, 3, 6])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
@pytest.mark.parametrize(
    "name", ["e4m3fn", "e5m2", "e2m1fn", "p1", "e5m2_flush", "bfloat16", "e5m2fnuz"]
)
def test_up_counts_over_all_words_equal_closed_form(name, variant, r, carrier):
    target = next(f for f in FORMATS if f.name == name)
    rounding = lp.Rounding(target, "stochastic", random_bits=r, variant=variant)
    x = boundary_inputs(target, carrier)
    # Between the ends of one gap: enough tails to separate the three variants.
    tails = torch.arange(2**9, dtype=carrier) / 2**9
    lowest = target.smallest_subnormal
    x = torch.cat([x[:: max(1, len(x) // 500)], 1 + target.eps * tails, lowest * tails])
    x = x[x.isfinite() & (x.abs() <= target.max)]
    words = torch.arange(2**r) << (32 - r)
    # The low bits of a word must not matter.
    words = words | (torch.arange(2**r) * 2654435761 % 2 ** (32 - r))
    grid = x.unsqueeze(1).expand(-1, 2**r).contiguous()
    results = round_with_words(grid, rounding.code, words.expand_as(grid).contiguous())
    toward = lp.round(x, target, "toward_zero").unsqueeze(1)
    ups = (results != toward).sum(dim=1).tolist()
    for value, count in zip(x.tolist(), ups, strict=True):
        assert Fraction(count, 2**r) == up_probability(value, rounding), value


@pytest.mark.parametrize("word", [0, 2**31 - 1, 2**31, 2**32 - 1])
def test_equal_probability_tosses_the_top_bit(word):
    rounding = lp.Rounding("e5m2", "stochastic_equal")
    x = boundary_inputs("e5m2")
    words = torch.full(x.shape, word)
    actual = round_with_words(x, rounding.code, words)
    expected = [exact_round(value, rounding, word) for value in x.tolist()]
    assert_bit_equal(actual, torch.tensor(expected))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("seed", [0, -1, 2**40 + 7])
@pytest.mark.parametrize("mode", ["stochastic", "stochastic_equal"])
def test_round_equals_oracle_with_the_documented_word(mode, seed):
    rounding = lp.Rounding("e5m2", mode, random_bits=9, variant="C")
    x = torch.randn(3, 7)
    offset = 2**33 + 5
    expected = [
        exact_round(value, rounding, random_word(seed, i + offset))
        for i, value in enumerate(x.flatten().tolist())
    ]
    actual = lp.round(x, rounding, seed=seed, offset=offset)
    assert_bit_equal(actual, torch.tensor(expected).reshape(3, 7))


def _stochastic(x, **options):
    return lp.round(x, "e4m3fn", "stochastic", seed=11, **options)


@pytest.mark.usefixtures("backend")
def test_words_do_not_depend_on_strides():
    x = torch.randn(12, 10)
    expected = _stochastic(x)
    assert_bit_equal(_stochastic(x.T.contiguous().T), expected)
    wide = torch.randn(12, 20)
    wide[:, ::2] = x
    assert_bit_equal(_stochastic(wide[:, ::2]), expected)
    assert_bit_equal(_stochastic(x.flatten()).reshape(12, 10), expected)
    assert_bit_equal(_stochastic(x.reshape(4, 3, 10)).reshape(12, 10), expected)
    row = x[0].expand(5, 10)
    assert_bit_equal(_stochastic(row), _stochastic(row.clone()))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("cuts", [(1,), (3, 4, 5), (17, 40), (64,)])
def test_shards_with_offsets_equal_the_whole(cuts):
    x = torch.randn(100)
    edges = [0, *cuts, 100]
    shards = [
        _stochastic(x[start:stop], offset=start) for start, stop in pairwise(edges)
    ]
    assert_bit_equal(torch.cat(shards), _stochastic(x))


@pytest.mark.usefixtures("backend")
def test_words_do_not_depend_on_the_number_of_threads():
    x = torch.randn(300_001)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(_stochastic(x))
    assert_bit_equal(results[1], results[0])
    assert_bit_equal(results[2], results[0])


@pytest.mark.usefixtures("backend")
def test_carriers_agree():
    x = torch.randn(1000)
    assert_bit_equal(_stochastic(x.double()).float(), _stochastic(x))


def test_seed_tensor_int_and_generator():
    x = torch.randn(50)
    rounding = lp.Rounding("e4m3fn", "stochastic")
    assert_bit_equal(lp.round(x, rounding, seed=torch.tensor(11)), _stochastic(x))
    draws = [
        lp.round(x, rounding, generator=torch.Generator().manual_seed(4))
        for _ in range(2)
    ]
    assert_bit_equal(draws[0], draws[1])
    generator = torch.Generator().manual_seed(4)
    first = lp.round(x, rounding, generator=generator)
    assert_bit_equal(first, draws[0])
    assert not torch.equal(lp.round(x, rounding, generator=generator), first)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("target", FORMATS, ids=name_of)
@pytest.mark.parametrize("mode", ["stochastic", "stochastic_equal"])
def test_lands_on_a_neighbour_and_keeps_exact_values(mode, target):
    carrier = torch.float32 if fits(target, torch.float32) else torch.float64
    x = boundary_inputs(target, carrier)
    x = x[x.isfinite() & (x.abs() <= target.max)]
    if not target.signed:
        x = x[x >= 0]
    down = lp.round(x, target, "toward_negative")
    up = lp.round(x, target, "toward_positive")
    for seed in range(4):
        y = lp.round(x, target, mode, seed=seed)
        assert bool(((y == down) | (y == up)).all())
        exact = down == up
        assert_bit_equal(y[exact], down[exact])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("x", "fraction"), [(1 + 0.3 * 2.0**-7, 0.3), (0.3 * 2.0**-133, 0.3)]
)
def test_frequency_is_the_discarded_fraction(x, fraction):
    # N7. 400 000 draws: .004 is 5.5 standard deviations, false alarm 4e-8.
    draws = 400_000
    value = torch.full((draws,), x, dtype=torch.float64)
    low = lp.round(value[:1], "bfloat16", "toward_zero")
    for seed in (1, 2):
        y = lp.round(value, "bfloat16", "stochastic", seed=seed)
        assert ((y > low).sum().item() / draws) == pytest.approx(fraction, abs=0.004)


@pytest.mark.usefixtures("backend")
def test_neighbouring_elements_are_uncorrelated():
    # 200 000 pairs, |correlation| < 5.5 / sqrt(n): false alarm 4e-8 for each lag.
    n = 200_000
    y = lp.round(torch.full((n,), 1.125), "e5m2", "stochastic", seed=9)
    ups = (y > 1).double() - 0.5
    for lag in (1, 2, 3, 4, 8):
        correlation = (ups[lag:] * ups[:-lag]).mean().item() / 0.25
        assert abs(correlation) < 5.5 / math.sqrt(n - lag)
