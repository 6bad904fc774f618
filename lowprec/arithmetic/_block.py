"""Rounding of tensors to block formats: scales by integer bits, one rounding each.

Everything is computed in binary64, in which scales are exact: powers of two, or
products of a few short numbers. A quotient x / S that binary64 does not hold is rounded
to odd there, by integer division, so that the rounding to the element format is that of
the exact quotient. `lowprec.testing.exact_block_round` says the same in fractions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..block_rounding import BlockRounding
from ..formats import BlockFormat, Format, ScaleRule, SharedExponent
from ..rounding import Rounding, Saturation

_STORED = 52
_BIAS = 1023
_FRACTION = (1 << _STORED) - 1
# Multiples of an element's quantum below 2^-400 round alike; scales are above 2^-200.
_TINY = 2.0**-600
_LARGEST_SHIFT = 900
# Quotients get 26 bits in each of two integer divisions by 28-bit numbers.
_DIVISOR_BITS = 28
_QUOTIENT_STEP = 26
_BINARY32 = Rounding("binary32")


class Quantized(NamedTuple):
    """A tensor in a block format: q s t.

    Args:
        elements: q, values of the element format, float64, in the tensor's shape.
        scales: s, float64, the blocked axis having one entry per block; NaN marks a
            block of NaN.
        tensor_scale: t, a 0-d float64 tensor, or None.
    """

    elements: Tensor
    scales: Tensor
    tensor_scale: Tensor | None


@dataclass(frozen=True)
class AlongAxis:
    """A block rounding and the axis along which blocks run."""

    rounding: BlockRounding
    axis: int

    @property
    def stochastic(self) -> bool:
        """Whether results depend on random bits."""
        return self.rounding.stochastic

    def apply(self, x: Tensor, seed: Tensor | None, offset: int) -> Tensor:
        """Round without autograd."""
        quantized = quantize(x, self.rounding, self.axis, seed, offset)
        return dequantize(quantized, self.rounding.format, self.axis, x.dtype)


def normalised_axis(axis: object, dims: int) -> int:
    """Return the axis counted from the front.

    Raises:
        TypeError: if it is not an int.
        ValueError: if there is no such axis.
    """
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(
            f"axis must be an int, got {axis!r} of type {type(axis).__name__}"
        )
    if not -dims <= axis < dims:
        text = f"from {-dims} to {dims - 1}" if dims else "possible with no dimensions"
        raise ValueError(
            f"axis {axis} is not {text}: blocks run along a dimension of the tensor"
        )
    return axis % dims


def _fl(x: Tensor, rounding: Rounding) -> Tensor:
    result: Tensor = kernels.eager_round(x, rounding.code)
    return result


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int64)


def _power_of_two(exponent: Tensor) -> Tensor:
    bits: Tensor = ((exponent + _BIAS) << _STORED).view(torch.float64)
    return bits


def _in_blocks(x: Tensor, axis: int, size: int) -> Tensor:
    """Cut an axis into [blocks, size], filling the last block with zeros."""
    count = -(-x.shape[axis] // size)
    missing = count * size - x.shape[axis]
    if missing:
        shape = [*x.shape]
        shape[axis] = missing
        x = torch.cat([x, x.new_zeros(shape)], axis)
    result: Tensor = x.unflatten(axis, (count, size))
    return result


def _per_element(scales: Tensor, axis: int, size: int, length: int) -> Tensor:
    """Repeat each block's scale for its elements."""
    shape = [*scales.shape]
    shape.insert(axis + 1, size)
    repeated = scales.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)
    return repeated.narrow(axis, 0, length)


def _shared_scales(largest: Tensor, format: BlockFormat, bias: int) -> Tensor:
    """Return the powers of two of blocks with these largest magnitudes."""
    # Every rule is: the exponent goes up if the significand is above a bound. Added to
    # the bits of the magnitude, what is missing to the next binade carries.
    element = format.element
    fraction = Fraction(element.max) / Fraction(2) ** element.emax - 1
    lift = {
        ScaleRule.FLOOR: 0,
        ScaleRule.CEIL: _FRACTION,
        ScaleRule.RCEIL: _FRACTION - int(fraction * 2**_STORED),
        ScaleRule.EVEN: 1 << (_STORED - element.precision),
    }[format.rule]
    exponent = ((_bits(largest) + lift) >> _STORED) - (_BIAS + element.emax)
    return _power_of_two(exponent.clamp(-bias, bias))


def odd_quotient(x: Tensor, divisor: Tensor) -> Tensor:
    """Return x / divisor rounded to odd with 50 or 51 significant bits.

    Args:
        x: float64 without subnormal numbers; not NaN, not infinite.
        divisor: positive float64 of at most 28 significant bits; broadcasts to ``x``.

    Returns:
        float64 tensor; beyond 2^+-900 the exponents are those bounds.
    """
    size, below = _bits(x.abs()), _bits(divisor)
    dividend = (size & _FRACTION) | (1 << _STORED)
    short = ((below & _FRACTION) | (1 << _STORED)) >> (_STORED - _DIVISOR_BITS + 1)
    high = dividend // short
    rest = (dividend - high * short) << _QUOTIENT_STEP
    low = rest // short
    sticky = low * short != rest
    quotient = ((high << _QUOTIENT_STEP) + low) | sticky
    # dividend is x 2^52, short is divisor 2^27, the quotient has 26 more bits.
    places = _STORED - (_DIVISOR_BITS - 1) + _QUOTIENT_STEP
    exponent = (size >> _STORED) - (below >> _STORED) - places
    scale = _power_of_two(exponent.clamp(-_LARGEST_SHIFT, _LARGEST_SHIFT))
    result = torch.copysign(quotient.to(torch.float64) * scale, x)
    return torch.where(x == 0, x, result)


