"""Theorems 4.1 and 4.2: errors of bounded norm, no assumption on their distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._inputs import Form, Real, check_form, count, nonnegative, plain, positive
from ._bound import Bound, OptimalStep, StepInterval, objective_bound


def gamma_deterministic(eta: Real, R: Real, S: Real, c: Real) -> Real:
    r"""Return the radius Gamma(c) of Theorem 4.1.

    .. math::
        \Gamma(c) = \max\Bigl\{\frac\eta2 (1 + R'^2),\;
        \frac\eta2 (1 - R'^2) + c R'\Bigr\}, \qquad R' = R + S/\eta.

    Contract:
        Gamma(c) < c, so that the theorem says something, if and only if eta lies in
        `informative_interval`; then the second branch is the larger. The theorem needs
        neither R < 1 nor R' < 1 (erratum E15): where they fail, Gamma(c) >= c. No
        constant can be improved: for every informative (eta, R, S, c) and two or more
        dimensions, some quasi-convex f stays at ||w_k - w*|| = c and
        f(w_k) = f* + L Gamma(c)^p for ever. R or S = +inf gives +inf.

    Args:
        eta: step size, positive; the value used, hence a member of the format of the
            update.
        R: bound on ||r_k||, the error of the normalised direction (dimensionless).
        S: bound on ||s_k||, the error of the weight update.
        c: diameter of the feasible set (2 rho for a ball of radius rho, l sqrt(d) for
            a box of side l), or the largest distance of a feasible point to w*, or
            C_0 for the running minimum.

    Returns:
        Gamma(c); a float, or a float64 tensor of the broadcast shape.

    Raises:
        ValueError: if eta or c is not positive and finite, or R or S is negative or
            NaN.

    Example:
        >>> gamma_deterministic(0.5, 0.4, 0.05, 2.0)
        1.1875

    References:
        Cacciola et al., Theorem 4.1 (correct as printed).
    """
    step, errors, diameter = _inputs(eta, R, S, c)
    return _plain(_gamma(step, *errors, diameter), eta, R, S, c)


def gamma_hu2015(eta: Real, R: Real, S: Real, c: Real) -> Real:
    r"""Return the earlier radius of Hu et al. (2015), for comparison.

    .. math::
        \Gamma_{\mathrm{Hu}} = c R' + \frac\eta2 (1 + R')^2, \qquad R' = R + S/\eta.

    It exceeds the second branch of `gamma_deterministic` by eta R' (1 + R').

    Contract:
        The paper prints eta/2 (1 + R^2) in its equation (14); Hu et al. have
        eta/2 (1 + R)^2 (erratum E20).

    Args:
        eta: step size, positive.
        R: bound on ||r_k||.
        S: bound on ||s_k||.
        c: diameter of the feasible set.

    Returns:
        The radius; a float, or a float64 tensor of the broadcast shape.

    Raises:
        ValueError: if eta or c is not positive and finite, or R or S is negative or
            NaN.

    Example:
        >>> gamma_hu2015(0.5, 0.4, 0.05, 2.0)
        1.5625

    References:
        Hu, Yang and Sim, EJOR 247 (2015), Theorem 3.1.
    """
    step, (error, update), diameter = _inputs(eta, R, S, c)
    total = error + update / step
    radius = diameter * total + step / 2 * (1 + total) ** 2
    return _plain(radius, eta, R, S, c)


def informative_interval(R: Real, S: Real, c: Real) -> StepInterval:
    r"""Return the step sizes for which Theorem 4.1 says something.

    .. math::
        \Gamma(c) < c \iff \frac{S}{1 - R} < \eta < \frac{2c - S}{1 + R},

    an interval that is empty if and only if S >= c (1 - R).

    Contract:
        Not in the paper. An empty interval is reported, not raised.

    Args:
        R: bound on ||r_k||.
        S: bound on ||s_k||.
        c: diameter of the feasible set.

    Returns:
        The open interval and whether it is empty.

    Raises:
        ValueError: if c is not positive and finite, or R or S is negative or NaN.

    Example:
        >>> print(informative_interval(0.4, 0.05, 2.0))
        0.0833333 < eta < 2.82143

    References:
        `gamma_deterministic`, Contract.
    """
    error, update = nonnegative("R", R), nonnegative("S", S)
    diameter = positive("c", c)
    room = 1 - error
    infinity = torch.full_like(update + room, torch.inf)
    lower = torch.where(room > 0, update / room, infinity)
    upper = torch.where(
        torch.isinf(update), -torch.inf, (2 * diameter - update) / (1 + error)
    )
    return StepInterval(
        lower=plain(lower, R, S),
        upper=plain(upper, R, S, c),
        empty=plain(_hopeless(error, update, diameter), R, S, c),
    )


def bound_liminf(
    eta: Real, R: Real, S: Real, c: Real, *, L: Real, p: Real, f_star: Real = 0.0
) -> Bound:
    r"""Return Theorem 4.1: the limit inferior of the objective on a compact set.

    .. math::
        \liminf_{k\to\infty} f(w_k) \le f^* + L\,\Gamma(c)^p .

    Contract:
        Needs a projection onto a compact convex set of diameter c. Without one,
        c = C_0 does NOT bound the limit inferior, because the iterates may leave the
        ball they started in (erratum E11): use `bound_running_min`. ``vacuous`` is
        Gamma(c) >= c, which includes every R + S/eta >= 1; the value is returned
        all the same.

    Args:
        eta: step size, positive.
        R: bound on ||r_k||.
        S: bound on ||s_k||.
        c: diameter of the feasible set.
        L: constant of f - f* <= L dist(w, W*)^p, positive.
        p: order of that growth condition, positive.
        f_star: infimum f* of the objective.

    Returns:
        The bound.

    Raises:
        ValueError: if an argument is out of range or NaN.

    Example:
        >>> print(bound_liminf(0.5, 0.4, 0.05, 2.0, L=1.0, p=1.0))
        liminf f(w_k) <= 1.1875 (Theorem 4.1, Gamma = 1.1875)
        >>> print(bound_liminf(0.5, 0.9, 0.1, 2.0, L=1.0, p=1.0))
        liminf f(w_k) <= 2.1475 (Theorem 4.1, Gamma = 2.1475); vacuous

    References:
        Cacciola et al., Theorem 4.1.
    """
    step, errors, diameter = _inputs(eta, R, S, c)
    radius = _gamma(step, *errors, diameter)
    given = (eta, R, S, c)
    return Bound(
        value=objective_bound(radius, L, p, f_star, *given),
        gamma=plain(radius, *given),
        vacuous=plain(radius >= diameter, *given),
        quantity="liminf f(w_k)",
        theorem="Theorem 4.1",
    )


def bound_running_min(
    eta: Real,
    R: Real,
    S: Real,
    C_0: Real,
    *,
    L: Real,
    p: Real,
    K: Any = None,
    f_star: Real = 0.0,
    form: Form = "corrected",
) -> Bound:
    r"""Return Theorem 4.2: the best of K iterates, without a projection.

    .. math::
        \min_{0 \le k < K} f(w_k) \le
        f^* + L \Bigl[\Gamma(C_0) + \frac{C_0^2}{2 \eta K}\Bigr]^p .

    Contract:
        The paper prints C_0/(2 eta K), which is false for C_0 > 1: f = |w|, C_0 = 10,
        eta = 0.1, no errors, K = 50 ends at min f = 5.1, above the printed 1.05
        (erratum E2); ``form="as_printed"`` returns it. With K = None this bounds
        inf_k f(w_k), which the paper's section 8 calls the bound of Theorem 4.1.
        ``vacuous``: the radius is at least C_0, known from f(w_0).

    Args:
        eta: step size, positive.
        R: bound on ||r_k||.
        S: bound on ||s_k||.
        C_0: distance of w_0 to the minimisers, positive.
        L: constant of f - f* <= L dist(w, W*)^p, positive.
        p: order of that growth condition, positive.
        K: number of iterates w_0 ... w_{K-1}, a whole number >= 1 or a tensor of
            them; None for K -> infinity.
        f_star: infimum f* of the objective.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The bound; its ``gamma`` includes the term in K.

    Raises:
        ValueError: if an argument is out of range or NaN.

    Example:
        >>> print(bound_running_min(0.1, 0.0, 0.0, 10.0, K=50, L=1.0, p=1.0))
        min f(w_k) <= 10.05 (Theorem 4.2, Gamma = 10.05); vacuous
        >>> print(bound_running_min(0.1, 0.0, 0.0, 10.0, K=5000, L=1.0, p=1.0))
        min f(w_k) <= 0.15 (Theorem 4.2, Gamma = 0.15)

    References:
        Cacciola et al., Theorem 4.2, corrected (E2).
    """
    corrected = check_form(form)
    step, errors, distance = _inputs(eta, R, S, C_0, "C_0")
    radius = _gamma(step, *errors, distance)
    if K is not None:
        square = distance**2 if corrected else distance
        radius = radius + square / (2 * step * count("K", K))
    given = (eta, R, S, C_0, K)
    return Bound(
        value=objective_bound(radius, L, p, f_star, *given),
        gamma=plain(radius, *given),
        vacuous=plain(radius >= distance, *given),
        quantity="inf f(w_k)" if K is None else "min f(w_k)",
        theorem="Theorem 4.2",
        form=form,
    )


def optimal_step_deterministic(
    R: Real, S: Real, c: Real, *, form: Form = "corrected"
) -> OptimalStep:
    r"""Return the step size that minimises the radius of Theorem 4.1.

    .. math::
        \eta_1 = \frac{S}{\sqrt{1 + R^2}}, \quad
        \eta_2 = \sqrt{\frac{S (2c - S)}{1 - R^2}}, \quad \eta_3 = \frac{c - S}{R}.

    If S < c (1 - R), the unique minimiser is eta_2, the geometric mean of the ends of
    `informative_interval`, with Gamma = sqrt(S (2c - S)(1 - R^2)) + R (c - S).

    Contract:
        The paper prints S (c - 2S) under the root of eta_2 (erratum E1), which misses
        the minimum by up to a third; ``form="as_printed"`` returns the best of the
        printed three. If S >= c (1 - R), every step is vacuous and the best of the
        three is returned with ``vacuous=True``. If S = 0 and R < 1, the infimum R c is
        approached as eta -> 0+: eta = 0 and ``attained=False``.

    Args:
        R: bound on ||r_k||.
        S: bound on ||s_k||, finite.
        c: diameter of the feasible set, or C_0.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        Step size, radius, flags and the three candidates.

    Raises:
        ValueError: if c is not positive and finite, R or S is negative, NaN or
            infinite, or ``form`` is unknown.

    Example:
        >>> print(optimal_step_deterministic(0.4, 0.05, 2.0))
        eta = 0.484891, Gamma = 1.18731
        >>> print(optimal_step_deterministic(0.4, 0.05, 2.0, form="as_printed"))
        eta = 0.336296, Gamma = 1.21488

    References:
        Cacciola et al., Corollary 4.1.1, corrected (E1).
    """
    corrected = check_form(form)
    error, update, diameter = _broadcast(
        nonnegative("R", R), nonnegative("S", S), positive("c", c)
    )
    if bool(torch.isinf(error).any() | torch.isinf(update).any()):
        raise ValueError("R and S must be finite: no step size suits an infinite error")
    room = 2 * diameter - update if corrected else diameter - 2 * update
    candidates = torch.stack(
        [
            update / torch.sqrt(1 + error**2),
            torch.sqrt(update * room / (1 - error**2)),
            (diameter - update) / error,
        ]
    )
    eta, radius = _best(candidates, error, update, diameter)
    hopeless = _hopeless(error, update, diameter)
    if corrected:
        closed = torch.sqrt((update * room * (1 - error**2)).clamp(min=0))
        closed = closed + error * (diameter - update)
        eta = torch.where(hopeless, eta, candidates[1])
        radius = torch.where(hopeless, radius, closed)
    limit = (update == 0) & ~hopeless
    eta = torch.where(limit, torch.zeros_like(eta), eta)
    radius = torch.where(limit, error * diameter, radius)
    given = (R, S, c)
    return OptimalStep(
        eta=plain(eta, *given),
        gamma=plain(radius, *given),
        vacuous=plain(hopeless, *given),
        attained=plain(~limit, *given),
        candidates=tuple(plain(candidate, *given) for candidate in candidates),
    )


def _broadcast(*tensors: Tensor) -> list[Tensor]:
    zeros = torch.zeros_like(sum(tensors, start=torch.tensor(0.0)))
    return [tensor + zeros for tensor in tensors]


def _gamma(step: Tensor, error: Tensor, update: Tensor, diameter: Tensor) -> Tensor:
    # Factored so that an infinite error gives +inf, not inf - inf.
    total = error + update / step
    first = step / 2 * (1 + total**2)
    second = step / 2 + total * (diameter - step * total / 2)
    return torch.maximum(first, second)


def _hopeless(error: Tensor, update: Tensor, diameter: Tensor) -> Tensor:
    return ~(update < diameter * (1 - error))


def _best(
    candidates: Tensor, error: Tensor, update: Tensor, diameter: Tensor
) -> tuple[Tensor, Tensor]:
    # A candidate that is not a positive number (a complex root, c < S, R = 0) drops
    # out; eta_1 or eta_3 always remains unless R = S = 0.
    usable = (candidates > 0) & torch.isfinite(candidates)
    steps = torch.where(usable, candidates, torch.ones_like(candidates))
    radii = torch.where(
        usable,
        _gamma(steps, error, update, diameter),
        torch.full_like(steps, torch.inf),
    )
    radius, index = radii.min(dim=0)
    return steps.gather(0, index[None])[0], radius


def _inputs(
    eta: Real, R: Real, S: Real, c: Real, name: str = "c"
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    errors = nonnegative("R", R), nonnegative("S", S)
    return positive("eta", eta), errors, positive(name, c)


def _plain(result: Tensor, *given: Any) -> Real:
    value: Real = plain(result, *given)
    return value
