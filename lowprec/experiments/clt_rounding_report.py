"""Table and figure of the covariance of rounded SGD, and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..formats import columns
from .clt_rounding import CaseResult, CurveResult, RoundingConfig, run
from .clt_rounding_cases import (
    CASES,
    CURVE_ITERATION,
    CURVES,
    FORMATS,
    PLACES,
    Mode,
    Where,
)
from .output import RunDirectory, environment

__all__ = ["add_arguments", "config_from_arguments", "figure", "run_and_save", "table"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``lowprec run clt-rounding``."""
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["curves", "cases"],
        choices=("curves", "cases"),
        help="curves: decaying steps, for the figure; cases: for the table",
    )
    parser.add_argument("--replicas", type=int, default=500, help="M of the curves")
    parser.add_argument("--steps", type=int, default=12_000, help="of the curves")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor of the replicas of the cases"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--out",
        default="runs/clt-rounding",
        help="directory of results; a run that was killed continues from there",
    )


def config_from_arguments(arguments: argparse.Namespace) -> RoundingConfig:
    """Return the configuration that the options ask for.

    Raises:
        ValueError: if an option is out of range.
    """
    return RoundingConfig(
        replicas=arguments.replicas,
        steps=arguments.steps,
        scale=arguments.scale,
        seed=arguments.seed,
        parts=tuple(arguments.parts),
    )


def steps(config: RoundingConfig) -> int:
    """Return how often a run calls ``advance``: once per step of everything."""
    total = config.steps * len(CURVES) if "curves" in config.parts else 0
    if "cases" in config.parts:
        total += sum(case.places[-1] for case in CASES)
    return total


def run_and_save(
    config: RoundingConfig, out: str, advance: Callable[[], object] = lambda: None
) -> str:
    """Run, write configuration, results and figure, and return the table.

    Args:
        config: what to run.
        out: directory of results, and of what a killed run continues from.
        advance: called after every step.

    Returns:
        A table for people, with the path of the results below.

    Raises:
        OSError: if ``out`` cannot be written to; nothing has been computed then.
    """
    with RunDirectory(out) as directory:
        described = {**config.__dict__, "parts": list(config.parts)}
        directory.write_json("config.json", {**described, **environment()})
        curves, cases = run(config, directory=directory.path, advance=advance)
        result = {
            "curves": {one.curve.name: one.summary() for one in curves},
            "cases": [one.summary() for one in cases],
        }
        directory.write_json("result.json", result)
        text = [f"results: {directory.path}"]
        if curves:
            picture = figure(curves, config.replicas)
            directory.write_figure("clt-rounding.png", picture)
        if cases:
            text = [table(cases), "", *text]
        return "\n".join(text)


def table(cases: Sequence[CaseResult]) -> str:
    """Return measured and predicted traces for people.

    Args:
        cases: results.

    Returns:
        Aligned lines.
    """
    lines = [["tr V", "of", "measured", "predicted", "ratio", "unrounded"]]
    for one in cases:
        summary = one.summary()
        for i, what in enumerate("xv"[: len(summary["ratio"])]):
            numbers = [
                f"{summary[name][i]:.5g}"
                for name in ("measured", "predicted", "ratio", "unrounded")
            ]
            lines.append([summary["case"] if i == 0 else "", what, *numbers])
    return "\n".join(columns(lines, right=range(2, 6)))


_TITLES: dict[tuple[Mode, Where], str] = {
    ("stochastic", "r"): "gradients, stochastic rounding:\nmore noise, same law",
    (
        "stochastic",
        "s",
    ): "parameters, stochastic rounding:\na floor that no step passes",
    ("stochastic", "both"): "both, stochastic rounding:\nthe parameters decide",
    ("nearest", "r"): "gradients, to nearest:\na shift of the mean stays",
    ("nearest", "s"): "parameters, to nearest:\nsmall gradients are lost",
    ("nearest", "both"): "both, to nearest:\nsmall gradients are lost",
}


# What the lines and marks are, in the order of the legend.
_MEASURED, _PREDICTED, _FLOOR, _CROSSOVER, _FREEZING = (
    "measured",
    "predicted",
    "its limit as steps go to 0",
    r"crossover, $\alpha = 0.8\,\delta/\sigma$",
    "freeze step for gradients at $x^*$",
)
_MARKS: dict[str, dict[str, Any]] = {
    _MEASURED: {"ls": "none", "marker": "."},
    _PREDICTED: {"ls": "--", "lw": 1.2},
    _FLOOR: {"ls": ":", "lw": 1.0},
    _CROSSOVER: {"ls": "none", "marker": "o", "ms": 8, "mfc": "none"},
    _FREEZING: {"ls": "none", "marker": "X", "ms": 8},
}


def figure(curves: Sequence[CurveResult], replicas: int) -> Any:
    """Draw tr V over the step size for all curves, with predictions and floors.

    Time goes to the right: step sizes fall.

    Args:
        curves: results, that without rounding first.
        replicas: of each curve, for the title.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    found = {one.curve: one for one in curves}
    picture = Figure(figsize=(11.0, 7.6), layout="constrained")
    grid = picture.subplots(2, 3, sharex=True, sharey=True)
    for (mode, where), title in _TITLES.items():
        axes = grid[list(dict.fromkeys(m for m, _ in _TITLES)).index(mode)][
            PLACES.index(where)
        ]
        axes.set_title(title, fontsize=10)
        _draw(axes, curves[0], "0.4", "no rounding")
        for number, one in enumerate(FORMATS):
            for curve, result in found.items():
                if (curve.format, curve.where, curve.mode) == (one, where, mode):
                    _draw(axes, result, f"C{number}", str(one.name))
    grid[0][0].invert_xaxis()
    for row in grid:
        row[0].set_ylabel(r"tr $V_k$, mean squared distance to $x^*$")
    for axes in grid[1]:
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel(r"step size $\alpha_k$ (falls as time passes)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    marks = [
        axes.plot([], [], color="0.2", label=text, **style)[0]
        for text, style in _MARKS.items()
    ]
    picture.legend(
        [*handles, *marks],
        [*labels, *_MARKS],
        loc="outside lower center",
        ncols=5,
        fontsize=8,
    )
    picture.suptitle(
        rf"SGD, logistic regression, $\alpha_k$ = {CURVE_ITERATION.schedule}, "
        f"{replicas} replicas"
    )
    return picture


def _draw(axes: Any, result: CurveResult, color: str, label: str) -> None:
    alpha, traces = result.alpha.numpy(), result.traces.numpy()
    axes.loglog(alpha, traces, ".-", lw=0.4, ms=4, color=color, label=label)
    if result.predicted is not None:
        axes.loglog(alpha, result.predicted, color=color, **_MARKS[_PREDICTED])
    if result.floor is not None:
        axes.axhline(result.floor, color=color, **_MARKS[_FLOOR])
    on_curve = result.traces if result.predicted is None else result.predicted
    for name, place in (
        (_CROSSOVER, result.crossover),
        (_FREEZING, result.freezing),
    ):
        if place is not None and alpha[-1] < place < alpha[0]:
            # Steps fall, np.interp wants them to rise.
            height = np.interp(place, alpha[::-1], on_curve.numpy()[::-1])
            axes.plot([place], [height], color=color, **_MARKS[name])
