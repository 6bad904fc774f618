"""A third oracle: rounding to a list of values, whatever format they belong to.

Neighbours are found by search and midpoints by one exact addition, so nothing of it
knows exponents, quanta or carriers. It serves formats of few codes.
"""

import math

import numpy as np

from lowprec import RoundingMode, Saturation

AWAY = {
    RoundingMode.NEAREST_EVEN,
    RoundingMode.NEAREST_AWAY,
    RoundingMode.NEAREST_ZERO,
}


class ValueTable:
    """The magnitudes of a format above zero, their codes, and the ends of its range."""

    def __init__(self, target):
        self.target = target
        values = target.values()
        self.least, self.largest = values[0], values[-1]
        positive = [value for value in values if value > 0]
        positive.insert(0, 0.0)  # if it is no value, the least one stands for it
        # One binade more: rounding comes before saturation.
        if target.encoding != "integer":
            positive.append(positive[-1] + target.ulp(positive[-1]))
        elif target.asymmetric:
            positive.append(-self.least)
        self.sizes = np.array(positive)
        if target.precision == 1 and target.encoding != "p3109":
            # IEEE 754: with one digit all but zero are odd, and ties go up.
            self.odd = self.sizes > 0
        else:
            codes = target.encode([value for value in values if value > 0])
            self.odd = np.array([0, *codes, codes[-1] + 1])[: len(positive)] % 2 == 1

    def rounded(self, x, mode, saturation):
        """Round float64 numbers in a deterministic mode."""
        negative, size = np.signbit(x), np.abs(x)
        inside = np.where(np.isfinite(size), size, 0.0)
        inside = np.minimum(inside, self.sizes[-1])
        upper = np.searchsorted(self.sizes, inside)  # the first that is not below
        lower = np.maximum(np.where(self.sizes[upper] == inside, upper, upper - 1), 0)
        low, high = self.sizes[lower], self.sizes[upper]
        middle = low + (high - low) / 2
        exact = inside == low
        match mode:
            case RoundingMode.NEAREST_EVEN:
                up = (inside > middle) | ((inside == middle) & self.odd[lower])
            case RoundingMode.NEAREST_AWAY:
                up = inside >= middle
            case RoundingMode.NEAREST_ZERO:
                up = inside > middle
            case RoundingMode.TOWARD_POSITIVE:
                up = ~negative
            case RoundingMode.TOWARD_NEGATIVE:
                up = negative
            case RoundingMode.TOWARD_ZERO:
                up = np.zeros_like(exact)
            case RoundingMode.TO_ODD:
                up = ~self.odd[lower]
        result = np.where(up & ~exact, high, low)
        over = np.isinf(size) | (result > np.where(negative, -self.least, self.largest))
        if not self.target.signed:
            over &= ~negative
        result = np.where(over, self._overflow(x, mode, saturation), result)
        if not self.target.signed:
            below = negative & ((result != 0) | np.isinf(x)) & (size != 0)
            result = np.where(below, self._below(x, saturation), result)
            negative = negative & ~below & (result == 0)
        signed_zero = self.target.signed_zero
        result = np.where(negative & ((result != 0) | signed_zero), -result, result)
        if not self.target.zero:
            result = np.where(result == 0, self.least, result)
        return np.where(np.isnan(x), math.nan, result)

    def _overflow(self, x, mode, saturation):
        """Magnitudes of what is beyond the largest value."""
        target, negative, infinite = self.target, np.signbit(x), np.isinf(x)
        most = np.where(negative & target.signed, -self.least, self.largest)
        beyond = most
        if target.nans:
            beyond = np.full_like(most, math.nan)
        if target.infinities:
            beyond = np.full_like(most, math.inf)
        toward = mode is RoundingMode.TOWARD_POSITIVE
        leaves = infinite | (mode in AWAY) | (~negative if toward else False)
        if mode is RoundingMode.TOWARD_NEGATIVE:
            leaves = leaves | negative
        if saturation is Saturation.FINITE:
            leaves = np.zeros_like(infinite)
        if saturation is Saturation.PROPAGATE:
            leaves = infinite
        return np.where(leaves, beyond, most)

    def _below(self, x, saturation):
        """Results for negative values of unsigned formats."""
        nan = math.nan if self.target.nans else self.least
        if saturation is Saturation.FINITE:
            nan = self.least
        if saturation is Saturation.PROPAGATE:
            return np.where(np.isinf(x), nan, self.least)
        return np.full_like(x, nan)
