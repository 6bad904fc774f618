"""Covariance of iterates whose gradients, weights and velocities are rounded."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...schedules import Coefficients, Iteration
from .._inputs import finite, positive
from ._joint import JointCovariance, from_pairs
from ._matrices import Eigenbasis, covariance, symmetric, vector
from ._rounding import gaussian_rounding_variance
from ._twice_rounded import twice_rounded_variance

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
    gradient_delta: Any = None,
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
    deviations of the increments that V itself gives, and R what rounding of gradients
    adds. Rounded gradients move x by multiples of alpha times their grid: E|g| stays,
    so that steps below the grid of x have the S_x of unrounded gradients.

    Contract:
        With a constant step size this is the stationary covariance of linear gradients:
        exact without rounding, and with it for Gaussian increments, on the lattice that
        a rounded v gives them; with velocities and gradients both on coarse grids
        within some per cent, some 5 % where v hardly leaves zero. With decreasing
        steps it is what iterates have that follow them. For SGD without rounding,
        W = V/alpha solves A W + W A - alpha A W A - d_k W = Sigma. Methods that look
        ahead round that point to the grid of x too, as `optim.ScheduledSGD` does.
        Rounding to nearest has no place here: see `freeze_step`.

    Args:
        iteration: method, step sizes and damping.
        A: Hessian at the minimum, d x d, symmetric positive definite.
        Sigma: covariance of the gradient there, d x d.
        k: number of the step.
        r_cov: R, fixed (`rounding_covariance`), for x and v that are not rounded, or
            whose errors ``s_cov`` fixes.
        s_cov: fixed covariance of the error of storing x, instead of ``delta``; with
            delta^2/6 times the identity it is the model of independent errors, which
            is wrong for small steps.
        delta: spacing of the values of x, a number or d of them, as `grid_spacing`
            gives; None means that x is not rounded.
        velocity_delta: spacing of the values of v.
        gradient_delta: spacing of the values to which gradients are rounded
            stochastically, from which R follows: a number, d of them, or [N, d], one
            for each sample, as `grid_spacing` of the samples gives.
        samples: gradients at the minimum, [N, d], whose distribution the increments
            then have, widened by that of the iterates; None means a Gaussian one of
            covariance Sigma. It matters on grids coarser than the increments, where
            only E|g| counts.

    Returns:
        V, not divided by a step size.

    Raises:
        TypeError: if both ``s_cov`` and ``delta`` are given, ``r_cov`` and a spacing,
            or ``velocity_delta`` for SGD.
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
    spacings = {
        "delta": delta,
        "velocity_delta": velocity_delta,
        "gradient_delta": gradient_delta,
    }
    given = [name for name, spacing in spacings.items() if spacing is not None]
    if r_cov is not None and given:
        raise TypeError(
            f"r_cov and {given[0]} are given, but the errors of storing depend on more "
            "of rounded gradients than a covariance: give gradient_delta, from which "
            "r_cov follows, instead of it"
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
        gradient_delta,
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
    gradient_delta: Any = None,
    samples: Any = None,
) -> tuple[JointCovariance, Tensor]:
    """Return `predicted_covariance` and the variances of storing x, [d]."""
    d = basis.size
    noise = covariance("Sigma", Sigma, d)
    # The samples have the spread of Sigma already.
    spread, centers = noise.diagonal(), torch.zeros(d, dtype=torch.float64)
    if samples is not None:
        spread, centers = torch.zeros_like(centers), gradients_of(samples, d)
    if r_cov is not None:
        noise = covariance("Sigma + r_cov", noise + symmetric("r_cov", r_cov, d), d)
    fixed = None if s_cov is None else covariance("s_cov", s_cov, d)
    x_grid, v_grid = (
        None if x is None else vector(name, positive(name, x), d)
        for name, x in (("delta", delta), ("velocity_delta", velocity_delta))
    )
    g_grid = None
    if gradient_delta is not None:
        g_grid = positive("gradient_delta", gradient_delta)
        if g_grid.dim() != 2 or g_grid.shape != centers.shape:
            g_grid = vector("gradient_delta", g_grid, d)
    system = _System(basis, iteration, k)
    alpha, retained, advance, look_ahead = map(float, system.numbers)
    none = torch.zeros(d, dtype=torch.float64)
    errors = _Errors(none, none, none, none)
    V = system.stationary(noise, fixed, errors)
    if x_grid is None and v_grid is None and g_grid is None:
        return V, none

    def moved_by_v(sd: Tensor, step: float) -> Tensor:
        """Return the variance of storing x plus a multiple of v."""
        if x_grid is None:
            return none
        lattice = None if v_grid is None or step == 0 else step * v_grid
        return gaussian_rounding_variance(step * sd, x_grid, lattice=lattice)

    def moved_by_g(found: _Deviations, grid: Tensor | None) -> Tensor:
        """Return the variance of storing x or v plus a multiple of the gradient."""
        if grid is None:
            return none
        if g_grid is None:
            return _mean(
                gaussian_rounding_variance(found.change, grid, mean=alpha * centers)
            )
        g, rest, lattice = found.gradient, found.friction, None
        if v_grid is not None:
            lattice = (1 - retained) * v_grid
        return _mean(
            twice_rounded_variance(g, centers, g_grid, alpha, rest, grid, lattice)
        )

    last = math.inf
    for _ in range(_ITERATIONS):
        sd = system.deviations(V, spread, errors.ahead)
        of_gradient = none
        if g_grid is not None:
            of_gradient = _mean(
                gaussian_rounding_variance(sd.gradient, g_grid, mean=centers)
            )
        if system.velocity:
            of_x = moved_by_v(sd.velocity, advance)
            of_v = moved_by_g(sd, v_grid)
            ahead = moved_by_v(sd.velocity, look_ahead)
        else:
            of_x, of_v, ahead = moved_by_g(sd, x_grid), none, none
        found = _Errors(of_x, of_v, ahead, of_gradient)
        moved = sum(float((a - b).norm()) for a, b in zip(found, errors, strict=True))
        size = sum(float(a.norm()) for a in found)
        errors = found
        V = system.stationary(noise, fixed, errors)
        # Changes shrink until they are roundings of our own; none without noise.
        if size == 0 or last / 2 <= moved < _TOLERANCE * size:
            return V, errors.x
        last = moved
    raise ValueError(
        f"no self-consistent covariance found in {_ITERATIONS} iterations, the last "
        f"change was by {last:.3g}: the grid is too coarse; use a finer one"
    )


def gradients_of(samples: Any, size: int) -> Tensor:
    """Return samples of gradients, [N, d].

    Raises:
        ValueError: if they are none, not finite or of another shape.
    """
    gradients = finite("samples", samples)
    if gradients.dim() != 2 or gradients.shape[1] != size or len(gradients) == 0:
        raise ValueError(
            f"samples must have the shape [N, {size}], got {tuple(gradients.shape)}"
        )
    return gradients


def _mean(of_samples: Tensor) -> Tensor:
    """Return the mean over samples, if there are any."""
    return of_samples.mean(0) if of_samples.dim() == 2 else of_samples


class _Errors(NamedTuple):
    """Variances of roundings, [d] each: of x, v, the point ahead and the gradient."""

    x: Tensor
    v: Tensor
    ahead: Tensor
    gradient: Tensor


class _Deviations(NamedTuple):
    """Standard deviations, [d] each, around the samples if there are any.

    Args:
        gradient: of the gradient before it is rounded.
        friction: of what friction adds to v; zero for SGD.
        change: of both together, without rounding, times the step size.
        velocity: of v; zero for SGD.
    """

    gradient: Tensor
    friction: Tensor
    change: Tensor
    velocity: Tensor


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
        self, noise: Tensor, fixed: Tensor | None, errors: _Errors
    ) -> JointCovariance:
        """Return V for the variances of roundings."""
        alpha = self.numbers.step
        stored, of_velocity, ahead, of_gradient = (
            self.basis.into(torch.diag(x)) for x in errors
        )
        if fixed is not None:
            stored = self.basis.into(fixed)
        curvature = self.basis.values.outer(self.basis.values)
        entering = of_velocity + alpha**2 * curvature * ahead
        noise = alpha**2 * (self.basis.into(noise) + of_gradient)
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
    ) -> _Deviations:
        """Return the deviations of the gradient, and of what is added to x and v.

        Args:
            V: of the iterates.
            spread: variances of the gradients at the minimum.
            ahead: variances of rounding the point ahead.
        """
        alpha, retained, _, look_ahead = self.numbers
        hessian = self.basis.back(torch.diag(self.basis.values))
        spread = spread + hessian.square() @ ahead
        none = torch.zeros_like(spread)
        if V.velocity is None:
            moved = (hessian @ V.position @ hessian).diagonal()
            sd = (spread + moved).clamp(min=0).sqrt()
            return _Deviations(sd, none, alpha * sd, none)
        eye = torch.eye(len(hessian), dtype=torch.float64)
        row = torch.cat([hessian, look_ahead * hessian], 1)
        of_gradient = (row @ V.matrix @ row.T).diagonal() + spread
        row = alpha * row + torch.cat([torch.zeros_like(eye), (1 - retained) * eye], 1)
        change = (row @ V.matrix @ row.T).diagonal() + alpha**2 * spread
        # Friction counts as if it were independent of the gradient.
        rest = (1 - retained) ** 2 * V.velocity.diagonal()
        squares = (of_gradient, rest, change, V.velocity.diagonal())
        return _Deviations(*(x.clamp(min=0).sqrt() for x in squares))
