"""The stochastic gradient methods that replicas follow, in the paper's parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..arithmetic import round as fl
from ..rounding import Rounding, RoundingLike, as_rounding
from ..schedules import ScheduleLike, at_step

Variant = Literal["vsgd", "heavy_ball", "msgd", "nasgd49", "nesterov5", "nesterov"]
PURPOSES = 6


class Draw(NamedTuple):
    """The random numbers of one step.

    Args:
        samples: number of the sample of every replica, [M].
        seeds: of the roundings, by purpose; None if nothing is stochastic.
    """

    samples: Tensor
    seeds: list[int] | None


@dataclass(frozen=True)
class State:
    """What the next step depends on, [M, d] each; tensors are never changed.

    Args:
        x: the iterates.
        v: the velocities; of Nesterov's method the previous iterates.
    """

    x: Tensor
    v: Tensor

    @classmethod
    def at_rest(cls, x: Tensor, variant: str) -> State:
        """Return x without velocity."""
        return cls(x, x if variant == "nesterov" else torch.zeros_like(x))


@dataclass(frozen=True)
class ReplicaMethod:
    variant: Variant
    schedule: ScheduleLike
    damping: ScheduleLike | None = None
    momentum: ScheduleLike | None = None
    gradient: RoundingLike | None = None
    velocity: RoundingLike | None = None
    weights: RoundingLike | None = None

    @property
    def stochastic(self) -> bool:
        return any(
            isinstance(r, Rounding) and r.stochastic
            for r in (self.gradient, self.velocity, self.weights)
        )

    def update(
        self,
        k: int,
        state: State,
        gradient: Callable[..., Tensor],
        data: tuple[Tensor, ...],
        draw: Draw,
    ) -> State:
        alpha = at_step(self.schedule, k)
        x, v = state.x, state.v
        samples = [one.index_select(0, draw.samples) for one in data]
        if self.variant == "vsgd":
            g = gradient(x, *samples)
            return State(x - alpha * g, v)
        if self.variant == "heavy_ball":
            g = gradient(x, *samples)
            v = at_step(self.momentum, k) * v - alpha * g
            return State(x + v, v)
        if self.variant == "nesterov":
            b = at_step(self.momentum, k-1) if k > 1 else 0.0
            y = x + b * (x - v)
            g = gradient(y, *samples)
            return State(y - alpha * g, x)
        decay = 1 - at_step(self.damping, k) * alpha
        y = x
        if self.variant == "nasgd49":
            before = at_step(self.schedule, max(k - 1, 1))
            y = x + decay * alpha / before * v
        elif self.variant == "nesterov5":
            y = x + decay * alpha * v
        v = decay * v - alpha * gradient(y, *samples)
        return State(x + alpha * v, v)
