"""Where numbers of few bits stop moving: errors, second moments and weights.

Formats have P significant bits here, round to nearest even, and neither overflow nor
underflow.
"""

from __future__ import annotations

import math
from fractions import Fraction

from .._inputs import Real, nonnegative, plain, positive
from ._bounds import largest_relative_step


def accumulator_stall(addend: float, precision: int) -> float:
    r"""Return where a sum of equal terms stops in P significant bits.

    .. math::
        e^* = 2^{\lceil \log_2 \epsilon \rceil + P}

    Contract:
        Exact, for sums from 0 with one rounding to nearest even of each addition.

    Args:
        addend: epsilon, positive and finite.
        precision: P, at least 2.

    Returns:
        e*.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> [accumulator_stall(c * 2.0**-8, 8) for c in (1.01, 1.0, 0.99, 0.5)]
        [2.0, 1.0, 1.0, 0.5]

    References:
        Section 4.2, low-precision error accumulator.
    """
    _check_precision(precision)
    positive("addend", addend)
    significand, exponent = math.frexp(addend)  # significand from 1/2 to below 1
    return math.ldexp(1.0, exponent - (significand == 0.5) + precision)


def is_never_sent(addend: float, precision: int, release: float) -> bool:
    r"""Whether an entry's gradient is lost in an error of P significant bits.

    .. math::
        e^* + \epsilon \le \tau

    Args:
        addend: epsilon, the entry's constant gradient.
        precision: P of the stored error.
        release: tau, what an entry must exceed to be sent: the k-th largest magnitude.

    Returns:
        Whether the error stalls before it is sent.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> is_never_sent(2.0**-8, 8, 1.0), is_never_sent(2.0**-9, 8, 1.0)
        (False, True)

    References:
        Section 4.2.
    """
    nonnegative("release", release)
    return accumulator_stall(addend, precision) + addend <= release


def second_moment_stall(precision: int, beta2: float) -> float:
    r"""Return where v stops rising for a constant gradient of 1, from 0.

    .. math::
        v_\infty = \min \{ v : (1 - \beta_2)(1 - v) \le \mathrm{ulp}(v) / 2 \}
        \in \Bigl[ \Bigl(1 + \frac{2^{-P}}{1-\beta_2}\Bigr)^{-1},
                   \Bigl(1 + \frac{2^{-P}}{2(1-\beta_2)}\Bigr)^{-1} \Bigr]

    Contract:
        Exact, over v with an even significand where both sides are equal, and for
        beta_2 the decimal number that prints: 0.999 is 999/1000. With the binary64
        number of that name equality may turn into inequality, and v is the next
        number of the format then.

    Args:
        precision: P, at least 2.
        beta2: beta_2, from 0 to below 1.

    Returns:
        v, below or equal to 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> second_moment_stall(8, 0.999), second_moment_stall(11, 0.999)
        (0.25, 0.755859375)

    References:
        Section 4.3, low-precision moments.
    """
    _check_precision(precision)
    if not 0 <= beta2 < 1:
        raise ValueError(f"beta2 must be from 0 to below 1, got {beta2!r}")
    rate = 1 - Fraction(repr(float(beta2)))
    # The smallest binade [2^e, 2^(e+1)) that reaches the distance 1 - v of ulp / 2.
    exponent = -1
    while _first_stall(exponent - 1, precision, rate) < Fraction(2) ** exponent:
        exponent -= 1
    return float(min(_first_stall(exponent, precision, rate), Fraction(1)))


def _first_stall(exponent: int, precision: int, rate: Fraction) -> Fraction:
    """Return the smallest v >= 2^exponent that an ulp of that binade holds."""
    ulp: Fraction = Fraction(2) ** (exponent - precision + 1)
    wanted = (1 - ulp / (2 * rate)) / ulp
    significand = math.ceil(wanted)
    if significand == wanted and significand % 2 == 1:  # the tie goes up
        significand += 1
    return Fraction(max(significand, 2 ** (precision - 1))) * ulp


def decay_is_blocked(v: float, precision: int, beta2: float) -> bool:
    r"""Whether v stays as it is in P significant bits while gradients are 0.

    .. math::
        (1 - \beta_2) v < \mathrm{ulp}(v) / 2

    where ulp(v) is the distance to the next number towards 0.

    Args:
        v: a positive number of the format.
        precision: P, at least 2.
        beta2: beta_2, from 0 to below 1; the decimal number that prints.

    Returns:
        Whether rounding to nearest returns v.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> decay_is_blocked(1.0, 8, 0.999), decay_is_blocked(1.0, 8, 0.99)
        (True, False)

    References:
        Section 4.3: with sparse releases v ratchets up.
    """
    _check_precision(precision)
    positive("v", v)
    if not 0 <= beta2 < 1:
        raise ValueError(f"beta2 must be from 0 to below 1, got {beta2!r}")
    significand, exponent = math.frexp(v)
    below = exponent - precision - (significand == 0.5)
    distance = (1 - Fraction(repr(float(beta2)))) * Fraction(v)
    return distance < Fraction(2) ** (below - 1)


def smallest_moving_step_size(ulp: Real, *, beta1: Real, beta2: Real) -> Real:
    r"""Return the step size below which a weight can never move.

    .. math::
        \eta = \frac{\mathrm{ulp}(\theta_j)}{2c}, \qquad
        \eta |m_j| / \sqrt{\hat v_j + \epsilon} \le c \eta

    with c of `largest_relative_step`, for weights that are rounded to nearest.

    Args:
        ulp: distance of the weight to its neighbours, positive.
        beta1: beta_1, from 0.
        beta2: beta_2, above beta_1^2 and below 1.

    Returns:
        The step size.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> round(smallest_moving_step_size(2.0**-7, beta1=0.9, beta2=0.999), 6)
        0.000537

    References:
        Section 4.4, low-precision weights.
    """
    size = positive("ulp", ulp) / (2 * largest_relative_step(beta1, beta2))
    return plain(size, ulp, beta1, beta2)  # type: ignore[no-any-return]


def _check_precision(precision: int) -> None:
    if isinstance(precision, bool) or not isinstance(precision, int):
        raise TypeError(
            f"precision must be an int, got {precision!r} of type "
            f"{type(precision).__name__}"
        )
    if precision < 2:
        raise ValueError(f"precision must be at least 2 bits, got {precision}")
