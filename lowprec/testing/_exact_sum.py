"""What a rounded sum of products means, in exact rationals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..rounding import (
    Accumulator,
    Order,
    RoundingMode,
    ScalarRounding,
    as_accumulator,
)
from ._oracle import Real, exact_round, floor_log2, simplest, split
from ._philox import random_word

__all__ = ["exact_dot", "exact_matmul"]

_PURPOSE_PRODUCT, _PURPOSE_ADD, _PURPOSE_COMBINE = 1, 2, 3
_PURPOSE_TERM, _PURPOSE_DIFFERENCE, _PURPOSE_CORRECTION = 4, 5, 6
_BINARY64_PRECISION = 53

# The random word of the rounding with this purpose and step.
Words = Callable[[int, int], int]


def _finite(x: Real) -> bool:
    return isinstance(x, Fraction) or math.isfinite(x)


def stand_in(x: Real) -> float:
    """Return a float of the same kind and sign: NaN, +-inf, +-0 or +-1."""
    if x == 0 or not _finite(x):
        return float(x)
    return 1.0 if x > 0 else -1.0


def times(a: Real, b: Real) -> Real:
    """Return the exact product; specials and signs of zero as in IEEE 754."""
    special = stand_in(a) * stand_in(b)
    return Fraction(a) * Fraction(b) if abs(special) == 1 else special


def plus(a: Real, b: Real, mode: RoundingMode) -> Real:
    """Return the exact sum; specials and signs of zero as in IEEE 754, section 6.3."""
    if not (_finite(a) and _finite(b)):
        return stand_in(a) + stand_in(b)
    total = Fraction(a) + Fraction(b)
    if total != 0:
        return total
    both_zero = a == 0 and b == 0
    if both_zero and math.copysign(1.0, a) == math.copysign(1.0, b):
        return float(a)
    return -0.0 if mode is RoundingMode.TOWARD_NEGATIVE else 0.0


def minus(x: Real) -> Real:
    """Return -x; a zero changes its sign too, because zeros here are floats."""
    return -x


def to_odd_binary64(x: Real) -> Real:
    """Round to odd to 53 bits, exponent unbounded: what stochastic roundings see."""
    if x == 0 or not _finite(x):
        return x
    size = abs(Fraction(x))
    quantum_exponent = floor_log2(size) - _BINARY64_PRECISION + 1
    k, nu = split(size, quantum_exponent)
    if nu != 0:
        k |= 1
    sign = -1 if x < 0 else 1
    return sign * k * Fraction(2) ** quantum_exponent


def _rounded(
    x: Real, rounding: ScalarRounding, purpose: int, step: int, words: Words
) -> Real:
    if not rounding.stochastic:
        return exact_round(x, rounding)
    return exact_round(to_odd_binary64(x), rounding, words(purpose, step))


class _Sum:
    """The additions of one output element."""

    def __init__(self, accumulator: Accumulator, words: Words) -> None:
        self.accumulator = accumulator
        self.rounding = accumulator.rounding
        self.words = words

    def product(self, a: Real, b: Real, step: int) -> Real:
        exact, rounding = times(a, b), self.accumulator.product_rounding
        if rounding is None:
            return exact
        return _rounded(exact, rounding, _PURPOSE_PRODUCT, step, self.words)

    def plus(
        self,
        a: Real,
        b: Real,
        purpose: int,
        step: int,
        rounding: ScalarRounding | None = None,
    ) -> Real:
        chosen = rounding or self.rounding
        total = plus(a, b, chosen.mode)
        return _rounded(total, chosen, purpose, step, self.words)

    def sequential(
        self,
        terms: Sequence[Real],
        purpose: int,
        first_step: int,
        rounding: ScalarRounding | None = None,
    ) -> Real:
        total: Real = 0.0
        for step, term in enumerate(terms, first_step):
            total = self.plus(total, term, purpose, step, rounding)
        return total

    def blocked(self, terms: Sequence[Real], size: int) -> Real:
        within = self.accumulator.within
        sums = [
            self.sequential(terms[start : start + size], _PURPOSE_ADD, start, within)
            for start in range(0, len(terms), size)
        ]
        return self.sequential(sums, _PURPOSE_COMBINE, 0)

    def kahan(self, terms: Sequence[Real]) -> Real:
        total: Real = 0.0
        correction: Real = 0.0
        for step, term in enumerate(terms):
            y = self.plus(term, minus(correction), _PURPOSE_TERM, step)
            t = self.plus(total, y, _PURPOSE_ADD, step)
            gained = self.plus(t, minus(total), _PURPOSE_DIFFERENCE, step)
            correction = self.plus(gained, minus(y), _PURPOSE_CORRECTION, step)
            total = t
        return total

    def pairwise(self, terms: Sequence[Real]) -> Real:
        level = [
            _rounded(term, self.rounding, _PURPOSE_ADD, step, self.words)
            for step, term in enumerate(terms)
        ]
        step = 0
        while len(level) > 1:
            above = []
            for left, right in zip(level[::2], level[1::2], strict=False):
                above.append(self.plus(left, right, _PURPOSE_COMBINE, step))
                step += 1
            level = above + level[len(above) * 2 :]
        return level[0] if level else 0.0


def exact_dot(
    a: Sequence[Any], b: Sequence[Any], accumulator: Any, seed: int = 0, index: int = 0
) -> Real:
    """Return an inner product in which every addition rounds, computed exactly.

    acc <- fl(acc + pi(a_k b_k)), from +0, one rounding of each exact sum, in the
    accumulator's order.

    Contract:
        Infinities, NaN and the signs of zeros follow IEEE 754. A stochastic rounding
        is applied to the exact value rounded to odd to 53 bits. Random words are
        those of `random_word` with purpose 1 (products, step k), 2 (additions of
        terms and, pairwise, rounding of the terms, step k), 3 (additions of
        partial sums, step = running number) and, for compensated sums at step k,
        4 (term less correction), 5 (t - acc) and 6 (the new correction).

    Args:
        a: n numbers: floats, ints or Fractions.
        b: n numbers.
        accumulator: an `Accumulator` or its shorthand.
        seed: key of the random words.
        index: row-major index of the output element.

    Returns:
        The sum, as `exact_round` returns numbers.

    Raises:
        ValueError: if the lengths differ.

    Example:
        >>> a, ones = [256.0, 1.0, 1.0, 1.0], [1.0] * 4
        >>> exact_dot(a, ones, "bfloat16")
        256.0
        >>> exact_dot(a, ones, Accumulator("bfloat16", order="pairwise"))
        258.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, sections 3.1, 4.1 and
        4.3; IEEE 754-2019 section 6.3 (signs of zero sums).
    """
    if len(a) != len(b):
        raise ValueError(f"a and b must be equally long, got {len(a)} and {len(b)}")
    chosen = as_accumulator(accumulator)

    def words(purpose: int, step: int) -> int:
        return random_word(seed, index, step, purpose)

    sums = _Sum(chosen, words)
    pairs = zip(map(_real, a), map(_real, b), strict=True)
    terms = [sums.product(x, y, step) for step, (x, y) in enumerate(pairs)]
    match chosen.order:
        case Order.SEQUENTIAL:
            return sums.sequential(terms, _PURPOSE_ADD, 0)
        case Order.BLOCKED:
            return sums.blocked(terms, chosen.block_size or 1)
        case Order.PAIRWISE:
            return sums.pairwise(terms)
        case Order.KAHAN:
            return sums.kahan(terms)


def _real(x: Any) -> Real:
    return x if isinstance(x, float) else simplest(x)


def exact_matmul(
    a: Tensor, b: Tensor, accumulator: Any, seed: int = 0, offset: int = 0
) -> Tensor:
    """Return the product of two matrices by `exact_dot`, element by element.

    Contract:
        As `exact_dot`; element [..., i, j] has its row-major index plus ``offset``.

    Args:
        a: tensor [..., M, K].
        b: tensor [..., K, N]; batch shapes broadcast.
        accumulator: an `Accumulator` or its shorthand.
        seed: key of the random words.
        offset: index of the first output element.

    Returns:
        float64 tensor [..., M, N].

    Raises:
        ValueError: if the inner dimensions differ.
        OverflowError: if a result is not a binary64 number.

    Example:
        >>> exact_matmul(torch.ones(1, 300), torch.ones(300, 1), "bfloat16").item()
        256.0

    References:
        As `exact_dot`.
    """
    (rows, inner), (inner_b, columns) = a.shape[-2:], b.shape[-2:]
    if inner != inner_b:
        raise ValueError(f"inner dimensions differ: {inner} and {inner_b}")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    count = math.prod(batch)
    left = a.double().expand(*batch, rows, inner).reshape(count, rows, inner)
    right = b.double().expand(*batch, inner, columns).reshape(count, inner, columns)
    pairs = [
        (row, column)
        for x, y in zip(left.tolist(), right.mT.tolist(), strict=True)
        for row in x
        for column in y
    ]
    results = [
        _as_float(exact_dot(row, column, accumulator, seed, offset + position))
        for position, (row, column) in enumerate(pairs)
    ]
    return torch.tensor(results, dtype=torch.float64).reshape(*batch, rows, columns)


def _as_float(x: Real) -> float:
    if isinstance(x, Fraction):
        raise OverflowError(f"{x} is not a binary64 number")
    return x
