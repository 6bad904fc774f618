"""Figures of formats, errors and training runs; matplotlib is imported on first use.

Every function takes ``axes`` to draw into, or makes a figure of its own, and returns
the figure and the axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .formats import Format
from .formats import format as as_format

__all__ = ["exponents", "heat_map", "number_line", "traces"]

_MOST_VALUES = 1 << 16


def number_line(format: Format | str, *, axes: Any = None) -> tuple[Any, Any]:
    """Draw every finite value of a format as a mark on a line.

    Args:
        format: a `Format` or its name.
        axes: matplotlib axes; None makes a figure.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if there are more than 2^16 values.

    Example:
        >>> figure, axes = number_line("e4m3fn")
        >>> axes.get_title()
        'e4m3fn: 253 values'
    """
    target = as_format(format)
    if target.bits > math.log2(_MOST_VALUES):
        raise ValueError(
            f"a number line shows formats of at most 16 bits, got {target.bits} of "
            f"{_title(target)}"
        )
    values = [float(value) for value in target.values()]
    figure, axes = _canvas(axes, (7.0, 1.4))
    axes.eventplot(values, lineoffsets=0, linelengths=1, linewidths=0.8, color="C0")
    axes.set_yticks([])
    axes.set_xlabel("value")
    axes.set_title(f"{_title(target)}: {len(values)} values")
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
        lowest = math.frexp(float(target.smallest_subnormal))[1] - 1
        normal = math.frexp(float(target.smallest_normal))[1] - 1
        name = _title(target)
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


def _title(format: Format) -> str:
    return format.name or repr(format)


def _spans_decades(values: Any) -> bool:
    known = values[np.isfinite(values)]
    return bool(known.size and known.min() > 0 and known.max() > 10 * known.min())
