"""Formats: values and properties against ml_dtypes, NumPy and torch; names and text."""

import ast
import copy
import math
import pickle
import sys
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from format_tables import (
    BINARY128,
    FINITE,
    FN,
    FNUZ,
    NUMPY,
    SMALL,
    TORCH,
    each_numpy,
    each_small,
    each_torch,
)

from lowprec.formats import Format, FormatTable, describe, format, formats

# Properties.

_LIMITS = ("bits", "eps", "max", "min", "tiny", "smallest_normal", "smallest_subnormal")


@each_numpy
def test_limits_equal_ml_dtypes(name):
    target, judge = format(name), ml_dtypes.finfo(NUMPY[name])
    for limit in _LIMITS:
        if limit == "bits":  # NumPy stores narrower formats in whole bytes
            assert getattr(judge, limit) in (8, 16, target.bits)
        else:
            assert getattr(target, limit) == float(getattr(judge, limit)), limit
    assert target.significand_bits == judge.nmant


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_limits_equal_numpy(dtype):
    target, judge = format(dtype), np.finfo(dtype)
    for limit in _LIMITS:
        assert getattr(target, limit) == getattr(judge, limit), limit
    assert target.significand_bits == judge.nmant
    assert target.exponent_bits == judge.iexp


@each_torch
def test_limits_equal_torch(name):
    target, judge = format(name), torch.finfo(TORCH[name])
    for limit in ("bits", "eps", "max", "min", "tiny", "smallest_normal"):
        if (name, limit) != ("e5m2fnuz", "eps"):
            assert getattr(target, limit) == getattr(judge, limit), limit
    assert target.dtype == judge.dtype == str(TORCH[name]).removeprefix("torch.")


def test_eps_where_torch_is_wrong():
    # torch.finfo says 0.125, but its own next value above 1 is 1.25.
    codes = torch.arange(128, dtype=torch.uint8).view(torch.float8_e5m2fnuz)
    above_one = [value for value in codes.float().tolist() if value > 1]
    assert format("e5m2fnuz").eps == min(above_one) - 1 == 0.25


@each_small
def test_values_are_the_definition(target):
    p = target.precision
    largest = target.max_significand * Fraction(2) ** (target.emax - p + 1)
    expected = {Fraction(0)}
    for e in range(target.emin, target.emax + 1):
        smallest = 2 ** (p - 1) if e > target.emin or not target.subnormals else 1
        for k in range(smallest if not target.subnormals else 1, 2**p):
            x = k * Fraction(2) ** (e - p + 1)
            if x <= largest:
                expected |= {x, -x} if target.signed else {x}
    assert target.values() == sorted(expected)
    assert target.max == largest == max(expected)
    assert target.min == min(expected)
    assert target.smallest_subnormal == min(x for x in expected if x > 0)


@each_small
def test_properties_agree_with_each_other(target):
    p = target.precision
    assert target.eps == 2.0 ** (1 - p) == 2 * target.unit_roundoff
    assert target.significand_bits == p - 1
    assert target.bias == 1 - target.emin
    assert target.tiny == target.smallest_normal == 2.0**target.emin
    assert target.bits == target.signed + target.exponent_bits + p - 1
    if not target.subnormals:
        assert target.smallest_subnormal == target.smallest_normal


def test_hardware_table():
    # precision, emin, emax, max, bits: specification hardware.md, section 4.
    rows = {
        "tf32": (11, -126, 127, (2 - 2.0**-10) * 2.0**127, 19),
        "e4m3fn": (4, -6, 8, 448.0, 8),
        "e5m2": (3, -14, 15, 57344.0, 8),
        "e4m3fnuz": (4, -7, 7, 240.0, 8),
        "e5m2fnuz": (3, -15, 15, 57344.0, 8),
        "e4m3b11fnuz": (4, -10, 4, 30.0, 8),
        "e3m4": (5, -2, 3, 15.5, 8),
        "e2m3fn": (4, 0, 2, 7.5, 6),
        "e3m2fn": (3, -2, 4, 28.0, 6),
        "e2m1fn": (2, 0, 2, 6.0, 4),
        "e6m8": (9, -30, 31, 511 * 2.0**23, 15),
        "fp24": (17, -62, 63, (2 - 2.0**-16) * 2.0**63, 24),
        "pxr24": (16, -126, 127, (2 - 2.0**-15) * 2.0**127, 24),
        "dlfloat16": (10, -31, 32, 2.0**33 - 2.0**24, 16),
        "e8m0fnu": (1, -127, 127, 2.0**127, 8),
        # HFP8: 2^(15-bias) 1.875 if all codes are finite.
        "hfp8_e4m3": (4, -3, 11, 2.0**11 * 1.875, 8),
        "e4m3b4": (4, -3, 10, 240 * 2.0**3, 8),
        "e5m2b15": (3, -14, 15, 57344.0, 8),
        # MXINT8.
        "fixed8f6": (7, 0, 0, 1.984375, 8),
    }
    for name, row in rows.items():
        one = format(name)
        assert (one.precision, one.emin, one.emax, one.max, one.bits) == row
    e4m3fn = format("e4m3fn")
    assert (e4m3fn.max_significand, e4m3fn.infinities, e4m3fn.encoding) == (14, 0, "fn")
    assert [one.name for one in formats() if one.dtype is None] == [
        *("tf32", "e4m3", "e3m4", "e4m3b11fnuz", "e3m2fn", "e2m3fn", "e2m1fn"),
        *("dlfloat16", "fp24", "e8m15", "hfp8_e4m3", "int4", "uint4"),
    ]


