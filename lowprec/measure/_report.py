"""The report page of a run: what was measured, where, and against which bounds."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import kernels
from . import _page as html
from ._attribution import Attribution
from ._charts import Series, bars, line_chart
from ._environment import environment
from ._findings import findings
from ._layer_sections import layer_sections
from ._layers import LayerMonitor
from ._ledger import Ledger
from ._svg import COLORS, number, share

Bounds = Mapping[str, Any]

_MOST_ROWS = 120
_MOST_NAMES = 5
_FORMULA = (
    '<p class="formula"><i>w</i><sub>k+1</sub> = <i>w</i><sub>k</sub> - '
    "<i>η</i><sub>k</sub> (<i>g</i><sub>k</sub> + <i>r</i><sub>k</sub>) + "
    "<i>s</i><sub>k</sub></p>"
)


class _Chart(NamedTuple):
    title: str
    quantities: tuple[tuple[str, str], ...]  # and their labels
    text: str
    logarithmic: bool = False
    label: Callable[[float], str] = number


_CHARTS = (
    _Chart(
        "Loss",
        (("loss", "low precision"), ("reference_loss", "reference, same weights")),
        "Loss of each measured step, as trained and in the reference dtype.",
    ),
    _Chart(
        "Gradient error r, Euclidean norm",
        (("r_norm", "‖r‖"), ("gradient_norm", "‖g‖, exact gradient")),
        "Norm of the gradient's rounding error beside that of the exact gradient.",
        logarithmic=True,
    ),
    _Chart(
        "Update error s, Euclidean norm",
        (("s_norm", "‖s‖"), ("update_norm", "‖Δw‖, exact update")),
        "Norm of the update's rounding error beside that of the exact update.",
        logarithmic=True,
    ),
    _Chart(
        "Relative errors",
        (
            ("relative_gradient_error", "‖r‖ / ‖g‖"),
            ("relative_update_error", "‖s‖ / ‖Δw‖"),
        ),
        "Both errors relative to what they disturb; at 1 nothing is left of it.",
        logarithmic=True,
    ),
    _Chart(
        "Stagnation",
        (("stagnation", "parameters that did not move"),),
        "Share of the parameters that a step left where they were.",
        label=share,
    ),
    _Chart(
        "Bias",
        (("r_bias", "of r"), ("s_bias", "of s")),
        "1: errors add up; about 1/√K after K steps: they average out.",
    ),
)


def write_report(
    path: str | os.PathLike[str],
    ledger: Ledger,
    *,
    title: str = "Rounding errors of a training run",
    configuration: Mapping[str, Any] | None = None,
    bounds: Bounds | None = None,
    layers: LayerMonitor | None = None,
    coverage: Iterable[Any] | None = None,
    attribution: Attribution | None = None,
) -> Path:
    """Write one page about a run, readable without network, scripts or this library.

    Contract:
        The file is replaced as a whole. Every picture has a title, a description and
        its numbers in a table. Long runs are thinned to lowest and highest values.

    Args:
        path: of the page.
        ledger: records of a `RoundoffMonitor` or alike; a chart is drawn for what they
            have.
        title: of the page.
        configuration: text by name.
        bounds: by quantity a number, one per record, or several of them by label, for
            example from `lowprec.theory`: ``{"s_norm": {"u ||w||": 0.03}}``.
        layers: errors of each layer.
        coverage: rows of ``coverage()``, or others that are named tuples.
        attribution: of the gradient's error.

    Returns:
        The path.

    Raises:
        ValueError: if a bound is given for a quantity that no chart shows, or has
            neither one value nor one per record.

    Example:
        >>> import tempfile
        >>> ledger = Ledger()
        >>> ledger.append({"step": 0, "loss": 2.0, "r_norm": 0.1})
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     page = write_report(f"{directory}/run.html", ledger).read_text()
        >>> "<svg" in page, "<script" in page
        (True, False)
    """
    if known := (bounds or {}).keys() - {
        n for chart in _CHARTS for n, _ in chart.quantities
    }:
        raise ValueError(
            f"no chart shows {', '.join(sorted(known))}: bounds are for "
            f"{', '.join(name for chart in _CHARTS for name, _ in chart.quantities)}"
        )
    sections = dict(
        _sections(ledger, configuration, bounds or {}, layers, coverage, attribution)
    )
    links = "".join(f'<a href="#{n}">{text}</a>' for n, (text, _) in sections.items())
    body = [
        f"<header><h1>{html.escape(title)}</h1>",
        f'<p class="faint">{html.escape(_scope(ledger))}</p>',
        f'<nav aria-label="Sections">{links}</nav></header>',
        _figures(ledger),
        *(content for _, content in sections.values()),
    ]
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_text(html.page(title, body), encoding="utf-8")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _sections(
    ledger: Ledger,
    configuration: Mapping[str, Any] | None,
    bounds: Bounds,
    layers: LayerMonitor | None,
    coverage: Iterable[Any] | None,
    attribution: Attribution | None,
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield identifier, short title and content."""
    lines = findings(ledger, layers)
    if lines:
        text = "What stands out in these measurements, by itself neither good nor bad."
        found = html.section("findings", "Findings", text, [html.bullets(lines)])
        yield "findings", ("Findings", found)
    if configuration:
        rows = [(name, str(value)) for name, value in configuration.items()]
        parts = [html.table((), [row for row in rows if "\n" not in row[1]], code=[1])]
        parts += [
            html.folded(name, f"<pre>{html.escape(value)}</pre>")
            for name, value in rows
            if "\n" in value
        ]
        yield (
            "configuration",
            (
                "Configuration",
                html.section("configuration", "Configuration", "", parts),
            ),
        )
    drawn = list(_run_charts(ledger, bounds))
    if drawn:
        text = (
            "The errors r of the gradient and s of the update, against the same step "
            "from the same weights, mini-batch and dropout mask without rounding. "
            "Bounds are dashed."
        )
        content = [_FORMULA, html.charts(drawn), _ledger_table(ledger)]
        yield "run", ("Steps", html.section("run", "Steps", text, content))
    if layers is not None and layers.layers:
        yield from layer_sections(layers)
    if attribution is not None:
        yield "attribution", ("Attribution", _attribution(attribution))
    if coverage is not None:
        yield "coverage", ("Coverage", _coverage(list(coverage)))
    rows = [
        *environment().items(),
        *((f"kernels on {name}", text) for name, text in kernels.status().items()),
        ("written", datetime.datetime.now().astimezone().isoformat(" ", "seconds")),
    ]
    parts = [html.table((), rows, code=[1])]
    content_of = html.section("environment", "Environment", "", parts)
    yield "environment", ("Environment", content_of)


