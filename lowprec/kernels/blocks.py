"""Rounding to block formats: scales by integer bits, one rounding of each element.

Everything is computed in binary64, in which scales are exact: powers of two, or
products of a few short numbers. A quotient x / S that binary64 does not hold is rounded
to odd there, by integer division, so that the rounding to the element format is that of
the exact quotient. `lowprec.testing.exact_block_round` says the same in fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import codes
from ._library import eager_round, eager_round_stochastic
from .codes import RoundingCode

FLOOR = 0
CEIL = 1
RCEIL = 2
EVEN = 3
AMAX = 4
NV = 5

_STORED = 52
_BIAS = 1023
_FRACTION = (1 << _STORED) - 1
# Below 2^-300 all multiples of an element's quantum round alike; S is above 2^-300.
_TINY = 2.0**-600
_LARGEST_SHIFT = 900
# Above this quantum, and with 32 random bits, numbers below 2^-126 round as zero does.
_COARSE = 2.0**-80
_IGNORE_UNDERFLOW = (
    codes.NEAREST_EVEN,
    codes.NEAREST_AWAY,
    codes.NEAREST_ZERO,
    codes.TOWARD_ZERO,
    codes.STOCHASTIC,
)
# Quotients get 26 bits in each of two integer divisions by 28-bit numbers.
_DIVISOR_BITS = 28
_QUOTIENT_STEP = 26


class BlockCode(NamedTuple):
    """A rounding to a block format as integers.

    Args:
        element: the nine integers of the elements' rounding.
        scale: those of the scales' rounding; empty for shared exponents.
        tensor_scale: those of the tensor scale's rounding; empty if there is none.
        single: those of rounding to binary32, in which ``NV`` computes.
        rule: how scales follow from the largest magnitudes.
        block_size: elements per block.
        bias: largest shared exponent.
    """

    element: tuple[int, ...]
    scale: tuple[int, ...]
    tensor_scale: tuple[int, ...]
    single: tuple[int, ...]
    rule: int
    block_size: int
    bias: int


class Quantized(NamedTuple):
    """A tensor in a block format: q s t.

    Args:
        elements: q, values of the element format, in the tensor's shape.
        scales: s, float64, the blocked axis having one entry per block; NaN marks a
            block of NaN.
        tensor_scale: t, a 0-d float64 tensor, 1 if the format has none.
    """

    elements: Tensor
    scales: Tensor
    tensor_scale: Tensor


def _largest(code: RoundingCode) -> float:
    return code.max_significand * 2.0 ** (code.emax - code.precision + 1)


def _smallest(code: RoundingCode) -> float:
    places = code.precision - 1 if code.flags & codes.SUBNORMALS else 0
    return 2.0 ** (code.emin - places)


def _fl(x: Tensor, code: tuple[int, ...]) -> Tensor:
    result: Tensor = eager_round(x, code)
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


def per_element(scales: Tensor, axis: int, size: int, length: int) -> Tensor:
    """Repeat each block's scale for its elements."""
    shape = [*scales.shape]
    shape.insert(axis + 1, size)
    repeated = scales.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)
    return repeated.narrow(axis, 0, length)


def _with_blocks(
    operation: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    numbers: Tensor,
    axis: int,
    size: int,
) -> Tensor:
    """Apply an operation to each element and the number of its block."""
    count, length = numbers.shape[axis], x.shape[axis]
    numbers = numbers.to(x.dtype)  # exact
    if count * size != length:
        return operation(x, per_element(numbers, axis, size, length))
    blocks = x.unflatten(axis, (count, size))
    return operation(blocks, numbers.unsqueeze(axis + 1)).flatten(axis, axis + 1)


def _working_dtype(x: Tensor, code: BlockCode) -> torch.dtype:
    """Return float32 for ``NV``, and where its underflow cannot change an element.

    Scaled by a power of two, a float32 number loses bits below 2^-126 only.
    """
    if code.rule == NV:
        return torch.float32
    element = RoundingCode(*code.element)
    ignores = element.mode in _IGNORE_UNDERFLOW and _smallest(element) >= _COARSE
    narrow = x.dtype == torch.float32 and not code.scale and ignores
    return torch.float32 if narrow else torch.float64


