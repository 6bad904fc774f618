"""The sections of a report about layers: errors, losses, exponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from ..formats import Format
from . import _page as html
from ._fields import (
    Cell,
    Histogram,
    decibel_color,
    decibel_legend,
    heat_map,
    histogram_grid,
    share_color,
)
from ._layers import LayerMonitor
from ._roles import ROLES, UPDATE
from ._statistics import TensorStatistics
from ._svg import number, share

_Share = Callable[[TensorStatistics], float | None]

_MOST_LAYERS = 60
_MOST_COLUMNS = 36


def _compared(count: Callable[[TensorStatistics], int]) -> _Share:
    return lambda x: count(x) / x.compared if x.compared else None


# By what is lost: its share among the values of a tensor, and in which tensors.
_LOSSES: dict[str, tuple[_Share, tuple[str, ...]]] = {
    "overflow": (_compared(lambda x: x.overflow), ROLES),
    "saturation": (_compared(lambda x: x.saturation), ROLES),
    "underflow": (_compared(lambda x: x.underflow), ROLES),
    "subnormal": (_compared(lambda x: x.subnormal), ROLES),
    "swamped additions": (
        lambda x: x.swamped / x.additions if x.additions else None,
        ("output", "grad_input", "grad_weight"),
    ),
    "stagnation": (_compared(lambda x: x.underflow), (UPDATE,)),
}


def layer_sections(layers: LayerMonitor) -> Iterator[tuple[str, tuple[str, str]]]:
    inexact = [name for name in layers.layers if _rounds(layers, name)]
    shown = inexact[:_MOST_LAYERS]
    known = {name for name, role in layers.measured if role != UPDATE}
    exact = [n for n in layers.layers if n in known and n not in inexact]
    roles = [r for r in ROLES if any((n, r) in layers.measured for n in shown)]
    labels = [f"{_name(name)}  {layers.kind(name)}" for name in shown]
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
            "Layers and tensors",
            heat_map(
                "layers-roles",
                "Layers and tensors, all measured steps",
                f"{text} The table below has the same numbers.",
                labels,
                roles,
                lambda i, j: _cell(layers, shown[i], roles[j]),
            ),
        ),
        html.wide("Colours", decibel_legend("decibels")),
        html.wide(
            "Losses",
            heat_map(
                "layers-losses",
                "Losses: largest share among the tensors of a layer",
                "Share of values that left the format's range, of values that became "
                "zero, of additions that changed nothing, of weights that stayed.",
                labels,
                list(_LOSSES),
                lambda i, j: _loss(layers, shown[i], list(_LOSSES)[j]),
            ),
        ),
        html.folded("Numbers of each tensor", _layer_table(layers)),
        html.bullets(notes) if notes else "",
    ]
    steps = sorted({int(r["step"]) for r in layers.ledger})  # type: ignore[arg-type]
    if len(steps) > 1:
        parts.append(html.wide("Steps", _over_steps(layers, shown, labels, steps)))
    yield "layers", ("Layers", html.section("layers", "Layers", text, parts))

    text = (
        "How many exact values lie in each binade, on a square-root scale; the axis is "
        "the binary exponent. Values too small for it, "
        "most often less than one in a hundred, are in the table only."
    )
    keys = (
        '<p class="faint"><span class="mark" style="background:#e7f3ec"></span>normal '
        'range of the format<span class="mark" style="background:#fff6d9"></span>'
        'subnormal<span class="mark" style="background:#fbe9e3"></span>outside</p>'
    )
    grid = histogram_grid(
        "exponents-grid",
        "Exponents of the exact values",
        text,
        labels,
        roles,
        lambda i, j: _histogram(layers, shown[i], roles[j]),
    )
    folded = html.folded("Numbers of these histograms", _exponent_table(layers, shown))
    content = html.section(
        "exponents", "Exponents", text, [keys, html.wide("Histograms", grid), folded]
    )
    yield "exponents", ("Exponents", content)


def _rounds(layers: LayerMonitor, name: str) -> bool:
    return any(
        layers.statistics(name, role).noise > 0
        or layers.statistics(name, role).nonfinite
        for role in ROLES
        if (name, role) in layers.measured
    )


def _name(layer: str) -> str:
    return layer or "(model)"


def _decibels(x: TensorStatistics) -> str:
    if x.signal_to_noise == math.inf:
        return "exact"
    return number(x.signal_to_noise)


def _cell(layers: LayerMonitor, name: str, role: str) -> Cell | None:
    if (name, role) not in layers.measured:
        return None
    x = layers.statistics(name, role)
    label = layers.format(name, role)
    hint = (
        f"{_name(name)}, {role} in {label}: {_decibels(x)} dB, relative error "
        f"{number(x.relative_error)}, mean {number(x.mean_ulps)} ulp"
    )
    return Cell(decibel_color(x.signal_to_noise), _decibels(x), label[:18], hint)


def _loss(layers: LayerMonitor, name: str, kind: str) -> Cell | None:
    part, roles = _LOSSES[kind]
    shares = [
        (part(layers.statistics(name, role)), role)
        for role in roles
        if (name, role) in layers.measured
    ]
    known = [(value, role) for value, role in shares if value is not None]
    if not known:
        return None
    worst, role = max(known)
    hint = f"{_name(name)}, {kind}: {share(worst)} of {role}"
    below = role if worst and len(roles) > 1 else ""
    return Cell(share_color(worst), share(worst), below, hint)


def _over_steps(
    layers: LayerMonitor, names: Sequence[str], labels: list[str], steps: list[int]
) -> str:
    every = math.ceil(len(steps) / _MOST_COLUMNS)
    columns = steps[::every]
    values = {
        (str(r["module"]), r["step"]): float(r["signal_to_noise"])  # type: ignore[arg-type]
        for r in layers.ledger
        if r["role"] == "output"
    }

    def cell(i: int, j: int) -> Cell | None:
        value = values.get((names[i], columns[j]))
        if value is None:
            return None
        hint = f"{_name(names[i])}, step {columns[j]}: {number(value)} dB"
        text = number(round(value)) if math.isfinite(value) else "exact"
        return Cell(decibel_color(value), text, "", hint)

    return heat_map(
        "layers-steps",
        "Outputs of the layers over the steps (dB)",
        "Signal-to-noise ratio of each layer's output in decibels, step by step.",
        labels,
        [str(step) for step in columns],
        cell,
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
                "update (underflow: stagnation)" if role == UPDATE else role,
                layers.format(name, role),
                _decibels(x),
                number(x.relative_error),
                number(x.mean_ulps),
                number(x.max_ulps),
                *(share(n / x.compared if x.compared else 0.0) for n in counts),
                share(x.swamped / x.additions) if x.additions else "",
                str(x.compared),
            ]
        )
    return html.table(header, rows, numbers=range(3, len(header)))


def _histogram(layers: LayerMonitor, name: str, role: str) -> Histogram | None:
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
    return Histogram(dict(x.exponents), lowest, normal, largest, hint)


def _exponent_table(layers: LayerMonitor, names: Sequence[str]) -> str:
    rows = []
    for name, role in layers.measured:
        x = layers.statistics(name, role)
        if name in names and role in ROLES and x.exponents:
            text = "  ".join(f"2^{e}: {x.exponents[e]}" for e in sorted(x.exponents))
            rows.append([_name(name), role, str(x.zeros), text])
    return html.table(
        ("layer", "tensor", "zeros", "values by binade"), rows, code=[3], numbers=[2]
    )
