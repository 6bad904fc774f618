"""The numbers of a format: its ends, its spacing, and all of them in a row."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from ._encoding import resolved_emin
from ._exact import Real, floor_log2, power_of_two, simplest

if TYPE_CHECKING:
    from ._format import Format

__all__ = ["all_values", "is_value", "largest", "quantum", "smallest"]

_MOST_VALUES = 2**20


def _significand(format: Format) -> int:
    if format.max_significand is None:
        raise ValueError("the format was not constructed by Format(...)")
    return format.max_significand


def largest(format: Format, negative: bool = False) -> Fraction:
    """Return the largest magnitude of the positive or of the negative values."""
    significand = _significand(format) + (negative and format.asymmetric)
    return significand * power_of_two(format.emax - format.precision + 1)


def _smallest_significand(format: Format) -> int:
    """Return the smallest positive value in units of 2^(emin-p+1)."""
    if format.subnormals:
        return 1
    replaced = format.encoding == "normal" and format.zero  # 2^emin is zero instead
    return (1 << (format.precision - 1)) + replaced


def smallest(format: Format) -> Fraction:
    """Return the smallest positive value."""
    unit = power_of_two(resolved_emin(format) - format.precision + 1)
    return _smallest_significand(format) * unit


def quantum(format: Format, magnitude: Fraction) -> Fraction:
    """Return the spacing of the values around a positive magnitude."""
    emin = resolved_emin(format)
    if magnitude < power_of_two(emin) or magnitude < smallest(format):
        return smallest(format)
    e = emin if format.encoding == "integer" else floor_log2(magnitude)
    return power_of_two(e - format.precision + 1)


def all_values(format: Format) -> list[Real]:
    """Return every finite value in ascending order, zero once.

    Raises:
        ValueError: if there are too many.
    """
    p, emin, top = format.precision, resolved_emin(format), _significand(format)
    first = _smallest_significand(format)
    positive = ((format.emax - emin) << (p - 1)) + top + 1 - first
    count = format.zero + positive * (1 + format.signed) + format.asymmetric
    if count > _MOST_VALUES:
        raise ValueError(
            f"{format.name or repr(format)} has {count} finite values; values() lists "
            f"at most {_MOST_VALUES}"
        )
    above: list[Real] = []
    for e in range(emin, format.emax + 1):
        unit = power_of_two(e - p + 1)
        last = top if e == format.emax else 2**p - 1
        above += [simplest(k * unit) for k in range(first, last + 1)]
        first = 2 ** (p - 1)
    below = [-value for value in reversed(above)] if format.signed else []
    lowest = [format.min] if format.asymmetric else []
    return [*lowest, *below, *[0.0] * format.zero, *above]


def is_value(format: Format, exact: Real) -> bool:
    """Return whether a number, as `exact_or_special` returns it, is in the format."""
    if isinstance(exact, float):
        if math.isnan(exact):
            return format.nans
        if exact == 0:
            return format.signed_zero
        return format.infinities and (exact > 0 or format.signed)
    if exact == 0:
        return format.zero
    if (exact < 0 and not format.signed) or abs(exact) > largest(format, exact < 0):
        return False
    return (exact / quantum(format, abs(exact))).denominator == 1
