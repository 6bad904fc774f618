"""Codes of tensors equal those of the exact formats, element by element."""

import math

import pytest
import torch
from format_tables import SMALL, each_small
from native_checks import needs_library
from tables import FORMATS, fits, name_of

import lowprec as lp
from lowprec import kernels
from lowprec.arithmetic import _codec
from lowprec.kernels import coding, native
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
        (
            torch.ones(2),
            TypeError,
            "integer tensor, or one of torch's own .*, got float32",
        ),
        (
            torch.ones(2, dtype=torch.bool),
            TypeError,
            "integer tensor, or one of torch's own .*, got bool",
        ),
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


NATIVE = [
    one for one in [*FORMATS, lp.format("e8m50")] if one.name not in ("p1", "p1_flush")
]


@needs_library
@pytest.mark.parametrize("target", NATIVE, ids=name_of)
def test_every_build_codes_as_the_portable_kernel(target):
    carriers = [one for one in (torch.float32, torch.float64) if fits(target, one)]
    try:
        encoding = list(_codec._encoding(target))
    except ValueError:
        pytest.skip("the format has no codes")
    for isa in native.instruction_sets():
        native.set_instruction_set(isa)
        try:
            for carrier in carriers:
                x = lp.round(boundary_inputs(target, carrier), target, out=None)
                if not target.nans:
                    x = x[x.isfinite()]
                for count in (x.numel(), 0, 1, 17):
                    part = x[:count]
                    expected = coding.portable_encode(part, encoding, torch.int64)
                    assert torch.equal(
                        kernels.encode(part, encoding, torch.int64), expected
                    )
                    values = coding.portable_decode(expected, encoding, carrier)
                    assert_bit_equal(
                        kernels.decode(expected, encoding, carrier), values
                    )
        finally:
            native.set_instruction_set()


@needs_library
@each_small
def test_every_small_code_in_every_integer_type(target):
    encoding = list(_codec._encoding(target))
    codes = torch.arange(2 ** min(target.bits, 16))
    for carrier in (torch.float32, torch.float64):
        expected = coding.portable_decode(codes, encoding, carrier)
        for dtype in _codec._INTEGERS:
            if target.bits > _codec._INTEGERS[dtype]:
                continue
            narrow = codes.to(dtype)
            assert_bit_equal(kernels.decode(narrow, encoding, carrier), expected)
            known = ~expected.isnan()
            back = kernels.encode(expected[known], encoding, dtype)
            assert back.dtype == dtype
            assert torch.equal(back.to(torch.int64), codes[known])


def test_the_integer_type_of_codes():
    x = torch.tensor([1.0, -448.0])
    codes = lp.arithmetic.encode(x, "e4m3fn", dtype=torch.uint8)
    assert codes.dtype == torch.uint8
    assert codes.tolist() == [56, 254]
    with pytest.raises(ValueError, match="cannot hold codes of 16 bits"):
        lp.arithmetic.encode(x, "binary16", dtype=torch.int16)
    with pytest.raises(TypeError, match="dtype must be one of"):
        lp.arithmetic.encode(x, "binary16", dtype=torch.float32)


def test_the_operations_are_known_to_torch():
    encoding = list(_codec._encoding(lp.format("e5m2")))
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 4.0, -0.0]])
    codes = kernels.encode(x, encoding, torch.uint8)
    torch.library.opcheck(torch.ops.lowprec.encode, (x, encoding, torch.uint8))
    torch.library.opcheck(torch.ops.lowprec.decode, (codes, encoding, torch.float32))
    each = torch.vmap(lambda row: kernels.encode(row, encoding, torch.int64), in_dims=1)
    assert torch.equal(each(x), codes.to(torch.int64).T)
    back = torch.vmap(lambda row: kernels.decode(row, encoding, torch.float32))
    assert_bit_equal(back(codes), x)


@needs_library
def test_threads_do_not_matter():
    target = lp.format("e4m3fn")
    x = lp.round(torch.randn(200_003), target)
    codes = _codec.encode(x, target, dtype=torch.uint8)
    torch.set_num_threads(2)
    assert torch.equal(_codec.encode(x, target, dtype=torch.uint8), codes)
    assert_bit_equal(target.decode(codes), x)


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1fn"])
def test_nan_is_a_value_only_where_it_has_a_code(name):
    target = next(one for one in FORMATS if one.name == name)
    x = torch.tensor([1.0, math.nan])
    if target.nans:
        assert target.decode(target.encode(x)).isnan().tolist() == [False, True]
    else:
        with pytest.raises(ValueError, match="1 of 2 elements are not values"):
            target.encode(x)


OWN = {
    "binary64": torch.float64,
    "binary32": torch.float32,
    "binary16": torch.float16,
    "bfloat16": torch.bfloat16,
    **{
        str(t).removeprefix("torch."): t for t in (torch.int8, torch.int16, torch.int32)
    },
    **{
        str(t).removeprefix("torch."): t
        for t in (torch.uint8, torch.uint16, torch.uint32)
    },
}


@pytest.mark.parametrize("name", OWN)
def test_dtypes_of_torch_hold_the_codes_of_their_formats(name):
    dtype, target = OWN[name], lp.format(name)
    assert lp.format(dtype) == target
    assert str(dtype) == f"torch.{target.dtype}"
    x = torch.tensor([0.0, 1.0, 3.0, target.min, target.max], dtype=torch.float64)
    codes = lp.encode(x, target, dtype=dtype)
    assert codes.dtype == dtype
    assert torch.equal(codes.double(), x)  # torch reads the same numbers
    back = lp.decode(codes, target, dtype=torch.float64)
    assert_bit_equal(back, x)
    wide = lp.encode(x, target)
    assert_bit_equal(lp.decode(wide, target, dtype=torch.float64), x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
def test_integers_of_64_bits_have_no_codes_in_tensors(dtype):
    target = lp.format(dtype)
    assert str(dtype) == f"torch.{target.dtype}"
    x = torch.ones(1, dtype=torch.float64)
    for call in (
        lambda: lp.encode(x, target),
        lambda: lp.encode(x, target, dtype=dtype),
        lambda: lp.decode(torch.ones(1, dtype=dtype), target),
    ):
        with pytest.raises(NotImplementedError, match="float64 does not hold"):
            call()


def test_what_is_no_dtype_is_refused():
    with pytest.raises(TypeError, match=r"dtype must be a torch\.dtype, got 'int64'"):
        lp.encode(torch.ones(1), "int8", dtype="int64")
    with pytest.raises(TypeError, match=r"'int8' is not torch\.int16|must be one of"):
        lp.encode(torch.ones(1), "int8", dtype=torch.bool)
