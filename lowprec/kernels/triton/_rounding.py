"""Rounding of bit patterns, in Triton.

``bits`` are the bits of float32 or float64 numbers as int32 or int64; ``word`` holds
the random uint32 word of each, or is None; ``constants`` and ``RULE`` are those of
`_plan`. Triton's own conversions between floating-point types round differently in
its interpreter and on devices, so none takes part: floats and integers exchange bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .. import codes
from . import _plan

NEAREST_EVEN = tl.constexpr(codes.NEAREST_EVEN)
NEAREST_AWAY = tl.constexpr(codes.NEAREST_AWAY)
NEAREST_ZERO = tl.constexpr(codes.NEAREST_ZERO)
TOWARD_POSITIVE = tl.constexpr(codes.TOWARD_POSITIVE)
TOWARD_NEGATIVE = tl.constexpr(codes.TOWARD_NEGATIVE)
TO_ODD = tl.constexpr(codes.TO_ODD)
STOCHASTIC = tl.constexpr(codes.STOCHASTIC)
STOCHASTIC_EQUAL = tl.constexpr(codes.STOCHASTIC_EQUAL)
VARIANT_B = tl.constexpr(codes.VARIANT_B)
VARIANT_C = tl.constexpr(codes.VARIANT_C)
MASK = tl.constexpr(_plan.MASK)
FLOATS = tl.constexpr(_plan.FLOATS)


@triton.constexpr_function
def integer_type(width):
    """Signed integers of a carrier's width."""
    return tl.int32 if width == 32 else tl.int64


@triton.constexpr_function
def unsigned_type(width):
    """Unsigned integers of a carrier's width."""
    return tl.uint32 if width == 32 else tl.uint64


@triton.constexpr_function
def float_type(width):
    """The carrier's type."""
    return tl.float32 if width == 32 else tl.float64


@triton.constexpr_function
def precision_of(width):
    """Significand bits of the carrier."""
    return 24 if width == 32 else 53


@triton.constexpr_function
def bias_of(width):
    """Exponent bias of the carrier."""
    return 127 if width == 32 else 1023


@triton.constexpr_function
def infinity_of(width):
    """Bits of the carrier's infinity."""
    return (2 * bias_of(width) + 1) << (precision_of(width) - 1)


@triton.jit
def _subnormal_exponent(magnitude, WIDTH: tl.constexpr):
    """Biased exponents of carrier subnormals, by making them normal: exact."""
    PRECISION: tl.constexpr = precision_of(WIDTH)
    number = magnitude.to(float_type(WIDTH)).to(integer_type(WIDTH), bitcast=True)
    return (number >> (PRECISION - 1)) - (bias_of(WIDTH) + PRECISION - 2)


@triton.jit
def _stochastic_up(
    dropped, shift, word, random_bits, VARIANT: tl.constexpr, WIDTH: tl.constexpr
):
    """Whether floor(nu 2^r), rounded as the variant says, plus R is at least 2^r.

    Written so that nothing exceeds an unsigned lane.
    """
    UNSIGNED: tl.constexpr = unsigned_type(WIDTH)
    spare = shift - random_bits  # bits of the fraction below the random ones
    down = tl.minimum(tl.maximum(spare, 0), WIDTH - 1).to(UNSIGNED)
    up = tl.minimum(tl.maximum(-spare, 0), WIDTH - 1).to(UNSIGNED)
    tail = dropped.to(UNSIGNED)
    fraction = (tail >> down) << up
    if VARIANT == VARIANT_B:  # nearest, ties up: the bit below decides
        next_bit = tl.minimum(tl.maximum(spare - 1, 0), WIDTH - 1).to(UNSIGNED)
        fraction += tl.where(spare > 0, (tail >> next_bit) & 1, 0)
    if VARIANT == VARIANT_C:  # nearest, ties to even
        unit = tl.full(tail.shape, 1, UNSIGNED) << down
        nearest = (tail & (unit - 1)) + (fraction & 1) > (unit >> 1)
        fraction += (nearest & (spare > 0)).to(UNSIGNED)
    random = (word >> (32 - random_bits).to(tl.uint32)).to(UNSIGNED)
    mask = (tl.full(tail.shape, 0xFFFFFFFF, tl.uint32)).to(UNSIGNED)
    mask = mask >> (32 - random_bits).to(UNSIGNED)
    return (fraction > mask) | (random > mask - fraction)


