"""Bitwise comparison of results."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assert_bit_equal"]

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
