"""The velocity of Muehlebach and Jordan for general inequality constraints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._inputs import finite, positive


def project_velocity(
    gradient: Any, values: Any, jacobian: Any, *, alpha: float
) -> Tensor:
    r"""Return the admissible velocity nearest to the negative gradient.

    .. math::
        v = \arg\min_{v \in V} \tfrac12 \|v + \nabla\ell\|^2, \qquad
        V = \{v : \nabla g_i^\top v \ge -\alpha g_i \text{ for } g_i \le 0\} .

    Contract:
        A least-distance problem, solved by nonnegative least squares (Lawson and
        Hanson, chapter 23), then polished on the constraints that are active;
        gradients of the constraints need not be linearly independent. The report's
        display of V forgets the restriction to g_i <= 0, which its text has.

    Args:
        gradient: gradient of the loss, shape [d].
        values: g_i(w), shape [m]; the feasible set is g >= 0.
        jacobian: gradients of g_i, shape [m, d].
        alpha: rate at which infeasibility decays, positive.

    Returns:
        v, shape [d], in binary64.

    Raises:
        ValueError: if V is empty, shapes do not fit, or an entry is not finite.

    Example:
        >>> project_velocity([-1.0, 0.0], [-0.5], [[-2.0, 0.0]], alpha=1.0)
        tensor([-0.2500,  0.0000], dtype=torch.float64)

    References:
        Muehlebach and Jordan (2022); "Revisiting ASkewSGD", Algorithm 1.
    """
    slope = finite("gradient", gradient)
    level, rows = finite("values", values), finite("jacobian", jacobian)
    if slope.ndim != 1 or rows.shape != (*level.shape, *slope.shape):
        raise ValueError(
            "gradient, values and jacobian must have shapes [d], [m] and [m, d], got "
            f"{tuple(slope.shape)}, {tuple(level.shape)} and {tuple(rows.shape)}"
        )
    rate = positive("alpha", alpha)
    active = level <= 0
    rows = rows[active]
    demand = -rate * level[active] + rows @ slope
    shift = _least_distance(rows.numpy(), demand.numpy())
    return torch.from_numpy(shift) - slope


def constrained_step(
    w: Any, gradient: Any, values: Any, jacobian: Any, *, alpha: float, gamma: float
) -> Tensor:
    r"""Return one step w + gamma v of the general algorithm.

    Contract:
        Muehlebach and Jordan's convergence theory needs a convex loss and concave
        constraints g; the report says convex, a sign slip (erratum E33).

    Args:
        w: iterate, shape [d].
        gradient: gradient of the loss at w, shape [d].
        values: g_i(w), shape [m].
        jacobian: gradients of g_i at w, shape [m, d].
        alpha: rate at which infeasibility decays, positive.
        gamma: step size, positive.

    Returns:
        The next iterate, shape [d], in binary64.

    Raises:
        ValueError: as `project_velocity`, or if gamma is not positive.

    Example:
        The point of the unit disc nearest to (2, 1):

        >>> w = torch.tensor([0.5, 0.0], dtype=torch.float64)
        >>> target = torch.tensor([2.0, 1.0])
        >>> for _ in range(500):
        ...     disc, outward = 1 - w @ w, -2 * w
        ...     w = constrained_step(
        ...         w, w - target, disc[None], outward[None], alpha=1.0, gamma=0.05
        ...     )
        >>> w
        tensor([0.8944, 0.4472], dtype=torch.float64)

    References:
        Muehlebach and Jordan (2022); "Revisiting ASkewSGD", Algorithm 1.
    """
    direction = project_velocity(gradient, values, jacobian, alpha=alpha)
    moved: Tensor = finite("w", w) + positive("gamma", gamma) * direction
    return moved


def _least_distance(
    rows: NDArray[np.float64], demand: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the shortest x with rows x >= demand."""
    from scipy.optimize import nnls

    length = np.linalg.norm(rows, axis=1)
    if bool(((length == 0) & (demand > 0)).any()):
        raise ValueError(_EMPTY)
    rows = rows[length > 0] / length[length > 0, None]
    demand = demand[length > 0] / length[length > 0]
    nothing: NDArray[np.float64] = np.zeros(rows.shape[1])
    if not (demand > 0).any():
        return nothing
    # In units of the largest demand, so that the residual's last entry is not tiny.
    unit = demand.max()
    system = np.vstack([rows.T, demand / unit])
    target = np.append(nothing, 1.0)
    multipliers, distance = nnls(system, target)
    if distance <= 1e-10:
        raise ValueError(_EMPTY)
    active = multipliers > 0
    solution: NDArray[np.float64] = np.linalg.lstsq(
        rows[active], demand[active], rcond=None
    )[0]
    return solution


_EMPTY = (
    "no velocity satisfies the constraints: the gradients of violated constraints "
    "vanish or contradict each other (the Mangasarian-Fromovitz condition fails)"
)
