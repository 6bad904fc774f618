"""The rational oracle against independent judges: by hand, MPFR, System, gfloat."""

import math
import random
from fractions import Fraction

import gmpy2
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import RoundMode as GfloatMode
from gfloat import round_float as gfloat_round
from gfloat.formats import (
    format_info_bfloat16,
    format_info_binary16,
    format_info_ocp_e2m1,
    format_info_ocp_e2m3,
    format_info_ocp_e3m2,
    format_info_ocp_e4m3,
    format_info_ocp_e5m2,
)
from tables import FORMATS, MODES, SATURATIONS, VARIANTS, name_of
from vector_oracle import vector_round

from lowprec import Format, Rounding, RoundingMode, Variant, format
from lowprec.formats import System
from lowprec.testing import boundary_inputs, exact_round, up_probability


def same(a, b):
    """Equal numbers, both NaN, and zeros of equal sign."""
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return a == b and (a != 0 or math.copysign(1, a) == math.copysign(1, b))


E4M3FN = Format(
    precision=4, emax=8, emin=-6, infinities=False, max_significand=14, encoding="fn"
)
FINITE = Format(
    precision=2, emax=2, emin=0, infinities=False, nans=False, encoding="finite"
)
UNSIGNED = Format(precision=4, emax=7, signed=False, signed_zero=False)
FLUSH = Format(precision=3, emax=15, subnormals=False)
P1 = Format(precision=1, emax=7, emin=-7)
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("x", "format", "mode", "saturation", "expected"),
    [
        # Significands 14 and 15 of e4m3fn: 464 is a tie of 448 and the absent 480.
        (464, E4M3FN, "nearest_even", "none", 448.0),
        (464, E4M3FN, "nearest_away", "none", NAN),
        (464, E4M3FN, "nearest_zero", "none", 448.0),
        (465, E4M3FN, "nearest_even", "none", NAN),
        (465, E4M3FN, "nearest_even", "finite", 448.0),
        (465, E4M3FN, "nearest_even", "propagate", 448.0),
        (-INF, E4M3FN, "nearest_even", "finite", -448.0),
        (-INF, E4M3FN, "nearest_even", "propagate", NAN),
        (449, E4M3FN, "to_odd", "none", 448.0),
        (449, E4M3FN, "toward_positive", "none", NAN),
        (-449, E4M3FN, "toward_positive", "none", -448.0),
        (1e9, E4M3FN, "toward_zero", "none", 448.0),
        (INF, E4M3FN, "toward_zero", "none", NAN),
        # Neither infinities nor NaN: always the largest, NaN kept visible.
        (1e9, FINITE, "nearest_even", "none", 6.0),
        (-INF, FINITE, "nearest_even", "none", -6.0),
        (NAN, FINITE, "nearest_even", "none", NAN),
        (5.0, FINITE, "nearest_even", "none", 4.0),
        # One significand bit: ties are between 2^e and 2^(e+1); 1.5 quanta -> 2.
        (1.5, P1, "nearest_even", "none", 2.0),
        (3.0, P1, "nearest_even", "none", 4.0),
        (3.0, P1, "nearest_zero", "none", 2.0),
        (2.0**-8, P1, "nearest_even", "none", 0.0),
        (2.0**-8 * 1.5, P1, "nearest_even", "none", 2.0**-7),
        (3.0, P1, "to_odd", "none", 2.0),
        (192, P1, "nearest_even", "none", INF),
        # Without subnormals the gap from 0 to 2^emin is one quantum.
        (2.0**-15, FLUSH, "nearest_even", "none", 0.0),
        (-(2.0**-15), FLUSH, "nearest_even", "none", -0.0),
        (2.0**-15, FLUSH, "nearest_away", "none", 2.0**-14),
        (1.1 * 2.0**-15, FLUSH, "nearest_even", "none", 2.0**-14),
        (1e-30, FLUSH, "toward_positive", "none", 2.0**-14),
        (1e-30, FLUSH, "to_odd", "none", 2.0**-14),
        (-1e-30, FLUSH, "toward_positive", "none", -0.0),
        # Unsigned: what is below the range, unless it rounds to zero.
        (-3.0, UNSIGNED, "nearest_even", "none", NAN),
        (-3.0, UNSIGNED, "nearest_even", "finite", 0.0),
        (-INF, UNSIGNED, "nearest_even", "propagate", NAN),
        (-3.0, UNSIGNED, "nearest_even", "propagate", 0.0),
        (-1e-30, UNSIGNED, "nearest_even", "none", 0.0),
        (-1e-30, UNSIGNED, "toward_negative", "none", NAN),
        (-0.0, UNSIGNED, "nearest_even", "none", 0.0),
    ],
)
def test_by_hand(x, format, mode, saturation, expected):
    rounding = Rounding(format, mode, saturation)
    assert same(exact_round(x, rounding), expected)


