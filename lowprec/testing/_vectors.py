"""Test vectors for hardware benches: codes of operands and result, and the flags."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import torch

from ..formats import BlockFormat, Format, Levels, Posit, any_format
from ..rounding import Rounding, RoundingMode, Saturation
from ..table_rounding import TableRounding
from ._boundaries import boundary_inputs
from ._exact_operations import EXACT_OPERATIONS, exact_operation, exact_value
from ._exact_sum import to_odd_binary64
from ._oracle import Real, exact_grid_round, exact_round
from ._philox import random_word

__all__ = ["INEXACT", "Coded", "Vector", "coded", "exact_flags", "vectors"]

INEXACT, UNDERFLOW, OVERFLOW, DIVIDE_BY_ZERO, INVALID = (1 << bit for bit in range(5))

_TRANSCENDENTAL = ("exp", "log", "tanh", "sigmoid")
_MOST_COMPLETE = 1 << 18
_COUNT = 10_000
_CLOSE = 8  # codes

Coded = Format | Posit | Levels  # sets of single numbers, which have codes


class Vector(NamedTuple):
    """One line of test vectors.

    Args:
        operands: codes of the operands.
        word: 32-bit random word, None for deterministic modes.
        result: code of the result.
        flags: sum of inexact 1, underflow 2, overflow 4, divide by zero 8, invalid 16,
            as RISC-V and TestFloat number them.
    """

    operands: tuple[int, ...]
    word: int | None
    result: int
    flags: int


def exact_flags(
    operation: str,
    operands: Sequence[Real],
    rounding: Rounding | TableRounding,
    result: Real,
    random_word: int = 0,
) -> int:
    """Return the exceptions that IEEE 754 signals for an operation.

    Contract:
        Inexact: the result is not the exact value. Underflow: that, and the value is
        below the smallest normal number after rounding to p bits with any exponent.
        Overflow: the same number is beyond the largest; then also inexact. Divide by
        zero: an infinity from finite operands. Invalid: NaN from operands without one.
        NaN operands are quiet, and signal nothing. Conversions to integers, and so
        fixed point, have no overflow: what is beyond it after rounding, infinity too,
        is invalid, also below 0 without a sign. Where it wraps, it is inexact or
        nothing. Other formats without a sign treat what rounds below 0 alike. Posits
        and levels signal nothing but inexact.

    Args:
        operation: a key of `EXACT_OPERATIONS`.
        operands: their values.
        rounding: to what the result was rounded.
        result: of `exact_operation`.
        random_word: what it was given.

    Returns:
        Sum of the flags, see `Vector`.

    Example:
        >>> exact_flags("div", (1.0, 0.0), Rounding("e5m2"), math.inf)
        8

    References:
        IEEE 754-2019 sections 5.8 and 7.
    """
    value = exact_value(operation, operands, rounding.mode)
    if isinstance(rounding, TableRounding):
        rational = not isinstance(value, float) or math.isfinite(value)
        return INEXACT if rational and result != Fraction(value) else 0
    given_nan = any(isinstance(x, float) and math.isnan(x) for x in operands)
    if isinstance(value, float) and math.isnan(value):
        return 0 if given_nan else INVALID
    if isinstance(value, float) and math.isinf(value):
        finite = all(not isinstance(x, float) or math.isfinite(x) for x in operands)
        if finite:
            return DIVIDE_BY_ZERO
        integer = rounding.format.encoding == "integer"
        return INVALID if integer or (value < 0 and not rounding.format.signed) else 0
    target, exact = rounding.format, Fraction(value)
    if target.encoding == "integer" or (exact < 0 and not target.signed):
        return _conversion_flags(operation, exact, rounding, random_word)
    if result == exact:
        return 0
    limit = abs(Fraction(target.max if exact > 0 else target.min))
    smallest = Fraction(target.smallest_normal)
    if smallest <= abs(exact) <= limit:
        return INEXACT
    unbounded = abs(Fraction(exact_round(value, _unbounded(exact, rounding))))
    if unbounded > limit:
        return OVERFLOW | INEXACT
    tiny = unbounded < smallest
    return INEXACT | (UNDERFLOW if tiny and target.exponent_bits else 0)


def _conversion_flags(
    operation: str, exact: Fraction, rounding: Rounding, word: int
) -> int:
    """Return the flags where a number that does not fit is invalid."""
    target, wraps = rounding.format, rounding.saturation is Saturation.WRAP
    integer = target.encoding == "integer"
    seen: Real = exact
    if rounding.stochastic and operation != "round":
        seen = to_odd_binary64(exact)
    # The grid of integers goes on, as where they wrap.
    grid = replace(rounding, saturation=Saturation.WRAP) if integer else rounding
    rounded = exact_grid_round(seen, grid, word)
    lowest, highest = Fraction(target.min), Fraction(target.max)
    if rounded != 0 and not wraps and not lowest <= rounded <= highest:
        return INVALID
    tiny = rounded != exact and not integer
    return (INEXACT if rounded != exact else 0) | (UNDERFLOW if tiny else 0)


def _unbounded(exact: Fraction, rounding: Rounding) -> Rounding:
    """Return a rounding to the same precision that has room for a number."""
    size = abs(exact)
    exponent = (
        size.numerator.bit_length() - size.denominator.bit_length() if size else 0
    )
    target = rounding.format
    mode = rounding.mode
    if rounding.stochastic:  # any neighbour below will do
        mode = RoundingMode.TOWARD_ZERO
    emin = min(1 - target.bias, exponent - 2)
    emax = max(target.emax, exponent) + 2
    return Rounding(Format(precision=target.precision, emin=emin, emax=emax), mode)


def _codes(target: Coded) -> int:
    """Return the number of codes."""
    return len(target) if isinstance(target, Levels) else 1 << target.bits


def _has(target: Coded, x: Real) -> bool:
    """Whether a number is a value of the format."""
    if isinstance(target, Format):
        return target.is_representable(x)
    try:
        target.encode(x)
    except ValueError:
        return False
    return True


def _corners(target: Coded, source: random.Random, count: int) -> Iterator[int]:
    """Yield codes: half of them anywhere, half close to where formats change."""
    last = _codes(target) - 1
    line = target.line
    normal = target.smallest_normal if isinstance(target, Format) else line.positive(1)
    marks = (line.largest, normal, 1.0, line.least)
    ends = [0, last, *(target.encode(x) for x in marks if _has(target, x))]
    for _ in range(count):
        if source.random() < 0.5:
            yield source.randint(0, last)
        else:
            near = source.choice(ends) + source.randint(-_CLOSE, _CLOSE)
            yield min(max(near, 0), last)


def _operands(
    target: Coded, arity: int, count: int | None, seed: int
) -> Iterator[tuple[int, ...]]:
    """Yield codes of operands: all, or as many as asked for."""
    codes = _codes(target)
    if count is None and codes**arity <= _MOST_COMPLETE:
        yield from itertools.product(range(codes), repeat=arity)
        return
    source = random.Random(seed)
    for first in _corners(target, source, _COUNT if count is None else count):
        others = list(_corners(target, source, arity - 1))
        if others and source.random() < 0.25:  # sums that cancel, quotients near one
            close = first + source.randint(-_CLOSE, _CLOSE)
            others[-1] = min(max(close, 0), codes - 1)
        yield (first, *others)


def _sources(
    target: Coded, source: Coded, count: int | None, seed: int
) -> Iterator[tuple[int, ...]]:
    """Yield codes of numbers to round: all, or those that decide and random ones."""
    if count is None and source.bits <= 16:
        yield from ((code,) for code in range(_codes(source)))
        return
    wanted = _COUNT if count is None else count
    carrier = torch.float32 if source.bits <= 32 else torch.float64
    decisive = [
        source.encode(x)
        for x in boundary_inputs(target, carrier).tolist()
        if _has(source, x)
    ]
    mixed = random.Random(seed)
    if len(decisive) > wanted:
        decisive = sorted(mixed.sample(decisive, wanted))
    yield from ((code,) for code in decisive)
    for code in _corners(source, mixed, wanted - len(decisive)):
        yield (code,)


def vectors(
    operation: str,
    rounding: Rounding | TableRounding,
    *,
    source: Coded | str | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Iterator[Vector]:
    """Generate test vectors of an operation, whose operands and result have one format.

    Contract:
        Results and flags are the oracle's. The same arguments give the same vectors.
        Without ``count``, all operands there are if these are at most 2^18, else 10000;
        those are left out whose result, such as NaN in integers, has no code.

    Args:
        operation: a key of `EXACT_OPERATIONS`.
        rounding: of the result, and the format of the operands: floating or fixed
            point, posits or levels.
        source: format of the operand of ``round``; binary32 if None.
        count: how many operands are tried.
        seed: of the choice of operands, and key of the random words.

    Returns:
        Iterator of vectors.

    Raises:
        TypeError: for block formats, which `block_vectors` is for.
        ValueError: for an unknown operation, a negative ``count``, or a ``source``
            where it means nothing.
        NotImplementedError: for functions other than algebraic ones of formats with
            values that binary64 does not hold.

    Example:
        >>> all_pairs = vectors("add", Rounding("e2m1"))
        >>> next(all_pairs), sum(1 for _ in all_pairs)
        (Vector(operands=(0, 0), word=None, result=0, flags=0), 255)

    References:
        Hauser, Berkeley TestFloat, for the numbers of the flags.
    """
    if operation not in EXACT_OPERATIONS:
        known = ", ".join(EXACT_OPERATIONS)
        raise ValueError(f"operation must be one of {known}, got {operation!r}")
    if count is not None and count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    target = coded(rounding.format)
    given: Coded
    if operation in _TRANSCENDENTAL and not _in_binary64(target):
        raise NotImplementedError(
            f"vectors of {operation!r} are for formats whose values binary64 holds, "
            f"unlike those of {target.name or target!r}; round, add, sub, mul, div, "
            "sqrt and fma have no such limit"
        )
    if operation == "round":
        given = coded("binary32" if source is None else source)
        chosen = _sources(target, given, count, seed)
    elif source is not None:
        raise ValueError("source= is for operation='round'; others have one format")
    else:
        given = target
        chosen = _operands(target, EXACT_OPERATIONS[operation], count, seed)
    return _computed(operation, rounding, given, chosen, seed)


def _in_binary64(target: Coded) -> bool:
    """Whether binary64 holds every value; it always does those of tables."""
    if not isinstance(target, Format):
        return True
    ends = (target.max, target.smallest_subnormal)
    return all(isinstance(end, float) for end in ends)


def coded(source: Coded | str) -> Coded:
    """Return a format of single numbers.

    Raises:
        TypeError: if it is a block format.
    """
    found = any_format(source)
    if isinstance(found, BlockFormat):
        raise TypeError(f"{source!r} is a block format, which codes no single numbers")
    return found


def _computed(
    operation: str,
    rounding: Rounding | TableRounding,
    source: Coded,
    chosen: Iterator[tuple[int, ...]],
    seed: int,
) -> Iterator[Vector]:
    for index, codes in enumerate(chosen):
        operands = [source.decode(code) for code in codes]
        word = random_word(seed, index) if rounding.stochastic else None
        result = exact_operation(operation, operands, rounding, word or 0)
        if not _has(rounding.format, result):
            continue  # NaN, where nothing stands for it
        flags = exact_flags(operation, operands, rounding, result, word or 0)
        yield Vector(codes, word, rounding.format.encode(result), flags)
