"""Which of two neighbours a number becomes, by what lies between: torch integers."""

from __future__ import annotations

import torch
from torch import Tensor

from . import codes
from .codes import RoundingCode
from .exact import two_product, two_sum

# Shifts of int64 are defined up to 63; 62 leaves room for one more bit, and a
# significand of 53 bits shifted by 62 is below a quarter already.
LARGEST_SHIFT = 62


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent as an integer, for exponents of 0 to 62."""
    return torch.ones_like(exponent) << exponent


def bit_length(value: Tensor) -> Tensor:
    """Bits needed for each non-negative integer below 2^53, by binary search."""
    length = torch.zeros_like(value)
    for step in (32, 16, 8, 4, 2, 1):
        large = value >= (1 << step)
        length = torch.where(large, length + step, length)
        value = torch.where(large, value >> step, value)
    return length + value


def round_up(
    code: RoundingCode,
    significand: Tensor,
    quantum: Tensor,
    shift: Tensor,
    negative: Tensor,
    words: Tensor | None,
) -> Tensor:
    """Decide by the dropped bits whether the kept significand is increased by one."""
    clamped = shift.clamp(0, LARGEST_SHIFT)
    unit = power_of_two(clamped)
    dropped = significand & (unit - 1)
    odd = ((significand >> clamped) & 1) == 1
    if code.flags & codes.ALTERNATING:
        odd = odd & (((quantum - code.emin) & 1) == 0)
    mode = code.mode
    if mode in (codes.NEAREST_EVEN, codes.NEAREST_AWAY, codes.NEAREST_ZERO):
        half = unit >> 1
        if mode == codes.NEAREST_ZERO:
            return dropped > half
        if mode == codes.NEAREST_AWAY:
            return (dropped >= half) & (shift > 0)
        return (dropped > half) | ((dropped == half) & odd & (shift > 0))
    inexact = dropped != 0
    if mode == codes.TOWARD_POSITIVE:
        return inexact & ~negative
    if mode == codes.TOWARD_NEGATIVE:
        return inexact & negative
    if mode == codes.TOWARD_ZERO:
        return torch.zeros_like(inexact)
    if mode == codes.TO_ODD:
        return inexact & ~odd
    if words is None:
        raise ValueError("a stochastic rounding needs random words")
    if mode == codes.STOCHASTIC_EQUAL:
        return inexact & (words >= 1 << 31)
    return _stochastic_up(code, dropped, shift, words)


def _stochastic_up(
    code: RoundingCode, dropped: Tensor, shift: Tensor, words: Tensor
) -> Tensor:
    """Compare random bits, aligned to the top of the dropped fraction, with it."""
    bits = code.random_bits
    random = words >> (32 - bits)
    if code.variant == codes.VARIANT_B:
        bits, random = bits + 1, 2 * random + 1
    spare = shift - bits  # bits of the fraction below the random ones
    below = spare.clamp(0, LARGEST_SHIFT)
    fraction = (dropped >> below) << (-spare).clamp(min=0).clamp(max=bits)
    if code.variant == codes.VARIANT_C:
        unit = power_of_two(below)
        rest, half = dropped & (unit - 1), unit >> 1
        odd = (fraction & 1) == 1
        nearest = (rest > half) | ((rest == half) & odd & (below > 0))
        fraction = fraction + nearest
    return fraction + random >= 1 << bits


def stochastic_threshold(
    r: int, variant: int, words: Tensor
) -> tuple[Tensor, int, Tensor]:
    """Return the fraction from which a stochastic rounding goes up.

    Args:
        r: number of random bits.
        variant: VARIANT_A, VARIANT_B or VARIANT_C.
        words: random 32-bit words.

    Returns:
        ``count``, ``bits`` and ``strict``: up iff nu >= count 2^-bits, or nu > it where
        ``strict``, which is what the variant says about floor(nu 2^r) or the like.
    """
    missing = (1 << r) - (words >> (32 - r))
    never = torch.zeros_like(missing, dtype=torch.bool)
    if variant == codes.VARIANT_A:
        return missing, r, never
    # Half a unit lower; the tie of C is rounded to even, up where `missing` is even.
    strict = (missing & 1) == 1 if variant == codes.VARIANT_C else never
    return 2 * missing - 1, r + 1, strict


def up_between(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    code: RoundingCode,
    words: Tensor,
) -> Tensor:
    """Decide at random between any neighbours, by exact comparisons.

    The fraction is counted from the neighbour nearer to 0.

    Args:
        x: float64 numbers.
        low: the largest numbers of the set that are not above them; not equal to
            ``high`` and, like their distance, exact in float64.
        high: the next ones.
        code: a stochastic rounding code.
        words: random 32-bit words.
    """
    below = high <= 0
    if code.mode == codes.STOCHASTIC_EQUAL:
        return (words >= 1 << 31) ^ below
    count, bits, strict = stochastic_threshold(code.random_bits, code.variant, words)
    start = torch.where(below, high, low)
    distance, error = two_sum(x, -start)
    sign = torch.where(below, -1.0, 1.0)
    distance, error = distance * sign, error * sign
    reached, rest = two_product(high - low, count.to(torch.float64) * 2.0**-bits)
    equal = distance == reached
    away = (distance > reached) | (equal & (error > rest))
    away = away | (equal & (error == rest) & ~strict)
    return away ^ below
