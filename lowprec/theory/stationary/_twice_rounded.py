"""The variance of storing what a gradient, rounded itself, moves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._rounding import excess, gaussian_rounding_variance

# Deviations that count, and the largest deviation in spacings of the gradient that is
# summed point by point: beyond, a lattice is as good as dense, or its fractions are
# spread as evenly as they ever will be.
_REACH = 9
_WIDEST = 32
# The same for a velocity on its grid.
_WIDEST_VELOCITY = 6


def twice_rounded_variance(
    sd: Tensor,
    mean: Tensor,
    lattice: Tensor,
    alpha: float,
    rest: Tensor,
    grid: Tensor,
    rest_lattice: Tensor | None = None,
) -> Tensor:
    r"""Return the variance of stochastic rounding of w - alpha fl(g) to a grid.

    .. math::
        \sum_n P_n \phi(\alpha n \ell), \qquad
        P_n = E \max\Bigl(0, 1 - \Bigl|\frac g\ell - n\Bigr|\Bigr), \quad
        \phi(m) = \delta^2 E[f (1 - f)] \text{ for } u \sim N(m, s_w^2)

    with g ~ N(mean, sd^2) rounded stochastically to multiples of l, which keeps E|g|:
    steps below the grid leave the same variance with and without that rounding.

    Args:
        sd: of g, [d].
        mean: of g, [d] or [N, d].
        lattice: l, [d] or [N, d].
        alpha: step size.
        rest: s_w, deviation of w, [d].
        grid: delta, [d].
        rest_lattice: spacing of the values of w, [d]; None if they are dense.

    Returns:
        Tensor of the broadcast shape.
    """
    sd, mean, lattice, rest, grid = torch.broadcast_tensors(
        sd, mean, lattice, rest, grid
    )
    width = torch.minimum(sd / lattice, torch.tensor(float(_WIDEST))).unsqueeze(-1)
    center = (mean / lattice).unsqueeze(-1)
    reach = int((_REACH * width.max()).ceil()) + 1
    n = center.floor() + torch.arange(-reach, reach + 2, dtype=torch.float64)
    away = n - center
    # Without a deviation the two neighbours of the mean share the probability; the
    # second difference of what lies beyond them carries the rest.
    beyond = [excess(width, (away + j).abs()) for j in (-1, 0, 1)]
    shares = (1 - away.abs()).clamp(min=0) + beyond[0] - 2 * beyond[1] + beyond[2]
    moved = alpha * n * lattice.unsqueeze(-1)
    summed = torch.zeros_like(sd)
    for weight, shift, deviation in _laws(rest, rest_lattice):
        variances = gaussian_rounding_variance(
            deviation.unsqueeze(-1),
            grid.unsqueeze(-1),
            mean=moved + shift.unsqueeze(-1),
        )
        summed += weight * (shares * variances).sum(-1)
    fine = (sd > _WIDEST * lattice) & (alpha * lattice * _WIDEST < 2 * grid)
    if not bool(fine.any()):
        return summed
    total = (alpha**2 * sd.square() + rest.square()).sqrt()
    dense = gaussian_rounding_variance(total, grid, mean=alpha * mean)
    return torch.where(fine, dense, summed)


def _laws(
    sd: Tensor, lattice: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield weights, means and deviations of Gaussians whose mixture is w's law."""
    zero = torch.zeros_like(sd)
    if lattice is None or bool((sd > _WIDEST_VELOCITY * lattice).any()):
        yield zero + 1, zero, sd
        return
    points = range(-_REACH * _WIDEST_VELOCITY, _REACH * _WIDEST_VELOCITY + 1)
    unit = lattice / sd.clamp(min=1e-300)
    weights = torch.stack([torch.exp(-((n * unit) ** 2) / 2) for n in points])
    for n, weight in zip(points, weights / weights.sum(0), strict=True):
        if bool((weight > 1e-18).any()):
            yield weight, n * lattice, zero
