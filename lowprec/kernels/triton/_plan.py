"""The constants of a rounding, and the cheapest way to do it that is right.

A `Rule` is what a kernel is compiled for; the constants are run-time integers, so one
compiled kernel serves every format with the same rule.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from .. import codes
from ..codes import RoundingCode
from ..portable import CARRIERS, Carrier, max_bits

# Always right.
INTEGERS = 0
# |x| + c with c such that the carrier's quantum is the format's: narrow ranges.
FLOATS = 1
# An addition to the bits and a mask: formats with the carrier's exponent range.
MASK = 2


class Rule(NamedTuple):
    """How to round: the part that a kernel is compiled for."""

    route: int
    mode: int
    variant: int
    gap: bool  # no subnormals: nothing lies between 0 and 2^emin
    deep: bool  # carrier subnormals are normal numbers of the format
    unsigned: bool


class Constants(NamedTuple):
    """How to round: the integers that a kernel receives.

    Exponents are biased as in the carrier; all but three are bits of carrier numbers.
    """

    emin: int
    drop: int  # low bits dropped from a normal number's significand
    beyond: int  # 2^(emax + 1), for the route FLOATS
    largest: int
    over: int  # result for finite values beyond the largest
    over_negative: int
    infinite: int  # result for infinite values
    infinite_negative: int
    below: int  # result for negative values of an unsigned format
    keep_sign: int  # the sign bit, or 0 if zeros lose it
    random_bits: int


class Plan(NamedTuple):
    """A rounding as the kernels take it."""

    rule: Rule
    constants: Constants
    # Overflow and infinities give one and the same magnitude, whatever the sign.
    simple_overflow: bool


def _overflow(code: RoundingCode, largest: int, infinity: int, negative: bool) -> int:
    inward = codes.TOWARD_POSITIVE if negative else codes.TOWARD_NEGATIVE
    clamp = (
        code.saturation != codes.SATURATE_NONE
        or code.mode in (codes.TOWARD_ZERO, codes.TO_ODD)
        or code.mode == inward
    )
    return largest if clamp else infinity


def _has_carrier_range(code: RoundingCode, carrier: Carrier, largest: int) -> bool:
    """Whether emin, emax, overflow, infinities and zeros are the carrier's."""
    drop = carrier.precision - code.precision
    every = codes.SUBNORMALS | codes.INFINITIES | codes.SIGNED | codes.SIGNED_ZERO
    return (
        code.flags & every == every
        and code.emin == 1 - carrier.bias
        and code.emax == carrier.bias
        and code.saturation == codes.SATURATE_NONE
        # Two or more bits are kept: with one, the last of them is the implicit one.
        and 1 <= drop <= carrier.precision - 2
        and largest == carrier.infinity - (1 << drop)
    )


def _route(code: RoundingCode, carrier: Carrier, largest: int) -> int:
    drop = carrier.precision - code.precision
    if _has_carrier_range(code, carrier, largest):
        # Adding the random bits to the dropped ones is variant A; the others equal it
        # when there are as many random bits as dropped ones.
        additive = code.variant == codes.VARIANT_A or code.random_bits >= drop
        if code.mode < codes.STOCHASTIC or (code.mode == codes.STOCHASTIC and additive):
            return MASK
    emin = code.emin + carrier.bias
    in_range = emin >= 1 and code.emax + 1 + drop <= carrier.bias
    if not code.flags & codes.SUBNORMALS or drop < 1 or not in_range:
        return INTEGERS
    if code.mode == codes.NEAREST_EVEN:
        return FLOATS
    # The quantum must be a normal number too.
    if emin + drop < carrier.precision:
        return INTEGERS
    narrow = carrier.width == 32 and code.variant != codes.VARIANT_A
    return INTEGERS if code.mode == codes.STOCHASTIC and narrow else FLOATS


@functools.lru_cache(maxsize=1024)
def plan_of(code: tuple[int, ...], dtype: torch.dtype) -> Plan:
    """Return the plan of rounding numbers of a carrier dtype.

    Raises:
        ValueError: if the carrier cannot hold every value of the format.
    """
    named, carrier = codes.decode(code), CARRIERS[dtype]
    largest = max_bits(named, carrier)
    signed = bool(named.flags & codes.SIGNED)
    infinity = largest
    if named.flags & codes.NANS:
        infinity = carrier.nan
    if named.flags & codes.INFINITIES:
        infinity = carrier.infinity
    finite = named.saturation == codes.SATURATE_FINITE
    over = _overflow(named, largest, infinity, False)
    infinite = largest if finite else infinity
    sign = -(1 << (carrier.width - 1))
    outside = carrier.nan if named.flags & codes.NANS else 0
    below = outside if named.saturation == codes.SATURATE_NONE else 0
    over_negative = _overflow(named, largest, infinity, True)
    constants = Constants(
        # Exponents below every carrier number act alike.
        emin=max(named.emin + carrier.bias, -4 * carrier.precision),
        drop=carrier.precision - named.precision,
        beyond=min(named.emax + 1 + carrier.bias, 2 * carrier.bias)
        << (carrier.precision - 1),
        largest=largest,
        over=over,
        over_negative=over_negative + sign if signed else below,
        infinite=infinite,
        infinite_negative=infinite + sign if signed else 0 if finite else outside,
        below=below,
        keep_sign=sign if named.flags & codes.SIGNED_ZERO else 0,
        random_bits=named.random_bits,
    )
    rule = Rule(
        route=_route(named, carrier, largest),
        mode=named.mode,
        variant=named.variant if named.mode == codes.STOCHASTIC else codes.VARIANT_A,
        gap=not named.flags & codes.SUBNORMALS,
        deep=named.emin + carrier.bias < 1,
        unsigned=not signed,
    )
    return Plan(rule, constants, signed and over == over_negative == infinite)