def test_beyond_binary64_is_exact():
    two = Fraction(2)
    assert BINARY128.bits == 128
    assert BINARY128.max == (2 - two**-112) * two**16383
    assert BINARY128.min == -BINARY128.max
    assert BINARY128.smallest_normal == two**-16382
    assert BINARY128.smallest_subnormal == two**-16494
    assert BINARY128.ulp(0) == two**-16494
    assert BINARY128.ulp(two**16383 * 3 / 2) == two ** (16383 - 112)
    assert isinstance(BINARY128.eps, float)
    assert BINARY128.is_representable(1 + two**-112)
    assert not BINARY128.is_representable(1 + two**-113)
    assert BINARY128.decode(BINARY128.encode(BINARY128.max)) == BINARY128.max


@pytest.mark.parametrize("name", ["binary16", "bfloat16"])
def test_ulp_is_spacing(name):
    target, dtype = format(name), np.dtype(NUMPY[name])
    with np.errstate(all="ignore"):
        values = np.arange(0x7C00 if name == "binary16" else 0x7F80, dtype=np.uint16)
        values = values.view(dtype)
        next_values = np.nextafter(values, np.array(math.inf, dtype))
    gaps = next_values.astype(float) - values.astype(float)
    for x, gap in zip(values.astype(float)[:-1], gaps[:-1], strict=True):
        assert target.ulp(x) == target.ulp(-x) == gap


def test_ulp_between_below_and_beyond_the_values():
    binary64 = format("binary64")
    for x in (0.0, -0.0, 5e-324, 0.1, 3.7, -1e300, sys.float_info.max):
        assert binary64.ulp(x) == math.ulp(x)
    target = Format(precision=4, emax=7, subnormals=False)
    assert target.ulp(2.0**-8) == target.ulp(0) == target.smallest_normal == 2.0**-6
    assert format("e4m3fn").ulp(1000) == 64
    assert format("e6m8").ulp(Fraction(37, 10)) == 2.0**-7
    for special in (math.inf, -math.inf, math.nan):
        assert math.isnan(target.ulp(special))
    with pytest.raises(TypeError, match="expected a number"):
        target.ulp("1")


@pytest.mark.parametrize("name", ["e5m2", "e4m3fn", "e4m3b11fnuz", "e2m1fn"])
def test_is_representable_among_all_halves(name):
    target = format(name)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(float)
    values = set(target.values())
    for x in halves[np.isfinite(halves)].tolist():
        negative_zero = x == 0 and math.copysign(1, x) < 0
        expected = target.signed_zero if negative_zero else x in values
        assert target.is_representable(x) == expected, x


def test_values_refuses_long_lists():
    assert len(format("e8m10").values()) == 2 * 255 * 2**10 - 1
    with pytest.raises(ValueError, match=r"binary32 has 4278190079 finite values"):
        format("binary32").values()


def test_from_system_shifts_exponents():
    assert Format.from_system(8, -125, 128) == format("bfloat16")
    assert Format.from_system(11, -13, 16) == format("binary16")
    with pytest.raises(ValueError, match=r"base 2, got beta=10; use .*System\(beta"):
        Format.from_system(2, -1, 1, beta=10)


# The value object.