def _scope(ledger: Ledger) -> str:
    if len(ledger) == 0:
        return "No step was measured."
    steps = _steps(ledger)
    return f"{len(ledger)} measured steps, {steps[0]:g} to {steps[-1]:g}."


def _steps(ledger: Ledger) -> Any:
    """Return the steps' numbers; if any record has none, the records' numbers."""
    if "step" in ledger.names and np.isfinite(ledger["step"]).all():
        return ledger["step"]
    return np.arange(len(ledger), dtype=np.float64)


def _figures(ledger: Ledger) -> str:
    known = {row.name: row for row in ledger.summary().rows if row.count}
    wanted = (
        ("loss", "last", "loss of the last measured step", number),
        ("relative_gradient_error", "rms", "‖r‖ / ‖g‖, rms over the steps", number),
        (
            "relative_update_error",
            "rms",
            "‖s‖ / ‖Δw‖, rms over the steps",
            number,
        ),
        ("stagnation", "mean", "of parameters do not move, mean", share),
        ("r_bias", "last", "bias of r (1: systematic)", number),
        ("s_bias", "last", "bias of s (1: systematic)", number),
    )
    shown = [
        html.figure(text(getattr(known[name], which)), label)
        for name, which, label, text in wanted
        if name in known
    ]
    return f'<div class="figures">{"".join(shown)}</div>'


