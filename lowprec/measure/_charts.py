"""Charts of numbers: lines over the steps, and bars of shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ._svg import (
    COLORS,
    FAINT,
    INK,
    Scale,
    label_width,
    line,
    number,
    picture,
    row_label,
    text_at,
)

_MOST_POINTS = 400


@dataclass(frozen=True)
class Series:
    """A line: its label, places, values (NaN leaves a gap) and look."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    dashed: bool = False


def _finite(values: Sequence[float], positive: bool) -> list[float]:
    return [v for v in values if math.isfinite(v) and (v > 0 or not positive)]


def _domain(values: list[float], logarithmic: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if logarithmic:
        if high < 10 * low:
            low, high = low / 2, high * 2
        return low / 1.15, high * 1.15
    if low == high:
        margin = abs(low) / 2 or 1.0
        return (low - margin if low else 0.0), high + margin
    margin = 0.06 * (high - low)
    return (0.0 if 0 <= low < margin else low - margin), high + margin


def _thinned(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """Return the points, or lowest and highest of each of many short stretches."""
    points = list(zip(x, y, strict=True))
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        finite = [p for p in part if math.isfinite(p[1])]
        chosen = (
            {min(finite, key=_height), max(finite, key=_height)}
            if finite
            else {part[0]}
        )
        kept += sorted(chosen)
    return kept


def _height(point: tuple[float, float]) -> float:
    return point[1]


def line_chart(
    name: str,
    title: str,
    text: str,
    series: Sequence[Series],
    *,
    logarithmic: bool = False,
    label: Callable[[float], str] = number,
) -> str:
    """Return lines over the steps; logarithmic ones leave out zeros.

    Args:
        name: identifier in the page.
        title: of the chart, also for those who do not see it.
        text: what it shows, for those who do not see it.
        series: the lines.
        logarithmic: scale of the ordinate.
        label: text of a value of the ordinate.

    Returns:
        The SVG element.
    """
    width, height, left, right, bottom = 560.0, 300.0, 62.0, 14.0, 40.0
    parts = [text_at(left, 16, title, size=13, color=INK, weight=600)]
    x, top = left, 34.0
    for one in series:
        size = 44 + 6.2 * len(one.label)
        if x > left and x + size > width:
            x, top = left, top + 18
        dash = ' stroke-dasharray="5 4"' if one.dashed else ""
        parts.append(
            f'<line x1="{x:.1f}" y1="{top - 4}" x2="{x + 20:.1f}" y2="{top - 4}" '
            f'stroke="{one.color}" stroke-width="2"{dash}/>'
        )
        parts.append(text_at(x + 26, top, one.label, color=INK))
        x += size
    top += 12
    ys = [y for one in series for y in _finite(one.y, logarithmic)]
    xs = [x for one in series for x in _finite(one.x, False)]
    if not ys or not xs:
        what = "no positive value" if logarithmic else "no value"
        parts.append(text_at(width / 2, height / 2, what, anchor="middle"))
        return picture(name, width, height, title, text, parts)
    low, high = min(xs), max(xs)
    across = Scale(low, high if high > low else low + 1, left, width - right)
    up = Scale(*_domain(ys, logarithmic), height - bottom, top, logarithmic)
    for tick in up.ticks():
        y = up(tick)
        parts.append(line(left, y, width - right, y))
        parts.append(text_at(left - 7, y + 4, label(tick), anchor="end"))
    for tick in across.ticks():
        if tick == int(tick):
            x = across(tick)
            parts.append(line(x, height - bottom, x, height - bottom + 4, FAINT))
            parts.append(text_at(x, height - bottom + 17, f"{tick:g}", anchor="middle"))
    parts.append(line(left, height - bottom, width - right, height - bottom, FAINT))
    parts.append(text_at(width - right, height - 6, "step", anchor="end"))
    parts += [_polyline(one, across, up) for one in series]
    return picture(name, width, height, title, text, parts)


def _polyline(one: Series, across: Scale, up: Scale) -> str:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in _thinned(one.x, one.y):
        if math.isfinite(x + y) and (y > 0 or not up.logarithmic):
            pieces[-1].append((across(x), up(y)))
        elif pieces[-1]:
            pieces.append([])
    dash = ' stroke-dasharray="5 4"' if one.dashed else ""
    result = []
    for piece in filter(None, pieces):
        if len(piece) == 1:
            (x, y) = piece[0]
            result.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{one.color}"/>'
            )
            continue
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in piece)
        result.append(
            f'<path d="M{path}" fill="none" stroke="{one.color}" stroke-width="1.7" '
            f'stroke-linejoin="round"{dash}/>'
        )
    return "".join(result)


def bars(
    name: str,
    title: str,
    text: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    labels: Sequence[str],
) -> str:
    """Return groups of horizontal bars of shares; negative ones go left."""
    left = label_width([row for row, _ in rows])
    thick, gap, top, width = 9.0, 8.0, 48.0, 620.0
    values = [v for _, group in rows for v in group if math.isfinite(v)]
    low, high = min([0.0, *values]), max([0.01, *values])
    across = Scale(low, high, left, left + width)
    parts = [text_at(0, 16, title, size=13, color=INK, weight=600)]
    for i, label in enumerate(labels):
        x = left + 170 * i
        parts.append(f'<rect x="{x}" y="27" width="12" height="9" fill="{COLORS[i]}"/>')
        parts.append(text_at(x + 18, 36, label, color=INK))
    each = len(labels) * thick + gap
    for i, (row, group) in enumerate(rows):
        y = top + each * i
        middle = y + (each - gap) / 2 + 4
        parts.append(row_label(row, left - 8, middle))
        for j, value in enumerate(group):
            if not math.isfinite(value):
                continue
            start, end = sorted((across(0), across(value)))
            parts.append(
                f'<rect x="{start:.1f}" y="{y + j * thick:.1f}" '
                f'width="{max(end - start, 0.5):.1f}" height="{thick - 1:.1f}" '
                f'fill="{COLORS[j]}"/>'
            )
            parts.append(
                text_at(end + 5, y + j * thick + 7.5, f"{100 * value:.1f} %", size=9)
            )
    bottom = top + each * len(rows)
    parts.append(line(across(0), top - 4, across(0), bottom, FAINT))
    return picture(name, left + width + 60, bottom + 6, title, text, parts)
