"""Steps of sums with a rounded accumulator, in Triton.

Kernels that use this file are compiled without contraction: each line below is one IEEE
operation. ``WIDTH`` is that of the numbers computed with, 32 or 64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._rounding import (
    TOWARD_NEGATIVE,
    float_type,
    infinity_of,
    integer_type,
    precision_of,
    round_bits,
)


@triton.jit
def _two_sum(a, b):
    """The rounded sum and its exact error."""
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


@triton.jit
def _to_odd(total, error, WIDTH: tl.constexpr):
    """The value total + error rounded to odd; special sums have a NaN error."""
    INTEGER: tl.constexpr = integer_type(WIDTH)
    bits = total.to(INTEGER, bitcast=True)
    # Toward the error: away from zero (+1) if the signs agree, else toward zero (-1).
    step = ((bits ^ error.to(INTEGER, bitcast=True)) >> (WIDTH - 1)) | 1
    move = ((error > 0) | (error < 0)) & ((bits & 1) == 0)
    return (bits + tl.where(move, step, 0)).to(float_type(WIDTH), bitcast=True)


@triton.jit
def _without_overflow(total, a, b):
    """A float64 sum of finite terms beyond the range is its largest number: odd."""
    INFINITY: tl.constexpr = infinity_of(64)
    bits = total.to(tl.int64, bitcast=True)
    overflow = (
        ((bits & INFINITY) == INFINITY)
        & ((a.to(tl.int64, bitcast=True) & INFINITY) != INFINITY)
        & ((b.to(tl.int64, bitcast=True) & INFINITY) != INFINITY)
    )
    return (bits - overflow.to(tl.int64)).to(tl.float64, bitcast=True)


@triton.jit
def round_number(x, word, constants, RULE: tl.constexpr, WIDTH: tl.constexpr):
    """fl(x) of floating-point numbers."""
    bits = x.to(integer_type(WIDTH), bitcast=True)
    rounded = round_bits(bits, word, constants, RULE, WIDTH)
    return rounded.to(float_type(WIDTH), bitcast=True)


@triton.jit
def add(
    total,
    term,
    word,
    constants,
    RULE: tl.constexpr,
    HUGE: tl.constexpr,
):
    """fl(total + term) in float64, the exact sum rounded once, for any operands.

    ``HUGE`` says that sums may leave the range of float64.
    """
    rounded, error = _two_sum(total, term)
    exact = _to_odd(rounded, error, 64)
    if HUGE:
        exact = _without_overflow(exact, total, term)
    if RULE.mode == TOWARD_NEGATIVE:
        # Exact zero sums are -0 unless both are +0 (IEEE 754 section 6.3). As bits: a
        # zero that is written in Triton has no sign.
        signs = total.to(tl.int64, bitcast=True) | term.to(tl.int64, bitcast=True)
        NEGATIVE_ZERO: tl.constexpr = -(1 << 63)
        bits = exact.to(tl.int64, bitcast=True)
        bits = tl.where((exact == 0) & (signs != 0), NEGATIVE_ZERO, bits)
        exact = bits.to(tl.float64, bitcast=True)
    return round_number(exact, word, constants, RULE, 64)


@triton.jit
def round_proved(
    x,
    constants,
    SUBNORMALS: tl.constexpr,
    OVERFLOW: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """fl(x) to nearest-even where a proof (`_proof`) allows to leave out the rest.

    Nothing may overflow the addition of c, so there is no clamp; NaN passes through.
    """
    INTEGER: tl.constexpr = integer_type(WIDTH)
    FLOAT: tl.constexpr = float_type(WIDTH)
    FRACTION: tl.constexpr = precision_of(WIDTH) - 1
    SIGN: tl.constexpr = -(1 << (WIDTH - 1))
    bits = x.to(INTEGER, bitcast=True)
    size = (bits & (-1 - SIGN)).to(FLOAT, bitcast=True)
    binade = bits & infinity_of(WIDTH)
    if SUBNORMALS:
        binade = tl.maximum(binade, constants[0] << FRACTION)
    c = (binade + (constants[1] << FRACTION)).to(FLOAT, bitcast=True)
    rounded = ((size + c) - c).to(INTEGER, bitcast=True)
    if OVERFLOW:
        # Not by bits: NaN is kept.
        over = (rounded > constants[3]) & (size == size)
        rounded = tl.where(over, constants[4], rounded)
    return (rounded | (bits & SIGN)).to(FLOAT, bitcast=True)


@triton.jit
def add_proved(
    total,
    term,
    constants,
    ODD: tl.constexpr,
    GUARDED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """fl(total + term) to nearest-even where a proof allows the shorter form."""
    if ODD:
        rounded, error = _two_sum(total, term)
        exact = _to_odd(rounded, error, WIDTH)
    else:
        exact = total + term
    return round_proved(exact, constants, GUARDED, GUARDED, WIDTH)
