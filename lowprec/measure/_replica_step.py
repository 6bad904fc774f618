"""One step of all replicas: where the gradient is taken, and the updates of v and x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from ..arithmetic import round as fl
from ..optim import rounded_sum
from ..random import philox_words
from ..rounding import Rounding, RoundingLike, RoundingMode, as_rounding
from ..schedules import Coefficients

_PURPOSE_SPLIT = 0xFFFFFFFF  # of lowprec.random, for seeds derived from seeds
_PURPOSES = 6


class _Seed(IntEnum):
    """Which seed of a step a rounding uses, the same as in the optimizers."""

    PARAM = 0
    VELOCITY = 2
    GRADIENT = 3


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

    def check(self, start: Tensor) -> None:
        """Meet what the roundings refuse before anything is computed.

        Raises:
            ValueError: if ``start`` is not in the parameters' format, or its dtype
                cannot hold the values of a format.
            NotImplementedError: for too many significant bits.
        """
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


def look_ahead(c: Coefficients, x: Tensor, v: Tensor) -> Tensor:
    """Return x + c v, where the gradient is taken."""
    return x if c.look_ahead == 0 else x + c.look_ahead * v


def updated(
    c: Coefficients,
    x: Tensor,
    v: Tensor | None,
    gradient: Tensor,
    formats: Formats,
    seeds: list[int] | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the next x and v; v None for a method without."""
    if formats.gradient is not None:
        seed = _seed(formats.gradient, seeds, _Seed.GRADIENT)
        gradient = fl(gradient, formats.gradient, seed=seed)
    if v is None:
        seed = _seed(formats.param, seeds, _Seed.PARAM)
        return _sum((1.0, -float(c.step)), (x, gradient), formats.param, seed), None
    seed = _seed(formats.velocity, seeds, _Seed.VELOCITY)
    scales = (float(c.retained), -float(c.step))
    v = _sum(scales, (v, gradient), formats.velocity, seed)
    seed = _seed(formats.param, seeds, _Seed.PARAM)
    return _sum((1.0, float(c.advance)), (x, v), formats.param, seed), v


def _seed(
    rounding: Rounding | None, seeds: list[int] | None, purpose: _Seed
) -> int | None:
    if rounding is None or not rounding.stochastic or seeds is None:
        return None
    return seeds[purpose]


def _sum(
    scales: Sequence[float],
    tensors: Sequence[Tensor],
    rounding: Rounding | None,
    seed: int | None,
) -> Tensor:
    """Return the sum of two scaled tensors; without a format in the carrier."""
    if rounding is not None:
        return rounded_sum(scales, tensors, rounding, seed=seed)
    first, second = (
        x if s == 1 else x * s for s, x in zip(scales, tensors, strict=True)
    )
    return first + second
