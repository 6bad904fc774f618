"""What the operations on single numbers mean, in exact rationals.

A value that is no rational number is replaced by one that every rounding to at most 53
bits sees alike: its leading bits and half a unit more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from ..rounding import (
    RoundingMode,
    ScalarRounding,
    as_accumulator,
    as_scalar_rounding,
)
from ._exact_sum import exact_dot, minus, plus, stand_in, times, to_odd_binary64
from ._oracle import Real, exact_round, floor_log2, simplest

__all__ = [
    "EXACT_OPERATIONS",
    "exact_operation",
    "exact_softmax",
    "exact_sum",
    "exact_value",
]

_BITS = 200
# Where exp(x) is beyond every format in binary64.
_LARGEST_ARGUMENT = 1100
_ALMOST_NOTHING = Fraction(1, 1 << 2 * _LARGEST_ARGUMENT)


def _quotient(a: Real, b: Real) -> Real:
    # Fractions may be beyond binary64: whether they are special is asked of floats.
    x, y = stand_in(a), stand_in(b)
    if math.isnan(x) or math.isnan(y) or x == y == 0:
        return math.nan
    sign = math.copysign(1.0, x) * math.copysign(1.0, y)
    if math.isinf(x):
        return math.nan if math.isinf(y) else sign * math.inf
    if y == 0:
        return sign * math.inf
    if x == 0 or math.isinf(y):
        return sign * 0.0
    return Fraction(a) / Fraction(b)


def _root(a: Real) -> Real:
    if a == 0 or math.isnan(stand_in(a)) or a == math.inf:
        return a
    if a < 0:
        return math.nan
    exact = Fraction(a)
    shift = _BITS - floor_log2(exact) // 2
    scaled = exact * Fraction(4) ** shift
    floor = math.isqrt(math.floor(scaled))
    more = Fraction(1, 2) if floor**2 != scaled else 0
    return (floor + more) / Fraction(2) ** shift


def _truncated(value: Any) -> Fraction:
    """Return the leading bits of an irrational number of mpmath, and half a unit."""
    from mpmath import frexp, mpf

    significand, exponent = frexp(abs(value))
    k = int(significand * mpf(2) ** _BITS)
    size = (k + Fraction(1, 2)) * Fraction(2) ** (int(exponent) - _BITS)
    return size if value > 0 else -size


def _irrational(name: str, x: Fraction) -> Fraction:
    """Return exp, log, tanh or sigmoid by mpmath, with bits to spare."""
    import mpmath

    # Close to zero, functions differ from their tangents by x^2 or x^3.
    small = [abs(floor_log2(abs(y))) for y in (x, x - 1) if y != 0]
    functions: dict[str, Callable[[Any], Any]] = {
        "exp": mpmath.exp,
        "log": mpmath.log,
        "tanh": mpmath.tanh,
        "sigmoid": lambda y: 1 / (1 + mpmath.exp(-y)),
    }
    with mpmath.workprec(2 * _BITS + 4 * max(small) + 4 * _LARGEST_ARGUMENT):
        argument = mpmath.mpf(x.numerator) / x.denominator
        return _truncated(functions[name](argument))


def _exponential(a: Real) -> Real:
    if math.isnan(a) or a == math.inf:
        return a
    if a == -math.inf:
        return 0.0
    if a == 0:
        return 1.0
    limit = Fraction(_LARGEST_ARGUMENT)
    return _irrational("exp", max(min(Fraction(a), limit), -limit))


def _logarithm(a: Real) -> Real:
    if math.isnan(a) or a == math.inf:
        return a
    if a == 0:
        return -math.inf
    if a < 0:
        return math.nan
    return 0.0 if a == 1 else _irrational("log", Fraction(a))


def _hyperbolic_tangent(a: Real) -> Real:
    if math.isnan(a) or a == 0:
        return a
    if math.isinf(a):
        return math.copysign(1.0, a)
    if abs(Fraction(a)) > _LARGEST_ARGUMENT:
        size = 1 - _ALMOST_NOTHING
        return size if a > 0 else -size
    return _irrational("tanh", Fraction(a))


def _logistic(a: Real) -> Real:
    if math.isnan(a):
        return a
    if math.isinf(a):
        return 1.0 if a > 0 else 0.0
    if abs(Fraction(a)) > _LARGEST_ARGUMENT:
        return 1 - _ALMOST_NOTHING if a > 0 else _ALMOST_NOTHING
    return 0.5 if a == 0 else _irrational("sigmoid", Fraction(a))


# Operands, and how the exact value is found; a sum's zero has a sign by the mode.
_OPERATIONS: dict[str, tuple[int, Callable[..., Real]]] = {
    "round": (1, lambda mode, a: a),
    "add": (2, lambda mode, a, b: plus(a, b, mode)),
    "sub": (2, lambda mode, a, b: plus(a, minus(b), mode)),
    "mul": (2, lambda mode, a, b: times(a, b)),
    "div": (2, lambda mode, a, b: _quotient(a, b)),
    "sqrt": (1, lambda mode, a: _root(a)),
    "fma": (3, lambda mode, a, b, c: plus(times(a, b), c, mode)),
    "exp": (1, lambda mode, a: _exponential(a)),
    "log": (1, lambda mode, a: _logarithm(a)),
    "tanh": (1, lambda mode, a: _hyperbolic_tangent(a)),
    "sigmoid": (1, lambda mode, a: _logistic(a)),
}
EXACT_OPERATIONS: dict[str, int] = {name: n for name, (n, _) in _OPERATIONS.items()}


def exact_value(
    operation: str,
    operands: Sequence[Any],
    mode: RoundingMode | str = RoundingMode.NEAREST_EVEN,
) -> Real:
    """Return the exact value of an operation before it is rounded.

    Contract:
        Infinities, NaN and zeros follow IEEE 754; the sign of an exact zero sum depends
        on ``mode``. An irrational value is represented by its leading 200 bits and half
        a unit more, which no rounding to at most 53 bits tells from the value.

    Args:
        operation: a key of `EXACT_OPERATIONS`, which has the numbers of operands.
        operands: floats, ints or Fractions.
        mode: rounding mode of what follows.

    Returns:
        A float for special values and zeros, else a Fraction or float.

    Raises:
        ValueError: for an unknown operation or another number of operands.

    Example:
        >>> exact_value("div", (1, 3)), exact_value("fma", (1.5, 2.0, -3.0))
        (Fraction(1, 3), 0.0)

    References:
        IEEE 754-2019 sections 5.4.1, 6.3 and 9.2.
    """
    if operation not in _OPERATIONS:
        known = ", ".join(_OPERATIONS)
        raise ValueError(f"operation must be one of {known}, got {operation!r}")
    count, function = _OPERATIONS[operation]
    if len(operands) != count:
        raise ValueError(f"{operation} takes {count} operands, got {len(operands)}")
    given = [x if isinstance(x, float) else simplest(x) for x in operands]
    return function(RoundingMode(mode), *given)


def exact_operation(
    operation: str, operands: Sequence[Any], rounding: Any, random_word: int = 0
) -> Real:
    """Return the correctly rounded result of an operation, computed exactly.

    Contract:
        As `exact_value`, then one rounding. Stochastic modes see the exact value of
        everything but ``round`` rounded to odd to 53 bits, as the library's do.

    Args:
        operation: a key of `EXACT_OPERATIONS`.
        operands: floats, ints or Fractions.
        rounding: a `Rounding` or a `TableRounding`, or the shorthand of one.
        random_word: 32-bit word for stochastic modes.

    Returns:
        The result, as `exact_round` returns numbers.

    Raises:
        ValueError: as `exact_value`.

    Example:
        >>> exact_operation("add", (256.0, 1.0), "bfloat16")
        256.0
        >>> exact_operation("exp", (1.0,), "bfloat16")
        2.71875

    References:
        IEEE 754-2019 section 4.3.
    """
    chosen = as_scalar_rounding(rounding)
    value = exact_value(operation, operands, chosen.mode)
    return _rounded(value, chosen, random_word, operation != "round")


def _rounded(
    value: Real, rounding: ScalarRounding, word: int, computed: bool = True
) -> Real:
    if computed and rounding.stochastic:
        value = to_odd_binary64(value)
    return exact_round(value, rounding, word)


def exact_sum(
    terms: Sequence[Any], accumulator: Any, seed: int = 0, index: int = 0
) -> Real:
    """Return a sum in which every addition rounds: `exact_dot` with ones.

    Args:
        terms: floats, ints or Fractions.
        accumulator: an `Accumulator` or its shorthand; its ``product`` plays no part.
        seed: key of the random words.
        index: row-major index of the sum among all.

    Returns:
        The sum, as `exact_round` returns numbers.

    Example:
        >>> exact_sum([256.0, 1.0, 1.0], "bfloat16")
        256.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, chapter 4.
    """
    adder = as_accumulator(accumulator).replace(product="exact")
    return exact_dot(terms, [1.0] * len(terms), adder, seed, index)


def exact_softmax(
    row: Sequence[float], rounding: Any, random_words: Sequence[int] | None = None
) -> list[Real]:
    """Return exp(x_i) / sum_j exp(x_j), each computed exactly and rounded once.

    Args:
        row: floats.
        rounding: a `Rounding` or a `TableRounding`, or the shorthand of one.
        random_words: one 32-bit word per element; stochastic modes only.

    Returns:
        The rounded shares; NaN where the row has NaN, infinity or no finite number.

    Example:
        >>> exact_softmax([0.0, 0.0, 1.0], "bfloat16")
        [0.2119140625, 0.2119140625, 0.57421875]

    References:
        As `exact_operation`.
    """
    chosen = as_scalar_rounding(rounding)
    words = [0] * len(row) if random_words is None else random_words
    values = _shares(row)
    return [_rounded(v, chosen, word) for v, word in zip(values, words, strict=True)]


def _shares(row: Sequence[float]) -> list[Real]:
    import mpmath

    finite = [Fraction(x) for x in row if math.isfinite(x)]
    if not finite or any(math.isnan(x) or x == math.inf for x in row):
        return [math.nan] * len(row)
    largest = max(finite)
    if min(finite) == largest:
        share = Fraction(1, len(finite))
        return [share if math.isfinite(x) else 0.0 for x in row]
    with mpmath.workprec(4 * _LARGEST_ARGUMENT + 2 * _BITS):
        powers = {x: mpmath.exp(_distance(x, largest)) for x in finite}
        total = sum(powers[x] for x in finite)
        return [
            _truncated(powers[Fraction(x)] / total) if math.isfinite(x) else 0.0
            for x in row
        ]


def _distance(x: Fraction, largest: Fraction) -> Any:
    """Return x - largest, or what has the same effect."""
    import mpmath

    bounded = max(x - largest, Fraction(-_LARGEST_ARGUMENT))
    return mpmath.mpf(bounded.numerator) / bounded.denominator