def _shared_scales(largest: Tensor, code: BlockCode) -> Tensor:
    """Return the powers of two of blocks with these largest magnitudes."""
    # Every rule is: the exponent goes up if the significand is above a bound. Added to
    # the bits of the magnitude, what is missing to the next binade carries.
    element = RoundingCode(*code.element)
    fraction = _largest(element) * 2.0**-element.emax - 1
    lift = {
        FLOOR: 0,
        CEIL: _FRACTION,
        RCEIL: _FRACTION - int(fraction * 2**_STORED),
        EVEN: 1 << (_STORED - element.precision),
    }[code.rule]
    exponent = ((_bits(largest) + lift) >> _STORED) - (_BIAS + element.emax)
    return _power_of_two(exponent.clamp(-code.bias, code.bias))


def odd_quotient(x: Tensor, divisor: Tensor) -> Tensor:
    """Return x / divisor rounded to odd with 51 or 52 significant bits.

    Args:
        x: finite float64 without subnormal numbers.
        divisor: positive float64 of at most 28 significant bits; broadcasts to ``x``.

    Returns:
        float64 tensor; exponents beyond +-900 are those bounds.
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


def _divided(x: Tensor, divisor: Tensor, code: BlockCode) -> Tensor:
    """Return x / divisor as the rule has it: exact, then odd; or in binary32."""
    if code.rule == NV:
        # A quotient of binary32 numbers rounds correctly through binary64.
        return _fl(x / divisor, code.single)
    return odd_quotient(x, divisor)


def _divides_at_once(dtype: torch.dtype, code: BlockCode) -> bool:
    """Whether one division rounds to nearest as the rule says, or harmlessly.

    In ``NV`` it is the published step. Otherwise, for float32 numbers in float64:
    elements have at most 17 bits where they change, divisors 28, so a quotient that is
    no such place is 2^-45 of itself away from it, or more. Random bits move the places.
    """
    deterministic = code.element[5] < codes.STOCHASTIC
    return code.rule == NV or (dtype == torch.float32 and deterministic)


def _tensor_scale(largest: Tensor, code: BlockCode) -> Tensor:
    """Return t = fl(amax / (M_element M_scale)), so that no block scale overflows."""
    one = largest.new_ones(())
    if not code.tensor_scale or largest.numel() == 0:
        return one
    target, scale = RoundingCode(*code.tensor_scale), RoundingCode(*code.scale)
    amax = largest.flatten().amax()
    bound = one * (_largest(RoundingCode(*code.element)) * _largest(scale))
    rounded = _fl(_divided(amax, bound, code), target)
    return torch.where(amax == 0, one, rounded.clamp(min=_smallest(target)))


def _rounded_scales(largest: Tensor, code: BlockCode, second: Tensor) -> Tensor:
    """Return s = fl_scale(amax / (M t))."""
    top, scale = _largest(RoundingCode(*code.element)), RoundingCode(*code.scale)
    if code.rule == NV:
        ratio = _divided(largest, top * torch.ones_like(second), code)
        return _fl(_divided(ratio, second, code), scale)
    rounded = _fl(odd_quotient(largest, top * second), scale)
    return rounded.clamp(min=_smallest(scale))


def _divisors(scales: Tensor, second: Tensor, code: BlockCode) -> Tensor:
    """Return S, by which elements are divided."""
    if code.rule != NV:
        return scales * second  # exact: BlockFormat limits the bits
    product = _fl(scales * second, code.single)
    # A scale that vanished leaves zeros.
    return torch.where(product == 0, math.inf, product)


def quantize(
    x: Tensor, code: BlockCode, axis: int, seed: Tensor | None, offset: int
) -> Quantized:
    """Round a tensor to elements and scales.

    Args:
        x: float32 or float64 tensor.
        code: the rounding.
        axis: along which blocks run, not negative.
        seed: 0-d int64 for stochastic modes, else None.
        offset: linear index of the first element.

    Returns:
        Elements and scales.
    """
    if x.dtype == torch.float64 and code.rule == NV:
        x = _fl(x, code.single)
    wide, size = x.to(_working_dtype(x, code)), code.block_size
    if wide.dtype == torch.float64 and x.dtype == torch.float64:
        tiny = (wide.abs() < _TINY) & (wide != 0)
        wide = torch.where(tiny, torch.copysign(wide.new_tensor(_TINY), wide), wide)
    largest = _in_blocks(wide.abs(), axis, size).amax(axis + 1)
    largest = largest.to(torch.float64)
    finite = largest < math.inf
    largest = torch.where(finite, largest, 0.0)
    second = _tensor_scale(largest, code)
    if code.scale:
        scales = _rounded_scales(largest, code, second)
        divisors = _divisors(scales, second, code)
        divide = torch.div if _divides_at_once(x.dtype, code) else odd_quotient
        quotient = _with_blocks(divide, wide, divisors, axis, size)
    else:
        scales = _shared_scales(largest, code)
        factors = scales.reciprocal()  # exact
        quotient = _with_blocks(torch.mul, wide, factors, axis, size)
    quotient = quotient.contiguous()
    if seed is None:
        elements = _fl(quotient, code.element)
    else:
        elements = eager_round_stochastic(quotient, code.element, seed, offset)
    return Quantized(elements, torch.where(finite, scales, math.nan), second)


def block_values(
    quantized: Quantized, axis: int, size: int, dtype: torch.dtype
) -> Tensor:
    """Return q s in a carrier that holds it."""
    elements, scales, _ = quantized
    if dtype == torch.float64:  # before multiplying: float32 need not hold q s
        elements = elements.to(dtype)
    result = _with_blocks(torch.mul, elements, scales, axis, size)
    return result.to(dtype).contiguous()


# An operation, as Inductor miscompiles loops over short blocks (torch 2.13, CPU).
_LIBRARY = torch.library.Library("lowprec", "FRAGMENT")
_LIBRARY.define(
    "round_blocks(Tensor x, int[] element, int[] scale, int[] tensor_scale, "
    "int[] single, int rule, int block_size, int bias, int axis, Tensor? seed, "
    "SymInt offset) -> (Tensor, Tensor)"
)


def _round_blocks(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *fields, axis, seed, offset = arguments
    # The dispatcher makes lists of tuples.
    element, scale, tensor_scale, single = map(tuple, fields[:4])
    code = BlockCode(element, scale, tensor_scale, single, *fields[4:])
    quantized = quantize(x, code, axis, seed, offset)
    result = block_values(quantized, axis, code.block_size, x.dtype)
    return result, quantized.tensor_scale


def _fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    scale = torch.empty((), dtype=torch.float64, device=x.device)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), scale


_LIBRARY.impl("round_blocks", _round_blocks, "CompositeExplicitAutograd")
_LIBRARY.impl("round_blocks", _fake, "Meta")  # for fake tensors too

_round_blocks_operation = torch.ops.lowprec.round_blocks.default


@torch.library.register_vmap("lowprec::round_blocks", lib=_LIBRARY)
def _round_blocks_vmap(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, *arguments: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    # One tensor scale per example, and the same random words as in a loop over them.
    *fields, axis, seed, offset = arguments
    seed_dim = in_dims[-2]
    results = []
    for i in range(info.batch_size):
        example = x if in_dims[0] is None else x.select(in_dims[0], i)
        own = seed if seed_dim is None else seed.select(seed_dim, i)
        results.append(_round_blocks_operation(example, *fields, axis, own, offset))
    both = [torch.stack(parts) for parts in zip(*results, strict=True)]
    return (both[0], both[1]), (0, 0)


def round_blocks(
    x: Tensor, code: BlockCode, axis: int, seed: Tensor | None, offset: int
) -> tuple[Tensor, Tensor]:
    """Return q s in the carrier of ``x``, and the tensor scale t (1 if there is none).

    The arguments are those of `quantize`.
    """
    result: tuple[Tensor, Tensor] = _round_blocks_operation(
        x, *code, axis, seed, offset
    )
    return result
