"""Shortest spellings and JSON forms of the value objects that a `Precision` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .block_rounding import BlockRounding
from .formats import BlockFormat, Format, Levels, Posit, SharedExponent, is_block_name
from .rounding import Accumulator, Rounding, as_rounding
from .table_rounding import TableRounding, is_table_name

ACCUMULATORS = ("accumulator", "grad_accumulator")
OPERANDS = ("input", "weight", "grad_output")  # of products: block formats too


def items(value: Any) -> list[tuple[str, Any]]:
    """Return the fields of a dataclass instance without descending into them."""
    return [(field.name, getattr(value, field.name)) for field in fields(value)]


def shorthand(value: Any) -> str:
    """Return the shortest expression that means ``value`` as a field."""
    if isinstance(value, Accumulator) and value == Accumulator(value.rounding):
        return shorthand(value.rounding)
    if isinstance(value, Rounding) and value == Rounding(value.format):
        name = value.format.name
        return repr(name if _is_known(name, value.format) else value.format)
    if isinstance(value, BlockRounding) and value == BlockRounding(value.format):
        return repr(value.format.name if value.named else value.format)
    if isinstance(value, TableRounding) and value == TableRounding(value.format):
        return repr(value.format.name or value.format)
    return repr(value)


def _is_known(name: str | None, target: Format) -> bool:
    """Whether the format's name alone gives it back."""
    if name is None:
        return False
    try:
        return as_rounding(name).format == target
    except ValueError:
        return False


def to_json(value: Any) -> Any:
    """Return the JSON form of one field: a string if the shorthand has one."""
    if isinstance(value, Format):
        return value.name if _is_known(value.name, value) else dict(items(value))
    if isinstance(value, Posit):
        return value.name
    if isinstance(value, Levels):
        return {"values": list(value.values)}
    if isinstance(value, TableRounding):
        return _changes(value, TableRounding(value.format), "format")
    if isinstance(value, Rounding):
        return _changes(value, Rounding(value.format), "format")
    if isinstance(value, BlockRounding):
        return _block_rounding_to_json(value)
    if isinstance(value, Accumulator):
        return _changes(value, Accumulator(value.rounding), "rounding")
    return getattr(value, "value", value)


def _block_rounding_to_json(value: BlockRounding) -> Any:
    """Return the name, or the fields that differ, with the format's as a mapping."""
    name, format = value.format.name, value.format
    plain = BlockRounding(format)
    result: dict[str, Any] = {"format": name if value.named else _block_to_json(format)}
    for field, item in items(value):
        if field not in ("format", "element") and item != getattr(plain, field):
            result[field] = to_json(item)
    return result if len(result) > 1 or not value.named else name


def _block_to_json(format: BlockFormat) -> dict[str, Any]:
    result = {name: to_json(item) for name, item in items(format) if item is not None}
    if isinstance(format.scale, SharedExponent):
        result["scale"] = {"bits": format.scale.bits}
    return result


def _parse_block(data: Any) -> BlockFormat:
    known = checked_keys(data, BlockFormat, "a BlockFormat")
    for name in ("element", "scale", "tensor_scale"):
        if name in known:
            known[name] = parse(name, known[name])
    return BlockFormat(**known)


def _changes(value: Any, plain: Any, first: str) -> Any:
    """Return what differs from the default; its first field alone if nothing does."""
    changed = {
        name: to_json(item)
        for name, item in items(value)
        if name == first or item != getattr(plain, name)
    }
    return changed if len(changed) > 1 else changed[first]


def parse(name: str, data: Any) -> Any:
    """Invert `to_json` for the field ``name``, up to normalisation.

    Raises:
        TypeError: if ``data`` is neither None, a string nor a mapping.
        ValueError: if a key or a name is unknown.
    """
    if data is None or isinstance(data, str):
        return data
    check_mapping(data, f"the value of {name!r}")
    if name in ACCUMULATORS and "rounding" in data:
        known = checked_keys(data, Accumulator, "an Accumulator")
        return Accumulator(
            **{
                key: parse(key, item)
                if key in ("rounding", "product", "within")
                else item
                for key, item in known.items()
            }
        )
    if name == "scale" and "bits" in data:
        return SharedExponent(**checked_keys(data, SharedExponent, "a SharedExponent"))
    if "values" in data:
        return Levels(**checked_keys(data, Levels, "Levels"))
    if "element" in data:
        return _parse_block(data)
    if "format" in data:
        known = checked_keys(data, Rounding, "a Rounding")
        given = known["format"] = parse("format", known["format"])
        if name in OPERANDS and (
            isinstance(given, BlockFormat)
            or (isinstance(given, str) and is_block_name(given))
        ):
            return BlockRounding(**known)
        if isinstance(given, Levels) or (
            isinstance(given, str) and is_table_name(given)
        ):
            return TableRounding(**checked_keys(known, TableRounding, "a rounding"))
        return Rounding(**known)
    return Format(**checked_keys(data, Format, "a Format"))


def check_mapping(data: Any, what: str) -> None:
    """Refuse what is not a mapping.

    Raises:
        TypeError: saying what was given.
    """
    if not isinstance(data, Mapping):
        raise TypeError(
            f"the JSON form of {what} must be a mapping, got {data!r} of type "
            f"{type(data).__name__}"
        )


def checked_keys(data: Any, kind: type, what: str) -> dict[str, Any]:
    """Return ``data`` as a dictionary if its keys are fields of ``kind``.

    Raises:
        TypeError: if it is not a mapping.
        ValueError: naming the first unknown key and those allowed.
    """
    check_mapping(data, what)
    allowed = [field.name for field in fields(kind)]
    unknown = [key for key in data if key not in allowed]
    if unknown:
        raise ValueError(
            f"unknown key {unknown[0]!r} in the JSON form of {what}: "
            f"it must be one of {', '.join(allowed)}"
        )
    return dict(data)
