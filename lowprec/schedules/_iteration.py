"""SGD, the heavy ball, momentum and Nesterov's method as one recursion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, overload

import torch
from torch import Tensor

from ._power import InverseTimeDamping, PowerSchedule, check_steps

# A step size, a damping or a momentum: constant, or a function of the step's number.
ScheduleLike: TypeAlias = float | Callable[[int], float]

Method: TypeAlias = Literal["sgd", "heavy_ball", "momentum", "nesterov", "nasgd"]

Numbers: TypeAlias = float | Tensor


class Coefficients(NamedTuple):
    """The numbers of one step, or tensors of those of many: see `Iteration`."""

    step: Numbers
    retained: Numbers
    advance: Numbers
    look_ahead: Numbers


@dataclass(frozen=True)
class Iteration:
    r"""A method of stochastic gradient descent with its step sizes.

    .. math::
        v_k = \rho_k v_{k-1} - \alpha_k F(x_{k-1} + c_k v_{k-1}), \qquad
        x_k = x_{k-1} + \gamma_k v_k, \qquad v_0 = 0

    ================ ================== ========= =================================
    method           rho_k              gamma_k   c_k
    ================ ================== ========= =================================
    ``"sgd"``        0                  1         0
    ``"heavy_ball"`` beta_k             1         0
    ``"momentum"``   1 - mu_k alpha_k   alpha_k   0
    ``"nesterov"``   beta_{k-1}         1         beta_{k-1}
    ``"nesterov"``   1 - mu_k alpha_k   alpha_k   (1 - mu_k alpha_k) alpha_k
    ``"nasgd"``      1 - mu_k alpha_k   alpha_k   (1 - mu_k alpha_k) alpha_k /
                                                  alpha_{k-1}
    ================ ================== ========= =================================

    Contract:
        Momentum beta_k and damping mu_k are two parametrisations: with damping a method
        follows x'' + mu x' + grad f = 0 as steps go to zero. Nesterov's method has
        both: with momentum alpha_k is its step size, with damping alpha_k^2 is.
        ``"nasgd"`` is equation (49) of the paper, which looks further ahead than
        Nesterov and follows x'' + mu x' + grad f(x + x') = 0 (erratum C7). Before the
        first step alpha_0 = alpha_1 and beta_0 = beta_1.

    Args:
        method: one of the names above.
        schedule: alpha_k, a `PowerSchedule`, a number or a function of k.
        damping: mu_k, likewise; for the methods with damping alone.
        momentum: beta_k in [0, 1), likewise; for the methods with momentum alone.

    Raises:
        TypeError: if the method lacks its damping or momentum, or has one too many.
        ValueError: if the method is unknown or a constant out of range.

    Example:
        >>> iteration = Iteration("momentum", PowerSchedule(0.5, 0.5), damping=0.2)
        >>> iteration.coefficients(4)
        Coefficients(step=0.25, retained=0.95, advance=0.25, look_ahead=0.0)

    References:
        Li, Xiao and Yang, equations (3), (4), (5), (7), (49), with v_k = x_k - x_{k-1}
        in (5).
    """

    method: Method
    schedule: ScheduleLike
    damping: ScheduleLike | None = None
    momentum: ScheduleLike | None = None

    def __post_init__(self) -> None:
        """Check that the method has what it needs."""
        if self.method not in get_args(Method):
            raise ValueError(
                f"method must be one of {', '.join(map(repr, get_args(Method)))}, got "
                f"{self.method!r}"
            )
        needed = {
            "sgd": ("neither damping nor momentum",),
            "heavy_ball": ("momentum",),
            "nesterov": ("damping", "momentum"),
        }.get(self.method, ("damping",))
        given = [x for x in ("damping", "momentum") if getattr(self, x) is not None]
        wanted = given in ([[]] if self.method == "sgd" else [[x] for x in needed])
        if not wanted:
            raise TypeError(
                f"method {self.method!r} takes {' or '.join(needed)}, got "
                f"{' and '.join(given) or 'neither'}"
            )
        # What can be checked before it is called: the constants.
        for name in ("schedule", *given):
            if not callable(getattr(self, name)):
                self._value(name, 1)

    @property
    def has_velocity(self) -> bool:
        """Whether there is a v to keep."""
        return self.method != "sgd"

    @property
    def looks_ahead(self) -> bool:
        """Whether gradients are taken elsewhere than at x."""
        return self.method in ("nesterov", "nasgd")

    @overload
    def step_size(self, k: int) -> float: ...
    @overload
    def step_size(self, k: Tensor) -> Tensor: ...
    def step_size(self, k: int | Tensor) -> Numbers:
        """Return alpha_k, a float64 tensor for a tensor of steps.

        Raises:
            ValueError: if it is not positive and finite.
        """
        value: Numbers = self._value("schedule", k)
        return value

    def coefficients(self, k: int | Tensor) -> Coefficients:
        """Return the numbers of step k, as float64 tensors for a tensor of steps.

        Raises:
            ValueError: if a value of a schedule is out of range.
        """
        check_steps(k)
        before = k.clamp(min=2) - 1 if isinstance(k, Tensor) else max(k - 1, 1)
        alpha = self._value("schedule", k)
        none, one = alpha * 0.0, alpha * 0.0 + 1.0
        if self.method == "sgd":
            return Coefficients(alpha, none, one, none)
        if self.momentum is not None:
            ahead = self.method == "nesterov"
            beta = self._value("momentum", before if ahead else k)
            return Coefficients(alpha, beta, one, beta if ahead else none)
        retained = 1 - self._value("damping", k) * alpha
        ahead = none
        if self.method == "nesterov":
            ahead = retained * alpha
        elif self.method == "nasgd":
            ahead = retained * (alpha / self._value("schedule", before))
        return Coefficients(alpha, retained, alpha, ahead)

    def decay(self, k: int) -> float:
        r"""Return by which part the covariance of x shrinks at step k.

        .. math::
            (\beta_k - \beta_{k+1}) / \beta_k, \qquad
            \beta_k = \alpha_k / \mu_k \text{ with damping, else } \alpha_k

        Contract:
            alpha_k d_k of the schedule, if damping is constant.

        Example:
            >>> round(Iteration("sgd", PowerSchedule(1.0, 0.5)).decay(100), 6)
            0.004963
        """
        now, after = (self._value("schedule", j) for j in (k, k + 1))
        if self.damping is not None:
            now, after = (
                x / self._value("damping", j) for x, j in ((now, k), (after, k + 1))
            )
        return float((now - after) / now)

    def _value(self, name: str, k: int | Tensor) -> Any:
        """Return a schedule's value at step k, or its values at a tensor of steps."""
        given = getattr(self, name)
        if not isinstance(k, Tensor):
            value = float(given(k) if callable(given) else given)
            if not _in_range(name, value):
                where = f" at step {k}" if callable(given) else ""
                raise ValueError(f"{name} must be {_RANGES[name]}, got {value}{where}")
            return value
        if isinstance(given, PowerSchedule | InverseTimeDamping):
            values = given(k)
        elif callable(given):
            each = [float(given(j)) for j in k.flatten().tolist()]
            values = torch.tensor(each, dtype=torch.float64).view(k.shape)
        else:
            values = torch.full(k.shape, float(given), dtype=torch.float64)
        allowed = _in_range(name, values)
        if not bool(allowed.all()):
            first = int((~allowed).flatten().long().argmax())
            self._value(name, int(k.flatten()[first]))  # raises
        return values


_RANGES = {
    "schedule": "positive and finite",
    "damping": "positive and finite",
    "momentum": "in [0, 1)",
}


def _in_range(name: str, value: Any) -> Any:
    if name == "momentum":
        return (value >= 0) & (value < 1)
    return (value > 0) & (value < math.inf)
