"""The direction of ASkewSGD: the skewing force, and where it replaces the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from .._inputs import finite
from ._remoteness import Remoteness

# What v is where psi' = 0 and psi < 0, so that no velocity satisfies the constraint:
# "report" is +clip, as the report has it, "gradient" is -g, as published code has it.
Midpoint: TypeAlias = Literal["report", "gradient"]


def skewing_force(
    w: Any, psi: Remoteness, *, alpha: float, clip: float = math.inf
) -> Tensor:
    r"""Return the velocity that the constraint of a coordinate demands.

    .. math::
        u = \mathrm{clip}\bigl(-\alpha\,\psi(w)/\psi'(w),\; \pm M_c\bigr)

    Contract:
        Where psi < 0, u points to the nearest level. Where psi' = 0 the quotient means
        nothing, and u = 0 is returned; `velocity` treats these points.

    Args:
        w: weights in units of the levels, any shape.
        psi: the remoteness function.
        alpha: rate at which infeasibility decays, positive.
        clip: M_c, positive; inf for no clipping.

    Returns:
        u, shape of ``w``, in binary64.

    Raises:
        ValueError: if w is not finite, or alpha or clip is not positive.

    Example:
        >>> w = torch.tensor([-1.5, -0.5, 0.25])
        >>> skewing_force(w, Remoteness((-1, 1), 0.2), alpha=0.5, clip=0.5)
        tensor([ 0.1500, -0.2750,  0.5000], dtype=torch.float64)

    References:
        "Revisiting ASkewSGD", Algorithm 2.
    """
    rate, bound = checked_rates(alpha, clip)
    slope = psi.derivative(w)
    flat = slope == 0
    force = -rate * psi(w) / torch.where(flat, torch.ones_like(slope), slope)
    force = torch.where(flat, torch.zeros_like(force), force)
    return force.clamp(-bound, bound)


def velocity(
    w: Any,
    gradient: Any,
    psi: Remoteness,
    *,
    alpha: float,
    clip: float = math.inf,
    midpoint: Midpoint = "report",
) -> Tensor:
    r"""Return the direction v of ASkewSGD; the iteration is w + gamma v.

    .. math::
        v = \begin{cases} -g & \psi(w) > 0 \text{ or }
        -g\,\psi'(w) \ge -\alpha\,\psi(w), \\ u & \text{otherwise.} \end{cases}

    Contract:
        Without clipping, v is the projection of -g onto the velocities with
        v psi' >= -alpha psi wherever psi <= 0, which `project_velocity` computes for
        general constraints. Clipping leaves that set, and v jumps from u to -g as |g|
        crosses the unclipped |u| (erratum E9). Where psi' = 0 and psi < 0 the set is
        empty (E1) and ``midpoint`` decides; at psi >= 0 it is not consulted (E2).

    Args:
        w: weights in units of the levels, any shape.
        gradient: g, or any direction to be subtracted; shape of ``w``.
        psi: the remoteness function.
        alpha: rate at which infeasibility decays, positive.
        clip: M_c, positive; inf for no clipping.
        midpoint: ``"report"``, +M_c, or ``"gradient"``, -g.

    Returns:
        v, shape of ``w``, in binary64.

    Raises:
        ValueError: if w or the gradient is not finite, a parameter is out of range,
            or a weight is at a mid-point where ``"report"`` has no finite M_c.

    Example:
        >>> w = torch.tensor([-1.5, -0.5, 0.0, 0.9])
        >>> g = torch.full((4,), -0.3)
        >>> velocity(w, g, Remoteness((-1, 1), 0.2), alpha=0.5, clip=2.0)
        tensor([ 0.3000, -0.2750,  2.0000,  0.3000], dtype=torch.float64)

    References:
        "Revisiting ASkewSGD", Algorithm 2 and Definition 4.
    """
    if midpoint not in get_args(Midpoint):
        raise ValueError(f"midpoint must be 'report' or 'gradient', got {midpoint!r}")
    force = skewing_force(w, psi, alpha=alpha, clip=clip)
    sets = index_sets(w, gradient, psi, alpha=alpha)
    downhill = -finite("gradient", gradient)
    stuck = (psi.derivative(w) == 0) & (psi(w) < 0)
    if midpoint == "report":
        if math.isinf(clip) and bool(stuck.any()):
            raise ValueError(
                "a weight is at a mid-point of two levels, where no velocity satisfies "
                "the constraint: give a finite clip or midpoint='gradient'"
            )
        force = torch.where(stuck, torch.full_like(force, clip), force)
    else:
        force = torch.where(stuck, downhill, force)
    return torch.where(sets.direct, downhill, force)


@dataclass(frozen=True, eq=False)
class IndexSets:
    """The partition of the coordinates by their update, as Boolean masks.

    Args:
        skew_helps: S+, where the skewing force replaces -g and decreases the loss.
        skew_hurts: S-, where the skewing force increases the loss.
        direct: all others, where the update is -g.

    Example:
        >>> psi = Remoteness((-1, 1), 0.2)
        >>> w = torch.tensor([-0.5, -0.5, -0.9])
        >>> sets = index_sets(w, torch.tensor([0.1, -0.1, 0.1]), psi, alpha=0.5)
        >>> sets.skew_helps.tolist(), sets.skew_hurts.tolist()
        ([True, False, False], [False, True, False])
    """

    skew_helps: Tensor
    skew_hurts: Tensor
    direct: Tensor


def index_sets(w: Any, gradient: Any, psi: Remoteness, *, alpha: float) -> IndexSets:
    r"""Return the index sets of Definition 4.

    .. math::
        S^+ = \{\psi \le 0,\; -\alpha\psi > -g\psi' \ge 0\}, \qquad
        S^- = \{\psi \le 0,\; -g\psi' < 0\} .

    Contract:
        u g <= 0 on S+ and u g >= 0 on S-: the skewing force helps on the former and
        hurts on the latter; the proof of Theorem 4 exchanges them (erratum E18). A
        mid-point (psi' = 0, psi < 0) belongs to S+, where only psi' != 0 has a sign.

    Args:
        w: weights in units of the levels, any shape.
        gradient: g, shape of ``w``.
        psi: the remoteness function.
        alpha: rate at which infeasibility decays, positive.

    Returns:
        The masks; every coordinate is in exactly one.

    Raises:
        ValueError: if w or the gradient is not finite, or alpha is not positive.

    Example:
        See `IndexSets`.

    References:
        "Revisiting ASkewSGD", Definition 4.
    """
    rate, _ = checked_rates(alpha, math.inf)
    value = psi(w)
    ascent = -finite("gradient", gradient) * psi.derivative(w)
    constrained = (value <= 0) & (ascent < -rate * value)
    return IndexSets(
        skew_helps=constrained & (ascent >= 0),
        skew_hurts=(value <= 0) & (ascent < 0),
        direct=~constrained,
    )


def stochastic_index_sets(
    w: Any, estimate: Any, gradient: Any, psi: Remoteness, *, alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Return the index sets S1 ... S4 of Definition 5.

    ====  ==========================  =====================
    set   update with the estimate    update with the gradient
    ====  ==========================  =====================
    S1    -estimate                   -gradient
    S2    -estimate                   skewing force
    S3    skewing force               skewing force
    S4    skewing force               -gradient
    ====  ==========================  =====================

    Contract:
        Membership depends on the estimate, hence E[estimate 1{S1 or S2}] is not
        gradient P(S1 or S2): Theorem 5's proof has the wrong sign there (E19).

    Args:
        w: weights in units of the levels, any shape.
        estimate: stochastic gradient, shape of ``w``.
        gradient: its expectation, shape of ``w``.
        psi: the remoteness function.
        alpha: rate at which infeasibility decays, positive.

    Returns:
        Four Boolean masks; every coordinate is in exactly one.

    Raises:
        ValueError: if an input is not finite, or alpha is not positive.

    Example:
        >>> w = torch.tensor([-0.5, -0.5, -0.5, -0.5])
        >>> estimate = torch.tensor([9.0, 9.0, 0.1, 0.1])
        >>> gradient = torch.tensor([9.0, 0.1, 0.1, 9.0])
        >>> psi = Remoteness((-1, 1), 0.2)
        >>> masks = stochastic_index_sets(w, estimate, gradient, psi, alpha=0.5)
        >>> [mask.tolist().index(True) for mask in masks]
        [0, 1, 2, 3]

    References:
        "Revisiting ASkewSGD", Definition 5.
    """
    taken = index_sets(w, estimate, psi, alpha=alpha).direct
    wanted = index_sets(w, gradient, psi, alpha=alpha).direct
    return taken & wanted, taken & ~wanted, ~taken & ~wanted, ~taken & wanted


def checked_rates(alpha: float, clip: float) -> tuple[float, float]:
    """Return alpha and M_c after checking that they are positive, alpha finite."""
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha!r}")
    if not clip > 0:
        raise ValueError(f"clip must be positive (inf for none), got {clip!r}")
    return float(alpha), float(clip)