def test_result_is_a_float_exactly_when_binary64_holds_it():
    third = exact_round(Fraction(1, 3), "binary16")
    assert isinstance(third, float)
    wide = exact_round(Fraction(1, 3), Format(precision=60, emax=100))
    assert isinstance(wide, Fraction)
    assert abs(wide - Fraction(1, 3)) <= Fraction(1, 2**62)


@pytest.mark.parametrize("word", [-1, 2**32])
def test_random_word_must_have_32_bits(word):
    with pytest.raises(ValueError, match="random_word"):
        exact_round(1.1, Rounding("bfloat16", "stochastic"), word)


def _numbers(target, count, seed):
    """Exact reals around a format: binary and not, whole range and both ends."""
    source = random.Random(seed)
    lowest = target.emin - target.precision
    for _ in range(count):
        exponent = source.randint(lowest - 3, target.emax + 3)
        bits = source.choice([target.precision, target.precision + 1, 60])
        significand = Fraction(source.getrandbits(bits) + 2 ** (bits - 1), 2**bits)
        x = significand * Fraction(2) ** exponent
        if source.random() < 0.2:
            x += x / 3**40
        yield source.choice([-1, 1]) * x


_MPFR_MODES = {
    RoundingMode.NEAREST_EVEN: gmpy2.RoundToNearest,
    RoundingMode.TOWARD_POSITIVE: gmpy2.RoundUp,
    RoundingMode.TOWARD_NEGATIVE: gmpy2.RoundDown,
    RoundingMode.TOWARD_ZERO: gmpy2.RoundToZero,
}
IEEE_LIKE = [
    target
    for target in FORMATS
    if target.infinities
    and target.subnormals
    and target.signed
    and target.max_significand == 2**target.precision - 1
]


@pytest.mark.parametrize("mode", _MPFR_MODES, ids=name_of)
@pytest.mark.parametrize("target", IEEE_LIKE, ids=name_of)
def test_equals_mpfr(target, mode):
    # MPFR's significands are in [1/2, 1): its exponents are one larger; its emin is
    # that of the smallest subnormal.
    context = gmpy2.context(
        precision=target.precision,
        emin=target.emin - target.precision + 2,
        emax=target.emax + 1,
        subnormalize=True,
        round=_MPFR_MODES[mode],
    )
    rounding = Rounding(target, mode)
    for x in _numbers(target, 200, seed=target.precision):
        with context:
            judged = gmpy2.mpfr(gmpy2.mpq(x))
        with gmpy2.context(precision=100):  # conversion out of MPFR must be exact
            expected = float(judged)
        assert same(exact_round(x, rounding), expected), x


_SYSTEM_MODES = {
    "rn": "nearest_even",
    "rz": "toward_zero",
    "rd": "toward_negative",
    "ru": "toward_positive",
}


@pytest.mark.parametrize("overflow", ["inf", "saturate"])
@pytest.mark.parametrize("mode", _SYSTEM_MODES)
@pytest.mark.parametrize(
    ("t", "emin", "emax"), [(3, -2, 3), (1, -6, 8), (8, -125, 128)]
)
def test_equals_system(t, emin, emax, mode, overflow):
    system = System(2, t, emin, emax)
    saturation = "none" if overflow == "inf" else "finite"
    target = Format.from_system(t, emin, emax)
    rounding = Rounding(target, _SYSTEM_MODES[mode], saturation)
    for x in _numbers(target, 200, seed=t):
        assert exact_round(x, rounding) == system.round(x, mode, overflow), x


_GFLOAT_MODES = {
    RoundingMode.NEAREST_EVEN: GfloatMode.TiesToEven,
    RoundingMode.NEAREST_AWAY: GfloatMode.TiesToAway,
    RoundingMode.TOWARD_POSITIVE: GfloatMode.TowardPositive,
    RoundingMode.TOWARD_NEGATIVE: GfloatMode.TowardNegative,
    RoundingMode.TOWARD_ZERO: GfloatMode.TowardZero,
}
_GFLOAT_FORMATS = {
    "binary16": format_info_binary16,
    "bfloat16": format_info_bfloat16,
    "e5m2": format_info_ocp_e5m2,
    "e4m3fn": format_info_ocp_e4m3,
    "e2m1fn": format_info_ocp_e2m1,
    "e2m3fn": format_info_ocp_e2m3,
    "e3m2fn": format_info_ocp_e3m2,
}
_BY_NAME = {target.name: target for target in FORMATS}


