"""SVG text: the parts that charts are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's colours, which people who see fewer colours tell apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
INK, FAINT, GRID = "#1b1f24", "#57606a", "#e4e7eb"
_ROW_LABEL = 46  # most characters


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
            decades = math.log10(self.high / self.low)
            steps = (1.0,) if decades > 2.2 else (1.0, 2.0, 5.0)
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


def text_at(
    x: float,
    y: float,
    content: str,
    *,
    anchor: str = "start",
    size: float = 11,
    color: str = FAINT,
    weight: int = 400,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}" '
        f'font-weight="{weight}" fill="{color}">{escape(content)}</text>'
    )


def row_label(text: str, x: float, y: float) -> str:
    shown = text if len(text) <= _ROW_LABEL else f"…{text[1 - _ROW_LABEL :]}"
    return text_at(x, y, shown, anchor="end", color=INK)


def label_width(rows: Sequence[str]) -> float:
    longest = max(map(len, rows), default=0)
    return max(90.0, 16 + 6.4 * min(longest, _ROW_LABEL))


def line(x1: float, y1: float, x2: float, y2: float, color: str = GRID) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{color}"/>'
    )


def picture(
    name: str, width: float, height: float, title: str, text: str, parts: list[str]
) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(text)}</desc>{"".join(parts)}</svg>'
    )