def _run_charts(ledger: Ledger, bounds: Bounds) -> Iterator[str]:
    x = _steps(ledger).tolist()
    for i, chart in enumerate(_CHARTS):
        present = [pair for pair in chart.quantities if pair[0] in ledger.names]
        if not present:
            continue
        series = [
            Series(label, x, ledger[name].tolist(), COLORS[j])
            for j, (name, label) in enumerate(present)
        ]
        for name, _ in present:
            for label, level in _levels(bounds.get(name), name):
                y = np.asarray(level, dtype=np.float64)
                if y.shape not in ((), (len(x),)):
                    raise ValueError(
                        f"the bound of {name} must be a number or {len(x)} of them, "
                        f"one per record, got shape {y.shape}"
                    )
                color = COLORS[len(series) % len(COLORS)]
                values = np.broadcast_to(y, (len(x),)).tolist()
                series.append(Series(label, x, values, color, dashed=True))
        yield line_chart(
            f"run-{i}",
            chart.title,
            chart.text,
            series,
            logarithmic=chart.logarithmic,
            label=chart.label,
        )


def _levels(bound: Any, name: str) -> list[tuple[str, Any]]:
    if bound is None:
        return []
    if isinstance(bound, Mapping):
        return [(str(label), level) for label, level in bound.items()]
    return [(f"bound of {name}", bound)]


def _ledger_table(ledger: Ledger) -> str:
    names = [name for name in ledger.names if "/" not in name]
    every = max(1, math.ceil(len(ledger) / _MOST_ROWS))
    rows = [
        [_shown(ledger[i].get(name)) for name in names]
        for i in range(0, len(ledger), every)
    ]
    text = "Numbers of these charts" + (f", one step in {every}" if every > 1 else "")
    return html.folded(text, html.table(names, rows, numbers=range(len(names))))


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return number(value) if isinstance(value, float) else str(value)


def _attribution(table: Attribution) -> str:
    rows = [row for row in table.rows if row.alone or row.removed]
    text = (
        f"Share of the gradient's error ‖r‖ = {number(table.r_norm)} (‖g‖ = "
        f"{number(table.gradient_norm)}) that each site causes on one batch, "
        f"switched on alone and switched off alone. Interaction: "
        f"{100 * table.interaction:.3g} % of the error is no sum of single ones."
    )
    picture = bars(
        "attribution-bars",
        "Share of the gradient's error",
        text,
        [(row.site or "(model)", (row.alone_share, row.removed_share)) for row in rows],
        ("on alone", "off alone"),
    )
    header = ("site", "alone", "share", "removed", "share", "‖r‖ without")
    numbers = html.table(
        header,
        [
            (
                row.site or "(model)",
                number(row.alone),
                f"{100 * row.alone_share:.1f} %",
                number(row.removed),
                f"{100 * row.removed_share:.1f} %",
                number(row.r_without),
            )
            for row in rows
        ],
        numbers=range(1, 6),
    )
    parts = [html.wide("Bars", picture), html.folded("Numbers of these bars", numbers)]
    return html.section("attribution", "Attribution", text, parts)


def _coverage(rows: list[Any]) -> str:
    text = "What was emulated, what is exact by its nature, and what was not emulated."
    parts = []
    if rows and {"operation", "calls", "treatment", "module"} <= set(rows[0]._fields):
        met: dict[tuple[str, str], list[Any]] = {}
        for row in rows:
            met.setdefault((row.treatment, row.operation), []).append(row)
        lines = [
            (
                operation,
                str(sum(row.calls for row in group)),
                treatment,
                _listed([row.module or "(model)" for row in group]),
            )
            for (treatment, operation), group in met.items()
        ]
        header = ("operation", "calls", "treatment", "modules")
        parts.append(html.wide("Operations", html.table(header, lines, numbers=[1])))
        parts.append(html.folded("Every operation of every module", _named(rows)))
    else:
        parts.append(html.wide("Coverage", _named(rows)))
    return html.section("coverage", "Coverage", text, parts)


def _named(rows: list[Any]) -> str:
    """Return named tuples as a table."""
    header = list(rows[0]._fields) if rows else ["operation", "treatment"]
    cells = [["" if x is None else str(x) for x in row] for row in rows]
    codes = [i for i, name in enumerate(header) if name == "precision"]
    return html.table(header, cells, code=codes)


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