def _divided(x: Tensor, divisor: Tensor, rule: ScaleRule) -> Tensor:
    """Return x / divisor as the rule has it: exact, then odd; or in binary32."""
    if rule is ScaleRule.NV:
        # A quotient of binary32 numbers rounds correctly through binary64.
        return _fl(x / divisor, _BINARY32)
    return odd_quotient(x, divisor)


def _at_least_smallest(x: Tensor, format: Format) -> Tensor:
    return x.clamp(min=float(format.smallest_subnormal))


def _tensor_scale(largest: Tensor, format: BlockFormat) -> Tensor | None:
    """Return t = fl(amax / (M_element M_scale)), so that no block scale overflows."""
    target, scale = format.tensor_scale, format.scale
    if target is None or isinstance(scale, SharedExponent):
        return None
    amax = largest.flatten().amax() if largest.numel() else largest.new_zeros(())
    bound = amax.new_tensor(float(format.element.max) * float(scale.max))
    quotient = _divided(amax, bound, format.rule)
    rounded = _fl(quotient, Rounding(target, saturation=Saturation.FINITE))
    return torch.where(amax == 0, 1.0, _at_least_smallest(rounded, target))


def _rounded_scales(
    largest: Tensor, format: BlockFormat, scale: Format, second: Tensor
) -> Tensor:
    """Return s = fl_scale(amax / (M t))."""
    rounding = Rounding(scale, saturation=Saturation.FINITE)
    top = float(format.element.max)
    if format.rule is ScaleRule.NV:
        target = largest.new_tensor(top)
        steps = _divided(_divided(largest, target, format.rule), second, format.rule)
        return _fl(steps, rounding)
    quotient = odd_quotient(largest, top * second)
    return _at_least_smallest(_fl(quotient, rounding), scale)


def _divisors(scales: Tensor, second: Tensor, rule: ScaleRule) -> Tensor:
    """Return S, by which elements are divided."""
    if rule is not ScaleRule.NV:
        return scales * second  # exact: BlockFormat limits the bits
    product = _fl(scales * second, _BINARY32)
    # A scale that vanished leaves zeros.
    return torch.where(product == 0, math.inf, product)


def _refuse_unheld(format: BlockFormat, dtype: torch.dtype) -> None:
    """Refuse formats whose q s a float32 carrier would round."""
    if dtype == torch.float64:
        return
    element, scale = format.element, format.scale
    if isinstance(scale, SharedExponent):
        precision, lowest = element.precision, Fraction(2) ** -scale.bias
    else:
        precision = element.precision + scale.precision
        lowest = Fraction(scale.smallest_subnormal)
    binary32 = _BINARY32.format
    smallest = lowest * Fraction(element.smallest_subnormal)
    if precision > binary32.precision or smallest < binary32.smallest_subnormal:
        raise ValueError(
            f"a float32 carrier cannot hold every value of {format!r}: use a float64 "
            "carrier"
        )


def quantize(
    x: Tensor,
    rounding: BlockRounding,
    axis: int,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Quantized:
    """Round a tensor to elements and scales, without autograd.

    Args:
        x: float32 or float64 tensor.
        rounding: the block rounding.
        axis: along which blocks run, not negative.
        seed: 0-d int64, needed by stochastic modes.
        offset: linear index of the first element.

    Returns:
        Elements and scales.
    """
    format, length = rounding.format, x.shape[axis]
    _refuse_unheld(format, x.dtype)
    wide = x.to(torch.float64)
    if format.rule is ScaleRule.NV:
        wide = _fl(wide, _BINARY32)
    elif x.dtype == torch.float64:
        tiny = (wide.abs() < _TINY) & (wide != 0)
        wide = torch.where(tiny, torch.copysign(wide.new_tensor(_TINY), wide), wide)
    largest = _in_blocks(wide.abs(), axis, format.block_size).amax(axis + 1)
    finite = largest < math.inf
    largest = torch.where(finite, largest, 0.0)
    second = None
    if isinstance(format.scale, SharedExponent):
        scales = _shared_scales(largest, format, format.scale.bias)
        factor = scales.reciprocal()  # exact
        factor = _per_element(factor, axis, format.block_size, length)
        quotient = wide * factor
    else:
        second = _tensor_scale(largest, format)
        unit = largest.new_ones(()) if second is None else second
        scales = _rounded_scales(largest, format, format.scale, unit)
        divisors = _divisors(scales, unit, format.rule)
        divisors = _per_element(divisors, axis, format.block_size, length)
        quotient = _divided(wide, divisors, format.rule)
    quotient = quotient.contiguous()
    if seed is None:
        elements = _fl(quotient, rounding.element)
    else:
        code = rounding.element.code
        elements = kernels.eager_round_stochastic(quotient, code, seed, offset)
    return Quantized(elements, torch.where(finite, scales, math.nan), second)


def scaled(
    quantized: Quantized, format: BlockFormat, axis: int, dtype: torch.dtype
) -> Tensor:
    """Return q s, the numbers without the scale of the tensor."""
    length = quantized.elements.shape[axis]
    scales = _per_element(quantized.scales, axis, format.block_size, length)
    return (quantized.elements * scales).to(dtype)


def dequantize(
    quantized: Quantized, format: BlockFormat, axis: int, dtype: torch.dtype
) -> Tensor:
    """Return q s t, rounded to the carrier once if t is there and it is float32."""
    if quantized.tensor_scale is None:
        return scaled(quantized, format, axis, dtype)
    wide = scaled(quantized, format, axis, torch.float64) * quantized.tensor_scale
    return (_fl(wide, _BINARY32) if dtype == torch.float32 else wide).to(dtype)
