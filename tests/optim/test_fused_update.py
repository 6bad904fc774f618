"""Updates are one rounding of the exact value: compared with rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch

import lowprec as lp
from lowprec.optim import _exact
from lowprec.optim._exact import Term, round_sum, scaled, sum_to_odd
from lowprec.optim._update import Purpose, rounded_step_size, update_weights
from lowprec.random import split_seed
from lowprec.rounding import as_rounding
from lowprec.testing import assert_bit_equal, exact_round, random_word

FORMATS = ["bfloat16", "binary16", "e4m3fn", "e5m2", "e6m8", "e8m15"]
MODES = list(lp.RoundingMode)


def tricky_operands(dtype, eta, rounding, count=400):
    """Weights and directions whose exact differences sit at, and just off, ties."""
    generator = torch.Generator().manual_seed(7)
    p = rounding.format.precision
    w = torch.randn(count, generator=generator, dtype=torch.float64)
    w = w * 2.0 ** torch.randint(-4, 5, (count,), generator=generator)
    w = lp.round(w, rounding.format)
    half = 2.0 ** (torch.floor(torch.log2(w.abs().clamp(min=2.0**-6))) - p)
    k = torch.randint(-4, 5, (count,), generator=generator)
    noise = 2.0 ** torch.randint(-90, -20, (count,), generator=generator)
    noise = torch.where(torch.rand(count, generator=generator) < 0.3, 0.0, noise)
    d = (k * half * (1 + noise)) / eta
    d[:3] = torch.tensor([0.0, -0.0, 2.0**-100], dtype=torch.float64)
    w[3:6] = torch.tensor([0.0, -0.0, 0.0], dtype=torch.float64)
    return w.to(dtype), d.to(dtype)


def expected_update(w, d, eta, rounding, words, two_step=False, product_words=None):
    results = []
    for i, (a, b) in enumerate(zip(w.tolist(), d.tolist(), strict=True)):
        product = Fraction(eta) * Fraction(b)
        if two_step:
            word = product_words[i] if product_words else 0
            product = Fraction(exact_round(product, rounding, word))
        exact = Fraction(a) - product
        # A zero has the sign of the IEEE 754 difference.
        value = exact if exact else a - (float(product) or math.copysign(0.0, b))
        results.append(float(exact_round(value, rounding, words[i] if words else 0)))
    return torch.tensor(results, dtype=torch.float64).to(w.dtype)


def nonzero_equal(actual, expected):
    zero = (actual == 0) & (expected == 0)
    assert_bit_equal(torch.where(zero, 0.0, actual), torch.where(zero, 0.0, expected))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("update", ["fused", "two_step"])
def test_update_rounds_the_exact_value(name, mode, dtype, update):
    rounding = lp.Rounding(name, mode, random_bits=16)
    if update == "two_step" and rounding.format.max < 1000:
        rounding = lp.Rounding(name, mode, "finite", random_bits=16)
    eta = rounded_step_size(0.3, rounding)
    w, d = tricky_operands(dtype, eta, rounding)
    seeds = split_seed(torch.tensor(11), len(Purpose))
    words = product_words = None
    if rounding.stochastic:
        words = [random_word(int(seeds[0]), 5 + i) for i in range(len(w))]
        product_words = [random_word(int(seeds[1]), 5 + i) for i in range(len(w))]
    actual = update_weights(w, d, eta, rounding, update=update, seeds=seeds, offset=5)
    expected = expected_update(
        w, d, eta, rounding, words, update == "two_step", product_words
    )
    nonzero_equal(actual, expected)


@pytest.mark.parametrize("mode", ["nearest_even", "toward_negative"])
def test_signs_of_exact_zeros_are_those_of_ieee_754(mode):
    w = torch.tensor([0.0, -0.0, 0.0, -0.0, 1.0])
    d = torch.tensor([0.0, 0.0, -0.0, -0.0, 2.0])
    actual = update_weights(w, d, 0.5, lp.Rounding("bfloat16", mode))
    signs = [False, True, False, False, False]
    if mode == "toward_negative":
        signs = [True, True, False, True, True]
    assert actual.eq(0).all()
    assert actual.signbit().tolist() == signs


def test_a_product_wider_than_the_carrier_decides_a_tie():
    # eta d = 2^-8 + 2^-60: float64 arithmetic would call it a tie and stay at 1.
    w = torch.tensor([1.0], dtype=torch.float64)
    eta, d = 1 + 2.0**-7, torch.tensor([-(2.0**-8 + 2.0**-60)], dtype=torch.float64)
    d = d / 1.0
    result = update_weights(w, d, eta, as_rounding("bfloat16"))
    assert result.item() == float(
        exact_round(1 + Fraction(eta) * Fraction(-d.item()), "bfloat16")
    )
    tie = torch.tensor([-(2.0**-8)], dtype=torch.float64)
    assert update_weights(w, tie, 1.0, as_rounding("bfloat16")).item() == 1.0
    above = torch.tensor([-(2.0**-8) * (1 + 2.0**-52)], dtype=torch.float64)
    assert update_weights(w, above, 1.0, as_rounding("bfloat16")).item() == 1 + 2.0**-7


def fraction_to_odd(value):
    """Round a rational to odd with 53 bits, in the normal range."""
    if value == 0:
        return Fraction(0)
    return Fraction(exact_round(value, lp.Rounding("binary64", "to_odd")))


def test_sums_of_four_terms_are_rounded_to_odd():
    generator = torch.Generator().manual_seed(3)
    count = 3000
    heads = [torch.randn(count, generator=generator, dtype=torch.float64) for _ in "ab"]
    scale = 2.0 ** torch.randint(-60, 60, (count,), generator=generator)
    heads[1] = heads[1] * scale
    heads[1][::3] = -heads[0][::3] * (1 + 2.0**-52)
    heads[1][::7] = -heads[0][::7]
    shrink = 2.0 ** -torch.randint(53, 110, (2, count), generator=generator).double()
    errors = [h * s for h, s in zip(heads, shrink, strict=True)]
    errors[1][::14] = -errors[0][::14]
    actual = sum_to_odd([Term(*pair) for pair in zip(heads, errors, strict=True)])
    table = torch.stack([*heads, *errors]).T.tolist()
    for got, row in zip(actual.tolist(), table, strict=True):
        assert Fraction(got) == fraction_to_odd(sum(map(Fraction, row)))


@pytest.mark.parametrize("swapped", [False, True])
def test_sums_with_one_product_are_rounded_to_odd(swapped):
    generator = torch.Generator().manual_seed(4)
    count = 3000
    x, a = torch.randn(2, count, generator=generator, dtype=torch.float64)
    a = a * 2.0 ** torch.randint(-120, 120, (count,), generator=generator)
    product = scaled(0.1, x, as_rounding("bfloat16"))
    a[::3] = -product.head[::3]  # only the error is left
    a[::5] = -product.head[::5] * (1 + 2.0**-52)
    a[::7] = product.head[::7] * 2.0**-53  # near a tie of the double
    terms = [Term(a), product]
    actual = sum_to_odd(terms[::-1] if swapped else terms)
    rows = zip(actual.tolist(), a.tolist(), x.tolist(), strict=True)
    for got, addend, factor in rows:
        exact = Fraction(addend) + Fraction(0.1) * Fraction(factor)
        assert Fraction(got) == fraction_to_odd(exact)


def test_scaled_products_are_exact():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(500, generator=generator, dtype=torch.float64)
    x[:100] *= 2.0**950  # beyond the range of Dekker's splitting
    x[100:200] *= 2.0**-900
    head, error = scaled(0.1, x, as_rounding("bfloat16"))
    for a, h, e in zip(x.tolist(), head.tolist(), error.tolist(), strict=True):
        assert Fraction(h) + Fraction(e) == Fraction(0.1) * Fraction(a)


def test_products_too_small_for_float64_only_act_by_their_sign():
    rounding = lp.Rounding("bfloat16", "toward_positive")
    w = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    d = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64) * 2.0**-1070
    result = update_weights(w, d, 2.0**-100, rounding)
    tiny = rounding.format.smallest_subnormal
    assert result.tolist() == [1 + 2.0**-7, 1.0, tiny, 0.0]
    wide = lp.Rounding("e11m5")
    with pytest.raises(ValueError, match=r"below 2\^-960.*scale the problem"):
        update_weights(w, d, 2.0**-100, wide)


def test_infinity_and_nan_propagate_and_overflow_follows_the_mode():
    w = torch.tensor([torch.inf, torch.nan, 1.0, 3.3e38, 3.3e38])
    d = torch.tensor([1.0, 1.0, torch.inf, -3.3e38, torch.nan])
    result = update_weights(w, d, 1.0, as_rounding("bfloat16"))
    assert_bit_equal(
        result, torch.tensor([torch.inf, torch.nan, -torch.inf, torch.inf, torch.nan])
    )
    clamped = update_weights(w, d, 1.0, lp.Rounding("bfloat16", "toward_zero"))
    assert clamped[3].item() == lp.format("bfloat16").max


def test_one_term_is_rounded_as_round_does():
    x = torch.randn(1000, dtype=torch.float64)
    rounding = as_rounding("e5m2")
    result = round_sum([Term(x)], rounding, torch.float64, None, 0)
    assert_bit_equal(result, lp.round(x, rounding))


def test_step_sizes_are_rounded_to_nearest_whatever_the_mode():
    for mode in MODES:
        assert rounded_step_size(0.1, lp.Rounding("bfloat16", mode)) == 0.10009765625
    assert rounded_step_size(torch.tensor(0.25), None) == 0.25
    with pytest.raises(ValueError, match="beyond 448, the largest value"):
        rounded_step_size(449.0, "e4m3fn")
    with pytest.warns(lp.errors.NumericalWarning, match="parameters do not move"):
        assert rounded_step_size(1e-9, "e4m3fn") == 0.0


def test_section_3_2_bounds_of_the_update_error():
    """T7: ||s|| <= u/(1+u) ||w'|| fused, + (1+u) u eta ||g|| with two roundings."""
    u = 2.0**-8
    generator = torch.Generator().manual_seed(1)
    for _ in range(1000):
        w = lp.round(torch.randn(20, generator=generator).double(), "bfloat16")
        g = torch.randn(20, generator=generator).double()
        eta = rounded_step_size(
            2.0 ** torch.randint(-8, 3, (), generator=generator).item() * 1.7,
            "bfloat16",
        )
        exact = w - eta * g  # float64: 8 bits times 24 bits is exact
        fused = update_weights(w, g, eta, as_rounding("bfloat16"))
        assert (fused - exact).norm() <= u / (1 + u) * exact.norm() * (1 + 1e-12)
        twice = update_weights(w, g, eta, as_rounding("bfloat16"), update="two_step")
        bound = u * exact.norm() + (1 + u) * u * eta * g.norm()
        assert (twice - exact).norm() <= bound * (1 + 1e-12)


