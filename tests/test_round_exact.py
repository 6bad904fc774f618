"""`lowprec.round` equals the exact oracle: formats, modes, saturations, bits."""

import math

import numpy as np
import pytest
import torch
from tables import CARRIERS, FORMATS, MODES, PAIRS, SATURATIONS, VARIANTS, name_of
from vector_oracle import Decomposition

import lowprec as lp
from lowprec.random import philox_words
from lowprec.testing import assert_bit_equal, boundary_inputs, exact_round

SEED = 20261124
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def sixteen_bit_patterns(dtype):
    """All bfloat16 and binary16 bit patterns, as carrier values."""
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    both = [codes.view(half).to(dtype) for half in (torch.bfloat16, torch.float16)]
    return torch.cat(both)


def random_patterns(dtype, count, seed=0):
    """Uniform bit patterns: every exponent, NaN payloads and subnormals alike."""
    integer = _INTEGERS[dtype]
    limits = torch.iinfo(integer)
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(
        limits.min, limits.max, (count,), dtype=integer, generator=generator
    )
    return words.view(dtype)


def class_values(dtype):
    """Every power of two with its neighbours, specials, NaN payloads, subnormals."""
    limits = torch.finfo(dtype)
    lowest = math.frexp(limits.tiny * limits.eps)[1] - 1
    highest = math.frexp(limits.max)[1] - 1
    powers = [math.ldexp(1.0, e) for e in range(lowest, highest + 1)]
    powers = torch.tensor(powers, dtype=dtype)
    payloads = [0x7F800001, 0x7FFFFFFF, 0x7FC00000, 0xFF800001 - 2**32, -1]
    nans = torch.tensor(payloads, dtype=torch.int32).view(torch.float32).to(dtype)
    powers = torch.cat([powers, 1.5 * powers, 1.25 * powers])
    up = powers.nextafter(torch.full_like(powers, math.inf))
    down = powers.nextafter(torch.zeros_like(powers))
    specials = torch.tensor([0.0, limits.max, math.inf], dtype=dtype)
    positive = torch.cat([powers, up, down, specials])
    return torch.cat([positive, -positive, nans])


def check(x, target, random_bits=32):
    """Compare every mode and saturation on one tensor."""
    # torch converts signalling NaNs without numpy's warning.
    decomposition = Decomposition(x.double().numpy(), target)
    index = torch.arange(x.numel())
    words = philox_words(index, torch.tensor(SEED)).numpy()
    for mode in MODES:
        stochastic = mode.value.startswith("stochastic")
        variants = VARIANTS if mode.value == "stochastic" else VARIANTS[:1]
        for saturation in SATURATIONS:
            for variant in variants:
                rounding = lp.Rounding(target, mode, saturation, random_bits, variant)
                expected = torch.from_numpy(decomposition.rounded(rounding, words))
                actual = lp.round(x, rounding, seed=SEED if stochastic else None)
                try:
                    assert_bit_equal(actual, expected.to(x.dtype))
                except AssertionError as error:
                    raise AssertionError(f"{rounding}: {error}") from None


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("target", "carrier"), PAIRS, ids=name_of)
def test_all_16_bit_patterns(target, carrier):
    check(sixteen_bit_patterns(carrier), target)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("target", "carrier"), PAIRS, ids=name_of)
def test_values_midpoints_and_their_neighbours(target, carrier):
    check(boundary_inputs(target, carrier), target)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("target", "carrier"), PAIRS, ids=name_of)
def test_value_classes_of_the_carrier(target, carrier):
    x = torch.cat([class_values(carrier), random_patterns(carrier, 4096)])
    check(x, target, random_bits=7)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("target", "carrier"), PAIRS, ids=name_of)
def test_sample_against_rational_oracle_directly(target, carrier):
    x = torch.cat([boundary_inputs(target, carrier), random_patterns(carrier, 200)])
    x = x[torch.from_numpy(np.random.default_rng(1).integers(0, len(x), 60))]
    for mode in MODES[:7]:
        expected = [
            exact_round(value, lp.Rounding(target, mode)) for value in x.tolist()
        ]
        actual = lp.round(x, target, mode)
        assert_bit_equal(actual, torch.tensor(expected, dtype=carrier))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (7,), (3, 5, 2)], ids=str)
