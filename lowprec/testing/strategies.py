"""Hypothesis strategies for formats of every kind, roundings, sums and tensors.

They lean towards what breaks floating-point code: subnormals, ties and their carrier
neighbours, the ends of the range, signed zeros, infinities and NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from ..arithmetic import fits
from ..block_rounding import BlockRounding
from ..formats import (
    AnyFormat,
    BlockFormat,
    Format,
    Levels,
    Posit,
    SharedExponent,
    any_format,
)
from ..formats import format as as_format
from ..rounding import (
    Accumulator,
    Order,
    Rounding,
    RoundingMode,
    Saturation,
    Variant,
)
from ..table_rounding import TableRounding
from ._boundaries import boundary_inputs

__all__ = [
    "accumulators",
    "block_formats",
    "block_roundings",
    "fixed_point_formats",
    "formats",
    "level_sets",
    "p3109_formats",
    "posits",
    "roundings",
    "table_roundings",
    "tensors",
    "values_near",
]

# Precision, emin and emax of the carriers.
_CARRIERS = {torch.float32: (24, -126, 127), torch.float64: (53, -1022, 1023)}
_WIDEST_ACCUMULATOR = 51
_MOST_RANDOM_BITS = 32


@st.composite
def formats(
    draw: st.DrawFn,
    *,
    min_precision: int = 1,
    max_precision: int = 24,
    max_exponent_bits: int = 8,
    carrier: torch.dtype = torch.float32,
) -> Format:
    """Generate formats whose values a carrier holds.

    Contract:
        IEEE-like formats and the variations ``fn``, ``fnuz`` and ``finite``, with and
        without subnormals; 2 to ``max_exponent_bits`` exponent bits.

    Args:
        draw: supplied by hypothesis.
        min_precision: smallest precision (bits, with the implicit one).
        max_precision: largest precision.
        max_exponent_bits: largest width of the exponent field (bits).
        carrier: torch.float32 or torch.float64.

    Returns:
        A strategy of `Format`.

    Raises:
        InvalidArgument: from hypothesis, if the bounds contradict each other.

    Example:
        >>> formats(max_precision=8).map(lambda fmt: fmt.precision <= 8)
        formats(max_precision=8).map(lambda fmt: fmt.precision <= 8)
    """
    carrier_precision, carrier_emin, carrier_emax = _CARRIERS[carrier]
    precision = draw(st.integers(min_precision, min(max_precision, carrier_precision)))
    lowest = carrier_emin - carrier_precision + precision
    exponent_bits = draw(st.integers(2, max_exponent_bits))
    encoding = draw(st.sampled_from(["ieee", "ieee", "fn", "fnuz", "finite"]))
    largest = 2 ** (exponent_bits - 1) - (1 if encoding in ("ieee", "fnuz") else 0)
    emax = draw(st.just(min(largest, carrier_emax)) | st.integers(0, min(largest, 8)))
    emin = max(1 - emax, lowest)
    significand = 2**precision - 1
    if encoding == "fn" and precision > 1:
        significand -= 1
    return Format(
        precision=precision,
        emax=emax,
        emin=min(emin, emax),
        subnormals=draw(st.sampled_from([True, True, False])),
        infinities=encoding == "ieee",
        nans=encoding != "finite",
        signed_zero=encoding != "fnuz",
        max_significand=significand,
        encoding=encoding,
    )


@st.composite
def p3109_formats(draw: st.DrawFn, *, max_bits: int = 8) -> Format:
    """Generate formats of IEEE P3109: any precision, signed or not, both domains.

    Args:
        draw: supplied by hypothesis.
        max_bits: largest width K (bits), from 3 to 16.

    Returns:
        A strategy of `Format`.

    Example:
        >>> p3109_formats(max_bits=5).map(str)
        p3109_formats(max_bits=5).map(str)
    """
    bits = draw(st.integers(3, max_bits))
    signed, extended = draw(st.booleans()), draw(st.booleans())
    # One bit is the sign's; both narrow ends have room for the special codes.
    precision = draw(st.integers(1, bits - 1 if signed else bits))
    made = Format.p3109(bits, precision, signed=signed, extended=extended)
    assume(fits(made, torch.float32))
    return made


@st.composite
def fixed_point_formats(draw: st.DrawFn, *, max_word: int = 16) -> Format:
    """Generate fixed-point formats: signed or not, with the point anywhere near.

    Args:
        draw: supplied by hypothesis.
        max_word: largest width (bits).

    Returns:
        A strategy of `Format`.

    Example:
        >>> fixed_point_formats(max_word=8).map(str)
        fixed_point_formats(max_word=8).map(str)
    """
    word = draw(st.integers(2, max_word))
    fraction = draw(st.integers(-min(word, 4), word))
    signed = draw(st.booleans())
    symmetric = draw(st.booleans()) if signed else False
    return Format.fixed_point(word, fraction, signed=signed, symmetric=symmetric)


@st.composite
def roundings(
    draw: st.DrawFn,
    formats: st.SearchStrategy[Format] | None = None,
    *,
    modes: Sequence[RoundingMode | str] = tuple(RoundingMode),
    saturations: Sequence[Saturation | str] = tuple(Saturation)[:3],
) -> Rounding:
    """Generate roundings: every mode, saturation, variant and number of random bits.

    Args:
        draw: supplied by hypothesis.
        formats: strategy for the formats; None means `formats()`.
        modes: rounding modes to choose from.
        saturations: saturations to choose from; ``"wrap"``, which only fixed point
            has, is none of them by default.

    Returns:
        A strategy of `Rounding`.

    Example:
        >>> roundings(modes=["stochastic"]).map(str)
        roundings(modes=['stochastic']).map(str)
    """
    return Rounding(
        draw(_default_formats() if formats is None else formats),
        RoundingMode(draw(st.sampled_from(list(modes)))),
        Saturation(draw(st.sampled_from(list(saturations)))),
        draw(st.integers(1, _MOST_RANDOM_BITS)),
        draw(st.sampled_from(Variant)),
    )


@st.composite
def posits(
    draw: st.DrawFn,
    *,
    max_bits: int = 12,
    max_es: int = 3,
    carrier: torch.dtype = torch.float32,
) -> Posit:
    """Generate posits; they shrink to few bits.

    Args:
        draw: supplied by hypothesis.
        max_bits: largest width of a code (bits), from 2 to 32.
        max_es: largest number of exponent bits, from 0 to 4.
        carrier: torch.float32 or torch.float64, which holds every value.

    Returns:
        A strategy of `Posit`.

    Example:
        >>> posits(max_bits=8).map(str)
        posits(max_bits=8).map(str)
    """
    bits = draw(st.integers(2, max_bits))
    made = Posit(bits, draw(st.integers(0, max_es)))
    assume(fits(made, carrier))
    return made


@st.composite
def level_sets(
    draw: st.DrawFn, *, max_size: int = 9, carrier: torch.dtype = torch.float32
) -> Levels:
    """Generate quantization sets: named ones, small integers, any floats.

    Contract:
        Sets shrink to few small integers. Distances of levels are numbers of float64,
        as stochastic rounding asks for.

    Args:
        draw: supplied by hypothesis.
        max_size: largest number of levels, at least 1.
        carrier: torch.float32 or torch.float64, which holds every level.

    Returns:
        A strategy of `Levels`.

    Example:
        >>> level_sets(max_size=4).map(len)
        level_sets(max_size=4).map(len)
    """
    width: Literal[32, 64] = 32 if carrier == torch.float32 else 64
    eighths = st.integers(-64, 64).map(lambda count: count / 8)
    floats = st.floats(width=width, allow_nan=False, allow_infinity=False)
    elements = draw(st.sampled_from([st.integers(-9, 9), eighths, floats]))
    made = draw(st.lists(elements, min_size=1, max_size=max_size, unique=True))
    levels = Levels(tuple(sorted({float(value) + 0.0 for value in made})))
    assume(all(_is_exact(b - a, a, b) for a, b in pairwise(levels.values)))
    return levels


def _is_exact(gap: float, a: float, b: float) -> bool:
    return math.isfinite(gap) and Fraction(gap) == Fraction(b) - Fraction(a)


@st.composite
def table_roundings(
    draw: st.DrawFn,
    formats: st.SearchStrategy[Posit | Levels] | None = None,
    *,
    modes: Sequence[RoundingMode | str] = tuple(RoundingMode),
) -> TableRounding:
    """Generate roundings to posits and levels: every mode that these have.

    Args:
        draw: supplied by hypothesis.
        formats: strategy for the sets; None means `posits()` or `level_sets()`.
        modes: rounding modes to choose from; levels take none to odd.

    Returns:
        A strategy of `TableRounding`.

    Example:
        >>> table_roundings(modes=["stochastic"]).map(str)
        table_roundings(modes=['stochastic']).map(str)
    """
    target = draw(posits() | level_sets() if formats is None else formats)
    known = target.table.odd is not None
    allowed = [m for m in map(RoundingMode, modes) if known or m != "to_odd"]
    assume(allowed)
    bits, variant = st.integers(1, _MOST_RANDOM_BITS), st.sampled_from(Variant)
    mode = draw(st.sampled_from(allowed))
    return TableRounding(target, mode, draw(bits), draw(variant))


@st.composite
def block_roundings(
    draw: st.DrawFn,
    formats: st.SearchStrategy[BlockFormat] | None = None,
    *,
    modes: Sequence[RoundingMode | str] = tuple(RoundingMode),
    saturations: Sequence[Saturation | str] = ("finite",),
) -> BlockRounding:
    """Generate roundings to block formats: every mode and variant.

    Args:
        draw: supplied by hypothesis.
        formats: strategy for the formats; None means `block_formats()`.
        modes: rounding modes of the elements to choose from.
        saturations: saturations of the elements to choose from.

    Returns:
        A strategy of `BlockRounding`.

    Example:
        >>> block_roundings(modes=["stochastic"]).map(str)
        block_roundings(modes=['stochastic']).map(str)
    """
    return BlockRounding(
        draw(block_formats() if formats is None else formats),
        RoundingMode(draw(st.sampled_from(list(modes)))),
        Saturation(draw(st.sampled_from(list(saturations)))),
        draw(st.integers(1, _MOST_RANDOM_BITS)),
        draw(st.sampled_from(Variant)),
    )


# The parameter `formats` of roundings hides the strategy of the same name.
_default_formats = formats


@st.composite
def accumulators(
    draw: st.DrawFn,
    roundings: st.SearchStrategy[Rounding] | None = None,
    *,
    max_block_size: int = 8,
) -> Accumulator:
    """Generate accumulators: every order, exact and rounded products, block sums.

    Args:
        draw: supplied by hypothesis.
        roundings: strategy for the roundings; None means `roundings()`.
        max_block_size: largest block of blocked sums (terms).

    Returns:
        A strategy of `Accumulator`.

    Example:
        >>> accumulators(max_block_size=4).map(str)
        accumulators(max_block_size=4).map(str)
    """
    source = _default_roundings() if roundings is None else roundings
    narrow = source.filter(lambda value: value.format.precision <= _WIDEST_ACCUMULATOR)
    order = draw(st.sampled_from(Order))
    blocked = order is Order.BLOCKED
    blocks = st.integers(1, max_block_size) if blocked else st.none()
    within = st.none() | narrow if blocked else st.none()
    product: Rounding | Literal["exact", "accumulator"] = "exact"
    match draw(st.integers(0, 2)):
        case 1:
            product = "accumulator"
        case 2:
            product = draw(narrow)
    return Accumulator(draw(narrow), product, order, draw(blocks), draw(within))


@st.composite
def block_formats(
    draw: st.DrawFn,
    *,
    max_precision: int = 8,
    max_block_size: int = 8,
    carrier: torch.dtype = torch.float32,
) -> BlockFormat:
    """Generate block formats: shared exponents and scales, one level or two, each rule.

    Args:
        draw: supplied by hypothesis.
        max_precision: largest precision of the elements (bits), at most 16.
        max_block_size: largest block (elements).
        carrier: torch.float32 or torch.float64, which holds every value.

    Returns:
        A strategy of `BlockFormat`.

    Example:
        >>> block_formats(max_precision=4).map(str)
        block_formats(max_precision=4).map(str)
    """
    size = draw(st.integers(1, max_block_size))
    elements = formats(max_precision=max_precision, max_exponent_bits=4)
    fixed = st.builds(_fixed_point, st.integers(1, max_precision))
    element = draw(elements | fixed)
    if draw(st.booleans()):
        scale = SharedExponent(draw(st.integers(2, 8)))
        rule = draw(st.sampled_from(["floor", "ceil", "rceil", "even"]))
        made = BlockFormat(element, scale, size, rule)
    else:
        second = draw(st.sampled_from([None, "binary32", "bfloat16"]))
        rule = draw(st.sampled_from(["amax", "nv"]))
        narrow = draw(st.sampled_from(["e4m3fn", "e5m2", "e3m3"]))
        # More than four bits leave no room for a scale in binary32.
        short = element if element.precision <= 4 else as_format("e2m1fn")
        made = BlockFormat(short, narrow, size, rule, second)
    assume(fits(made, carrier))
    return made


def _fixed_point(precision: int) -> Format:
    return BlockFormat.fixed_point(precision + 1).element


_default_roundings = roundings


@lru_cache(maxsize=64)
def _boundaries(target: AnyFormat, dtype: torch.dtype) -> tuple[float, ...]:
    return tuple(sorted(boundary_inputs(target, dtype).tolist(), key=_complexity))


def _complexity(x: float) -> tuple[float, bool]:
    """Order numbers as examples shrink: few bits, close to one, positive."""
    negative = math.copysign(1.0, x) < 0
    if x == 0 or not math.isfinite(x):
        return (0.0 if x == 0 else math.inf), negative
    significand = math.frexp(x)[0].as_integer_ratio()[0]
    return abs(significand).bit_length() + abs(math.log2(abs(x))), negative


def values_near(
    format: AnyFormat | str, dtype: torch.dtype = torch.float32
) -> st.SearchStrategy[float]:
    """Generate the values, ties and their neighbours at which roundings change.

    Contract:
        Examples shrink to zero, then to numbers of few bits close to 1.

    Args:
        format: a format of any kind or its name; of block formats the elements are
            meant, in units of the scale.
        dtype: carrier of the values, float32 or float64.

    Returns:
        A strategy of floats that ``dtype`` holds exactly; specials are included.

    Example:
        >>> values_near("e5m2").filter(lambda value: value > 0) is not None
        True
    """
    return st.sampled_from(_boundaries(any_format(format), dtype))


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: Sequence[int] | st.SearchStrategy[tuple[int, ...]] = (8,),
    dtype: torch.dtype = torch.float32,
    *,
    near: AnyFormat | str | None = None,
    specials: bool = True,
) -> Tensor:
    """Generate carrier tensors that hit subnormals, boundaries and specials.

    Args:
        draw: supplied by hypothesis.
        shape: the shape, or a strategy for it.
        dtype: torch.float32 or torch.float64.
        near: if given, about half of the elements lie at this format's boundaries; it
            may be of any kind.
        specials: whether infinities and NaN occur.

    Returns:
        A strategy of contiguous tensors.

    Example:
        >>> tensors(shape=(2, 3), near="e4m3fn").map(torch.sum) is not None
        True
    """
    size = draw(shape) if isinstance(shape, st.SearchStrategy) else tuple(shape)
    width: Literal[32, 64] = 32 if dtype == torch.float32 else 64
    elements: st.SearchStrategy[float] = st.floats(
        width=width, allow_nan=specials, allow_infinity=specials
    ) | st.integers(-64, 64).map(lambda eighths: eighths / 8)
    if near is not None:
        close = values_near(near, dtype)
        elements |= close if specials else close.filter(math.isfinite)
    count = math.prod(size)
    values = draw(st.lists(elements, min_size=count, max_size=count))
    return torch.tensor(values, dtype=dtype).reshape(size)
