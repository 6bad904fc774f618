"""One rounded addition inside a sum, and when a cheaper one is provably the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..random import philox_words
from . import codes
from .codes import RoundingCode
from .exact import Products, fused_to_odd, to_odd, two_sum
from .portable import round_with_words

_FLOAT64_DIGITS = 53
_WIDEST = _FLOAT64_DIGITS - 2  # after a rounding to odd


class Rounder(NamedTuple):
    """A rounding inside a sum: it knows the outputs' indices, not the term number."""

    code: RoundingCode
    elements: Tensor
    seed: Tensor
    numbers: tuple[int, ...]  # of levels

    @classmethod
    def of(cls, code: Sequence[int], elements: Tensor, seed: Tensor) -> Rounder:
        """Return the rounding of a code."""
        return cls(codes.decode(code), elements, seed, codes.numbers_of(code))

    def words(self, step: int | Tensor, purpose: int) -> Tensor:
        """Return the random words of this step and purpose."""
        return philox_words(self.elements, self.seed, step, purpose)

    def __call__(self, x: Tensor, step: int | Tensor, purpose: int) -> Tensor:
        """Return fl(x) with the random words of this step and purpose."""
        words = self.words(step, purpose) if self.code.stochastic else None
        return round_with_words(x, (*self.code, *self.numbers), words)

    def add(
        self, total: Tensor, term: Products, step: int | Tensor, purpose: int
    ) -> Tensor:
        """Return fl(total + term), the exact sum rounded once, for any operands."""
        exact = fused_to_odd(total, term)
        if self.code.mode == codes.TOWARD_NEGATIVE:
            exact = negative_zero(exact, total, term.head)
        return self(exact, step, purpose)


def negative_zero(exact: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return a sum to round toward negative.

    Exact zero sums are -0 in this direction unless both are +0 (IEEE 754 6.3).
    """
    both_positive = (a == 0) & (b == 0) & ~a.signbit() & ~b.signbit()
    return torch.where((exact == 0) & ~both_positive, -0.0, exact)


def _lowest_bit(x: Tensor) -> int | None:
    """Exponent of the lowest set bit among all elements, None if all are zero."""
    bits = x.view(torch.int64) & ((1 << 63) - 1)
    bits = bits[bits != 0]
    if bits.numel() == 0:
        return None
    field = bits >> 52
    significand = (bits & ((1 << 52) - 1)) + torch.where(field > 0, 1 << 52, 0)
    # A power of two converts to float64 exactly; its exponent field is its logarithm.
    lowest = (significand & -significand).to(torch.float64).view(torch.int64) >> 52
    return int((lowest - 1023 + field.clamp(min=1) - 1075).min())


class PlainAddition(NamedTuple):
    """Nearest-even additions that meet neither overflow, underflow nor specials.

    Then a rounding is an add and a mask on the bits, and where the exact sums have at
    most 53 bits the float64 sum is exact and needs no rounding to odd.
    """

    precision: int
    exact_sums: bool

    @staticmethod
    def proved(
        code: RoundingCode, start: Tensor, heads: Tensor
    ) -> PlainAddition | None:
        """Return the cheap addition if it is right for every term, else None.

        Every partial sum is a multiple of the lowest bit of the terms, because a
        rounding never leaves a lower bit than its argument has; and it is at most
        (1 + u)^n times the sum of the magnitudes.
        """
        if code.mode != codes.NEAREST_EVEN or not 2 <= code.precision <= _WIDEST:
            return None
        if code.flags & codes.TABLE or not code.flags & codes.SIGNED:
            return None
        if bool((start != 0).any()):
            return None
        largest = heads.abs().sum(dim=0).max().item() if heads.numel() else 0.0
        if not math.isfinite(largest):
            return None
        lowest = _lowest_bit(heads)
        if lowest is None:
            return None
        growth = heads.shape[0] * math.log2(1 + 2.0**-code.precision)
        # One binade for this sum's own rounding, one for the growth's.
        bound = math.frexp(largest)[1] + math.ceil(growth) + 2
        subnormal = code.flags & codes.SUBNORMALS
        least = code.emin - code.precision + 1 if subnormal else code.emin
        if bound > code.emax or lowest < least:
            return None
        return PlainAddition(code.precision, bound - lowest <= _FLOAT64_DIGITS)

    def add(self, total: Tensor, head: Tensor) -> Tensor:
        """Return fl(total + head)."""
        exact = total + head if self.exact_sums else to_odd(*two_sum(total, head))
        dropped = _FLOAT64_DIGITS - self.precision
        bits = exact.view(torch.int64)
        odd = (bits >> dropped) & 1
        bits = odd.add_(bits).add_((1 << (dropped - 1)) - 1)
        return bits.bitwise_and_(-(1 << dropped)).view(torch.float64)
