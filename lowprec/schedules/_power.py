"""Step sizes that decay by a power law, and dampings that vanish."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from ._report import Condition, ScheduleReport

# Terms of a sum that are added one by one, before the Euler-Maclaurin formula; with
# the derivatives below, its remainder is then less than one ulp.
_ADDED = 24
# B_2j / (2j)!, which multiply the derivatives of order 2j - 1.
_BERNOULLI = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)


@dataclass(frozen=True)
class PowerSchedule:
    r"""A quantity that decays like a power of the number of the step.

    .. math::
        \alpha_k = K (k + k_0)^{-a}, \qquad k = 1, 2, \dots

    Contract:
        Called with an int it returns a float, with a tensor a float64 tensor. A damping
        mu_k may be a `PowerSchedule` too. ``torch.load(weights_only=True)`` reads it.

    Args:
        K: factor, positive.
        a: exponent in (0, 1]: step sizes go to zero, and their sum does not converge.
        offset: k_0 >= 0.

    Raises:
        TypeError: if an argument is no number.
        ValueError: if one is out of range, naming the condition that fails.

    Example:
        >>> schedule = PowerSchedule(0.5, 0.75)
        >>> schedule(1), schedule(16)
        (0.5, 0.0625)
        >>> print(schedule.check(mu=0.1))
        0.5 k^-0.75: is admissible
          holds  d0 = 0 < 2 mu = 0.2
          d0 = 0, sum of alpha_k^2 finite: the time average has none (a > 1/2)

    References:
        Li, Xiao and Yang, Revisiting the central limit theorems for the SGD-type
        methods, Assumption A.
    """

    K: float
    a: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        """Check the constants against (A1)."""
        for name in ("K", "a", "offset"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(
                    f"{name} must be a number, got {type(value).__name__}: "
                    "use float(...)"
                )
        check_positive("K", self.K)
        if not 0 <= self.offset < math.inf:
            raise ValueError(
                f"offset must be finite and >= 0, got {self.offset}: step sizes are "
                "K (k + offset)^-a for k = 1, 2, ..."
            )
        if not self.a > 0:
            raise ValueError(
                f"a must be in (0, 1], got {self.a}: step sizes that do not decrease "
                "to zero fail alpha_k -> 0 of (A1); for a constant step give a float"
            )
        if not self.a <= 1:
            raise ValueError(
                f"a must be in (0, 1], got {self.a}: the sum of step sizes is finite, "
                "which fails sum alpha_k = infinity of (A1), and iterates stop short "
                "of the minimum"
            )

    @overload
    def __call__(self, k: int) -> float: ...
    @overload
    def __call__(self, k: Tensor) -> Tensor: ...
    def __call__(self, k: int | Tensor) -> float | Tensor:
        """Return alpha_k.

        Raises:
            ValueError: if a step is less than 1.
        """
        check_steps(k)
        if isinstance(k, Tensor):
            return self.K * (k.to(torch.float64) + self.offset) ** -self.a
        return float(self.K * (k + self.offset) ** -self.a)

    def __str__(self) -> str:
        """Return the formula."""
        base = "k" if self.offset == 0 else f"(k + {self.offset:g})"
        return f"{self.K:g} {base}^-{self.a:g}"

    @property
    def d0(self) -> float:
        """Limit of `decay_rate`: 1/K for a = 1, else 0; steps are h-slow for h > d0."""
        return 1 / self.K if self.a == 1 else 0.0

    @overload
    def decay_rate(self, k: int) -> float: ...
    @overload
    def decay_rate(self, k: Tensor) -> Tensor: ...
    def decay_rate(self, k: int | Tensor) -> float | Tensor:
        r"""Return d_k, which enters the covariance of iterates at a finite step.

        .. math::
            d_k = (\alpha_k - \alpha_{k+1}) / \alpha_k^2 \approx (a/K)\, k^{a-1}

        Example:
            >>> round(PowerSchedule(1.0, 0.75).decay_rate(100_000), 6)
            0.042175
        """
        check_steps(k)
        if isinstance(k, Tensor):
            place = k.to(torch.float64) + self.offset
            return -torch.expm1(-self.a * torch.log1p(1 / place)) / self(k)
        return -math.expm1(-self.a * math.log1p(1 / (k + self.offset))) / self(k)

    @overload
    def partial_sum(self, n: int, power: float = 1) -> float: ...
    @overload
    def partial_sum(self, n: Tensor, power: float = 1) -> Tensor: ...
    def partial_sum(self, n: int | Tensor, power: float = 1) -> float | Tensor:
        r"""Return the sum of the first n step sizes, or of their powers.

        .. math::
            T_n = \sum_{k \le n} \alpha_k, \qquad S_n = \sum_{k \le n} \alpha_k^2
            \;\text{(power 2)}

        Contract:
            Costs the same for every n; relative error about 1e-15.

        Args:
            n: number of terms, at least 1.
            power: exponent of the step sizes, positive.

        Example:
            >>> schedule = PowerSchedule(1.0, 1.0)
            >>> round(schedule.partial_sum(1_000_000), 9)
            14.392726723
        """
        check_steps(n)
        check_positive("power", power)
        last = torch.as_tensor(n, dtype=torch.float64)
        factor: float = self.K**power
        result = factor * _power_sum(last, self.a * power, self.offset)
        return result if isinstance(n, Tensor) else result.item()

    def check(
        self,
        *,
        mu: float | None = None,
        lambda_D: float | None = None,
        damping: PowerSchedule | InverseTimeDamping | None = None,
    ) -> ScheduleReport:
        r"""Return whether the central limit theorem holds for these step sizes.

        .. math::
            d_0 < 2\mu \text{ (SGD)}, \qquad d_0 < 2\lambda_D \text{ (momentum)}, \qquad
            0 < b < a,\; a + b \le 1,\; c_0 < 1 \text{ (damping } K_\mu k^{-b})

        Contract:
            Conditions in corrected form: errata C2, C5, C10 and C11. At a + b = 1 and
            for `InverseTimeDamping` the limit is inflated by 1/(1 - c_0), with
            c_0 = lim (beta_k - beta_{k+1}) / (beta_k alpha_k mu_k) and
            beta_k = alpha_k / mu_k.

        Args:
            mu: smallest eigenvalue of the Hessian, for SGD without momentum.
            lambda_D: smallest real part of the eigenvalues of the drift matrix, for
                constant damping; see ``theory.stationary.drift_rate``.
            damping: mu_k, if it vanishes.

        Returns:
            The report; print it, or ask ``report.holds`` and ``report.failed``.

        Raises:
            TypeError: unless exactly one argument is given.
            ValueError: if it is out of range.

        Example:
            >>> print(PowerSchedule(0.25, 1.0).check(mu=1.0).failed[0])
            FAILS  d0 = 4 < 2 mu = 2
            >>> PowerSchedule(0.5, 0.75).check(damping=PowerSchedule(4.0, 0.25))
            ... # doctest: +ELLIPSIS
            ScheduleReport(... inflation=1.3333333333333333)

        References:
            Li, Xiao and Yang, Theorems 3.1, 4.1 to 4.3, Remark 4.4.
        """
        given = {"mu": mu, "lambda_D": lambda_D, "damping": damping}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            raise TypeError(
                "check needs exactly one of mu (SGD), lambda_D (constant damping) and "
                f"damping (vanishing), got {', '.join(names) or 'none'}"
            )
        squares = 2 * self.a <= 1
        if damping is not None:
            conditions, inflation = damping._conditions(self)
            return ScheduleReport(
                schedule=self,
                conditions=conditions,
                sum_of_squares_diverges=squares,
                inflation=inflation,
            )
        rate = check_positive(names[0], given[names[0]])
        statement = f"d0 = {self.d0:.6g} < 2 {names[0]} = {2 * rate:.6g}"
        return ScheduleReport(
            schedule=self,
            conditions=(Condition(statement, self.d0 < 2 * rate),),
            sum_of_squares_diverges=squares,
        )

    def _conditions(self, steps: PowerSchedule) -> tuple[tuple[Condition, ...], float]:
        """Return the conditions on ``steps`` if this is the damping; the inflation."""
        a, b = steps.a, self.a
        total = a + b
        c0 = (a - b) / (steps.K * self.K) if math.isclose(total, 1) else 0.0
        conditions = (
            Condition(f"beta_k = alpha_k/mu_k -> 0: b = {b:g} < a = {a:g}", b < a),
            Condition(
                f"sum of alpha_k mu_k infinite: a + b = {total:g} <= 1",
                total < 1 or math.isclose(total, 1),
            ),
            Condition(f"beta_k decays slowly: c0 = {c0:.6g} < 1", c0 < 1),
        )
        return conditions, 1 / (1 - c0) if c0 < 1 else math.inf


@dataclass(frozen=True)
class InverseTimeDamping:
    r"""The damping that vanishes like the inverse of the elapsed time.

    .. math::
        \mu_k = K_\mu \Big/ \sum_{j \le k} \alpha_j

    Args:
        K: K_mu, positive.
        schedule: the step sizes alpha_j.

    Raises:
        TypeError: if ``schedule`` is no `PowerSchedule`.
        ValueError: if K is not positive and finite.

    Example:
        >>> steps = PowerSchedule(0.5, 0.75)
        >>> damping = InverseTimeDamping(8.0, steps)
        >>> damping(1), round(steps.check(damping=damping).inflation, 4)
        (16.0, 1.3333)

    References:
        Li, Xiao and Yang, Remark 4.4 (C11); Su, Boyd and Candes 2016, where K_mu = 3
        is Nesterov's method.
    """

    K: float
    schedule: PowerSchedule

    def __post_init__(self) -> None:
        """Check the factor."""
        check_positive("K", self.K)
        if not isinstance(self.schedule, PowerSchedule):
            raise TypeError(
                f"schedule must be a PowerSchedule, got {type(self.schedule).__name__}"
            )

    @overload
    def __call__(self, k: int) -> float: ...
    @overload
    def __call__(self, k: Tensor) -> Tensor: ...
    def __call__(self, k: int | Tensor) -> float | Tensor:
        """Return mu_k."""
        return self.K / self.schedule.partial_sum(k)

    def __str__(self) -> str:
        """Return the formula."""
        return f"{self.K:g} / sum({self.schedule})"

    def _conditions(self, steps: PowerSchedule) -> tuple[tuple[Condition, ...], float]:
        """Return the conditions on ``steps`` if this is the damping; the inflation."""
        if steps != self.schedule:
            raise ValueError(
                f"the damping sums the step sizes {self.schedule}, the schedule that "
                f"is checked has {steps}: they must be the same"
            )
        a = steps.a
        inside = 0.5 < a < 1
        c0 = (2 * a - 1) / (self.K * (1 - a)) if inside else math.inf
        conditions = (
            Condition(f"beta_k = alpha_k/mu_k -> 0: a = {a:g} > 1/2", a > 0.5),
            Condition(f"sum of alpha_k mu_k infinite: a = {a:g} < 1", a < 1),
            Condition(f"beta_k decays slowly: c0 = {c0:.6g} < 1", c0 < 1),
        )
        return conditions, 1 / (1 - c0) if c0 < 1 else math.inf


def _power_sum(n: Tensor, s: float, offset: float) -> Tensor:
    """Return the sum of (k + offset)^-s for k = 1 ... n."""
    head = (torch.arange(1, _ADDED, dtype=torch.float64) + offset) ** -s
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), head.cumsum(0)])
    added = sums[n.clamp(max=_ADDED - 1).long()]
    first, last = _ADDED + offset, n.clamp(min=_ADDED) + offset
    # The rest is the integral, half of the ends, and derivatives at both of them.
    spread = torch.log(last / first)
    integral = spread if s == 1 else torch.expm1((1 - s) * spread) / (1 - s)
    rest = first ** (1 - s) * integral + (first**-s + last**-s) / 2
    slope = s
    for j, weight in enumerate(_BERNOULLI):
        order = 2 * j + 1
        rest = rest - weight * slope * (last ** (-s - order) - first ** (-s - order))
        slope *= (s + order) * (s + order + 1)
    return torch.where(n < _ADDED, added, sums[-1] + rest)


def check_steps(k: int | Tensor) -> None:
    counted = bool((k >= 1).all()) if isinstance(k, Tensor) else k >= 1
    if not counted:
        raise ValueError(f"steps are counted from 1, got {k}")


def check_positive(name: str, value: Any) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)
