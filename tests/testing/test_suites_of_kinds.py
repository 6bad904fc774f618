"""Suites of fixed point, posits, levels, blocks and codes: what they pass and catch."""

from dataclasses import replace

import pytest
import torch
from suite_runner import failures
from tables import name_of

import lowprec as lp
from lowprec.kernels import portable
from lowprec.testing import (
    BlockCodingSuite,
    BlockRoundingSuite,
    CodingSuite,
    OperationSuite,
    RoundingSuite,
    StochasticSuite,
    exact_operation,
)

TABLES = ("posit6", "posit8_0", "ternary", lp.Levels([-1.5, 0.25, 7.0]))
FIXED = ("int4", "uint4", "fixed6f3", lp.Format.fixed_point(5, 2, symmetric=True))
PECULIAR = ("e4m3fnuz", "binary6p3se", "binary6p2uf", "e2m1fn")
BLOCKS = (
    "mxfp4",
    "mxint8",
    "nvfp4",
    lp.BlockFormat.fixed_point(4, 4),
    lp.BlockFormat("e2m1fn", "e4m3fn", 4),
    *(lp.BlockFormat("e2m3fn", "e8m0", 4, rule) for rule in ("ceil", "rceil", "even")),
)


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


class Blocks(BlockRoundingSuite):
    formats = BLOCKS

    def __init__(self, kernel, formats=None, modes=("nearest_even",)):
        self.kernel, self.modes = kernel, modes
        self.formats = self.formats if formats is None else formats

    def round(self, x, rounding):
        return self.kernel(x, rounding)


class BlocksOfCodes(BlockCodingSuite):
    formats = BLOCKS

    def __init__(self, encode=None, decode=None, formats=None):
        self.kernels = encode or lp.encode_blocks, decode or lp.decode_blocks
        self.formats = self.formats if formats is None else formats

    def encode(self, x, rounding):
        return self.kernels[0](x, rounding)

    def decode(self, blocks, format):
        return self.kernels[1](blocks, format, dtype=self.dtype)


def with_words(x, rounding, words):
    """Our kernels below the generator."""
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


@pytest.mark.parametrize("target", BLOCKS, ids=repr)
def test_right_block_kernels_pass(target):
    assert failures(Blocks(lp.round, (target,))) == set()
    assert failures(BlocksOfCodes(None, None, (target,))) == set()


@pytest.mark.parametrize("mode", ["toward_zero", "to_odd"])
def test_right_block_kernels_pass_in_other_modes(mode):
    assert failures(Blocks(lp.round, ("mxfp4",), (mode,))) == set()


def test_right_use_of_random_words_passes():
    assert failures(Randomly(with_words)) == set()


def test_right_kernels_pass_in_float64():
    class Wide(Rounds):
        dtype = torch.float64
        modes = ("nearest_even",)

    class WideBlocks(Blocks):
        dtype = torch.float64

    assert failures(Wide(lp.round)) == set()
    assert failures(WideBlocks(lp.round, ("nvfp4", "mxfp4"))) == set()


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


def blockwise(function):
    """A kernel that sees one block of a row after the other."""

    def kernel(x, rounding):
        parts = x.split(rounding.format.block_size, dim=1)
        return torch.cat([function(part, rounding) for part in parts], dim=1)

    return kernel


def tops(x):
    """The largest magnitudes of rows."""
    return x.abs().amax(1, keepdim=True) if x.numel() else x


def by_rule(rule):
    return lambda x, r: lp.round(x, replace(r, format=r.format.replace(rule=rule)))


@blockwise
def spoils_one_element_only(x, rounding):
    """NaN and infinity stay where they are, as if the scale did not know them."""
    finite = torch.where(x.isfinite(), x, 0.0)
    return torch.where(x.isfinite(), lp.round(finite, rounding), torch.nan)


@blockwise
def forgets_to_saturate(x, rounding):
    return lp.round(x, rounding, saturation="none")


def without_its_tail(x, rounding):
    whole = x.shape[1] // rounding.format.block_size * rounding.format.block_size
    return torch.cat([lp.round(x[:, :whole], rounding), x[:, whole:]], dim=1)


