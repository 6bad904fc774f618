"""A second oracle: the same definition in numpy float64, fast enough for millions.

It is exact because scaling by powers of two, floor and subtraction of the floor are
exact in binary64. `test_oracle.py` compares it with the rational oracle.
"""

import math

import numpy as np

from lowprec import Rounding, RoundingMode, Saturation

NEAREST_OR_STOCHASTIC = {
    RoundingMode.NEAREST_EVEN,
    RoundingMode.NEAREST_AWAY,
    RoundingMode.NEAREST_ZERO,
    RoundingMode.STOCHASTIC,
    RoundingMode.STOCHASTIC_EQUAL,
}


class Decomposition:
    """|x| = (k + nu) 2^q for every element of an array, for one format."""

    def __init__(self, x, format):
        self.format = format
        self.x = np.asarray(x, dtype=np.float64)
        self.negative = np.signbit(self.x)
        self.finite = np.isfinite(self.x)
        size = np.where(self.finite, np.abs(self.x), 0.0)
        _, exponent = np.frexp(size)  # size in [2^(exponent-1), 2^exponent)
        e = exponent.astype(np.int64) - 1
        e[size == 0] = format.emin
        self.q = np.maximum(e, format.emin) - format.precision + 1
        if not format.subnormals:
            self.q[e < format.emin] = format.emin
        # Two steps: 2^-q alone may overflow where the product does not.
        half = (-self.q) // 2
        quanta = np.ldexp(np.ldexp(size, half), -self.q - half)
        assert np.isfinite(quanta).all()
        self.k = np.floor(quanta)
        self.nu = quanta - self.k

    def goes_up(self, rounding, words=None):
        nu, odd = self.nu, np.mod(self.k, 2) == 1
        inexact = nu > 0
        match rounding.mode:
            case RoundingMode.NEAREST_EVEN:
                return (nu > 0.5) | ((nu == 0.5) & odd)
            case RoundingMode.NEAREST_AWAY:
                return nu >= 0.5
            case RoundingMode.NEAREST_ZERO:
                return nu > 0.5
            case RoundingMode.TOWARD_POSITIVE:
                return inexact & ~self.negative
            case RoundingMode.TOWARD_NEGATIVE:
                return inexact & self.negative
            case RoundingMode.TOWARD_ZERO:
                return np.zeros_like(inexact)
            case RoundingMode.TO_ODD:
                return inexact & ~odd
            case RoundingMode.STOCHASTIC_EQUAL:
                return inexact & (words >= 2**31)
        r = rounding.random_bits
        random = words // 2 ** (32 - r)
        match rounding.variant.value:
            case "A":
                threshold = np.floor(np.ldexp(nu, r))
            case "B":
                threshold = np.floor((np.floor(np.ldexp(nu, r + 1)) + 1) / 2)
            case "C":
                threshold = np.rint(np.ldexp(nu, r))
        # B: floor(nu 2^(r+1)) + 2R + 1 >= 2^(r+1) is the same with this threshold.
        return inexact & (threshold + random >= 2.0**r)

    def rounded(self, rounding, words=None):
        """Round every element; returns float64."""
        target, policy = self.format, rounding.saturation
        k = self.k + self.goes_up(rounding, words)
        with np.errstate(over="ignore"):
            half = self.q // 2
            size = np.ldexp(np.ldexp(k, half), self.q - half)
        infinite = np.isinf(self.x)
        size[infinite] = math.inf
        largest = math.ldexp(target.max_significand, target.emax - target.precision + 1)
        infinity = math.inf
        if not target.infinities:
            infinity = math.nan if target.nans else largest
        stays = np.zeros_like(infinite)
        if rounding.mode not in NEAREST_OR_STOCHASTIC:
            stays = ~infinite
            if rounding.mode is RoundingMode.TOWARD_POSITIVE:
                stays &= self.negative
            elif rounding.mode is RoundingMode.TOWARD_NEGATIVE:
                stays &= ~self.negative
        if policy is Saturation.FINITE:
            stays = np.ones_like(infinite)
        elif policy is Saturation.PROPAGATE:
            stays = ~infinite
        result = np.where(size > largest, np.where(stays, largest, infinity), size)
        if not target.signed:
            below = self.negative & (size > 0)
            bottom = np.full_like(size, math.nan if target.nans else 0.0)
            if policy is Saturation.FINITE:
                bottom[:] = 0.0
            elif policy is Saturation.PROPAGATE:
                bottom[~infinite] = 0.0
            result = np.where(below, bottom, result)
            negative = self.negative & ~below
        else:
            negative = self.negative
        result = np.where(negative, -result, result)
        if not target.signed_zero:
            result = np.where(result == 0, 0.0, result)
        return np.where(np.isnan(self.x), math.nan, result)


def vector_round(x, rounding: Rounding, words=None):
    """Round an array as `lowprec.testing.exact_round` rounds its elements."""
    return Decomposition(x, rounding.format).rounded(rounding, words)
