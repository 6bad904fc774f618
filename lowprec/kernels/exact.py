"""Error-free float64 arithmetic: exact sums and products, rounding to odd."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SPLITTER = 2.0**27 + 1.0  # Veltkamp: halves of 26 bits
# Products of two operands of 26 bits are exact in float64.
_NARROW_BITS_DROPPED = 27


class Products(NamedTuple):
    """Exact products as unevaluated sums of two float64 tensors; None for no error."""

    head: Tensor
    error: Tensor | None


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum and its exact error (Knuth)."""
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded product and its exact error (Dekker), barring range events."""
    product = a * b
    a_scaled, b_scaled = a * _SPLITTER, b * _SPLITTER
    a_high, b_high = a_scaled - (a_scaled - a), b_scaled - (b_scaled - b)
    a_low, b_low = a - a_high, b - b_high
    error = (a_high * b_high - product) + a_high * b_low + a_low * b_high
    return product, error + a_low * b_low


def is_wide(x: Tensor) -> bool:
    """Whether an element of a float64 tensor has more than 26 significant bits."""
    dropped = x.view(torch.int64) & ((1 << _NARROW_BITS_DROPPED) - 1)
    return bool((dropped != 0).any())


def exact_product(a: Tensor, b: Tensor, wide: bool) -> Products:
    """Return a b without error; ``wide`` if a head alone may not hold it."""
    if not wide:
        return Products(a * b, None)
    head, error = two_product(a, b)
    return Products(head, torch.where(head.isfinite(), error, 0.0))


def to_odd(total: Tensor, error: Tensor) -> Tensor:
    """Round the exact value ``total + error`` to odd, given its nearest double."""
    bits = total.view(torch.int64)
    negative = bits < 0
    # Toward the error: away from zero (+1 in the bits) if the signs agree, else -1.
    step = torch.where((error < 0) == negative, 1, -1)
    move = (error != 0) & ((bits & 1) == 0) & total.isfinite()
    return torch.where(move, bits + step, bits).view(torch.float64)


def multiply_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """Return round-to-odd(a b) in float64, barring range events."""
    product, error = two_product(a, b)
    return to_odd(product, torch.where(product.isfinite(), error, 0.0))


def divide_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """Return round-to-odd(a / b) in float64, barring range events.

    The remainder a - b q of the rounded quotient q is a float64 number, and has the
    sign of the quotient's error times that of b.
    """
    quotient = a / b
    return to_odd(quotient, quotient_error(a, b, quotient))


def quotient_error(a: Tensor, b: Tensor, quotient: Tensor) -> Tensor:
    """Return a number with the sign of a / b - quotient, the rounded quotient."""
    product, error = two_product(quotient, b)
    remainder = ((a - product) - error) * b.sign()
    return torch.where(remainder.isfinite(), remainder, 0.0)


def square_root_to_odd(a: Tensor) -> Tensor:
    """Return round-to-odd(sqrt(a)) in float64, barring range events."""
    root = nearest_root(a)
    return to_odd(root, root_error(a, root))


def nearest_root(a: Tensor) -> Tensor:
    """Return the float64 number nearest to sqrt(a)."""
    # torch's own root may be wrong in its last bit: one step of Newton's mends it.
    first = a.sqrt()
    step = root_error(a, first) / (2 * first)
    return torch.where(step.isfinite(), first + step, first)


def root_error(a: Tensor, root: Tensor) -> Tensor:
    """Return a - root^2, which has the sign of the root's error."""
    product, error = two_product(root, root)
    remainder = (a - product) - error
    return torch.where(remainder.isfinite(), remainder, 0.0)


def add_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """Return round-to-odd(a + b) in float64; non-finite operands as IEEE 754 adds.

    A sum of finite terms beyond the float64 range is the largest finite number, which
    is odd.
    """
    total, error = two_sum(a, b)
    return _largest_for_overflow(to_odd(total, error), a, b)


def _largest_for_overflow(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    overflow = total.isinf() & a.isfinite() & b.isfinite()
    largest = torch.finfo(torch.float64).max
    return torch.where(overflow, total.clamp(-largest, largest), total)


def fused_to_odd(accumulated: Tensor, product: Products) -> Tensor:
    """Return round-to-odd(accumulated + product) with the product exact.

    References:
        Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008, with
        the final sum rounded to odd as well.
    """
    if product.error is None:
        return add_to_odd(accumulated, product.head)
    upper, lower = two_sum(accumulated, product.error)
    total, rest = two_sum(product.head, upper)
    sticky = add_to_odd(rest, lower)
    result = add_to_odd(total, sticky)
    # Infinities, NaN and the sign of an exact zero are those of the plain sum.
    plain = accumulated + product.head
    result = torch.where(total.isfinite() & (result != 0), result, plain)
    return _largest_for_overflow(result, accumulated, product.head)
