"""Tensors in block formats as plain tensors: packed codes, packed scales."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _values
from ..arithmetic import BlockCodes, decode_blocks, pack, unpack
from ..block_rounding import BlockRounding
from ..formats import BlockFormat, block_format

__all__ = ["BLOCK_FIELDS", "parts_of", "restore_blocks", "store_blocks"]

BLOCK_FIELDS = {"format", "shape", "scales", "digest"}
_T = TypeVar("_T")
_CODES, _SCALES, _TENSOR_SCALE = ".codes", ".scales", ".tensor_scale"


def store_blocks(
    name: str, blocks: BlockCodes, format: BlockFormat
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors that hold the codes, and the description that reads them.

    Raises:
        ValueError: if the codes are not those of the format, or too wide to pack.
    """
    _check(blocks, format)
    stored = {
        name + _CODES: pack(blocks.codes.cpu().flatten(), format.element.bits),
        name + _SCALES: pack(blocks.scales.cpu().flatten(), format.scale_bits),
    }
    if blocks.tensor_scale is not None:
        stored[name + _TENSOR_SCALE] = blocks.tensor_scale.cpu().to(torch.float64)
    description = {
        "format": _values.to_json(BlockRounding(format)),
        "shape": list(blocks.codes.shape),
        "scales": list(blocks.scales.shape),
    }
    return stored, description | {"digest": _digest(description, stored)}


def parts_of(name: str, tensors: Mapping[str, _T]) -> dict[str, _T]:
    """Return those of a file's tensors that hold the tensor ``name``."""
    names = [name + suffix for suffix in (_CODES, _SCALES, _TENSOR_SCALE)]
    return {one: tensors[one] for one in names if one in tensors}


def restore_blocks(
    name: str, stored: Mapping[str, Tensor], description: Mapping[str, Any]
) -> tuple[BlockCodes, BlockFormat]:
    """Invert `store_blocks`.

    Raises:
        TypeError: if the description holds no block format or the tensors no bytes.
        ValueError: if the description does not fit the tensors, or one was changed.
    """
    for part in (name + _CODES, name + _SCALES):
        if part not in stored:
            raise ValueError(f"the metadata describe {part!r}, which the file has not")
    if description["digest"] != _digest(description, stored):
        raise ValueError(
            "the digest is not that of the format and the bytes: one of them was "
            "changed after the file was written"
        )
    parsed = _values.parse("input", description["format"])
    format = parsed.format if isinstance(parsed, BlockRounding) else parsed
    target = block_format(format)
    blocks = BlockCodes(
        _unpacked(stored[name + _CODES], target.element.bits, description["shape"]),
        _unpacked(stored[name + _SCALES], target.scale_bits, description["scales"]),
        stored.get(name + _TENSOR_SCALE),
    )
    _check(blocks, target)
    return blocks, target


def _unpacked(packed: Tensor, bits: int, shape: Any) -> Tensor:
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"no shape: {shape!r}")
    return unpack(packed, bits, torch.Size(shape).numel()).reshape(shape)


def _digest(description: Mapping[str, Any], stored: Mapping[str, Tensor]) -> str:
    """Return the digest of a description and the bytes that it gives a meaning."""
    meaning = [description[key] for key in ("format", "shape", "scales")]
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
    for name in sorted(stored):
        content = stored[name].contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()


def _check(blocks: BlockCodes, format: BlockFormat) -> None:
    """Refuse codes that have no values along any axis.

    Raises:
        ValueError: saying what does not fit.
    """
    for axis in range(blocks.codes.dim()):
        wanted = [*blocks.codes.shape]
        wanted[axis] = -(-wanted[axis] // format.block_size)
        if wanted == list(blocks.scales.shape):
            decode_blocks(blocks, format, axis, dtype=torch.float64)
            return
    raise ValueError(
        f"elements {tuple(blocks.codes.shape)} in blocks of {format.block_size} along "
        f"no axis have scales {tuple(blocks.scales.shape)}"
    )
