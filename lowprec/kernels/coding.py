"""Integer codes of a format's values: portable and C++ kernels, one operation each.

The code of |x| is (max(e, emin) - emin) 2^(p-1) + |x| / q with the quantum q, so codes
are ordered as the values are; the sign is the highest bit. Posits have the two's
complement of a code whose exponent is behind a regime. Operands have been checked:
`lowprec.arithmetic.encode` and `decode` say what is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native_coding
from ._library import native_serves
from .portable import CARRIERS
from .tapered import decode_tapered, encode_tapered


class Encoding(NamedTuple):
    """How values are written as codes, as nine integers.

    Those of posits are 0 but for `bits`, `signed`, `nan`, and es in place of `emin`.

    Args:
        precision: significant bits p.
        emin: exponent of the smallest normal number.
        bits: width of a code.
        signed: 1 if the highest bit is the sign.
        signed_zero: 1 if the code of -0 denotes it.
        subnormals: 1 if codes below that of 2^emin denote numbers.
        largest: code of the largest finite value.
        infinity: code of infinity, -1 if there is none.
        nan: code of the quiet NaN as int64, -1 if there is none.
    """

    precision: int
    emin: int
    bits: int
    signed: int
    signed_zero: int
    subnormals: int
    largest: int
    infinity: int
    nan: int

    @property
    def tapered(self) -> bool:
        """Whether the codes are posits."""
        return self.precision == 0

    @property
    def wide(self) -> bool:
        """Whether binary32 is too short for a significand or for what stands for it.

        Exponents of a posit's bits as a number tell its regime.
        """
        return (
            self.bits > 32 or self.precision > 24 or (self.tapered and self.bits > 24)
        )

    @property
    def sign(self) -> int:
        """The sign bit, as the int64 with that bit."""
        if not self.signed:
            return 0
        return -(2**63) if self.bits == 64 else 1 << (self.bits - 1)

    @property
    def magnitudes(self) -> int:
        """All bits but the sign."""
        return (1 << (self.bits - self.signed)) - 1


def portable_encode(x: Tensor, encoding: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the codes of values of the format, by torch operations on any device."""
    code = Encoding(*encoding)
    if code.tapered:
        return encode_tapered(x, code.bits, code.emin, CARRIERS[x.dtype]).to(dtype)
    negative = x.view(CARRIERS[x.dtype].integer) < 0
    x = x.to(torch.float64)
    size = x.abs()
    _, exponent = torch.frexp(size)
    binade = (exponent.to(torch.int64) - 1).clamp(min=code.emin)
    shift = code.precision - 1 - binade
    # Two exact scalings: one factor alone may leave the float64 range.
    half = shift // 2
    counted = torch.ldexp(torch.ldexp(size, half), shift - half)
    finite = x.isfinite()
    quanta = torch.where(finite, counted, 0.0).to(torch.int64)
    result = ((binade - code.emin) << (code.precision - 1)) + quanta
    result = torch.where((x == 0) | ~finite, 0, result)
    result = torch.where(x.isinf(), code.infinity, result)
    result = result + negative * code.sign
    return torch.where(x.isnan(), code.nan, result).to(dtype)


def portable_decode(
    codes: Tensor, encoding: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """Return the values of codes, NaN for those that denote none."""
    code = Encoding(*encoding)
    codes = codes.to(torch.int64)
    if code.tapered:
        carrier = CARRIERS[dtype]
        bits = decode_tapered(codes, code.bits, code.emin, carrier)
        return bits.to(carrier.integer).view(dtype)
    negative = (codes & code.sign) != 0
    magnitude = codes & code.magnitudes
    field = magnitude >> (code.precision - 1)
    stored = magnitude & ((1 << (code.precision - 1)) - 1)
    significand = torch.where(field > 0, stored + (1 << (code.precision - 1)), stored)
    special = magnitude > code.largest
    exponent = field.clamp(min=1) + (code.emin - code.precision)
    exponent = torch.where(special, 0, exponent)
    half = exponent // 2
    value = torch.ldexp(significand.to(torch.float64), half)
    value = torch.ldexp(value, exponent - half)
    infinite = (magnitude == code.infinity) & (code.infinity >= 0)
    value = torch.where(infinite, math.inf, value)
    value = torch.where(negative, -value, value)
    undefined = special & ~infinite
    if not code.signed_zero:
        undefined = undefined | (negative & (magnitude == 0))
    if not code.subnormals:
        undefined = undefined | ((field == 0) & (stored != 0))
    return torch.where(undefined, math.nan, value).to(dtype)


def _encode_on_cpu(x: Tensor, encoding: Sequence[int], dtype: torch.dtype) -> Tensor:
    code = Encoding(*encoding)
    if not native_serves():
        return portable_encode(x, encoding, dtype)
    if x.dtype == torch.float32 and code.wide:
        x = x.double()
    return native_coding.encode(x, code, dtype)


def _decode_on_cpu(
    codes: Tensor, encoding: Sequence[int], dtype: torch.dtype
) -> Tensor:
    code = Encoding(*encoding)
    if not native_serves():
        return portable_decode(codes, encoding, dtype)
    wide = dtype == torch.float64 or code.wide
    result = native_coding.decode(codes, code, torch.float64 if wide else torch.float32)
    return result.to(dtype)


_LIBRARY = torch.library.Library("lowprec", "FRAGMENT")
_LIBRARY.define("encode(Tensor x, int[] encoding, ScalarType dtype) -> Tensor")
_LIBRARY.define("decode(Tensor codes, int[] encoding, ScalarType dtype) -> Tensor")


def _contiguous(kernel: Any) -> Any:
    """Give a kernel contiguous tensors, so that results are what the fakes promise."""

    def call(x: Tensor, encoding: Sequence[int], dtype: torch.dtype) -> Tensor:
        result: Tensor = kernel(x.contiguous(), encoding, dtype)
        return result

    return call


_LIBRARY.impl("encode", _contiguous(portable_encode), "CompositeExplicitAutograd")
_LIBRARY.impl("decode", _contiguous(portable_decode), "CompositeExplicitAutograd")
_LIBRARY.impl("encode", _contiguous(_encode_on_cpu), "CPU")
_LIBRARY.impl("decode", _contiguous(_decode_on_cpu), "CPU")


def _fake(x: Tensor, encoding: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)


for _name in ("encode", "decode"):
    _LIBRARY.impl(_name, _fake, "Meta")  # for fake tensors too

encode = torch.ops.lowprec.encode.default
decode = torch.ops.lowprec.decode.default


@torch.library.register_vmap("lowprec::encode", lib=_LIBRARY)
def _encode_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    encoding: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, int]:
    return encode(x, encoding, dtype), in_dims[0]


@torch.library.register_vmap("lowprec::decode", lib=_LIBRARY)
def _decode_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    codes: Tensor,
    encoding: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, int]:
    return decode(codes, encoding, dtype), in_dims[0]
