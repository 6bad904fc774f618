"""Figures 3, 11 and 12 of the SGD paper: traces of f = L ||w||^p with both bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .quasi_convex import QuasiConvexResult

__all__ = ["surface_and_traces", "traces"]

_MAXIMUM, _MEAN = "tab:blue", "lightskyblue"
_STOCHASTIC, _DETERMINISTIC, _VACUOUS = "tab:orange", "tab:red", "tab:gray"
_GRADIENT, _UPDATE = "tab:green", "tab:purple"
_PANEL_WIDTH, _LEGEND_WIDTH = 3.6, 2.6


def traces(result: QuasiConvexResult, step_sizes: Sequence[float] | None = None) -> Any:
    """Draw f(w_k) with both bounds, and the errors below, one column per step size.

    The curve is the largest f over all repetitions, as in the paper; the mean is what
    the stochastic bound predicts.

    Args:
        result: trajectories.
        step_sizes: which of them, in the order of the columns; None for all.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if a step size was not run.
        ImportError: if matplotlib is not installed.

    References:
        Cacciola et al., Figures 11 and 12.
    """
    from matplotlib.figure import Figure

    indices = _indices(result, step_sizes)
    width = max(_PANEL_WIDTH * len(indices), 2 * _PANEL_WIDTH)
    figure = Figure(figsize=(width, 5.6), layout="constrained")
    grid = figure.subplots(
        2,
        len(indices),
        sharex=True,
        sharey="row",
        squeeze=False,
        gridspec_kw={"height_ratios": [3, 1]},
    )
    for column, index in enumerate(indices):
        _draw_values(grid[0, column], result, index)
        _draw_errors(grid[1, column], result, index)
        grid[1, column].set_xlabel("epoch $k$")
    grid[0, 0].set_ylabel(r"$f(w_k)$")
    grid[1, 0].set_ylabel("error norm")
    _finish(figure, result, list(grid.flat))
    return figure


def surface_and_traces(result: QuasiConvexResult) -> Any:
    """Draw the function over the plane, and below it the traces of every step size.

    Args:
        result: trajectories in two dimensions.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if the dimension is not 2.
        ImportError: if matplotlib is not installed.

    References:
        Cacciola et al., Figure 3.
    """
    from matplotlib.figure import Figure

    config = result.config
    if config.dimension != 2:
        raise ValueError(
            f"a surface needs dimension 2, got {config.dimension}: use traces()"
        )
    count = len(config.step_sizes)
    figure = Figure(
        figsize=(max(_PANEL_WIDTH * count, 2 * _PANEL_WIDTH), 8.4), layout="constrained"
    )
    grid = figure.add_gridspec(3, count, height_ratios=[4, 3, 1])
    surface = figure.add_subplot(grid[0, :], projection="3d")
    side = torch.linspace(-1, 1, 201, dtype=torch.float64) * config.initial_distance
    x, y = torch.meshgrid(side, side, indexing="xy")
    height = config.L * torch.hypot(x, y) ** config.p
    surface.plot_surface(
        x.numpy(),
        y.numpy(),
        height.numpy(),
        cmap="viridis",
        # A divisor of the number of intervals keeps the minimiser on the mesh.
        rstride=2,
        cstride=2,
        linewidth=0,
    )
    surface.set_xlabel("$w_1$")
    surface.set_ylabel("$w_2$")
    surface.set_zlabel("$f(w)$")
    surface.set_box_aspect((1, 1, 0.7), zoom=1.15)
    surface.view_init(elev=22, azim=-58)
    panels: list[Any] = []
    for index in range(count):
        first = panels[0] if panels else None
        top = figure.add_subplot(grid[1, index], sharey=first)
        bottom = figure.add_subplot(
            grid[2, index], sharex=top, sharey=panels[1] if panels else None
        )
        _draw_values(top, result, index)
        _draw_errors(bottom, result, index)
        top.tick_params(labelbottom=False, labelleft=index == 0)
        bottom.tick_params(labelleft=index == 0)
        bottom.set_xlabel("epoch $k$")
        panels += [top, bottom]
    panels[0].set_ylabel(r"$f(w_k)$")
    panels[1].set_ylabel("error norm")
    _finish(figure, result, panels)
    return figure


def _indices(
    result: QuasiConvexResult, step_sizes: Sequence[float] | None
) -> list[int]:
    known = result.config.step_sizes
    for step_size in step_sizes or ():
        if step_size not in known:
            raise ValueError(f"step size {step_size} was not run: there are {known}")
    return [known.index(step_size) for step_size in step_sizes or known]


def _draw_values(axes: Any, result: QuasiConvexResult, index: int) -> None:
    config = result.config
    step_size = config.step_sizes[index]
    values = result.values[index]  # [N, K + 1]
    stochastic = config.stochastic_bound(step_size)
    deterministic = config.deterministic_bound(step_size)
    epochs = torch.arange(values.shape[1]).numpy()
    many = f"largest of {config.repetitions} runs"
    axes.plot(epochs, values.amax(dim=0).numpy(), color=_MAXIMUM, lw=0.9, label=many)
    mean = f"mean of {config.repetitions} runs"
    axes.plot(epochs, values.mean(dim=0).numpy(), color=_MEAN, lw=0.9, label=mean)
    axes.axhline(
        float(stochastic),
        color=_STOCHASTIC,
        ls="--",
        lw=1.8,
        label="stochastic bound (mean level)",
    )
    informative = not deterministic.vacuous
    axes.axhline(
        float(deterministic),
        color=_DETERMINISTIC if informative else _VACUOUS,
        ls="-." if informative else ":",
        lw=1.8,
        label=r"deterministic bound on $\min f$" + ("" if informative else ", vacuous"),
    )
    axes.set_title(
        rf"$\eta = {step_size:g}$, $\Gamma_s = {float(stochastic.gamma):.3g}$"
    )
    axes.grid(alpha=0.25)
    axes.margins(x=0)


def _draw_errors(axes: Any, result: QuasiConvexResult, index: int) -> None:
    # One repetition: norms of independent errors look alike in all of them.
    for norms, colour, label in (
        (result.gradient_error, _GRADIENT, r"$\|r_k\|$ of one run"),
        (result.update_error, _UPDATE, r"$\|s_k\|$ of one run"),
    ):
        axes.plot(norms[index, 0].numpy(), color=colour, lw=0.5, label=label, alpha=0.8)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.margins(x=0)


def _finish(figure: Any, result: QuasiConvexResult, panels: Sequence[Any]) -> None:
    config = result.config
    figure.suptitle(
        rf"$f(w) = {_factor(config.L)}\|w\|^{{{config.p:g}}}$, "
        rf"$d = {config.dimension}$, "
        rf"$B_r = {config.gradient_error:g}$, $B_s = {config.update_error:g}$, "
        rf"$C_0 = {config.initial_distance:g}$"
    )
    handles: dict[str, Any] = {}
    for axes in panels:
        lines, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    columns = min(len(handles), int(figure.get_figwidth() / _LEGEND_WIDTH))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize="small",
    )


def _factor(L: float) -> str:
    return "" if L == 1 else f"{L:g}\\,"
