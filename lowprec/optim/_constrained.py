"""One step of Muehlebach and Jordan's method for general constraints."""

from __future__ import annotations

import torch
from torch import Tensor


def constrained_velocity(
    gradient: Tensor, constraints: Tensor, jacobian: Tensor, alpha: float
) -> Tensor:
    r"""Return the velocity nearest to -grad l among those that the constraints allow.

    .. math::
        v = \arg\min \tfrac12 \|v + \nabla l\|^2 \quad\text{subject to}\quad
        \nabla g_i^\top v \ge -\alpha g_i \text{ for all } i \text{ with } g_i \le 0

    and w + eta v is a step of the method for the feasible set g >= 0.

    Contract:
        In float64, by nonnegative least squares for the multipliers. Convergence of
        the method needs a convex l and concave g. For one constraint a coordinate,
        `skewed_direction` is the same at once.

    Args:
        gradient: grad l, of d elements.
        constraints: g, [m].
        jacobian: grad g_i in row i, [m, d].
        alpha: positive.

    Returns:
        float64 tensor like ``gradient``.

    Raises:
        ValueError: if shapes differ, ``alpha`` is not positive, a value is not finite,
            or no velocity is allowed.

    Example:
        >>> w = torch.tensor([3.0, 0.0])  # the unit disk: g = 1 - |w|^2
        >>> g, jacobian = (1 - w @ w).reshape(1), -2 * w.reshape(1, 2)
        >>> constrained_velocity(torch.zeros(2), g, jacobian, alpha=0.75).tolist()
        [-1.0, 0.0]

    References:
        Muehlebach and Jordan 2022; Revisiting ASkewSGD, Algorithm 1, whose display
        forgets the restriction to g_i <= 0.
    """
    from scipy.optimize import nnls

    flat = gradient.detach().to(torch.float64).reshape(-1)
    g, rows = constraints.detach().to(flat), jacobian.detach().to(flat)
    if g.dim() != 1 or rows.shape != (len(g), len(flat)):
        raise ValueError(
            f"a gradient of {len(flat)} elements and constraints of shape "
            f"{tuple(g.shape)} need a jacobian of shape ({g.numel()}, {len(flat)}), "
            f"got {tuple(rows.shape)}"
        )
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    for name, x in (("gradient", flat), ("constraints", g), ("jacobian", rows)):
        if not bool(x.isfinite().all()):
            raise ValueError(f"the {name} must be finite")
    violated = g <= 0
    if not bool(violated.any()):
        return (-flat).view(gradient.shape)
    active = rows[violated]
    # v + grad l must reach at least this along every row.
    bound = active @ flat - alpha * g[violated]
    target = torch.linalg.lstsq(active, bound, driver="gelsd").solution
    multipliers, _ = nnls(active.T.numpy(force=True), target.numpy(force=True))
    velocity = active.T @ torch.from_numpy(multipliers).to(flat) - flat
    reached = active @ velocity + alpha * g[violated]
    size = 1 + float(bound.abs().max()) + float((active.abs() @ velocity.abs()).max())
    if float(reached.min()) < -1e-8 * size:
        raise ValueError(
            "no velocity satisfies all violated constraints, or their gradients are "
            "linearly dependent: at such points the method is not defined; perturb w "
            "or drop redundant constraints"
        )
    return velocity.view(gradient.shape)
