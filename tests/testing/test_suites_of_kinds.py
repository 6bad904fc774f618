"""Suites of fixed point, posits, levels and codes: what they pass and catch."""

from dataclasses import replace

import pytest
import torch
from suite_runner import failures
from tables import name_of

import lowprec as lp
from lowprec.kernels import portable
from lowprec.testing import (
    CodingSuite,
    OperationSuite,
    RoundingSuite,
    StochasticSuite,
    exact_operation,
)

TABLES = ("posit6", "posit8_0", "ternary", lp.Levels([-1.5, 0.25, 7.0]))
FIXED = ("int4", "uint4", "fixed6f3", lp.Format.fixed_point(5, 2, symmetric=True))
PECULIAR = ("e4m3fnuz", "binary6p3se", "binary6p2uf", "e2m1fn")


class Rounds(RoundingSuite):
    formats = (*TABLES, *FIXED, *PECULIAR)
    modes = ("nearest_even", "nearest_away", "toward_positive", "to_odd")
    saturations = ("none", "finite", "wrap")

    def __init__(self, kernel, formats=None):
        self.kernel = kernel
        self.formats = self.formats if formats is None else formats

    def round(self, x, rounding):
        return self.kernel(x, rounding)


class Codes(CodingSuite):
    formats = (*TABLES, *FIXED, *PECULIAR, "e5m2", "hfp8_e4m3", "e4m4")

    def __init__(self, encode=None, decode=None, formats=None):
        self.kernels = encode or lp.encode, decode or lp.decode
        self.formats = self.formats if formats is None else formats

    def encode(self, x, format):
        return self.kernels[0](x, format)

    def decode(self, codes, format):
        return self.kernels[1](codes, format, dtype=self.dtype)


def with_words(x, rounding, words):
    """Our kernel below the generator."""
    return portable.round_with_words(x, rounding.code, words)


class Randomly(StochasticSuite):
    formats = ("e4m3fn", "int4", "posit6", "ternary", "binary6p1ue")
    saturations = ("none",)
    count = 60

    def __init__(self, kernel):
        self.kernel = kernel

    def round(self, x, rounding, words):
        return self.kernel(x, rounding, words)


@pytest.mark.parametrize("name", [*TABLES, *FIXED, *PECULIAR], ids=name_of)
def test_right_roundings_pass(name):
    assert failures(Rounds(lp.round, (name,))) == set()


def test_right_codes_pass():
    assert failures(Codes()) == set()


def test_right_use_of_random_words_passes():
    assert failures(Randomly(with_words)) == set()


def test_right_kernels_pass_in_float64():
    class Wide(Rounds):
        dtype = torch.float64
        modes = ("nearest_even",)

    assert failures(Wide(lp.round)) == set()


def test_right_kernels_of_wide_posits_pass():
    class WideRounds(Rounds):
        dtype = torch.float64
        modes = ("nearest_even",)

    class WideCodes(Codes):
        dtype = torch.float64

    class WideOperations(OperationSuite):
        formats, dtype, count = ("posit32", "posit20_1"), torch.float64, 60
        modes = ("nearest_even", "toward_positive")

        def compute(self, operation, operands, rounding):
            return getattr(lp, operation)(*operands, rounding)

    assert failures(WideRounds(lp.round, ("posit20_1",))) == set()
    assert failures(WideCodes(formats=("posit20_1",))) == set()
    assert failures(WideOperations()) == set()


def test_kernels_of_wide_posits_that_round_through_float32_fail():
    class WideRounds(Rounds):
        dtype = torch.float64
        modes = ("nearest_even",)

    def rounds_through_float32(x, rounding):
        return lp.round(x.float().double(), rounding)

    assert "test_decisive_numbers" in failures(
        WideRounds(rounds_through_float32, ("posit32",))
    )


# Each of these is a bug that a kernel could have, and the formats that show it.
def flushes_small_numbers(x, rounding):
    y = lp.round(x, rounding)
    lines = rounding.format.line.gaps()
    return torch.where(y.abs() == float(lines[0][0]), 0.0 * y, y)