@triton.jit
def _by_integers(
    magnitude, negative, word, constants, RULE: tl.constexpr, WIDTH: tl.constexpr
):
    """Magnitude bits of the rounded number, by integer operations: always right.

    A finite number is significand 2^lsb. Rounding drops ``shift`` low bits of the
    significand and decides by them whether to step up.
    """
    INTEGER: tl.constexpr = integer_type(WIDTH)
    PRECISION: tl.constexpr = precision_of(WIDTH)
    HIDDEN: tl.constexpr = 1 << (PRECISION - 1)
    emin = constants[0]
    field = magnitude >> (PRECISION - 1)
    subnormal = field == 0
    fraction = magnitude & (HIDDEN - 1)
    significand = tl.where(subnormal, fraction, fraction | HIDDEN)
    lsb = tl.maximum(field, 1)  # biased exponent of the significand's scale
    exponent = lsb
    if RULE.deep:
        exponent = tl.where(subnormal, _subnormal_exponent(magnitude, WIDTH), lsb)
    shift = tl.maximum(exponent, emin) - lsb + constants[1]
    if RULE.gap:
        tiny = exponent < emin
        if not RULE.deep:  # carrier subnormals are below every normal emin
            tiny = tiny | subnormal
        shift = tl.where(tiny, emin - lsb + (PRECISION - 1), shift)

    # Significands have two bits less than a lane, so that at this clamp the dropped
    # fraction is still below one half.
    clamped = tl.minimum(tl.maximum(shift, 0), WIDTH - 2)
    unit = tl.full(magnitude.shape, 1, INTEGER) << clamped
    dropped = significand & (unit - 1)
    # Where nothing is dropped, no fraction may reach one half.
    half = tl.where(shift <= 0, 1, unit >> 1)
    odd = (significand >> clamped) & 1
    inexact = dropped != 0
    if RULE.mode == NEAREST_EVEN:
        up = dropped + odd > half
    elif RULE.mode == NEAREST_AWAY:
        up = dropped >= half
    elif RULE.mode == NEAREST_ZERO:
        up = dropped > half
    elif RULE.mode == TOWARD_POSITIVE:
        up = inexact & (negative == 0)
    elif RULE.mode == TOWARD_NEGATIVE:
        up = inexact & negative
    elif RULE.mode == TO_ODD:
        up = inexact & (odd == 0)
    elif RULE.mode == STOCHASTIC_EQUAL:
        up = inexact & ((word >> 31) != 0)
    elif RULE.mode == STOCHASTIC:
        up = _stochastic_up(dropped, shift, word, constants[10], RULE.variant, WIDTH)
    else:
        up = inexact & False

    # In the carrier's bits a carry out of the fraction is the next binade.
    near = (magnitude & -unit) + tl.where(up, unit, 0)
    # If the quantum exceeds the number's own binade, 0 and one quantum are the
    # candidates.
    quantum = (shift + lsb - (PRECISION - 1)) << (PRECISION - 1)
    return tl.where(shift >= PRECISION, tl.where(up, quantum, 0), near)


@triton.jit
def _threshold_reached(
    nu, word, random_bits, VARIANT: tl.constexpr, WIDTH: tl.constexpr
):
    """Whether floor(nu 2^r), rounded as the variant says, plus R is at least 2^r."""
    BIAS: tl.constexpr = bias_of(WIDTH)
    scale = (random_bits + BIAS) << (precision_of(WIDTH) - 1)
    scaled = nu * scale.to(float_type(WIDTH), bitcast=True)
    random = word >> (32 - random_bits).to(tl.uint32)
    if WIDTH == 32:
        # Variant A only. The conversion truncates to an integer below 2^32.
        whole = scaled.to(tl.uint32)
        mask = tl.full(word.shape, 0xFFFFFFFF, tl.uint32)
        return random > (mask >> (32 - random_bits).to(tl.uint32)) - whole
    # An integer is reached by floor(x) iff x reaches it; by RNE(x) iff x exceeds it
    # less one half, or equals that and the integer is even.
    needed = (tl.full(word.shape, 1, tl.int64) << random_bits) - random.to(tl.int64)
    threshold = needed.to(tl.float64)
    if VARIANT == VARIANT_B:
        return scaled >= threshold - 0.5
    elif VARIANT == VARIANT_C:
        half_less = threshold - 0.5
        return (scaled > half_less) | ((scaled == half_less) & ((needed & 1) == 0))
    else:
        return scaled >= threshold


