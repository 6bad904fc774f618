"""Rounding of tensors to posits and levels, and their codes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..formats import Levels, Posit
from ..kernels.portable import CARRIERS
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
        if code[2] > CARRIERS[x.dtype].bias:
            raise ValueError(
                f"float32 cannot hold every value of {chosen.format!r}: use float64"
            )
        if seed is None:
            return kernels.eager_round(x, code)
        return kernels.eager_round_stochastic(x, code, seed, offset)


@functools.lru_cache(maxsize=64)
def _values(format: TableFormat, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the numbers of a set as float64.

    Raises:
        ValueError: if ``dtype`` does not hold them.
    """
    values = torch.tensor(format.table.values, dtype=torch.float64)
    if not torch.equal(values.to(dtype).to(torch.float64), values):
        raise ValueError(
            f"{str(dtype).removeprefix('torch.')} cannot hold every value of "
            f"{format!r}: use float64"
        )
    return values.to(device)


def encode_table(x: Tensor, format: TableFormat, dtype: torch.dtype) -> Tensor:
    """Return the codes of values of the set, which the caller has checked to be such.

    Raises:
        ValueError: if an element is no value.
    """
    values = _values(format, torch.float64, x.device)
    wide = x.detach().to(torch.float64)
    index = torch.searchsorted(values, wide.contiguous())
    index = index.clamp(max=len(values) - 1)
    known = (values[index] == wide) & ~((wide == 0) & wide.signbit())
    code = index
    if isinstance(format, Posit):
        known = known | wide.isnan()
        code = (index - len(values) // 2) & ((1 << format.bits) - 1)
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
    values = _values(format, dtype, codes.device)
    index = codes.to(torch.int64)
    if isinstance(format, Levels):
        return values[index].to(dtype)
    index = (index + len(values) // 2) & ((1 << format.bits) - 1)
    missing = index == len(values)  # NaR is one beyond the largest
    found = values[index.clamp(max=len(values) - 1)]
    return torch.where(missing, math.nan, found).to(dtype)
