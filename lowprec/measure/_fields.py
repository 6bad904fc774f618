"""Fields of small pictures by row and column: heat maps and histograms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from ._svg import (
    COLORS,
    FAINT,
    GRID,
    INK,
    Scale,
    label_width,
    picture,
    row_label,
    text_at,
)

# Signal to noise in decibels: one bit of precision is 6.02 dB.
_DECIBELS = (
    (0.0, (178, 24, 43)),
    (10.0, (214, 96, 77)),
    (20.0, (244, 165, 130)),
    (30.0, (253, 219, 199)),
    (45.0, (247, 247, 247)),
    (80.0, (209, 229, 240)),
    (150.0, (146, 197, 222)),
)
# Square roots of shares: a hundredth is seen.
_SHARES = (
    (0.0, (250, 250, 250)),
    (0.1, (253, 229, 205)),
    (0.5, (244, 140, 90)),
    (1.0, (178, 24, 43)),
)
_MOST_BINADES = 48
_PAGE = 1150.0  # width for wide pictures


def _blended(
    value: float, stops: Sequence[tuple[float, tuple[int, int, int]]]
) -> tuple[str, str]:
    """Return the colour between two stops, and that of text on it."""
    if math.isnan(value):
        return "#ffffff", FAINT
    value = min(max(value, stops[0][0]), stops[-1][0])
    i = max(1, sum(place < value for place, _ in stops))
    (low, first), (high, second) = stops[i - 1], stops[i]
    part = (value - low) / (high - low)
    r, g, b = (round(x + part * (y - x)) for x, y in zip(first, second, strict=True))
    light = 0.299 * r + 0.587 * g + 0.114 * b > 140
    return f"#{r:02x}{g:02x}{b:02x}", INK if light else "#ffffff"


def decibel_color(value: float) -> tuple[str, str]:
    """Return the colours of a field and its text for a signal-to-noise ratio."""
    return _blended(value, _DECIBELS)


def share_color(value: float) -> tuple[str, str]:
    """Return the colours of a field and its text for a share of losses."""
    return _blended(math.sqrt(value), _SHARES)


@dataclass(frozen=True)
class Cell:
    """A field of a heat map: its colours, two lines of text, and a tooltip."""

    colors: tuple[str, str]
    text: str
    below: str
    hint: str


def heat_map(
    name: str,
    title: str,
    text: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cell: Callable[[int, int], Cell | None],
    *,
    height: float = 34.0,
) -> str:
    """Return a field of colour and text per row and column; None leaves one empty."""
    left, top = label_width(rows), 44.0
    width = min(max((_PAGE - left) / max(1, len(columns)), 28.0), 130.0)
    across = left + width * len(columns) + 8
    down = top + height * len(rows) + 8
    parts = [text_at(0, 16, title, size=13, color=INK, weight=600)]
    for j, column in enumerate(columns):
        middle = left + width * (j + 0.5)
        parts.append(text_at(middle, top - 8, column, anchor="middle", size=11))
    for i, row in enumerate(rows):
        y = top + height * i
        parts.append(row_label(row, left - 8, y + height / 2 + 4))
        for j in range(len(columns)):
            one, x = cell(i, j), left + width * j
            fill, ink = ("none", FAINT) if one is None else one.colors
            parts.append(
                f'<g><rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" '
                f'height="{height - 2:.1f}" rx="2" fill="{fill}" stroke="{GRID}"/>'
            )
            if one is not None:
                shift = 1.5 if one.below else -4
                parts.append(f"<title>{escape(one.hint)}</title>")
                middle = y + height / 2
                if one.text:
                    parts.append(
                        text_at(
                            x + width / 2,
                            middle - shift,
                            one.text,
                            anchor="middle",
                            size=12,
                            color=ink,
                            weight=600,
                        )
                    )
                if one.below:
                    parts.append(
                        text_at(
                            x + width / 2,
                            middle + 11,
                            one.below,
                            anchor="middle",
                            size=9,
                            color=ink,
                        )
                    )
            parts.append("</g>")
    return picture(name, across, down, title, text, parts)


def decibel_legend(name: str) -> str:
    """Return the colours of the decibels."""
    marks = (0, 10, 20, 30, 45, 60, 80, 110, 150)
    parts = []
    for i, mark in enumerate(marks):
        fill, ink = decibel_color(mark)
        x = 46 * i
        parts.append(
            f'<rect x="{x}" y="0" width="46" height="20" fill="{fill}" '
            f'stroke="{GRID}"/>'
        )
        parts.append(text_at(x + 23, 14, f"{mark}", anchor="middle", color=ink))
    parts.append(text_at(46 * len(marks) + 8, 14, "dB", color=FAINT))
    title = "Colours of the signal-to-noise ratio in decibels"
    return picture(name, 46 * len(marks) + 40, 21, title, title, parts)


@dataclass(frozen=True)
class Histogram:
    """Counts by binary exponent, and the format's smallest, normal and last one."""

    counts: dict[int, int]
    subnormal: int | None
    normal: int | None
    largest: int | None
    hint: str


