"""Where rounded weights stop: the floor, when it is reached, and freezing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...schedules import PowerSchedule
from .._inputs import nonnegative, positive
from ._matrices import Eigenbasis, vector


def covariance_floor(A: Any, absgrad: Any, delta: Any) -> Tensor:
    r"""Return what is left of the covariance of SGD as steps go to zero.

    .. math::
        A V + V A = \mathrm{diag}(\delta_j E|g_j|)

    Contract:
        For weights on a grid, rounded stochastically: V does not go to zero with the
        step size, V/alpha diverges, and the limit theorem does not hold. Gradients may
        be rounded or not.

    Args:
        A: Hessian at the minimum, d x d, symmetric positive definite.
        absgrad: E|g_j| there, d elements; sqrt(2/pi) times the deviation if Gaussian.
            For a spacing that is not small against the noise, E|g_j| at the iterates,
            which `predicted_covariance` finds itself.
        delta: spacing of the values of x, a number or d of them.

    Returns:
        V, d x d.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> round(covariance_floor([[2.0]], [(2 / torch.pi) ** 0.5], 0.125).item(), 6)
        0.024934
    """
    basis = Eigenbasis.of(A)
    size = vector("absgrad", nonnegative("absgrad", absgrad), basis.size)
    spacing = vector("delta", positive("delta", delta), basis.size)
    noise = basis.into(torch.diag(spacing * size))
    return basis.back(noise / (basis.values[:, None] + basis.values))


def crossover_step(schedule: PowerSchedule, sd: float, delta: float) -> float:
    r"""Return the step from which the floor exceeds what the gradient noise leaves.

    .. math::
        \alpha_k < \sqrt{2/\pi}\, \delta / \sigma, \qquad
        k > (K \sigma / (0.798\, \delta))^{1/a} - k_0

    Args:
        schedule: alpha_k.
        sd: sigma, standard deviation of a gradient's element at the minimum.
        delta: spacing of the values of x.

    Returns:
        A number of steps; not positive if the floor dominates from the start.

    Raises:
        ValueError: if an argument is not positive and finite.

    Example:
        >>> round(crossover_step(PowerSchedule(1.0, 0.5), 1.0, 2**-5))
        1608
    """
    noise, spacing = float(positive("sd", sd)), float(positive("delta", delta))
    return _step_of(schedule, math.sqrt(2 / math.pi) * spacing / noise)


def freeze_step(schedule: PowerSchedule, gmax: Any, delta: Any) -> float:
    r"""Return the step after which weights rounded to nearest do not move any more.

    .. math::
        \alpha_k |g_j| < \delta_j / 2, \qquad
        k > (2 K \max_j |g_j| / \delta_j)^{1/a} - k_0

    Args:
        schedule: alpha_k.
        gmax: bound on every |g_j|, a number or one for each weight.
        delta: spacing of the values of x, likewise.

    Returns:
        A number of steps, an upper bound; infinite where it exceeds binary64.

    Raises:
        ValueError: if an argument is not positive and finite.

    Example:
        >>> round(freeze_step(PowerSchedule(1.0, 0.5), 3.32, 2**-4))
        11287
    """
    ratio = positive("delta", delta) / (2 * positive("gmax", gmax))
    return _step_of(schedule, ratio.min().item())


def _step_of(schedule: PowerSchedule, alpha: float) -> float:
    """Return the k at which the schedule passes a step size."""
    exponent = math.log(schedule.K / alpha) / schedule.a
    return (math.exp(exponent) if exponent < 709 else math.inf) - schedule.offset
