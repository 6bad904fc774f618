"""Rows of results over seeds: table for people, plain values for JSON, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..formats import columns as aligned
from .output import RunDirectory, environment

__all__ = ["Row", "curves", "merged", "save", "summary", "table"]

_PERCENT = 100.0
_PANEL = (3.2, 3.8)  # inches


def merged(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return results of `qat_training.train` for some seeds as one for all of them."""
    first = results[0]
    largest, mean = zip(*(result["distance"] for result in results), strict=True)
    return {
        "epochs": first["epochs"],
        "curves": {
            name: torch.cat([result["curves"][name] for result in results], dim=1)
            for name in first["curves"]
        },
        "diverged": torch.cat([result["diverged"] for result in results]),
        "distance": [max(largest), sum(mean) / len(mean)],
    }


@dataclass(frozen=True, eq=False)
class Row:
    """What one method gave, over S seeds.

    Args:
        labels: what was run, by name of the table's columns.
        result: as `qat_training.train` returns it.
    """

    labels: Mapping[str, str]
    result: Mapping[str, Any]

    def values(self, metric: str) -> Tensor:
        """Return a metric at the end, float64 [S]; accuracies in percent."""
        values: Tensor = self.result["curves"][metric][-1].to(torch.float64)
        return _PERCENT * values if metric.endswith("accuracy") else values

    def has(self, metric: str) -> bool:
        """Whether the metric was measured."""
        return metric in self.result["curves"]

    def mean(self, metric: str) -> float:
        """Return the mean over the seeds; NaN if one of them diverged."""
        return float(self.values(metric).mean())

    def deviation(self, metric: str) -> float:
        """Return the standard deviation over the seeds, 0 for one seed."""
        values = self.values(metric)
        return float(values.std()) if len(values) > 1 else 0 * float(values[0])

    @property
    def diverged(self) -> dict[int, int]:
        """Step at which the loss was no longer finite, by number of the seed."""
        steps = enumerate(self.result["diverged"].tolist())
        return {seed: step for seed, step in steps if step >= 0}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return all numbers as plain values; what is not finite becomes None.

    Args:
        rows: results.

    Returns:
        ``rows``, each with its labels, and mean, deviation and values by metric.
    """
    return {"rows": [_plain(row) for row in rows]}


def _plain(row: Row) -> dict[str, Any]:
    plain: dict[str, Any] = dict(row.labels)
    for metric in row.result["curves"]:
        plain[metric] = {
            "mean": _number(row.mean(metric)),
            "sd": _number(row.deviation(metric)),
            "values": [_number(value) for value in row.values(metric).tolist()],
        }
    plain["largest_distance"], plain["mean_distance"] = map(
        _number, row.result["distance"]
    )
    plain["diverged_at_step"] = {str(k): v for k, v in row.diverged.items()}
    return plain


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


_COLUMNS = {
    "loss": "loss",
    "accuracy": "accuracy %",
    "quantized_loss": "q-loss",
    "quantized_accuracy": "q-accuracy %",
    "range_accuracy": "q-accuracy, range %",
}


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text, and a line for every model that diverged.

    Args:
        rows: results with the same labels.

    Returns:
        Lines; "q-" is the quantized model.
    """
    columns = {k: v for k, v in _COLUMNS.items() if any(row.has(k) for row in rows)}
    lines = [[*rows[0].labels, *columns.values()]]
    lines += [
        [*row.labels.values(), *(_cell(row, metric) for metric in columns)]
        for row in rows
    ]
    text = aligned(lines)
    text += [
        f"diverged: {', '.join(row.labels.values())}, seed {seed}: the loss is not "
        f"finite at step {step}"
        for row in rows
        for seed, step in row.diverged.items()
    ]
    return "\n".join(text)


def save(directory: RunDirectory, config: Any, rows: Sequence[Row]) -> str:
    """Write configuration and results, and return what to print.

    Args:
        directory: of the run.
        config: a dataclass.
        rows: results.

    Returns:
        The table, and where the files are.
    """
    directory.write_json("config.json", {**asdict(config), **environment()})
    directory.write_json("result.json", summary(rows))
    return f"{table(rows)}\n\nresults: {directory.path}"


def _cell(row: Row, metric: str) -> str:
    if not row.has(metric):
        return "-"
    digits = 1 if metric.endswith("accuracy") else 3
    mean, deviation = row.mean(metric), row.deviation(metric)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def curves(rows: Sequence[Row], panel: Sequence[str]) -> Any:
    """Draw the test error over the epochs: a panel for each value of some labels.

    Solid lines are the quantized models, dotted ones those before quantization; means
    over the seeds.

    Args:
        rows: results.
        panel: labels whose values make a panel.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    cases = [tuple(row.labels[name] for name in panel) for row in rows]
    panels = list(dict.fromkeys(cases))
    methods = list(dict.fromkeys(row.labels["method"] for row in rows))
    size = (max(_PANEL[0] * len(panels), 5.0), _PANEL[1])
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for row, case in zip(rows, cases, strict=True):
        axes = grid[panels.index(case)]
        color = f"C{methods.index(row.labels['method'])}"
        for metric, style in (("quantized_accuracy", "-"), ("accuracy", ":")):
            error = _PERCENT * (1 - row.result["curves"][metric].mean(dim=1))
            label = row.labels["method"] if style == "-" else None
            epochs = row.result["epochs"]
            axes.plot(epochs, error, style, color=color, label=label, linewidth=1.3)
        axes.set_title(", ".join(f"{k}: {v}" for k, v in zip(panel, case, strict=True)))
        axes.set_xlabel("epoch")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
        axes.grid(alpha=0.25, which="both")
    grid[0].set_ylabel("test error %")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, fontsize="small"
    )
    return figure
