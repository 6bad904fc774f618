"""Tensors in any format in safetensors files: packed codes, the format as metadata.

safetensors is imported when a file is saved or loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .. import _values
from ..arithmetic import BlockCodes, decode, encode, fits, pack, unpack
from ..formats import (
    BlockFormat,
    Format,
    Levels,
    Posit,
    block_format,
    is_block_name,
    table_format,
)
from ..formats import format as as_format
from ..table_rounding import TableFormat
from ._stored_blocks import BLOCK_FIELDS, parts_of, restore_blocks, store_blocks

__all__ = ["Loaded", "load_file", "save_file"]

_KEY = "lowprec"
_VERSION = 1
_FIELDS = {"format", "shape", "carrier", "digest"}
_CARRIERS = {"float32": torch.float32, "float64": torch.float64}

_INTEGERS = {32: torch.int32, 64: torch.int64}  # with the bits of wide dtypes

AnyFormat: TypeAlias = "Format | TableFormat"
Path: TypeAlias = "str | os.PathLike[str]"


class Loaded(NamedTuple):
    """What `load_file` found.

    Args:
        tensors: all tensors of the file; those in a format as values in their carrier,
            those in a block format as the codes of their elements and scales.
        formats: the formats of those that have one.
    """

    tensors: dict[str, Tensor | BlockCodes]
    formats: dict[str, AnyFormat | BlockFormat]


def _as_format(value: Any) -> AnyFormat:
    if isinstance(value, (Posit, Levels)):
        return value
    if isinstance(value, BlockFormat) or (
        isinstance(value, str) and is_block_name(value)
    ):
        raise TypeError(
            f"a tensor in the block format {value!r} is what lowprec.encode_blocks "
            "returns, got plain values"
        )
    table = table_format(value) if isinstance(value, str) else None
    return as_format(value) if table is None else table


def _own_dtype(target: AnyFormat) -> torch.dtype | None:
    """Return torch's dtype of a format, or None for those whose codes are packed.

    Integers of 8 and 16 bits are packed.
    """
    name = target.dtype if isinstance(target, Format) else None
    dtype = getattr(torch, name) if name else None
    if isinstance(dtype, torch.dtype) and (
        dtype.is_floating_point or target.bits in _INTEGERS
    ):
        return dtype
    return None


def _stored(x: Tensor, target: AnyFormat) -> Tensor:
    """Return what a file holds: elements of torch's dtype, or packed codes."""
    if x.dtype in _CARRIERS.values() and not fits(target, x.dtype):
        raise ValueError(f"{x.dtype} does not hold every value of {target!r}")
    own = _own_dtype(target)
    if own is not None and target.bits in _INTEGERS:
        return encode(x, target).to(_INTEGERS[target.bits]).contiguous().view(own)
    if own is not None:
        return encode(x, target, dtype=own).contiguous()
    return pack(encode(x, target).flatten(), target)


def _described(format: Any, shape: list[int], carrier: str, stored: Tensor) -> str:
    """Return the digest of a format, a shape and the bytes that they give a meaning."""
    text = json.dumps([format, shape, carrier], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(stored.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_file(
    tensors: Mapping[str, Tensor | BlockCodes],
    path: Path,
    formats: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a safetensors file, those with a format as its codes.

    Contract:
        `load_file` returns the same bits, NaN payloads aside. Formats of torch's own
        dtypes (bfloat16, float8_e4m3fn, float32, int32 ...) are stored as such, so that
        other programs read them; others, of at most 32 bits, as `lowprec.pack` packs
        the codes of the flattened tensor. A tensor in a block format is what
        `lowprec.encode_blocks` returns and comes back as that: it is stored as
        ``name.codes``, ``name.scales`` and, if it has one, ``name.tensor_scale``.
        Tensors without a format are stored unchanged. The metadata entry ``lowprec``
        says in JSON what each format is, with a digest of it and the bytes. The file is
        written only after all tensors have been encoded.

    Args:
        tensors: tensors by name; those with a format are float32 or float64 tensors of
            values of it, or `BlockCodes` for a block format.
        path: where to write.
        formats: formats by the names of tensors: `Format`, `Posit`, `Levels`,
            `BlockFormat`, or names.
        metadata: more entries of the file's metadata.

    Raises:
        TypeError: if a format is none, a tensor no dense tensor, or a tensor with a
            format no carrier.
        ValueError: if an element is not a value of its format, a format has no tensor,
            or ``metadata`` has the entry that is written here; or if parts of a tensor
            in a block format have the name of another tensor.
        ImportError: if safetensors is not installed.

    Example:
        >>> import tempfile, os
        >>> from lowprec import round
        >>> w = round(torch.tensor([0.3, -5.0]), "e2m1fn")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "w.safetensors")
        ...     save_file({"w": w}, path, {"w": "e2m1fn"})
        ...     load_file(path).tensors["w"].tolist()
        [0.5, -4.0]

    References:
        https://github.com/huggingface/safetensors, format of the file.
    """
    from safetensors.torch import save_file as save

    unknown = [name for name in formats if name not in tensors]
    if unknown:
        raise ValueError(f"formats names {unknown[0]!r}, which is no tensor here")
    if metadata is not None and _KEY in metadata:
        raise ValueError(f"metadata has the entry {_KEY!r}, which is written here")
    stored: dict[str, Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, x in tensors.items():
        if isinstance(x, BlockCodes):
            for part in parts_of(name, tensors):
                raise ValueError(f"{name!r} is stored as {part!r}, which is taken")
            parts, described[name] = _blocks(name, x, formats.get(name))
            stored |= parts
            continue
        _check_storable(name, x)
        if name not in formats:
            stored[name] = x.detach().contiguous()
            continue
        try:
            target = _as_format(formats[name])
            stored[name] = _stored(x.detach().cpu(), target)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name!r}: {error}") from None
        written = _values.to_json(target)
        shape, carrier = list(x.shape), str(x.dtype).removeprefix("torch.")
        described[name] = {
            "format": written,
            "shape": shape,
            "carrier": carrier,
            "digest": _described(written, shape, carrier, stored[name]),
        }
    entry = json.dumps({"version": _VERSION, "tensors": described}, sort_keys=True)
    save(stored, path, metadata={**(metadata or {}), _KEY: entry})


def _check_storable(name: str, x: Any) -> None:
    """Refuse what is no dense tensor.

    Raises:
        TypeError: saying what it is.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name!r} must be a tensor, or BlockCodes, got {x!r} of type "
            f"{type(x).__name__}"
        )
    if x.layout != torch.strided:
        raise TypeError(
            f"{name!r} must be a dense tensor, got layout {x.layout}: give x.to_dense()"
        )


