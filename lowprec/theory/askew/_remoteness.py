"""Remoteness functions psi of a level set, and the feasible set {psi >= 0}."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor

from ..._remoteness import Kind as Kind
from ..._remoteness import remoteness_between
from ...formats import Levels
from .._inputs import finite


@dataclass(frozen=True)
class Remoteness:
    r"""The remoteness function psi(. ; epsilon) of one coordinate's level set.

    Between the levels a < b, with s = (w - a)(b - w), and at distance x outside the
    hull of all levels,

    .. math::
        \psi = \epsilon - s, \quad \epsilon - x \qquad\text{(quadratic)}, \qquad
        \psi = \epsilon - s^2, \quad \epsilon - x^2 \qquad\text{(quartic)};

    ``"quartic_ext"`` has epsilon - x^2 (x + gap)^2 outside. The feasible set
    C = {psi >= 0} consists of one closed interval around each level.

    Contract:
        Cells are half-open, [a, b). psi is continuous and equals epsilon at the levels.
        The quartic is C^1; the quadratic has kinks at the levels, where psi > 0 makes
        them harmless (erratum E5). Intervals of neighbouring levels are disjoint if
        and only if epsilon is strictly below ``epsilon_max``; at equality they touch
        at the mid-point (E4). All values are in units of the levels: C is not
        equivariant under scaling. Everything is evaluated in binary64.

    Args:
        levels: q^(1) < ... < q^(K), finite, K >= 1 (2 for ``"quartic_ext"``), or
            `lowprec.Levels`.
        epsilon: slack, positive and finite.
        kind: ``"quadratic"``, ``"quartic"`` or ``"quartic_ext"``.

    Raises:
        ValueError: if the levels are not strictly increasing and finite, epsilon is
            not positive and finite, or ``kind`` is unknown.

    Example:
        >>> psi = Remoteness((-1, 1), 0.2)
        >>> psi(torch.tensor([-1.5, -1.0, 0.0]))
        tensor([-0.3000,  0.2000, -0.8000], dtype=torch.float64)
        >>> psi.derivative(torch.tensor([-1.5, -0.9, 0.5]))
        tensor([ 1.0000, -1.8000,  1.0000], dtype=torch.float64)
        >>> psi.epsilon_max
        1.0

    References:
        "Revisiting ASkewSGD", Definitions 2 and 3.
    """

    levels: tuple[float, ...]
    epsilon: float
    kind: Kind = "quadratic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _checked_levels(self.levels))
        slack = float(finite("epsilon", self.epsilon))
        object.__setattr__(self, "epsilon", slack)
        if slack <= 0:
            raise ValueError(f"epsilon must be positive, got {slack!r}")
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}"
            )
        if self.kind == "quartic_ext" and len(self.levels) < 2:
            raise ValueError(
                "kind 'quartic_ext' continues the end cells, so it needs two "
                f"levels or more, got {self.levels}: use 'quartic'"
            )

    def __call__(self, w: Any) -> Tensor:
        """Return psi(w), shape of ``w``, in binary64."""
        return self._value_and_derivative(w)[0]

    def derivative(self, w: Any) -> Tensor:
        """Return psi'(w), from the right at a kink, shape of ``w``, in binary64."""
        return self._value_and_derivative(w)[1]

    @property
    def gaps(self) -> tuple[float, ...]:
        """The distances of neighbouring levels, K - 1 of them."""
        return tuple(b - a for a, b in zip(self.levels, self.levels[1:], strict=False))

    @property
    def epsilon_max(self) -> float:
        """The slack from which two intervals of C touch; inf for a single level."""
        return min(map(self._cell_epsilon_max, self.gaps), default=math.inf)

    @cached_property
    def infeasible_widths(self) -> tuple[float, ...]:
        r"""D = sqrt(gap^2 - 4e) of each cell, the width of its part outside C.

        e is epsilon for the quadratic, its root for the quartic; 0 where intervals
        touch or overlap.
        """
        slack = 4 * Fraction(self._threshold)
        return tuple(
            0.0
            if self.epsilon >= self._cell_epsilon_max(gap)
            else math.sqrt(max(Fraction(gap) ** 2 - slack, Fraction(0)))
            for gap in self.gaps
        )

    @property
    def inner_half_widths(self) -> tuple[float, ...]:
        """How far C reaches from a level into each cell: 2e/(gap + D)."""
        cells = zip(self.gaps, self.infeasible_widths, strict=True)
        return tuple(
            2 * self._threshold / (gap + width) if width > 0 else gap / 2
            for gap, width in cells
        )

    @property
    def outer_half_widths(self) -> tuple[float, float]:
        """How far C reaches beyond the first and beyond the last level."""
        if self.kind != "quartic_ext":
            return self._threshold, self._threshold
        left, right = (
            2 * self._threshold / (gap + math.sqrt(gap**2 + 4 * self._threshold))
            for gap in (self.gaps[0], self.gaps[-1])
        )
        return left, right

    @cached_property
    def pieces(self) -> tuple[tuple[float, float], ...]:
        """The closed intervals whose union is C, in increasing order.

        K of them if epsilon < ``epsilon_max``; touching intervals are joined.

        Example:
            >>> Remoteness((-1, 1), 1.0).pieces
            ((-2.0, 2.0),)
        """
        left, right = self.outer_half_widths
        ends = [self.levels[0] - left]
        cells = zip(
            self.levels,
            self.levels[1:],
            self.inner_half_widths,
            self.infeasible_widths,
            strict=False,
        )
        for low, high, half_width, width in cells:
            if width > 0:
                ends += [low + half_width, high - half_width]
        ends.append(self.levels[-1] + right)
        return tuple(zip(ends[::2], ends[1::2], strict=True))

    def project(self, w: Any) -> Tensor:
        """Return the nearest point of C; the upper one from a mid-point."""
        value = finite("w", w)
        lower, upper = self._ends(value)
        return torch.where(upper - value > value - lower, lower, upper)

    def distance(self, w: Any) -> Tensor:
        """Return dist(w, C) for each entry of ``w``."""
        value = finite("w", w)
        lower, upper = self._ends(value)
        return torch.minimum((value - lower).abs(), (upper - value).abs())

    def distance_derivative(self, w: Any, direction: Any) -> Tensor:
        """Return the one-sided derivative of dist(w, C) along ``direction``.

        Contract:
            0 inside C; at a boundary point only an outward direction counts; at the
            mid-point of two intervals both directions approach C.
        """
        value, move = finite("w", w), finite("direction", direction)
        lower, upper = self._ends(value)
        left, right = self.boundary(value)
        outward = left * (-move).clamp(min=0) + right * move.clamp(min=0)
        below, above = value - lower, upper - value
        approach = torch.where(below < above, move, -move)
        approach = torch.where(below == above, -move.abs(), approach)
        return torch.where((lower < value) & (value < upper), approach, outward)

    def boundary(self, w: Any, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return whether w lies within ``tolerance`` of a left, a right end of C."""
        value = finite("w", w)[..., None]
        ends = torch.tensor(self.pieces, dtype=torch.float64)
        near = (value[..., None] - ends).abs() <= tolerance
        return near[..., 0].any(-1), near[..., 1].any(-1)

    @property
    def _linear(self) -> bool:
        return self.kind == "quadratic"

    @property
    def _threshold(self) -> float:
        # C is where the product of distances is at most this.
        return self.epsilon if self._linear else math.sqrt(self.epsilon)

    def _cell_epsilon_max(self, gap: float) -> float:
        square = gap * gap / 4
        return square if self._linear else square * square

    def _value_and_derivative(self, w: Any) -> tuple[Tensor, Tensor]:
        value = finite("w", w)
        levels = torch.tensor(self.levels, dtype=torch.float64)
        last = len(levels) - 1
        upper = torch.bucketize(value.detach(), levels, right=True)
        upper = upper.clamp(min(1, last), last)
        cell = levels[(upper - 1).clamp(min=0)], levels[upper]
        hull = levels[0], levels[-1]
        return remoteness_between(value, cell, hull, self.epsilon, self.kind)

    def _ends(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest points of C at or below, at or above each value."""
        ends = torch.tensor(self.pieces, dtype=torch.float64)
        started = torch.bucketize(value.detach(), ends[:, 0].contiguous(), right=True)
        finished = torch.bucketize(value.detach(), ends[:, 1].contiguous())
        infinity = torch.full_like(ends[:1, 0], torch.inf)
        last_ends = torch.cat([-infinity, ends[:, 1]])
        next_starts = torch.cat([ends[:, 0], infinity])
        inside = started > finished
        return (
            torch.where(inside, value, last_ends[started]),
            torch.where(inside, value, next_starts[finished]),
        )


def _checked_levels(levels: Levels | Sequence[float]) -> tuple[float, ...]:
    if isinstance(levels, Levels):
        return levels.values
    tensor = finite("levels", levels)
    if tensor.ndim != 1 or tensor.numel() == 0:
        raise ValueError(
            "levels must be a nonempty sequence of numbers, got shape "
            f"{tuple(tensor.shape)}: levels by coordinate need one Remoteness each"
        )
    if not bool((tensor.diff() > 0).all()):
        raise ValueError(
            f"levels must be strictly increasing, got {tensor.tolist()}: sort them and "
            "remove duplicates"
        )
    return tuple(tensor.tolist())
