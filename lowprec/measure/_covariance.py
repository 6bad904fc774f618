"""Covariances of replicas around the minimiser, and of the gradients behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from ._batched_gradient import SampleLoss

CovarianceNorm = Literal["fro", 2]

_MOST_STEPS = 100
_HALVINGS = 40


def scaled_covariance(
    x: Tensor, scale: float, *, centre: Tensor | Literal["mean"]
) -> Tensor:
    r"""Estimate the covariance of replicas in units of the step size.

    .. math::
        \tilde W = \frac{1}{M \alpha} \sum_m (x^m - x^*)(x^m - x^*)^T

    Contract:
        In float64. Around the mean of the replicas the divisor is (M - 1) alpha, which
        keeps the estimate unbiased; a bias of the mean is then not part of it.

    Args:
        x: replicas, [M, d].
        scale: alpha_k, or beta_k = alpha_k / mu_k for vanishing damping.
        centre: x*, [d], or ``"mean"``.

    Returns:
        The estimate, [d, d].

    Raises:
        ValueError: for other shapes, a scale that is not positive, replicas that are
            not finite, none, or one around its own mean.

    Example:
        >>> x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        >>> scaled_covariance(x, 0.5, centre=torch.zeros(1)).item()
        2.0
        >>> scaled_covariance(x, 0.5, centre="mean").item()
        4.0

    References:
        Li, Xiao and Yang, section 6 (C17: x there is x - x*).
    """
    if x.dim() != 2:
        raise ValueError(
            f"x must hold one replica per row, [M, d], got {tuple(x.shape)}"
        )
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    values = x.to(torch.float64)
    count = x.shape[0]
    if count == 0 or not bool(values.isfinite().all()):
        raise ValueError(
            "x must hold one or more finite replicas, got "
            f"{int((~values.isfinite()).any(1).sum())} of {count} that are not finite"
        )
    if isinstance(centre, Tensor):
        if centre.shape != x.shape[1:]:
            raise ValueError(
                f"centre must have the shape {tuple(x.shape[1:])} of a replica, "
                f"got {tuple(centre.shape)}"
            )
        deviations = values - centre
    elif centre == "mean":
        if count < 2:
            raise ValueError(
                "a covariance around the mean needs 2 or more replicas: "
                "give centre=x*, or more replicas"
            )
        deviations = values - values.mean(0)
        count -= 1
    else:
        raise ValueError(f"centre must be a tensor or 'mean', got {centre!r}")
    return deviations.T @ deviations / (count * scale)


def relative_error(
    measured: Tensor, expected: Tensor, norm: CovarianceNorm = "fro"
) -> float:
    """Return the norm of the difference of two matrices, relative to the second.

    Args:
        measured: matrix.
        expected: matrix of the same shape, not zero.
        norm: ``"fro"``, or 2 for the largest singular value.

    Returns:
        ||measured - expected|| / ||expected||.

    Raises:
        ValueError: for other norms or shapes, or if ``expected`` is zero or not finite.

    Example:
        >>> identity = torch.eye(4)
        >>> relative_error(1.5 * identity, identity), relative_error(
        ...     1.5 * identity, identity, norm=2
        ... )
        (0.5, 0.5)
    """
    if norm not in get_args(CovarianceNorm):
        raise ValueError(f"norm must be 'fro' or 2, got {norm!r}")
    if measured.dim() != 2 or measured.shape != expected.shape:
        raise ValueError(
            "measured and expected must be matrices of one shape, got "
            f"{tuple(measured.shape)} and {tuple(expected.shape)}"
        )
    size: Any = torch.linalg.matrix_norm
    scale = float(size(expected, norm))
    if not 0 < scale < math.inf:
        raise ValueError(
            f"expected must be finite and not zero, got a norm of {scale}: no error is "
            "relative to it"
        )
    return float(size(measured - expected, norm)) / scale


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """An objective f = mean of the losses near its minimiser.

    Args:
        minimiser: x*, float64 [d].
        hessian: A, that of f at x*, [d, d].
        noise: Sigma, covariance of the sample's gradients at x*, [d, d].
        gradients: of every sample at x*, [N, d].
    """

    minimiser: Tensor
    hessian: Tensor
    noise: Tensor
    gradients: Tensor


def local_model(
    loss: SampleLoss,
    data: tuple[Tensor, ...],
    start: Tensor,
    *,
    tolerance: float = 1e-14,
) -> LocalModel:
    """Find the minimiser of the mean loss by Newton's method, with A and Sigma there.

    Contract:
        In float64. Steps are halved until the gradient becomes smaller, so a strictly
        convex objective converges from anywhere.

    Args:
        loss: of a parameter vector [d] and one sample, a scalar, twice differentiable.
        data: tensors whose first dimension counts the N samples.
        start: first iterate, float64 [d].
        tolerance: largest ||grad f|| of the result.

    Returns:
        The minimiser, the Hessian and the covariance of the gradients.

    Raises:
        ValueError: if a Hessian on the way is not positive definite, or the tolerance
            is not reached.

    Example:
        >>> samples = torch.tensor([1.0, 3.0], dtype=torch.float64)
        >>> zero = torch.zeros(1, dtype=torch.float64)
        >>> model = local_model(
        ...     lambda x, s: 2 * (x - s).square().sum(), (samples,), zero
        ... )
        >>> model.minimiser.item(), model.hessian.item(), model.noise.item()
        (2.0, 4.0, 16.0)
    """

    def objective(x: Tensor) -> Tensor:
        return vmap(loss, in_dims=(None, *(0 for _ in data)))(x, *data).mean()

    gradient = grad(objective)
    x = start.detach().to(torch.float64)
    slope = gradient(x)
    for _ in range(_MOST_STEPS):
        if float(slope.norm()) <= tolerance:
            break
        direction = torch.cholesky_solve(
            slope.unsqueeze(-1), _cholesky(hessian(objective)(x))
        ).squeeze(-1)
        size, found = 1.0, False
        for _ in range(_HALVINGS):
            trial = x - size * direction
            found = bool((steepness := gradient(trial)).norm() < slope.norm())
            if found:
                x, slope = trial, steepness
                break
            size /= 2
        if not found:
            break
    if not float(slope.norm()) <= tolerance:
        raise ValueError(
            f"Newton's method stopped at a gradient of norm {float(slope.norm()):.3g}, "
            f"above the tolerance {tolerance:g}: start nearer, or allow more"
        )
    curvature = hessian(objective)(x)
    _cholesky(curvature)
    single = vmap(grad(loss), in_dims=(None, *(0 for _ in data)))(x, *data)
    deviations = single - single.mean(0)
    return LocalModel(
        minimiser=x,
        hessian=curvature,
        noise=deviations.T @ deviations / deviations.shape[0],
        gradients=single,
    )


def _cholesky(matrix: Tensor) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        smallest = float(torch.linalg.eigvalsh(matrix)[0])
        raise ValueError(
            "the Hessian must be positive definite, got smallest eigenvalue "
            f"{smallest:.3g}: add a penalty such as beta/2 ||x||^2 to the loss"
        )
    return factor
