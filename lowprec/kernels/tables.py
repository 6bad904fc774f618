"""Rounding to a finite set of numbers, by search and exact comparisons.

`lowprec.testing.exact_table_round` says the same in fractions. Results of operations
come here rounded to odd to 53 bits, which compares with every number of at most 52 bits
as the exact result does: with those at which the rounding changes its mind too.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..formats import Levels, Posit
from . import codes
from .chance import stochastic_threshold
from .codes import RoundingCode
from .exact import two_product, two_sum

# Between numbers this far inside of the range, ties and the thresholds of stochastic
# roundings lie inside of it too: they have at most 86 binades less than the numbers.
_MARGIN = 100
_NEAREST = (codes.NEAREST_EVEN, codes.NEAREST_AWAY, codes.NEAREST_ZERO)


class TableCode(NamedTuple):
    """A set of numbers as float64 tensors, all on one device.

    Args:
        values: [N] numbers, ascending.
        ties: [N - 1] ties between neighbours, rounded up to float64.
        exact: [N - 1] whether float64 holds the tie.
        upper: [N - 1] whether ``nearest_even`` takes the tie up.
        odd: [N] whether the code is odd.
        infinite_is_nan: whether infinity becomes NaN, rather than an end.
        single: whether float32 holds every value.
    """

    values: Tensor
    ties: Tensor
    exact: Tensor
    upper: Tensor
    odd: Tensor
    infinite_is_nan: bool
    single: bool


def _set_of(flags: int, numbers: tuple[int, ...]) -> Posit | Levels:
    """Return the set that the integers of a code define."""
    if flags & codes.POSIT:
        return Posit(*numbers)
    count = len(numbers)
    return Levels(struct.unpack(f"<{count}d", struct.pack(f"<{count}q", *numbers)))


@functools.lru_cache(maxsize=64)
def _table(flags: int, numbers: tuple[int, ...], device: torch.device) -> TableCode:
    target = _set_of(flags, numbers)
    table = target.table
    values = torch.tensor(table.values, dtype=torch.float64)
    ties = [_rounded_up(tie) for tie in table.ties]
    exact = [Fraction(up) == tie for up, tie in zip(ties, table.ties, strict=True)]
    odd = (False,) * len(values) if table.odd is None else table.odd
    return TableCode(
        values.to(device),
        torch.tensor(ties, dtype=torch.float64, device=device),
        torch.tensor(exact, dtype=torch.bool, device=device),
        torch.tensor(table.upper, dtype=torch.bool, device=device),
        torch.tensor(odd, device=device),
        table.infinite == "nan",
        target.in_binary32,
    )


def _rounded_up(value: Fraction) -> float:
    """Return the smallest float that is not below a number."""
    nearest = float(value)
    return math.nextafter(nearest, math.inf) if nearest < value else nearest


def table_of(
    flags: int, numbers: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> TableCode:
    """Return the set of numbers of a code, of which these are parts.

    Raises:
        ValueError: if ``dtype`` does not hold the numbers.
    """
    table = _table(flags, numbers, device)
    if dtype == torch.float32 and not table.single:
        raise ValueError(
            f"float32 cannot hold every value of {_set_of(flags, numbers)!r}: use "
            "float64"
        )
    return table


@functools.lru_cache(maxsize=64)
def _check_gaps(numbers: tuple[int, ...]) -> None:
    """Refuse levels whose distances float64 rounds: probabilities would be wrong."""
    for a, b in pairwise(_set_of(codes.LEVELS, numbers).table.values):
        gap = b - a
        if math.isinf(gap) or Fraction(gap) != Fraction(b) - Fraction(a):
            raise ValueError(
                f"stochastic rounding needs levels whose distances float64 holds, "
                f"unlike those of {a!r} and {b!r}: round the levels first"
            )


def check_decidable(code: Sequence[int]) -> None:
    """Refuse a code whose set of numbers results rounded to odd do not decide.

    Contract:
        A number rounded to odd to 53 bits lies on the same side as before of every
        number of at most 52 bits, and equals it only if it did. The numbers of the set
        are compared with, and its ties in nearest modes; what has 53 bits, its last one
        set, or more, is refused. Posits of 16 bits have at most 15.

    Raises:
        NotImplementedError: saying which number has too many bits, or is too large or
            too small.
    """
    named = codes.decode(code)
    if named.flags & codes.LEVELS:
        most = named.emax - _MARGIN
        _check_levels(codes.numbers_of(code), named.mode in _NEAREST, most)


@functools.lru_cache(maxsize=64)
def _check_levels(numbers: tuple[int, ...], nearest: bool, most: int) -> None:
    table = _table(codes.LEVELS, numbers, torch.device("cpu"))
    size = table.values.abs()
    bad = [
        (size >= 2.0**most) | ((size > 0) & (size < 2.0**-most)),
        table.values.view(torch.int64) & 1 == 1,
    ]
    if nearest:
        bad.append(~table.exact | (table.ties.view(torch.int64) & 1 == 1))
    for wrong in bad:
        for place in wrong.nonzero().flatten().tolist()[:1]:
            near = table.values[place : place + 1 + (len(wrong) < len(size))]
            raise NotImplementedError(
                "arithmetic rounds correctly to levels that have at most 52 "
                f"significant bits and a magnitude of 0 or 2^-{most} to 2^{most}, and "
                "to nearest where mid-points have no more bits either, unlike "
                f"{' and '.join(map(repr, near.tolist()))}: round the levels first, "
                "for example to fixed point"
            )


def round_to_table(
    x: Tensor, code: RoundingCode, numbers: tuple[int, ...], words: Tensor | None
) -> Tensor:
    """Round every element to a number of the set.

    Args:
        x: float32 or float64 tensor; its dtype holds the numbers.
        code: of a table.
        numbers: `codes.numbers_of` it.
        words: int64 tensor of ``x``'s shape with 32-bit words; stochastic modes only.

    Returns:
        A new tensor of ``x``'s dtype and shape.

    Raises:
        ValueError: if ``dtype`` does not hold the numbers, words are missing, or
            the distances of levels are no float64 numbers in a stochastic mode.
    """
    table = table_of(code.flags, numbers, x.dtype, x.device)
    mode = code.mode
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
        if mode == codes.STOCHASTIC and code.flags & codes.LEVELS:
            _check_gaps(numbers)
        up = _up_at_random(inside, low, high, code, words)
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
    code: RoundingCode,
    words: Tensor,
) -> Tensor:
    """Decide likewise at random: the fraction is counted from the end nearer to 0."""
    below = high <= 0
    if code.mode == codes.STOCHASTIC_EQUAL:
        return (words >= 1 << 31) ^ below
    count, bits, strict = stochastic_threshold(code.random_bits, code.variant, words)
    start = torch.where(below, high, low)
    distance, error = two_sum(x, -start)
    sign = torch.where(below, -1.0, 1.0)
    distance, error = distance * sign, error * sign
    reached, rest = two_product(high - low, count.to(torch.float64) * 2.0**-bits)
    equal = distance == reached
    away = (distance > reached) | (equal & (error > rest))
    away = away | (equal & (error == rest) & ~strict)
    return away ^ below