def histogram_grid(
    name: str,
    title: str,
    text: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cell: Callable[[int, int], Histogram | None],
) -> str:
    """Return small histograms of exponents on one axis, with the formats' ranges."""
    cells = {
        (i, j): one
        for i in range(len(rows))
        for j in range(len(columns))
        if (one := cell(i, j)) is not None
    }
    first = min((_first_place(one.counts) for one in cells.values()), default=-1)
    last = max((max(one.counts) for one in cells.values()), default=0)
    first = max(first, last - _MOST_BINADES)
    height, top, left = 46.0, 44.0, label_width(rows)
    width = min(max((_PAGE - left) / max(1, len(columns)), 90.0), 180.0)
    parts = [text_at(0, 16, title, size=13, color=INK, weight=600)]
    for j, column in enumerate(columns):
        parts.append(
            text_at(left + width * (j + 0.5), top - 8, column, anchor="middle")
        )
    for i, row in enumerate(rows):
        parts.append(row_label(row, left - 8, top + height * (i + 0.5) + 4))
    for (i, j), one in cells.items():
        x, y = left + width * j + 4, top + height * i + 4
        across = Scale(first, last + 1, x, x + width - 8)
        parts.append(_histogram(one, across, y, height - 10))
    y = top + height * len(rows)
    for j in range(len(columns)):
        x = left + width * j + 4
        across = Scale(first, last + 1, x, x + width - 8)
        marks = [(first, "start"), (last + 1, "end")]
        if across(0) - x > 30 and across(last + 1) - across(0) > 26:
            marks.insert(1, (0, "middle"))
        parts += [
            text_at(across(place), y + 9, f"{place}", anchor=anchor, size=9)
            for place, anchor in marks
        ]
    return picture(name, left + width * len(columns) + 8, y + 14, title, text, parts)


def _first_place(counts: dict[int, int]) -> int:
    """Return the exponent below which fewer than one value in a hundred lies."""
    allowed, below = sum(counts.values()) / 100, 0
    for e in sorted(counts):
        below += counts[e]
        if below > allowed:
            return e
    return max(counts)


def _histogram(one: Histogram, across: Scale, y: float, height: float) -> str:
    parts = [f"<g><title>{escape(one.hint)}</title>"]
    base = y + height

    def band(low: int, high: int, fill: str) -> str:
        x1 = max(across(low), across.start)
        x2 = min(across(high), across.end)
        if x2 <= x1:
            return ""
        return (
            f'<rect x="{x1:.1f}" y="{y:.1f}" width="{x2 - x1:.1f}" '
            f'height="{height:.1f}" fill="{fill}"/>'
        )

    parts.append(
        f'<rect x="{across.start:.1f}" y="{y:.1f}" '
        f'width="{across.end - across.start:.1f}" height="{height:.1f}" '
        f'fill="#fbe9e3"/>'
    )
    if one.normal is not None and one.largest is not None:
        if one.subnormal is not None:
            parts.append(band(one.subnormal, one.normal, "#fff6d9"))
        parts.append(band(one.normal, one.largest + 1, "#e7f3ec"))
    most = max(one.counts.values(), default=1)
    # On a square-root scale few values are seen beside many.
    path = [
        f"M{across(e):.1f} {base:.1f}v{-(height - 3) * math.sqrt(n / most):.1f}"
        f"h{across(e + 1) - across(e):.2f}V{base:.1f}z"
        for e, n in sorted(one.counts.items())
        if e >= across.low
    ]
    parts.append(f'<path d="{"".join(path)}" fill="{COLORS[0]}"/></g>')
    return "".join(parts)
