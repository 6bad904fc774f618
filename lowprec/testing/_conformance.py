"""Inputs that decide a rounding, and bitwise comparison of results."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..formats import Format
from ..formats import format as as_format

__all__ = ["assert_bit_equal", "boundary_inputs"]

_MOST_VALUES_COMPLETE = 2**11  # positive ones: a format of 12 bits
_SHOWN = 5
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def assert_bit_equal(actual: Tensor, expected: Tensor) -> None:
    """Require equal shape, dtype and bits; NaNs must coincide, whatever their payload.

    Contract:
        Signed zeros count; tolerances do not exist.

    Args:
        actual: float32 or float64 tensor.
        expected: tensor of the same shape and dtype.

    Raises:
        AssertionError: listing the first differences.

    Example:
        >>> x = torch.tensor([0.0, torch.nan])
        >>> assert_bit_equal(x.clone(), x)
    """
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        raise AssertionError(
            f"expected {expected.dtype} {tuple(expected.shape)}, "
            f"got {actual.dtype} {tuple(actual.shape)}"
        )
    integer = _INTEGERS[actual.dtype]
    same = actual.contiguous().view(integer) == expected.contiguous().view(integer)
    different = ~(same | (actual.isnan() & expected.isnan()))
    count = int(different.sum())
    if count == 0:
        return
    where = different.flatten().nonzero().flatten()[:_SHOWN].tolist()
    got: list[float] = actual.flatten().tolist()
    wanted: list[float] = expected.flatten().tolist()
    lines = [
        f"element {i}: got {got[i]!r} ({got[i].hex()}), "
        f"expected {wanted[i]!r} ({wanted[i].hex()})"
        for i in where
    ]
    raise AssertionError(
        "\n".join([f"{count} of {actual.numel()} elements differ", *lines])
    )


def boundary_inputs(format: Format | str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return inputs on which roundings to a format are decided.

    Contract:
        For formats of at most 12 bits: every value, every midpoint of neighbours, and
        the carrier's neighbours of both. For wider ones: the same at both ends and two
        places inside every binade. Always: two binades beyond both ends of the range,
        both signs, zeros, infinities, NaN, and the carrier's extreme values. Sorted,
        without duplicates, NaN last.

    Args:
        format: a `Format` or its name.
        dtype: carrier, float32 or float64.

    Returns:
        1-d tensor.

    Raises:
        KeyError: if ``dtype`` is not a carrier.

    Example:
        >>> x = boundary_inputs("e5m2")
        >>> bool((x == 1.125).any()), bool((x == 2.0**-17).any())
        (True, True)
    """
    integer = _INTEGERS[dtype]
    centres = torch.tensor(
        sorted(set(_centres(as_format(format)))), dtype=torch.float64
    )
    middles = (centres[1:] - centres[:-1]) / 2 + centres[:-1]
    limits = torch.finfo(dtype)
    extremes = torch.tensor(
        [0.0, limits.tiny * limits.eps, limits.tiny, limits.max, math.inf],
        dtype=torch.float64,
    )
    # Of values beyond the carrier's range only its own extremes remain.
    size = torch.cat([centres, middles, extremes]).to(dtype)
    zero, infinity = size.new_zeros(()), size.new_full((), math.inf)
    size = torch.cat([size, size.nextafter(zero), size.nextafter(infinity)])
    both = torch.tensor(sorted({*size.tolist(), *(-size).tolist()}), dtype=dtype)
    signed_zeros = torch.zeros(2, dtype=dtype)
    signed_zeros.view(integer)[1] = torch.iinfo(integer).min
    nan = signed_zeros.new_full((1,), math.nan)
    return torch.cat([both[both != 0], signed_zeros, nan])


def _centres(target: Format) -> Iterator[float]:
    """Yield positive values of the format and of two binades beyond its ends."""
    precision, emin, emax = target.precision, 1 - target.bias, target.emax
    lowest = emin - precision + 1
    complete = (emax - emin + 2) << (precision - 1) <= _MOST_VALUES_COMPLETE
    for exponent in range(lowest - 2, emax + 3):
        quantum = max(exponent, emin) - precision + 1
        if exponent < lowest:
            significands: Iterator[int] | range = iter([1])
            quantum = exponent
        else:
            first = 1 << (exponent - quantum)
            last = 2 * first - 1
            if complete:
                significands = range(first, last + 1)
            else:
                third = first + first // 3
                chosen = {first, first + 1, third, third + 1, last - 1, last}
                significands = iter(sorted(k for k in chosen if first <= k <= last))
        for significand in significands:
            value = _scaled(significand, quantum)
            if 0 < value < math.inf:
                yield value


def _scaled(significand: int, exponent: int) -> float:
    try:
        return math.ldexp(significand, exponent)
    except OverflowError:
        return math.inf
