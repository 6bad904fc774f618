"""Remoteness from a quantization set, its feasible set, and the skewed direction."""

from __future__ import annotations

import math
from itertools import pairwise
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from .._remoteness import Kind, remoteness_between
from ..formats import Levels
from ._levels import LevelsLike, LevelTable, level_table

RemotenessLike = Kind
ClipMode = Literal["report", "max"]
Midpoint = Literal["report", "gradient"]

CHOICES: dict[str, tuple[str, ...]] = {
    "remoteness": ("quadratic", "quartic", "quartic_ext"),
    "clip_mode": ("report", "max"),
    "midpoint": ("report", "gradient"),
}


def check_choice(name: str, value: Any, allowed: tuple[str, ...] = ()) -> None:
    """Refuse a name that does not exist.

    Raises:
        ValueError: naming those that do.
    """
    allowed = allowed or CHOICES[name]
    if value not in allowed:
        choices = [repr(choice) for choice in allowed]
        raise ValueError(
            f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}"
        )


def check_number(name: str, value: Any) -> None:
    """Refuse what is no number.

    Raises:
        TypeError: saying what was given.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number and not (isinstance(value, Tensor) and value.numel() == 1):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_cells(levels: LevelsLike, kind: RemotenessLike) -> None:
    """Refuse single levels for a remoteness that extends cells.

    Raises:
        ValueError: saying which other there is.
    """
    if kind != "quartic_ext":
        return
    if isinstance(levels, Levels):
        single = len(levels.values) < 2
    else:
        single = bool((levels.isfinite().sum(-1) < 2).any())
    if single:
        raise ValueError(
            "quartic_ext needs at least two levels, whose cell it extends: use "
            "remoteness='quartic'"
        )


class Remoteness(NamedTuple):
    """psi, positive where a weight is close to a level, and its derivative in w."""

    value: Tensor
    derivative: Tensor


def largest_epsilon(levels: LevelsLike, kind: RemotenessLike = "quadratic") -> float:
    r"""Return the slack from which neighbouring pieces of the feasible set meet.

    .. math::
        \epsilon_{\max} = \Delta^2 / 4 \text{ (quadratic)}, \quad
        \Delta^4 / 16 \text{ (quartic)}

    with Delta the smallest gap between levels.

    Args:
        levels: `Levels`, or a tensor [..., K].
        kind: of the remoteness.

    Returns:
        The slack, in units of the levels; inf for a single level.

    Raises:
        ValueError: for an unknown kind.

    Example:
        >>> largest_epsilon(Levels.int_bits(2), "quartic")
        0.0625

    References:
        Revisiting ASkewSGD, where equality is wrongly included.
    """
    check_choice("remoteness", kind)
    return _slack_of(min_gap(levels), kind)


def min_gap(levels: LevelsLike) -> float:
    """Return the smallest gap between two levels of one coordinate."""
    if isinstance(levels, Levels):
        return levels.min_gap
    gaps = levels.to(torch.float64).diff(dim=-1)
    return float(gaps[gaps.isfinite()].min()) if gaps.isfinite().any() else math.inf


def _slack_of(gap: float, kind: RemotenessLike) -> float:
    square = gap * gap / 4
    return square if kind == "quadratic" else square * square


def remoteness(
    w: Tensor,
    levels: LevelsLike,
    epsilon: float,
    kind: RemotenessLike = "quadratic",
) -> Remoteness:
    r"""Return psi(w) and psi'(w) of each coordinate.

    .. math::
        \psi = \epsilon - s \text{ (quadratic)}, \quad
        \epsilon - s^2 \text{ (quartic)}, \qquad
        s = (w - a)(b - w) \text{ in a cell } [a, b),
        \text{ else the distance to the set}

    ``quartic_ext`` extends the polynomial of the outermost cells beyond the hull.

    Contract:
        In the arithmetic of the dtype of ``w``. The weight is feasible where psi >= 0.
        At a level psi is epsilon, and the derivative of the quadratic one is that
        from the right.

    Args:
        w: float32 or float64 tensor, in units of the levels.
        levels: as `nearest`.
        epsilon: slack, nonnegative.
        kind: ``"quadratic"`` (Definition 3), ``"quartic"`` (Definition 2) or
            ``"quartic_ext"`` (published code).

    Returns:
        Value and derivative, tensors like ``w``.

    Raises:
        ValueError: for an unknown kind, or a single level with ``quartic_ext``.

    Example:
        >>> psi = remoteness(torch.tensor([0.5, 1.5]), Levels.binary(), 0.25)
        >>> psi.value.tolist(), psi.derivative.tolist()
        ([-0.5, -0.25], [1.0, -1.0])

    References:
        Revisiting ASkewSGD, Definitions 2 and 3; Leconte et al. 2023.
    """
    check_choice("remoteness", kind)
    return remoteness_of(w.detach(), level_table(levels, w), epsilon, kind)


def remoteness_of(
    w: Tensor, table: LevelTable, epsilon: float, kind: RemotenessLike
) -> Remoteness:
    """Return `remoteness` for levels that are checked."""
    check_cells(table.values, kind)
    hull = table.first, table.last
    return Remoteness(*remoteness_between(w, table.bounds(w), hull, epsilon, kind))


def feasible_set(
    levels: Levels, epsilon: float, kind: RemotenessLike = "quadratic"
) -> list[tuple[float, float]]:
    r"""Return the intervals in which psi >= 0.

    .. math::
        C_\epsilon = \bigcup_j [q_j - t_j^-, q_j + t_j^+], \qquad
        t = \frac{2 e}{\Delta + \sqrt{\Delta^2 - 4 e}}

    inside a gap Delta, with e = epsilon or, for quartic kinds, its root; outside the
    hull t = e, and the root of the extension for ``quartic_ext``.

    Contract:
        In float64; every bound is correct to a few units in the last place. Pieces
        that meet are joined: there are K of them if epsilon is below
        `largest_epsilon`.

    Args:
        levels: the levels.
        epsilon: slack, finite and nonnegative.
        kind: of the remoteness.

    Returns:
        Disjoint closed intervals in increasing order.

    Raises:
        ValueError: for an unknown kind or a slack out of range.

    Example:
        >>> feasible_set(Levels.binary(), 0.75)
        [(-1.75, -0.5), (0.5, 1.75)]

    References:
        Revisiting ASkewSGD, Theorem 1; the form of t avoids cancellation.
    """
    check_choice("remoteness", kind)
    check_epsilon(epsilon)
    e = epsilon if kind == "quadratic" else math.sqrt(epsilon)
    values = levels.values
    gaps = [b - a for a, b in pairwise(values)]
    check_cells(levels, kind)
    low = values[0] - outer_slack(gaps[0] if gaps else math.inf, epsilon, kind)
    pieces: list[tuple[float, float]] = []
    for a, b, gap in zip(values, values[1:], gaps, strict=False):
        if 4 * e < gap**2:
            inner = 2 * e / (gap + math.sqrt(gap**2 - 4 * e))
            pieces.append((low, a + inner))
            low = b - inner
    high = values[-1] + outer_slack(gaps[-1] if gaps else math.inf, epsilon, kind)
    return [*pieces, (low, high)]


Gap = TypeVar("Gap", float, Tensor)


def outer_slack(gap: Gap, epsilon: float, kind: RemotenessLike) -> Gap | float:
    """Return how far the feasible set reaches beyond the hull.

    ``gap`` is the width of the outermost cell there.
    """
    if kind == "quadratic":
        return epsilon
    e = math.sqrt(epsilon)
    if kind == "quartic":
        return e
    root: Gap = (gap * gap + 4 * e) ** 0.5
    return 2 * e / (gap + root)


def check_epsilon(epsilon: Any) -> None:
    """Refuse a slack that is negative, NaN or infinite.

    Raises:
        ValueError: saying what is allowed.
    """
    if not 0 <= epsilon < math.inf:
        raise ValueError(
            f"epsilon must be finite and not negative, got {epsilon}: give its "
            "schedule a floor of 0"
        )


def skewed_direction(
    direction: Tensor,
    w: Tensor,
    levels: LevelsLike,
    epsilon: float,
    *,
    alpha: float,
    clip: float = math.inf,
    kind: RemotenessLike = "quadratic",
    clip_mode: ClipMode = "report",
    midpoint: Midpoint = "gradient",
) -> Tensor:
    r"""Return the direction -v to be subtracted, with v the skewed velocity.

    .. math::
        u = \mathrm{clip}(-\alpha \psi / \psi', \pm M_c), \qquad
        v = \begin{cases}
          -g & \psi > 0 \text{ or } -g \psi' \ge -\alpha \psi \\
          u & \text{otherwise}
        \end{cases}

    with g ``direction``; v is +M_c (``midpoint="report"``) or -g (``"gradient"``)
    where psi' = 0 and psi < 0.

    Contract:
        Without a clip v is the exact minimizer of |v + g|^2 under v psi' >= -alpha psi
        wherever psi <= 0. A clip makes it jump where |g| crosses |u|;
        ``clip_mode="max"`` tests against the clipped u and keeps the larger of both
        steps toward the level, so that it does not.
        Where v = -g, the result is g itself, bit for bit. In cells without infeasible
        weights, from `largest_epsilon` on, v = -g whatever psi is rounded to.

    Args:
        direction: g, the gradient or anything that would be subtracted.
        w: weights, in units of the levels.
        levels: as `nearest`.
        epsilon: slack.
        alpha: rate at which infeasible weights are driven, positive.
        clip: M_c, positive; inf for none.
        kind: of the remoteness.
        clip_mode: ``"report"`` or ``"max"``.
        midpoint: ``"report"``, which needs a finite clip, or ``"gradient"``.

    Returns:
        Tensor like ``w``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> w, g = torch.tensor([0.5, -0.75]), torch.tensor([2.0, 0.0])
        >>> skewed_direction(g, w, Levels.binary(), 0.25, alpha=0.5, clip=1.0).tolist()
        [-0.25, 0.0625]

    References:
        Revisiting ASkewSGD, Algorithm 2; Leconte et al. 2023; Muehlebach and Jordan.
    """
    check_skew(alpha, epsilon, clip, kind, clip_mode, midpoint)
    table = level_table(levels, w)
    skew = Skew(epsilon, alpha, clip, kind, clip_mode, midpoint)
    return skew.apply(direction.detach(), w.detach(), table)


def check_skew(
    alpha: Any, epsilon: Any, clip: Any, kind: Any, clip_mode: Any, midpoint: Any
) -> None:
    """Refuse parameters of the skewed direction that are out of range.

    Raises:
        TypeError: for what is no number.
        ValueError: saying what is allowed.
    """
    check_choice("remoteness", kind)
    check_choice("clip_mode", clip_mode)
    check_choice("midpoint", midpoint)
    check_number("epsilon", epsilon)
    check_number("alpha", alpha)
    check_number("clip", math.inf if clip is None else clip)
    check_epsilon(epsilon)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, inf or None, got {clip}")
    if clip == math.inf and midpoint == "report":
        raise ValueError(
            "midpoint='report' moves weights at a mid-point by the clip, which is inf: "
            "give a finite clip or midpoint='gradient'"
        )


class Skew(NamedTuple):
    """Parameters of the skewed direction, checked."""

    epsilon: float
    alpha: float
    clip: float
    kind: RemotenessLike
    clip_mode: ClipMode
    midpoint: Midpoint

    def apply(
        self,
        direction: Tensor,
        w: Tensor,
        table: LevelTable,
        scale: Tensor | float = 1.0,
    ) -> Tensor:
        """Return -v for weights ``scale * w``."""
        check_cells(table.values, self.kind)
        cell, hull = table.bounds(w), (table.first, table.last)
        psi = Remoteness(*remoteness_between(w, cell, hull, self.epsilon, self.kind))
        level_or_middle = psi.derivative == 0
        u = psi.value * -self.alpha
        u.div_(psi.derivative.masked_fill(level_or_middle, 1.0))
        u.masked_fill_(level_or_middle, 0.0)
        clipped = u.clamp(-self.clip, self.clip).mul_(scale)
        if self.clip_mode == "max":
            toward = psi.derivative.sign().mul_(direction).neg_()
            direct = toward >= clipped.abs()
        else:
            bound = psi.value.mul(-self.alpha).mul_(scale)
            direct = (direction * psi.derivative).neg_() >= bound
        free = self._free(w, cell, hull)
        direct |= (psi.value > 0) | free
        flat = level_or_middle & (psi.value < 0) & ~free
        if self.midpoint == "gradient":
            direct |= flat
        else:
            direct &= ~flat
            clipped = torch.where(flat, self.clip * scale, clipped)
        return torch.where(direct, direction, clipped.neg_()).to(direction.dtype)

    def _free(
        self, w: Tensor, cell: tuple[Tensor, Tensor], hull: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return whether a weight is in a cell where psi is negative nowhere.

        There rounding would leave psi = 0 beside the mid-point, which no weight could
        pass. What rounding may add to a cell's width counts as nothing.
        """
        root = math.sqrt(self.epsilon)
        half = root if self.kind == "quadratic" else math.sqrt(root)
        widest = 2 * half * (1 + 2 * torch.finfo(w.dtype).eps)
        width = cell[1] - cell[0]
        inside = (w >= hull[0]) & (w <= hull[1])
        return inside & (width > 0) & (width <= widest)