def _blocks(
    name: str, blocks: BlockCodes, format: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return how codes in a block format are stored, and their description."""
    try:
        return store_blocks(name, blocks, block_format(format))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name!r}: {error}") from None


def load_file(path: Path) -> Loaded:
    """Read a file that `save_file` wrote, or any other safetensors file.

    Contract:
        Nothing is guessed: codes whose format, shape or bytes are not those that were
        written are refused.

    Args:
        path: the file.

    Returns:
        The tensors, those in a format as values in the carrier that they had, those in
        a block format as `BlockCodes`, and the formats.

    Raises:
        ValueError: if the metadata do not fit the tensors, or were changed.
        ImportError: if safetensors is not installed.

    Example:
        See `save_file`.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors: dict[str, Tensor | BlockCodes] = dict(stored)
    formats: dict[str, AnyFormat | BlockFormat] = {}
    for name, description in _descriptions(metadata).items():
        blocked = isinstance(description, dict) and set(description) == BLOCK_FIELDS
        if blocked and name in stored:
            raise ValueError(
                f"{path}: {name!r} is a tensor of the file, and the metadata describe "
                "another in a block format"
            )
        if not blocked and name not in stored:
            raise ValueError(f"the metadata describe {name!r}, which the file has not")
        try:
            if blocked:
                parts = parts_of(name, stored)
                tensors[name], formats[name] = restore_blocks(name, parts, description)
                for part in parts:
                    tensors.pop(part)
            else:
                tensors[name], formats[name] = _restored(stored[name], description)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: tensor {name!r}: {error}") from None
    return Loaded(tensors, formats)


def _descriptions(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what the metadata say about each tensor."""
    if _KEY not in metadata:
        return {}
    try:
        entry = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:  # brackets can be nested too deeply
        raise ValueError(f"the metadata entry {_KEY!r} is no JSON: {error}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("tensors"), dict):
        raise ValueError(f"the metadata entry {_KEY!r} has no tensors")
    if entry.get("version") != _VERSION:
        raise ValueError(
            f"the metadata have version {entry.get('version')!r}; this lowprec reads "
            f"{_VERSION}"
        )
    described: dict[str, Any] = entry["tensors"]
    return described


def _restored(stored: Tensor, description: Any) -> tuple[Tensor, AnyFormat]:
    """Return values and format of stored codes.

    Raises:
        ValueError: if the description does not fit them.
        TypeError: if it is none.
    """
    if not isinstance(description, dict) or set(description) != _FIELDS:
        raise ValueError(
            f"a description has {', '.join(sorted(_FIELDS))}, got {description!r}"
        )
    shape, carrier = description["shape"], description["carrier"]
    sizes = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not sizes or carrier not in _CARRIERS:
        raise ValueError(f"no shape and carrier: {shape!r}, {carrier!r}")
    target = _as_format(_values.parse("format", description["format"]))
    if not fits(target, _CARRIERS[carrier]):
        raise ValueError(f"{carrier} does not hold every value of {target!r}")
    own, count = _own_dtype(target), torch.Size(shape).numel()
    if stored.dtype != (torch.uint8 if own is None else own):
        raise ValueError(
            f"{target.name or target!r} is not what {stored.dtype} elements hold"
        )
    wanted = _described(description["format"], shape, carrier, stored)
    if own is not None:
        if list(stored.shape) != shape:
            raise ValueError(f"shape {shape} is not that of {tuple(stored.shape)}")
        codes = stored
        if target.bits in _INTEGERS:
            bits = stored.view(_INTEGERS[target.bits]).to(torch.int64)
            codes = bits & 0xFFFFFFFF if target.bits == 32 else bits
    else:
        codes = unpack(stored.flatten(), target, count).reshape(shape)
    if description["digest"] != wanted:
        raise ValueError(
            "the digest is not that of the format and the bytes: one of them was "
            "changed after the file was written"
        )
    return decode(codes, target, dtype=_CARRIERS[carrier]), target
