"""Rounding of tensors to posits and levels, and their codes."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..formats import Levels, Posit
from ..kernels import Encoding
from ..kernels.tables import round_levels
from ..table_rounding import TableFormat, TableRounding


@dataclass(frozen=True)
class ToTable:
    """A rounding to posits or levels, with nothing that depends on the tensor."""

    rounding: TableRounding

    @property
    def stochastic(self) -> bool:
        """Whether results depend on random bits."""
        return self.rounding.stochastic

    def apply(self, x: Tensor, seed: Tensor | None, offset: int) -> Tensor:
        """Round without autograd.

        Raises:
            ValueError: if the carrier does not hold the numbers.
        """
        chosen = self.rounding
        code = chosen.code
        if isinstance(chosen.format, Levels):
            mode, _, bits, variant = code[5:]
            levels = list(chosen.format.values)
            result: Tensor = round_levels(x, levels, mode, bits, variant, seed, offset)
            return result
        _check_held(chosen.format, x.dtype)
        if seed is None:
            return kernels.eager_round(x, code)
        return kernels.eager_round_stochastic(x, code, seed, offset)


@functools.lru_cache(maxsize=64)
def _levels(format: Levels, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the numbers of a set as float64.

    Raises:
        ValueError: if ``dtype`` does not hold them.
    """
    values = torch.tensor(format.values, dtype=torch.float64)
    if not torch.equal(values.to(dtype).to(torch.float64), values):
        raise ValueError(
            f"{str(dtype).removeprefix('torch.')} cannot hold every value of "
            f"{format!r}: use float64"
        )
    return values.to(device)


def encode_table(x: Tensor, format: TableFormat, dtype: torch.dtype) -> Tensor:
    """Return the codes of values of the set.

    Raises:
        ValueError: if an element is no value.
    """
    x = x.detach()
    if isinstance(format, Posit):
        wide = x.to(torch.float64) if _largest_exponent(format) > 127 else x
        rounded = kernels.eager_round(wide, TableRounding(format).code)
        known = ((rounded == wide) & ~((x == 0) & x.signbit())) | x.isnan()
        _require(known, x, format)
        result: Tensor = kernels.encode(wide, list(_encoding(format)), dtype)
        return result
    values = _levels(format, torch.float64, x.device)
    wide = x.to(torch.float64)
    index = torch.searchsorted(values, wide.contiguous())
    index = index.clamp(max=len(values) - 1)
    _require((values[index] == wide) & ~((wide == 0) & wide.signbit()), x, format)
    return index.to(dtype)


def _require(known: Tensor, x: Tensor, format: TableFormat) -> None:
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


def _largest_exponent(format: Posit) -> int:
    """Return log2 of the largest posit, without the table of all of them."""
    return (format.bits - 2) << format.es


def _check_held(format: Posit, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and _largest_exponent(format) > 127:
        raise ValueError(f"float32 cannot hold every value of {format!r}: use float64")


def _encoding(format: Posit) -> Encoding:
    nar = 1 << (format.bits - 1)
    return Encoding(0, format.es, format.bits, 1, 0, 0, 0, 0, nar)
