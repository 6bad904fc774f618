"""The plain integers by which kernels know a rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SUBNORMALS = 1
INFINITIES = 2
NANS = 4
SIGNED = 8
SIGNED_ZERO = 16
ASYMMETRIC = 32  # negative values go one quantum further: two's complement
ALTERNATING = 64  # of one bit: 2^e is odd where e - emin is even
NO_ZERO = 128  # what would be zero is the smallest value
NO_POWER = 256  # 2^emin is no value: the smallest is one quantum above
# Sets of numbers that are no formats.
TAPERED = 512  # posits: see `exponent_bits`
LEVELS = 1024  # any numbers: see `numbers_of`
TABLE = TAPERED | LEVELS

NEAREST_EVEN = 0
NEAREST_AWAY = 1
NEAREST_ZERO = 2
TOWARD_POSITIVE = 3
TOWARD_NEGATIVE = 4
TOWARD_ZERO = 5
TO_ODD = 6
STOCHASTIC = 7
STOCHASTIC_EQUAL = 8

SATURATE_NONE = 0
SATURATE_FINITE = 1
SATURATE_PROPAGATE = 2
SATURATE_WRAP = 3

VARIANT_A = 0
VARIANT_B = 1
VARIANT_C = 2

SEQUENTIAL = 0
BLOCKED = 1
PAIRWISE = 2
KAHAN = 3

# Purposes of random words (fourth counter word of Philox).
PURPOSE_ROUND = 0
PURPOSE_PRODUCT = 1
PURPOSE_ADD = 2
PURPOSE_COMBINE = 3
PURPOSE_KAHAN_TERM = 4
PURPOSE_KAHAN_DIFFERENCE = 5
PURPOSE_KAHAN_CORRECTION = 6


class RoundingCode(NamedTuple):
    """A rounding as nine integers; `lowprec.Rounding.code` makes it.

    Levels have more behind them: `numbers_of` them.
    """

    precision: int
    emin: int
    emax: int
    max_significand: int
    flags: int
    mode: int
    saturation: int
    random_bits: int
    variant: int

    @property
    def stochastic(self) -> bool:
        """Whether the mode consumes random words."""
        return self.mode >= STOCHASTIC


def exponent_bits(code: RoundingCode) -> int:
    """Return es of posits: their width is `precision`, their ends 2^emin and 2^emax."""
    return max(code.emax // max(code.precision - 2, 1), 1).bit_length() - 1


def significant_bits(code: RoundingCode) -> int:
    """Return how many bits the values have that have most: of posits those near 1."""
    if code.flags & TAPERED:
        return max(code.precision - 2 - exponent_bits(code), 1)
    return code.precision


def is_special(code: Sequence[int]) -> bool:
    """Whether products, and kernels of GPUs, leave a code to the portable kernels."""
    return code[4] >= ASYMMETRIC or code[6] == SATURATE_WRAP


_FINISHED = ASYMMETRIC | NO_ZERO


def unfinished(code: Sequence[int]) -> RoundingCode | None:
    """Return a code whose results `portable.finish` turns into those of ``code``.

    The ends of two's complement are those of a symmetric set with one number more,
    2^(emax+1), that the positive side then loses; a set without zero is one with zero
    that then loses it. None if ``code`` is not like that.
    """
    target = decode(code)
    if not target.flags & _FINISHED or target.saturation == SATURATE_WRAP:
        return None
    plain = target._replace(flags=target.flags & ~_FINISHED)
    if target.flags & ASYMMETRIC:
        plain = plain._replace(
            emax=target.emax + 1, max_significand=1 << (target.precision - 1)
        )
    return plain


def decode(code: Sequence[int]) -> RoundingCode:
    """Return the named form of the integers a torch operation received."""
    plain = len(RoundingCode._fields)
    if len(code) < plain or (len(code) > plain) != bool(code[4] & LEVELS):
        raise ValueError(
            f"a rounding code has {plain} integers {RoundingCode._fields}, and more "
            f"only for levels, got {list(code)}"
        )
    return RoundingCode(*code[:plain])


def numbers_of(code: Sequence[int]) -> tuple[int, ...]:
    """Return the float64 bits of the numbers of levels, () of all others."""
    return tuple(code[len(RoundingCode._fields) :])
