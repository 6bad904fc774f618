"""Payloads as bytes: what a collective carries, and nothing that both ends know."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from ..arithmetic import decode, encode
from ..rounding import Rounding, as_rounding
from ._bits import pack_bits, packed_bytes, unpack_bits
from ._payload import Payload, PayloadKind

_LARGEST_INT32 = 2**31 - 1
_ALL_ONES = 0xFF


class IndexCoding(StrEnum):
    """How the indices of a sparse payload travel.

    ``packed``: ceil(log2 d) bits each, or one bit for each of the d entries where that
    is less. ``int32``: 32 bits each.
    """

    PACKED = "packed"
    INT32 = "int32"


@dataclass(frozen=True, kw_only=True)
class Wire:
    r"""The layout of one worker's payload in bytes.

    In this order, each part filled up with zero bits to whole bytes: the scale, if
    there is one, in the carrier; indices, or a bitmap of those that are there; values,
    as codes of their format, in the carrier, or as sign bits.

    .. math::
        k\,(b_\mathrm{val} + b_\mathrm{idx}) \text{ bits}, \qquad
        b_\mathrm{idx} = \lceil\log_2 d\rceil

    Contract:
        `unpack` restores every bit of what `pack` got. No header: both ends know the
        layout, and the number of entries, unless it varies; then `Exchange` sends it
        first. Bytes of all ones, which no finite payload has, mean a gradient that is
        not finite; where a payload could have them, a byte is added.

    Args:
        kind: of the payload.
        size: d.
        dtype: of the carrier.
        rounding: of the values, None if they travel in the carrier.
        scaled: whether there is a scale.
        indices: an `IndexCoding` or its name.

    Raises:
        ValueError: if int32 indices cannot count ``size`` entries.

    Example:
        >>> Wire(kind="sparse", size=2410, rounding="bfloat16").bytes(24)
        84
        >>> Wire(kind="sparse", size=2410, indices="int32").bytes(24)
        192
    """

    kind: PayloadKind
    size: int
    dtype: torch.dtype = torch.float32
    rounding: Rounding | None = None
    scaled: bool = False
    indices: IndexCoding = IndexCoding.PACKED

    def __post_init__(self) -> None:
        """Accept names; check that indices fit."""
        object.__setattr__(self, "kind", PayloadKind(self.kind))
        object.__setattr__(self, "indices", index_coding(self.indices))
        if self.rounding is not None:
            object.__setattr__(self, "rounding", as_rounding(self.rounding))
        if self.indices is IndexCoding.INT32 and self.size > _LARGEST_INT32 + 1:
            raise ValueError(
                f"int32 indices cannot count {self.size} entries: use indices='packed'"
            )

    @classmethod
    def of(cls, payload: Payload, indices: IndexCoding | str = "packed") -> Wire:
        """Return the layout for payloads like this one.

        Args:
            payload: of one worker.
            indices: how they travel.
        """
        return cls(
            kind=payload.kind,
            size=payload.size,
            dtype=payload.values.dtype,
            rounding=payload.rounding,
            scaled=payload.scale is not None,
            indices=index_coding(indices),
        )

    @property
    def value_bits(self) -> int:
        """Bits of a value."""
        if self.kind is PayloadKind.SIGN:
            return 1
        carrier = self.dtype.itemsize * 8
        if self.rounding is None:
            return carrier
        return min(self.rounding.format.bits, carrier)

    def bytes(self, entries: int) -> int:
        """Return the bytes of a payload.

        Args:
            entries: number of values, ``size`` for payloads that are not sparse.
        """
        return (
            self.scaled * self.dtype.itemsize
            + self._index_bytes(entries)
            + packed_bytes(entries, self.value_bits)
            + self._flagged
        )

    def _index_bytes(self, entries: int) -> int:
        if self.kind is not PayloadKind.SPARSE:
            return 0
        if self.indices is IndexCoding.INT32:
            return 4 * entries
        return min(packed_bytes(entries, self._width), packed_bytes(self.size, 1))

    def _has_bitmap(self, entries: int) -> bool:
        listed = packed_bytes(entries, self._width)
        return (
            self.indices is IndexCoding.PACKED and packed_bytes(self.size, 1) < listed
        )

    @property
    def _width(self) -> int:
        return (self.size - 1).bit_length()

    @property
    def _coded(self) -> bool:
        return self.rounding is not None and self.value_bits < self.dtype.itemsize * 8

    @property
    def _flagged(self) -> bool:
        """Whether bytes of all ones could be a finite payload."""
        if self.scaled or not (self._coded or self.kind is PayloadKind.SIGN):
            return False  # they are NaN
        if self.rounding is None or self.kind is PayloadKind.SIGN:
            return True
        target = self.rounding.format
        try:
            return math.isfinite(target.decode(2**target.bits - 1))
        except ValueError:  # a code that denotes nothing
            return False

    def pack(self, payload: Payload) -> Tensor:
        """Return the bytes of a payload.

        Args:
            payload: of one worker, with finite values.

        Returns:
            uint8 [`bytes`].

        Raises:
            ValueError: if the payload is not of this layout.
        """
        if Wire.of(payload, self.indices) != self or payload.values.dim() != 1:
            raise ValueError(
                f"the payload must be one vector of the layout {self}, got one of "
                f"{Wire.of(payload, self.indices)} with values of shape "
                f"{tuple(payload.values.shape)}"
            )
        parts = []
        if payload.scale is not None:
            parts.append(_raw(payload.scale.reshape(1)))
        if payload.indices is not None:
            parts.append(self._packed_indices(payload.indices))
        parts.append(self._packed_values(payload.values))
        if self._flagged:
            parts.append(payload.values.new_zeros(1, dtype=torch.uint8))
        return torch.cat(parts)

    def refusal(self, entries: int, device: torch.device | None = None) -> Tensor:
        """Return the bytes that say: this gradient is not finite.

        Args:
            entries: as in `bytes`.
            device: of the tensor.
        """
        return torch.full(
            (self.bytes(entries),), _ALL_ONES, dtype=torch.uint8, device=device
        )

    def unpack(self, packed: Tensor, entries: int) -> Payload | None:
        """Return the payload of `pack`.

        Args:
            packed: uint8 [`bytes`].
            entries: number of values.

        Returns:
            The payload, None for a `refusal`.

        Raises:
            ValueError: if the number of bytes is not that of so many entries.
        """
        if packed.numel() != self.bytes(entries):
            raise ValueError(
                f"a payload of {entries} entries has {self.bytes(entries)} bytes, got "
                f"{packed.numel()}"
            )
        if entries and bool((packed == _ALL_ONES).all()):
            return None
        lengths = [
            self.scaled * self.dtype.itemsize,
            self._index_bytes(entries),
            packed_bytes(entries, self.value_bits),
            int(self._flagged),
        ]
        scale, indices, values, _ = packed.split(lengths)
        return Payload(
            kind=self.kind,
            size=self.size,
            values=self._unpacked_values(values, entries),
            indices=self._unpacked_indices(indices, entries),
            scale=_typed(scale, self.dtype)[0] if self.scaled else None,
            rounding=self.rounding,
        )

    def _packed_indices(self, indices: Tensor) -> Tensor:
        if self.indices is IndexCoding.INT32:
            return _raw(indices.to(torch.int32))
        if not self._has_bitmap(indices.numel()):
            return pack_bits(indices, self._width)
        present = indices.new_zeros(self.size)
        present[indices] = 1
        return pack_bits(present, 1)

    def _unpacked_indices(self, packed: Tensor, entries: int) -> Tensor | None:
        if self.kind is not PayloadKind.SPARSE:
            return None
        if self.indices is IndexCoding.INT32:
            return _typed(packed, torch.int32).to(torch.int64)
        if not self._has_bitmap(entries):
            return unpack_bits(packed, self._width, entries)
        return unpack_bits(packed, 1, self.size).nonzero().flatten()

    def _packed_values(self, values: Tensor) -> Tensor:
        if self.kind is PayloadKind.SIGN:
            return pack_bits(values.signbit().to(torch.int64), 1)
        if self.rounding is None or not self._coded:
            return _raw(values)
        return pack_bits(encode(values, self.rounding.format), self.value_bits)

    def _unpacked_values(self, packed: Tensor, entries: int) -> Tensor:
        if self.kind is PayloadKind.SIGN:
            negative = unpack_bits(packed, 1, entries)
            return (1 - 2 * negative).to(self.dtype)
        if self.rounding is None or not self._coded:
            return _typed(packed, self.dtype)
        codes = unpack_bits(packed, self.value_bits, entries)
        return decode(codes, self.rounding.format, dtype=self.dtype)


def index_coding(value: IndexCoding | str) -> IndexCoding:
    """Return the coding of a name.

    Raises:
        ValueError: naming those that exist.
    """
    try:
        return IndexCoding(value)
    except ValueError:
        raise ValueError(
            f"indices must travel 'packed' or as 'int32', got {value!r}"
        ) from None


def _raw(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def _typed(packed: Tensor, dtype: torch.dtype) -> Tensor:
    # A view needs an aligned start, which a part of a message need not have.
    return packed.clone().view(dtype)
