"""Codes of tensors equal those of the exact formats, element by element."""

import math

import pytest
import torch
from format_tables import SMALL, each_small

import lowprec as lp
from lowprec.testing import assert_bit_equal, boundary_inputs


def meanings(target):
    """Return the codes that denote something, and what they denote."""
    pairs = []
    for code in range(2**target.bits):
        try:
            pairs.append((code, target.decode(code)))
        except ValueError:
            with pytest.raises(ValueError, match="denotes no value"):
                target.decode(torch.tensor([code]))
    return zip(*pairs, strict=True)


@each_small
def test_every_code(target):
    codes, numbers = meanings(target)
    expected = torch.tensor(numbers, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        actual = lp.arithmetic._codec.decode(torch.tensor(codes), target, dtype=dtype)
        assert_bit_equal(actual, expected.to(dtype))
        assert target.encode(actual).tolist() == target.encode(list(numbers))


@pytest.mark.parametrize("name", ["binary64", "binary32", "e8m15", "e11m40"])
def test_wide_formats(name):
    target = lp.format(name)
    x = lp.round(boundary_inputs(name, torch.float64), name)
    codes = target.encode(x)
    wrapped = [code - (code >> 63 << 64) for code in target.encode(x.tolist())]
    assert codes.tolist() == wrapped
    assert_bit_equal(target.decode(codes).double(), x)


def test_shapes_and_carriers():
    target = lp.format("e5m2")
    for x in (torch.ones(2, 0, 3), torch.tensor(-1.5), torch.ones(3, 2).t()):
        codes = target.encode(x)
        assert codes.dtype == torch.int64
        assert_bit_equal(target.decode(codes), x.contiguous())
    assert target.decode(codes.to(torch.uint8)).dtype == torch.float32
    assert lp.format("e11m5").decode(codes).dtype == torch.float64


@pytest.mark.parametrize("value", [1.1, 1e6, -math.inf, -0.0, math.nan])
def test_what_is_no_value_is_refused(value):
    target = next(one for one in SMALL if one.name == "unsigned_finite")
    with pytest.raises(
        ValueError, match="1 of 2 elements are not values of 'unsigned_finite'"
    ):
        target.encode(torch.tensor([1.0, value]))


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.ones(2), TypeError, "integer tensor, got float32"),
        (torch.ones(2, dtype=torch.bool), TypeError, "integer tensor, got bool"),
        (torch.tensor([256]), ValueError, "from 0 to 255, got values from 256"),
        (torch.tensor([-1]), ValueError, "from 0 to 255, got values from -1"),
    ],
)
def test_refused_codes(codes, error, message):
    with pytest.raises(error, match=message):
        lp.format("e5m2").decode(codes)


def test_formats_beyond_float64_are_refused():
    # Not infinity and zero, which float64 would make of them.
    target = lp.format("e15m3")
    for code in (1, target.encode(target.max)):
        with pytest.raises(ValueError, match="float64 cannot hold every value"):
            target.decode(torch.tensor([code]))
    with pytest.raises(NotImplementedError, match="codes of 128 bits"):
        lp.format("e15m112").encode(torch.ones(1))
