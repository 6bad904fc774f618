"""Suites of block formats: what they pass and catch."""

from dataclasses import replace

import pytest
import torch
from suite_runner import failures

import lowprec as lp
from lowprec.testing import BlockCodingSuite, BlockRoundingSuite

BLOCKS = (
    "mxfp4",
    "mxint8",
    "nvfp4",
    lp.BlockFormat.fixed_point(4, 4),
    lp.BlockFormat("e2m1fn", "e4m3fn", 4),
    *(lp.BlockFormat("e2m3fn", "e8m0", 4, rule) for rule in ("ceil", "rceil", "even")),
)


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


@pytest.mark.parametrize("target", BLOCKS, ids=repr)
def test_right_block_kernels_pass(target):
    assert failures(Blocks(lp.round, (target,))) == set()
    assert failures(BlocksOfCodes(None, None, (target,))) == set()


@pytest.mark.parametrize("mode", ["toward_zero", "to_odd"])
def test_right_block_kernels_pass_in_other_modes(mode):
    assert failures(Blocks(lp.round, ("mxfp4",), (mode,))) == set()


def test_right_block_kernels_pass_in_float64():
    class Wide(Blocks):
        dtype = torch.float64

    assert failures(Wide(lp.round, ("nvfp4", "mxfp4"))) == set()


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
