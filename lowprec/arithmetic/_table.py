"""Rounding of tensors to posits and levels, and their codes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import kernels
from ..formats import Levels, Posit
from ..kernels import Encoding
from ..kernels.portable import CARRIERS
from ..table_rounding import TableFormat, TableRounding


@functools.lru_cache(maxsize=64)
def _levels(format: Levels, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return levels as a tensor.

    Raises:
        ValueError: if ``dtype`` does not hold them.
    """
    _check_held(format, dtype)
    return torch.tensor(format.values, dtype=dtype, device=device)


def encode_table(x: Tensor, format: TableFormat, dtype: torch.dtype) -> Tensor:
    """Return the codes of values of the set.

    Raises:
        ValueError: if an element is no value.
    """
    x = x.detach().contiguous()
    if not fits(format, x.dtype):
        x = x.to(torch.float64)
    rounded = kernels.eager_round(x, TableRounding(format).code)
    integer = CARRIERS[x.dtype].integer
    kept = torch.equal(rounded.view(integer), x.view(integer))
    if not kept or (isinstance(format, Levels) and bool(x.isnan().any())):
        _check_members(x, rounded, format)
    if isinstance(format, Posit):
        result: Tensor = kernels.encode(x, list(_encoding(format)), dtype)
        return result
    levels = _levels(format, x.dtype, x.device)
    return torch.bucketize(x, levels[1:], right=True, out_int32=True).to(dtype)


def _check_members(x: Tensor, rounded: Tensor, format: TableFormat) -> None:
    """Refuse what rounding changes, but for the bits of NaN, and NaN where none is."""
    known = (rounded == x) & ~((x == 0) & x.signbit())
    if isinstance(format, Posit):
        known = known | x.isnan()
    if not bool(known.all()):
        first = x[~known].flatten()[0].item()
        raise ValueError(
            f"{int((~known).sum())} of {x.numel()} elements are not values of "
            f"{format.name or format!r}, the first is {first!r}: round the tensor first"
        )


def decode_table(codes: Tensor, format: TableFormat, dtype: torch.dtype) -> Tensor:
    """Return the values of codes that are in range."""
    if isinstance(format, Levels):
        return _levels(format, dtype, codes.device)[codes.to(torch.int64)].to(dtype)
    _check_held(format, dtype)
    result: Tensor = kernels.decode(codes, list(_encoding(format)), dtype)
    return result


def fits(format: TableFormat, dtype: torch.dtype) -> bool:
    """Whether a carrier holds every number of the set."""
    return dtype == torch.float64 or format.in_binary32


def _check_held(format: TableFormat, dtype: torch.dtype) -> None:
    if not fits(format, dtype):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} cannot hold every value of {format!r}: use float64")


def _encoding(format: Posit) -> Encoding:
    nar = 1 << (format.bits - 1)
    return Encoding(0, format.es, format.bits, 1, 0, 0, 0, 0, nar)
