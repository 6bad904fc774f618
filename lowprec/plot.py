"""Figures of formats, errors and training runs; matplotlib is imported on first use.

Every function takes ``axes`` to draw into, or makes a figure of its own, and returns
the figure and the axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from .block_rounding import BlockRounding, as_any_rounding
from .formats import AnyFormat, Format, Line, line_of
from .formats import format as as_format
from .rounding import RoundingMode

__all__ = [
    "exponents",
    "heat_map",
    "number_line",
    "spacing",
    "staircase",
    "traces",
]

_MOST_VALUES = 1 << 16
_SAMPLES = 4001
_SHOWN = 20
# Logarithmic scales of float64 overflow beyond the first, with margins the second.
_LARGEST_SHOWN, _LARGEST_WITH_MARGIN = math.ldexp(1.0, 1023), math.ldexp(1.0, 900)


def number_line(format: AnyFormat | str, *, axes: Any = None) -> tuple[Any, Any]:
    """Draw every finite value of a format as a mark on a line.

    Of block formats these are the values of the elements, in units of their scale.

    Args:
        format: a format of any kind or its name, such as ``"posit8"``, ``"ternary"``
            or ``"mxfp4"``.
        axes: matplotlib axes; None makes a figure.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if there are more than 2^16 values, or float64 does not hold them.

    Example:
        >>> figure, axes = number_line("e4m3fn")
        >>> axes.get_title()
        'e4m3fn: 253 values'
    """
    line = line_of(format)
    every = line.values(_MOST_VALUES)
    if every is None:
        raise ValueError(
            f"a number line shows at most {_MOST_VALUES} values, those of formats of "
            f"16 bits; {line.title} has more"
        )
    _check_drawn(line)
    values = list(map(float, every))
    figure, axes = _canvas(axes, (7.0, 1.4))
    axes.eventplot(values, lineoffsets=0, linelengths=1, linewidths=0.8, color="C0")
    axes.set_yticks([])
    axes.set_xlabel(_named("value", line))
    axes.set_title(f"{line.title}: {len(values)} values")
    return figure, axes


def spacing(*formats: AnyFormat | str, axes: Any = None) -> tuple[Any, Any]:
    """Draw how far apart the values of formats are, relative to the values.

    ulp(x) / x at the powers of two, where it is largest in their binade: 2^(1-p) for
    normal numbers, up to 1 for subnormal ones. Of posits and levels this is the
    distance from the first value of a binade to the next value. The width shows the
    range. Values of block formats are those of the elements, in units of their scale.

    Args:
        formats: one or more formats of any kind or their names.
        axes: matplotlib axes; None makes a figure.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if no format is given, or float64 does not hold one's values, or
            none of them is positive.

    Example:
        >>> figure, axes = spacing("e4m3fn", "e5m2")
        >>> [line.get_label() for line in axes.lines]
        ['e4m3fn', 'e5m2']
    """
    if not formats:
        raise ValueError("spacing needs at least one format, such as 'e4m3fn'")
    figure, axes = _canvas(axes, (7.0, 4.0))
    wide = False
    for number, given in enumerate(formats):
        line = _check_drawn(line_of(given))
        gaps = [(float(value), gap) for value, gap in line.gaps()]
        if not gaps:
            raise ValueError(f"spacing shows positive values; {line.title} has none")
        distances = [float(gap) / value for value, gap in gaps]
        first = [value for value, _ in gaps]
        # The last binade ends at the largest value, or where scales still have room.
        x = [*first, min(max(float(line.largest), first[-1]), _LARGEST_SHOWN)]
        wide = wide or x[-1] >= _LARGEST_WITH_MARGIN
        style = ("-", "--", ":", "-.")[number % 4]
        y = [*distances, distances[-1]]
        label = _named(line.title, line)
        axes.plot(x, y, label=label, linestyle=style, linewidth=1.8)
    if wide:  # margins, and ticks beyond the values, would overflow
        axes.margins(x=0)
    axes.set_xscale("log", base=2)
    if wide:
        axes.set_xticks([math.ldexp(1.0, e) for e in range(-1024, 1024, 256)])
        axes.set_xticks([], minor=True)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("value $x$")
    axes.set_ylabel("ulp($x$) / $x$")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure, axes


def staircase(
    format: AnyFormat | str,
    mode: RoundingMode | str = "nearest_even",
    *,
    limit: float | None = None,
    axes: Any = None,
) -> tuple[Any, Any]:
    """Draw rounded numbers over the numbers, with the identity beside them.

    Elements of block formats are rounded as if their block's scale were 1.

    Args:
        format: a format of any kind or its name, whose values float64 holds.
        mode: rounding mode; of stochastic modes one sample is drawn as dots.
        limit: the largest number; None shows 20 positive values, or all and what is
            beyond them.
        axes: matplotlib axes; None makes a figure.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if the mode is unknown, or float64 does not hold the values.

    Example:
        >>> figure, axes = staircase("e2m1fn", "toward_zero")
        >>> axes.get_title()
        'e2m1fn, toward_zero'
    """
    from .arithmetic import round

    changes: Any = {"mode": mode}
    chosen = replace(as_any_rounding(format), **changes)
    line = _check_drawn(line_of(chosen.format))
    rounding = chosen.element if isinstance(chosen, BlockRounding) else chosen
    if limit is None:
        shown, largest = float(line.positive(_SHOWN)), float(line.largest)
        ends = 1.15 * max(abs(float(line.least)), abs(largest))
        limit = ends if shown == largest else shown
    start = -limit if line.least < 0 else 0.0
    x = torch.linspace(start, limit, _SAMPLES, dtype=torch.float64)
    y = round(x, rounding, seed=0 if rounding.stochastic else None)
    y = torch.where(y.isfinite(), y, torch.nan)
    figure, axes = _canvas(axes, (5.0, 5.0))
    axes.plot(x, x, color="0.7", linewidth=1, label="identity")
    marks = {"linestyle": "", "marker": ".", "markersize": 2}
    style = marks if rounding.stochastic else {"linewidth": 1.5}
    axes.plot(x, y, color="C0", label="rounded", **style)
    axes.set_aspect("equal")
    axes.set_xlabel(_named("number", line))
    axes.set_ylabel("rounded")
    axes.set_title(f"{line.title}, {rounding.mode.value}")
    axes.legend(loc="upper left")
    return figure, axes


def traces(
    steps: ArrayLike,
    series: Mapping[str, ArrayLike],
    *,
    bounds: Mapping[str, ArrayLike] | None = None,
    logarithmic: bool | None = None,
    axes: Any = None,
) -> tuple[Any, Any]:
    """Draw quantities over steps, and bounds as dashed lines.

    Args:
        steps: numbers of the steps, [K].
        series: quantities [K] by name; NaN leaves gaps.
        bounds: numbers, or one per step, by label.
        logarithmic: scale of the ordinate; None takes it if all is positive and spans
            more than a decade.
        axes: matplotlib axes; None makes a figure.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.

    Example:
        >>> figure, axes = traces([0, 1], {"r_norm": [0.1, 0.2]}, bounds={"R": 0.5})
        >>> [line.get_label() for line in axes.lines]
        ['r_norm', 'R']
    """
    figure, axes = _canvas(axes, (7.0, 4.0))
    x = np.asarray(steps, dtype=np.float64)
    every = []
    for name, values in series.items():
        y = np.asarray(values, dtype=np.float64)
        axes.plot(x, y, label=name, linewidth=1.2)
        every.append(y)
    for number, (name, level) in enumerate((bounds or {}).items()):
        y = np.broadcast_to(np.asarray(level, dtype=np.float64), x.shape)
        axes.plot(x, y, label=name, linestyle="--", color=f"C{number + 3}")
        every.append(y)
    if logarithmic is None:
        logarithmic = _spans_decades(np.concatenate(every) if every else x[:0])
    if logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel("step $k$")
    axes.legend()
    return figure, axes


def exponents(
    histogram: Mapping[int, int],
    *,
    format: Format | str | None = None,
    axes: Any = None,
) -> tuple[Any, Any]:
    """Draw how many values lie in each binade, and the range of a format.

    Args:
        histogram: number of values in [2^e, 2^(e+1)) by e, such as
            `lowprec.measure.TensorStatistics.exponents`.
        format: its normal range is marked, and that of its subnormals.
        axes: matplotlib axes; None makes a figure.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if float64 does not hold the format's values.

    Example:
        >>> figure, axes = exponents({-3: 5, -2: 9}, format="e4m3fn")
        >>> len(axes.patches) >= 2
        True
    """
    figure, axes = _canvas(axes, (7.0, 3.0))
    places = sorted(histogram)
    counts = [histogram[e] for e in places]
    axes.bar(places, counts, width=1.0, align="edge", color="C0")
    if format is not None:
        target = as_format(format)
        name = _check_drawn(target.line).title
        lowest = math.frexp(float(target.smallest_subnormal))[1] - 1
        normal = math.frexp(float(target.smallest_normal))[1] - 1
        span = {"color": "C2", "zorder": 0}
        axes.axvspan(normal, target.emax + 1, alpha=0.15, label=name, **span)
        if lowest < normal:
            label = f"subnormal in {name}"
            axes.axvspan(lowest, normal, alpha=0.07, label=label, **span)
        axes.legend()
    axes.set_xlabel("binary exponent")
    axes.set_ylabel("values")
    return figure, axes


def heat_map(
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str = "",
    axes: Any = None,
) -> tuple[Any, Any]:
    """Draw a matrix of numbers as colours with their text.

    Args:
        values: [R, C]; NaN and infinity stay white.
        rows: R names.
        columns: C names.
        label: of the colours.
        axes: matplotlib axes; None makes a figure.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.

    Example:
        >>> figure, axes = heat_map([[1.0, 2.0]], ["head"], ["output", "input"])
        >>> [text.get_text() for text in axes.texts]
        ['1', '2']
    """
    figure, axes = _canvas(axes, (2.0 + 0.9 * len(columns), 1.2 + 0.32 * len(rows)))
    table = np.asarray(values, dtype=np.float64).reshape(len(rows), len(columns))
    shown = np.where(np.isfinite(table), table, np.nan)
    image = axes.imshow(shown, aspect="auto", cmap="viridis")
    known = shown[~np.isnan(shown)]
    middle = (known.min() + known.max()) / 2 if known.size else 0.0
    for (i, j), value in np.ndenumerate(shown):
        if not np.isnan(value):
            dark = "black" if value > middle else "white"
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", color=dark)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    figure.colorbar(image, ax=axes, label=label)
    return figure, axes


def _canvas(axes: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    if axes is not None:
        return axes.figure, axes
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _check_drawn(line: Line) -> Line:
    """Return numbers that are numbers of a figure's axes too, which are float64.

    Raises:
        ValueError: if they are not.
    """
    ends = (line.largest, line.least, line.positive(1))
    if not all(isinstance(value, float) for value in ends):
        raise ValueError(
            f"figures show values that float64 holds, unlike those of {line.title}"
        )
    return line


def _named(what: str, line: Line) -> str:
    """Return a label with the unit, if the numbers have one."""
    return f"{what} (in units of {line.unit})" if line.unit else what


def _spans_decades(values: Any) -> bool:
    known = values[np.isfinite(values)]
    return bool(known.size and known.min() > 0 and known.max() > 10 * known.min())
