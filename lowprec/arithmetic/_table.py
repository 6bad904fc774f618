"""Codes of posits and levels as tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..formats import Levels, Posit
from ..kernels.codes import numbers_of
from ..kernels.tables import TableCode, table_of
from ..table_rounding import TableFormat, TableRounding


def table_code(
    format: TableFormat, dtype: torch.dtype, device: torch.device
) -> TableCode:
    """Return a set of numbers as tensors.

    Raises:
        ValueError: if ``dtype`` does not hold the numbers.
    """
    code = TableRounding(format).code
    return table_of(code[4], numbers_of(code), dtype, device)


def encode_table(x: Tensor, format: TableFormat, dtype: torch.dtype) -> Tensor:
    """Return the codes of values of the set, which the caller has checked to be such.

    Raises:
        ValueError: if an element is no value.
    """
    table = table_code(format, torch.float64, x.device)
    wide = x.detach().to(torch.float64)
    index = torch.searchsorted(table.values, wide.contiguous())
    index = index.clamp(max=len(table.values) - 1)
    known = (table.values[index] == wide) & ~((wide == 0) & wide.signbit())
    code = index
    if isinstance(format, Posit):
        known = known | wide.isnan()
        code = (index - len(table.values) // 2) & ((1 << format.bits) - 1)
        code = torch.where(wide.isnan(), 1 << (format.bits - 1), code)
    if not bool(known.all()):
        first = x.detach()[~known].flatten()[0].item()
        raise ValueError(
            f"{int((~known).sum())} of {x.numel()} elements are not values of "
            f"{format.name or format!r}, the first is {first!r}: round the tensor first"
        )
    return code.to(dtype)


def decode_table(codes: Tensor, format: TableFormat, dtype: torch.dtype) -> Tensor:
    """Return the values of codes that are in range."""
    values = table_code(format, dtype, codes.device).values
    index = codes.to(torch.int64)
    if isinstance(format, Levels):
        return values[index].to(dtype)
    index = (index + len(values) // 2) & ((1 << format.bits) - 1)
    missing = index == len(values)  # NaR is one beyond the largest
    found = values[index.clamp(max=len(values) - 1)]
    return torch.where(missing, math.nan, found).to(dtype)
