"""Codes of any width in bytes without gaps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..formats import Format
from ..table_rounding import TableFormat
from ._codec import as_coded
from ._overrides import overridable

_MOST_BITS, _MOST_SHORT_BITS = 32, 16
_GROUP = 8  # codes of b bits fill b bytes


def _width(bits: int | Format | TableFormat | str) -> int:
    """Return the width of a code in bits.

    Raises:
        TypeError: if it is neither an int nor a format.
        ValueError: if it is out of range.
    """
    width = bits if isinstance(bits, int) else as_coded(bits).bits
    if isinstance(bits, bool):
        raise TypeError(f"bits must be an int or a format, got {bits!r}")
    if not 1 <= width <= _MOST_BITS:
        raise ValueError(f"codes are packed in 1 to {_MOST_BITS} bits, got {width}")
    return width


def _check_codes(codes: Any, what: str) -> None:
    if not isinstance(codes, Tensor):
        raise TypeError(f"{what} must be an integer tensor, got {type(codes).__name__}")
    kind = codes.dtype
    if kind.is_floating_point or kind.is_complex or kind == torch.bool:
        name = str(kind).removeprefix("torch.")
        raise TypeError(f"{what} must be an integer tensor, got {name}")
    if codes.dim() == 0:
        raise ValueError(f"{what} must have a dimension along which they are packed")


@overridable
def pack(codes: Tensor, bits: int | Format | TableFormat | str) -> Tensor:
    """Return codes in bytes without gaps, row by row.

    Bit j of code i is bit (i bits + j) mod 8 of byte floor((i bits + j) / 8).

    Contract:
        Little-endian: the first code is in the lowest bits of the first byte, as in
        torch.float4_e2m1fn_x2. Each row of the last dimension begins with a byte of
        its own; the bits that are left over at its end are zero. `unpack` inverts.

    Args:
        codes: integer tensor with values in [0, 2^bits) and at least one dimension.
        bits: width of a code, 1 to 32, or the format whose codes they are.

    Returns:
        uint8 tensor; the last dimension n has become ceil(n bits / 8).

    Raises:
        TypeError: if ``codes`` is not an integer tensor, or ``bits`` neither an int
            nor a format.
        ValueError: if a code or the width is out of range.

    Example:
        >>> pack(torch.tensor([1, 2, 3]), 4).tolist()
        [33, 3]
        >>> pack(torch.tensor([64, 65, 127]), 7).tolist()
        [192, 224, 31]

    References:
        OCP Microscaling Formats 1.0 leaves the layout open; this is safetensors' F4.
    """
    width = _width(bits)
    _check_codes(codes, "codes")
    low, high = _extremes(codes)
    if low < 0 or high >> width:
        raise ValueError(
            f"codes of {width} bits are from 0 to {2**width - 1}, got values from "
            f"{low} to {high}"
        )
    if width == _GROUP:
        return codes.to(torch.uint8).contiguous()
    count = codes.shape[-1]
    groups = -(-count // _GROUP)
    wide: Tensor = codes.to(_lane(width))
    wide = torch.nn.functional.pad(wide, (0, groups * _GROUP - count))
    wide = wide.unflatten(-1, (groups, _GROUP))
    result = wide.new_zeros((*wide.shape[:-1], width))
    for place in range(_GROUP):
        for byte, shift in _bytes(place, width):
            part = wide[..., place]
            part = part << shift if shift > 0 else part >> -shift
            result[..., byte] |= part & 0xFF
    packed: Tensor = result.flatten(-2)[..., : _packed_size(count, width)]
    return packed.to(torch.uint8).contiguous()


@overridable
def unpack(
    packed: Tensor, bits: int | Format | TableFormat | str, count: int
) -> Tensor:
    """Return the codes that `pack` put into bytes.

    Args:
        packed: uint8 tensor with at least one dimension.
        bits: width of a code, 1 to 32, or the format whose codes they are.
        count: codes per row.

    Returns:
        int64 tensor; the last dimension is ``count``.

    Raises:
        TypeError: if ``packed`` is not a uint8 tensor or ``count`` not an int.
        ValueError: if the bytes of a row are not those of ``count`` codes, or bits
            that are left over are not zero.

    Example:
        >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), 4, 3).tolist()
        [1, 2, 3]
    """
    width = _width(bits)
    _check_codes(packed, "packed codes")
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed codes must be uint8, got {packed.dtype}")
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"count must be an int, got {count!r}")
    size = _packed_size(count, width)
    if count < 0 or packed.shape[-1] != size:
        raise ValueError(
            f"{count} codes of {width} bits fill {size} bytes, got {packed.shape[-1]}"
        )
    groups = -(-count // _GROUP)
    wide = packed.to(_lane(width))
    wide = torch.nn.functional.pad(wide, (0, groups * width - size))
    wide = wide.unflatten(-1, (groups, width))
    result = wide.new_zeros((*wide.shape[:-1], _GROUP))
    for place in range(_GROUP):
        for byte, shift in _bytes(place, width):
            part = wide[..., byte]
            result[..., place] |= part >> shift if shift > 0 else part << -shift
    codes: Tensor = result.flatten(-2) & ((1 << width) - 1)
    rest = packed[..., -1:].to(torch.int32) >> (count * width % 8 or 8)
    if bool(rest.any()):
        raise ValueError(
            f"the bits behind {count} codes of {width} bits are not zero: these are "
            "other codes, or more"
        )
    return codes[..., :count].to(torch.int64)


def _lane(width: int) -> torch.dtype:
    """Return an integer type for a code between bits of its neighbours."""
    return torch.int32 if width <= _MOST_SHORT_BITS else torch.int64


def _bytes(place: int, width: int) -> list[tuple[int, int]]:
    """Return the bytes of a group that a code reaches, and its shift in each."""
    first, last = place * width // 8, ((place + 1) * width - 1) // 8
    return [(byte, place * width - 8 * byte) for byte in range(first, last + 1)]


def _packed_size(count: int, width: int) -> int:
    return -(-count * width // 8)


def _extremes(codes: Tensor) -> tuple[int, int]:
    if codes.numel() == 0:
        return 0, 0
    low, high = codes.to(torch.int64).aminmax()  # not every type has it
    return int(low), int(high)
