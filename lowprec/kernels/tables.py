"""Rounding to a finite set of numbers, by search and exact comparisons.

`lowprec.testing.exact_table_round` says the same in fractions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import codes
from .exact import two_product, two_sum
from .portable import stochastic_threshold


class TableCode(NamedTuple):
    """A set of numbers as float64 tensors, all on one device.

    Args:
        values: [N] numbers, ascending.
        ties: [N - 1] ties between neighbours, rounded up to float64.
        exact: [N - 1] whether float64 holds the tie.
        upper: [N - 1] whether ``nearest_even`` takes the tie up.
        odd: [N] whether the code is odd.
        infinite_is_nan: whether infinity becomes NaN, rather than an end.
    """

    values: Tensor
    ties: Tensor
    exact: Tensor
    upper: Tensor
    odd: Tensor
    infinite_is_nan: bool


def round_to_table(
    x: Tensor,
    table: TableCode,
    mode: int,
    random_bits: int,
    variant: int,
    words: Tensor | None,
) -> Tensor:
    """Round every element to a number of the set.

    Args:
        x: float32 or float64 tensor; its dtype holds the numbers.
        table: the set.
        mode: NEAREST_EVEN to STOCHASTIC_EQUAL.
        random_bits: of stochastic modes.
        variant: VARIANT_A, VARIANT_B or VARIANT_C.
        words: int64 tensor of ``x``'s shape with 32-bit words; stochastic modes only.

    Returns:
        A new tensor of ``x``'s dtype and shape.
    """
    given = x.to(torch.float64)
    values, last = table.values, len(table.values) - 1
    inside = given.clamp(values[0], values[-1])
    upper = torch.searchsorted(values, inside.contiguous()).clamp(max=last)
    lower = torch.where(values[upper] == inside, upper, upper - 1).clamp(min=0)
    low, high = values[lower], values[upper]
    if last == 0:
        up = torch.zeros_like(inside, dtype=torch.bool)
    elif mode in (codes.STOCHASTIC, codes.STOCHASTIC_EQUAL):
        if words is None:
            raise ValueError("a stochastic rounding needs random words")
        up = _up_at_random(inside, low, high, mode, random_bits, variant, words)
    else:
        up = _up(inside, lower, upper, table, mode)
    result = torch.where(up & (inside != low), high, low)
    missing = given.isnan() | (given.isinf() & table.infinite_is_nan)
    return torch.where(missing, torch.nan, result).to(x.dtype)


def _up(x: Tensor, lower: Tensor, upper: Tensor, table: TableCode, mode: int) -> Tensor:
    """Decide whether x goes to its upper neighbour, in a deterministic mode."""
    if mode == codes.TOWARD_POSITIVE:
        return torch.ones_like(x, dtype=torch.bool)
    if mode == codes.TOWARD_NEGATIVE:
        return torch.zeros_like(x, dtype=torch.bool)
    if mode == codes.TOWARD_ZERO:
        return table.values[upper].abs() <= table.values[lower].abs()
    if mode == codes.TO_ODD:
        return ~table.odd[lower]
    gap = lower.clamp(max=len(table.ties) - 1)
    tie = table.ties[gap]
    if mode == codes.NEAREST_EVEN:
        upward = table.upper[gap]
    elif mode == codes.NEAREST_AWAY:
        upward = tie >= 0
    else:
        upward = tie < 0
    # Where float64 is above the tie, reaching it is exceeding the tie.
    return (x > tie) | ((x == tie) & (upward | ~table.exact[gap]))


def _up_at_random(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    mode: int,
    random_bits: int,
    variant: int,
    words: Tensor,
) -> Tensor:
    """Decide likewise at random: the fraction is counted from the end nearer to 0."""
    below = high <= 0
    if mode == codes.STOCHASTIC_EQUAL:
        return (words >= 1 << 31) ^ below
    count, bits, strict = stochastic_threshold(random_bits, variant, words)
    start = torch.where(below, high, low)
    distance, error = two_sum(x, -start)
    sign = torch.where(below, -1.0, 1.0)
    distance, error = distance * sign, error * sign
    reached, rest = two_product(high - low, count.to(torch.float64) * 2.0**-bits)
    equal = distance == reached
    away = (distance > reached) | (equal & (error > rest))
    away = away | (equal & (error == rest) & ~strict)
    return away ^ below
