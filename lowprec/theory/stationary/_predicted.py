"""Covariance of iterates whose gradients, weights and velocities are rounded."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...schedules import Coefficients, Iteration
from .._inputs import finite, positive
from ._joint import JointCovariance, from_pairs
from ._matrices import Eigenbasis, covariance, symmetric, vector
from ._rounding import gaussian_rounding_variance

_ITERATIONS = 1000
_TOLERANCE = 1e-9


def predicted_covariance(
    iteration: Iteration,
    A: Any,
    Sigma: Any,
    k: int = 1,
    *,
    r_cov: Any = None,
    s_cov: Any = None,
    delta: Any = None,
    velocity_delta: Any = None,
    samples: Any = None,
) -> JointCovariance:
    r"""Return the quasi-static covariance at step k, rounding errors included.

    .. math::
        V &= V_g + V_s, \qquad (1 - e_k) V_g = M V_g M^T + N (\Sigma + R) N^T \\
        V_s &= M V_s M^T + \mathrm{diag}(S_x, 0)
        + \begin{pmatrix} \gamma I \\ I \end{pmatrix} S_v
        \begin{pmatrix} \gamma I \\ I \end{pmatrix}^T

    with M and N of step k, e_k its `Iteration.decay`, S_x and S_v the variances of
    stochastic rounding to the grids of x and v (`gaussian_rounding_variance`), at the
    deviations of the increments that V itself gives.

    Contract:
        With a constant step size this is the stationary covariance of linear gradients:
        exact without rounding, and with it for Gaussian increments, on the lattice that
        a rounded v gives them. With decreasing steps it is what iterates have that
        follow them. For SGD without rounding, W = V/alpha solves
        A W + W A - alpha A W A - d_k W = Sigma. Methods that look ahead round that
        point to the grid of x too, as `optim.ScheduledSGD` does. Rounding to nearest
        has no place here: see `freeze_step`.

    Args:
        iteration: method, step sizes and damping.
        A: Hessian at the minimum, d x d, symmetric positive definite.
        Sigma: covariance of the gradient there, d x d.
        k: number of the step.
        r_cov: R, which the rounding of gradients adds (`rounding_covariance`).
        s_cov: fixed covariance of the error of storing x, instead of ``delta``; with
            delta^2/6 times the identity it is the model of independent errors, which
            is wrong for small steps.
        delta: spacing of the values of x, a number or d of them, as `grid_spacing`
            gives; None means that x is not rounded.
        velocity_delta: spacing of the values of v.
        samples: gradients at the minimum, [N, d], whose distribution the increments
            then have, widened by that of the iterates; None means a Gaussian one of
            covariance Sigma. It matters on grids coarser than the increments, where
            only E|g| counts.

    Returns:
        V, not divided by a step size.

    Raises:
        TypeError: if both ``s_cov`` and ``delta`` are given, or ``velocity_delta`` for
            SGD.
        ValueError: if a matrix is not what it must be, or the step is so large, or
            shrinks so fast, or the grid is so coarse, that there is no stationary
            covariance.

    Example:
        >>> from lowprec.schedules import PowerSchedule
        >>> sgd = Iteration("sgd", PowerSchedule(1.0, 0.5))
        >>> V = predicted_covariance(sgd, [[1.0]], [[1.0]], 20_000, delta=2**-3)
        >>> round(V.position.item(), 5)
        0.05113
        >>> V = predicted_covariance(sgd, [[1.0]], [[1.0]], 20_000)
        >>> round(V.position.item(), 5)
        0.00355

    References:
        Higham and Mary 2022 for stochastic rounding; the self-consistent variance is
        ours.
    """
    if s_cov is not None and delta is not None:
        raise TypeError(
            "give delta, from which the variance follows, or s_cov, which fixes it"
        )
    if velocity_delta is not None and not iteration.has_velocity:
        raise TypeError("method 'sgd' has no velocity to round: omit velocity_delta")
    return with_variances(
        iteration,
        Eigenbasis.of(A),
        Sigma,
        k,
        r_cov,
        s_cov,
        delta,
        velocity_delta,
        samples,
    )[0]


def with_variances(
    iteration: Iteration,
    basis: Eigenbasis,
    Sigma: Any,
    k: int,
    r_cov: Any = None,
    s_cov: Any = None,
    delta: Any = None,
    velocity_delta: Any = None,
    samples: Any = None,
) -> tuple[JointCovariance, Tensor]:
    """Return `predicted_covariance` and the variances of storing x, [d]."""
    d = basis.size
    of_gradient = covariance("Sigma", Sigma, d)
    extra = torch.zeros_like(of_gradient)
    if r_cov is not None:
        extra = symmetric("r_cov", r_cov, d)
        covariance("Sigma + r_cov", of_gradient + extra, d)
    noise = of_gradient + extra
    fixed = None if s_cov is None else covariance("s_cov", s_cov, d)
    x_grid, v_grid = (
        None if x is None else vector(name, positive(name, x), d)
        for name, x in (("delta", delta), ("velocity_delta", velocity_delta))
    )
    system = _System(basis, iteration, k)
    alpha, _, advance, look_ahead = map(float, system.numbers)
    none = torch.zeros(d, dtype=torch.float64)
    errors = [none, none, none]
    V = system.stationary(noise, fixed, errors)
    if x_grid is None and v_grid is None:
        return V, none
    spread, centers = noise.diagonal(), none
    if samples is not None:
        # The samples have the spread of Sigma already.
        spread, centers = extra.diagonal(), alpha * finite("samples", samples)
        if centers.dim() != 2 or centers.shape[1] != d:
            raise ValueError(
                f"samples must have the shape [N, {d}], got {tuple(centers.shape)}"
            )

    def rounded(sd: Tensor, grid: Tensor | None, mean: Tensor, step: float) -> Tensor:
        if grid is None:
            return none
        # What x and the point ahead are moved by is a multiple of a value of v.
        lattice = None if v_grid is None or step == 0 else step * v_grid
        found = gaussian_rounding_variance(sd, grid, mean=mean, lattice=lattice)
        return found.mean(0) if found.dim() == 2 else found

    last = math.inf
    for _ in range(_ITERATIONS):
        of_x, of_v, ahead = system.deviations(V, spread, errors[2])
        found = [
            rounded(of_x, x_grid, none, advance)
            if system.velocity
            else rounded(of_x, x_grid, centers, 0.0),
            rounded(of_v, v_grid, centers, 0.0),
            rounded(ahead, x_grid, none, look_ahead),
        ]
        moved = sum(float((a - b).norm()) for a, b in zip(found, errors, strict=True))
        size = sum(float(a.norm()) for a in found)
        errors = found
        V = system.stationary(noise, fixed, errors)
        # Changes shrink until they are roundings of our own; none without noise.
        if size == 0 or last / 2 <= moved < _TOLERANCE * size:
            return V, errors[0]
        last = moved
    raise ValueError(
        f"no self-consistent covariance found in {_ITERATIONS} iterations, the last "
        f"change was by {last:.3g}: the grid is too coarse; use a finer one"
    )


class _System:
    """One step of an iteration with linear gradients, and its fixed covariance."""

    def __init__(self, basis: Eigenbasis, iteration: Iteration, k: int) -> None:
        self.basis = basis
        self.numbers = Coefficients(*map(float, iteration.coefficients(k)))
        self.velocity = iteration.has_velocity
        alpha, retained, advance, ahead = self.numbers
        pull = -alpha * basis.values
        keep = retained + ahead * pull
        if self.velocity:
            upper = torch.stack([1 + advance * pull, advance * keep], -1)
            steps = torch.stack([upper, torch.stack([pull, keep], -1)], -2)
        else:
            steps = (1 + pull)[:, None, None]
        room = 1 - iteration.decay(k)
        radius = torch.linalg.eigvals(steps).abs().max().item()
        if not radius**2 < min(room, 1):
            largest = basis.values.max().item()
            raise ValueError(
                f"no stationary covariance at step {k}: the spectral radius of the "
                f"step is {radius:.6g}, and its square must be below 1 - e_k = "
                f"{room:.6g}. alpha = {alpha:.6g} is too large (SGD needs alpha < "
                f"2/lambda = {2 / largest:.6g}) or shrinks too fast"
            )
        pairs = torch.einsum("iab,jcd->ijacbd", steps, steps)
        pairs = pairs.flatten(2, 3).flatten(3, 4)
        eye = torch.eye(pairs.shape[-1], dtype=torch.float64)
        # Gradient noise shrinks with the step size, the errors of storing do not.
        self.of_noise = torch.linalg.inv(room * eye - pairs)
        self.of_storing = torch.linalg.inv(eye - pairs)

    def stationary(
        self, noise: Tensor, fixed: Tensor | None, errors: list[Tensor]
    ) -> JointCovariance:
        """Return V for variances of the roundings of x, v and the point ahead."""
        alpha = self.numbers.step
        stored, of_velocity, ahead = (self.basis.into(torch.diag(x)) for x in errors)
        if fixed is not None:
            stored = self.basis.into(fixed)
        curvature = self.basis.values.outer(self.basis.values)
        entering = of_velocity + alpha**2 * curvature * ahead
        noise = alpha**2 * self.basis.into(noise)
        pairs = self._solve(self.of_noise, noise, torch.zeros_like(noise))
        pairs = pairs + self._solve(self.of_storing, entering, stored)
        m = 2 if self.velocity else 1
        return from_pairs(pairs.unflatten(-1, (m, m)), self.basis)

    def _solve(self, inverse: Tensor, entering: Tensor, stored: Tensor) -> Tensor:
        """Return V, [d, d, m m], of what enters v, and x alone."""
        g = self.numbers.advance
        blocks = [g * g * entering + stored, g * entering, g * entering, entering]
        source = torch.stack(blocks if self.velocity else blocks[:1], -1)
        return torch.einsum("ijab,ijb->ija", inverse, source)

    def deviations(
        self, V: JointCovariance, spread: Tensor, ahead: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the deviations of what is added to x, to v, and to look ahead.

        Args:
            V: of the iterates.
            spread: variances of the gradients at the minimum.
            ahead: variances of rounding the point ahead.
        """
        alpha, retained, advance, look_ahead = self.numbers
        hessian = self.basis.back(torch.diag(self.basis.values))
        spread = alpha**2 * (spread + hessian.square() @ ahead)
        if V.velocity is None:
            moved = (hessian @ V.position @ hessian).diagonal()
            change = (spread + alpha**2 * moved).clamp(min=0).sqrt()
            return change, change, torch.zeros_like(change)
        eye = torch.eye(len(hessian), dtype=torch.float64)
        friction = (1 - retained) * eye + alpha * look_ahead * hessian
        row = -torch.cat([alpha * hessian, friction], 1)
        change = (row @ V.matrix @ row.T).diagonal() + spread
        speed = V.velocity.diagonal().sqrt()
        return advance * speed, change.clamp(min=0).sqrt(), look_ahead * speed
