"""Rounding to a finite set of numbers, by search and exact comparisons.

In a deterministic mode the result is a step function: where its steps are is found
once, and a search does the rest. `lowprec.testing.exact_table_round` says the same in
fractions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..random import philox_words
from . import codes, native_tables
from ._library import is_plain, native_serves, unobserved
from .deciding import stochastic_threshold
from .exact import two_product, two_sum
from .portable import linear_index

# Beyond these, distances and their products may be no normal float64 numbers.
_FARTHEST, _NEAREST = 2.0**960, 2.0**-900


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
def _prepared(
    levels: tuple[float, ...], mode: int, dtype: torch.dtype, device: torch.device
) -> Table:
    """Return levels as tensors.

    Raises:
        ValueError: if the carrier does not hold them, or probabilities would be wrong.
    """
    wide = torch.tensor(levels, dtype=torch.float64)
    given = wide.to(dtype)
    if not torch.equal(given.to(torch.float64), wide):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} cannot hold every value of {levels}: use float64")
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


def _portable(
    x: Tensor,
    levels: Sequence[float],
    mode: int,
    random_bits: int,
    variant: int,
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    table = _prepared(tuple(levels), mode, x.dtype, x.device)
    x = x.contiguous()
    index = torch.bucketize(x, table.steps, right=True)
    if seed is not None and len(levels) > 1:
        words = philox_words(linear_index(x, offset), seed)
        index = index.clamp(max=len(levels) - 2)
        low, high = table.levels[index], table.levels[index + 1]
        inside = x.clamp(levels[0], levels[-1])
        wide = (inside.double(), low.double(), high.double())
        up = _up_at_random(*wide, mode, random_bits, variant, words)
        result = torch.where((up & (inside != low)) | (inside == high), high, low)
    else:
        result = table.levels[index]
    return torch.where(x.isnan(), math.nan, result)


def _up_at_random(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    mode: int,
    random_bits: int,
    variant: int,
    words: Tensor,
) -> Tensor:
    """Decide between neighbours: the fraction is counted from the end nearer to 0."""
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


def _on_cpu(
    x: Tensor,
    levels: Sequence[float],
    mode: int,
    random_bits: int,
    variant: int,
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    table = _prepared(tuple(levels), mode, x.dtype, x.device)
    if not native_serves() or (mode == codes.STOCHASTIC and not table.moderate):
        return _portable(x, levels, mode, random_bits, variant, seed, offset)
    if seed is None:
        return native_tables.round_levels(x, table.levels, table.steps)
    return native_tables.sample_levels(
        x, table.levels, table.steps, mode, random_bits, variant, seed, offset
    )


def level_numbers(x: Tensor, levels: Tensor) -> Tensor:
    """Return the numbers, from 0, of the last levels that are not above x.

    Args:
        x: float32 or float64 tensor.
        levels: [N] levels, ascending, of the same dtype and device, at most 2^24.

    Returns:
        Integers, of some dtype.
    """
    if not (x.is_cpu and native_serves()):
        return torch.bucketize(x, levels[1:], right=True)
    numbers = torch.arange(len(levels), dtype=x.dtype)
    return native_tables.round_levels(x, numbers, levels[1:])


def _fake(
    x: Tensor,
    levels: Sequence[float],
    mode: int,
    random_bits: int,
    variant: int,
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


_LIBRARY = torch.library.Library("lowprec", "FRAGMENT")
_LIBRARY.define(
    "round_levels(Tensor x, float[] levels, int mode, int random_bits, int variant, "
    "Tensor? seed, SymInt offset) -> Tensor"
)
_LIBRARY.impl("round_levels", _portable, "CompositeExplicitAutograd")
_LIBRARY.impl("round_levels", _on_cpu, "CPU")
_LIBRARY.impl("round_levels", _fake, "Meta")

round_levels = torch.ops.lowprec.round_levels.default


def eager_round_levels(
    x: Tensor,
    levels: tuple[float, ...],
    mode: int,
    random_bits: int,
    variant: int,
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    """Call `round_levels`, without the dispatcher where nothing needs it.

    Args:
        x: float32 or float64 tensor; gradients are the caller's.
        levels: finite numbers, ascending.
        mode: NEAREST_EVEN to STOCHASTIC_EQUAL, but TO_ODD; ties go up.
        random_bits: of stochastic modes.
        variant: VARIANT_A, VARIANT_B or VARIANT_C.
        seed: key of the random words, 0-d int64; None in deterministic modes.
        offset: linear index of the first element.

    Returns:
        A new contiguous tensor.

    Raises:
        ValueError: if the carrier does not hold the levels, or float64 not their
            distances, which stochastic rounding needs.
    """
    if unobserved(x) and (seed is None or is_plain(seed)):
        return _on_cpu(x, levels, mode, random_bits, variant, seed, offset)
    given = (mode, random_bits, variant, seed, offset)
    result: Tensor = round_levels(x, list(levels), *given)
    return result


@torch.library.register_vmap("lowprec::round_levels", lib=_LIBRARY)
def _vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    levels: Sequence[float],
    mode: int,
    random_bits: int,
    variant: int,
    seed: Tensor | None,
    offset: int,
) -> tuple[Tensor, int]:
    given = (levels, mode, random_bits, variant)
    if seed is None:
        return round_levels(x, *given, None, offset), in_dims[0]
    # Element indices count inside one example, as in `round_stochastic`.
    size = info.batch_size
    xs = x.expand(size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
    seeds = seed.expand(size) if in_dims[5] is None else seed
    rows = [
        round_levels(x_i, *given, seed_i, offset)
        for x_i, seed_i in zip(xs.unbind(), seeds.unbind(), strict=True)
    ]
    return torch.stack(rows) if rows else torch.empty_like(xs), 0
