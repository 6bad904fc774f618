"""How roundings go: direction, saturation and chance, by name."""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Any

__all__ = [
    "MOST_RANDOM_BITS",
    "RoundingMode",
    "Saturation",
    "Variant",
    "checked_random_bits",
    "is_stochastic",
    "member",
    "position",
]

MOST_RANDOM_BITS = 32


class RoundingMode(StrEnum):
    """Rounding-direction attribute: which neighbour a value between two takes.

    The deterministic modes are those of IEEE 754-2019 section 4.3 plus
    ``nearest_zero`` (ties toward zero) and ``to_odd`` (inexact results take the
    neighbour with odd significand). ``stochastic`` goes up with probability equal to
    the discarded fraction (up to ``random_bits``); ``stochastic_equal`` tosses a coin.

    References:
        IEEE 754-2019, section 4.3; P3109 interim report 3.2.2; Croci et al. 2022.
    """

    NEAREST_EVEN = "nearest_even"
    NEAREST_AWAY = "nearest_away"
    NEAREST_ZERO = "nearest_zero"
    TOWARD_POSITIVE = "toward_positive"
    TOWARD_NEGATIVE = "toward_negative"
    TOWARD_ZERO = "toward_zero"
    TO_ODD = "to_odd"
    STOCHASTIC = "stochastic"
    STOCHASTIC_EQUAL = "stochastic_equal"


class Saturation(StrEnum):
    """What happens beyond the largest finite value, after rounding.

    ``none``: IEEE 754 overflow (infinity, or NaN in a format without infinities, or
    the largest finite value in a format with neither). ``finite``: everything,
    infinity too, becomes the largest finite value. ``propagate``: finite values
    become the largest finite value, infinity stays. ``wrap``: fixed point only, the
    integer k modulo 2^word, as adders of that width leave it; infinity becomes the
    largest finite value. Of sums and products this is exact where they have at most 53
    bits before they wrap, so words have at most 26 there, operands of ``lowprec.add``,
    ``sub``, ``mul`` and ``fma`` are values of the format, and others do not wrap.

    References:
        P3109 interim report 3.2.2, OvfInf / SatFinite / SatPropagate.
    """

    NONE = "none"
    FINITE = "finite"
    PROPAGATE = "propagate"
    WRAP = "wrap"


class Variant(StrEnum):
    """How a stochastic rounding treats the bits beyond its random bits.

    With nu the discarded fraction and R uniform in [0, 2^r): up iff
    ``A``: floor(nu 2^r) + R >= 2^r (hardware; truncates nu),
    ``B``: floor(nu 2^(r+1)) + 2R + 1 >= 2^(r+1) (rounds nu half up),
    ``C``: RNE(nu 2^r) + R >= 2^r (rounds nu to nearest even; unbiased).

    References:
        P3109 StochasticA/B/C; FitzGibbon and Felix, ARITH 2025.
    """

    A = "A"
    B = "B"
    C = "C"


def member(enum: type[Enum], value: Any, what: str) -> Any:
    """Return the member of a name, or of itself.

    Raises:
        ValueError: listing the names.
    """
    try:
        return enum(value)
    except ValueError:
        allowed = ", ".join(repr(member.value) for member in enum)
        raise ValueError(
            f"unknown {what} {value!r}: it must be one of {allowed}"
        ) from None


def position(member: Enum) -> int:
    """Return the number by which kernels know a member."""
    return list(type(member)).index(member)


def is_stochastic(mode: RoundingMode) -> bool:
    """Whether results of this mode depend on random bits."""
    return mode in (RoundingMode.STOCHASTIC, RoundingMode.STOCHASTIC_EQUAL)


def checked_random_bits(random_bits: Any) -> int:
    """Return a number of random bits that is one.

    Raises:
        TypeError: if it is not an int.
        ValueError: if it is out of range.
    """
    if isinstance(random_bits, bool) or not isinstance(random_bits, int):
        raise TypeError(
            f"random_bits must be an int from 1 to {MOST_RANDOM_BITS}, "
            f"got {random_bits!r} of type {type(random_bits).__name__}"
        )
    if not 1 <= random_bits <= MOST_RANDOM_BITS:
        raise ValueError(
            f"random_bits must be from 1 to {MOST_RANDOM_BITS}, got {random_bits}"
        )
    return random_bits
