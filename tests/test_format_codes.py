"""Codes of formats against ml_dtypes and gfloat, for every code up to 16 bits."""

import contextlib
import math
from decimal import Decimal
from fractions import Fraction

import gfloat
import numpy as np
import pytest
from format_tables import FINITE, GFLOAT, NUMPY, each_numpy, each_small

from lowprec.formats import Format, decode_value, encode_value, format


def _same(a, b):
    """Equal numbers, zeros of one sign, or both NaN."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def _decoded(target):
    """Return {code: value} of the codes that denote something."""
    decoded = {}
    for code in range(2**target.bits):
        with contextlib.suppress(ValueError):
            decoded[code] = target.decode(code)
    return decoded


@each_numpy
def test_decodes_every_code_as_ml_dtypes(name):
    target, dtype = format(name), np.dtype(NUMPY[name])
    codes = np.arange(2**target.bits, dtype=f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):  # signalling NaN
        values = codes.view(dtype).astype(np.float64).tolist()
    decoded = target.decode(codes.tolist())
    assert all(map(_same, decoded, values))


@pytest.mark.parametrize("name", GFLOAT)
def test_decodes_every_code_as_gfloat(name):
    target, judge = format(name), GFLOAT[name]
    assert target.bits == judge.k
    assert target.precision == judge.precision
    assert target.bias == judge.bias
    for code in range(2**target.bits):
        assert _same(target.decode(code), gfloat.decode_float(judge, code).fval), code


@each_small
def test_encode_inverts_decode(target):
    decoded = _decoded(target)
    for code, value in decoded.items():
        again = target.encode(value)
        assert again == code or math.isnan(value), code
        assert _same(target.decode(again), value), code
        assert target.is_representable(value), code
    assert any(map(math.isnan, decoded.values())) == target.nans
    assert (math.inf in decoded.values()) == target.infinities
    assert (-math.inf in decoded.values()) == (target.infinities and target.signed)


@each_small
def test_values_are_the_finite_codes(target):
    finite = {value for value in _decoded(target).values() if math.isfinite(value)}
    assert target.values() == sorted(finite)


@each_small
def test_codes_ascend_with_values(target):
    values = [value for value in target.values() if value >= 0]
    codes = target.encode(values)
    assert codes == sorted(codes)
    assert codes[0] == 0
    if target.infinities:
        assert target.encode(math.inf) > codes[-1]
    if target.signed:
        sign = 2 ** (target.bits - 1)
        negative = target.encode([-value for value in values if value])
        assert negative == [code + sign for code in codes[1:]]


@pytest.mark.parametrize("name", [name for name in NUMPY if format(name).nans])
def test_quiet_nan_is_that_of_ml_dtypes(name):
    target, dtype = format(name), np.dtype(NUMPY[name])
    judge = np.array(math.nan).astype(dtype).view(f"u{dtype.itemsize}").item()
    sign = 2 ** (target.bits - 1) if target.encoding != "fnuz" else 0
    assert target.encode(math.nan) == judge & ~sign


@pytest.mark.parametrize("name", ["e6m8", "binary32", "binary64", "e15m112"])
def test_wide_formats_round_trip(name):
    target = format(name)
    quantum, p = Fraction(target.smallest_subnormal), target.precision
    binades = target.emax - target.emin
    largest = Fraction(target.max)
    for x in (quantum, 3 * quantum, Fraction(target.smallest_normal), 1, largest):
        for value in (x, -x):
            assert target.decode(target.encode(value)) == value
    assert target.encode(largest) == ((binades + 2) << (p - 1)) - 1
    assert target.decode(target.encode(-math.inf)) == -math.inf
    assert math.isnan(target.decode(target.encode(math.nan)))


def test_codes_beyond_infinity_are_nan():
    target = format("binary16")
    assert all(map(math.isnan, target.decode(list(range(0x7C01, 0x8000)))))


def test_codes_without_subnormals():
    target = Format(precision=4, emax=7, subnormals=False, name="flush")
    assert target.decode(0x08) == target.smallest_normal
    with pytest.raises(
        ValueError, match="code 0x1 denotes nothing in flush, which has"
    ):
        target.decode(0x01)


def test_codes_that_denote_nothing():
    fields = {"precision": 3, "emax": 2, "name": "few"}
    one_zero = Format(**fields, **FINITE, signed_zero=False)
    reserved = Format(**fields, infinities=False, nans=False)
    top = Format(**fields, **FINITE, max_significand=5)
    # The code of -0; the reserved exponent field; just above the largest value.
    for target, code in [
        (one_zero, 2 ** (one_zero.bits - 1)),
        (reserved, 2 ** (reserved.bits - 1) - 1),
        (top, top.encode(top.max) + 1),
    ]:
        with pytest.raises(ValueError, match=f"code {code:#x} denotes nothing in few"):
            target.decode(code)
    assert math.isnan(Format(**fields, signed_zero=False).decode(0x20))


def test_sequences_keep_their_nesting():
    target = format("bfloat16")
    assert target.encode((1.0, [2, Fraction(1, 2)])) == [0x3F80, [0x4000, 0x3F00]]
    assert target.decode([[0x3F80], (0x4000,)]) == [[1.0], [2.0]]


def test_other_types_register_themselves():
    class Pair:
        def __init__(self, *items):
            self.items = items

    @encode_value.register(Pair)
    def _(x, format):
        return Pair(*(format.encode(item) for item in x.items))

    @decode_value.register(Pair)
    def _(codes, format):
        return Pair(*(format.decode(item) for item in codes.items))

    target = format("e5m2")
    assert target.decode(target.encode(Pair(1.5, -2.0))).items == (1.5, -2.0)


def test_numbers_of_other_libraries():
    target = format("bfloat16")
    for one in (1, np.int64(1), np.float16(1), np.float64(1), Decimal(1)):
        assert target.encode(one) == 0x3F80
    assert target.encode(np.float32(-0.0)) == 0x8000
    assert target.encode(np.float32("inf")) == 0x7F80
    assert target.is_representable(np.float32("nan"))
    assert target.decode(np.uint8(0)) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bfloat16", 257),
        ("bfloat16", 1e39),
        ("bfloat16", Fraction(1, 3)),
        ("bfloat16", 2.0**-134),
        ("e4m3fn", 449.0),
        ("e4m3fn", 480),
        ("e4m3fn", math.inf),
        ("e4m3fnuz", -0.0),
        ("e2m1fn", math.nan),
        ("e2m1fn", math.inf),
    ],
)
def test_encode_refuses_what_is_no_value(name, value):
    assert not format(name).is_representable(value)
    with pytest.raises(ValueError, match=f"is not a value of {name}: round it first"):
        format(name).encode(value)


def test_unsigned_formats_have_nothing_negative():
    target = Format(precision=4, emax=7, signed=False, name="unsigned")
    assert target.is_representable(math.inf)
    for value in (-1.0, -math.inf, -0.0):
        assert not target.is_representable(value)
        with pytest.raises(ValueError, match="is not a value of unsigned"):
            target.encode(value)


def test_encode_and_decode_refuse_other_types():
    target = format("e5m2")
    for wrong in ("1.0", None, 1j):
        with pytest.raises(TypeError, match=r"expected a number .*got "):
            target.encode(wrong)
    for wrong in (1.0, True, "1", None):
        with pytest.raises(TypeError, match="codes are integers, got "):
            target.decode(wrong)
    for wrong in (-1, 256):
        with pytest.raises(ValueError, match=f"e5m2 are from 0 to 255, got {wrong}"):
            target.decode(wrong)


def test_too_few_codes_still_is_a_set_of_values():
    target = Format(precision=1, emax=3, name="p1")
    assert target.values()[-3:] == [2.0, 4.0, 8.0]
    assert "none: too few codes" in str(target)
    for refused in (
        lambda: target.bits,
        lambda: target.encode(1.0),
        lambda: target.decode(0),
    ):
        with pytest.raises(ValueError, match=r"p1 has no codes: .* infinity and NaN"):
            refused()
