"""Figures 1 and 2 of the paper on central limit theorems."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..theory import stationary

if TYPE_CHECKING:
    from .clt_report import RowResult

__all__ = ["convergence", "distributions"]

_MOST_COLUMNS = 4
_SHOWN = 2000  # points of a scatter plot
_PROBABILITY = 0.95
_SIGNIFICANCE = 0.05


def distributions(results: Mapping[str, RowResult]) -> Any:
    """Draw where the replicas end, beside the normal law of the limit theorem.

    Args:
        results: by the name of the row; the first four that have converged are drawn.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ImportError: if matplotlib is not installed.

    References:
        Li, Xiao and Yang, Figure 1.
    """
    from matplotlib.figure import Figure

    converged = {name: one for name, one in results.items() if one.errors[-1] < 1}
    shown = dict(list((converged or dict(results)).items())[:_MOST_COLUMNS])
    figure = Figure(figsize=(3.2 * len(shown), 5.6), layout="constrained")
    grid = figure.subplots(
        2, len(shown), squeeze=False, gridspec_kw={"height_ratios": [3, 2]}
    )
    for column, (name, one) in enumerate(shown.items()):
        z = one.trace.final / math.sqrt(float(one.scales[-1]))
        _scatter(grid[0, column], z, one.limit)
        grid[0, column].set_title(name, fontsize=9)
        _marginal(grid[1, column], z[:, 0], float(one.limit[0, 0]))
    grid[0, 0].legend(fontsize=7, loc="upper right")
    grid[1, 0].legend(fontsize=7, loc="upper right")
    grid[1, 0].set_ylabel("density")
    return figure


def _scatter(axes: Any, z: Tensor, limit: Tensor) -> None:
    axes.plot(
        z[:_SHOWN, 0], z[:_SHOWN, 1], ".", ms=2, alpha=0.4, color="C0", label="replicas"
    )
    angles = torch.linspace(0, 2 * math.pi, 200, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()])
    # 95 % of a normal law of two variables lie within this many deviations.
    radius = math.sqrt(-2 * math.log(1 - _PROBABILITY))
    ellipse = radius * torch.linalg.cholesky(limit[:2, :2]) @ circle
    axes.plot(ellipse[0], ellipse[1], color="C3", lw=1.2, label="95 % of the limit law")
    axes.set_xlabel(r"$(x_k - x^*)_1 / \sqrt{\alpha_k}$")
    axes.set_ylabel(r"$(x_k - x^*)_2 / \sqrt{\alpha_k}$")
    reach = 4.5 * math.sqrt(float(limit.diagonal()[:2].max()))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")


def _marginal(axes: Any, values: Tensor, variance: float) -> None:
    axes.hist(
        values.numpy(), bins=40, density=True, color="C0", alpha=0.5, label="replicas"
    )
    reach = 4 * math.sqrt(variance)
    x = torch.linspace(-reach, reach, 200, dtype=torch.float64)
    density = (-x.square() / (2 * variance)).exp() / math.sqrt(2 * math.pi * variance)
    axes.plot(x, density, color="C3", lw=1.2, label="limit law")
    axes.set_xlabel(r"$(x_k - x^*)_1 / \sqrt{\alpha_k}$")


def convergence(results: Mapping[str, RowResult]) -> Any:
    """Draw over the steps: V_k, W_k, its distance to W*, and Royston's test value.

    Args:
        results: by the name of the row.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ImportError: if matplotlib is not installed.

    References:
        Li, Xiao and Yang, Figure 2.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 7.6), layout="constrained")
    (size, scaled), (error, test) = figure.subplots(2, 2, sharex=True)
    floors = []
    for number, (name, one) in enumerate(results.items()):
        style: dict[str, Any] = {"color": f"C{number}", "lw": 1.2}
        k = one.trace.steps
        size.loglog(k, _norms(one.trace.covariance), label=name, **style)
        scaled.loglog(k, _norms(one.scaled), **style)
        level = float(torch.linalg.matrix_norm(one.limit))
        scaled.axhline(level, ls="--", color=style["color"], lw=0.7)
        error.loglog(k, one.errors, **style)
        rho = one.trace.p_values["sw"] - _SIGNIFICANCE
        test.semilogx(k, rho, ".", ms=4, alpha=0.7, color=style["color"])
        floors.append(stationary.sampling_floor(one.limit, len(one.trace.final)))
    size.set_ylabel(r"$\|V_k\|_F$, covariance of the iterates")
    scaled.set_ylabel(r"$\|W_k\|_F$, in units of $\alpha_k$; dashed: $\|W^*\|_F$")
    error.set_ylabel(r"$\|W_k - W^*\|_F \,/\, \|W^*\|_F$")
    error.axhspan(
        min(floors),
        max(floors),
        color="0.8",
        label="what the number of replicas allows",
    )
    error.legend(fontsize=7)
    test.set_ylabel(r"$\rho$ of Royston's test: normal if above 0")
    test.axhline(0, color="k", lw=0.8)
    for axes in (error, test):
        axes.set_xlabel("step $k$")
    figure.legend(loc="outside lower center", ncols=4, fontsize=7)
    return figure


def _norms(matrices: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.matrix_norm(matrices)
    return norms
