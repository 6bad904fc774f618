"""Formats in notebooks: a number line as inline SVG, and the table of properties."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from html import escape

from ._exact import Real, floor_log2, power_of_two
from ._line import Line
from ._text import columns, decimal

__all__ = ["Shown", "page"]

_WIDTH, _MARGIN, _AXIS = 640, 36, 34
# Ratios of the largest to the smallest value that a linear scale shows.
_MOST_LINEAR = 64
_STYLE = "font:11px sans-serif;fill:currentColor"


def _height(value: Fraction) -> int:
    """Powers of two are longer marks, and zero the longest."""
    if value == 0:
        return 18
    numerator = abs(value.numerator)
    return 14 if numerator & (numerator - 1) == 0 else 8


class _Scale:
    """Where numbers lie on the axis: zero in the middle if there are both signs."""

    def __init__(self, marks: list[Fraction]) -> None:
        sizes = [abs(value) for value in marks if value != 0] or [Fraction(1)]
        self.smallest, self.largest = min(sizes), max(sizes)
        self.linear = self.largest <= _MOST_LINEAR * self.smallest
        negative, positive = marks[0] < 0, marks[-1] > 0
        room = _WIDTH - 2 * _MARGIN
        self._reach = room / 2 if negative and positive else room
        self._zero = _MARGIN + (self._reach if negative else 0)

    def _size(self, size: Fraction) -> float:
        """Return the distance from zero, 1 for the largest."""
        if self.linear:
            return float(size / self.largest)
        lowest = floor_log2(self.smallest) - 1
        e = floor_log2(size)
        fraction = float(size / power_of_two(e) - 1)
        span = floor_log2(self.largest) + 1 - lowest
        return (e - lowest + math.log2(1 + fraction)) / span

    def __call__(self, value: Fraction) -> float:
        """Return the place of a value."""
        if value == 0:
            return self._zero
        offset = self._reach * self._size(abs(value))
        return self._zero + (offset if value > 0 else -offset)


def number_line_svg(line: Line) -> str:
    """Return a number line of a set of numbers as SVG text.

    Contract:
        All values where these are at most 600, else some, and the ends. The scale is
        linear where the largest value is at most 64 times the smallest, else
        logarithmic with zero one binade below the smallest value.

    Args:
        line: the numbers.

    Returns:
        One ``<svg>`` element.
    """
    marks, what = line.marks()
    place = _Scale(marks)
    strokes = "".join(
        f"M{place(value):.1f} {_AXIS}v-{_height(value)}" for value in marks
    )
    labels = {Fraction(line.least): line.least, Fraction(line.largest): line.largest}
    inside = [value for value in (0, 1) if marks[0] <= value <= marks[-1]]
    for value in inside:
        if value in marks or (value == 1 and place.smallest < 1 < place.largest):
            labels.setdefault(Fraction(value), float(value))
    texts = "".join(
        f'<text x="{place(exact):.1f}" y="{_AXIS + 16}" text-anchor="middle">'
        f"{escape(_label(value))}</text>"
        for exact, value in labels.items()
    )
    unit = f", in units of {line.unit}" if line.unit else ""
    scale = "linear" if place.linear else "logarithmic"
    return (
        f'<svg width="{_WIDTH}" height="70" style="{_STYLE}" role="img" '
        f'aria-label="number line">'
        f'<path d="{strokes}" stroke="currentColor" stroke-width="0.7"/>'
        f'<path d="M{_MARGIN} {_AXIS}H{_WIDTH - _MARGIN}" stroke="currentColor"/>'
        f'{texts}<text x="{_MARGIN}" y="66">{escape(what + unit)}, {scale} scale</text>'
        "</svg>"
    )


def _label(value: Real) -> str:
    """Return four digits, or the exact form where binary64 has no such number."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return decimal(value) if value > 0 else f"-{decimal(-value)}"


def page(line: Line, rows: Mapping[str, str]) -> str:
    """Return what a notebook shows for a set of numbers.

    Args:
        line: the numbers.
        rows: the properties as text by their labels; the empty one is the name's.

    Returns:
        HTML: a number line and the properties; it needs no script and no other file.

    Example:
        >>> from lowprec.formats import format, line_of
        >>> fmt = format("e2m1fn")
        >>> "<svg" in page(line_of(fmt), fmt.properties())
        True
    """
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(label or 'format')}</th>"
        f"<td style='text-align:left'>{escape(text)}</td></tr>"
        for label, text in rows.items()
    )
    return f"<div>{number_line_svg(line)}<table>{cells}</table></div>"


class Shown:
    """What shows itself by its properties, and in notebooks with a number line."""

    @property
    @abstractmethod
    def line(self) -> Line:
        """The numbers as pictures ask for them."""

    @abstractmethod
    def properties(self) -> dict[str, str]:
        """Return the properties as text by their labels."""

    def __str__(self) -> str:
        """Return the properties as a small text table."""
        return "\n".join(columns(self.properties().items()))

    def _repr_html_(self) -> str:
        """Return a number line and the properties for notebooks."""
        return page(self.line, self.properties())