def test_shapes(shape, carrier):
    x = torch.randn(shape, dtype=carrier)
    expected = [exact_round(value, "bfloat16") for value in x.flatten().tolist()]
    assert_bit_equal(
        lp.round(x, "bfloat16"), torch.tensor(expected, dtype=carrier).reshape(shape)
    )


@pytest.mark.usefixtures("backend")
def test_non_contiguous_inputs_and_out():
    x = torch.randn(6, 8)
    for view in (x.T, x[::2, 1::3], x[0].expand(4, 8), x.flip(0)):
        assert_bit_equal(lp.round(view, "e4m3fn"), lp.round(view.clone(), "e4m3fn"))
    out = torch.full((8, 6), math.nan).T
    lp.round(x, "e4m3fn", out=out)
    assert_bit_equal(out.contiguous(), lp.round(x, "e4m3fn"))
    same = x.clone()
    lp.round(same, "e4m3fn", out=same)
    assert_bit_equal(same, lp.round(x, "e4m3fn"))


@pytest.mark.parametrize("name", ["e8m50", "e11m5", "e10m3"])
@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_formats_whose_results_float32_lacks_are_refused(name, mode):
    # Their largest value is not a float32 number.
    with pytest.raises(ValueError, match="use a float64 carrier"):
        lp.round(torch.ones(3), name, mode)


def test_rounding_float32_to_binary64_is_the_identity():
    x = class_values(torch.float32)
    for mode in MODES:
        assert_bit_equal(lp.round(x, "binary64", mode, seed=0), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bfloat16", "binary16", "e5m2", "e4m3fn", "e8m15", "deep", "bf16_flush"]
)
def test_a_million_float32_patterns_in_equal_steps(name):
    target = next(f for f in FORMATS if f.name == name)
    # The step is prime: every low bit pattern occurs with every exponent.
    codes = torch.arange(-(2**31), 2**31, 4099).to(torch.int32)
    check(codes.view(torch.float32), target)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "target",
    [
        lp.Format(precision=100, emax=2000, emin=0),
        lp.Format(precision=70, emax=1100, emin=-23, subnormals=False),
        lp.Format(precision=63, emax=1100, emin=-1000, signed_zero=False),
    ],
    ids=repr,
)
def test_formats_wider_than_64_bits(target):
    # Near 2^emin they round, however wide: their quantum is fixed there.
    x = [s * m * 2.0**e for s in (1, -1) for m in (1, 1.5, 1.7) for e in (-124, 0)]
    for exponent in (target.emin, target.emin - target.precision + 1):
        x += [math.ldexp(m, exponent + step) for m in (1, 1.3) for step in (-1, 0, 1)]
    x = torch.tensor([*x, 0.0, -0.0], dtype=torch.float64)
    for mode in MODES[:7]:
        expected = [exact_round(v, lp.Rounding(target, mode)) for v in x.tolist()]
        actual = lp.round(x, target, mode)
        assert_bit_equal(actual, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("fields", "carrier", "message"),
    [
        # 2^200 is no float32; 2^10 + 2^-89 is no float64.
        ({"precision": 53, "emax": 1023, "emin": 200}, torch.float32, "float64 car"),
        ({"precision": 63, "emax": 1088, "emin": 1088}, torch.float64, "a float64"),
        (
            {"precision": 100, "emax": 10, "max_significand": 2**99 + 1},
            torch.float64,
            "a float64",
        ),
        ({"precision": 3, "emax": -130, "emin": -140}, torch.float32, "float64 car"),
        ({"precision": 3, "emax": -1050, "emin": -1060}, torch.float64, "-1022$"),
    ],
)
def test_formats_beyond_the_carrier_are_refused(fields, carrier, message):
    for mode in ("nearest_even", "toward_positive"):
        with pytest.raises(ValueError, match=message):
            lp.round(torch.ones(2, dtype=carrier), lp.Format(**fields), mode)


@pytest.mark.usefixtures("backend")
def test_largest_of_the_carrier_stands_for_a_larger_one():
    x = torch.tensor([math.inf, -math.inf])
    y = lp.round(x, "binary64", saturation="finite")
    assert y.tolist() == [torch.finfo(torch.float32).max, torch.finfo(x.dtype).min]
