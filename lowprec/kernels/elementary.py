"""Enclosures of exp, log, tanh, sigmoid and softmax in float64, for correct rounding.

The float64 value is trusted to sixteen units in the last place only, which every
mathematics library and processor keeps. Where both ends of that range round alike, the
exact value rounds so too (Ziv's test), because each rounding is monotone; the others
are computed in integers. Results are therefore the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import transcendental
from .codes import SATURATE_WRAP, SUBNORMALS, RoundingCode
from .exact import divide_to_odd
from .transcendental import Scaled

_TRUSTED = 2.0**-48
_ULP = 2.0**-52  # of one
_TINY, _LARGEST = 2.0**-1074, float.fromhex("0x1.fffffffffffffp1023")
# What float64 loses of subnormal numbers.
_LOST = 2.0**-1070
# Beyond, a format tells numbers apart that the enclosures do not.
_SMALLEST, _GREATEST = 2.0**-1000, 2.0**1000
_DEEPEST, _HIGHEST = -960, 990
_EXACT_WRAPS = 40


class Enclosure(NamedTuple):
    """Two numbers between which the exact value lies; equal where it is rational."""

    low: Tensor
    high: Tensor


class Odd(NamedTuple):
    """significand 2^exponent, rounded to odd."""

    significand: Tensor
    exponent: Tensor


def _around(y: Tensor, error: float = _TRUSTED) -> Enclosure:
    """Return what surrounds positive finite numbers, given approximations of them."""
    y = y.clamp(max=_LARGEST)
    doubt = y * error + _LOST
    return Enclosure((y - doubt).clamp(min=_TINY), (y + doubt).clamp(max=_LARGEST))


def _below(x: Tensor) -> Tensor:
    return x.nextafter(torch.full_like(x, -torch.inf))


def _chosen(known: Tensor, value: Tensor, otherwise: Enclosure) -> Enclosure:
    """Take a value that is known exactly where it is, also NaN."""
    return Enclosure(
        torch.where(known, value, otherwise.low),
        torch.where(known, value, otherwise.high),
    )


def _special(x: Tensor) -> Tensor:
    return ~x.isfinite() | (x == 0)


def _exponential(x: Tensor) -> Enclosure:
    y = x.exp()
    low, high = _around(y)
    low = torch.where(x > 0, low.clamp(min=1 + _ULP), low)
    high = torch.where(x < 0, high.clamp(max=1 - _ULP / 2), high)
    return _chosen(_special(x), y, Enclosure(low, high))


def _logarithm(x: Tensor) -> Enclosure:
    y = x.log()
    error = y.abs() * _TRUSTED
    high = torch.minimum(y + error, _below(x - 1))  # log(x) < x - 1
    known = ~x.isfinite() | (x <= 0) | (x == 1)
    return _chosen(known, y, Enclosure(torch.minimum(y - error, high), high))


def _hyperbolic_tangent(x: Tensor) -> Enclosure:
    size = x.abs()
    low, high = _around(size.tanh())
    high = torch.minimum(high, _below(size.clamp(max=1))).clamp(min=_TINY)
    low = torch.minimum(low, high)
    negative = x < 0
    ends = Enclosure(
        torch.where(negative, -high, low), torch.where(negative, -low, high)
    )
    known = torch.where(size.isinf(), x.sign(), x)
    return _chosen(_special(x), known, ends)


def _logistic(x: Tensor) -> Enclosure:
    power = (-x.abs()).exp()
    positive = x > 0
    y = torch.where(positive, 1.0, power) / (1 + power)
    low, high = _around(y)
    low = torch.where(positive, low.clamp(min=0.5 + _ULP / 2), low)
    high = torch.minimum(
        high, torch.where(positive, 1 - _ULP / 2, 0.5 - _ULP / 4).to(high)
    )
    return _chosen(_special(x), y, Enclosure(torch.minimum(low, high), high))


class Elementary(NamedTuple):
    """A function of one variable: quickly and roughly, slowly and exactly."""

    enclosure: Callable[[Tensor], Enclosure]
    exact: Callable[[float], Scaled]


EXPONENTIAL = Elementary(_exponential, transcendental.exponential)
LOGARITHM = Elementary(_logarithm, transcendental.logarithm)
HYPERBOLIC_TANGENT = Elementary(_hyperbolic_tangent, transcendental.hyperbolic_tangent)
LOGISTIC = Elementary(_logistic, transcendental.logistic)


def undecided(ends: Enclosure, rounded: Enclosure, code: RoundingCode) -> Tensor:
    """Return where an exact value is needed, given how both ends were rounded."""
    low, high = rounded
    hard = (low != high) & ~(low.isnan() & high.isnan())
    least = code.emin - (code.precision - 1 if code.flags & SUBNORMALS else 0)
    size = torch.minimum(ends.low.abs(), ends.high.abs())
    if least < _DEEPEST:
        hard = hard | ((size != 0) & (size < _SMALLEST))
    if code.saturation == SATURATE_WRAP:
        # No monotone rounding: enclosures must be narrower than the distances.
        hard = hard | ((ends.low != ends.high) & (size > 2.0 ** (least + _EXACT_WRAPS)))
    if code.emax > _HIGHEST:
        hard = hard | ((size > _GREATEST) & size.isfinite())
    return hard


def resolved(
    ends: Tensor, where: Tensor, exact: Callable[[Tensor], Sequence[Scaled]]
) -> Odd:
    """Return the low ends, with the exact values in their places.

    Args:
        ends: lower ends of the enclosures.
        where: which of them are not good enough.
        exact: values of the elements with these places in row-major order.
    """
    significand = ends.reshape(-1).clone()
    exponent = torch.zeros_like(significand, dtype=torch.int64)
    places = where.reshape(-1).nonzero().flatten()
    values = exact(places)
    significand[places] = significand.new_tensor([v.significand for v in values])
    exponent[places] = exponent.new_tensor([v.exponent for v in values])
    return Odd(significand.reshape(ends.shape), exponent.reshape(ends.shape))


def softmax(x: Tensor, dim: int) -> Enclosure:
    """Return enclosures of exp(x_i) / sum_j exp(x_j), along a dimension.

    NaN where the sum has NaN or infinity, or no finite number.
    """
    largest = x.amax(dim, keepdim=True)
    distance = x - largest
    # The error of the difference counts by its size, which the exponent multiplies.
    shadow = distance - x
    error = (x - (distance - shadow)) - (largest + shadow)
    power = distance.exp()
    power = power + power * torch.where(error.isfinite(), error, 0.0)
    total = power.sum(dim, keepdim=True)
    low, high = _around(power / total, (x.shape[dim] + 32) * _ULP)
    finite = x > -torch.inf
    ties = ((x == largest) & finite).sum(dim, keepdim=True).to(x.dtype)
    share = divide_to_odd(torch.ones_like(ties), ties)
    exact = (ties == finite.sum(dim, keepdim=True)) & finite
    # Where there are others, the largest have less than their share of one.
    count = ties.to(torch.int64)
    cap = torch.where(count & (count - 1) == 0, _below(share), share)
    high = torch.minimum(high, cap)
    low = torch.minimum(low, high)
    known = ~finite | exact | ~largest.isfinite()
    value = torch.where(finite, share, 0.0)
    value = torch.where(largest.isfinite(), value, torch.nan)
    return _chosen(known, value, Enclosure(low, high))
