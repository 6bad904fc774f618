"""What rounding to a block format means, in exact rationals.

This file defines; the kernels are compared with it bit for bit. It shares no code with
them and follows the rules as they are published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from ..block_rounding import BlockRounding
from ..formats import BlockFormat, Format, ScaleRule, SharedExponent, block_format
from ..rounding import Rounding, Saturation
from ._oracle import Real, exact_round, floor_log2, simplest

__all__ = [
    "ExactBlock",
    "exact_block_round",
    "exact_block_scale",
    "exact_tensor_scale",
]

_BINARY32 = "binary32"


class ExactBlock(NamedTuple):
    """One block in a block format.

    Args:
        elements: the values q of the element format; empty meaning in a block of NaN.
        scale: the scale s, NaN for a block of NaN.
        values: q s t, exact.
    """

    elements: list[Real]
    scale: Real
    values: list[Real]


def _power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def _largest(block: Sequence[Any]) -> Fraction:
    return max((abs(Fraction(x)) for x in block), default=Fraction(0))


def _is_finite(block: Sequence[Any]) -> bool:
    return all(not isinstance(x, float) or math.isfinite(x) for x in block)


def _single(x: Fraction) -> Fraction:
    """Round to binary32, as one step of published software does."""
    return Fraction(exact_round(x, _BINARY32))


def _read(numbers: Sequence[Any], format: BlockFormat) -> Sequence[Any]:
    """Return the numbers as the rule reads them."""
    if format.rule is ScaleRule.NV:
        return [exact_round(x, _BINARY32) for x in numbers]
    return numbers


def _saturated(x: Fraction, target: Format) -> Fraction:
    return Fraction(exact_round(x, Rounding(target, saturation=Saturation.FINITE)))


def _shared_exponent(amax: Fraction, format: BlockFormat) -> int:
    """Return the exponent of a block's scale before it is clamped."""
    element = format.element
    match format.rule:
        case ScaleRule.CEIL:
            e = floor_log2(amax)
            return e + (amax != _power(e)) - element.emax
        case ScaleRule.RCEIL:
            ratio = amax / Fraction(element.max)
            e = floor_log2(ratio)
            return e + (ratio != _power(e))
        case ScaleRule.EVEN:
            # To p bits with any exponent: one step of rounding, ties to even.
            quantum = _power(floor_log2(amax) - element.precision + 1)
            return floor_log2(round(amax / quantum) * quantum) - element.emax
        case _:
            return floor_log2(amax) - element.emax


def exact_block_scale(
    block: Sequence[Any], format: BlockFormat | str, tensor_scale: Any = 1
) -> Real:
    """Return the scale of one block by its format's rule.

    Contract:
        Exact. NaN if an element is NaN or infinite. A block of zeros has the smallest
        scale (rule ``nv``: zero).

    Args:
        block: the numbers of the block: floats, ints or Fractions.
        format: the block format or its name.
        tensor_scale: the scale t of the tensor, from `exact_tensor_scale`.

    Returns:
        The scale s, which is a value of the format's ``scale``.

    Example:
        >>> exact_block_scale([0.5, -7.5], "mxfp4")
        1.0

    References:
        OCP Microscaling Formats 1.0, section 6.3.
    """
    target = block_format(format)
    block = _read(block, target)
    if not _is_finite(block):
        return math.nan
    amax, scale = _largest(block), target.scale
    if isinstance(scale, SharedExponent):
        if amax == 0:
            return simplest(_power(-scale.bias))
        exponent = _shared_exponent(amax, target)
        return simplest(_power(min(max(exponent, -scale.bias), scale.bias)))
    top, t = Fraction(target.element.max), Fraction(tensor_scale)
    if target.rule is ScaleRule.NV:
        ratio = _single(_single(amax / top) / t)
        return simplest(_saturated(ratio, scale))
    rounded = _saturated(amax / top / t, scale)
    return simplest(max(rounded, Fraction(scale.smallest_subnormal)))


def exact_tensor_scale(tensor: Sequence[Any], format: BlockFormat | str) -> Real:
    """Return the scale t of a whole tensor: 1 where the format has none.

    t = fl(amax / (M_element M_scale)), at least the smallest positive value; 1 for a
    tensor of zeros.

    Args:
        tensor: its finite blocks' numbers, in any order.
        format: the block format or its name.

    Returns:
        The scale, a value of the format's ``tensor_scale``.

    Example:
        >>> exact_tensor_scale([2688.0, 1.0], "nvfp4")
        1.0

    References:
        NVIDIA, Pretraining LLMs with NVFP4, 2025, appendix C.
    """
    target = block_format(format)
    amax, scale = _largest(_read(tensor, target)), target.scale
    if target.tensor_scale is None or isinstance(scale, SharedExponent) or amax == 0:
        return 1.0
    ratio = amax / (Fraction(target.element.max) * Fraction(scale.max))
    if target.rule is ScaleRule.NV:
        ratio = _single(ratio)
    smallest = Fraction(target.tensor_scale.smallest_subnormal)
    return simplest(max(_saturated(ratio, target.tensor_scale), smallest))


def exact_block_round(
    block: Sequence[Any],
    rounding: Any,
    random_words: Sequence[int] | None = None,
    tensor_scale: Any = 1,
) -> ExactBlock:
    """Round one block exactly as `lowprec.round` must round it.

    q = fl_element(x / (s t)), one rounding of the exact quotient (rule ``nv``: of
    fl_binary32(fl_binary32(x) / fl_binary32(s t))); the value is q s t.

    Args:
        block: the numbers of the block: floats, ints or Fractions.
        rounding: a `BlockRounding`, `BlockFormat` or its name.
        random_words: one 32-bit word per element; stochastic modes only.
        tensor_scale: the scale t of the tensor, from `exact_tensor_scale`.

    Returns:
        Elements, scale and values.

    Example:
        >>> exact_block_round([0.3, 5.0, 40.0], "mxfp4").values
        [0.0, 4.0, 32.0]

    References:
        OCP Microscaling Formats 1.0, section 6.3.
    """
    chosen = (
        rounding if isinstance(rounding, BlockRounding) else BlockRounding(rounding)
    )
    target = chosen.format
    scale = exact_block_scale(block, target, tensor_scale)
    if math.isnan(scale):
        nans = [math.nan] * len(block)
        return ExactBlock([0.0] * len(block), scale, list(nans))
    s, t = Fraction(scale), Fraction(tensor_scale)
    words = [0] * len(block) if random_words is None else random_words
    elements = [
        _element(x, s, t, chosen, word)
        for x, word in zip(_read(block, target), words, strict=True)
    ]
    return ExactBlock(elements, scale, [_times(q, s * t) for q in elements])


def _times(q: Real, factor: Fraction) -> Real:
    """Multiply, keeping what has a sign but no magnitude, or no value."""
    if isinstance(q, float) and (q == 0 or not math.isfinite(q)):
        return q
    return simplest(Fraction(q) * factor)


def _element(
    x: Any, s: Fraction, t: Fraction, rounding: BlockRounding, word: int
) -> Real:
    divisor = s * t
    if rounding.format.rule is ScaleRule.NV:
        divisor = _single(divisor)
    if x == 0 or divisor == 0:  # a scale that vanished leaves zeros
        return exact_round(math.copysign(0.0, x), rounding.element)
    quotient: Any = Fraction(x) / divisor
    if rounding.format.rule is ScaleRule.NV:
        quotient = exact_round(quotient, _BINARY32)
    return exact_round(quotient, rounding.element, word)
