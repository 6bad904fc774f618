"""One step of all replicas: look ahead, and the rounded updates of v and x."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..rounding import Rounding, RoundingLike, as_rounding
from ..schedules import Coefficients

PURPOSES = 6


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

    @property
    def stochastic(self) -> bool:
        """Whether a rounding needs random numbers."""
        return any(one is not None and one.stochastic for one in vars(self).values())


def look_ahead(c: Coefficients, x: Tensor, v: Tensor) -> Tensor:
    return x if c.look_ahead == 0 else x + c.look_ahead * v


def updated(
    c: Coefficients, x: Tensor, v: Tensor, gradient: Tensor, velocity: bool
) -> tuple[Tensor, Tensor]:
    if not velocity:
        return x - c.step * gradient, v
    v = c.retained * v - c.step * gradient
    return x + c.advance * v, v