def ties_away(x, rounding):
    mode = rounding.mode
    if mode == "nearest_even":
        mode = "nearest_away"
    return lp.round(x, replace(rounding, mode=mode))


def ties_at_means(x, rounding):
    """Posits whose ties are midpoints: right but in the tapered region."""
    if rounding.mode != "nearest_even":
        return lp.round(x, rounding)
    plain = lp.Levels(rounding.format.table.values)
    y = lp.round(x, plain)
    y = torch.where((y == 0) & (x != 0), lp.round(x, rounding), y)
    means = torch.tensor([float(tie) for tie in plain.midpoints])
    right = torch.isin(x, means) | ~x.isfinite()  # even codes are not the question
    return torch.where(right, lp.round(x, rounding), y)


def rounds_twice(x, rounding):
    """Through more bits first: wrong where the first rounding makes a tie."""
    first = lp.Rounding(lp.Format(precision=9, emax=40))
    y = torch.where(x.isfinite(), lp.round(x, first), x)
    tiny = x.abs() < 2.0**-30
    return lp.round(torch.where(tiny, x, y), rounding)


def infinity_is_the_largest(x, rounding):
    largest = float(rounding.format.line.largest)
    return lp.round(x.clamp(-2 * largest, 2 * largest), rounding)


def loses_nan(x, rounding):
    return torch.nan_to_num(lp.round(x, rounding), nan=0.0, posinf=torch.inf)


def keeps_the_sign_of_zero(x, rounding):
    return torch.copysign(lp.round(x, rounding), x)


def saturates_where_it_wraps(x, rounding):
    if getattr(rounding, "saturation", None) == "wrap":
        rounding = replace(rounding, saturation="finite")
    return lp.round(x, rounding)


def wraps_before_it_rounds(x, rounding):
    if getattr(rounding, "saturation", None) != "wrap":
        return lp.round(x, rounding)
    target = rounding.format
    count = (float(target.max) - float(target.min)) + float(target.smallest_subnormal)
    low = float(target.min)
    inside = torch.where(x.isfinite(), (x.double() - low) % count + low, x.double())
    return lp.round(inside, rounding.format, rounding.mode).float()


def leaves_the_range_symmetric(x, rounding):
    target = rounding.format
    y = lp.round(x, rounding)
    return torch.where(y == float(target.min), -float(target.max), y)


def levels_go_down_at_ties(x, rounding):
    nearest = rounding.mode == "nearest_even"
    return lp.round(x, replace(rounding, mode="nearest_zero") if nearest else rounding)


WRONG = [
    (flushes_small_numbers, ("posit6",)),
    (flushes_small_numbers, ("binary6p3se",)),
    (flushes_small_numbers, ("fixed6f3",)),
    (ties_away, ("posit6",)),
    (ties_away, ("int4",)),
    (ties_away, ("ternary",)),
    (ties_at_means, ("posit6",)),
    (rounds_twice, ("posit6",)),
    (rounds_twice, ("fixed6f3",)),
    (infinity_is_the_largest, ("posit6",)),
    (infinity_is_the_largest, ("binary6p3se",)),
    (loses_nan, ("posit6",)),
    (loses_nan, ("ternary",)),
    (loses_nan, ("int4",)),
    (keeps_the_sign_of_zero, ("posit6",)),
    (keeps_the_sign_of_zero, ("ternary",)),
    (keeps_the_sign_of_zero, ("e4m3fnuz",)),
    (keeps_the_sign_of_zero, ("int4",)),
    (saturates_where_it_wraps, ("int4",)),
    (wraps_before_it_rounds, ("int4",)),
    (leaves_the_range_symmetric, ("int4",)),
    (levels_go_down_at_ties, ("ternary",)),
]


@pytest.mark.parametrize(
    ("kernel", "formats"), WRONG, ids=[f"{k.__name__}-{f[0]}" for k, f in WRONG]
)
def test_wrong_roundings_are_caught(kernel, formats):
    assert "test_decisive_numbers" in failures(Rounds(kernel, formats))