def _target(name):
    return _BY_NAME.get(name) or format(name)


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("mode", _GFLOAT_MODES, ids=name_of)
@pytest.mark.parametrize("name", _GFLOAT_FORMATS)
def test_equals_gfloat(name, mode, saturate):
    info, target = _GFLOAT_FORMATS[name], _target(name)
    rounding = Rounding(target, mode, "finite" if saturate else "none")
    inputs = boundary_inputs(target, torch.float32)
    inputs = inputs[:: max(1, len(inputs) // 400)].tolist()
    for x in [*inputs, INF, -INF, -0.0]:
        if math.isnan(x) and not target.nans:
            continue  # gfloat refuses; we keep the NaN
        if not target.nans and not saturate and abs(x) > target.max:
            continue  # gfloat refuses; we give the largest finite value
        expected = gfloat_round(info, x, _GFLOAT_MODES[mode], saturate)
        assert same(exact_round(x, rounding), float(expected)), x


_GFLOAT_VARIANTS = {
    Variant.A: GfloatMode.StochasticFastest,
    Variant.B: GfloatMode.StochasticFast,
    Variant.C: GfloatMode.Stochastic,
}


@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
@pytest.mark.parametrize("name", ["e5m2", "e4m3fn"])
def test_stochastic_variants_equal_gfloat(name, variant, r):
    rounding = Rounding(
        _target(name), "stochastic", "finite", random_bits=r, variant=variant
    )
    info, mode = _GFLOAT_FORMATS[name], _GFLOAT_VARIANTS[variant]
    source = random.Random(1)
    for _ in range(200):
        x = math.ldexp(source.getrandbits(12), source.randint(-30, 5))
        for random_bits in range(2**r):
            expected = gfloat_round(info, x, mode, True, random_bits, r)
            word = random_bits << (32 - r) | source.getrandbits(32 - r)
            assert exact_round(x, rounding, word) == expected


@pytest.mark.parametrize(
    "name",
    [
        "bfloat16",
        "float8_e5m2",
        "float8_e4m3fn",
        "float8_e4m3",
        "float8_e3m4",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float6_e2m3fn",
        "float6_e3m2fn",
        "float4_e2m1fn",
    ],
)
def test_equals_ml_dtypes_from_float32(name):
    target = _target(
        name.removeprefix("float8_").removeprefix("float6_").removeprefix("float4_")
    )
    finite_only = not (target.nans or target.infinities)
    inputs = boundary_inputs(target, torch.float32)
    if finite_only:  # its conversion of NaN to such formats is 0
        inputs = inputs[~inputs.isnan()]
    inputs = inputs[:: max(1, len(inputs) // 3000)].numpy()
    with np.errstate(all="ignore"):
        expected = inputs.astype(getattr(ml_dtypes, name)).astype(np.float64)
    for x, wanted in zip(inputs.tolist(), expected.tolist(), strict=True):
        assert same(exact_round(x, target), wanted), x


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
@pytest.mark.parametrize("r", [1, 2, 5])
def test_up_probability_is_the_fraction_of_random_words(variant, r):
    rounding = Rounding("e5m2", "stochastic", "finite", random_bits=r, variant=variant)
    for sixty_fourths in range(64):
        x = 1 + Fraction(sixty_fourths, 4 * 64)  # quantum 1/4
        results = [exact_round(x, rounding, word << (32 - r)) for word in range(2**r)]
        ups = sum(result > 1.0 for result in results)
        assert set(results) <= {1.0, 1.25}
        assert up_probability(x, rounding) == Fraction(ups, 2**r)


def test_up_probability_bounds_and_specials():
    for variant in VARIANTS:
        rounding = Rounding("e5m2", "stochastic", random_bits=4, variant=variant)
        assert up_probability(1.25, rounding) == 0
        assert all(up_probability(x, rounding) == 0 for x in (0.0, INF, NAN))
    assert up_probability(1.1, Rounding("e5m2", "stochastic_equal")) == Fraction(1, 2)
    with pytest.raises(ValueError, match="deterministic"):
        up_probability(1.1, "e5m2")


@pytest.mark.parametrize("mode", MODES, ids=name_of)
@pytest.mark.parametrize("target", FORMATS, ids=name_of)
def test_vector_oracle_equals_rational_oracle(target, mode):
    source = np.random.default_rng(target.precision)
    pool = boundary_inputs(target, torch.float64).numpy()
    spread = np.ldexp(
        source.uniform(-2, 2, 40),
        source.integers(
            max(target.emin - target.precision - 2, -1000),
            min(target.emax + 2, 1000),
            40,
        ),
    )
    x = np.concatenate([source.choice(pool, 60), spread, [0.0, -0.0, INF, -INF, NAN]])
    words = source.integers(0, 2**32, len(x))
    for position, saturation in enumerate(SATURATIONS):
        rounding = Rounding(
            target, mode, saturation, 1 + position * 11, VARIANTS[position]
        )
        actual = vector_round(x, rounding, words)
        for value, word, result in zip(
            x.tolist(), words.tolist(), actual.tolist(), strict=True
        ):
            assert same(exact_round(value, rounding, word), result), (value, word)
