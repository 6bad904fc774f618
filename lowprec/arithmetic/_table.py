"""Rounding of tensors to posits and levels, and their codes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from ..formats import Levels, Posit
from ..kernels.portable import linear_index
from ..kernels.tables import TableCode, round_to_table
from ..random import philox_words
from ..rounding import RoundingMode, Variant
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
            NotImplementedError: to torch.compile, which cannot trace the tables.
        """
        if torch.compiler.is_compiling():
            raise NotImplementedError(
                "rounding to posits or levels cannot be compiled: without "
                "fullgraph=True, torch.compile runs this part uncompiled"
            )
        chosen = self.rounding
        words = None
        if seed is not None:
            if chosen.mode is RoundingMode.STOCHASTIC:
                _check_gaps(chosen.format)
            words = philox_words(linear_index(x, offset), seed)
        return round_to_table(
            x,
            table_code(chosen.format, x.dtype, x.device),
            list(RoundingMode).index(chosen.mode),
            chosen.random_bits,
            list(Variant).index(chosen.variant),
            words,
        )


@functools.lru_cache(maxsize=64)
def table_code(
    format: TableFormat, dtype: torch.dtype, device: torch.device
) -> TableCode:
    """Return a set of numbers as tensors.

    Raises:
        ValueError: if ``dtype`` does not hold the numbers.
    """
    table = format.table
    values = torch.tensor(table.values, dtype=torch.float64)
    if not torch.equal(values.to(dtype).to(torch.float64), values):
        raise ValueError(
            f"{str(dtype).removeprefix('torch.')} cannot hold every value of "
            f"{format!r}: use float64"
        )
    odd = (False,) * len(values) if table.odd is None else table.odd
    return TableCode(
        values.to(device),
        torch.tensor([_rounded_up(t) for t in table.ties], dtype=torch.float64).to(
            device
        ),
        torch.tensor([Fraction(float(t)) == t for t in table.ties]).to(device),
        torch.tensor(table.upper).to(device),
        torch.tensor(odd).to(device),
        table.infinite == "nan",
    )


def _rounded_up(value: Fraction) -> float:
    """Return the smallest float that is not below a number."""
    nearest = float(value)
    return math.nextafter(nearest, math.inf) if nearest < value else nearest


@functools.lru_cache(maxsize=64)
def _check_gaps(format: TableFormat) -> None:
    """Refuse levels whose distances float64 rounds: probabilities would be wrong."""
    for a, b in pairwise(format.table.values):
        gap = b - a
        if math.isinf(gap) or Fraction(gap) != Fraction(b) - Fraction(a):
            raise ValueError(
                f"stochastic rounding needs levels whose distances float64 holds, "
                f"unlike those of {a!r} and {b!r}: round the levels first"
            )


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
