"""Rounding to levels, by search and exact comparisons.

In a deterministic mode the result is a step function: where its steps are is found
once, and a search does the rest. `lowprec.testing.exact_table_round` says the same in
fractions. Results of operations come here rounded to odd to 53 bits, which compares
with every number of at most 52 bits as the exact result does: with those at which the
rounding changes its mind too.
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

from . import codes
from .codes import RoundingCode
from .deciding import up_between

# Beyond these, distances and their products may be no normal float64 numbers.
_FARTHEST, _NEAREST = 2.0**960, 2.0**-900
# Between numbers this far inside of the range, ties and the thresholds of stochastic
# roundings lie inside of it too: they have at most 86 binades less than the numbers.
_MARGIN = 100
_TO_NEAREST = (codes.NEAREST_EVEN, codes.NEAREST_AWAY, codes.NEAREST_ZERO)


@functools.lru_cache(maxsize=64)
def values_of(numbers: tuple[int, ...]) -> tuple[float, ...]:
    """Return the levels whose float64 bits these are."""
    count = len(numbers)
    return struct.unpack(f"<{count}d", struct.pack(f"<{count}q", *numbers))


class Table(NamedTuple):
    """Levels, ascending, and what deciding between them takes.

    Args:
        levels: [N] levels in the carrier.
        steps: [N - 1] smallest numbers of the carrier that become the next level;
            of stochastic modes, the next levels themselves.
        moderate: whether no product of distances leaves float64's normal numbers.
    """

    levels: Tensor
    steps: Tensor
    moderate: bool


def _step(low: float, high: float, mode: int) -> tuple[Fraction, bool]:
    """Return where numbers begin to become ``high``, and whether from there on."""
    if mode == codes.TOWARD_ZERO:
        inward = abs(high) <= abs(low)
        mode = codes.TOWARD_POSITIVE if inward else codes.TOWARD_NEGATIVE
    if mode == codes.TOWARD_POSITIVE:
        return Fraction(low), False
    if mode == codes.TOWARD_NEGATIVE or mode >= codes.STOCHASTIC:
        return Fraction(high), True
    tie = (Fraction(low) + Fraction(high)) / 2
    if mode == codes.NEAREST_EVEN:
        return tie, True
    return tie, tie >= 0 if mode == codes.NEAREST_AWAY else tie < 0


def _steps(levels: tuple[float, ...], mode: int, dtype: torch.dtype) -> Tensor:
    """Return the smallest numbers of the carrier that become the next level."""
    exact = [_step(a, b, mode) for a, b in pairwise(levels)]
    near = torch.tensor([float(value) for value, _ in exact], dtype=dtype)
    reached = [
        x > value or (x == value and included)
        for x, (value, included) in zip(near.tolist(), exact, strict=True)
    ]
    above = near.nextafter(torch.full_like(near, math.inf))
    return torch.where(torch.tensor(reached, dtype=torch.bool), near, above)


@functools.lru_cache(maxsize=64)
def prepared(
    numbers: tuple[int, ...], mode: int, dtype: torch.dtype, device: torch.device
) -> Table:
    """Return levels as tensors.

    Args:
        numbers: `codes.numbers_of` the code.
        mode: of the rounding.
        dtype: of what is rounded.
        device: likewise.

    Raises:
        ValueError: if the carrier does not hold them, or probabilities would be wrong.
    """
    levels = values_of(numbers)
    wide = torch.tensor(levels, dtype=torch.float64)
    given = wide.to(dtype)
    if not torch.equal(given.to(torch.float64), wide):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} cannot hold every value of these levels: use float64")
    for a, b in pairwise(levels) if mode == codes.STOCHASTIC else ():
        gap = b - a
        if math.isinf(gap) or Fraction(gap) != Fraction(b) - Fraction(a):
            raise ValueError(
                "stochastic rounding needs levels whose distances float64 holds, "
                f"unlike those of {a!r} and {b!r}: round the levels first"
            )
    least = min((b - a for a, b in pairwise(levels)), default=1.0)
    moderate = least > _NEAREST and levels[-1] - levels[0] < _FARTHEST
    steps = _steps(levels, mode, dtype)
    return Table(given.to(device), steps.to(device), moderate)


def check_decidable(code: Sequence[int]) -> None:
    """Refuse levels between which results rounded to odd do not decide.

    Contract:
        A number rounded to odd to 53 bits lies on the same side as before of every
        number of at most 52 bits, and equals it only if it did. Levels are compared
        with, and their ties in nearest modes; more bits are refused. Posits, of at most
        32 bits, and their ties have at most 31.

    Raises:
        NotImplementedError: saying which number has too many bits, or is too large or
            too small.
    """
    named = codes.decode(code)
    if named.flags & codes.LEVELS:
        most = named.emax - _MARGIN
        _check_levels(codes.numbers_of(code), named.mode in _TO_NEAREST, most)


@functools.lru_cache(maxsize=64)
def _check_levels(numbers: tuple[int, ...], nearest: bool, most: int) -> None:
    levels = [Fraction(level) for level in values_of(numbers)]
    smallest, largest = Fraction(2) ** -most, Fraction(2) ** most
    wrong = [
        [level]
        for level in levels
        if (level and not smallest <= abs(level) < largest) or not _is_short(level)
    ]
    if nearest:
        wrong += [[a, b] for a, b in pairwise(levels) if not _is_short((a + b) / 2)]
    if wrong:
        given = " and ".join(repr(float(level)) for level in wrong[0])
        raise NotImplementedError(
            "arithmetic rounds correctly to levels that have at most 52 significant "
            f"bits and a magnitude of 0 or 2^-{most} to 2^{most}, and to nearest where "
            f"mid-points have no more bits either, unlike {given}: round the levels "
            "first, for example to fixed point"
        )


def _is_short(value: Fraction) -> bool:
    """Whether a sum of floats has at most 52 significant bits."""
    count = abs(value.numerator)
    return count == 0 or (count // (count & -count)).bit_length() <= 52


def round_to_levels(
    x: Tensor, code: RoundingCode, numbers: tuple[int, ...], words: Tensor | None
) -> Tensor:
    """Round every element to a level.

    Args:
        x: float32 or float64 tensor; its dtype holds the levels.
        code: of levels.
        numbers: `codes.numbers_of` it.
        words: int64 tensor of ``x``'s shape with 32-bit words; stochastic modes only.

    Returns:
        A new contiguous tensor of ``x``'s dtype and shape; NaN stays NaN.

    Raises:
        ValueError: if the dtype does not hold the levels, words are missing, or the
            distances of levels are no float64 numbers in a stochastic mode.
    """
    table = prepared(numbers, code.mode, x.dtype, x.device)
    levels, last = table.levels, len(table.levels) - 1
    x = x.contiguous()
    index = torch.bucketize(x, table.steps, right=True)
    if not code.stochastic or last == 0:
        result = levels[index]
    elif words is None:
        raise ValueError("a stochastic rounding needs random words")
    else:
        index = index.clamp(max=last - 1)
        low, high = levels[index], levels[index + 1]
        inside = x.clamp(levels[0], levels[-1])
        up = up_between(inside.double(), low.double(), high.double(), code, words)
        result = torch.where((up & (inside != low)) | (inside == high), high, low)
    return torch.where(x.isnan(), x, result)
