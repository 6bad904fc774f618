"""Bit patterns of tensors: integer codes of a format's values and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..formats import Format, decode_value, encode_value
from ..formats import format as as_format
from ..kernels.portable import CARRIERS
from ..rounding import Rounding
from ._round import apply, check_carrier

_WIDEST_CODE = 63


def _check_width(target: Format) -> None:
    if target.bits > _WIDEST_CODE and target != as_format("binary64"):
        raise NotImplementedError(
            f"codes of {target.bits} bits do not fit int64 tensors; encode single "
            "numbers with Format.encode"
        )


def encode(x: Tensor, format: Format | str) -> Tensor:
    """Return the integer codes of a tensor whose elements are values of a format.

    code = sign 2^(bits-1) + (max(e, emin) - emin) 2^(p-1) + |x| / 2^q with quantum 2^q;
    infinity and NaN have the codes of the format's encoding.

    Contract:
        Exact inverse of `decode`. Every NaN becomes the format's quiet NaN.

    Args:
        x: float32 or float64 tensor of any shape.
        format: a `Format` or its name.

    Returns:
        int64 tensor of ``x``'s shape.

    Raises:
        TypeError: if ``x`` is not a float32 or float64 tensor.
        ValueError: if an element is not a value of the format: round first.

    Example:
        >>> encode(torch.tensor([1.0, -448.0]), "e4m3fn").tolist()
        [56, 254]

    References:
        IEEE 754-2019 section 3.4; OCP 8-bit floating point specification 1.0.
    """
    check_carrier(x, "x")
    target = as_format(format)
    _check_width(target)
    _check_members(x, target)
    x = x.detach().to(torch.float64)
    carrier = CARRIERS[torch.float64]
    emin = int(target.emin or 0)
    _, exponent = torch.frexp(x.abs())
    binade = (exponent.to(torch.int64) - 1).clamp(min=emin)
    shift = target.precision - 1 - binade
    # Two exact scalings: one factor alone may leave the float64 range.
    half = shift // 2
    counted = torch.ldexp(torch.ldexp(x.abs(), half), shift - half)
    finite = x.isfinite()
    quanta = torch.where(finite, counted, 0.0).to(torch.int64)
    code = ((binade - emin) << (target.precision - 1)) + quanta
    code = torch.where((x == 0) | ~finite, 0, code)
    if target.infinities:
        code = torch.where(x.isinf(), target.encode(math.inf), code)
    if target.signed:
        negative = (x.view(carrier.integer) < 0) & ~x.isnan()
        code = code + negative.to(torch.int64) * _sign_bit(target)
    if target.nans:
        code = torch.where(x.isnan(), _wrapped(target.encode(math.nan)), code)
    return code


def _sign_bit(target: Format) -> int:
    return _wrapped(1 << (target.bits - 1))


def _wrapped(code: int) -> int:
    """Return a 64-bit code as the int64 with the same bits."""
    return code - 2**64 if code >= 2**63 else code


def _check_members(x: Tensor, target: Format) -> None:
    rounded = apply(x.detach(), Rounding(target), None, 0)
    same = (rounded == x) & ((x != 0) | (rounded.signbit() == x.signbit()))
    if target.nans:
        same = same | x.isnan()
    if not bool(same.all()):
        first = x.detach()[~same].flatten()[0].item()
        raise ValueError(
            f"{int((~same).sum())} of {x.numel()} elements are not values of "
            f"{target.name or target!r}, the first is {first!r}: round the tensor first"
        )


def _fits(target: Format, dtype: torch.dtype) -> bool:
    """Whether a carrier holds every value of the format."""
    carrier = CARRIERS[dtype]
    lowest = 2 - carrier.bias - carrier.precision
    return (
        target.precision <= carrier.precision
        and target.emax <= carrier.bias
        and int(target.emin or 0) - target.precision + 1 >= lowest
    )


def decode(
    codes: Tensor, format: Format | str, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the values of integer codes of a format.

    Contract:
        Exact; NaN codes become NaN, infinity codes infinity, codes of -0 become -0.
        Codes of 64 bits are int64 with the same bits.

    Args:
        codes: integer tensor with values in [0, 2^bits).
        format: a `Format` or its name.
        dtype: carrier of the result, float32 or float64; None takes float32 where it
            holds every value of the format, else float64.

    Returns:
        Tensor of ``codes``' shape.

    Raises:
        TypeError: if ``codes`` is not an integer tensor or ``dtype`` not a carrier.
        ValueError: if a code is out of range or denotes nothing, or the carrier
            cannot hold the values.

    Example:
        >>> decode(torch.tensor([56, 254]), "e4m3fn").tolist()
        [1.0, -448.0]

    References:
        As `encode`.
    """
    if not isinstance(codes, Tensor):
        raise TypeError(f"codes must be an integer tensor, got {type(codes).__name__}")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        name = str(codes.dtype).removeprefix("torch.")
        raise TypeError(f"codes must be an integer tensor, got {name}")
    target = as_format(format)
    _check_width(target)
    if not _fits(target, torch.float64):
        raise ValueError(
            f"float64 cannot hold every value of {target.name or target!r}: decode "
            "single codes with Format.decode"
        )
    if dtype is None:
        dtype = torch.float32 if _fits(target, torch.float32) else torch.float64
    codes = codes.to(torch.int64)
    if target.bits < 64 and bool(((codes < 0) | (codes >> target.bits != 0)).any()):
        limit = 2**target.bits - 1
        raise ValueError(
            f"codes of {target.name or target!r} are from 0 to {limit}, got values "
            f"from {int(codes.min())} to {int(codes.max())}"
        )
    precision, emin = target.precision, int(target.emin or 0)
    sign_bit = _sign_bit(target) if target.signed else 0
    negative = (codes & sign_bit) != 0
    magnitude = codes & ((1 << (target.bits - int(target.signed))) - 1)
    field = magnitude >> (precision - 1)
    fraction = magnitude & ((1 << (precision - 1)) - 1)
    significand = torch.where(field > 0, fraction + (1 << (precision - 1)), fraction)
    exponent = field.clamp(min=1) - 1 + emin - (precision - 1)
    value = significand.to(torch.float64)
    half = exponent // 2
    value = torch.ldexp(torch.ldexp(value, half), exponent - half)
    largest = target.encode(target.max) & (
        (1 << (target.bits - int(target.signed))) - 1
    )
    special = magnitude > largest
    if target.infinities:
        infinity = target.encode(math.inf)
        value = torch.where(magnitude == infinity, math.inf, value)
        special = special & (magnitude != infinity)
    value = torch.where(negative, -value, value)
    if not target.signed_zero:
        special = special | (negative & (magnitude == 0))
    if not target.nans and bool(special.any()):
        raise ValueError(
            f"code {int(codes[special].flatten()[0])} denotes no value of "
            f"{target.name or target!r}"
        )
    empty = (field == 0) & (fraction != 0)
    if not target.subnormals and bool(empty.any()):
        raise ValueError(
            f"code {int(codes[empty].flatten()[0])} denotes no value of "
            f"{target.name or target!r}, which has no subnormals"
        )
    value = torch.where(special, math.nan, value)
    if dtype not in CARRIERS:
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    result = value.to(dtype)
    if not bool(((result == value) | value.isnan()).all()):
        raise ValueError(
            f"float32 cannot hold every value of {target.name or target!r}: "
            "use dtype=torch.float64"
        )
    return result


# `Format.encode` and `Format.decode` know no torch; they learn of tensors here.
encode_value.register(Tensor, encode)
decode_value.register(Tensor, decode)
