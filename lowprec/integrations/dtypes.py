"""Tensors as NumPy arrays of ml_dtypes and back; formats as objects of QPyTorch.

ml_dtypes and qtorch are imported when they are asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arithmetic import decode, encode
from ..formats import Format
from ..formats import format as as_format

__all__ = ["from_numpy", "numpy_dtype", "qtorch_number", "to_numpy"]

_OF_NUMPY = ("binary64", "binary32", "binary16", "int64", "uint64")
_MOST_INTEGER_BITS = 53  # of which float64 holds every one
_OF_ML_DTYPES = {
    "bfloat16": "bfloat16",
    "e5m2": "float8_e5m2",
    "e4m3fn": "float8_e4m3fn",
    "e4m3": "float8_e4m3",
    "e3m4": "float8_e3m4",
    "e5m2fnuz": "float8_e5m2fnuz",
    "e4m3fnuz": "float8_e4m3fnuz",
    "e4m3b11fnuz": "float8_e4m3b11fnuz",
    "e8m0fnu": "float8_e8m0fnu",
    "e3m2fn": "float6_e3m2fn",
    "e2m3fn": "float6_e2m3fn",
    "e2m1fn": "float4_e2m1fn",
    "int2": "int2",
    "int4": "int4",
    "uint2": "uint2",
    "uint4": "uint4",
}


def numpy_dtype(format: Format | str) -> Any:
    """Return the NumPy dtype with the values and codes of a format.

    Args:
        format: a `Format` or its name.

    Returns:
        A dtype of NumPy, or of ml_dtypes.

    Raises:
        ValueError: if neither has it.
        ImportError: if ml_dtypes, which has it, is not installed.

    Example:
        >>> numpy_dtype("e4m3fn").name
        'float8_e4m3fn'
    """
    target = as_format(format)
    for name in _OF_NUMPY:
        if as_format(name) == target:
            return np.dtype(name.replace("binary", "float"))
    for name, dtype in _OF_ML_DTYPES.items():
        if as_format(name) == target:
            import ml_dtypes

            return np.dtype(getattr(ml_dtypes, dtype))
    if target.dtype is not None:
        return np.dtype(target.dtype)
    raise ValueError(
        f"neither NumPy nor ml_dtypes has {target.name or target!r}: use "
        "lowprec.encode for its codes"
    )


def to_numpy(x: Tensor, format: Format | str) -> Any:
    """Return a tensor of values of a format as an array of its own dtype.

    Contract:
        Exact, by the codes: no conversion of another library takes part.

    Args:
        x: float32 or float64 tensor of values of the format.
        format: a `Format` or its name.

    Returns:
        Array of ``x``'s shape.

    Raises:
        TypeError: if ``x`` is not a float32 or float64 tensor.
        ValueError: if an element is not a value of the format, no dtype has it, or it
            is that of 64-bit integers, which float64 does not hold.
        ImportError: as `numpy_dtype`.

    Example:
        >>> to_numpy(torch.tensor([1.0, -448.0]), "e4m3fn").astype(float).tolist()
        [1.0, -448.0]
    """
    target, dtype = as_format(format), numpy_dtype(format)
    _refuse_wide_integers(target)
    codes = encode(x, target).cpu().numpy()
    if target.encoding == "integer" and target.signed:  # two's complement
        sign = 1 << (target.bits - 1)
        return np.asarray((codes ^ sign) - sign, dtype)
    if target.encoding == "integer":
        return codes.astype(dtype)
    return codes.astype(f"u{dtype.itemsize}").view(dtype)


def from_numpy(array: Any, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the values of an array of NumPy or ml_dtypes.

    Contract:
        Exact, by the codes. `lowprec.format` gives the format of ``array.dtype``.

    Args:
        array: array whose dtype is that of a known format.
        dtype: carrier of the result, float32 or float64; None takes float32 where it
            holds every value of the format.

    Returns:
        Tensor of the array's shape.

    Raises:
        ValueError: if the dtype is that of no format, or of 64-bit integers, which
            float64 does not hold.

    Example:
        >>> from_numpy(np.array([0.1], dtype=np.float16)).tolist()
        [0.0999755859375]
    """
    array = np.asarray(array)
    target = as_format(array.dtype)
    _refuse_wide_integers(target)
    if target.encoding == "integer":
        codes = array.astype(np.int64) & ((1 << target.bits) - 1)
    else:
        # Views know nothing of the byte order, and need a dimension.
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        codes = native.view(f"u{array.dtype.itemsize}").reshape(array.shape)
    integers = torch.from_numpy(np.array(codes, np.int64))
    return decode(integers, target, dtype=dtype)


def _refuse_wide_integers(target: Format) -> None:
    if target.encoding == "integer" and target.bits > _MOST_INTEGER_BITS:
        raise ValueError(
            f"float64 does not hold every value of {target.name or target!r}: "
            "take int32, uint32 or float64 instead"
        )


def qtorch_number(format: Format | str) -> Any:
    """Return the number object of QPyTorch that means a format.

    Contract:
        `lowprec.format` returns the format again. QPyTorch reserves no exponent for
        infinity and NaN, so its own rounding goes on beyond the format's largest value.

    Args:
        format: a `Format` or its name, IEEE-like or signed fixed point.

    Returns:
        A ``qtorch.FloatingPoint`` or ``qtorch.FixedPoint``.

    Raises:
        ValueError: if QPyTorch cannot say it.
        ImportError: if qtorch is not installed.

    Example:
        >>> number = qtorch_number("e5m2")  # doctest: +SKIP
        >>> number.exp, number.man  # doctest: +SKIP
        (5, 2)
    """
    import qtorch

    target = as_format(format)
    number: Any = None
    if target.encoding == "integer" and target.signed:
        fraction = target.precision - 1 - target.emax
        if fraction > 0:
            number = qtorch.FixedPoint(
                target.bits, fraction, symmetric=not target.asymmetric
            )
    elif target.encoding == "ieee" and target.significand_bits > 0:
        number = qtorch.FloatingPoint(target.exponent_bits, target.significand_bits)
    if number is None or as_format(number) != target:
        raise ValueError(
            f"QPyTorch has no number for {target.name or target!r}: it knows eXmY and "
            "signed fixed point with fraction bits"
        )
    return number