@pytest.mark.parametrize("target", [*SMALL, *formats(), BINARY128], ids=repr)
def test_value_object(target):
    assert eval(repr(target)) == target
    assert eval(repr(target)).name == target.name
    for twin in (
        copy.copy(target),
        copy.deepcopy(target),
        pickle.loads(pickle.dumps(target)),
    ):
        assert twin == target
        assert hash(twin) == hash(target)
        assert {target: 1}[twin] == 1
        assert twin.name == target.name


def test_equality_ignores_the_name_only():
    e6m8 = Format(precision=9, emax=31, name="e6m8")
    assert e6m8 == format("e6m8") == Format(precision=9, emax=31, emin=-30)
    assert hash(e6m8) == hash(Format(precision=9, emax=31, max_significand=511))
    assert format("e8m7") == format("bfloat16")
    assert format("e8m7").name == "e8m7"
    assert len(set(SMALL)) == len(SMALL)
    assert Format(precision=4, emax=7, signed=False) == Format(
        precision=4, emax=7, signed=False, signed_zero=False
    )


def test_repr_shows_what_differs_from_the_default():
    assert repr(format("e6m8")) == "Format(precision=9, emax=31, name='e6m8')"
    assert repr(Format(precision=2, emax=3, emin=-2)) == "Format(precision=2, emax=3)"
    assert repr(Format(precision=2, emax=3, emin=-1)) == (
        "Format(precision=2, emax=3, emin=-1)"
    )
    assert repr(Format(precision=2, emax=3, signed=False)) == (
        "Format(precision=2, emax=3, signed=False)"
    )


def test_frozen():
    with pytest.raises(AttributeError):
        format("e6m8").precision = 3


_FIELDS = {"precision": 4, "emax": 7}


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"precision": True},
            TypeError,
            "precision must be an int, got True of type b",
        ),
        ({"precision": 4.0}, TypeError, "precision must be an int, got 4.0 of type f"),
        ({"emax": "7"}, TypeError, "emax must be an int, got '7' of type str"),
        ({"emin": 0.5}, TypeError, "emin must be an int, got 0.5 of type float"),
        (
            {"max_significand": 9.0},
            TypeError,
            "max_significand must be an int, got 9.0",
        ),
        ({"subnormals": 1}, TypeError, "subnormals must be True or False, got 1"),
        ({"nans": None}, TypeError, "nans must be True or False, got None"),
        ({"encoding": None}, TypeError, "encoding must be a str, got None"),
        ({"name": 3}, TypeError, "name must be a str or None, got 3"),
        ({"precision": 0}, ValueError, "precision=0 is a zero-width mantissa"),
        ({"precision": -2}, ValueError, "must be at least 1"),
        ({"precision": 10**6}, ValueError, "precision must be at most 65536"),
        ({"emax": 10**30}, ValueError, "would fill the memory"),
        ({"emin": 8}, ValueError, "emin=8 is above emax=7: .* give emin <= emax"),
        ({"emax": 0}, ValueError, r"emin=1 is above emax=0 \(emin=None means 1 - emax"),
        ({"max_significand": 7}, ValueError, "from 8 to 15 for precision=4, got 7"),
        ({"max_significand": 16}, ValueError, "from 8 to 15 for precision=4, got 16"),
        (
            {"encoding": "posit"},
            ValueError,
            "unknown encoding 'posit': .* 'ieee', 'fn'",
        ),
        (
            {"encoding": "fn"},
            ValueError,
            "'fn' contradicts infinities=True: .*give inf",
        ),
        ({**FN, "nans": False}, ValueError, "'fn' contradicts nans=False"),
        ({**FNUZ, "signed_zero": True}, ValueError, "contradicts signed_zero=True"),
        ({**FNUZ, "signed": False}, ValueError, "contradicts signed=False"),
        (
            {**FINITE, "nans": True},
            ValueError,
            "every code is a finite value; give nan",
        ),
    ],
    ids=str,
)
def test_refused_fields(changes, error, text):
    with pytest.raises(error, match=text):
        Format(**{**_FIELDS, **changes})


# Names.