@triton.jit
def _by_floats(
    magnitude, negative, word, constants, RULE: tl.constexpr, WIDTH: tl.constexpr
):
    """Magnitude bits of the rounded number, by the carrier's own addition.

    With c = 2^drop times the power of two below |x| (at least 2^emin), |x| + c lies in
    the binade of c, where the carrier's quantum is the format's at x. Other modes than
    nearest-even take one quantum less where that exceeds |x|, and decide by the exact
    rest.
    """
    FLOAT: tl.constexpr = float_type(WIDTH)
    INTEGER: tl.constexpr = integer_type(WIDTH)
    PRECISION: tl.constexpr = precision_of(WIDTH)
    clamped = tl.minimum(magnitude, constants[2])
    size = clamped.to(FLOAT, bitcast=True)
    lowest = constants[0] << (PRECISION - 1)
    binade = tl.maximum(clamped & infinity_of(WIDTH), lowest)
    c_bits = binade + (constants[1] << (PRECISION - 1))
    c = c_bits.to(FLOAT, bitcast=True)
    near = (size + c) - c
    if RULE.mode != NEAREST_EVEN:
        quantum_bits = c_bits - ((PRECISION - 1) << (PRECISION - 1))
        quantum = quantum_bits.to(FLOAT, bitcast=True)
        below = near - tl.where(near > size, quantum, 0.0)
        rest = size - below
        if RULE.mode == NEAREST_AWAY:
            up = rest + rest >= quantum
        elif RULE.mode == NEAREST_ZERO:
            up = rest + rest > quantum
        elif RULE.mode == TOWARD_POSITIVE:
            up = (rest > 0) & (negative == 0)
        elif RULE.mode == TOWARD_NEGATIVE:
            up = (rest > 0) & negative
        elif RULE.mode == TO_ODD:
            last = (below + c).to(INTEGER, bitcast=True) & 1
            up = (rest > 0) & (last == 0)
        elif RULE.mode == STOCHASTIC_EQUAL:
            up = (rest > 0) & ((word >> 31) != 0)
        elif RULE.mode == STOCHASTIC:
            # The biased exponents of q and 1 / q add up to twice the bias.
            ONE: tl.constexpr = (2 * bias_of(WIDTH)) << (PRECISION - 1)
            reciprocal = (ONE - quantum_bits).to(FLOAT, bitcast=True)
            up = _threshold_reached(
                rest * reciprocal, word, constants[10], RULE.variant, WIDTH
            )
        else:
            up = (rest > 0) & False
        near = below + tl.where(up, quantum, 0.0)
    return near.to(INTEGER, bitcast=True)


@triton.jit
def _by_mask(bits, negative, word, constants, RULE: tl.constexpr, WIDTH: tl.constexpr):
    """Bits of the rounded number in a format with the carrier's exponent range.

    Subnormals and overflow come right by themselves. The sign may stay in the sum:
    nothing carries into it but NaN.
    """
    INTEGER: tl.constexpr = integer_type(WIDTH)
    UNSIGNED: tl.constexpr = unsigned_type(WIDTH)
    drop = constants[1]
    unit = tl.full(bits.shape, 1, INTEGER) << drop
    total = bits
    if RULE.mode == NEAREST_EVEN:
        total += ((bits >> drop) & 1) + ((unit >> 1) - 1)
    elif RULE.mode == NEAREST_AWAY:
        total += unit >> 1
    elif RULE.mode == NEAREST_ZERO:
        total += (unit >> 1) - 1
    elif RULE.mode == TOWARD_POSITIVE:
        total += tl.where(negative, 0, unit - 1)
    elif RULE.mode == TOWARD_NEGATIVE:
        total += tl.where(negative, unit - 1, 0)
    elif RULE.mode == TO_ODD:
        total |= tl.where((bits & (unit - 1)) != 0, unit, 0)
    elif RULE.mode == STOCHASTIC:
        used = tl.minimum(drop, constants[10])
        random = (word >> (32 - used).to(tl.uint32)).to(UNSIGNED)
        random = random << (drop - used).to(UNSIGNED)
        total += random.to(INTEGER, bitcast=True)
    return total & -unit


@triton.jit
def lanes(constants, WIDTH: tl.constexpr):
    """The constants in the integer type of the carrier's bits."""
    INTEGER: tl.constexpr = integer_type(WIDTH)
    return (
        constants[0].to(INTEGER),
        constants[1].to(INTEGER),
        constants[2].to(INTEGER),
        constants[3].to(INTEGER),
        constants[4].to(INTEGER),
        constants[5].to(INTEGER),
        constants[6].to(INTEGER),
        constants[7].to(INTEGER),
        constants[8].to(INTEGER),
        constants[9].to(INTEGER),
        constants[10].to(INTEGER),
    )


@triton.jit
def round_bits(bits, word, constants, RULE: tl.constexpr, WIDTH: tl.constexpr):
    """The rounded numbers' bits; NaN is kept, payload and all."""
    INFINITY: tl.constexpr = infinity_of(WIDTH)
    SIGN: tl.constexpr = -(1 << (WIDTH - 1))
    magnitude = bits & (-1 - SIGN)
    negative = bits < 0
    if RULE.route == MASK:
        result = _by_mask(bits, negative, word, constants, RULE, WIDTH)
    else:
        if RULE.route == FLOATS:
            rounded = _by_floats(magnitude, negative, word, constants, RULE, WIDTH)
        else:
            rounded = _by_integers(magnitude, negative, word, constants, RULE, WIDTH)
        sign = bits & SIGN
        result = rounded | tl.where(rounded == 0, sign & constants[9], sign)
        if RULE.unsigned:
            result = tl.where(negative & (rounded != 0), constants[8], result)
        over = tl.where(negative, constants[5], constants[4])
        infinite = tl.where(negative, constants[7], constants[6])
        result = tl.where(rounded > constants[3], over, result)
        result = tl.where(magnitude == INFINITY, infinite, result)
    return tl.where(magnitude > INFINITY, bits, result)
