"""Codes of tensors in block formats: one per element, one per block."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..block_rounding import BlockRounding, BlockRoundingLike
from ..formats import BlockFormat, Format, SharedExponent, block_format
from ..formats import format as as_format
from ..kernels.portable import CARRIERS
from ..random import as_seed
from ._block import block_code, normalised_axis, refuse_unheld, with_tensor_scale
from ._codec import decode, encode, plain_codes
from ._overrides import overridable
from ._round import check_carrier

_E8M0 = as_format("e8m0fnu")  # of which torch has a dtype; its codes are the same


class BlockCodes(NamedTuple):
    """A tensor in a block format, as hardware stores it.

    Args:
        codes: integer codes of the elements, in the tensor's shape.
        scales: integer codes of the blocks' scales; the blocked axis has one entry per
            block.
        tensor_scale: the scale of the whole tensor as a 0-d float64 tensor, or None.
    """

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor | None


def _encode_scales(scales: Tensor, scale: SharedExponent | Format) -> Tensor:
    if isinstance(scale, Format):
        return encode(scales, scale)
    _, exponent = torch.frexp(scales)  # of powers of two: one above the exponent
    code = exponent.to(torch.int64) - 1 + scale.bias
    return torch.where(scales.isnan(), (1 << scale.bits) - 1, code)


def _decode_scales(codes: Tensor, scale: SharedExponent | Format) -> Tensor:
    if isinstance(scale, Format):
        _check_unsigned(plain_codes(codes, scale), scale)
        return decode(codes, scale, dtype=torch.float64)
    codes = plain_codes(codes, _E8M0)
    _check_range(codes, scale.bits, "codes of shared exponents")
    exponent = codes.to(torch.int64) - scale.bias
    powers = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)
    return torch.where(exponent > scale.bias, math.nan, powers)


def _check_unsigned(codes: Tensor, scale: Format) -> None:
    """Refuse negative scales, -0 among them; NaN may have the code of -0."""
    wide = codes.to(torch.int64)
    used = wide[wide != scale.encode(math.nan)]
    _check_range(used, scale.bits - scale.signed, "codes of non-negative scales")


def _check_tensor_scale(second: Any, scale: Format | None) -> None:
    """Refuse what is no scale of a whole tensor.

    Raises:
        TypeError: if it is no floating-point tensor.
        ValueError: if it has dimensions, is negative, or no value of the format.
    """
    if scale is None or second is None:
        return
    if not isinstance(second, Tensor) or second.dtype not in CARRIERS:
        raise TypeError(
            f"the tensor scale must be a 0-d float32 or float64 tensor, got {second!r}"
        )
    if second.dim() != 0:
        raise ValueError(
            f"the tensor scale must be a 0-d tensor, got shape {tuple(second.shape)}"
        )
    value = second.item()
    usable = math.isfinite(value) and math.copysign(1.0, value) > 0
    if not (usable and scale.is_representable(value)):
        raise ValueError(
            "the tensor scale must be a finite, non-negative value of "
            f"{scale.name or scale!r}, got {value!r}"
        )


def _check_range(codes: Tensor, bits: int, what: str) -> None:
    if codes.numel() == 0:
        return
    low, high = (int(bound) for bound in codes.to(torch.int64).aminmax())
    if low < 0 or high >= 1 << bits:
        raise ValueError(
            f"{what} of {bits} bits are from 0 to {(1 << bits) - 1}, got values from "
            f"{low} to {high}"
        )


@overridable
def encode_blocks(
    x: Tensor,
    rounding: BlockRoundingLike,
    axis: int = -1,
    *,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> BlockCodes:
    """Round a tensor to a block format and return the codes of elements and scales.

    Contract:
        ``decode_blocks(encode_blocks(x, rounding, axis), format, axis)`` equals
        ``round(x, rounding, axis=axis)`` bit for bit. A shared exponent k has the code
        k + bias, NaN all ones. Fixed-point elements are sign and magnitude, two's
        complement where there is no -0 (MXINT8). The elements of a block of NaN have
        the code of zero.

    Args:
        x: float32 or float64 tensor with at least one dimension.
        rounding: a `BlockRounding`, `BlockFormat` or its name.
        axis: the dimension that is cut into blocks.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead, an int or 0-d int64 tensor.
        offset: linear index of the first element.

    Returns:
        int64 codes of the elements, in ``x``'s shape, and of the scales, and the scale
        of the tensor if the format has one.

    Raises:
        TypeError: if ``x`` is not a dense float32 or float64 tensor.
        ValueError: if the axis does not exist or the name is unknown.

    Example:
        >>> encode_blocks(torch.tensor([0.3, 5.0, 40.0]), "mxfp4")
        BlockCodes(codes=tensor([0, 1, 6]), scales=tensor([130]), tensor_scale=None)

    References:
        OCP Microscaling Formats 1.0, sections 5 and 6.
    """
    check_carrier(x, "x")
    chosen = (
        rounding if isinstance(rounding, BlockRounding) else BlockRounding(rounding)
    )
    target, along = chosen.format, normalised_axis(axis, x.dim())
    base = as_seed(seed, generator) if chosen.stochastic else None
    refuse_unheld(target, x.dtype)
    code = block_code(chosen)
    elements, scales, second = kernels.quantize(x.detach(), code, along, base, offset)
    count = target.block_size
    broken = scales.isnan().repeat_interleave(count, along)
    broken = broken.narrow(along, 0, x.shape[along])
    return BlockCodes(
        encode(torch.where(broken, 0.0, elements), target.element),
        _encode_scales(scales, target.scale),
        None if target.tensor_scale is None else second,
    )


@overridable
def decode_blocks(
    blocks: BlockCodes,
    format: BlockFormat | str,
    axis: int = -1,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the values q s (and t) of codes in a block format.

    Contract:
        Exact, but for a tensor scale in float32, by which q s t is rounded once;
        values beyond the carrier's range are infinite.

    Args:
        blocks: codes of elements and scales, and the tensor's scale, as from
            `encode_blocks`.
        format: the `BlockFormat` or its name.
        axis: the dimension that was cut into blocks.
        dtype: carrier of the result, float32 or float64.

    Returns:
        Tensor of the elements' shape.

    Raises:
        TypeError: if codes are no integer tensors, a tensor scale no tensor, or
            ``dtype`` no carrier.
        ValueError: if a code is out of range, a scale negative, the number of scales
            does not fit, or a tensor scale is missing, not expected, or no
            non-negative value of its format.

    Example:
        >>> codes = encode_blocks(torch.tensor([0.3, 5.0, 40.0]), "mxfp4")
        >>> decode_blocks(codes, "mxfp4").tolist()
        [0.0, 4.0, 32.0]

    References:
        OCP Microscaling Formats 1.0, section 6.2.
    """
    target = block_format(format)
    codes, scales, second = blocks
    for what, given in (("codes", codes), ("scales", scales)):
        if not isinstance(given, Tensor):
            raise TypeError(
                f"{what} must be an integer tensor, got {type(given).__name__}"
            )
    if dtype not in CARRIERS:
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    along = normalised_axis(axis, codes.dim())
    wanted = [*codes.shape]
    wanted[along] = -(-wanted[along] // target.block_size)
    if list(scales.shape) != wanted:
        raise ValueError(
            f"elements {tuple(codes.shape)} in blocks of {target.block_size} along "
            f"axis {axis} have scales {tuple(wanted)}, got {tuple(scales.shape)}"
        )
    if (second is None) != (target.tensor_scale is None):
        raise ValueError(
            f"{target!r} has {'no' if target.tensor_scale is None else 'a'} tensor "
            f"scale, got {second!r}"
        )
    _check_tensor_scale(second, target.tensor_scale)
    refuse_unheld(target, dtype)
    quantized = kernels.Quantized(
        decode(codes, target.element, dtype=torch.float64),
        _decode_scales(scales, target.scale),
        torch.ones(()),
    )
    values = kernels.block_values(quantized, along, target.block_size, dtype)
    return values if second is None else with_tensor_scale(values, second)
