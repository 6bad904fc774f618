"""Results: a bound on the objective, a step size, an interval of step sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._inputs import Real, every, finite, plain, positive, shown, some


@dataclass(frozen=True, kw_only=True, eq=False)
class Bound:
    """A bound f* + L Gamma^p on the objective, with the radius Gamma it comes from.

    ``value`` bounds what ``quantity`` names; a bound that is ``vacuous`` is still true
    but says nothing beyond what was known before the first step. With the growth
    modulus omega(rho) = sup over the ball of f - f*, the same theorem gives the bound
    f* + omega(gamma), never larger than ``value``.

    Args:
        value: f* + L Gamma^p.
        gamma: the radius Gamma, in units of the weights.
        vacuous: whether the bound says nothing; a tensor of flags if broadcast.
        quantity: what is bounded, for example ``"liminf f(w_k)"``.
        theorem: where the bound comes from.
        form: ``"corrected"`` or ``"as_printed"``.

    Example:
        >>> print(Bound(value=1.5, gamma=0.5, vacuous=False, quantity="inf f(w_k)",
        ...             theorem="Theorem 4.2"))
        inf f(w_k) <= 1.5 (Theorem 4.2, Gamma = 0.5)
    """

    value: Real
    gamma: Real
    vacuous: bool | Tensor
    quantity: str
    theorem: str
    form: str = "corrected"

    def __float__(self) -> float:
        """Return the bound on the objective."""
        return float(self.value)

    def __str__(self) -> str:
        """Return the bound as a sentence."""
        text = f"{self.quantity} <= {shown(self.value)} ({self.theorem}"
        if self.form != "corrected":
            text += " as printed, which is false"
        text += f", Gamma = {shown(self.gamma)})"
        if every(self.vacuous):
            return text + "; vacuous"
        return text + "; vacuous in part" if some(self.vacuous) else text


@dataclass(frozen=True, kw_only=True, eq=False)
class OptimalStep:
    """The step size with the smallest radius Gamma, and that radius.

    Args:
        eta: the step size; 0 where the infimum is approached as eta -> 0+.
        gamma: Gamma at ``eta`` (its limit where ``attained`` is false).
        vacuous: whether even this radius says nothing.
        attained: whether ``eta`` is a step size one can use.
        candidates: the step sizes compared, in the paper's order; empty if the
            formula has a single candidate. NaN stands for a root that is not real.

    Example:
        >>> print(OptimalStep(eta=0.5, gamma=1.25, vacuous=False, attained=True))
        eta = 0.5, Gamma = 1.25
    """

    eta: Real
    gamma: Real
    vacuous: bool | Tensor
    attained: bool | Tensor
    candidates: tuple[Real, ...] = ()

    def __str__(self) -> str:
        """Return step size and radius in one line."""
        text = f"eta = {shown(self.eta)}, Gamma = {shown(self.gamma)}"
        if not every(self.attained):
            text += " (infimum, not attained)"
        return text + " (vacuous)" if every(self.vacuous) else text


@dataclass(frozen=True, kw_only=True, eq=False)
class StepInterval:
    """The open interval of step sizes for which Theorem 4.1 says something.

    Args:
        lower: S/(1 - R), or +inf if R >= 1.
        upper: (2c - S)/(1 + R).
        empty: whether no step size is informative, which is S >= c (1 - R).

    Example:
        >>> print(StepInterval(lower=0.1, upper=1.9, empty=False))
        0.1 < eta < 1.9
    """

    lower: Real
    upper: Real
    empty: bool | Tensor

    def __str__(self) -> str:
        """Return the interval as an inequality."""
        if every(self.empty):
            return "no step size is informative"
        return f"{shown(self.lower)} < eta < {shown(self.upper)}"


def objective_bound(
    radius: Tensor, L: Real, p: Real, f_star: Real, *inputs: object
) -> Real:
    """Return f* + L radius^p as a float, or as a tensor if any input is one."""
    growth = positive("L", L) * torch.pow(radius, positive("p", p))
    value: Real = plain(finite("f_star", f_star) + growth, L, p, f_star, *inputs)
    return value
