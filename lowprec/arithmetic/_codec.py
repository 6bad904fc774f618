"""Bit patterns of tensors: integer codes of a format's values and back."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .. import kernels
from ..formats import BlockFormat, Format, Levels, Posit, table_format
from ..formats import format as as_format
from ..kernels.portable import CARRIERS
from ..rounding import as_scalar_rounding
from ..table_rounding import TableFormat
from ._block import holds
from ._round import apply, check_carrier
from ._table import decode_table, encode_table
from ._table import fits as table_fits

_WIDEST_CODE = 63


def _check_width(target: Format) -> None:
    """Refuse codes that have no tensors.

    Raises:
        NotImplementedError: beyond 63 bits, but for binary64's.
    """
    if target.bits <= _WIDEST_CODE or target == as_format("binary64"):
        return
    if target.bits == 64 and target.encoding == "integer":
        raise NotImplementedError(
            f"{target.name or target!r} has values that float64 does not hold: encode "
            "and decode single numbers with Format.encode and Format.decode"
        )
    raise NotImplementedError(
        f"codes of {target.bits} bits do not fit int64 tensors; encode single "
        "numbers with Format.encode"
    )


_INTEGERS = {
    torch.uint8: 8,
    torch.int16: 15,
    torch.uint16: 16,
    torch.int32: 31,
    torch.uint32: 32,
    torch.int64: 64,
}

# With the bits of torch's own dtypes.
_UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.int64}


@functools.lru_cache(maxsize=256)
def _encoding(target: Format) -> kernels.Encoding:
    magnitudes = (1 << (target.bits - int(target.signed))) - 1
    offset = _offset(target)
    return kernels.Encoding(
        precision=target.precision,
        emin=int(target.emin or 0),
        bits=target.bits + (offset > 0),
        signed=int(target.signed),
        signed_zero=int(target.signed_zero),
        subnormals=int(target.subnormals),
        largest=(target.encode(target.max) & magnitudes) + offset,
        infinity=target.encode(math.inf) if target.infinities else -1,
        nan=_wrapped(target.encode(math.nan) + offset) if target.nans else -1,
    )


def _offset(target: Format) -> int:
    """Return what the kernels' codes of magnitudes are above those of the format.

    They count from a field of subnormals, which ``"normal"`` encodings do without.
    """
    return 1 << (target.precision - 1) if target.encoding == "normal" else 0


def _coded(x: Tensor, target: Format, dtype: torch.dtype) -> Tensor:
    """Return the codes of values of a format."""
    if target.encoding == "integer":
        quanta = (x / float(target.smallest_subnormal)).to(torch.int64)
        return (quanta & ((1 << target.bits) - 1)).to(dtype)
    encoding, offset = _encoding(target), _offset(target)
    if not offset:
        coded: Tensor = kernels.encode(x, list(encoding), dtype)
        return coded
    codes: Tensor = kernels.encode(x, list(encoding), torch.int64)
    sign, magnitude = codes & encoding.sign, codes & encoding.magnitudes
    magnitude = torch.where(magnitude == 0, 0, magnitude - offset)
    return torch.where(sign != 0, magnitude + (encoding.sign >> 1), magnitude).to(dtype)


def _values(codes: Tensor, target: Format, dtype: torch.dtype) -> Tensor:
    """Return the values of codes, NaN for those that denote none."""
    if target.encoding == "integer":
        count, sign = codes.to(torch.int64), 1 << (target.bits - 1)
        if target.signed:
            count = (count ^ sign) - sign
        value = count.to(torch.float64) * float(target.smallest_subnormal)
        return value.to(dtype)
    encoding, offset = _encoding(target), _offset(target)
    if offset:
        codes = codes.to(torch.int64)
        half = encoding.sign >> 1
        magnitude = codes & ~half
        zero = (magnitude == 0) & target.zero
        codes = torch.where(zero, 0, magnitude + offset) + 2 * (codes & half)
    result: Tensor = kernels.decode(codes, list(encoding), dtype)
    return result


def as_coded(format: Format | TableFormat | str) -> Format | TableFormat:
    """Return the set of numbers whose codes are meant.

    Raises:
        TypeError: if it is neither one nor a name.
        ValueError: if the name is unknown.
    """
    if isinstance(format, (Posit, Levels)):
        return format
    table = table_format(format) if isinstance(format, str) else None
    return as_format(format) if table is None else table


def _check_integer(dtype: torch.dtype, target: Format | TableFormat) -> None:
    if dtype not in _INTEGERS:
        allowed = ", ".join(str(one) for one in _INTEGERS)
        raise TypeError(
            f"dtype must be one of {allowed}, or torch's own for the format; "
            f"{target.name or target!r} is not {dtype}"
        )
    if target.bits > 64:
        raise NotImplementedError(
            f"codes of {target.bits} bits are beyond tensors, which hold 64: encode "
            "numbers one by one"
        )
    if target.bits > _INTEGERS[dtype]:
        raise ValueError(
            f"{dtype} cannot hold codes of {target.bits} bits: torch.int64 can"
        )


def encode(
    x: Tensor, format: Format | TableFormat | str, *, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Return the integer codes of a tensor whose elements are values of a format.

    code = sign 2^(bits-1) + (max(e, emin) - emin) 2^(p-1) + |x| / 2^q with quantum 2^q;
    infinity and NaN have the codes of the format's encoding. Fixed point has the code
    x / 2^q modulo 2^bits.

    Contract:
        Exact inverse of `decode`. Every NaN becomes the format's quiet NaN.

    Args:
        x: float32 or float64 tensor of any shape.
        format: a `Format`, a `Posit`, the name of one, or `Levels`, whose codes are
            their numbers from 0.
        dtype: integer type of the codes, one that holds 0 to 2^bits - 1; or torch's own
            dtype of the format, such as torch.float8_e4m3fn, torch.float32 or
            torch.int8, as which the codes are viewed; torch.float4_e2m1fn_x2 holds
            pairs along the last dimension.

    Returns:
        Tensor of ``dtype`` and of ``x``'s shape, but for pairs.

    Raises:
        TypeError: if ``x`` is not a float32 or float64 tensor, or ``dtype`` neither an
            integer type nor the format's own.
        ValueError: if an element is not a value of the format: round first; or
            ``dtype`` is too narrow for the codes.
        NotImplementedError: for codes of more than 63 bits, but for binary64's, whose
            codes are int64 with the same bits.

    Example:
        >>> encode(torch.tensor([1.0, -448.0]), "e4m3fn").tolist()
        [56, 254]

    References:
        IEEE 754-2019 section 3.4; OCP 8-bit floating point specification 1.0.
    """
    check_carrier(x, "x")
    target = as_coded(format)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if _is_own(dtype, target):
        return _viewed(x, target, dtype)
    return _encoded(x, target, dtype)


