"""Rounding in plain torch integer operations: every device, traceable, bit-exact.

The definition is `lowprec.testing.exact_round`; this file is its tensor twin. A finite
carrier value is significand * 2^lsb with an integer significand. Rounding drops
``shift`` low bits of it, chosen so that the format's quantum remains, and decides by
the dropped bits whether to step up. No floating-point operation takes part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..random import philox_words
from . import codes
from .codes import RoundingCode
from .deciding import (
    LARGEST_SHIFT,
    bit_length,
    power_of_two,
    round_up,
    stochastic_threshold,
)
from .levels import round_to_levels
from .tapered import round_tapered


class Carrier(NamedTuple):
    """Bit layout of a carrier dtype."""

    dtype: torch.dtype
    integer: torch.dtype
    width: int
    precision: int
    bias: int

    @property
    def infinity(self) -> int:
        """Bits of +inf."""
        return (2 * self.bias + 1) << (self.precision - 1)

    @property
    def nan(self) -> int:
        """Bits of the quiet NaN."""
        return self.infinity | 1 << (self.precision - 2)

    def power_bits(self, exponent: Tensor) -> Tensor:
        """Bits of 2^exponent, for exponents of normal numbers."""
        return (exponent + self.bias) << (self.precision - 1)


CARRIERS = {
    torch.float32: Carrier(torch.float32, torch.int32, 32, 24, 127),
    torch.float64: Carrier(torch.float64, torch.int64, 64, 53, 1023),
}


def max_bits(code: RoundingCode, carrier: Carrier) -> int:
    """Return the carrier's bits of the largest finite value of the format.

    Raises:
        ValueError: if results of this rounding may not exist in the carrier.
    """
    width = code.max_significand.bit_length()
    fits_below = code.emin <= carrier.bias
    tapered = bool(code.flags & codes.TAPERED)
    long = tapered and codes.significant_bits(code) > carrier.precision
    unbounded = code.emax > carrier.bias and not tapered
    if unbounded and code.precision >= carrier.precision and fits_below:
        return carrier.infinity - 1  # nothing in the carrier can overflow or round up
    excess = max(width - carrier.precision, 0)
    inexact = code.max_significand & ((1 << excess) - 1)
    name = "float32" if carrier.width == 32 else "float64"
    advice = ": use a float64 carrier" if carrier.width == 32 else ""
    if code.emax > carrier.bias or not fits_below or inexact or long:
        raise ValueError(
            f"a {name} carrier cannot hold every value of the format with precision "
            f"{code.precision}, emin {code.emin}, emax {code.emax}{advice}"
        )
    significand = code.max_significand >> excess << (carrier.precision - width + excess)
    lowest = 1 - carrier.bias
    if code.emax < lowest:
        raise ValueError(
            f"every value of the format with emax {code.emax} is subnormal in the "
            f"{name} carrier, whose emin is {lowest}{advice}"
        )
    hidden = 1 << (carrier.precision - 1)
    return (code.emax + carrier.bias) * hidden + significand - hidden


def finish(x: Tensor, code: RoundingCode) -> Tensor:
    """Return what ``code`` makes of the results of `codes.unfinished`, in place."""
    if code.flags & codes.ASYMMETRIC:
        quantum = math.ldexp(1.0, code.emax - code.precision + 1)
        x.clamp_(max=code.max_significand * quantum)
    if code.flags & codes.NO_ZERO:
        x.masked_fill_(x == 0, math.ldexp(1.0, code.emin))
    return x


def _smallest_bits(code: RoundingCode, carrier: Carrier) -> int:
    """Return the carrier's bits of the value that follows 2^emin.

    Raises:
        ValueError: if half of it is below the carrier's normal numbers.
    """
    if code.precision > carrier.precision or code.emin <= 1 - carrier.bias:
        raise ValueError(
            f"the carrier cannot round to a format with precision {code.precision} "
            f"and a smallest value above 2^{code.emin}: use a float64 carrier"
        )
    bits = 1 << (carrier.precision - code.precision)
    return ((code.emin + carrier.bias) << (carrier.precision - 1)) + bits


def _small_up(
    code: RoundingCode,
    magnitude: Tensor,
    smallest: int,
    carrier: Carrier,
    negative: Tensor,
    words: Tensor | None,
) -> Tensor:
    """Decide between 0 and a smallest value that is no power of two."""
    hidden = 1 << (carrier.precision - 1)
    inexact = magnitude != 0
    mode = code.mode
    if mode in (codes.NEAREST_EVEN, codes.NEAREST_ZERO):  # 0 is even
        return magnitude > smallest - hidden
    if mode == codes.NEAREST_AWAY:
        return magnitude >= smallest - hidden
    if mode == codes.TOWARD_POSITIVE:
        return inexact & ~negative
    if mode == codes.TOWARD_NEGATIVE:
        return inexact & negative
    if mode in (codes.TOWARD_ZERO, codes.TO_ODD):
        return inexact & (mode == codes.TO_ODD)
    if words is None:
        raise ValueError("a stochastic rounding needs random words")
    if mode == codes.STOCHASTIC_EQUAL:
        return inexact & (words >= 1 << 31)
    # Up iff x / smallest reaches (or exceeds) count 2^-bits, in exact products.
    count, bits, strict = stochastic_threshold(code.random_bits, code.variant, words)
    x = magnitude.to(carrier.integer).view(carrier.dtype).to(torch.float64)
    step = (1 << (code.precision - 1)) + 1  # the smallest value in quanta
    reached = count.to(torch.float64) * step
    shift = bits - code.emin + code.precision - 1
    half = shift // 2  # one factor alone may leave the range
    scaled = x * math.ldexp(1.0, half) * math.ldexp(1.0, shift - half)
    return inexact & torch.where(strict, scaled > reached, scaled >= reached)


def _wrapped(
    code: RoundingCode,
    significand: Tensor,
    shift: Tensor,
    up: Tensor,
    negative: Tensor,
) -> Tensor:
    """Return the integers k of fixed point modulo 2^word as float64 numbers k 2^q."""
    signed = bool(code.flags & codes.SIGNED)
    word = code.precision + signed
    count = (significand >> shift.clamp(0, LARGEST_SHIFT)) + up
    left = (-shift).clamp(0, LARGEST_SHIFT)
    # What leaves the 64 bits is a multiple of 2^word.
    count = torch.where(-shift > LARGEST_SHIFT, 0, count << left)
    count = torch.where(negative, -count, count) & ((1 << word) - 1)
    if signed:
        count = (count ^ (1 << (word - 1))) - (1 << (word - 1))
    # Exact: the carrier holds every value of the format.
    return count.to(torch.float64) * math.ldexp(1.0, code.emin - code.precision + 1)


def _overflow_bits(
    code: RoundingCode, largest: int, infinity: int, negative: Tensor
) -> Tensor | int:
    """Magnitude bits of the result for finite values beyond the largest one."""
    if code.saturation != codes.SATURATE_NONE:
        return largest
    if code.mode in (codes.TOWARD_ZERO, codes.TO_ODD):
        return largest
    if code.mode == codes.TOWARD_POSITIVE:
        return torch.where(negative, largest, infinity)
    if code.mode == codes.TOWARD_NEGATIVE:
        return torch.where(negative, infinity, largest)
    return infinity


def round_with_words(
    x: Tensor, code: Sequence[int], words: Tensor | None = None
) -> Tensor:
    """Round every element, taking the random word of each from ``words``.

    Args:
        x: float32 or float64 tensor of any shape and layout.
        code: the integers of a `RoundingCode`.
        words: int64 tensor of ``x``'s shape with 32-bit words; stochastic modes only.

    Returns:
        A new tensor of ``x``'s dtype and shape.

    Raises:
        ValueError: if the carrier is too narrow, or words are missing.
    """
    numbers = codes.numbers_of(code)
    code = codes.decode(code)
    if numbers:
        return round_to_levels(x, code, numbers, words)
    plain = codes.unfinished(code)
    if plain is not None:
        return finish(round_with_words(x, plain, words), code)
    carrier = CARRIERS[x.dtype]
    largest = max_bits(code, carrier)
    bits = x.view(carrier.integer).to(torch.int64)
    if code.flags & codes.TAPERED:
        rounded = round_tapered(bits, code, carrier, largest, words)
        return rounded.to(carrier.integer).view(x.dtype)
    negative = bits < 0
    magnitude = bits & ((1 << (carrier.width - 1)) - 1)

    hidden = 1 << (carrier.precision - 1)
    field = magnitude >> (carrier.precision - 1)
    subnormal = field == 0
    significand = torch.where(subnormal, magnitude, (magnitude & (hidden - 1)) + hidden)
    lowest = 1 - carrier.bias
    exponent = field - carrier.bias
    if code.emin < lowest:  # carrier subnormals are normal numbers of the format
        true = bit_length(significand) + (lowest - carrier.precision)
        exponent = torch.where(subnormal, true, exponent)
    lsb = field.clamp(min=1) - (carrier.bias + carrier.precision - 1)

    quantum = exponent.clamp(min=code.emin) - (code.precision - 1)
    if not code.flags & codes.SUBNORMALS:
        quantum = torch.where(exponent < code.emin, code.emin, quantum)
    wraps = code.saturation == codes.SATURATE_WRAP
    if wraps:  # the grid goes on
        quantum = torch.full_like(quantum, code.emin - code.precision + 1)
    shift = quantum - lsb

    up = round_up(code, significand, quantum, shift, negative, words)
    if wraps:
        ends = code._replace(saturation=codes.SATURATE_NONE)
        wrapped = _wrapped(code, significand, shift, up, negative).to(x.dtype)
        return torch.where(x.isfinite(), wrapped, round_with_words(x, ends, words))
    clamped = shift.clamp(0, carrier.precision)
    unit = power_of_two(clamped)
    # In the bits of the carrier a carry out of the fraction is the next binade.
    rounded = (magnitude & -unit) + torch.where(up, unit, 0)
    vanished = shift >= carrier.precision  # only 0 and one quantum are candidates
    single = torch.where(up, carrier.power_bits(quantum), 0)
    rounded = torch.where(vanished, single, rounded)
    if code.flags & codes.NO_POWER:
        smallest = _smallest_bits(code, carrier)
        up = _small_up(code, magnitude, smallest, carrier, negative, words)
        near = torch.where(up, smallest, 0)
        rounded = torch.where(magnitude < smallest, near, rounded)

    infinity = largest
    if code.flags & codes.NANS:
        infinity = carrier.nan
    if code.flags & codes.INFINITIES:
        infinity = carrier.infinity
    over = _overflow_bits(code, largest, infinity, negative)
    rounded = torch.where(rounded > largest, over, rounded)
    finite_only = code.saturation == codes.SATURATE_FINITE
    rounded = torch.where(
        magnitude == carrier.infinity, largest if finite_only else infinity, rounded
    )
    if not code.flags & codes.SIGNED:
        below = negative & (rounded > 0)
        outside = carrier.nan if code.flags & codes.NANS else 0
        floor: Tensor | int = 0
        if code.saturation == codes.SATURATE_NONE:
            floor = outside
        elif code.saturation == codes.SATURATE_PROPAGATE:
            floor = torch.where(magnitude == carrier.infinity, outside, 0)
        rounded = torch.where(below, floor, rounded)
        negative = negative & ~below
    if not code.flags & codes.SIGNED_ZERO:
        negative = negative & (rounded != 0)

    sign = -(1 << (carrier.width - 1))
    result = torch.where(negative, rounded + sign, rounded)
    result = torch.where(magnitude > carrier.infinity, bits, result)
    return result.to(carrier.integer).view(x.dtype)


def linear_index(x: Tensor, offset: int) -> Tensor:
    """Row-major element indices of ``x``, whatever its strides, plus ``offset``."""
    index = torch.arange(x.numel(), device=x.device, dtype=torch.int64)
    return (index + offset).view(x.shape)


def round(x: Tensor, code: Sequence[int]) -> Tensor:
    """Round every element in a deterministic mode."""
    return round_with_words(x, code)


def round_stochastic(
    x: Tensor, code: Sequence[int], seed: Tensor, offset: int
) -> Tensor:
    """Round every element with the random word of its linear index."""
    words = philox_words(linear_index(x, offset), seed)
    return round_with_words(x, code, words)
