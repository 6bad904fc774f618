"""The counterexample to large step sizes: a weight that jumps between w and -w."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .._inputs import finite
from ._remoteness import Remoteness
from ._velocity import skewing_force


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """A cycle w -> -w -> w of ASkewSGD.

    Args:
        gamma: the step size.
        skew: |u(w)|; the length of one step is gamma |u| = 2 |w|.
        multiplier: factor by which one step multiplies a small error, always more
            than 1 without clipping, so that rounding errors leave the cycle.

    Example:
        >>> cycle(-10.0, Remoteness((-1, 1), 0.5), alpha=1.0)
        ... # doctest: +NORMALIZE_WHITESPACE
        Cycle(gamma=2.3529411764705883, skew=8.5,
              multiplier=1.3529411764705883)
    """

    gamma: float
    skew: float
    multiplier: float


def cycle(w: float, psi: Remoteness, *, alpha: float, clip: float = math.inf) -> Cycle:
    r"""Return the step size with which ASkewSGD cycles between w and -w.

    .. math:: \gamma = \frac{2|w|}{|u(w)|}, \qquad
        \alpha\gamma = \frac{2|w|}{|w| - 1 - \epsilon} > 2
        \quad\text{(quadratic, levels } \pm 1\text{)}

    Contract:
        Takes a loss that pushes outwards (w in S-), or one too weak to reach C. The
        condition alpha gamma <= 1 of `step_size_conditions` excludes the unclipped
        cycle. With |u| clipped, gamma M_c = 2 |w| and the multiplier is 1. Unclipped,
        the cycle repels: follow it for two steps only, from |w| >= 10 (erratum E11).

    Args:
        w: start, outside the hull of the levels and infeasible.
        psi: the remoteness function of levels symmetric about 0.
        alpha: rate at which infeasibility decays, positive.
        clip: M_c, positive; inf for no clipping.

    Returns:
        Step size, skewing force and multiplier.

    Raises:
        ValueError: if the levels are not symmetric, or w is not beyond them and
            infeasible.

    Example:
        See `Cycle`.

    References:
        "Revisiting ASkewSGD", after Theorem 2 (E11); Definition 2 is ours.
    """
    start = finite("w", w).detach().clone().requires_grad_()
    if psi.levels != tuple(-level for level in reversed(psi.levels)):
        raise ValueError(f"levels must be symmetric about 0, got {psi.levels}")
    if not bool((start.abs() > psi.levels[-1]) & (psi(start) < 0)):
        raise ValueError(
            f"w must lie outside the levels and be infeasible, got {w!r} with psi = "
            f"{psi(w).item()!r}"
        )
    force = skewing_force(start, psi, alpha=alpha, clip=clip)
    (slope,) = torch.autograd.grad(force, start)
    gamma = 2 * abs(start.item()) / abs(force.item())
    return Cycle(
        gamma=gamma,
        skew=abs(force.item()),
        multiplier=abs(1 + gamma * slope.item()),
    )
