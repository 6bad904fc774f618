"""Quantization sets on tensors: nearest levels and cells, per tensor or coordinate."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from ..formats import Levels
from ..kernels.exact import two_sum

LevelsLike: TypeAlias = Levels | Tensor


@dataclass(frozen=True, eq=False)
class LevelTable:
    """Levels in the dtype and on the device of the weights.

    ``values`` is [K], or [..., K] with leading dimensions that broadcast against the
    weights and rows padded by inf; ``thresholds`` are the mid-points, rounded up.
    """

    values: Tensor
    thresholds: Tensor

    @property
    def shared(self) -> bool:
        """Whether every coordinate has the same levels."""
        return self.values.dim() == 1

    @property
    def first(self) -> Tensor:
        """Lowest level, of the weights' broadcastable shape."""
        return self.values[..., 0]

    @cached_property
    def last(self) -> Tensor:
        """Highest level, likewise."""
        return self.values.where(self.values.isfinite(), -math.inf).amax(-1)

    @cached_property
    def count(self) -> Tensor:
        """How many levels there are, likewise."""
        return self.values.isfinite().sum(-1)

    @cached_property
    def spacing(self) -> float:
        """Distance of levels of which cells are found by exact arithmetic; else 0.

        They are shared, equidistant, multiples of their distance, and that is a power
        of two of at most 1.
        """
        values = self.values.tolist() if self.shared else []
        gap = values[1] - values[0] if len(values) > 1 else 0.0
        if not 2.0**-64 <= gap <= 1 or math.frexp(gap)[0] != 0.5:
            return 0.0
        numbers = [value / gap for value in values]
        whole = all(n == numbers[0] + j for j, n in enumerate(numbers))
        exact = numbers[0].is_integer() and max(map(abs, numbers)) < 2**20
        return gap if whole and exact else 0.0

    def cell(self, w: Tensor) -> Tensor:
        """Return the int64 numbers j of the cells q_j <= w < q_(j+1)."""
        return _count(w, self.values)

    def bounds(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the cells; those of the outermost beyond the hull."""
        if self.values.shape[-1] == 1:
            return self.first.expand(w.shape), self.first.expand(w.shape)
        if self.shared and self.values.shape[-1] == 2:
            return self.values[0].expand(w.shape), self.values[1].expand(w.shape)
        upper = self.cell(w).clamp_(min=1)
        upper = torch.minimum(upper, (self.count - 1).clamp(min=1))
        return self.level(upper - 1), self.level(upper)

    def level(self, index: Tensor) -> Tensor:
        """Return the levels with these numbers, from 0."""
        if self.shared:
            return self.values[index]
        rows = self.values.expand(*index.shape, self.values.shape[-1])
        return rows.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    def nearest(self, w: Tensor) -> Tensor:
        """Return the nearest levels; NaN stays."""
        if self.shared and len(self.values) == 2:
            upper = w >= self.thresholds[0]
            level = torch.where(upper, self.values[1], self.values[0])
        else:
            number = _count(w, self.thresholds)
            # Shorter rows end in thresholds of inf, which w = inf reaches.
            level = self.level(torch.minimum(number, self.count - 1))
        return torch.where(w.isnan(), w, level)


def _count(w: Tensor, bounds: Tensor) -> Tensor:
    """Return how many bounds are at most w."""
    if bounds.dim() == 1:
        return torch.bucketize(w, bounds, right=True)
    count = torch.zeros(w.shape, dtype=torch.int64, device=w.device)
    for bound in bounds.unbind(-1):
        count += w >= bound
    return count


def level_table(levels: LevelsLike, w: Tensor) -> LevelTable:
    """Return the levels as tensors for the weights ``w``.

    Args:
        levels: one set for all coordinates, or a tensor [..., K] whose leading
            dimensions broadcast against ``w``; shorter rows end in inf.
        w: weights; dtype, device and shape count.

    Raises:
        TypeError: if ``levels`` is neither, or ``w`` is not float32 or float64.
        ValueError: if levels do not increase strictly in the dtype of ``w``, or do
            not broadcast.
    """
    if w.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            "weights with levels must be float32 or float64, because steps between "
            f"levels are lost in {str(w.dtype).removeprefix('torch.')}: use "
            "model.float()"
        )
    if isinstance(levels, Levels):
        return _shared_table(levels, w.dtype, w.device)
    if not isinstance(levels, Tensor):
        raise TypeError(
            f"levels must be lowprec.Levels or a tensor, got {type(levels).__name__}: "
            "use Levels.binary() or Levels([...])"
        )
    if levels.dim() == 0 or levels.shape[-1] == 0:
        raise ValueError("levels must have at least one value, got none")
    if levels.dim() == 1:
        return level_table(Levels.from_levels(levels.tolist()), w)
    try:
        rows = torch.broadcast_shapes(levels.shape[:-1], w.shape)
    except RuntimeError:
        rows = torch.Size()
    if rows != w.shape:
        raise ValueError(
            f"levels of shape {tuple(levels.shape)} do not fit weights of shape "
            f"{tuple(w.shape)}: give [K], or [..., K] with leading dimensions that "
            "broadcast against the weights"
        )
    values = levels.detach().to(w)
    lower, upper = values[..., :-1], values[..., 1:]
    rising = (lower < upper) | (lower.isposinf() & upper.isposinf())
    if not bool(values[..., 0].isfinite().all() and rising.all()):
        raise ValueError(
            f"levels must be finite and strictly increasing along their last dimension "
            f"in {str(w.dtype).removeprefix('torch.')}, with inf behind shorter rows: "
            "sort them and drop duplicates"
        )
    # Halves first: the sum of two large levels may overflow.
    middle, error = two_sum(lower.to(torch.float64) / 2, upper.to(torch.float64) / 2)
    middle = torch.where(error > 0, middle.nextafter(middle + math.inf), middle)
    return LevelTable(values, _rounded_up(middle, w.dtype))


@functools.cache
def _shared_table(
    levels: Levels, dtype: torch.dtype, device: torch.device
) -> LevelTable:
    values = torch.tensor(levels.values, dtype=dtype)
    if not bool(values.isfinite().all() and (values.diff() > 0).all()):
        raise ValueError(
            f"{levels} are not distinct and finite in "
            f"{str(dtype).removeprefix('torch.')}: use model.double()"
        )
    exact = Levels.from_levels(values.tolist()).midpoints
    middle = torch.tensor([float(m) for m in exact], dtype=torch.float64)
    below = torch.tensor([float(m) < m for m in exact], dtype=torch.bool)
    middle = torch.where(below, middle.nextafter(torch.tensor(math.inf)), middle)
    thresholds = _rounded_up(middle, dtype)
    return LevelTable(values.to(device), thresholds.to(device))


def _rounded_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the smallest numbers of ``dtype`` that are not below x."""
    rounded = x.to(dtype)
    above = rounded.nextafter(torch.full_like(rounded, math.inf))
    return torch.where(rounded.to(torch.float64) < x, above, rounded)


def nearest(w: Tensor, levels: LevelsLike) -> Tensor:
    r"""Return the nearest level of each weight.

    .. math::
        P(w) = \arg\min_{q \in Q} |w - q|, \quad\text{ties to the upper level}

    Contract:
        Comparisons with mid-points are exact. P(0) = 1 for {-1, 1}, unlike
        ``torch.sign``. Levels mean their values in the dtype of ``w``. Infinite
        weights go to an end; NaN stays. No gradient.

    Args:
        w: float32 or float64 tensor, in units of the levels.
        levels: `Levels`, or a tensor [..., K] whose leading dimensions broadcast
            against ``w``: [C, 1, K] is one set for each of C rows. Shorter rows end
            in inf.

    Returns:
        Tensor like ``w``.

    Raises:
        TypeError: for other dtypes.
        ValueError: if levels do not increase strictly or do not broadcast.

    Example:
        >>> nearest(torch.tensor([-0.2, 0.0, 7.0]), Levels.binary()).tolist()
        [-1.0, 1.0, 1.0]

    References:
        Revisiting ASkewSGD, section 2.
    """
    return level_table(levels, w).nearest(w.detach())


def cell(w: Tensor, levels: LevelsLike) -> Tensor:
    """Return the number j of the cell q_j <= w < q_(j+1) of each weight.

    Contract:
        0 is left of all levels, K at or right of the last; NaN is said to be there.

    Args:
        w: float32 or float64 tensor, in units of the levels.
        levels: as `nearest`.

    Returns:
        int64 tensor of the shape of ``w``.

    Raises:
        TypeError: as `nearest`.
        ValueError: as `nearest`.

    Example:
        >>> cell(torch.tensor([-3.0, -1.0, 0.5, 1.0]), Levels.binary()).tolist()
        [0, 1, 1, 2]
    """
    return level_table(levels, w).cell(w.detach())
