"""Integers of any width as dense bytes: bit t of item i is bit i width + t."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Eight items of w bits fill w bytes exactly, so rows of eight are packed alike.
_ROW = 8


def packed_bytes(count: int, width: int) -> int:
    """Return how many bytes ``count`` items of ``width`` bits need."""
    return -(-count * width // 8)


def pack_bits(items: Tensor, width: int) -> Tensor:
    """Return the lowest ``width`` bits of each item, one after the other.

    Args:
        items: int64 [m].
        width: bits of each, 0 to 64.

    Returns:
        uint8 [ceil(m width / 8)], the last byte filled up with zeros.

    Example:
        >>> pack_bits(torch.tensor([1, 2, 3]), 4).tolist()
        [33, 3]
    """
    rows = -(-items.numel() // _ROW)
    padded = items.new_zeros(rows * _ROW)
    padded[: items.numel()] = items
    if width < 64:
        padded &= (1 << width) - 1
    table = padded.view(rows, _ROW)
    packed = items.new_zeros(rows, width)
    for item, byte, shift in _overlaps(width):
        column = table[:, item]
        packed[:, byte] |= column << -shift if shift < 0 else column >> shift
    packed &= 0xFF
    return packed.flatten()[: packed_bytes(items.numel(), width)].to(torch.uint8)


def unpack_bits(packed: Tensor, width: int, count: int) -> Tensor:
    """Return the items of `pack_bits`.

    Args:
        packed: uint8 [ceil(count width / 8)].
        width: bits of each, 0 to 64.
        count: number of items.

    Returns:
        int64 [count].

    Example:
        >>> unpack_bits(torch.tensor([33, 3], dtype=torch.uint8), 4, 3).tolist()
        [1, 2, 3]
    """
    rows = -(-count // _ROW)
    padded = packed.new_zeros(rows * width)
    padded[: packed.numel()] = packed
    table = padded.view(rows, width).to(torch.int64)
    items = torch.zeros(rows, _ROW, dtype=torch.int64, device=packed.device)
    for item, byte, shift in _overlaps(width):
        column = table[:, byte]
        items[:, item] |= column >> -shift if shift < 0 else column << shift
    if width < 64:
        items &= (1 << width) - 1
    return items.flatten()[:count]


@functools.cache
def _overlaps(width: int) -> tuple[tuple[int, int, int], ...]:
    """Return (item, byte, s): byte holds bits s to s + 7 of the item."""
    return tuple(
        (item, byte, 8 * byte - item * width)
        for item in range(_ROW)
        for byte in range(item * width // 8, packed_bytes(item + 1, width))
    )
