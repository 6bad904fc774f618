"""Charts as SVG text: lines over steps, heat maps, histograms, bars."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's colours, which people who see fewer colours tell apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_INK, _FAINT, _GRID = "#1b1f24", "#57606a", "#e4e7eb"
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
_MOST_POINTS = 400


@dataclass(frozen=True)
class Series:
    """A line: its label, places, values (NaN leaves a gap) and look."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    dashed: bool = False


@dataclass(frozen=True)
class Scale:
    """A map from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, x = self.low, self.high, value
        if self.logarithmic:
            low, high, x = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (x - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values to mark."""
        if self.logarithmic:
            first = math.floor(math.log10(self.low))
            last = math.ceil(math.log10(self.high))
            every = max(1, math.ceil((last - first) / 7))
            steps = (1.0,) if last - first > 2 else (1.0, 2.0, 5.0)
            marks = [m * 10.0**e for e in range(first, last + 1, every) for m in steps]
        else:
            rough = (self.high - self.low) / 6
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
            start = math.ceil(self.low / step)
            marks = [k * step for k in range(start, math.floor(self.high / step) + 1)]
        slack = 1e-9 * (self.high - self.low)
        return [m for m in marks if self.low - slack <= m <= self.high + slack]


def number(value: float) -> str:
    """Return a value with three digits, without a needless exponent."""
    if math.isnan(value):
        return "none"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.3g}"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        return f"{mantissa}e{int(exponent)}"
    return text


def share(value: float) -> str:
    """Return a share as a percentage."""
    if value == 0:
        return "0"
    return "<0.1 %" if value < 1e-3 else f"{100 * value:.3g} %"


def _text(
    x: float,
    y: float,
    content: str,
    *,
    anchor: str = "start",
    size: float = 11,
    color: str = _FAINT,
    weight: int = 400,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}" '
        f'font-weight="{weight}" fill="{color}">{escape(content)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str = _GRID) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{color}"/>'
    )