def _is_own(dtype: torch.dtype, target: Format | TableFormat) -> bool:
    """Whether a dtype is torch's own for a format."""
    if dtype == torch.float4_e2m1fn_x2:
        return target == as_format("e2m1fn")
    return isinstance(target, Format) and str(dtype) == f"torch.{target.dtype}"


def _viewed(x: Tensor, target: Format | TableFormat, dtype: torch.dtype) -> Tensor:
    """Return codes as elements of torch's own dtype for a format."""
    if dtype == torch.float4_e2m1fn_x2:
        if x.dim() == 0 or x.shape[-1] % 2:
            raise ValueError(
                f"{dtype} holds pairs of elements: the last dimension must be even, "
                f"got shape {tuple(x.shape)}"
            )
        low, high = _encoded(x, target, torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
        pairs: Tensor = low | high << 4
        return pairs.view(dtype)
    return _encoded(x, target, _UNSIGNED[dtype.itemsize]).view(dtype)


def _encoded(x: Tensor, target: Format | TableFormat, dtype: torch.dtype) -> Tensor:
    _check_integer(dtype, target)
    x = x.detach()
    if isinstance(target, Format):
        _check_width(target)
        _check_members(x, target, target.nans)
        return _coded(x, target, dtype)
    x = x if fits(target, x.dtype) else x.to(torch.float64)
    _check_members(x, target, isinstance(target, Posit))
    return encode_table(x.contiguous(), target, dtype)


def _wrapped(code: int) -> int:
    """Return a 64-bit code as the int64 with the same bits."""
    return code - 2**64 if code >= 2**63 else code


def _check_members(x: Tensor, target: Format | TableFormat, nans: bool) -> None:
    """Refuse what rounding changes, but for bits of NaN where there are ``nans``."""
    rounded = apply(x, as_scalar_rounding(target), None, 0)
    integer = CARRIERS[x.dtype].integer
    kept = torch.equal(rounded.view(integer), x.contiguous().view(integer))
    if kept and (nans or not bool(x.isnan().any())):
        return
    same = (rounded == x) & ((x != 0) | (rounded.signbit() == x.signbit()))
    if nans:
        same = same | x.isnan()
    if not bool(same.all()):
        first = x[~same].flatten()[0].item()
        raise ValueError(
            f"{int((~same).sum())} of {x.numel()} elements are not values of "
            f"{target.name or target!r}, the first is {first!r}: round the tensor first"
        )


def fits(target: Format | BlockFormat | TableFormat, dtype: torch.dtype) -> bool:
    """Whether a carrier holds every value of the format."""
    if isinstance(target, (Posit, Levels)):
        return table_fits(target, dtype)
    if isinstance(target, BlockFormat):
        return holds(target, dtype)
    carrier = CARRIERS[dtype]
    lowest = 2 - carrier.bias - carrier.precision
    return (
        target.precision <= carrier.precision
        and target.emax + target.asymmetric <= carrier.bias
        and int(target.emin or 0) - target.precision + 1 >= lowest
    )


def decode(
    codes: Tensor,
    format: Format | TableFormat | str,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the values of integer codes of a format.

    Contract:
        Exact; NaN codes become NaN, infinity codes infinity, codes of -0 become -0.
        Codes of 64 bits are int64 with the same bits.

    Args:
        codes: integer tensor with values in [0, 2^bits), or a tensor of torch's own
            dtype of the format, such as torch.float8_e4m3fn or torch.int8.
        format: a `Format`, a `Posit`, the name of one, or `Levels`.
        dtype: carrier of the result, float32 or float64; None takes float32 where it
            holds every value of the format, else float64.

    Returns:
        Tensor of ``codes``' shape.

    Raises:
        TypeError: if ``codes`` is not an integer tensor or ``dtype`` not a carrier.
        ValueError: if a code is out of range or denotes nothing, or the carrier
            cannot hold the values.
        NotImplementedError: as `encode`.

    Example:
        >>> decode(torch.tensor([56, 254]), "e4m3fn").tolist()
        [1.0, -448.0]

    References:
        As `encode`.
    """
    if not isinstance(codes, Tensor):
        raise TypeError(f"codes must be an integer tensor, got {type(codes).__name__}")
    target = as_coded(format)
    codes = plain_codes(codes, target)
    if dtype is None:
        dtype = torch.float32 if fits(target, torch.float32) else torch.float64
    if dtype not in CARRIERS:
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if not isinstance(target, Format):
        _check_range(codes, target)
        return decode_table(codes, target, dtype)
    _check_width(target)
    if not fits(target, torch.float64):
        raise ValueError(
            f"float64 cannot hold every value of {target.name or target!r}: decode "
            "single codes with Format.decode"
        )
    _check_range(codes, target)
    exact = dtype if fits(target, dtype) else torch.float64
    value = _values(codes, target, exact)
    if target.encoding != "integer" and not (target.nans and target.subnormals):
        _check_meanings(codes, value, target)
    result = value.to(dtype)
    if exact != dtype and not bool(((result == value) | value.isnan()).all()):
        raise ValueError(
            f"float32 cannot hold every value of {target.name or target!r}: "
            "use dtype=torch.float64"
        )
    return result


def plain_codes(codes: Tensor, target: Format | TableFormat) -> Tensor:
    """Return the integers behind elements of torch's own dtype for a format.

    Raises:
        TypeError: if the dtype is another one.
    """
    kind = codes.dtype
    if _is_own(kind, target):
        plain = codes.view(_UNSIGNED[kind.itemsize])
        if kind != torch.float4_e2m1fn_x2:
            return plain
        return torch.stack([plain & 15, plain >> 4], -1).flatten(-2)
    if kind.is_floating_point or kind.is_complex or kind == torch.bool:
        name = str(kind).removeprefix("torch.")
        raise TypeError(
            f"codes must be an integer tensor, or one of torch's own dtype for the "
            f"format, got {name}"
        )
    return codes


def _check_range(codes: Tensor, target: Format | TableFormat) -> None:
    """Refuse integers that are no codes at all."""
    limit = 2**target.bits - 1
    if isinstance(target, Levels):
        limit = len(target) - 1
    held = torch.iinfo(codes.dtype)
    if target.bits == 64 or codes.numel() == 0 or 0 <= held.min < held.max <= limit:
        return
    # Not every operation knows the unsigned types.
    low, high = (int(bound) for bound in codes.to(torch.int64).aminmax())
    if low < 0 or high > limit:
        raise ValueError(
            f"codes of {target.name or target!r} are from 0 to {limit}, got values "
            f"from {low} to {high}"
        )


def _check_meanings(codes: Tensor, value: Tensor, target: Format) -> None:
    """Refuse codes that denote nothing, which the kernels decode to NaN."""
    unknown = codes[value.isnan()].to(torch.int64)
    if unknown.numel() == 0:
        return
    code = _encoding(target)
    magnitude = unknown & code.magnitudes
    stored = magnitude & ((1 << (code.precision - 1)) - 1)
    empty = (magnitude == stored) & (stored != 0) & (target.encoding != "normal")
    if not target.nans and bool((~empty | target.subnormals).any()):
        first = unknown[~empty | target.subnormals][0]
        raise ValueError(
            f"code {int(first)} denotes no value of {target.name or target!r}"
        )
    if not target.subnormals and bool(empty.any()):
        raise ValueError(
            f"code {int(unknown[empty][0])} denotes no value of "
            f"{target.name or target!r}, which has no subnormals"
        )
