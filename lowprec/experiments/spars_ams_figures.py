"""The figure of `lowprec run spars-ams`."""

from __future__ import annotations

from typing import Any

from .spars_ams import SparsAMSResult
from .spars_ams_methods import METHODS
from .spars_ams_training import Curve

__all__ = ["figure"]

# Those of the figure, where they were run: density and error feedback.
_DRAWN = {
    "full": ("black", "-"),
    "topk-10%": ("tab:green", "-"),
    "topk-1%": ("tab:blue", "-"),
    "topk-1%-no-ef": ("tab:blue", "--"),
    "topk-0.1%": ("tab:red", "-"),
    "topk-0.1%-no-ef": ("tab:red", "--"),
    "sign": ("tab:orange", "-"),
}
_LEAST_ACCURACY = 0.1


def figure(result: SparsAMSResult) -> Any:
    """Draw test accuracy against steps and bytes, mean and range of the seeds.

    Args:
        result: of the experiment; methods that the figure does not know are left out,
            unless there are no others.

    Returns:
        A matplotlib figure, one row for each partition.
    """
    from matplotlib.figure import Figure

    config = result.config
    known = [name for name in config.methods if name in _DRAWN]
    drawn = known or list(config.methods)
    rows = len(config.partitions)
    picture = Figure(figsize=(9.0, 3.4 * rows), layout="constrained")
    axes = picture.subplots(rows, 2, squeeze=False, sharey=True)
    for row, partition in zip(axes, config.partitions, strict=True):
        for name in drawn:
            curves = result.curves[partition, name]
            color, line = _DRAWN.get(name, (None, "-"))
            for panel, x in zip(row, ("step", "sent"), strict=True):
                _draw(panel, curves, x, METHODS[name].label, color, line)
        row[0].set_ylabel(f"test accuracy, {partition} shards")
        row[0].set_ylim(_LEAST_ACCURACY, 1.0)
        row[1].set_xscale("log")
    axes[-1][0].set_xlabel("step")
    axes[-1][1].set_xlabel("bytes sent by a worker")
    axes[0][0].legend(fontsize="small", loc="lower right")
    picture.suptitle(
        f"SPARS-AMS on {config.data}, {config.workers} workers, {config.seeds} seeds"
    )
    return picture


def _draw(
    panel: Any, curves: list[Curve], x: str, label: str, color: str | None, line: str
) -> None:
    import numpy as np

    places = np.mean([getattr(curve, x) for curve in curves], axis=0)
    values = np.array([curve.accuracy for curve in curves])
    shown = places > 0
    (drawn,) = panel.plot(
        places[shown],
        values.mean(axis=0)[shown],
        line,
        color=color,
        label=label,
        lw=1.2,
    )
    panel.fill_between(
        places[shown],
        values.min(axis=0)[shown],
        values.max(axis=0)[shown],
        color=drawn.get_color(),
        alpha=0.15,
        lw=0,
    )