def _picture(
    name: str, width: float, height: float, title: str, text: str, parts: list[str]
) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(text)}</desc>{"".join(parts)}</svg>'
    )


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
        return low - margin, high + margin
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
    unit: str = "",
    logarithmic: bool = False,
) -> str:
    """Return lines over the steps; logarithmic ones leave out zeros.

    Args:
        name: identifier in the page.
        title: of the chart, also for those who do not see it.
        text: what it shows, for those who do not see it.
        series: the lines.
        unit: of the ordinate.
        logarithmic: scale of the ordinate.

    Returns:
        The SVG element.
    """
    width, height, left, right, bottom = 560.0, 300.0, 62.0, 14.0, 40.0
    top = 26.0 + 18 * math.ceil(len(series) / 3)
    parts = [_text(left, 16, title, size=13, color=_INK, weight=600)]
    for i, one in enumerate(series):
        x, y = left + (i % 3) * 165, 34.0 + 18 * (i // 3)
        dash = ' stroke-dasharray="5 4"' if one.dashed else ""
        parts.append(
            f'<line x1="{x}" y1="{y - 4}" x2="{x + 20}" y2="{y - 4}" '
            f'stroke="{one.color}" stroke-width="2"{dash}/>'
        )
        parts.append(_text(x + 26, y, one.label, color=_INK))
    ys = [y for one in series for y in _finite(one.y, logarithmic)]
    xs = [float(x) for one in series for x in one.x]
    if not ys or not xs:
        what = "no positive value" if logarithmic else "no value"
        parts.append(_text(width / 2, height / 2, what, anchor="middle"))
        return _picture(name, width, height, title, text, parts)
    low, high = min(xs), max(xs)
    across = Scale(low, high if high > low else low + 1, left, width - right)
    up = Scale(*_domain(ys, logarithmic), height - bottom, top, logarithmic)
    for tick in up.ticks():
        y = up(tick)
        parts.append(_line(left, y, width - right, y))
        parts.append(_text(left - 7, y + 4, number(tick), anchor="end"))
    for tick in across.ticks():
        if tick == int(tick):
            x = across(tick)
            parts.append(_line(x, height - bottom, x, height - bottom + 4, _FAINT))
            parts.append(_text(x, height - bottom + 17, f"{tick:g}", anchor="middle"))
    parts.append(_line(left, height - bottom, width - right, height - bottom, _FAINT))
    parts.append(_text(width - right, height - 6, "step k", anchor="end"))
    if unit:
        parts.append(_text(left, height - 6, unit))
    parts += [_polyline(one, across, up) for one in series]
    return _picture(name, width, height, title, text, parts)


def _polyline(one: Series, across: Scale, up: Scale) -> str:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in _thinned(one.x, one.y):
        if math.isfinite(y) and (y > 0 or not up.logarithmic):
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


def decibel_color(value: float) -> tuple[str, str]:
    """Return the colours of a cell and of the text in it."""
    if math.isnan(value):
        return "#ffffff", _FAINT
    value = min(max(value, _DECIBELS[0][0]), _DECIBELS[-1][0])
    for (low, first), (high, second) in itertools.pairwise(_DECIBELS):
        if value <= high:
            part = (value - low) / (high - low)
            r, g, b = (
                round(a + part * (c - a)) for a, c in zip(first, second, strict=True)
            )
            light = 0.299 * r + 0.587 * g + 0.114 * b > 140
            return f"#{r:02x}{g:02x}{b:02x}", _INK if light else "#ffffff"
    raise AssertionError("the last colour ends the scale")


@dataclass(frozen=True)
class Cell:
    """A field of a heat map: its value in decibels, two lines, and a tooltip."""

    value: float
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
    width: float = 96.0,
    height: float = 34.0,
) -> str:
    """Return coloured fields of signal-to-noise ratios; None leaves one empty."""
    left = 16 + 6.6 * max(map(len, rows), default=0)
    left, top = min(max(left, 90.0), 320.0), 44.0
    across = left + width * len(columns) + 8
    down = top + height * len(rows) + 8
    parts = [_text(0, 16, title, size=13, color=_INK, weight=600)]
    for j, column in enumerate(columns):
        middle = left + width * (j + 0.5)
        parts.append(_text(middle, top - 8, column, anchor="middle", size=11))
    for i, row in enumerate(rows):
        y = top + height * i
        label = row if len(row) <= 46 else f"…{row[-45:]}"
        parts.append(
            _text(left - 8, y + height / 2 + 4, label, anchor="end", color=_INK)
        )
        for j in range(len(columns)):
            one, x = cell(i, j), left + width * j
            fill, ink = decibel_color(math.nan if one is None else one.value)
            parts.append(
                f'<g><rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" '
                f'height="{height - 2:.1f}" rx="2" fill="{fill}" stroke="{_GRID}"/>'
            )
            if one is not None:
                shift = 1.5 if one.below else -4
                parts.append(f"<title>{escape(one.hint)}</title>")
                middle = y + height / 2
                if one.text:
                    parts.append(
                        _text(
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
                        _text(
                            x + width / 2,
                            middle + 11,
                            one.below,
                            anchor="middle",
                            size=9,
                            color=ink,
                        )
                    )
            parts.append("</g>")
    return _picture(name, across, down, title, text, parts)


def decibel_legend(name: str) -> str:
    """Return the colours of the decibels."""
    marks = (0, 10, 20, 30, 45, 60, 80, 110, 150)
    parts = []
    for i, mark in enumerate(marks):
        fill, ink = decibel_color(mark)
        x = 46 * i
        parts.append(
            f'<rect x="{x}" y="0" width="46" height="20" fill="{fill}" '
            f'stroke="{_GRID}"/>'
        )
        parts.append(_text(x + 23, 14, f"{mark}", anchor="middle", color=ink))
    parts.append(_text(46 * len(marks) + 8, 14, "dB", color=_FAINT))
    title = "Colours of the signal-to-noise ratio in decibels"
    return _picture(name, 46 * len(marks) + 40, 21, title, title, parts)


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
    places = [e for one in cells.values() for e in one.counts]
    first, last = min(places, default=-1), max(places, default=0)
    width, height, top = 132.0, 46.0, 44.0
    left = min(max(16 + 6.6 * max(map(len, rows), default=0), 90.0), 320.0)
    parts = [_text(0, 16, title, size=13, color=_INK, weight=600)]
    for j, column in enumerate(columns):
        parts.append(_text(left + width * (j + 0.5), top - 8, column, anchor="middle"))
    for i, row in enumerate(rows):
        label = row if len(row) <= 46 else f"…{row[-45:]}"
        parts.append(
            _text(
                left - 8,
                top + height * (i + 0.5) + 4,
                label,
                anchor="end",
                color=_INK,
            )
        )
    for (i, j), one in cells.items():
        x, y = left + width * j + 4, top + height * i + 4
        across = Scale(first, last + 1, x, x + width - 8)
        parts.append(_histogram(one, across, y, height - 10))
    y = top + height * len(rows)
    for j in range(len(columns)):
        x = left + width * j + 4
        across = Scale(first, last + 1, x, x + width - 8)
        roomy = across(0) - across(first) > 26 and across(last) - across(0) > 22
        parts += [
            _text(across(place), y + 9, f"{place}", anchor="middle", size=9)
            for place in ((first, 0, last) if roomy else (first, last))
        ]
    return _picture(name, left + width * len(columns) + 8, y + 14, title, text, parts)


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
    ]
    parts.append(f'<path d="{"".join(path)}" fill="{COLORS[0]}"/></g>')
    return "".join(parts)


def bars(
    name: str,
    title: str,
    text: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    labels: Sequence[str],
) -> str:
    """Return groups of horizontal bars of shares; negative ones go left."""
    left = min(max(16 + 6.6 * max((len(r) for r, _ in rows), default=0), 90.0), 320.0)
    thick, gap, top, width = 9.0, 8.0, 48.0, 380.0
    values = [v for _, group in rows for v in group if math.isfinite(v)]
    low, high = min([0.0, *values]), max([0.01, *values])
    across = Scale(low, high, left, left + width)
    parts = [_text(0, 16, title, size=13, color=_INK, weight=600)]
    for i, label in enumerate(labels):
        x = left + 170 * i
        parts.append(f'<rect x="{x}" y="27" width="12" height="9" fill="{COLORS[i]}"/>')
        parts.append(_text(x + 18, 36, label, color=_INK))
    each = len(labels) * thick + gap
    for i, (row, group) in enumerate(rows):
        y = top + each * i
        middle = y + (each - gap) / 2 + 4
        parts.append(_text(left - 8, middle, row, anchor="end", color=_INK))
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
                _text(end + 5, y + j * thick + 7.5, f"{100 * value:.1f} %", size=9)
            )
    bottom = top + each * len(rows)
    parts.append(_line(across(0), top - 4, across(0), bottom, _FAINT))
    return _picture(name, left + width + 60, bottom + 6, title, text, parts)
