"""exp, log, tanh, sigmoid and softmax to any number of bits, in integers.

Fixed-point series with error bounds give an interval that holds the exact value. It is
made narrower until all of it rounds to odd to the same 53 bits, which ends because a
value of these functions is transcendental, wherever it is not known before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

_DIGITS = 53
_FIRST_BITS, _MOST_BITS = 128, 1 << 14
# Beyond, exponentials are zero or infinite to every format in float64.
_LARGEST_ARGUMENT = 1500
_FAR = 3000


class Interval(NamedTuple):
    """Two numbers between which the exact value lies, strictly."""

    low: Fraction
    high: Fraction


class Scaled(NamedTuple):
    """significand 2^exponent, rounded to odd to 53 bits."""

    significand: float
    exponent: int


def _arctangent_series(z: Fraction, bits: int) -> tuple[int, int]:
    """Return 2 artanh(z) 2^bits for |z| <= 1/3, and a bound of its error."""
    power = (z.numerator << bits) // z.denominator
    square = (power * power) >> bits
    total, n = 0, 1
    while abs(power) > 1:
        total += power // n
        power = (power * square) >> bits
        n += 2
    return 2 * total, 4 * n + 8


@functools.lru_cache(maxsize=16)
def _log_two(bits: int) -> tuple[int, int]:
    return _arctangent_series(Fraction(1, 3), bits)


def _exponential(x: Fraction, bits: int) -> Interval:
    """Return bounds of exp(x), of relative width about 2^-bits."""
    if x > _LARGEST_ARGUMENT:
        return Interval(Fraction(2) ** (_FAR // 2), Fraction(2) ** (4 * _FAR))
    if x < -_LARGEST_ARGUMENT:
        return Interval(Fraction(0), Fraction(1, 1 << (_FAR // 2)))
    unit = bits + 32
    two, doubt = _log_two(unit)
    k = round(x / Fraction(two, 1 << unit))
    rest = (x.numerator << unit) // x.denominator - k * two
    total = term = 1 << unit
    n = 0
    while abs(term) > 1:
        n += 1
        term = ((term * rest) >> unit) // n
        total += term
    # Each term is wrong by a few units; rest by that of k logarithms of two.
    error = 8 * (n + 2) + 4 * (abs(k) * doubt + 2)
    scale = Fraction(2) ** (k - unit)
    return Interval((total - error) * scale, (total + error) * scale)


def _logarithm(x: Fraction, bits: int) -> Interval:
    k = x.numerator.bit_length() - x.denominator.bit_length()
    m = x / Fraction(2) ** k  # from 1/2 to 2
    if m > Fraction(4, 3):
        m, k = m / 2, k + 1
    elif m < Fraction(2, 3):
        m, k = m * 2, k - 1
    series, error = _arctangent_series((m - 1) / (m + 1), bits)
    two, doubt = _log_two(bits)
    total, error = series + k * two, error + abs(k) * doubt + 1
    unit = 1 << bits
    return Interval(Fraction(total - error, unit), Fraction(total + error, unit))


def _hyperbolic_tangent(x: Fraction, bits: int) -> Interval:
    low, high = _exponential(2 * x, bits)
    return Interval(1 - 2 / (low + 1), 1 - 2 / (high + 1))


def _logistic(x: Fraction, bits: int) -> Interval:
    low, high = _exponential(-x, bits)
    return Interval(1 / (1 + high), 1 / (1 + low))


def _to_odd(bounds: Interval) -> Scaled | None:
    """Return what every number between positive bounds rounds to, if it is one."""
    low, high = bounds
    if low <= 0:
        return None
    e = low.numerator.bit_length() - low.denominator.bit_length()
    e -= low < Fraction(2) ** e
    scale = Fraction(2) ** (_DIGITS - 1 - e)
    k = math.floor(low * scale)
    if math.ceil(high * scale) - 1 != k:
        return None
    return Scaled((k | 1) / (1 << (_DIGITS - 1)), e)


def _narrowed(bounds: Callable[[int], Interval]) -> Scaled:
    bits = _FIRST_BITS
    while bits <= _MOST_BITS:
        result = _to_odd(bounds(bits))
        if result is not None:
            return result
        bits *= 2
    raise ArithmeticError(f"{_MOST_BITS} bits do not decide how a value rounds")


def exponential(x: float) -> Scaled:
    """Return exp(x) for finite x that is not zero."""
    if abs(x) > _LARGEST_ARGUMENT:
        return Scaled(1.5, _FAR if x > 0 else -_FAR)
    return _narrowed(lambda bits: _exponential(Fraction(x), bits))


def logarithm(x: float) -> Scaled:
    """Return log(x) for positive finite x other than 1."""
    exact = Fraction(x)
    if x > 1:
        return _narrowed(lambda bits: _logarithm(exact, bits))
    size = _narrowed(lambda bits: _logarithm(1 / exact, bits))
    return Scaled(-size.significand, size.exponent)


def hyperbolic_tangent(x: float) -> Scaled:
    """Return tanh(x) for finite x that is not zero."""
    size = Fraction(abs(x))
    if size > _LARGEST_ARGUMENT:
        result = _below_one()
    else:
        result = _narrowed(lambda bits: _hyperbolic_tangent(size, bits))
    return Scaled(math.copysign(result.significand, x), result.exponent)


def logistic(x: float) -> Scaled:
    """Return 1 / (1 + exp(-x)) for finite x that is not zero."""
    if abs(x) > _LARGEST_ARGUMENT:
        return _below_one() if x > 0 else Scaled(1.5, -_FAR)
    return _narrowed(lambda bits: _logistic(Fraction(x), bits))


def _below_one() -> Scaled:
    return Scaled(2.0 - 2.0 ** (1 - _DIGITS), -1)


def softmax(row: Sequence[float], positions: Sequence[int]) -> list[Scaled]:
    """Return exp(x_i) / sum_j exp(x_j) for some i of a row without NaN and infinity.

    Args:
        row: at least two different numbers; -infinity counts as no number.
        positions: which i, of finite numbers.
    """
    finite = [Fraction(x) for x in row if x != -math.inf]
    largest = max(finite)
    powers = functools.cache(lambda bits: _powers(finite, largest, bits))

    def bounds(x: Fraction, bits: int) -> Interval:
        low, high, total = *_exponential(x - largest, bits), powers(bits)
        if x == largest:
            low = high = Fraction(1)
        # The larger the others, the smaller the quotient.
        return Interval(
            low / (low + total.high - high), high / (high + total.low - low)
        )

    results = []
    for position in positions:
        x = Fraction(row[position])
        if x - largest < -_LARGEST_ARGUMENT:
            results.append(Scaled(1.5, -_FAR))
        else:
            results.append(_narrowed(functools.partial(bounds, x)))
    return results


def _powers(row: Sequence[Fraction], largest: Fraction, bits: int) -> Interval:
    """Return bounds of the sum of exp(x - largest)."""
    low = high = Fraction(0)
    for x in row:
        part = _exponential(x - largest, bits) if x != largest else None
        low += 1 if part is None else part.low
        high += 1 if part is None else part.high
    return Interval(low, high)
