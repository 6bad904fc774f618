"""Codes packed in bytes, and viewed as torch's own dtypes."""

import math

import pytest
import torch

import lowprec as lp
from lowprec.testing import assert_bit_equal, boundary_inputs


@pytest.mark.parametrize("bits", [*range(1, 18), 23, 24, 25, 31, 32])
def test_packed_codes_are_one_long_number(bits):
    for count in (0, 1, 5, 7, 8, 9, 16, 31):
        codes = torch.randint(0, 2**bits, (2, 3, count))
        packed = lp.pack(codes, bits)
        assert packed.dtype == torch.uint8
        assert packed.shape == (2, 3, math.ceil(count * bits / 8))
        assert torch.equal(lp.unpack(packed, bits, count), codes)
        rows = zip(
            codes.flatten(0, 1).tolist(), packed.flatten(0, 1).tolist(), strict=True
        )
        for row, data in rows:
            number = sum(code << (i * bits) for i, code in enumerate(row))
            assert int.from_bytes(bytes(data), "little") == number


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.uint16, torch.int64])
def test_codes_of_every_integer_type(kind):
    codes = torch.arange(100).to(kind)
    assert torch.equal(lp.unpack(lp.pack(codes, 7), 7, 100), torch.arange(100))
    strided = torch.arange(100).reshape(10, 10).T
    assert torch.equal(lp.unpack(lp.pack(strided, 7), 7, 10), strided)


def test_a_format_gives_the_width():
    codes = torch.arange(16)
    for name in ("e2m1fn", "int4", "posit4"):
        assert torch.equal(lp.pack(codes, name), lp.pack(codes, 4))
    assert torch.equal(lp.pack(codes % 2, lp.Levels.binary()), lp.pack(codes % 2, 1))
    # A format of 7 bits.
    target = lp.Format(precision=4, emax=3)
    assert target.bits == 7
    x = lp.round(torch.randn(33), target)
    packed = lp.pack(lp.encode(x, target), target)
    assert packed.shape == (29,)
    assert_bit_equal(lp.decode(lp.unpack(packed, target, 33), target), x)


CODES = torch.arange(4)
BYTES = torch.zeros(3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: lp.pack(CODES, 0), ValueError, "packed in 1 to 32 bits, got 0"),
        (lambda: lp.pack(CODES, 33), ValueError, "packed in 1 to 32 bits, got 33"),
        (lambda: lp.pack(CODES, "binary64"), ValueError, "1 to 32 bits, got 64"),
        (lambda: lp.pack(CODES, True), TypeError, "bits must be an int or a format"),
        (lambda: lp.pack(CODES, 1), ValueError, "from 0 to 1, got values from 0 to 3"),
        (lambda: lp.pack(CODES - 1, 2), ValueError, "got values from -1 to 2"),
        (lambda: lp.pack(CODES.float(), 2), TypeError, "integer tensor, got float32"),
        (lambda: lp.pack([1, 2], 2), TypeError, "integer tensor, got list"),
        (lambda: lp.pack(torch.tensor(1), 2), ValueError, "must have a dimension"),
        (lambda: lp.unpack(BYTES, 4, 7), ValueError, "fill 4 bytes, got 3"),
        (lambda: lp.unpack(BYTES, 4, -1), ValueError, "-1 codes"),
        (lambda: lp.unpack(BYTES, 4, 5.0), TypeError, "count must be an int"),
        (lambda: lp.unpack(BYTES.int(), 4, 5), TypeError, "must be uint8"),
        (lambda: lp.unpack(BYTES + 255, 4, 5), ValueError, "are not zero: these are"),
    ],
)
def test_refused_packing(call, error, text):
    with pytest.raises(error, match=text):
        call()


# Views in torch's dtypes.

TORCH = {
    "binary16": torch.float16,
    "bfloat16": torch.bfloat16,
    "e5m2": torch.float8_e5m2,
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2fnuz": torch.float8_e5m2fnuz,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e8m0fnu": torch.float8_e8m0fnu,
}


@pytest.mark.parametrize("name", TORCH)
def test_views_in_the_dtype_of_torch(name):
    x = lp.round(boundary_inputs(name), name)
    own = lp.encode(x, name, dtype=TORCH[name])
    assert own.dtype == TORCH[name]
    assert_bit_equal(own.to(torch.float32), x)
    assert_bit_equal(lp.decode(own, name), x)
    assert lp.format(TORCH[name]) == lp.format(name)
    with pytest.raises(TypeError, match="torch's own"):
        lp.decode(own, "e3m4")
    with pytest.raises(TypeError, match="torch's own for the format"):
        lp.encode(x.new_zeros(2), "e3m4", dtype=TORCH[name])


@pytest.mark.parametrize("name", TORCH)
def test_every_code_means_what_torch_says(name):
    dtype = TORCH[name]
    codes = torch.arange(2 ** (8 * dtype.itemsize))
    integer = torch.uint8 if dtype.itemsize == 1 else torch.uint16
    assert_bit_equal(lp.decode(codes, name), codes.to(integer).view(dtype).float())


def test_pairs_of_four_bits():
    x = lp.round(torch.randn(3, 6), "e2m1fn")
    pairs = lp.encode(x, "e2m1fn", dtype=torch.float4_e2m1fn_x2)
    assert pairs.shape == (3, 3)
    assert torch.equal(pairs.view(torch.uint8), lp.pack(lp.encode(x, "e2m1fn"), 4))
    assert_bit_equal(lp.decode(pairs, "e2m1fn"), x)
    with pytest.raises(ValueError, match="the last dimension must be even"):
        lp.encode(x[:, :5], "e2m1fn", dtype=torch.float4_e2m1fn_x2)
    with pytest.raises(TypeError, match=r"is not torch\.float4"):
        lp.encode(x, "e3m2fn", dtype=torch.float4_e2m1fn_x2)
