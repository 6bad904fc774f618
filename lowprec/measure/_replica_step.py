"""One step of all replicas: where the gradient is taken, and the updates of v and x."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from ..arithmetic import round as fl
from ..optim import rounded_sum
from ..random import philox_words
from ..rounding import Rounding, RoundingLike, RoundingMode, as_rounding
from ..schedules import Coefficients, Iteration

_PURPOSE_SPLIT = 0xFFFFFFFF  # of lowprec.random, for seeds derived from seeds
_PURPOSES = 6


class _Seed(IntEnum):
    """Which seed of a step a rounding uses, the same as in the optimizers."""

    PARAM = 0
    GRADIENT = 1
    VELOCITY = 2
    LOOK_AHEAD = 3


@dataclass(frozen=True)
class State:
    """What the next step depends on, [M, d] each.

    Args:
        x: the iterates.
        v: the velocities; None for a method without.
        y: where the next gradient is taken, rounded like x; x itself if the method
            does not look ahead.
    """

    x: Tensor
    v: Tensor | None
    y: Tensor


def step_seeds(seed: Tensor, steps: Tensor) -> Tensor:
    """Return the seeds of some steps by purpose, [steps, 6], as the optimizers do."""
    words = philox_words(
        torch.arange(2 * _PURPOSES).expand(len(steps), -1),
        seed,
        step=steps.unsqueeze(-1),
        purpose=_PURPOSE_SPLIT,
    )
    return (words[:, 0::2] << 32) | words[:, 1::2]


@dataclass(frozen=True)
class Formats:
    """Roundings of the gradient, the parameters and the velocity; None for none."""

    gradient: Rounding | None
    param: Rounding | None
    velocity: Rounding | None

    @classmethod
    def of(cls, *given: RoundingLike | None) -> Formats:
        """Return the roundings that are meant."""
        return cls(*(None if one is None else as_rounding(one) for one in given))

    def check(self, start: Tensor, iteration: Iteration) -> None:
        """Meet what the roundings refuse before anything is computed.

        Raises:
            TypeError: if there is no velocity to round.
            ValueError: if ``start`` is not in the parameters' format, or its dtype
                cannot hold the values of a format.
            NotImplementedError: for too many significant bits.
        """
        if self.velocity is not None and not iteration.has_velocity:
            raise TypeError(
                f"method {iteration.method!r} has no velocity to round: omit "
                "velocity_format"
            )
        zero = torch.zeros(1, dtype=start.dtype)
        if self.gradient is not None:
            fl(zero, self.gradient, seed=0)
        for rounding in (self.param, self.velocity):
            if rounding is not None:
                rounded_sum([1.0], [zero], rounding, seed=0)
        if self.param is not None:
            nearest = replace(self.param, mode=RoundingMode.NEAREST_EVEN)
            if not torch.equal(fl(start, nearest), start):
                raise ValueError(
                    f"start must be in the format of the parameters, {self.param!r}: "
                    "use lowprec.round(start, ...)"
                )

    @property
    def stochastic(self) -> bool:
        """Whether a rounding needs random numbers."""
        return any(one is not None and one.stochastic for one in vars(self).values())


def updated(
    state: State,
    gradient: Tensor,
    now: Coefficients,
    following: Coefficients,
    formats: Formats,
    seeds: list[int] | None,
) -> State:
    """Return the state after a step.

    Args:
        state: before it.
        gradient: at ``state.y``, not rounded yet.
        now: numbers of this step.
        following: numbers of the next one, which say how far ahead y is.
        formats: what is rounded.
        seeds: of this step by purpose.
    """
    alpha, retained, advance, _ = map(float, now)
    if formats.gradient is not None:
        seed = _seed(formats.gradient, seeds, _Seed.GRADIENT)
        gradient = fl(gradient, formats.gradient, seed=seed)

    def total(
        base: Tensor,
        factor: float,
        term: Tensor,
        scale: float,
        rounding: Rounding | None,
        purpose: _Seed,
    ) -> Tensor:
        if rounding is not None:
            scales, tensors = (factor, scale), (base, term)
            seed = _seed(rounding, seeds, purpose)
            return rounded_sum(scales, tensors, rounding, seed=seed)
        start = base if factor == 1 else base * factor
        return torch.add(start, term, alpha=scale)

    if state.v is None:
        x = total(state.x, 1.0, gradient, -alpha, formats.param, _Seed.PARAM)
        return State(x, None, x)
    v = total(state.v, retained, gradient, -alpha, formats.velocity, _Seed.VELOCITY)
    x = total(state.x, 1.0, v, advance, formats.param, _Seed.PARAM)
    ahead = float(following.look_ahead)
    if ahead == 0:
        return State(x, v, x)
    return State(x, v, total(x, 1.0, v, ahead, formats.param, _Seed.LOOK_AHEAD))


def _seed(
    rounding: Rounding | None, seeds: list[int] | None, purpose: _Seed
) -> int | None:
    if rounding is None or not rounding.stochastic or seeds is None:
        return None
    return seeds[purpose]
