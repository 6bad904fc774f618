"""Projections on convex sets that keep parameters in their format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ..kernels.exact import two_sum
from ..rounding import Rounding, RoundingLike, RoundingMode, Saturation, as_rounding
from ._exact import round_exact

_CARRIER_FORMATS = {torch.float32: "binary32", torch.float64: "binary64"}
_SHRINK = 1 - 2.0**-52


def _storage(x: Tensor, rounding: RoundingLike | None, mode: RoundingMode) -> Rounding:
    """Return the format that ``x`` is stored in, with the given direction."""
    if rounding is None:
        rounding = _CARRIER_FORMATS[x.dtype]
    return replace(as_rounding(rounding), mode=mode, saturation=Saturation.NONE)


def _rounded(value: float, rounding: Rounding) -> float:
    return round_exact(
        torch.tensor(value, dtype=torch.float64), rounding, None, 0
    ).item()


@dataclass(frozen=True)
class Box:
    r"""The box of all w with low <= w_i <= high.

    .. math::
        P(z)_i = \min(\max(z_i, \mathrm{low}), \mathrm{high})

    Contract:
        Exact: bounds that the format does not have are moved inward to values that it
        has, which is the same set of representable points, and no rounding follows.
        Infinite coordinates move to a bound; NaN stays.

    Args:
        low: lower bound, may be -inf.
        high: upper bound, may be inf.

    Raises:
        ValueError: if a bound is NaN or ``low > high``.

    Example:
        >>> Box(-0.1, 0.1).project([torch.tensor([3.0, -0.05])], ["bfloat16"])
        [tensor([ 0.0996, -0.0500])]

    References:
        Cacciola et al., section 4 (projection on Omega).
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not self.low <= self.high:
            raise ValueError(
                f"a box needs low <= high, got low={self.low} and high={self.high}"
            )

    def project(
        self, points: Sequence[Tensor], roundings: Sequence[RoundingLike | None]
    ) -> list[Tensor]:
        """Project one point, given as tensors that are stored in these formats.

        Args:
            points: the tensors that make up the point.
            roundings: the format of each; None means its dtype.

        Returns:
            The projected tensors; those already inside are unchanged.

        Raises:
            ValueError: if the box contains no value of a format.
        """
        return [self._clamp(z, fl) for z, fl in zip(points, roundings, strict=True)]

    def _clamp(self, z: Tensor, rounding: RoundingLike | None) -> Tensor:
        up = _storage(z, rounding, RoundingMode.TOWARD_POSITIVE)
        down = _storage(z, rounding, RoundingMode.TOWARD_NEGATIVE)
        low, high = self.low, self.high
        if not up.format.signed:
            low = max(low, 0.0)
        if math.isfinite(low):
            low = _rounded(low, up)
        if math.isfinite(high):
            high = _rounded(high, down)
        if not low <= high or (low == high and math.isinf(low)):
            raise ValueError(
                f"{self} contains no value of {up.format!r}: widen the box"
            )
        return z.clamp(low, high)


@dataclass(frozen=True)
class Ball:
    r"""The Euclidean ball of all w with ||w - center|| <= radius.

    .. math::
        P(z) = c + \min\Bigl(1, \frac{\rho}{\|z - c\|}\Bigr) (z - c)

    Contract:
        The norm runs over all tensors of the point. Outside points are projected in
        float64, then every coordinate is rounded toward the centre, so that the
        result is in the ball as float64 measures it. Points with NaN or infinite
        coordinates have no projection and are returned unchanged.

    Args:
        radius: rho, positive and finite.
        center: c, the same for every coordinate; a value of the parameters' format.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> Ball(1.0).project([torch.tensor([3.0, 4.0])], ["bfloat16"])
        [tensor([0.5977, 0.7969])]

    References:
        Cacciola et al., section 4 (projection on Omega).
    """

    radius: float
    center: float = 0.0

    def __post_init__(self) -> None:
        """Check radius and centre."""
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError(f"radius must be positive and finite, got {self.radius}")
        if not math.isfinite(self.center):
            raise ValueError(f"center must be finite, got {self.center}")

    def project(
        self, points: Sequence[Tensor], roundings: Sequence[RoundingLike | None]
    ) -> list[Tensor]:
        """Project one point, given as tensors that are stored in these formats.

        Args:
            points: the tensors that make up the point.
            roundings: the format of each; None means its dtype.

        Returns:
            The projected tensors.

        Raises:
            ValueError: if the centre is no value of a format.
        """
        arms = [z.to(torch.float64) - self.center for z in points]
        length = _norm(arms)
        if length <= self.radius or not math.isfinite(length):
            return list(points)
        factor = self.radius / length
        while True:
            projected = [
                self._toward_center(factor * arm, z, fl)
                for arm, z, fl in zip(arms, points, roundings, strict=True)
            ]
            if _norm([w.to(torch.float64) - self.center for w in projected]) <= (
                self.radius
            ):
                return projected
            factor *= _SHRINK

    def _toward_center(
        self, arm: Tensor, z: Tensor, rounding: RoundingLike | None
    ) -> Tensor:
        down = _storage(z, rounding, RoundingMode.TOWARD_NEGATIVE)
        up = _storage(z, rounding, RoundingMode.TOWARD_POSITIVE)
        if _rounded(self.center, down) != self.center:
            raise ValueError(
                f"center={self.center} is no value of {down.format!r}: rounding toward "
                "it would miss it; choose a representable centre"
            )
        center = torch.tensor(self.center, dtype=torch.float64, device=arm.device)
        point, error = two_sum(arm, center)
        # Rounded away from the centre: one step back, or no factor may ever suffice.
        point = torch.where(error * arm.sign() < 0, point.nextafter(center), point)
        lower, upper = (
            round_exact(point, down, None, 0),
            round_exact(point, up, None, 0),
        )
        return torch.where(arm > 0, lower, upper).to(z.dtype)


Projection: TypeAlias = Box | Ball


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.cat([tensor.reshape(-1) for tensor in tensors]).norm())
