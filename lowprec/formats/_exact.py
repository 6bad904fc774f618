"""Exact helpers on rationals: conversions, powers of two, simplest number types."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Rational
from typing import Any

__all__ = ["Real", "exact_or_special", "floor_log2", "power_of_two", "simplest"]

# A float where binary64 holds the number (and for infinity, NaN and signed zeros),
# otherwise a Fraction.
Real = float | Fraction


def power_of_two(exponent: int) -> Fraction:
    """Return 2^exponent."""
    if exponent >= 0:
        return Fraction(1 << exponent)
    return Fraction(1, 1 << -exponent)


def floor_log2(magnitude: Fraction) -> int:
    """Return the integer e with 2^e <= magnitude < 2^(e+1), for positive magnitude."""
    e = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return e if power_of_two(e) <= magnitude else e - 1


def simplest(value: Fraction) -> Real:
    """Return ``value`` as a float if binary64 holds it exactly, else unchanged."""
    try:
        nearest = float(value)
    except OverflowError:
        return value
    return nearest if Fraction(nearest) == value else value


def exact_or_special(x: Any) -> Real:
    """Return a finite number as Fraction; infinity, NaN and -0.0 as float.

    Any number that states its exact ratio is accepted: int, float, Fraction, Decimal,
    NumPy scalars.
    """
    if isinstance(x, Rational):
        return Fraction(int(x.numerator), int(x.denominator))
    if not hasattr(x, "as_integer_ratio"):
        raise TypeError(
            f"expected a number (int, float or Fraction), got {x!r} of type "
            f"{type(x).__name__}"
        )
    try:
        exact = Fraction(*map(int, x.as_integer_ratio()))
    except (OverflowError, ValueError):  # infinity, NaN
        return float(x)
    if exact == 0 and math.copysign(1.0, x) < 0:
        return -0.0
    return exact
