"""The largest relative error of one rounding, from a format and a direction."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, TypeAlias

from ..formats import Format, format

# A format (or its name or torch dtype), or the unit roundoff u = 2^-p itself.
UnitRoundoff: TypeAlias = Format | str | float | Fraction

_NEAREST = ("nearest_even", "nearest_away", "nearest_zero")
_OTHERS = (
    "toward_positive",
    "toward_negative",
    "toward_zero",
    "to_odd",
    "stochastic",
    "stochastic_equal",
)


def as_unit_roundoff(u: Any) -> float:
    """Return u = 2^-p of a format, or a given u after checking 0 < u < 1.

    Raises:
        TypeError: if ``u`` is neither a number nor a format.
        ValueError: if it is a number outside (0, 1), or an unknown format name.
    """
    if isinstance(u, bool):
        raise TypeError(f"u must be a format or a unit roundoff, got {u!r}")
    value = float(u if isinstance(u, (int, float, Fraction)) else _of_format(u))
    if not 0.0 < value < 1.0:
        raise ValueError(
            f"the unit roundoff must lie in (0, 1), got {value!r}: "
            "pass 2**-p, or the format itself"
        )
    return value


def is_nearest(mode: str) -> bool:
    """Return whether a rounding-direction attribute rounds to nearest.

    Raises:
        ValueError: if ``mode`` names no rounding direction.
    """
    name = str(getattr(mode, "value", mode))
    if name in _NEAREST:
        return True
    if name in _OTHERS:
        return False
    raise ValueError(
        f"unknown rounding mode {name!r}: it must be one of "
        f"{', '.join(map(repr, _NEAREST + _OTHERS))}"
    )


def is_unbiased(mode: str) -> bool:
    """Return whether rounding errors have zero mean: stochastic rounding only."""
    is_nearest(mode)
    return str(getattr(mode, "value", mode)) == "stochastic"


def relative_error(u: Any, mode: str) -> float:
    """Return the bound on |delta|: u to nearest, 2u in every other direction."""
    value = as_unit_roundoff(u)
    return value if is_nearest(mode) else 2.0 * value


def smallest_error(u: Any, mode: str) -> float:
    """Return the largest absolute error of one rounding below the normal range.

    Half the smallest positive value to nearest, that value otherwise; 0 if ``u`` is a
    number, because then nothing is known of the exponent range.
    """
    if isinstance(u, (int, float, Fraction)):
        return 0.0
    smallest = Fraction(format(u).smallest_subnormal)
    bound = smallest / 2 if is_nearest(mode) else smallest
    value = float(bound)
    # Beyond binary64 the bound is rounded up, never to zero.
    return value if Fraction(value) >= bound else math.nextafter(value, math.inf)


def _of_format(u: Any) -> float | Fraction:
    return format(u).unit_roundoff
