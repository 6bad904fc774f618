"""Any kind of format by its name: floating and fixed point, blocks, posits, levels."""

from __future__ import annotations

from typing import Any, TypeAlias

from ._block import BlockFormat
from ._block_registry import block_format, is_block_name
from ._format import Format
from ._levels import Levels
from ._line import Line
from ._parse import format as as_format
from ._posit import Posit

__all__ = ["AnyFormat", "any_format", "line_of", "table_format"]

AnyFormat: TypeAlias = "Format | BlockFormat | Posit | Levels"


def table_format(name: str) -> Posit | Levels | None:
    """Return the posit or the set of levels of a name, None if it is another's.

    Args:
        name: such as ``"posit8_0"``, ``"ternary"`` or ``"int_bits(2)"``.

    Returns:
        The set, or None.

    Raises:
        ValueError: if a width is out of range.

    Example:
        >>> table_format("posit8_0"), table_format("bfloat16")
        (Posit(bits=8, es=0), None)
    """
    return Posit.from_name(name) or Levels.from_name(name)


def any_format(obj: Any) -> AnyFormat:
    """Return the format of any kind that a name, a dtype or a format stands for.

    Contract:
        A pure function; names are case-insensitive; formats are returned unchanged.

    Args:
        obj: what `format`, `block_format`, `Posit.from_name` or `Levels.from_name`
            takes, or a format of any kind.

    Returns:
        The format.

    Raises:
        TypeError: if ``obj`` is none of these.
        ValueError: if the name is unknown or denotes no format.

    Example:
        >>> any_format("posit8_0"), any_format("ternary").values
        (Posit(bits=8, es=0), (-1.0, 0.0, 1.0))
    """
    if isinstance(obj, (BlockFormat, Posit, Levels)):
        return obj
    if isinstance(obj, str):
        if is_block_name(obj):
            return block_format(obj)
        found = table_format(obj)
        if found is not None:
            return found
    return as_format(obj)


def line_of(obj: Any) -> Line:
    """Return what pictures show of a format of any kind.

    Of block formats these are the elements: their numbers in units of the scale.

    Args:
        obj: a format of any kind, or a name.

    Returns:
        The numbers as pictures ask for them.

    Raises:
        TypeError: as `any_format`.
        ValueError: as `any_format`.

    Example:
        >>> line_of("mxfp4").largest, line_of("posit8_0").largest
        (6.0, 64.0)
    """
    return any_format(obj).line
