"""P3109, fixed point and formats without subnormals: every code, and their names."""

import math
from fractions import Fraction

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import formats as gfloat_formats
from gfloat.types import Domain, Signedness

import lowprec as lp
from lowprec.arithmetic import fits
from lowprec.formats import Format, format
from lowprec.testing import exact_round

# hardware.md section 4: P3109 binary8, signed; extended and finite maxima, bias.
BINARY8 = {
    1: (2.0**62, 2.0**63, 64),
    2: (2.0**31, 1.5 * 2.0**31, 32),
    3: (49152.0, 57344.0, 16),
    4: (224.0, 240.0, 8),
    5: (15.0, 15.5, 4),
    6: (3.875, 3.9375, 2),
    7: (1.96875, 1.984375, 1),
}


def same(a, b):
    """Equal numbers, zeros of one sign, or both NaN."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def members(bits):
    """Names, widths and judges of all P3109 formats of a width."""
    for sign, signedness in (("s", Signedness.Signed), ("u", Signedness.Unsigned)):
        for precision in range(1, bits + (sign == "u")):
            for domain in "ef":
                judge = gfloat_formats.format_info_p3109(
                    bits,
                    precision,
                    signedness,
                    Domain.Extended if domain == "e" else Domain.Finite,
                )
                yield f"binary{bits}p{precision}{sign}{domain}", judge


def check_codes(target):
    """Decoding and encoding tensors equals decoding and encoding single codes."""
    codes = list(range(2**target.bits))
    values = target.decode(codes)
    tensor = torch.tensor(codes)
    decoded = target.decode(tensor)
    assert all(map(same, decoded.double().tolist(), map(float, values)))
    assert target.encode(decoded).tolist() == codes
    assert target.encode(values) == codes


@pytest.mark.parametrize(
    "bits",
    [*range(3, 9), *(pytest.param(bits, marks=pytest.mark.slow) for bits in (10, 12))],
)
def test_every_code_of_p3109_equals_gfloat(bits):
    for name, judge in members(bits):
        target = format(name)
        assert target.name == name
        assert target.bits == bits
        assert target.precision == judge.precision
        assert target.bias == judge.bias
        if not fits(target, torch.float64):  # wider than the judge
            assert bits >= 12
            continue
        values = target.decode(list(range(2**bits)))
        for code, value in enumerate(values):
            assert same(value, gfloat.decode_float(judge, code).fval), (name, code)
        check_codes(target)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [14, 16])
def test_codes_of_wide_p3109_equal_gfloat(bits):
    step = 251  # a prime: all fields vary
    codes = [*range(0, 2**bits, step), 2 ** (bits - 1), 2**bits - 1, 2**bits - 2]
    for name, judge in members(bits):
        target = format(name)
        for code in codes:
            value = target.decode(code)
            assert target.encode(value) == code
            if fits(target, torch.float64):
                assert same(value, gfloat.decode_float(judge, code).fval), name


@pytest.mark.parametrize("precision", BINARY8)
def test_binary8_maxima(precision):
    extended, finite, bias = BINARY8[precision]
    for sign in ("", "s"):
        assert format(f"binary8p{precision}{sign}").max == extended
        assert format(f"binary8p{precision}{sign}e").max == extended
    target = format(f"Binary8p{precision}sf")
    assert (target.max, target.bias, target.infinities) == (finite, bias, False)
    assert target.smallest_normal == 2.0 ** (1 - bias)
    assert target.smallest_subnormal == 2.0 ** (2 - precision - bias)


def test_p3109_without_infinities_has_older_codes():
    assert format("binary8p4sf") == format("e4m3fnuz")
    assert format("binary8p3sf") == format("e5m2fnuz")
    assert format("binary8p1sf") != format("binary8p1se")


@pytest.mark.parametrize(
    ("mode", "saturation", "wanted"),
    [  # of P3109/D1, section 4.7.5: SatNone, SatFinite and SatPropagate
        ("nearest_even", "none", [math.nan, math.nan, math.nan]),
        ("toward_zero", "none", [240.0, -240.0, math.nan]),
        ("toward_negative", "none", [240.0, math.nan, math.nan]),
        ("toward_positive", "none", [math.nan, -240.0, math.nan]),
        ("nearest_even", "finite", [240.0, -240.0, 240.0]),
    ],
)
def test_overflow_of_finite_p3109_formats(mode, saturation, wanted):
    rounding = lp.Rounding("binary8p4sf", mode, saturation)
    numbers = [1000.0, -1000.0, math.inf]
    actual = lp.round(torch.tensor(numbers), rounding).tolist()
    assert all(map(same, actual, wanted))
    exact = [exact_round(x, rounding) for x in numbers]
    assert all(map(same, exact, wanted))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("e4m3b4fn", "hfp8_e4m3"),
        ("hfp8_e5m2", "e5m2"),
        ("e4m3b8fnuz", "e4m3fnuz"),
        ("e4m3b11fnuz", "e4m3b11fnuz"),
        ("e5m2b16fnuz", "e5m2fnuz"),
        ("e3m2b3fn", "e3m2fn"),
        ("e2m1b1fn", "e2m1fn"),
    ],
)
def test_biased_names_are_those_of_known_formats(name, known):
    assert format(name) == format(known)


@pytest.mark.parametrize("bias", [-3, 0, 5, 9])
def test_hfp8_with_any_bias(bias):
    target = format(f"e4m3b{bias}fn")
    assert (target.name, target.bias, target.bits) == (f"e4m3b{bias}fn", bias, 8)
    assert target.max == 1.875 * 2.0 ** (15 - bias)
    assert target.smallest_normal == 2.0 ** (1 - bias)
    assert (target.nans, target.infinities) == (False, False)
    check_codes(target)


def test_biased_names_without_room_are_refused():
    for name in ("e0m3b1fn", "e21m3b0fnuz"):
        with pytest.raises(ValueError, match="needs X from 1 to 20"):
            format(name)


@pytest.mark.parametrize("unsigned", [False, True])
def test_p3109_special_codes(unsigned):
    for bits in range(3, 17):
        target = format(f"binary{bits}p2{'u' if unsigned else 's'}e")
        nan = 2**bits - 1 if unsigned else 2 ** (bits - 1)
        infinity = 2**bits - 2 if unsigned else 2 ** (bits - 1) - 1
        assert math.isnan(target.decode(nan))
        assert target.decode(infinity) == math.inf
        assert target.encode(target.max) == infinity - 1
        if not unsigned:
            assert target.decode(2**bits - 1) == -math.inf


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("binary2p1", "P3109 formats have 3 to 16 bits, got 2"),
        ("binary17p3", "P3109 formats have 3 to 16 bits, got 17"),
        ("binary8p0", "signed P3109 format of 8 bits has precision 1 to 7, got 0"),
        ("binary8p8", "signed P3109 format of 8 bits has precision 1 to 7, got 8"),
        ("binary8p9u", "unsigned P3109 format of 8 bits has precision 1 to 8, got 9"),
        ("int0", "a signed word has at least 2 bits, got word=0"),
        ("int1", "a signed word has at least 2 bits"),
        ("uint0", "a word has a bit, got word=0"),
        ("fixed8f-9", "fraction=-9 leaves more than 8 zeros behind a word of 8 bits"),
    ],
)
def test_refused_members(name, text):
    with pytest.raises(ValueError, match=text):
        format(name)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((8.0, 4), TypeError, "word must be an int, got 8.0"),
        ((8, True), TypeError, "fraction must be an int, got True"),
        ((8, "4"), TypeError, "fraction must be an int"),
        ((0, 0), ValueError, "a signed word has at least 2 bits, got word=0"),
        ((8, -9), ValueError, "give at least -8"),
    ],
)
def test_refused_widths(arguments, error, text):
    with pytest.raises(error, match=text):
        Format.fixed_point(*arguments)
    with pytest.raises(TypeError, match="signed must be True or False, got 1"):
        Format.fixed_point(8, 4, signed=1)


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 11])
@pytest.mark.parametrize("fraction", [-1, 0, 3, 20])
@pytest.mark.parametrize("signed", [True, False])
def test_codes_of_fixed_point_are_integers(bits, fraction, signed):
    if bits == 1 and signed:
        return
    target = Format.fixed_point(bits, fraction, signed=signed)
    sign = 2 ** (bits - 1) if signed else 2**bits
    counts = [code if code < sign else code - 2**bits for code in range(2**bits)]
    exact = [count / Fraction(2) ** fraction for count in counts]
    assert target.decode(list(range(2**bits))) == exact
    assert target.values() == sorted(exact)
    assert (target.min, target.max) == (min(exact), max(exact))
    for x in (target.min, target.max, 0, 0.37):
        assert target.ulp(x) == target.smallest_subnormal == Fraction(2) ** -fraction
    assert target.bits == bits
    check_codes(target)


def test_symmetric_fixed_point():
    target = Format.fixed_point(8, 6, symmetric=True)
    assert (target.min, target.max) == (-1.984375, 1.984375)
    assert not target.is_representable(-2)
    # Its code still means what hardware takes it for.
    assert target.decode(0x80) == target.decode(torch.tensor([0x80])).item() == -2
    assert target.encode(-1.984375) == 0x81
    assert lp.round(torch.tensor(-5.0), target) == -1.984375


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_integers_of_torch_and_numpy(dtype):
    target, limits = format(dtype), torch.iinfo(dtype)
    assert (target.bits, target.min, target.max) == (
        limits.bits,
        limits.min,
        limits.max,
    )
    assert target.dtype == str(dtype).removeprefix("torch.")
    assert format(np.dtype(target.dtype)) == target
    x = torch.tensor([-3e9, -2.5, 0.5, 1.5, 3e9], dtype=torch.float64)
    expected = x.round().clamp(limits.min, limits.max) + 0.0
    assert lp.round(x, dtype).tolist() == expected.tolist()


def test_small_integers_of_ml_dtypes():
    for name in ("int2", "int4", "uint2", "uint4"):
        target, dtype = format(getattr(ml_dtypes, name)), getattr(ml_dtypes, name)
        limits = ml_dtypes.iinfo(dtype)
        assert (target.min, target.max, target.name) == (limits.min, limits.max, name)


def test_every_code_of_e8m0():
    target = format("e8m0fnu")
    codes = np.arange(256, dtype=np.uint8)
    judge = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    assert all(map(same, target.decode(codes.tolist()), judge.tolist()))
    check_codes(target)
    assert not target.is_representable(0)
    assert target.values()[0] == target.min == target.smallest_subnormal == 2.0**-127
    assert format(torch.float8_e8m0fnu) == target
    assert target.dtype == "float8_e8m0fnu"
    with pytest.raises(ValueError, match="elements are not values of 'e8m0fnu'"):
        target.encode(torch.tensor([0.0]))


def test_every_code_of_dlfloat16():
    target = format("dlfloat16")
    values = target.decode(list(range(2**15)))
    # Exponent e - 31 and significand 1.m, except that e = m = 0 is zero.
    exact = [math.ldexp(1 + (c % 512) / 512, c // 512 - 31) for c in range(2**15)]
    assert values[0] == 0
    assert values[1:-1] == exact[1:-1]
    assert math.isnan(values[-1])
    assert not target.is_representable(2.0**-31)
    codes = torch.arange(2**16)
    decoded = target.decode(codes)
    assert decoded[: 2**15 - 1].tolist() == values[:-1]
    assert torch.equal(decoded[2**15 : -1], -decoded[: 2**15 - 1])
    finite = decoded.isfinite()
    assert torch.equal(target.encode(decoded[finite]), codes[finite])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"zero": False}, "zero=False needs encoding='normal' and signed=False"),
        ({"asymmetric": True}, "asymmetric=True needs encoding='integer'"),
        ({"encoding": "integer"}, "'integer' contradicts infinities=True"),
        ({"encoding": "normal"}, "'normal' contradicts subnormals=True"),
        ({"encoding": "p3109"}, "'p3109' contradicts signed_zero=True"),
    ],
)
def test_refused_encodings(fields, text):
    with pytest.raises(ValueError, match=text):
        Format(precision=4, emax=7, **fields)


def test_fixed_point_in_products():
    # An accumulator of 8 bits saturates, or wraps as an adder of that width does.
    ones = torch.full((1, 200), 1.0)
    assert lp.matmul(ones, ones.T, accumulator="int8").item() == 127
    wrapping = lp.Rounding("int8", saturation="wrap")
    assert lp.matmul(ones, ones.T, accumulator=wrapping).item() == 200 - 256
    assert lp.add(torch.tensor([100.0]), 100, wrapping).item() == -56
    assert lp.add(torch.tensor([100.0]), 100, "int8").item() == 127
    a = torch.tensor([33554431.0], dtype=torch.float64)
    wide = lp.Rounding("int26", saturation="wrap")
    product = (33554431 * 33554431 + 2**25) % 2**26 - 2**25
    assert lp.mul(a, a, wide).item() == product
    assert lp.dot(a, a, accumulator=wide).item() == product
    with pytest.raises(NotImplementedError, match="wraps words of at most 26 bits"):
        lp.mul(a, a, lp.Rounding("int27", saturation="wrap"))
    with pytest.raises(ValueError, match="cannot accumulate: products of words"):
        lp.Accumulator(lp.Rounding("int32", saturation="wrap"))


def test_symmetric_words_do_not_wrap():
    with pytest.raises(ValueError, match="every integer of the word must be a value"):
        lp.Rounding(Format.fixed_point(8, symmetric=True), saturation="wrap")
    assert lp.Rounding("uint8", saturation="wrap").format.signed is False
