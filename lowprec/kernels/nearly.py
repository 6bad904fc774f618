"""Rounding of float64 results to 52 and 53 bits, which leave no room for a second one.

An exact result is its nearest float64 number and what that lost: nothing, less than
half a unit in the last place, or a tie. An integer of 57 bits says as much, and
integers are rounded as `portable` rounds significands.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .codes import (
    SATURATE_NONE,
    SUBNORMALS,
    TO_ODD,
    TOWARD_NEGATIVE,
    TOWARD_POSITIVE,
    TOWARD_ZERO,
    RoundingCode,
)
from .deciding import bit_length, round_up
from .exact import (
    add_to_odd,
    nearest_root,
    quotient_error,
    root_error,
    two_product,
    two_sum,
)

_BITS, _FRACTION, _BIAS = 53, 52, 1023
# Places behind the last bit of the nearest number.
_PLACES = 3
_LARGEST_SHIFT = 62


class Nearest(NamedTuple):
    """The float64 number nearest to an exact result, and what the result has more.

    Where the result cannot be a tie, only the sign of ``error`` counts.
    """

    head: Tensor
    error: Tensor
    ties: bool


def sum_of(a: Tensor, b: Tensor) -> Nearest:
    """Return a + b, barring overflow."""
    return Nearest(*two_sum(a, b), ties=True)


def product_of(a: Tensor, b: Tensor) -> Nearest:
    """Return a b, barring range events."""
    return Nearest(*two_product(a, b), ties=True)


def quotient_of(a: Tensor, b: Tensor) -> Nearest:
    """Return a / b, barring range events."""
    quotient = a / b
    return Nearest(quotient, quotient_error(a, b, quotient), ties=False)


def root_of(a: Tensor) -> Nearest:
    """Return sqrt(a), barring range events."""
    root = nearest_root(a)
    # It may still be the second nearest: no root is a tie, but some are close to one,
    # and (root + h)^2 differs from root^2 by more than its neighbours' 2 root h.
    error, known = root_error(a, root), (root > 0) & root.isfinite()
    lower, upper = root.nextafter(torch.zeros_like(root)), root.nextafter(root + root)
    large = known & (error + root * (root - lower) <= 0)
    small = known & (error - root * (upper - root) > 0)
    root = torch.where(large, lower, torch.where(small, upper, root))
    return Nearest(root, root_error(a, root), ties=False)


def fused_of(accumulated: Tensor, a: Tensor, b: Tensor) -> Nearest:
    """Return accumulated + a b, barring range events (Boldo and Melquiond)."""
    product, less = two_product(a, b)
    upper, lower = two_sum(accumulated, torch.where(product.isfinite(), less, 0.0))
    total, rest = two_sum(product, upper)
    head, error = two_sum(total, add_to_odd(rest, lower))
    # Infinities, NaN and the sign of an exact zero are those of the plain sum.
    plain = accumulated + product
    usable = total.isfinite() & (head != 0)
    return Nearest(
        torch.where(usable, head, plain), torch.where(usable, error, 0.0), ties=True
    )


def _power(exponent: Tensor) -> Tensor:
    return ((exponent + _BIAS) << _FRACTION).view(torch.float64)


def _integer(exact: Nearest) -> tuple[Tensor, Tensor]:
    """Return (n, e): the magnitude is n 2^e, or lies beside it where n is odd."""
    bits = exact.head.view(torch.int64) & ((1 << 63) - 1)
    field = bits >> _FRACTION
    hidden = torch.where(field > 0, 1 << _FRACTION, 0)
    significand = (bits & ((1 << _FRACTION) - 1)) + hidden
    exponent = field.clamp(min=1) - (_BIAS + _FRACTION)
    outward = (exact.error < 0) == (exact.head < 0)
    # Below a power of two numbers are half as far apart.
    below = (significand == 1 << _FRACTION) & ~outward & (field > 1)
    beside = torch.where(exact.error == 0, 0, 1)
    if exact.ties:
        unit = _power(exponent.clamp(min=1 - _BIAS))
        tie = exact.error.abs() * torch.where(below, 4, 2) == unit
        beside = torch.where(tie, torch.where(below, 2, 4), beside)
    beside = torch.where(outward, beside, -beside)
    return (significand << _PLACES) + beside, exponent - _PLACES


def round_nearest(exact: Nearest, shift: Tensor, code: RoundingCode) -> Tensor:
    """Return fl(result 2^shift) in a deterministic mode, finite numbers only.

    Numbers beyond the largest one become that, or infinite.
    """
    negative = exact.head < 0
    size, exponent = _integer(exact)
    exponent = exponent + shift
    top = bit_length(size) - 1 + exponent
    quantum = top.clamp(min=code.emin) - (code.precision - 1)
    if not code.flags & SUBNORMALS:
        quantum = torch.where(top < code.emin, code.emin, quantum)
    drop = (quantum - exponent).clamp(min=0)
    count = size >> drop.clamp(max=_LARGEST_SHIFT)
    count = count + round_up(code, size, quantum, drop, negative, None)
    # In two steps, since 2^exponent may be subnormal: each product is exact.
    place = exponent + drop
    first = place.clamp(-_BIAS + 1, _BIAS - _BITS)
    rest = (place - first).clamp(max=_BITS)  # more is as infinite
    value = count.to(torch.float64) * _power(first) * _power(rest)
    largest = code.max_significand * 2.0 ** (code.emax - code.precision + 1)
    inward = code.saturation != SATURATE_NONE or code.mode in (TOWARD_ZERO, TO_ODD)
    stays = torch.full_like(negative, inward)
    if code.mode == TOWARD_POSITIVE:
        stays = stays | negative
    if code.mode == TOWARD_NEGATIVE:
        stays = stays | ~negative
    beyond = torch.where(stays, torch.full_like(value, largest), torch.inf)
    value = torch.where(value > largest, beyond, value)
    return torch.where(negative, -value, value)
