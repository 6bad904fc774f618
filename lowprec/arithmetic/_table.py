"""Codes of posits and levels as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import kernels
from ..formats import Levels, Posit
from ..kernels import Encoding
from ..kernels.codes import NEAREST_EVEN, numbers_of
from ..kernels.levels import prepared
from ..table_rounding import TableFormat, TableRounding


def encode_table(x: Tensor, format: TableFormat, dtype: torch.dtype) -> Tensor:
    """Return the codes of numbers that the caller has checked to be of the set."""
    if isinstance(format, Posit):
        result: Tensor = kernels.encode(x, list(_encoding(format)), dtype)
        return result
    levels = _levels(format, x.dtype, x.device)
    return torch.bucketize(x, levels[1:], right=True, out_int32=True).to(dtype)


def decode_table(codes: Tensor, format: TableFormat, dtype: torch.dtype) -> Tensor:
    """Return the values of codes that are in range.

    Raises:
        ValueError: if ``dtype`` does not hold the numbers.
    """
    if not fits(format, dtype):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} cannot hold every value of {format!r}: use float64")
    if isinstance(format, Levels):
        return _levels(format, dtype, codes.device)[codes.to(torch.int64)]
    result: Tensor = kernels.decode(codes, list(_encoding(format)), dtype)
    return result


def _levels(format: Levels, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return levels as the tensor that roundings to nearest keep."""
    code = TableRounding(format).code
    return prepared(numbers_of(code), NEAREST_EVEN, dtype, device).levels


def fits(format: TableFormat, dtype: torch.dtype) -> bool:
    """Whether a carrier holds every number of the set."""
    return dtype == torch.float64 or format.in_binary32


def _encoding(format: Posit) -> Encoding:
    nar = 1 << (format.bits - 1)
    return Encoding(0, format.es, format.bits, 1, 0, 0, 0, 0, nar)
