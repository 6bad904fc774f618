"""Rounding of tensors to posits and levels, and their codes."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..formats import Levels, Posit
from ..kernels import Encoding
from ..kernels.portable import CARRIERS
from ..kernels.tables import eager_round_levels, level_numbers
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
            levels = chosen.format.values
            return eager_round_levels(x, levels, mode, bits, variant, seed, offset)
        _check_held(chosen.format, x.dtype)
        if seed is None:
            return kernels.eager_round(x, code)
        return kernels.eager_round_stochastic(x, code, seed, offset)


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
    rounded = ToTable(TableRounding(format)).apply(x, None, 0)
    integer = CARRIERS[x.dtype].integer
    kept = torch.equal(rounded.view(integer), x.view(integer))
    if not kept or (isinstance(format, Levels) and bool(x.isnan().any())):
        _check_members(x, rounded, format)
    if isinstance(format, Posit):
        result: Tensor = kernels.encode(x, list(_encoding(format)), dtype)
        return result
    levels = _levels(format, x.dtype, x.device)
    return level_numbers(x, levels).to(dtype)


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


def _largest_exponent(format: Posit) -> int:
    """Return log2 of the largest posit, without the table of all of them."""
    return (format.bits - 2) << format.es


def fits(format: TableFormat, dtype: torch.dtype) -> bool:
    """Whether a carrier holds every number of the set."""
    if dtype == torch.float64:
        return True
    if isinstance(format, Posit):
        return _largest_exponent(format) <= 127
    values = torch.tensor(format.values, dtype=torch.float64)
    return torch.equal(values.to(dtype).to(torch.float64), values)


def _check_held(format: TableFormat, dtype: torch.dtype) -> None:
    if not fits(format, dtype):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} cannot hold every value of {format!r}: use float64")


def _encoding(format: Posit) -> Encoding:
    nar = 1 << (format.bits - 1)
    return Encoding(0, format.es, format.bits, 1, 0, 0, 0, 0, nar)