def test_aliases():
    groups = [
        ["binary64", "float64", "double", "fp64", torch.float64, np.float64],
        ["binary32", "float32", "single", "fp32", torch.float32, np.dtype("f4")],
        ["binary16", "float16", "half", "fp16", "torch.float16", torch.half, "e5m10"],
        ["bfloat16", "bf16", "BF16", torch.bfloat16, ml_dtypes.bfloat16, "e8m7"],
        ["tf32", "e8m10"],
        ["e5m2", "float8_e5m2", torch.float8_e5m2, np.dtype(ml_dtypes.float8_e5m2)],
        ["e4m3fn", "float8_e4m3fn", " E4M3FN ", torch.float8_e4m3fn],
        ["e4m3", "float8_e4m3", ml_dtypes.float8_e4m3],
        ["e4m3fnuz", torch.float8_e4m3fnuz, ml_dtypes.float8_e4m3fnuz],
        ["e2m1fn", "float4_e2m1fn", np.dtype(ml_dtypes.float4_e2m1fn)],
    ]
    for group in groups:
        first = format(group[0])
        assert all(format(name) == first for name in group), group
        assert first.name == group[0]
        assert format(first) is first


def test_exmy():
    for x in range(2, 12):
        for y in range(1, 30, 4):
            one = format(f"e{x}m{y}")
            assert (one.exponent_bits, one.significand_bits) == (x, y)
            assert one.bits == 1 + x + y
            assert one == Format(precision=y + 1, emax=2 ** (x - 1) - 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e8m0", "'e8m0' has a zero-width mantissa"),
        ("e1m2", "'e1m2' has an exponent field of width 1: eXmY needs X from 2"),
        ("e0m2", "width 0"),
        ("e99m3", "X from 2 to 20"),
        ("bfloat", r"unknown format 'bfloat': did you mean 'bfloat16'.* write eXmY"),
        ("e4m3f", "did you mean 'e4m3fn'"),
        ("zzz", "unknown format 'zzz': write eXmY"),
        ("", "unknown format '': write eXmY"),
        (torch.bool, "unknown format 'torch.bool'"),
        (np.dtype("c8"), "unknown format 'complex64'"),
    ],
    ids=str,
)
def test_refused_names(name, text):
    with pytest.raises(ValueError, match=text):
        format(name)


@pytest.mark.parametrize(
    "wrong", [None, 16, float, 1.5, ["e5m2"], torch.ones(2)], ids=str
)
def test_refused_types(wrong):
    with pytest.raises(TypeError, match="a format is a Format, a name such as"):
        format(wrong)


# Text.


def test_print_shows_both_traps():
    lines = str(format("e4m3fn")).splitlines()
    for label, text in {
        "bits = sign + exponent + stored": "8 = 1 + 4 + 3",
        "precision p": "4",
        "exponents": "-6 .. 8",
        "max": "448 = 1.75*2^8",
        "smallest normal": "0.015625 = 2^-6",
        "smallest positive": "0.001953125 = 2^-9",
        "eps = 2^(1-p)": "0.125 = 2^-3",
        "unit_roundoff = 2^-p": "0.0625 = 2^-4",
        "special values": "NaN, -0",
    }.items():
        assert any(
            line.startswith(f"{label}  ") and line.endswith(f"  {text}")
            for line in lines
        ), label
    note = " ".join(lines[-3:])
    assert "unit_roundoff (the u of error analysis) is half of it" in note
    assert "precision counts the implicit bit" in note


def test_describe_puts_formats_side_by_side():
    text = describe(format("e5m2"), BINARY128, Format(precision=1, emax=3))
    assert text.splitlines()[0].split() == ["e5m2", "e15m112", "(no", "name)"]
    assert "(2 - 2^-112)*2^16383" in text
    odd = Format(precision=6, emax=5, max_significand=41)
    assert "41 = 41*2^0" in describe(odd)
    with pytest.raises(ValueError, match="at least one format"):
        describe()


def test_table_of_formats():
    table = formats()
    assert isinstance(table, FormatTable)
    lines = str(table).splitlines()
    assert repr(table) == str(table)
    assert len(lines) == 1 + len(table)
    for line, one in zip(lines[1:], table, strict=True):
        assert line.split()[:2] == [one.name, str(one.bits)]
        assert table[one.name] is one is format(one.name)
    assert table["half"] is format("binary16")
    assert "bf16" in table
    assert format("e8m7") in table
    assert "e6m8" not in table
    assert format("e6m8") not in table
    with pytest.raises(KeyError, match="e6m8"):
        table["e6m8"]


# Layers.


def test_imports_only_the_standard_library():
    folder = Path(sys.modules["lowprec.formats"].__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                roots = {name.name.partition(".")[0] for name in node.names}
                assert roots <= sys.stdlib_module_names, file
            elif isinstance(node, ast.ImportFrom):
                root = (node.module or "").partition(".")[0]
                # One dot is this package, two would be lowprec.
                assert node.level == 1 or (
                    node.level == 0 and root in sys.stdlib_module_names
                ), file
