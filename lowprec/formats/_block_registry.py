"""Known block formats: their names and aliases."""

from __future__ import annotations

import difflib
from typing import Any

from ._block import BlockFormat
from ._format import Format
from ._peers import from_peer

__all__ = [
    "KNOWN_BLOCKS",
    "block_aliases",
    "block_format",
    "block_formats",
    "is_block_name",
]

# Without the most negative number, which has no counterpart: OCP allows to leave it
# unused.
_INT8 = Format.fixed_point(8, 6, symmetric=True, name="int8 (6 fraction bits)")


def _msfp(total: int) -> BlockFormat:
    """Return Brainwave's format: sign, total - 9 magnitude bits, 8 shared bits."""
    plain = BlockFormat.fixed_point(total - 8, 16)
    return plain.replace(name=f"msfp{total}")


_TABLE: tuple[tuple[BlockFormat, tuple[str, ...]], ...] = (
    (BlockFormat("e4m3fn", name="mxfp8_e4m3"), ("mxfp8",)),
    (BlockFormat("e5m2", name="mxfp8_e5m2"), ()),
    (BlockFormat("e3m2fn", name="mxfp6_e3m2"), ("mxfp6",)),
    (BlockFormat("e2m3fn", name="mxfp6_e2m3"), ()),
    (BlockFormat("e2m1fn", name="mxfp4"), ("mxfp4_e2m1",)),
    (BlockFormat(_INT8, name="mxint8"), ()),
    (BlockFormat("e2m1fn", "e4m3fn", 16, "nv", "binary32", "nvfp4"), ()),
    *((_msfp(total), ()) for total in range(11, 17)),
)

KNOWN_BLOCKS: dict[str, BlockFormat] = {
    one.name: one for one, _ in _TABLE if one.name is not None
}
_NAMES = KNOWN_BLOCKS | {alias: one for one, aliases in _TABLE for alias in aliases}


def is_block_name(name: str) -> bool:
    """Return whether a name is that of a known block format."""
    return name.strip().lower() in _NAMES


def block_aliases(name: str) -> tuple[str, ...]:
    """Return the other names of a known block format."""
    return next((aliases for one, aliases in _TABLE if one.name == name), ())


def block_formats() -> tuple[BlockFormat, ...]:
    """Return the known block formats.

    Returns:
        The formats: MX, NVFP4, MSFP.

    Example:
        >>> [one.name for one in block_formats() if one.block_size == 16][:2]
        ['nvfp4', 'msfp11']

    References:
        OCP Microscaling Formats 1.0; Rouhani et al. 2020; NVIDIA 2025.
    """
    return tuple(KNOWN_BLOCKS.values())


def block_format(obj: Any) -> BlockFormat:
    """Return the block format that a name or a block format stands for.

    Contract:
        A pure function; names are case-insensitive; a `BlockFormat` is returned
        unchanged.

    Args:
        obj: a `BlockFormat`, or a name such as ``"mxfp8_e4m3"``, ``"mxfp4"``,
            ``"nvfp4"`` or ``"msfp12"``.

    Returns:
        The block format.

    Raises:
        TypeError: if ``obj`` is neither.
        ValueError: if the name is unknown, or for QPyTorch's block floating point,
            whose blocks are tensors or slices and have no size.

    Example:
        >>> block_format("mxfp6_e2m3").scale
        SharedExponent(bits=8)

    References:
        OCP Microscaling Formats 1.0.
    """
    if isinstance(obj, BlockFormat):
        return obj
    if not isinstance(obj, str):
        from_peer(obj)  # which says of QPyTorch's what they lack
        raise TypeError(
            "a block format is a BlockFormat or a name such as 'mxfp8_e4m3'; "
            f"got {obj!r} of type {type(obj).__name__}"
        )
    name = obj.strip().lower()
    if name in _NAMES:
        return _NAMES[name]
    near = difflib.get_close_matches(name, _NAMES, n=3, cutoff=0.6)
    suggestion = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(
        f"unknown block format {obj!r}: {suggestion}known are "
        f"{', '.join(map(repr, KNOWN_BLOCKS))}; build others with "
        "BlockFormat(element, scale, block_size)"
    )
