"""How far a point is from stationary, and functions that descend along the flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._inputs import Real, finite, nonnegative, positive
from ._remoteness import Remoteness


def kkt_residual(
    w: Any, gradient: Any, psi: Remoteness, *, tolerance: float = 1e-9
) -> float:
    r"""Return the largest violation of the stationarity conditions of min l over C.

    .. math::
        Z = \{w \in C : g_i = 0 \text{ if } \psi_i > 0,\;
        g_i \psi'_i \ge 0 \text{ if } \psi_i = 0\}

    The residual is the maximum over i of dist(w_i, C) and of |g_i|, or only the part of
    -g_i that points into C if the projection of w_i is within ``tolerance`` of the
    boundary.

    Contract:
        Zero (with tolerance 0) if and only if w is in Z, which is where the direction
        of ASkewSGD vanishes. The report asks for equal signs of g_i and psi'_i, which
        wrongly excludes g_i = 0 (erratum E3). Necessary for a local minimum of l over
        C, not for a global one.

    Args:
        w: weights in units of the levels, any shape.
        gradient: g at w, shape of ``w``.
        psi: the remoteness function.
        tolerance: what counts as on the boundary, in units of the levels.

    Returns:
        The residual; 0 for an empty tensor.

    Raises:
        ValueError: if w or the gradient is not finite, or the tolerance is negative.

    Example:
        >>> psi = Remoteness((-1, 1), 0.2)
        >>> kkt_residual([-1.2, -1.0], [0.7, 0.0], psi)
        0.0
        >>> kkt_residual([-1.2, -1.0], [-0.5, 0.25], psi)
        0.5

    References:
        "Revisiting ASkewSGD", section 3, corrected (E3).
    """
    slope = finite("gradient", gradient)
    margin = float(nonnegative("tolerance", tolerance))
    left, right = psi.boundary(psi.project(w), margin)
    downhill = torch.where(left, (-slope).clamp(min=0), slope.abs())
    uphill = torch.where(right, slope.clamp(min=0), slope.abs())
    residual = torch.maximum(psi.distance(w), torch.minimum(downhill, uphill))
    return residual.max().item() if residual.numel() else 0.0


def penalty_lyapunov(loss: Real, w: Any, psi: Remoteness, *, alpha: float) -> float:
    r"""Return the report's Lyapunov function with squared constraint violations.

    .. math:: L(w) = \ell(w) + \frac\alpha2 \sum_i \min(0, \psi_i(w_i))^2

    Contract:
        Continuously differentiable. It need NOT decrease along the flow: Theorem 6
        claims it, but in S- it may increase (erratum E20); `distance_lyapunov` is the
        function that decreases.

    Args:
        loss: l(w).
        w: weights in units of the levels, any shape.
        psi: the remoteness function.
        alpha: rate at which infeasibility decays, positive.

    Returns:
        L(w).

    Raises:
        ValueError: if an argument is not finite or alpha is not positive.

    Example:
        >>> penalty_lyapunov(1.0, [-1.7, 1.0], Remoteness((-1, 1), 0.2), alpha=0.5)
        1.0625

    References:
        "Revisiting ASkewSGD", proof of Theorem 6.
    """
    violation = psi(w).clamp(max=0)
    penalty = positive("alpha", alpha) / 2 * violation.square().sum()
    return float(finite("loss", loss) + penalty)


def penalty_lyapunov_gradient(
    gradient: Any, w: Any, psi: Remoteness, *, alpha: float
) -> Tensor:
    r"""Return the gradient of `penalty_lyapunov`.

    .. math:: \nabla L = \nabla\ell + \alpha\, \psi\, \psi'\, 1\{\psi < 0\}

    Args:
        gradient: g at w, shape of ``w``.
        w: weights in units of the levels, any shape.
        psi: the remoteness function.
        alpha: rate at which infeasibility decays, positive.

    Returns:
        The gradient, shape of ``w``, in binary64.

    Raises:
        ValueError: if an argument is not finite or alpha is not positive.

    Example:
        >>> psi = Remoteness((-1, 1), 0.2)
        >>> penalty_lyapunov_gradient([0.0, 0.5], [-1.7, 1.0], psi, alpha=0.5)
        tensor([-0.2500,  0.5000], dtype=torch.float64)

    References:
        "Revisiting ASkewSGD", proof of Theorem 6.
    """
    push = positive("alpha", alpha) * psi(w).clamp(max=0) * psi.derivative(w)
    total: Tensor = finite("gradient", gradient) + push
    return total


def distance_lyapunov(loss: Real, w: Any, psi: Remoteness, *, mu: float) -> float:
    r"""Return the exact-penalty Lyapunov function, which decreases along the flow.

    .. math:: L_\mu(w) = \ell(w) + \mu \sum_i \mathrm{dist}(w_i, C_i)

    Contract:
        Not in the report. If mu > G >= sup |g_i|, its derivative along the direction v
        of ASkewSGD is at most -b ||v||^2 with b = `distance_lyapunov_rate`, clipped or
        not, for every kind of psi.

    Args:
        loss: l(w).
        w: weights in units of the levels, any shape.
        psi: the remoteness function.
        mu: weight of the distance, positive.

    Returns:
        L_mu(w).

    Raises:
        ValueError: if an argument is not finite or mu is not positive.

    Example:
        >>> distance_lyapunov(1.0, [-1.7, 1.0], Remoteness((-1, 1), 0.2), mu=3.0)
        2.5

    References:
        Correction of Theorem 6 (E20).
    """
    penalty = positive("mu", mu) * psi.distance(w).sum()
    return float(finite("loss", loss) + penalty)


def distance_lyapunov_slope(
    gradient: Any, w: Any, direction: Any, psi: Remoteness, *, mu: float
) -> float:
    r"""Return the one-sided derivative of `distance_lyapunov` along a direction.

    .. math:: \langle \nabla\ell, v\rangle + \mu \sum_i \mathrm{dist}'(w_i; v_i)

    Args:
        gradient: g at w, shape of ``w``.
        w: weights in units of the levels, any shape.
        direction: v, shape of ``w``.
        psi: the remoteness function.
        mu: weight of the distance, positive.

    Returns:
        The derivative.

    Raises:
        ValueError: if an argument is not finite or mu is not positive.

    Example:
        >>> psi = Remoteness((-1, 1), 0.2)
        >>> distance_lyapunov_slope([-1.0], [-1.5], [0.5], psi, mu=3.0)
        -2.0

    References:
        Correction of Theorem 6 (E20).
    """
    slope, move = finite("gradient", gradient), finite("direction", direction)
    approach = positive("mu", mu) * psi.distance_derivative(w, move)
    return float((slope * move + approach).sum())


def distance_lyapunov_rate(*, mu: float, G: float, clip: float) -> float:
    r"""Return b with dL_mu(w; v) <= -b ||v||^2.

    .. math:: b = \min\{1,\; (\mu - G) / M_c\}

    Args:
        mu: weight of the distance, larger than G.
        G: bound on |g_i|.
        clip: M_c, positive.

    Returns:
        b, in (0, 1].

    Raises:
        ValueError: unless mu > G >= 0 and M_c > 0, all finite.

    Example:
        >>> distance_lyapunov_rate(mu=3.0, G=2.0, clip=4.0)
        0.25

    References:
        Correction of Theorem 6 (E20).
    """
    weight, bound = positive("mu", mu), nonnegative("G", G)
    if not bool(weight > bound):
        raise ValueError(f"mu must exceed G, got mu = {mu!r} and G = {G!r}")
    return min(1.0, float((weight - bound) / positive("clip", clip)))
