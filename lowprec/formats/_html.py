"""Formats in notebooks: a number line as inline SVG, and the table of properties."""

from __future__ import annotations

import math
from fractions import Fraction
from html import escape
from typing import TYPE_CHECKING

from ._exact import Real, floor_log2, power_of_two
from ._text import decimal, properties

if TYPE_CHECKING:
    from ._format import Format

__all__ = ["format_html"]

_WIDTH, _MARGIN, _AXIS = 640, 36, 34
_MOST_MARKS, _MOST_POWERS = 600, 100
# Ratios of the largest to the smallest value that a linear scale shows.
_MOST_LINEAR = 64
_STYLE = "font:11px sans-serif;fill:currentColor"


def _marks(format: Format) -> tuple[list[Fraction], str]:
    """Return positive values to draw, and what they are."""
    lowest, highest = Fraction(format.smallest_subnormal), Fraction(format.max)
    first, last = floor_log2(lowest), floor_log2(highest)
    # Binades times values of one are an upper bound of the number of values.
    if (last - first + 1) << (format.precision - 1) <= 4 * _MOST_MARKS:
        values = [Fraction(value) for value in format.values() if value > 0]
        if len(values) <= _MOST_MARKS:
            return values, "values"
    step = 1 << max(0, ((last - first) // _MOST_POWERS).bit_length())
    powers = [power_of_two(e) for e in range(first, last + 1) if e % step == 0]
    ends = sorted({lowest, *powers, highest})
    return ends, "powers of two" if step == 1 else f"powers of 2^{step}"


def _height(value: Fraction) -> int:
    """Powers of two are the longer marks."""
    numerator = value.numerator
    return 14 if numerator & (numerator - 1) == 0 else 8


def number_line_svg(format: Format) -> str:
    """Return a number line of a format as SVG text.

    Contract:
        All values where these are at most 600, else powers of two and the ends. The
        scale is linear where the largest value is at most 64 times the smallest, else
        logarithmic with zero one binade below the smallest value.

    Args:
        format: the format.

    Returns:
        One ``<svg>`` element.
    """
    marks, what = _marks(format)
    lower = abs(Fraction(format.min))
    smallest, largest = marks[0], max(marks[-1], lower)
    linear = largest <= _MOST_LINEAR * smallest
    negative = format.signed and format.min < 0
    lowest = floor_log2(smallest) - 1

    def size(value: Fraction) -> float:
        if linear:
            return float(value / largest)
        e = floor_log2(value)
        fraction = float(value / power_of_two(e) - 1)
        span = floor_log2(largest) + 1 - lowest
        return (e - lowest + math.log2(1 + fraction)) / span

    room = _WIDTH - 2 * _MARGIN
    centre = _MARGIN + room / 2 if negative else _MARGIN
    reach = room / 2 if negative else room
    sides = (1, -1) if negative else (1,)
    lines = [_line(centre, 18)] if format.zero else []
    for value in marks:
        x, height = reach * size(value), _height(value)
        lines += [_line(centre + side * x, height) for side in sides]
    if negative and lower != marks[-1]:  # two's complement
        lines.append(_line(centre - reach * size(lower), _height(lower)))
    labels = [(centre + reach * size(marks[-1]), _label(format.max))]
    if format.zero:
        labels.append((centre, "0"))
    if negative:
        labels.append((centre - reach * size(lower), _label(format.min)))
    if smallest < 1 < largest:
        labels.append((centre + reach * size(Fraction(1)), "1"))
    texts = [
        f'<text x="{x:.1f}" y="{_AXIS + 16}" text-anchor="middle">{escape(text)}</text>'
        for x, text in labels
    ]
    caption = f"{what}, {'linear' if linear else 'logarithmic'} scale"
    return (
        f'<svg width="{_WIDTH}" height="70" style="{_STYLE}" role="img" '
        f'aria-label="number line">'
        f'<path d="{"".join(lines)}" stroke="currentColor" stroke-width="0.7"/>'
        f'<path d="M{_MARGIN} {_AXIS}H{_WIDTH - _MARGIN}" stroke="currentColor"/>'
        f'{"".join(texts)}<text x="{_MARGIN}" y="66">{caption}</text></svg>'
    )


def _label(value: Real) -> str:
    """Return four digits, or the exact form where binary64 has no such number."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return decimal(value) if value > 0 else f"-{decimal(-value)}"


def _line(x: float, height: int) -> str:
    return f"M{x:.1f} {_AXIS}v-{height}"


def format_html(format: Format) -> str:
    """Return what a notebook shows for a format.

    Args:
        format: the format.

    Returns:
        HTML: a number line and the properties; it needs no script and no other file.

    Example:
        >>> from lowprec.formats import format
        >>> "<svg" in format_html(format("e2m1fn"))
        True
    """
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(label or 'format')}</th>"
        f"<td style='text-align:left'>{escape(text)}</td></tr>"
        for label, text in properties(format).items()
    )
    return f"<div>{number_line_svg(format)}<table>{rows}</table></div>"
