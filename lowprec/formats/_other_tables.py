"""Tables of the sets of numbers that are no `Format`: block formats and posits."""

from __future__ import annotations

from collections.abc import Sequence

from ._block import BlockFormat, SharedExponent
from ._block_registry import block_aliases, block_formats
from ._format import Format
from ._posit import Posit
from ._sources import BLOCK_SOURCES
from ._text import columns, power_form

__all__ = ["other_tables"]

_BLOCK_HEAD = (
    *("block format", "element", "block size", "scale", "scale rule"),
    *("tensor scale", "bits per value", "also called", "source"),
)
_POSIT_HEAD = ("posit", "bits", "es", "max", "min positive", "eps", "source")
_STANDARD, _FIRST = "posit standard 2022", "Gustafson and Yonemoto 2017"
_POSITS = (
    (Posit(8), _STANDARD),
    (Posit(16), _STANDARD),
    (Posit(32), _STANDARD),
    (Posit(8, 0), _FIRST),
    (Posit(16, 1), _FIRST),
)
_FAMILY = ("positN_ES", "2 .. 32", "0 .. 4; left out: 2", "", "", "", "the family")


def _element(element: Format) -> str:
    if element.name is not None:
        return element.name
    return f"sign, {element.precision} magnitude bits"


def _scale(scale: SharedExponent | Format) -> str:
    if isinstance(scale, SharedExponent):
        return f"2^k of {scale.bits} bits"
    return scale.name or "(no name)"


def _block_row(one: BlockFormat) -> tuple[str, ...]:
    name, second = one.name or "", one.tensor_scale
    return (
        name,
        _element(one.element),
        f"{one.block_size}",
        _scale(one.scale),
        one.rule.value,
        "" if second is None else _scale(second),
        f"{one.bits_per_value:g}",
        ", ".join(block_aliases(name)),
        BLOCK_SOURCES.get(name, ""),
    )


def _posit_row(one: Posit, source: str) -> tuple[str, ...]:
    numbers = (power_form(x) for x in (one.max, one.smallest_positive, one.eps))
    return (one.name, f"{one.bits}", f"{one.es}", *numbers, source)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def other_tables(*, markdown: bool = False) -> list[str]:
    """Return the known block formats and the posits as tables.

    Args:
        markdown: whether in Markdown instead of aligned columns.

    Returns:
        Two tables: block formats, posits.

    Example:
        >>> other_tables()[0].splitlines()[1].split()[:3]
        ['mxfp8_e4m3', 'e4m3fn', '32']
    """
    blocks = [_BLOCK_HEAD, *map(_block_row, block_formats())]
    posits = [_POSIT_HEAD, *(_posit_row(*one) for one in _POSITS), _FAMILY]
    if markdown:
        return [_markdown(blocks), _markdown(posits)]
    return ["\n".join(columns(rows)) for rows in (blocks, posits)]
