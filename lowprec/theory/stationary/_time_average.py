"""The time average of SGD: its limit, its finite form, its bias, and rounding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...schedules import Iteration, PowerSchedule
from .._inputs import count, finite
from ._matrices import Eigenbasis, covariance, vector
from ._predicted import gradients_of, with_variances
from ._rounding import gaussian_rounding_variance

# Steps at which the variance of storing x is computed; it is smooth in between.
_KNOTS = 64


def time_average_covariance(
    A: Any,
    Sigma: Any,
    schedule: PowerSchedule | None = None,
    n: int | None = None,
    *,
    x0: Any = 0.0,
    delta: Any = None,
    samples: Any = None,
) -> Tensor:
    r"""Return the second moment of (T_n / sqrt(S_n)) (xbar_n - x*) for linear SGD.

    .. math::
        \bar x_n = \frac{1}{T_n} \sum_{k \le n} \alpha_k x_{k-1}, \quad
        T_n = \sum \alpha_k, \; S_n = \sum \alpha_k^2, \qquad
        \to A^{-1} \Sigma A^{-1}

    and exactly, with propagators Pi_k = prod_{j > k} (I - alpha_j A),

    .. math::
        T_n (\bar x_n - x^*) = A^{-1} \sum_k (I - \Pi_k) (\alpha_k \xi_k + s_k)
        + A^{-1} (I - \Pi_0) (x_0 - x^*) .

    Contract:
        The limit needs S_n to diverge: a <= 1/2. With ``delta`` the weights are rounded
        stochastically to a grid and the s_k have the variances of
        `predicted_covariance` at step k, or while steps are too large for that, of the
        second moments step by step; the second moment then grows like T_n / S_n,
        which still means that xbar_n approaches x* while x_n does not.

    Args:
        A: Hessian, d x d, symmetric positive definite.
        Sigma: covariance of the gradient, d x d.
        schedule: alpha_k; None for the limit.
        n: number of steps; None for the limit.
        x0: x_0 - x*, d elements or a number for all.
        delta: spacing of the values of x; None means that they are not rounded.
        samples: gradients at the minimum, as in `predicted_covariance`.

    Returns:
        Matrix d x d.

    Raises:
        TypeError: if only one of schedule and n is given, or delta without them.
        ValueError: if an argument is out of range.

    Example:
        >>> time_average_covariance([[2.0]], [[1.0]]).item()
        0.25
        >>> steps = PowerSchedule(0.5, 0.4)
        >>> W = time_average_covariance([[2.0]], [[1.0]], steps, 100_000)
        >>> round(W.item(), 4)
        0.2499

    References:
        Li, Xiao and Yang, section 5 (C13); with rounding ours.
    """
    basis = Eigenbasis.of(A)
    noise = covariance("Sigma", Sigma, basis.size)
    if schedule is None or n is None:
        if not (schedule is None and n is None and delta is None):
            raise TypeError(
                "schedule and n come together; delta has no limit and needs both"
            )
        return basis.back(basis.into(noise) / basis.values.outer(basis.values))
    count("n", n)
    alpha = schedule(torch.arange(1, n + 1))
    factors = 1 - alpha[:, None] * basis.values
    # Products over j > k, and over all j for the start.
    after = factors.flip(0).cumprod(0).flip(0)
    weights = 1 - torch.cat([after[1:], torch.ones(1, basis.size)])
    total = basis.into(noise) * (
        (alpha[:, None] * weights).T @ (alpha[:, None] * weights)
    )
    if delta is not None:
        first = vector("x0", x0, basis.size)
        stored = _stored_variances(basis, noise, schedule, n, first, delta, samples)
        for direction, variance in zip(basis.vectors, stored.T, strict=True):
            shaped = weights * direction
            total = total + (variance[:, None] * shaped).T @ shaped
    start = (1 - after[0]) * (basis.vectors.T @ vector("x0", x0, basis.size))
    total = (total + start.outer(start)) / basis.values.outer(basis.values)
    return basis.back(total) / schedule.partial_sum(n, 2)


def time_average_bias(A: Any, W: Any, third_derivative: Any) -> Tensor:
    r"""Return the limit of T_n E(xbar_n - x*) / S_n for nonlinear gradients.

    .. math::
        -\tfrac12 A^{-1} \bigl(\nabla^3 f(x^*) : W\bigr), \qquad
        (\nabla^3 f : W)_i = \sum_{jl} \partial_i \partial_j \partial_l f\; W_{jl}

    Contract:
        Unless this is zero, (T_n / sqrt(S_n)) (xbar_n - x*) has no limit law: its mean
        grows like sqrt(S_n). It exists if a > 1/3 or by symmetry.

    Args:
        A: Hessian at the minimum, d x d, symmetric positive definite.
        W: limit covariance of x over alpha, `limit_covariance`.
        third_derivative: of f at the minimum, d x d x d.

    Returns:
        Vector of d elements.

    Raises:
        ValueError: if shapes differ or a matrix is not what it must be.

    Example:
        >>> time_average_bias([[1.0]], [[0.5]], [[[1.8]]])
        tensor([-0.4500], dtype=torch.float64)

    References:
        Ours; Li, Xiao and Yang, section 5 show that there is no limit in general (C15).
    """
    basis = Eigenbasis.of(A)
    matrix = covariance("W", W, basis.size)
    third = finite("third_derivative", third_derivative)
    if third.shape != (basis.size,) * 3:
        raise ValueError(
            f"third_derivative must have the shape {(basis.size,) * 3}, got "
            f"{tuple(third.shape)}"
        )
    contracted = torch.einsum("ijl,jl->i", third, matrix)
    return -basis.solve(contracted) / 2


def _stored_variances(
    basis: Eigenbasis,
    Sigma: Tensor,
    schedule: PowerSchedule,
    n: int,
    start: Tensor,
    delta: Any,
    samples: Any,
) -> Tensor:
    """Return the variances of storing x at all steps, [n, d]."""
    iteration = Iteration("sgd", schedule)
    first = _settled(iteration, basis, n)
    early = _early_variances(basis, Sigma, schedule, first - 1, start, delta, samples)
    if first > n:
        return early
    knots = torch.logspace(
        math.log10(first), math.log10(n), _KNOTS, dtype=torch.float64
    )
    knots = knots.round().clamp(first, n).unique()
    table = torch.stack(
        [
            with_variances(
                iteration, basis, Sigma, int(k), delta=delta, samples=samples
            )[1]
            for k in knots.tolist()
        ]
    )
    if len(knots) == 1:
        return torch.cat([early, table.expand(n - first + 1, -1)])
    steps = torch.arange(first, n + 1, dtype=torch.float64)
    right = torch.searchsorted(knots, steps).clamp(1, len(knots) - 1)
    low, high = knots[right - 1].log(), knots[right].log()
    share = ((steps.log() - low) / (high - low))[:, None]
    return torch.cat([early, torch.lerp(table[right - 1], table[right], share)])


def _settled(iteration: Iteration, basis: Eigenbasis, n: int) -> int:
    """Return the first step from which on V follows the steps, n + 1 if none.

    Steps must not overshoot, so that what larger ones before them left is forgotten,
    and not shrink faster than V, as `predicted_covariance` needs.
    """
    smallest, largest = basis.values.min().item(), basis.values.max().item()
    for k in range(1, n + 1):
        alpha = iteration.step_size(k)
        room = 1 - iteration.decay(k)
        if alpha * largest <= 1 and (1 - alpha * smallest) ** 2 < min(room, 1):
            return k
    return n + 1


def _early_variances(
    basis: Eigenbasis,
    Sigma: Tensor,
    schedule: PowerSchedule,
    n: int,
    start: Tensor,
    delta: Any,
    samples: Any,
) -> Tensor:
    """Return the variances of storing x, [n, d], from E x x^T step by step."""
    A = basis.back(torch.diag(basis.values))
    eye = torch.eye(basis.size, dtype=torch.float64)
    spread, centers = Sigma.diagonal(), torch.zeros(basis.size, dtype=torch.float64)
    if samples is not None:
        spread, centers = torch.zeros_like(centers), gradients_of(samples, basis.size)
    grid = vector("delta", delta, basis.size)
    V = start.outer(start)
    found = torch.empty(n, basis.size, dtype=torch.float64)
    for k in range(n):
        alpha = float(schedule(k + 1))
        sd = alpha * (spread + (A @ V @ A).diagonal()).clamp(min=0).sqrt()
        stored = gaussian_rounding_variance(sd, grid, mean=alpha * centers)
        found[k] = stored.mean(0) if stored.dim() == 2 else stored
        keep = eye - alpha * A
        V = keep @ V @ keep + alpha**2 * Sigma + torch.diag(found[k])
    return found
