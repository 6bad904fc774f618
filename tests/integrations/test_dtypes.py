"""Formats and tensors as NumPy, ml_dtypes and QPyTorch have them, and back."""

import ml_dtypes
import numpy as np
import pytest
import torch
from format_tables import NUMPY

import lowprec as lp
from lowprec.integrations import dtypes
from lowprec.testing import assert_bit_equal, boundary_inputs


@pytest.mark.parametrize("name", [*NUMPY, "binary32", "binary64", "e8m0fnu", "int8"])
def test_arrays_of_numpy_and_ml_dtypes(name):
    carrier = torch.float64 if name == "binary64" else torch.float32
    x = lp.round(boundary_inputs(name, carrier), name)
    x = x[~x.isnan()]
    array = dtypes.to_numpy(x, name)
    assert lp.format(array.dtype) == lp.format(name)
    assert_bit_equal(torch.from_numpy(array.astype(x.numpy().dtype)), x)
    assert_bit_equal(dtypes.from_numpy(array, dtype=carrier), x)


@pytest.mark.parametrize("name", ["int2", "int4", "uint2", "uint4"])
def test_small_integers_of_ml_dtypes(name):
    x = torch.tensor(lp.format(name).values())
    array = dtypes.to_numpy(x, name)
    assert array.dtype == np.dtype(getattr(ml_dtypes, name))
    assert array.astype(float).tolist() == x.tolist()
    assert_bit_equal(dtypes.from_numpy(array), x)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i2", "u4"])
def test_arrays_of_either_byte_order_and_any_shape(kind):
    values = np.array([[1, 2, 3], [5, 8, 200]])
    for order in "<>":
        array = values.astype(order + kind)
        for part in (array, array[:, ::2], array.T, array[0, 2], array[:0]):
            assert_bit_equal(
                dtypes.from_numpy(part, dtype=torch.float64),
                torch.from_numpy(np.array(part, np.float64)),
            )


@pytest.mark.parametrize("name", ["e4m3fn", "int8", "uint8", "binary16"])
def test_tensors_without_dimensions(name):
    x = torch.tensor(3.0)
    array = dtypes.to_numpy(x, name)
    assert isinstance(array, np.ndarray)
    assert array.shape == ()
    assert_bit_equal(dtypes.from_numpy(array), x)


@pytest.mark.parametrize("name", ["int64", "uint64"])
def test_integers_beyond_float64(name):
    assert dtypes.numpy_dtype(name) == np.dtype(name)
    with pytest.raises(
        ValueError, match=f"float64 does not hold every value of .?{name}"
    ):
        dtypes.from_numpy(np.array([1, 2, 3], name))
    with pytest.raises(
        ValueError, match=f"float64 does not hold every value of .?{name}"
    ):
        dtypes.to_numpy(torch.ones(3), name)


def test_formats_that_numpy_lacks():
    with pytest.raises(
        ValueError, match=r"neither NumPy nor ml_dtypes has .e6m8.: use"
    ):
        dtypes.numpy_dtype("e6m8")
    with pytest.raises(ValueError, match="unknown format 'complex64'"):
        dtypes.from_numpy(np.zeros(2, np.complex64))


def test_number_objects_of_qtorch():
    qtorch = pytest.importorskip("qtorch")
    for number, name in (
        (qtorch.FloatingPoint(5, 2), "e5m2"),
        (qtorch.FloatingPoint(8, 7), "bfloat16"),
        (qtorch.FixedPoint(8, 4), "fixed8f4"),
    ):
        target = lp.format(number)
        assert target == lp.format(name)
        again = dtypes.qtorch_number(target)
        assert type(again) is type(number)
        assert vars(again) == vars(number)
    symmetric = qtorch.FixedPoint(8, 4, symmetric=True)
    assert lp.format(symmetric) == lp.Format.fixed_point(8, 4, symmetric=True)
    assert vars(dtypes.qtorch_number(lp.format(symmetric))) == vars(symmetric)
    x = torch.tensor([0.3, 100.0])
    assert lp.round(x, qtorch.FixedPoint(8, 4)).tolist() == [0.3125, 7.9375]
    with pytest.raises(ValueError, match="clamp=False has no largest value"):
        lp.format(qtorch.FixedPoint(8, 4, clamp=False))
    with pytest.raises(ValueError, match=r"BlockFormat.fixed_point\(8, block_size\)"):
        lp.format(qtorch.BlockFloatingPoint(8))
    with pytest.raises(ValueError, match=r"BlockFormat.fixed_point\(8, block_size\)"):
        lp.block_format(qtorch.BlockFloatingPoint(8))
    for name in ("e4m3fn", "int8", "ufixed8f4", "e4m3b4"):
        with pytest.raises(ValueError, match="QPyTorch has no number for"):
            dtypes.qtorch_number(name)
