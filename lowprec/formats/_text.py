"""Formats as text: their properties side by side, or one format a line."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from ._exact import Real, floor_log2, power_of_two
from ._sources import SOURCES

if TYPE_CHECKING:
    from ._format import Format

__all__ = [
    "columns",
    "decimal",
    "describe",
    "markdown",
    "power_form",
    "properties",
    "table",
]

# Factors up to here have at most four decimals.
_SHORT_DENOMINATOR = 16

_TRAPS = (
    "eps (torch, numpy) is the gap between 1 and the next value; unit_roundoff (the u",
    "of error analysis) is half of it, the largest relative error of rounding to",
    "nearest. precision counts the implicit bit, names eXmY do not: e4m3 has p = 4.",
)


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def power_form(value: Real) -> str:
    """Return a positive number exactly, as ``2^e`` or ``factor*2^e``."""
    exact = Fraction(value)
    exponent = floor_log2(exact)
    factor = exact / power_of_two(exponent)
    if factor == 1:
        return f"2^{exponent}"
    if factor.denominator <= _SHORT_DENOMINATOR:
        return f"{float(factor)}*2^{exponent}"
    gap = 2 - factor
    if gap.numerator == 1:
        return f"(2 - 2^{floor_log2(gap)})*2^{exponent}"
    return f"{factor.numerator}*2^{exponent - floor_log2(Fraction(factor.denominator))}"


def decimal(value: Real) -> str:
    """Return seven digits, or the exact form where binary64 has no such number."""
    return f"{value:.7g}" if isinstance(value, float) else power_form(value)


def _both(value: Real) -> str:
    form, short = power_form(value), decimal(value)
    return short if form == short else f"{short} = {form}"


def _bits(format: Format) -> str:
    try:
        fields = (int(format.signed), format.exponent_bits, format.significand_bits)
    except ValueError:
        return "none: too few codes"
    return f"{format.bits} = {' + '.join(map(str, fields))}"


def _specials(format: Format) -> str:
    present = {
        "infinity": format.infinities,
        "NaN": format.nans,
        "-0": format.signed_zero,
        "no zero": not format.zero,
    }
    return ", ".join(name for name, has in present.items() if has) or "none"


def properties(format: Format) -> dict[str, str]:
    """Return the properties of a format as text by their labels."""
    return {
        "": format.name or "(no name)",
        "bits = sign + exponent + stored": _bits(format),
        "precision p": f"{format.precision}",
        "exponents": f"{format.emin} .. {format.emax}",
        "max": _both(format.max),
        "smallest normal": _both(format.smallest_normal),
        "smallest positive": _both(format.smallest_subnormal),
        "eps = 2^(1-p)": _both(format.eps),
        "unit_roundoff = 2^-p": _both(format.unit_roundoff),
        "subnormals": _yes(format.subnormals),
        "special values": _specials(format),
        "encoding": format.encoding,
        "torch dtype": format.dtype or "none",
    }


def columns(rows: Iterable[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Return rows of cells as lines of aligned columns.

    Args:
        rows: of equal length.
        right: numbers of the columns that are aligned to the right.

    Returns:
        One line for each row, without spaces at its end.

    Example:
        >>> columns([("name", "calls"), ("add", "7")], right=[1])
        ['name  calls', 'add       7']
    """
    kept = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*kept, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in kept
    ]


def describe(*formats: Format) -> str:
    """Return the properties of formats as text, side by side.

    Contract:
        Powers of two are exact; decimals show seven significant digits.

    Args:
        formats: one or more formats.

    Returns:
        A table with one property a line and one format a column, and a note on `eps`
        and `precision`.

    Raises:
        ValueError: if no format is given.

    Example:
        >>> from lowprec.formats import format
        >>> print(describe(format("e4m3fn"), format("e5m2")).splitlines()[4])
        max                              448 = 1.75*2^8      57344 = 1.75*2^15
    """
    if not formats:
        raise ValueError("describe needs at least one format, such as format('e5m2')")
    every = [properties(one) for one in formats]
    rows = [[label, *(one[label] for one in every)] for label in every[0]]
    return "\n".join([*columns(rows), "", *_TRAPS])


_HEAD = (
    *("name", "bits", "p", "emin", "emax", "max", "min normal", "min positive"),
    *("u", "inf", "NaN", "-0", "also called", "source"),
)


def _rows(formats: Sequence[Format], aliases: Sequence[str]) -> list[tuple[str, ...]]:
    return [
        (
            one.name or "(no name)",
            f"{one.bits}",
            f"{one.precision}",
            f"{one.emin}",
            f"{one.emax}",
            decimal(one.max),
            power_form(one.smallest_normal),
            power_form(one.smallest_subnormal),
            power_form(one.unit_roundoff),
            _yes(one.infinities),
            _yes(one.nans),
            _yes(one.signed_zero),
            names,
            SOURCES.get(one.name or "", ""),
        )
        for one, names in zip(formats, aliases, strict=True)
    ]


def table(formats: Sequence[Format], aliases: Sequence[str]) -> str:
    """Return formats as text, one a line, with their other names and sources last."""
    return "\n".join(columns([_HEAD, *_rows(formats, aliases)]))


def markdown(formats: Sequence[Format], aliases: Sequence[str]) -> str:
    """Return the same table in Markdown."""
    rule = ("---",) * len(_HEAD)
    rows = [_HEAD, rule, *_rows(formats, aliases)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
