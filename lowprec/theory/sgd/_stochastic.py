"""Theorem 4.3: errors of zero mean given the past, with bounded second moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._inputs import Real, count, every, nonnegative, plain, positive, shown, some
from ._bound import Bound, OptimalStep, objective_bound


def gamma_stochastic(eta: Real, *, d_sigma_r2: Real, d_sigma_s2: Real) -> Real:
    r"""Return the radius Gamma_s of Theorem 4.3.

    .. math::
        \Gamma_s = \frac\eta2 (1 + V_r) + \frac{V_s}{2\eta}, \qquad
        V_r = d\sigma_r^2 = E\|r_k\|^2, \quad V_s = d\sigma_s^2 = E\|s_k\|^2 .

    Contract:
        The moments are about zero, not centred. For a radial objective, no projection
        and independent errors, E||w_k - w*|| = Gamma_s exactly in stationarity: it is
        the mean level of a run, not a ceiling, so a maximum over repetitions lies
        above it (erratum E12).

    Args:
        eta: step size, positive.
        d_sigma_r2: V_r, second moment of the error of the normalised direction.
        d_sigma_s2: V_s, second moment of the error of the weight update.

    Returns:
        Gamma_s; a float, or a float64 tensor of the broadcast shape.

    Raises:
        ValueError: if eta is not positive and finite, or a moment is negative or NaN.

    Example:
        >>> gamma_stochastic(0.5, d_sigma_r2=0.5, d_sigma_s2=0.25)
        0.625

    References:
        Cacciola et al., Theorem 4.3 (correct as printed, under the hypotheses that
        `stochastic_floor` states).
    """
    radius = _gamma(eta, d_sigma_r2, d_sigma_s2)
    value: Real = plain(radius, eta, d_sigma_r2, d_sigma_s2)
    return value


def stochastic_floor(
    eta: Real,
    *,
    d_sigma_r2: Real,
    d_sigma_s2: Real,
    L: Real = 1.0,
    p: Real = 1.0,
    f_star: Real = 0.0,
) -> Bound:
    r"""Return Theorem 4.3: the level that SGD with unbiased errors reaches.

    .. math::
        \liminf_{k\to\infty} f(w_k) \le f^* + L\,\Gamma_s^p \quad\text{a.s.}

    Contract:
        Assumes, given the past, E r_k = E s_k = 0 and <g_k, s_k>, <r_k, s_k>,
        <g_k, r_k> of mean zero (g_k the unit direction); independence is sufficient,
        not necessary. Stochastic rounding of the update satisfies this for s_k.
        Rounding to nearest does not: the update stagnates, and the objective stays
        arbitrarily far above this level (erratum E9); `certificate` decides for a
        given run. An exactly normalised low-precision gradient has
        <g_k, r_k> = -||r_k||^2/2 (E10), which makes the bound conservative.
        ``vacuous`` means that the value is infinite.

    Args:
        eta: step size, positive.
        d_sigma_r2: V_r = E||r_k||^2, moment about zero.
        d_sigma_s2: V_s = E||s_k||^2, moment about zero.
        L: constant of f - f* <= L dist(w, W*)^p, positive.
        p: order of that growth condition, positive.
        f_star: infimum f* of the objective.

    Returns:
        The bound.

    Raises:
        ValueError: if an argument is out of range or NaN.

    Example:
        >>> print(stochastic_floor(0.5, d_sigma_r2=0.5, d_sigma_s2=0.25, L=2.0))
        liminf f(w_k) <= 1.25 (Theorem 4.3, Gamma = 0.625)

    References:
        Cacciola et al., Theorem 4.3.
    """
    radius = _gamma(eta, d_sigma_r2, d_sigma_s2)
    given = (eta, d_sigma_r2, d_sigma_s2)
    return Bound(
        value=objective_bound(radius, L, p, f_star, *given),
        gamma=plain(radius, *given),
        vacuous=plain(torch.isinf(radius), *given),
        quantity="liminf f(w_k)",
        theorem="Theorem 4.3",
    )


def stochastic_floor_finite(
    eta: Real,
    *,
    K: Any,
    C_0: Real,
    d_sigma_r2: Real,
    d_sigma_s2: Real,
    L: Real = 1.0,
    p: Real = 1.0,
    f_star: Real = 0.0,
    failure_probability: float | None = None,
) -> Bound:
    r"""Return the version of Theorem 4.3 for K iterates.

    .. math::
        E \min_{k<K} \Bigl(\frac{f(w_k) - f^*}{L}\Bigr)^{1/p} \le
        \Gamma = \frac{C_0^2}{2\eta K} + \Gamma_s .

    For p <= 1, Jensen's inequality turns this into E min f <= f* + L Gamma^p; for
    every p, Markov's inequality gives min f <= f* + L (Gamma/delta)^p with probability
    at least 1 - delta.

    Contract:
        Not in the paper; hypotheses of `stochastic_floor`. For p > 1 the expectation
        is not bounded by Gamma^p: without ``failure_probability`` the value is +inf
        and the bound vacuous, while ``gamma`` still holds for the mean of the p-th
        root. ``vacuous`` also if the radius is at least C_0.

    Args:
        eta: step size, positive.
        K: number of iterates w_0 ... w_{K-1}, a whole number >= 1 or a tensor of them.
        C_0: distance of w_0 to the minimisers, positive.
        d_sigma_r2: V_r = E||r_k||^2, moment about zero.
        d_sigma_s2: V_s = E||s_k||^2, moment about zero.
        L: constant of f - f* <= L dist(w, W*)^p, positive.
        p: order of that growth condition, positive.
        f_star: infimum f* of the objective.
        failure_probability: delta in (0, 1), or None to bound the expectation.

    Returns:
        The bound; its ``gamma`` includes the term in K, and 1/delta if one is given.

    Raises:
        ValueError: if an argument is out of range or NaN.

    Example:
        >>> print(stochastic_floor_finite(0.5, K=100, C_0=1.0, d_sigma_r2=0.5,
        ...                               d_sigma_s2=0.25))
        E min f(w_k) <= 0.635 (Theorem 4.3 with K steps, Gamma = 0.635)

    References:
        Telescoping of the proof of Theorem 4.3 in Cacciola et al.
    """
    distance = positive("C_0", C_0)
    radius = _gamma(eta, d_sigma_r2, d_sigma_s2)
    radius = radius + distance**2 / (2 * positive("eta", eta) * count("K", K))
    order = positive("p", p)
    given = (eta, K, C_0, d_sigma_r2, d_sigma_s2)
    quantity = "E min f(w_k)"
    if failure_probability is not None:
        if not 0 < failure_probability < 1:
            raise ValueError(
                "failure_probability must lie in (0, 1), or be None for the "
                f"expectation, got {failure_probability!r}"
            )
        quantity = f"with probability {1 - failure_probability:g}, min f(w_k)"
        reach = radius = radius / failure_probability
    else:
        reach = torch.where(order > 1, torch.inf, radius)
    return Bound(
        value=objective_bound(reach, L, p, f_star, *given),
        gamma=plain(radius, *given),
        vacuous=plain(reach >= distance, *given, p),
        quantity=quantity,
        theorem="Theorem 4.3 with K steps",
    )


def optimal_step_stochastic(*, d_sigma_r2: Real, d_sigma_s2: Real) -> OptimalStep:
    r"""Return the step size that minimises the radius of Theorem 4.3.

    .. math::
        \eta^* = \sqrt{\frac{V_s}{1 + V_r}}, \qquad
        \Gamma_s(\eta^*) = \sqrt{V_s (1 + V_r)} .

    Contract:
        V_s = 0: the infimum 0 is approached as eta -> 0+; eta = 0 and
        ``attained=False``. The paper's remark that eta* tends to sigma_s/sigma_r for
        large d needs V_r >> 1: for d = 40 and errors uniform on [-0.1, 0.1] that ratio
        is 1 and eta* = 0.343. The paper prints eta = 0.0348 for those errors, which
        belongs to an update error ten times smaller (erratum E5).

    Args:
        d_sigma_r2: V_r = E||r_k||^2, finite.
        d_sigma_s2: V_s = E||s_k||^2, finite.

    Returns:
        Step size, radius and flags; never vacuous.

    Raises:
        ValueError: if a moment is negative, NaN or infinite.

    Example:
        >>> V = 40 * 0.1**2 / 3
        >>> print(optimal_step_stochastic(d_sigma_r2=V, d_sigma_s2=V))
        eta = 0.342997, Gamma = 0.38873

    References:
        Cacciola et al., Corollary 4.3.1.
    """
    gradient, update = _moments(d_sigma_r2, d_sigma_s2)
    if bool(torch.isinf(gradient).any() | torch.isinf(update).any()):
        raise ValueError(
            "d_sigma_r2 and d_sigma_s2 must be finite: no step size suits an "
            "infinite variance"
        )
    given = (d_sigma_r2, d_sigma_s2)
    eta = torch.sqrt(update / (1 + gradient))
    return OptimalStep(
        eta=plain(eta, *given),
        gamma=plain(torch.sqrt(update * (1 + gradient)), *given),
        vacuous=plain(torch.zeros_like(eta, dtype=torch.bool), *given),
        attained=plain(eta > 0, *given),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ErrorBalance:
    """The three parts of Gamma_s, and which rounding error is the larger.

    Args:
        step: eta/2, there without any rounding error.
        gradient: eta V_r/2, from the errors r_k of the direction.
        update: V_s/(2 eta), from the errors s_k of the weight update.
        update_dominates: whether ``update > gradient``.

    Example:
        >>> print(error_balance(0.5, d_sigma_r2=0.5, d_sigma_s2=0.25))
        Gamma_s = 0.25 (step) + 0.125 (gradient) + 0.25 (update); update dominates
    """

    step: Real
    gradient: Real
    update: Real
    update_dominates: bool | Tensor

    def __str__(self) -> str:
        """Return the sum in one line."""
        if every(self.update_dominates):
            verdict = "update dominates"
        elif some(self.update_dominates):
            verdict = "update dominates in part"
        else:
            verdict = "update does not dominate"
        return (
            f"Gamma_s = {shown(self.step)} (step) + {shown(self.gradient)} (gradient)"
            f" + {shown(self.update)} (update); {verdict}"
        )


def error_balance(eta: Real, *, d_sigma_r2: Real, d_sigma_s2: Real) -> ErrorBalance:
    r"""Return how much r_k and s_k contribute to Gamma_s.

    The update contributes more if and only if V_s > eta^2 V_r, that is
    sigma_s > eta sigma_r: the precise content of "the precision of the weight update
    matters more".

    Contract:
        Not in the paper. A tie is not dominated by the update.

    Args:
        eta: step size, positive.
        d_sigma_r2: V_r = E||r_k||^2.
        d_sigma_s2: V_s = E||s_k||^2.

    Returns:
        The parts of Gamma_s.

    Raises:
        ValueError: if eta is not positive and finite, or a moment is negative or NaN.

    Example:
        >>> error_balance(2.0, d_sigma_r2=0.5, d_sigma_s2=0.25).update_dominates
        False

    References:
        `gamma_stochastic`.
    """
    step = positive("eta", eta)
    gradient, update = _moments(d_sigma_r2, d_sigma_s2)
    given = (eta, d_sigma_r2, d_sigma_s2)
    return ErrorBalance(
        step=plain(step / 2, eta),
        gradient=plain(step / 2 * gradient, eta, d_sigma_r2),
        update=plain(update / (2 * step), eta, d_sigma_s2),
        update_dominates=plain(update > step**2 * gradient, *given),
    )


def _gamma(eta: Real, d_sigma_r2: Real, d_sigma_s2: Real) -> Tensor:
    step = positive("eta", eta)
    gradient, update = _moments(d_sigma_r2, d_sigma_s2)
    return step / 2 * (1 + gradient) + update / (2 * step)


def _moments(d_sigma_r2: Real, d_sigma_s2: Real) -> tuple[Tensor, Tensor]:
    gradient = nonnegative("d_sigma_r2", d_sigma_r2)
    return gradient, nonnegative("d_sigma_s2", d_sigma_s2)
