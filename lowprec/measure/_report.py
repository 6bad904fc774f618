"""The report page of a run: what was measured, where, and against which bounds."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import kernels
from ..formats import Format
from . import _page as html
from . import _svg as svg
from ._attribution import Attribution
from ._environment import environment
from ._findings import findings
from ._layers import LayerMonitor
from ._ledger import Ledger
from ._roles import ROLES
from ._statistics import TensorStatistics

Bounds = Mapping[str, Any]

_MOST_LAYERS = 60
_MOST_ROWS = 120
_MOST_COLUMNS = 36
_SHOWN = ROLES[:-1]  # the update has no rounding error of its own sort

# Chart, its quantities with their labels, whether logarithmic, unit, description.
_CHARTS: tuple[tuple[str, tuple[tuple[str, str], ...], bool, str, str], ...] = (
    (
        "Loss",
        (("loss", "low precision"), ("reference_loss", "reference, same weights")),
        False,
        "",
        "Loss of each measured step, as trained and in the reference dtype.",
    ),
    (
        "Gradient error r_k",
        (("r_norm", "||r_k||"), ("gradient_norm", "||g_k|| exact")),
        True,
        "Euclidean norm",
        "Norm of the gradient's rounding error beside that of the exact gradient.",
    ),
    (
        "Update error s_k",
        (("s_norm", "||s_k||"), ("update_norm", "||step|| exact")),
        True,
        "Euclidean norm",
        "Norm of the update's rounding error beside that of the exact update.",
    ),
    (
        "Relative errors",
        (
            ("relative_gradient_error", "||r_k|| / ||g_k||"),
            ("relative_update_error", "||s_k|| / ||step||"),
        ),
        True,
        "",
        "Both errors relative to what they disturb; at 1 nothing is left of it.",
    ),
    (
        "Stagnation",
        (("stagnation", "parameters that did not move"),),
        False,
        "share",
        "Share of the parameters that a step left where they were.",
    ),
    (
        "Bias",
        (("r_bias", "of r_k"), ("s_bias", "of s_k")),
        False,
        "",
        "1: errors add up; about 1/sqrt(K) after K steps: they average out.",
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
        coverage: rows of ``coverage()`` or `lowprec.nn.report`.
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
    if known := (bounds or {}).keys() - {n for c in _CHARTS for n, _ in c[1]}:
        raise ValueError(
            f"no chart shows {', '.join(sorted(known))}: bounds are for "
            f"{', '.join(name for chart in _CHARTS for name, _ in chart[1])}"
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
            "w_{k+1} = w_k - eta_k (g_k + r_k) + s_k, measured against the same step "
            "from the same weights, mini-batch and dropout mask without rounding. "
            "Bounds are dashed."
        )
        content = [html.charts(drawn), _ledger_table(ledger)]
        yield "run", ("Steps", html.section("run", "Steps", text, content))
    if layers is not None and layers.layers:
        yield from _layer_sections(layers)
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
    steps = ledger["step"] if "step" in ledger.names else np.arange(len(ledger))
    return f"{len(ledger)} measured steps, {steps[0]:g} to {steps[-1]:g}."


def _figures(ledger: Ledger) -> str:
    known = {row.name: row for row in ledger.summary().rows if row.count}
    wanted = (
        ("loss", "last", "loss of the last measured step", svg.number),
        ("relative_gradient_error", "rms", "||r|| / ||g||, rms over steps", svg.number),
        (
            "relative_update_error",
            "rms",
            "||s|| / ||step||, rms over steps",
            svg.number,
        ),
        ("stagnation", "mean", "of the parameters did not move, mean", svg.share),
        ("r_bias", "last", "bias of r (1: systematic)", svg.number),
        ("s_bias", "last", "bias of s (1: systematic)", svg.number),
    )
    shown = [
        html.figure(text(getattr(known[name], which)), label)
        for name, which, label, text in wanted
        if name in known
    ]
    return f'<div class="figures">{"".join(shown)}</div>'


def _run_charts(ledger: Ledger, bounds: Bounds) -> Iterator[str]:
    steps = ledger["step"] if "step" in ledger.names else np.arange(len(ledger))
    x = [float(step) for step in steps]
    for i, (title, quantities, logarithmic, unit, text) in enumerate(_CHARTS):
        present = [(name, label) for name, label in quantities if name in ledger.names]
        if not present:
            continue
        series = [
            svg.Series(label, x, ledger[name].tolist(), svg.COLORS[j])
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
                color = svg.COLORS[len(series) % len(svg.COLORS)]
                values = np.broadcast_to(y, (len(x),)).tolist()
                series.append(svg.Series(label, x, values, color, dashed=True))
        yield svg.line_chart(
            f"run-{i}", title, text, series, unit=unit, logarithmic=logarithmic
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
    text = "Numbers of these charts" + (f", every {every}th step" if every > 1 else "")
    return html.folded(text, html.table(names, rows, numbers=range(len(names))))


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return svg.number(value) if isinstance(value, float) else str(value)


def _layer_sections(layers: LayerMonitor) -> Iterator[tuple[str, tuple[str, str]]]:
    inexact = [name for name in layers.layers if _rounds(layers, name)]
    shown = inexact[:_MOST_LAYERS]
    exact = [name for name in layers.layers if name not in inexact]
    roles = [r for r in _SHOWN if any((n, r) in layers.measured for n in shown)]
    notes = []
    if exact:
        notes.append(f"Without any error: {', '.join(map(_name, exact))}.")
    if len(inexact) > len(shown):
        notes.append(f"The first {len(shown)} of {len(inexact)} layers are shown.")
    text = (
        "Signal-to-noise ratio of each tensor in decibels against the same operation "
        "in the reference dtype at the same inputs, so each layer shows its own errors "
        "only; below it the tensor's format. One bit is 6 dB."
    )
    parts = [
        html.wide(
            svg.heat_map(
                "layers-roles",
                "Layers and tensors, all measured steps",
                f"{text} The table below has the same numbers.",
                [_name(name) for name in shown],
                roles,
                lambda i, j: _cell(layers, shown[i], roles[j]),
            )
        ),
        html.wide(svg.decibel_legend("decibels")),
        html.folded("Numbers of each tensor", _layer_table(layers)),
        html.bullets(notes) if notes else "",
    ]
    steps = sorted({int(r["step"]) for r in layers.ledger})  # type: ignore[arg-type]
    if len(steps) > 1:
        parts.append(html.wide(_over_steps(layers, shown, steps)))
    yield "layers", ("Layers", html.section("layers", "Layers", text, parts))

    text = (
        "How many exact values lie in each binade, on a square-root scale; the axis is "
        "the binary exponent."
    )
    keys = (
        '<p class="faint"><span class="mark" style="background:#e7f3ec"></span>normal '
        'range of the format<span class="mark" style="background:#fff6d9"></span>'
        'subnormal<span class="mark" style="background:#fbe9e3"></span>outside</p>'
    )
    grid = svg.histogram_grid(
        "exponents-grid",
        "Exponents of the exact values",
        text,
        [_name(name) for name in shown],
        roles,
        lambda i, j: _histogram(layers, shown[i], roles[j]),
    )
    folded = html.folded("Numbers of these histograms", _exponent_table(layers, shown))
    content = html.section(
        "exponents", "Exponents", text, [keys, html.wide(grid), folded]
    )
    yield "exponents", ("Exponents", content)


def _rounds(layers: LayerMonitor, name: str) -> bool:
    return any(
        layers.statistics(name, role).noise > 0
        or layers.statistics(name, role).nonfinite
        for role in _SHOWN
        if (name, role) in layers.measured
    )


def _name(layer: str) -> str:
    return layer or "(model)"


def _decibels(x: TensorStatistics) -> str:
    if x.signal_to_noise == math.inf:
        return "exact"
    return svg.number(x.signal_to_noise)


def _cell(layers: LayerMonitor, name: str, role: str) -> svg.Cell | None:
    if (name, role) not in layers.measured:
        return None
    x = layers.statistics(name, role)
    label = layers.format(name, role)
    hint = (
        f"{_name(name)}, {role} in {label}: {_decibels(x)} dB, relative error "
        f"{svg.number(x.relative_error)}, mean {svg.number(x.mean_ulps)} ulp"
    )
    value = 150.0 if x.signal_to_noise == math.inf else x.signal_to_noise
    return svg.Cell(value, _decibels(x), label[:16], hint)


def _over_steps(layers: LayerMonitor, names: Sequence[str], steps: list[int]) -> str:
    every = math.ceil(len(steps) / _MOST_COLUMNS)
    columns = steps[::every]
    values = {
        (str(r["module"]), r["step"]): float(r["signal_to_noise"])  # type: ignore[arg-type]
        for r in layers.ledger
        if r["role"] == "output"
    }

    def cell(i: int, j: int) -> svg.Cell | None:
        value = values.get((names[i], columns[j]))
        if value is None:
            return None
        hint = f"{_name(names[i])}, step {columns[j]}: {svg.number(value)} dB"
        text = svg.number(round(value)) if math.isfinite(value) else ""
        return svg.Cell(150.0 if value == math.inf else value, text, "", hint)

    return svg.heat_map(
        "layers-steps",
        "Outputs of the layers over the steps (dB)",
        "Signal-to-noise ratio of each layer's output in decibels, step by step.",
        [_name(name) for name in names],
        [str(step) for step in columns],
        cell,
        width=max(28.0, min(60.0, 860 / len(columns))),
        height=24.0,
    )


def _layer_table(layers: LayerMonitor) -> str:
    header = (
        "layer",
        "tensor",
        "format",
        "SNR (dB)",
        "relative error",
        "mean ulp",
        "largest ulp",
        "overflow",
        "saturation",
        "underflow",
        "subnormal",
        "swamped",
        "compared",
    )
    rows = []
    for name, role in layers.measured:
        x = layers.statistics(name, role)
        counts = (x.overflow, x.saturation, x.underflow, x.subnormal)
        rows.append(
            [
                _name(name),
                "update (underflow: stagnation)" if role == "update" else role,
                layers.format(name, role),
                _decibels(x),
                svg.number(x.relative_error),
                svg.number(x.mean_ulps),
                svg.number(x.max_ulps),
                *(svg.share(n / x.compared if x.compared else 0.0) for n in counts),
                svg.share(x.swamped / x.additions) if x.additions else "",
                str(x.compared),
            ]
        )
    return html.table(header, rows, numbers=range(3, len(header)))


def _histogram(layers: LayerMonitor, name: str, role: str) -> svg.Histogram | None:
    if (name, role) not in layers.measured:
        return None
    x = layers.statistics(name, role)
    if not x.exponents:
        return None
    target = layers.known_format(name, role)
    lowest = normal = largest = None
    if isinstance(target, Format):
        lowest = math.frexp(float(target.smallest_subnormal))[1] - 1
        normal = math.frexp(float(target.smallest_normal))[1] - 1
        largest = target.emax
    hint = (
        f"{_name(name)}, {role}: exponents {min(x.exponents)} to {max(x.exponents)}, "
        f"{x.zeros} zeros; format {layers.format(name, role)}"
    )
    return svg.Histogram(dict(x.exponents), lowest, normal, largest, hint)


def _exponent_table(layers: LayerMonitor, names: Sequence[str]) -> str:
    rows = []
    for name, role in layers.measured:
        x = layers.statistics(name, role)
        if name in names and role in _SHOWN and x.exponents:
            text = "  ".join(f"2^{e}: {x.exponents[e]}" for e in sorted(x.exponents))
            rows.append([_name(name), role, str(x.zeros), text])
    return html.table(
        ("layer", "tensor", "zeros", "values by binade"), rows, code=[3], numbers=[2]
    )


def _attribution(table: Attribution) -> str:
    rows = [row for row in table.rows if row.alone or row.removed]
    text = (
        f"Share of the gradient's error ||r|| = {svg.number(table.r_norm)} (||g|| = "
        f"{svg.number(table.gradient_norm)}) that each site causes on one batch, "
        f"switched on alone and switched off alone. Interaction: "
        f"{100 * table.interaction:.3g} % of the error is no sum of single ones."
    )
    picture = svg.bars(
        "attribution-bars",
        "Share of the gradient's error",
        text,
        [(row.site or "(model)", (row.alone_share, row.removed_share)) for row in rows],
        ("on alone", "off alone"),
    )
    header = ("site", "alone", "share", "removed", "share", "||r|| without")
    numbers = html.table(
        header,
        [
            (
                row.site or "(model)",
                svg.number(row.alone),
                f"{100 * row.alone_share:.1f} %",
                svg.number(row.removed),
                f"{100 * row.removed_share:.1f} %",
                svg.number(row.r_without),
            )
            for row in rows
        ],
        numbers=range(1, 6),
    )
    parts = [html.wide(picture), html.folded("Numbers of these bars", numbers)]
    return html.section("attribution", "Attribution", text, parts)


def _coverage(rows: list[Any]) -> str:
    text = "What was emulated, what is exact by its nature, and what was not emulated."
    header = list(rows[0]._fields) if rows else ["operation", "treatment"]
    cells = [["" if x is None else str(x) for x in row] for row in rows]
    codes = [i for i, name in enumerate(header) if name == "precision"]
    return html.section(
        "coverage", "Coverage", text, [html.wide(html.table(header, cells, code=codes))]
    )
