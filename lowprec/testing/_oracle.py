"""What rounding means: one rounding of one real number, in exact rationals.

This file defines the library's arithmetic; kernels are compared with it bit for bit. It
shares no code with them, uses integers and fractions only, and is meant to be audited
by eye.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction
from typing import Any

from ..formats import Format
from ..rounding import (
    Rounding,
    RoundingMode,
    Saturation,
    Variant,
    as_rounding,
    as_scalar_rounding,
)
from ..table_rounding import TableRounding

__all__ = [
    "Real",
    "exact_round",
    "exact_table_round",
    "floor_log2",
    "simplest",
    "split",
    "up_probability",
]

# A float where binary64 holds the number (and for infinity, NaN and signed zeros),
# otherwise a Fraction.
Real = float | Fraction

_HALF = Fraction(1, 2)
_WORD_BITS = 32
_TO_INFINITY = frozenset(
    {
        RoundingMode.NEAREST_EVEN,
        RoundingMode.NEAREST_AWAY,
        RoundingMode.NEAREST_ZERO,
        RoundingMode.STOCHASTIC,
        RoundingMode.STOCHASTIC_EQUAL,
    }
)


def floor_log2(size: Fraction) -> int:
    """Return the integer e with 2^e <= size < 2^(e+1), for positive size."""
    e = size.numerator.bit_length() - size.denominator.bit_length()
    return e if Fraction(2) ** e <= size else e - 1


def simplest(value: Fraction | int) -> Real:
    """Return ``value`` as a float if binary64 holds it exactly, else as a Fraction."""
    exact = Fraction(value)
    try:
        nearest = float(exact)
    except OverflowError:
        return exact
    return nearest if Fraction(nearest) == exact else exact


def split(size: Fraction, quantum_exponent: int) -> tuple[int, Fraction]:
    """Return (k, nu): size = (k + nu) 2^quantum_exponent, k integer, 0 <= nu < 1."""
    quanta = size / Fraction(2) ** quantum_exponent
    k = math.floor(quanta)
    return k, quanta - k


def _quantum(size: Fraction, rounding: Rounding) -> Fraction:
    """Return the distance of the neighbours of a magnitude, exponent unbounded."""
    target = rounding.format
    emin = target.emin or 0  # Format resolves it, but its type allows None
    smallest = Fraction(target.smallest_subnormal)
    if size < smallest:
        return smallest  # nothing lies between 0 and the smallest positive value
    if rounding.saturation is Saturation.WRAP:
        return smallest
    return Fraction(2) ** (max(floor_log2(size), emin) - target.precision + 1)


def _parts(size: Fraction, rounding: Rounding) -> tuple[int, Fraction, Fraction]:
    """Return (k, nu, q): size = (k + nu) q with the quantum q."""
    quantum = _quantum(size, rounding)
    k = math.floor(size / quantum)
    return k, size / quantum - k, quantum


def _is_odd(k: int, quantum: Fraction, target: Format) -> bool:
    """Whether k q is odd; P3109 asks the code where the significand has one bit."""
    if target.encoding == "p3109" and target.precision == 1:
        return k == 1 and (floor_log2(quantum) + target.bias) % 2 == 1
    return k % 2 == 1


def _largest(target: Format, negative: bool) -> Fraction:
    return abs(Fraction(target.min if negative else target.max))


def _goes_up(
    odd: bool, nu: Fraction, negative: bool, rounding: Rounding, random_word: int
) -> bool:
    """Whether (k + nu) becomes k + 1, away from zero, rather than k."""
    if nu == 0:
        return False
    match rounding.mode:
        case RoundingMode.NEAREST_EVEN:
            return nu > _HALF or (nu == _HALF and odd)
        case RoundingMode.NEAREST_AWAY:
            return nu >= _HALF
        case RoundingMode.NEAREST_ZERO:
            return nu > _HALF
        case RoundingMode.TOWARD_POSITIVE:
            return not negative
        case RoundingMode.TOWARD_NEGATIVE:
            return negative
        case RoundingMode.TOWARD_ZERO:
            return False
        case RoundingMode.TO_ODD:
            return not odd
        case RoundingMode.STOCHASTIC_EQUAL:
            return random_word >> (_WORD_BITS - 1) == 1
        case RoundingMode.STOCHASTIC:
            return _stochastic_up(nu, rounding, random_word)


def _stochastic_up(
    nu: Fraction, rounding: Rounding | TableRounding, random_word: int
) -> bool:
    r = rounding.random_bits
    random = random_word >> (_WORD_BITS - r)
    one = 1 << r
    match rounding.variant:
        case Variant.A:
            return math.floor(nu * one) + random >= one
        case Variant.B:
            return math.floor(nu * 2 * one) + 2 * random + 1 >= 2 * one
        case Variant.C:
            # Python's round of a Fraction takes ties to even.
            return round(nu * one) + random >= one


def _saturated(size: Fraction | None, negative: bool, rounding: Rounding) -> Real:
    """Return the signed result; ``size`` is its magnitude, None for infinity."""
    target, policy = rounding.format, rounding.saturation
    sign = -1 if negative else 1
    if size == 0:
        if not target.zero:
            return simplest(Fraction(target.min))
        return -0.0 if negative and target.signed_zero else 0.0
    if policy is Saturation.WRAP and size is not None:
        return simplest(_wrapped(sign * size, target))
    clamps = policy is Saturation.FINITE or (
        policy is Saturation.PROPAGATE and size is not None
    )
    if negative and not target.signed:
        return math.nan if target.nans and not clamps else float(target.min)
    largest = _largest(target, negative)
    if size is not None and size <= largest:
        return simplest(sign * size)
    toward = RoundingMode.TOWARD_NEGATIVE if negative else RoundingMode.TOWARD_POSITIVE
    reaches_infinity = (
        size is None or rounding.mode in _TO_INFINITY or rounding.mode is toward
    )
    if clamps or not reaches_infinity:
        return simplest(sign * largest)
    if target.infinities:
        return sign * math.inf
    return math.nan if target.nans else simplest(sign * largest)


def _wrapped(value: Fraction, target: Format) -> Fraction:
    """Return the value of fixed point that differs by a multiple of the range."""
    quantum, lowest = Fraction(target.smallest_subnormal), Fraction(target.min)
    count = (Fraction(target.max) - lowest) / quantum + 1
    return lowest + (value - lowest) % (count * quantum)


def _is_negative(x: Any) -> bool:
    return bool(x < 0) or (isinstance(x, float) and math.copysign(1.0, x) < 0)


def exact_table_round(x: Any, rounding: TableRounding, random_word: int = 0) -> float:
    """Round one real number to posits or levels as `lowprec.round` must round it.

    Contract:
        NaN gives NaN, and so does infinity in posits; of levels it gives an end.

    Args:
        x: a float, an int or a Fraction.
        rounding: of a `Posit` or of `Levels`.
        random_word: 32-bit word of stochastic modes.

    Returns:
        The rounded number.

    Example:
        >>> exact_table_round(1e9, TableRounding("posit8_0"))
        64.0

    References:
        Standard for Posit Arithmetic, 2022, section 4.1.
    """
    table = rounding.format.table
    if isinstance(x, float) and not math.isfinite(x):
        if math.isnan(x) or table.infinite == "nan":
            return math.nan
        return table.values[-1 if x > 0 else 0]
    exact = Fraction(x)
    i = bisect_left(table.values, x) - 1  # the last that is below
    if i < 0 or i + 1 == len(table.values) or table.values[i + 1] == exact:
        return table.values[min(i + 1, len(table.values) - 1)]
    low, high = Fraction(table.values[i]), Fraction(table.values[i + 1])
    # Fractions are counted from the neighbour that is nearer to zero.
    toward_low = high <= 0
    nu = (high - exact if toward_low else exact - low) / (high - low)
    tie = table.ties[i]
    up: bool
    match rounding.mode:
        case RoundingMode.NEAREST_EVEN:
            up = exact > tie or (exact == tie and table.upper[i])
        case RoundingMode.NEAREST_AWAY:
            up = exact > tie or (exact == tie and tie >= 0)
        case RoundingMode.NEAREST_ZERO:
            up = exact > tie or (exact == tie and tie < 0)
        case RoundingMode.TOWARD_POSITIVE:
            up = True
        case RoundingMode.TOWARD_NEGATIVE:
            up = False
        case RoundingMode.TOWARD_ZERO:
            up = abs(high) <= abs(low)
        case RoundingMode.TO_ODD:
            up = table.odd is not None and not table.odd[i]
        case RoundingMode.STOCHASTIC_EQUAL:
            up = (random_word >> (_WORD_BITS - 1) == 1) != toward_low
        case RoundingMode.STOCHASTIC:
            up = _stochastic_up(nu, rounding, random_word) != toward_low
    return float(high if up else low)


def exact_round(x: Any, rounding: Any, random_word: int = 0) -> Real:
    """Round one real number exactly as `lowprec.round` must round it.

    |x| = (k + nu) 2^q with q = max(e, emin) - p + 1 and e = floor(log2 |x|) gives
    sign(x) (k + up) 2^q, exponent unbounded above; then saturation is applied.

    Contract:
        Posits and levels are rounded to as `exact_table_round` says. NaN gives NaN.
        Zeros, and results that round to zero, keep the sign of ``x`` if
        the format has signed zeros. The result is a float whenever binary64 holds it,
        which is always so for formats inside binary64, and a Fraction otherwise.

    Args:
        x: a float (also infinite, NaN or -0.0), an int or a Fraction.
        rounding: a `Rounding` or a `TableRounding`, or the shorthand of one.
        random_word: 32-bit word; stochastic modes use its top ``random_bits`` bits.

    Returns:
        The rounded number.

    Raises:
        TypeError: for block formats, which round no single numbers.
        ValueError: if ``random_word`` is not a 32-bit word.

    Example:
        >>> exact_round(Fraction(1, 3), "bfloat16")
        0.333984375
        >>> exact_round(449, "e4m3fn"), exact_round(1e6, "e4m3fn")
        (448.0, nan)

    References:
        IEEE 754-2019 section 4.3; P3109 interim report 3.2.2.
    """
    if not 0 <= random_word < 2**_WORD_BITS:
        raise ValueError(f"random_word must be in [0, 2^32), got {random_word}")
    chosen = as_scalar_rounding(rounding)
    if isinstance(chosen, TableRounding):
        return exact_table_round(x, chosen, random_word)
    if isinstance(x, float) and math.isnan(x):
        return math.nan
    negative = _is_negative(x)
    if isinstance(x, float) and math.isinf(x):
        return _saturated(None, negative, chosen)
    rounded = exact_grid_round(x, chosen, random_word)
    return _saturated(abs(rounded), negative, chosen)


def exact_grid_round(x: Any, rounding: Rounding, random_word: int) -> Fraction:
    """Return what `exact_round` makes of a finite number before it saturates."""
    exact = Fraction(x)
    if exact == 0:
        return exact
    k, nu, quantum = _parts(abs(exact), rounding)
    odd = _is_odd(k, quantum, rounding.format)
    k += _goes_up(odd, nu, exact < 0, rounding, random_word)
    return -k * quantum if exact < 0 else k * quantum


def up_probability(x: Any, rounding: Any) -> Fraction:
    """Return the probability that a stochastic rounding moves ``x`` away from zero.

    With nu the discarded fraction and r random bits: A floor(nu 2^r) / 2^r,
    B floor(nu 2^r + 1/2) / 2^r, C RNE(nu 2^r) / 2^r; ``stochastic_equal`` 1/2.

    Contract:
        0 for representable values, infinity and NaN. The probability is that of the
        rounding before saturation.

    Args:
        x: a float, int or Fraction.
        rounding: a `Rounding` with a stochastic mode.

    Returns:
        The exact probability.

    Raises:
        ValueError: if the rounding is deterministic.

    Example:
        >>> up_probability(1 + 0.25 * 2**-7, Rounding("bfloat16", "stochastic"))
        Fraction(1, 4)

    References:
        FitzGibbon and Felix, On stochastic rounding with few random bits, ARITH 2025.
    """
    chosen = as_rounding(rounding)
    if not chosen.stochastic:
        raise ValueError(
            f"{chosen!r} is deterministic: give a rounding with mode 'stochastic' or "
            "'stochastic_equal'"
        )
    if x == 0 or (isinstance(x, float) and not math.isfinite(x)):
        return Fraction(0)
    size = abs(Fraction(x))
    _, nu, _ = _parts(size, chosen)
    if chosen.mode is RoundingMode.STOCHASTIC_EQUAL:
        return _HALF if nu else Fraction(0)
    steps = 2**chosen.random_bits
    match chosen.variant:
        case Variant.A:
            return Fraction(math.floor(nu * steps), steps)
        case Variant.B:
            return Fraction(math.floor(nu * steps + _HALF), steps)
        case Variant.C:
            return Fraction(round(nu * steps), steps)
