"""What roundings of gradients and of stored weights add to a covariance."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ...rounding import RoundingLike, as_rounding
from .._inputs import finite, nonnegative, positive
from ._matrices import Eigenbasis

Mode: TypeAlias = Literal["stochastic", "nearest"]

# Below this ratio of deviation to spacing two neighbours hold all the probability,
# and the theta series would need many terms; above, this many are enough.
_NARROW = 1 / 12
_TERMS = 24
# Points of a lattice on each side of zero, and deviations that they reach.
_POINTS = 4096
_REACH = 9


def grid_spacing(format: RoundingLike | torch.dtype, x: Any) -> Tensor:
    r"""Return the distance delta_j of neighbouring values of a format around x_j.

    .. math::
        \delta_j = \mathrm{ulp}(x_j) = 2^{\max(e, e_{min}) - p + 1},
        \qquad 2^e \le |x_j| < 2^{e+1}

    Contract:
        A floating-point format is a grid with this spacing if x stays in its binade:
        several deviations away from the powers of two. Exact, as `Format.ulp`.

    Args:
        format: of the weights or gradients.
        x: finite tensor of any shape, such as the minimum x* or samples of gradients.

    Returns:
        float64 tensor of the shape of x.

    Raises:
        ValueError: if x is not finite.

    Example:
        >>> grid_spacing("bfloat16", [0.0, 1.0, 3.0])
        tensor([9.1835e-41, 7.8125e-03, 1.5625e-02], dtype=torch.float64)
    """
    size = finite("x", x).abs()
    form = as_rounding(format).format
    smallest = float(form.smallest_normal)
    exponent = torch.frexp(size).exponent - 1
    spacing = torch.ldexp(torch.ones_like(size), exponent - form.precision + 1)
    # The quantum of subnormal numbers; without them, the step to zero.
    lowest = torch.full_like(size, float(form.smallest_subnormal))
    return torch.where(size < smallest, lowest, spacing)


def rounding_covariance(
    samples: Any, delta: Any, alpha: float = 1.0, *, mode: Mode = "stochastic"
) -> Tensor:
    r"""Return what rounding of samples adds to their covariance.

    .. math::
        \mathrm{diag}\, E[\delta_j^2 f_j (1 - f_j)],
        \quad f_j = \mathrm{frac}(\alpha g_j / \delta_j) \text{ (stochastic)}, \qquad
        \mathrm{Cov}(\mathrm{fl}(\alpha g)) - \mathrm{Cov}(\alpha g) \text{ (nearest)}

    Contract:
        For gradients (r_k), alpha is 1 and the result R goes beside Sigma: the limit
        theorem holds with Sigma + R. For weights (s_k) that are stored on the grid,
        alpha is the step size, and the result S(alpha) is of order alpha for steps
        smaller than the grid, not of order alpha^2. Rounding to nearest is biased
        besides: `rounding_shift`.

    Args:
        samples: g at the minimum, [N, d].
        delta: spacing of the grid: a number, d of them, or one for each sample as
            `grid_spacing` of the samples gives for a floating-point format.
        alpha: factor of the samples.
        mode: ``"stochastic"`` or ``"nearest"`` (ties to even).

    Returns:
        Matrix [d, d]; diagonal for stochastic rounding. That of rounding to nearest
        may be indefinite.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> rounding_covariance([[0.25], [-0.5]], 1.0)
        tensor([[0.2188]], dtype=torch.float64)

    References:
        The variance of stochastic rounding is that of a Bernoulli variable.
    """
    gradients, spacing = _on_grid(samples, delta)
    steps = float(positive("alpha", alpha)) * gradients
    if mode == "stochastic":
        fraction = torch.frac(steps / spacing).abs()
        return torch.diag((spacing**2 * fraction * (1 - fraction)).mean(0))
    if mode != "nearest":
        raise ValueError(f"mode must be 'stochastic' or 'nearest', got {mode!r}")
    rounded = torch.round(steps / spacing) * spacing
    return _covariance(rounded) - _covariance(steps)


def gaussian_rounding_variance(
    sd: Any, delta: Any, *, mean: Any = 0.0, lattice: Any = None
) -> Tensor:
    r"""Return the variance of stochastic rounding of u ~ N(m, s^2) to a grid.

    .. math::
        \delta^2 E[f (1 - f)] = \delta^2 \Bigl[\frac16 - \sum_{n \ge 1}
        \frac{\cos(2\pi n m/\delta)\, e^{-2 \pi^2 n^2 s^2 / \delta^2}}{\pi^2 n^2}\Bigr]
        \approx \delta\, E|u| - E u^2 \text{ for } m = 0, s \ll \delta

    Contract:
        Relative error below 1e-11. Small steps have a variance of order delta s, less
        than delta^2/6: the weight already is on the grid. If u itself has values on a
        lattice, such as a step size times a rounded velocity, the expectation is that
        of a discrete Gaussian, whose fractions may be few; its deviation is taken to be
        s, which needs s > lattice/2.

    Args:
        sd: s >= 0, standard deviation of what is added to a value of the grid.
        delta: spacing of the grid, positive; broadcasts against ``sd``.
        mean: m, likewise.
        lattice: spacing of the values of u, likewise, for m = 0; None means that they
            are dense.

    Returns:
        float64 tensor of the broadcast shape.

    Raises:
        TypeError: if ``mean`` and ``lattice`` are given.
        ValueError: if an argument is out of range.

    Example:
        >>> gaussian_rounding_variance([0.01, 1.0], 1.0)
        tensor([0.0079, 0.1667], dtype=torch.float64)
        >>> gaussian_rounding_variance(1.0, 1.0, lattice=0.5)  # f is 0 or 1/2
        tensor(0.1250, dtype=torch.float64)
    """
    deviation, spacing, center = torch.broadcast_tensors(
        nonnegative("sd", sd), positive("delta", delta), finite("mean", mean)
    )
    unit = spacing.square()
    dense: Tensor = unit * _dense_variance(deviation / spacing, center / spacing)
    if lattice is None:
        return dense
    if bool(center.any()):
        raise TypeError("increments on a lattice have mean zero: omit mean or lattice")
    step = positive("lattice", lattice)
    # Beyond its reach a lattice is as good as dense, or all fractions are alike.
    widest = _POINTS / _REACH * step
    points = torch.arange(-_POINTS, _POINTS + 1, dtype=torch.float64)
    u = points * step[..., None]
    spread = torch.minimum(deviation, widest).clamp(min=1e-300)[..., None]
    weights = torch.exp(-((u / spread) ** 2) / 2)
    fraction = torch.frac(u / spacing[..., None]).abs()
    average: Tensor = (weights * fraction * (1 - fraction)).sum(-1) / weights.sum(-1)
    fine = (deviation > widest) & (widest < 3 * spacing)
    variance: Tensor = torch.where(fine, dense, unit * average)
    return variance


def _dense_variance(sd: Tensor, mean: Tensor) -> Tensor:
    """Return E f (1 - f) for the grid of integers."""
    fraction = mean - mean.floor()
    series = torch.full_like(sd, 1 / 6)
    for n in range(1, _TERMS + 1) if bool((sd >= _NARROW).any()) else ():
        wave = torch.cos(2 * math.pi * n * fraction)
        series -= wave * torch.exp(-2 * (math.pi * n * sd) ** 2) / (math.pi * n) ** 2
    if not bool((sd < _NARROW).any()):
        return series
    # A parabola, but for what lies beyond the integers on either side.
    beyond = excess(sd, fraction) + excess(sd, 1 - fraction)
    direct = fraction * (1 - fraction) - sd.square() + 2 * beyond
    return torch.where(sd < _NARROW, direct, series)


def excess(sd: Tensor, distance: Tensor) -> Tensor:
    """Return E max(u - distance, 0) for u ~ N(0, sd^2)."""
    z = distance / sd.clamp(min=1e-300)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    # The tail, relative to the density, without cancellation.
    tail = torch.special.erfcx(z / math.sqrt(2)) * math.sqrt(math.pi / 2)
    return sd * density * (1 - torch.nan_to_num(z * tail, nan=1.0))


def rounding_shift(A: Any, samples: Any, delta: Any) -> Tensor:
    r"""Return how far rounding gradients to nearest moves the mean, to first order.

    .. math::
        E x - x^* \approx -A^{-1} E r(x^*), \qquad r = \mathrm{fl}(g) - g

    Contract:
        The shift does not shrink with the step size, and averages do not remove it:
        the limit theorem holds around the shifted point. Stochastic rounding has none.

    Args:
        A: Hessian at the minimum, d x d, symmetric positive definite.
        samples: g at the minimum, [N, d].
        delta: spacing, as in `rounding_covariance`.

    Returns:
        Vector of d elements.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> rounding_shift([[2.0]], [[0.25], [0.25], [-0.75]], 1.0)
        tensor([0.1250], dtype=torch.float64)
    """
    basis = Eigenbasis.of(A)
    gradients, spacing = _on_grid(samples, delta)
    if gradients.shape[1] != basis.size:
        raise ValueError(
            f"samples must have {basis.size} columns as A has, got "
            f"{tuple(gradients.shape)}"
        )
    error = (torch.round(gradients / spacing) * spacing - gradients).mean(0)
    return -basis.solve(error)


def _on_grid(samples: Any, delta: Any) -> tuple[Tensor, Tensor]:
    gradients = finite("samples", samples)
    if gradients.dim() != 2 or len(gradients) == 0:
        raise ValueError(
            f"samples must have the shape [N, d], got {tuple(gradients.shape)}"
        )
    spacing = positive("delta", delta)
    try:
        return gradients, spacing.expand(gradients.shape)
    except RuntimeError as error:
        raise ValueError(
            f"delta must be a number, have {gradients.shape[1]} elements or the shape "
            f"of the samples, got {tuple(spacing.shape)}"
        ) from error


def _covariance(x: Tensor) -> Tensor:
    away = x - x.mean(0)
    moments: Tensor = away.T @ away / len(x)
    return moments