def along_the_columns(x, rounding):
    return lp.round(x, rounding, axis=0)


def without_a_smallest_scale(x, rounding):
    """Scales below the range, in a carrier that has room for them."""
    up = 2.0**60
    small = tops(x) < 2.0**-100
    return torch.where(small, lp.round(x * up, rounding) / up, lp.round(x, rounding))


def flushes_elements(x, rounding):
    element = rounding.format.element
    exact = lp.encode_blocks(x, rounding)
    q = lp.decode(exact.codes, element)
    flushed = torch.where(q.abs() < float(element.smallest_normal), 0.0 * q, q)
    changed = exact._replace(codes=lp.encode(flushed, element))
    return lp.decode_blocks(changed, rounding.format, dtype=x.dtype)


def divides_in_half_precision(x, rounding):
    """A quotient that is rounded before it is rounded."""
    half = torch.where(x.isfinite(), lp.round(x, lp.Format(precision=6, emax=127)), x)
    top = x.abs() == tops(x)
    return lp.round(torch.where(top, x, half), rounding)


def ignores_the_tensor_scale(x, rounding):
    return lp.round(
        x,
        replace(
            rounding, format=rounding.format.replace(tensor_scale=None, rule="amax")
        ),
    )


def loses_the_sign_of_zero(x, rounding):
    return lp.round(x, rounding) + 0.0


BY_CEIL = by_rule("ceil")
BY_FLOOR = by_rule("floor")
BY_EVEN = by_rule("even")
BY_AMAX = by_rule("amax")


@pytest.mark.parametrize(
    ("kernel", "target"),
    [
        (BY_CEIL, "mxfp4"),
        (BY_EVEN, "mxfp4"),
        (BY_FLOOR, lp.BlockFormat("e2m3fn", "e8m0", 4, "even")),
        (BY_EVEN, lp.BlockFormat("e2m3fn", "e8m0", 4, "rceil")),
        (BY_CEIL, lp.BlockFormat("e2m3fn", "e8m0", 4, "rceil")),
        (BY_AMAX, "nvfp4"),
        (ignores_the_tensor_scale, "nvfp4"),
        (spoils_one_element_only, "mxfp4"),
        (forgets_to_saturate, "mxfp8_e4m3"),
        (without_its_tail, "mxfp4"),
        (along_the_columns, "mxfp4"),
        (without_a_smallest_scale, "mxfp4"),
        (flushes_elements, "mxfp4"),
        (flushes_elements, "mxfp8_e5m2"),
        (divides_in_half_precision, "mxfp8_e4m3"),
        (loses_the_sign_of_zero, "mxfp4"),
        (lambda x, r: lp.round(x, r, "nearest_away"), "mxfp4"),
        (lambda x, r: lp.round(x, r.format.element, saturation="finite"), "mxfp4"),
    ],
)
def test_wrong_block_roundings_are_caught(kernel, target):
    assert "test_blocks" in failures(Blocks(kernel, (target,)))


def biased_by_128(x, rounding):
    blocks = lp.encode_blocks(x, rounding)
    return blocks._replace(scales=blocks.scales + 1)


def nan_in_the_elements(x, rounding):
    blocks = lp.encode_blocks(x, rounding)
    finite = torch.where(x.isfinite(), x, 0.0)
    return blocks._replace(scales=lp.encode_blocks(finite, rounding).scales)


def scale_of_zero_is_one(blocks, format, dtype):
    scales = torch.where(blocks.scales == 0, 127, blocks.scales)
    return lp.decode_blocks(blocks._replace(scales=scales), format, dtype=dtype)


def unscaled(blocks, format, dtype):
    return lp.decode(blocks.codes, format.element, dtype=dtype)


@pytest.mark.parametrize(
    ("encode", "decode", "wrong"),
    [
        (biased_by_128, None, "test_codes"),
        (nan_in_the_elements, None, "test_codes"),
        (None, scale_of_zero_is_one, "test_values_of_codes"),
        (None, unscaled, "test_values_of_codes"),
    ],
)
def test_wrong_codes_of_blocks_are_caught(encode, decode, wrong):
    assert failures(BlocksOfCodes(encode, decode, ("mxfp4",))) == {wrong}


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
