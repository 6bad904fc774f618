"""Schedules of hyper-parameters that tighten a quantization: epsilon and lambda."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch.optim import Optimizer

from ..errors import NumericalWarning, depth_of_caller
from ._remoteness import check_number, largest_epsilon

Schedule: TypeAlias = Callable[[float], float]

_LAST_STEP = 2**53  # of the search for the first one that binds


@dataclass(frozen=True)
class ExponentialEpsilon:
    r"""The slack of the feasible set: constant, then shrinking.

    .. math::
        \epsilon(t) = \epsilon_0 \text{ for } t < T, \quad
        \max(\epsilon_f, \epsilon_0 \rho^{t - T}) \text{ from } t = T \text{ on}

    Args:
        start: T, from 0, in the unit of the time that `Annealing` counts.
        rate: rho, in (0, 1].
        initial: epsilon_0.
        floor: epsilon_f.

    Raises:
        TypeError: if a value is no number.
        ValueError: if one is out of range.

    Example:
        >>> schedule = ExponentialEpsilon(start=30)
        >>> schedule(30), schedule(31), round(schedule(45.5), 9)
        (1.0, 0.88, 0.137873696)

    References:
        Revisiting ASkewSGD, section 5; fractional times are those of its notebooks.
    """

    start: float
    rate: float = 0.88
    initial: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("start", "rate", "initial", "floor"):
            check_number(name, getattr(self, name))
        _check_start(self.start)
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {self.rate}")
        if not 0 <= self.floor <= self.initial < math.inf:
            raise ValueError(
                "an annealing needs 0 <= floor <= initial, got "
                f"floor={self.floor} and initial={self.initial}"
            )

    def __call__(self, time: float) -> float:
        """Return epsilon(t)."""
        if time < self.start:
            return self.initial
        shrunk: float = self.initial * self.rate ** (time - self.start)
        return max(shrunk, self.floor)  # in this order NaN stays


@dataclass(frozen=True)
class LinearLambda:
    r"""The strength of a proximal map: zero, then growing.

    .. math::
        \lambda(t) = \rho \max(0, t - T)

    Args:
        rate: rho, not negative.
        start: T, from 0.

    Raises:
        TypeError: if a value is no number.
        ValueError: if one is negative, or the rate not finite.

    Example:
        >>> LinearLambda(0.5, start=2)(5)
        1.5

    References:
        Bai et al. 2019, ProxQuant.
    """

    rate: float
    start: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        check_number("rate", self.rate)
        check_number("start", self.start)
        _check_start(self.start)
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"rate must be finite and not negative, got {self.rate}")

    def __call__(self, time: float) -> float:
        """Return lambda(t)."""
        return self.rate * max(time - self.start, 0.0)  # in this order NaN stays


def _check_start(start: float) -> None:
    if not start >= 0:
        raise ValueError(f"start must not be negative, got {start}")


class Annealing:
    """Set a hyper-parameter of an optimizer's groups to a schedule's value.

    Contract:
        Like a scheduler of ``torch.optim``: the value of time 0 is set at
        construction, and `step` follows the optimizer's. Time counts epochs if
        ``steps_per_epoch`` is given, else steps. A schedule that gives NaN, infinity
        or a negative number is refused before anything changes.

    Args:
        optimizer: has ``key`` in its groups; those without levels are left alone.
        key: ``"epsilon"`` or ``"lam"``.
        schedule: a function of time.
        steps_per_epoch: steps in one epoch; None means that time counts steps.
        fractional: whether time moves inside an epoch.

    Raises:
        TypeError: if ``steps_per_epoch`` is no integer.
        ValueError: if no group has ``key`` or the schedule goes out of range.

    Warns:
        NumericalWarning: if ``epsilon`` starts above its maximum, saying from which
            step on the constraint binds inside cells. The step is searched for by
            bisection, which takes for granted that epsilon does not rise again.

    Example:
        >>> import torch
        >>> from lowprec import Levels
        >>> from lowprec.optim import ASkewSGD
        >>> w = torch.nn.Parameter(torch.tensor([0.5]))
        >>> optimizer = ASkewSGD([w], lr=0.1, levels=Levels.binary())
        >>> annealing = Annealing(optimizer, "epsilon", ExponentialEpsilon(1, 0.5))
        >>> for _ in range(3):
        ...     annealing.step()
        >>> optimizer.param_groups[0]["epsilon"]
        0.25
    """

    def __init__(
        self,
        optimizer: Optimizer,
        key: str,
        schedule: Schedule,
        *,
        steps_per_epoch: int | None = None,
        fractional: bool = True,
    ) -> None:
        if not any(key in group for group in optimizer.param_groups):
            raise ValueError(
                f"the groups of {type(optimizer).__name__} have no {key!r} to anneal: "
                "'epsilon' is ASkewSGD's, 'lam' is ProxQuant's"
            )
        if steps_per_epoch is not None:
            if isinstance(steps_per_epoch, bool) or not isinstance(
                steps_per_epoch, int
            ):
                raise TypeError(
                    f"steps_per_epoch must be an int, got {steps_per_epoch!r}: "
                    "len(loader) counts the batches"
                )
            if steps_per_epoch < 1:
                raise ValueError(
                    f"steps_per_epoch must be at least 1, got {steps_per_epoch}"
                )
        self.optimizer = optimizer
        self.key = key
        self.schedule = schedule
        self.steps_per_epoch = steps_per_epoch
        self.fractional = fractional
        self.count = 0
        self._set(0.0)
        self._warn_where_free()

    def step(self) -> None:
        """Move on by one step of the optimizer.

        Raises:
            ValueError: if the schedule goes out of range; nothing has changed then.
        """
        self._set(self._time(self.count + 1))
        self.count += 1

    def set_epoch(self, epoch: int, fraction: float = 0.0) -> None:
        """Set the time to ``epoch + fraction`` epochs, from 0.

        Raises:
            ValueError: without ``steps_per_epoch``, or as `step`.
        """
        if self.steps_per_epoch is None:
            raise ValueError("set_epoch needs steps_per_epoch: this time counts steps")
        count = round((epoch + fraction) * self.steps_per_epoch)
        self._set(self._time(count))
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps so far; values are in the optimizer's groups."""
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where another annealing was saved."""
        count = int(state_dict["count"])
        self._set(self._time(count))
        self.count = count

    def _time(self, count: int) -> float:
        if self.steps_per_epoch is None:
            return float(count)
        if not self.fractional:
            return float(count // self.steps_per_epoch)
        return count / self.steps_per_epoch

    def _value(self, time: float) -> float:
        value = float(self.schedule(time))
        if not 0 <= value < math.inf:
            raise ValueError(
                f"the schedule of {self.key!r} gives {value} at time {time:g}: it must "
                "be finite and not negative; give it a floor of 0"
            )
        return value

    def _groups(self) -> list[dict[str, Any]]:
        return [
            group
            for group in self.optimizer.param_groups
            if self.key in group and group.get("levels") is not None
        ]

    def _set(self, time: float) -> None:
        value = self._value(time)
        for group in self._groups():
            group[self.key] = value

    def _warn_where_free(self) -> None:
        if self.key != "epsilon":
            return
        largest = min(
            (largest_epsilon(g["levels"], g["remoteness"]) for g in self._groups()),
            default=math.inf,
        )
        if self._value(0.0) <= largest:
            return
        step = self._first_step_below(largest)
        when = "at no step" if step is None else f"from step {step} on, counted from 0"
        warnings.warn(
            f"epsilon starts at {self._value(0.0):g}, above its maximum {largest:g} "
            f"for these levels: the constraint binds inside cells {when}; start at "
            "optim.largest_epsilon(levels, remoteness)",
            NumericalWarning,
            stacklevel=depth_of_caller(),
        )

    def _first_step_below(self, bound: float) -> int | None:
        """Return the first step whose value is below a bound; None if there is none."""

        def known(step: int) -> float | None:
            # A schedule may be a table, which ends.
            with contextlib.suppress(ArithmeticError, LookupError, ValueError):
                return float(self.schedule(self._time(step)))
            return None

        above, step = 0, 1
        while (value := known(step)) is not None and value >= bound:
            if step >= _LAST_STEP:
                return None
            above, step = step, 2 * step
        while step - above > 1:
            middle = (above + step) // 2
            value = known(middle)
            if value is not None and value >= bound:
                above = middle
            else:
                step = middle
        return None if known(step) is None else step
