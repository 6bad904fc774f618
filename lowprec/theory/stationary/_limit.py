"""Limit covariances in closed form, by pairs of eigenvalues of the Hessian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...schedules import InverseTimeDamping, Method, PowerSchedule
from .._inputs import nonnegative
from ._drift import check_damping, rate_of
from ._joint import JointCovariance, from_pairs
from ._lyapunov import check_stable
from ._matrices import Eigenbasis, covariance


def limit_covariance(
    method: Method,
    A: Any,
    Sigma: Any,
    *,
    damping: float | None = None,
    d0: float = 0.0,
) -> JointCovariance:
    r"""Return W*, the covariance of the limit law of Z_k / sqrt(alpha_k).

    .. math::
        D W + W D^T - d_0 W = \mathrm{diag}(0, \Sigma)

    For SGD, A W + W A - d0 W = Sigma. With A = U diag(lambda) U^T and Sigma taken into
    that basis, W_ij = Sigma_ij / (lambda_i + lambda_j - d0) for SGD, and

    .. math::
        H_{ij} &= \Sigma_{ij} / [\lambda_i b_{ji} + \lambda_j b_{ij} + (p + q + d_0) j],
        \quad j = \lambda_i + p\, b_{ij} \\
        b_{ij} &= \frac{\lambda_j - \lambda_i - q d_0}{p + q}, \quad
        p = m_i - d_0,\; q = m_j - d_0, \qquad B = b H,\; J = j H

    with m_i = mu for momentum and Nesterov, mu + lambda_i for NaSGD.

    Contract:
        float64. The rounding of gradients adds to Sigma (`rounding_covariance`); that
        of weights does not fit this limit (`covariance_floor`).

    Args:
        method: ``"sgd"``, ``"momentum"``, ``"nesterov"`` or ``"nasgd"``, with step
            sizes as in `Iteration`.
        A: Hessian at the minimum, d x d, symmetric positive definite.
        Sigma: covariance of the gradient there, d x d.
        damping: mu, positive; None for SGD.
        d0: of the schedule, `PowerSchedule.d0`.

    Returns:
        The blocks H (position), B (cross) and J (velocity).

    Raises:
        TypeError: if damping is missing or superfluous.
        ValueError: if A is not positive definite, or D - d0/2 I not positive stable.

    Example:
        >>> W = limit_covariance("momentum", [[2.0]], [[1.0]], damping=0.5)
        >>> W.position.item(), W.velocity.item()
        (0.5, 1.0)

    References:
        Li, Xiao and Yang, Theorems 3.1, 4.1 and 4.2, Remark 3.1 (C1) and Remark 4.2
        (C9); for d0 > 0 and NaSGD ours.
    """
    basis, mu = Eigenbasis.of(A), check_damping(method, damping)
    noise = basis.into(covariance("Sigma", Sigma, basis.size))
    slow = float(nonnegative("d0", d0))
    rate = rate_of(method, basis.values, mu)
    check_stable(rate, slow, "mu" if mu is None else "lambda_D")
    left, right = basis.values[:, None], basis.values[None, :]
    if mu is None:
        return JointCovariance(position=basis.back(noise / (left + right - slow)))
    friction = mu + (basis.values if method == "nasgd" else 0 * basis.values)
    p, q = friction[:, None] - slow, friction[None, :] - slow
    b = (right - left - q * slow) / (p + q)
    transposed = (left - right - p * slow) / (p + q)
    j = left + p * b
    position = noise / (left * transposed + right * b + (p + q + slow) * j)
    pairs = torch.stack([position, transposed * position, b * position, j * position])
    return from_pairs(pairs.permute(1, 2, 0).unflatten(-1, (2, 2)), basis)


def commutant_projection(A: Any, Sigma: Any, *, tolerance: float = 1e-8) -> Tensor:
    r"""Return the part of Sigma that commutes with A.

    .. math::
        \Pi(\Sigma) = \sum_\lambda P_\lambda \Sigma P_\lambda

    over the eigenspaces of A, with P the orthogonal projections on them.

    Args:
        A: symmetric positive definite, d x d.
        Sigma: symmetric positive semidefinite, d x d.
        tolerance: eigenvalues that differ relatively by less count as equal.

    Returns:
        Matrix like Sigma.

    Raises:
        ValueError: if a matrix is not what it must be.

    Example:
        >>> A = torch.diag(torch.tensor([1.0, 2.0]))
        >>> commutant_projection(A, [[3.0, 1.0], [1.0, 3.0]]).tolist()
        [[3.0, 0.0], [0.0, 3.0]]
    """
    basis = Eigenbasis.of(A)
    return basis.back(_projected(basis, Sigma, float(tolerance)))


def vanishing_damping_covariance(
    A: Any,
    Sigma: Any,
    schedule: PowerSchedule,
    damping: PowerSchedule | InverseTimeDamping,
) -> JointCovariance:
    r"""Return the covariance of the limit law of Z_k / sqrt(beta_k), beta = alpha/mu.

    .. math::
        W^* = \frac{1}{2 (1 - c_0)}
        \begin{pmatrix} A^{-1} \Pi(\Sigma) & 0 \\ 0 & \Pi(\Sigma) \end{pmatrix}

    with the projection of `commutant_projection` and c_0 = 0 unless a + b = 1.

    Contract:
        For momentum. The paper states W* for commuting A and Sigma, where Pi does
        nothing. Convergence is slow: compare runs with `linear_covariance`.

    Args:
        A: Hessian at the minimum, d x d, symmetric positive definite.
        Sigma: covariance of the gradient there, d x d.
        schedule: alpha_k.
        damping: mu_k.

    Returns:
        The blocks of W*.

    Raises:
        ValueError: if the damping vanishes too fast or not at all, naming the
            conditions that fail.

    Example:
        >>> steps, damping = PowerSchedule(0.5, 0.75), PowerSchedule(1.0, 0.15)
        >>> W = vanishing_damping_covariance([[4.0]], [[1.0]], steps, damping)
        >>> W.position.item(), W.velocity.item()
        (0.125, 0.5)

    References:
        Li, Xiao and Yang, Theorem 4.3, (61) and Remark 4.4, corrected (C10 to C12).
    """
    report = schedule.check(damping=damping)
    if not report.holds:
        reasons = "; ".join(condition.statement for condition in report.failed)
        raise ValueError(f"no limit covariance, these conditions fail: {reasons}")
    basis = Eigenbasis.of(A)
    half = report.inflation / 2 * _projected(basis, Sigma, 1e-8)
    return JointCovariance(
        position=basis.back(half / basis.values.sqrt().outer(basis.values.sqrt())),
        cross=torch.zeros_like(half),
        velocity=basis.back(half),
    )


def _projected(basis: Eigenbasis, Sigma: Any, tolerance: float) -> Tensor:
    noise = basis.into(covariance("Sigma", Sigma, basis.size))
    # Eigenvalues are sorted: a gap starts a new eigenspace.
    gaps = basis.values.diff() > tolerance * basis.values[-1]
    space = torch.cat([torch.zeros(1), gaps.cumsum(0)])
    return noise * (space[:, None] == space[None, :])