def test_the_error_of_the_update_grows_with_the_weight():
    """T7: w = 4000, eta g = 8 gives s = 8, far above u |eta g|."""
    w = torch.tensor([4000.0])
    result = update_weights(w, torch.tensor([8.0]), 1.0, as_rounding("bfloat16"))
    assert result.item() - (4000.0 - 8.0) == 8.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("update", ["fused", "two_step"])
@pytest.mark.parametrize("mode", ["nearest_even", "toward_negative", "stochastic"])
def test_pieces_change_nothing(update, mode, dtype, monkeypatch):
    rounding = lp.Rounding("bfloat16", mode)
    generator = torch.Generator().manual_seed(2)
    w = torch.randn(9, 7, generator=generator, dtype=dtype).mT
    d = torch.randn(7, 9, generator=generator, dtype=dtype) * 2.0**-30
    w[0, :3] = torch.tensor([0.0, torch.inf, torch.nan])
    d[0, 0] = 0.0
    seeds = tuple(torch.tensor(seed) for seed in range(4))

    def updated(piece):
        monkeypatch.setattr(_exact, "PIECE", piece)
        return update_weights(w, d, 0.1, rounding, update=update, seeds=seeds, offset=5)

    expected = updated(63)
    for piece in (1, 8, 62):
        assert_bit_equal(updated(piece), expected)


@pytest.mark.parametrize("special", [False, True])
def test_sums_of_two_exact_terms_are_rounded_to_odd(special):
    generator = torch.Generator().manual_seed(4)
    count = 3000
    a = torch.randn(count, generator=generator, dtype=torch.float64)
    scale = 2.0 ** torch.randint(-120, 120, (count,), generator=generator)
    b = torch.randn(count, generator=generator, dtype=torch.float64) * scale
    b[::7] = -a[::7]
    if special:  # the general way
        a[0], b[0] = torch.finfo(torch.float64).max, torch.finfo(torch.float64).max
    actual = sum_to_odd([Term(a), Term(b)]).tolist()
    for got, x, y in zip(actual, a.tolist(), b.tolist(), strict=True):
        exact = Fraction(x) + Fraction(y)
        wanted = exact_round(exact, lp.Rounding("binary64", "to_odd"))
        assert got == (wanted if exact else 0)