def sign_and_magnitude(x, format):
    """Not two's complement."""
    codes = lp.encode(x.abs(), format)
    return torch.where(x < 0, codes + (1 << (format.bits - 1)), codes)


def ieee_codes(x, format):
    """The codes of the format with the same exponent field, specials aside."""
    codes = lp.encode(x, format)
    return torch.where(x.isnan(), (1 << format.bits) - 1, codes)


def from_one(x, format):
    return lp.encode(x, format) + 1


def without_subnormals(codes, format, dtype):
    y = lp.decode(codes, format, dtype=dtype)
    return torch.where(y.abs() < float(format.smallest_normal), 0.0 * y, y)


def negative_zero_for_nan(codes, format, dtype):
    y = lp.decode(codes, format, dtype=dtype)
    return torch.where(codes == 1 << (format.bits - 1), -0.0, y)


def unsigned_zero(codes, format, dtype):
    return lp.decode(codes, format, dtype=dtype) + 0.0


@pytest.mark.parametrize(
    ("encode", "decode", "name"),
    [
        (sign_and_magnitude, None, "fixed6f3"),
        (sign_and_magnitude, None, "posit6"),
        (ieee_codes, None, "e4m3fnuz"),
        (ieee_codes, None, "posit6"),
        (from_one, None, "ternary"),
        (None, without_subnormals, "e4m3fnuz"),
        (None, without_subnormals, "binary6p3se"),
        (None, negative_zero_for_nan, "e4m3fnuz"),
        (None, negative_zero_for_nan, "posit6"),
        (None, unsigned_zero, "e5m2"),
    ],
)
def test_wrong_codes_are_caught(encode, decode, name):
    assert failures(Codes(encode, decode, (name,))) - {"test_empty"}


def low_bits_first(x, rounding, words):
    bits = rounding.random_bits
    mask = (1 << bits) - 1
    return with_words(x, rounding, (words & mask) << (32 - bits))


def variant_a_only(x, rounding, words):
    return with_words(x, replace(rounding, variant="A"), words)


def upward_by_value(x, rounding, words):
    """Up means toward plus infinity, not away from zero."""
    y = with_words(x.abs(), rounding, words)
    mirrored = with_words(x.abs(), rounding, 2**32 - 1 - words)
    return torch.where(x < 0, -mirrored, y)


def moves_what_is_representable(x, rounding, words):
    return with_words(x.nextafter(x * 2), rounding, words)


def nearest(x, rounding, words):
    return lp.round(x, replace(rounding, mode="nearest_even"))


@pytest.mark.parametrize(
    "kernel",
    [
        low_bits_first,
        variant_a_only,
        upward_by_value,
        moves_what_is_representable,
        nearest,
    ],
)
def test_wrong_use_of_random_words_is_caught(kernel):
    assert failures(Randomly(kernel)) == {"test_words_that_decide"}


class PositUnit(OperationSuite):
    """What a posit unit computes: one rounding of the exact result."""

    formats = ("posit5_1", "posit8_0")
    modes = ("nearest_even",)
    operations = ("add", "mul", "div", "sqrt", "fma")
    count = 60
    inner = "exact"

    def compute(self, operation, operands, rounding):
        rows = zip(*(x.tolist() for x in operands), strict=True)
        y = [exact_operation(operation, row, rounding) for row in rows]
        if self.inner != "exact":  # rounds in between
            wide = [
                exact_operation(operation, row, self.inner)
                for row in zip(*(x.tolist() for x in operands), strict=True)
            ]
            return lp.round(torch.tensor(wide), rounding)
        return torch.tensor(y)


def test_suites_of_operations_know_posits():
    assert failures(PositUnit()) == set()
    unit = PositUnit()
    unit.inner = "e8m5"
    assert failures(unit)


def test_block_formats_have_suites_of_their_own():
    with pytest.raises(TypeError, match="test it by a BlockRoundingSuite"):
        Rounds(lp.round, ("mxfp4",)).test_empty()
