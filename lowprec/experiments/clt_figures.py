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
# One row of each kind of method, if it is there.
_COLUMNS = (
    "sgd 1 k^-0.5",
    "momentum 0.1 k^-0.5",
    "nasgd 0.1 k^-0.5",
    "vanishing damping 0.5 k^-0.75",
)
_SHOWN = 2000  # points of a scatter plot
_PROBABILITY = 0.95


def distributions(results: Mapping[str, RowResult]) -> Any:
    """Draw where the replicas end, beside the normal law of the limit theorem.

    Two parameters of SGD, and a parameter with its velocity of the other methods.

    Args:
        results: by the name of the row; one of each kind of method is drawn, or the
            first four.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ImportError: if matplotlib is not installed.

    References:
        Li, Xiao and Yang, Figures 1 and 2.
    """
    from matplotlib.figure import Figure

    names = [name for name in _COLUMNS if name in results] or list(results)
    names = names[:_MOST_COLUMNS]
    figure = Figure(figsize=(max(3.2 * len(names), 4.8), 6.0), layout="constrained")
    grid = figure.subplots(
        2, len(names), squeeze=False, gridspec_kw={"height_ratios": [3, 2]}
    )
    for column, name in enumerate(names):
        one = results[name]
        z = one.trace.final / math.sqrt(float(one.scales[-1]))
        unit = r"\sqrt{\alpha_k/\mu_k}" if one.vanishing else r"\sqrt{\alpha_k}"
        first = rf"$(x_k - x^*)_1 / {unit}$"
        velocity = one.iteration.has_velocity
        other = z.shape[1] // 2 if velocity else 1
        p_value = one.final_p_values["sw"]
        grid[0, column].set_title(f"{name}\nRoyston, p = {p_value:.2g}", fontsize=9)
        grid[0, column].set_xlabel(first)
        grid[0, column].set_ylabel(
            rf"$(v_k)_1 / {unit}$" if velocity else rf"$(x_k - x^*)_2 / {unit}$"
        )
        pair = [0, other]
        _scatter(grid[0, column], z[:, pair], one.limit[pair][:, pair])
        grid[1, column].set_xlabel(first)
        _marginal(grid[1, column], z[:, 0], float(one.limit[0, 0]))
    grid[0, 0].legend(fontsize=7, loc="upper right")
    grid[1, 0].legend(fontsize=7, loc="upper right")
    grid[1, 0].set_ylabel("density")
    figure.suptitle(_title(results))
    return figure


def _title(results: Mapping[str, RowResult]) -> str:
    trace = next(iter(results.values())).trace
    return (
        f"Logistic regression, batch size 1, {len(trace.final)} replicas, "
        f"{int(trace.steps[-1])} steps"
    )


def _scatter(axes: Any, z: Tensor, limit: Tensor) -> None:
    shown = z[:_SHOWN]
    axes.plot(
        shown[:, 0], shown[:, 1], ".", ms=2, alpha=0.4, color="C0", label="replicas"
    )
    angles = torch.linspace(0, 2 * math.pi, 200, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()])
    # 95 % of a normal law of two variables lie within this many deviations.
    radius = math.sqrt(-2 * math.log(1 - _PROBABILITY))
    ellipse = radius * torch.linalg.cholesky(limit) @ circle
    axes.plot(ellipse[0], ellipse[1], color="C3", lw=1.2, label="95 % of the limit law")
    reach = (4.5 * limit.diagonal().sqrt()).tolist()
    axes.set_xlim(-reach[0], reach[0])
    axes.set_ylim(-reach[1], reach[1])
    axes.set_box_aspect(1)


def _marginal(axes: Any, values: Tensor, variance: float) -> None:
    axes.hist(
        values.numpy(), bins=40, density=True, color="C0", alpha=0.5, label="replicas"
    )
    reach = 4 * math.sqrt(variance)
    x = torch.linspace(-reach, reach, 200, dtype=torch.float64)
    density = (-x.square() / (2 * variance)).exp() / math.sqrt(2 * math.pi * variance)
    axes.plot(x, density, color="C3", lw=1.2, label="limit law")


def convergence(results: Mapping[str, RowResult]) -> Any:
    """Draw over the steps: V_k, W_k, its distance to W*, and Royston's test.

    Args:
        results: by the name of the row.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ImportError: if matplotlib is not installed.

    References:
        Li, Xiao and Yang, section 6.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 8.2), layout="constrained")
    (size, scaled), (error, test) = figure.subplots(2, 2)
    floors = []
    for number, (name, one) in enumerate(results.items()):
        # Momentum and Nesterov's method lie on each other.
        dashed = name.startswith("momentum")
        style: dict[str, Any] = {
            "color": f"C{number}",
            "lw": 1.4,
            "ls": (0, (4, 3)) if dashed else "-",
            "zorder": 3 if dashed else 2,
        }
        k = one.trace.steps
        size.loglog(k, _norms(one.trace.covariance), label=name, **style)
        scaled.loglog(k, _norms(one.scaled), **style)
        level = float(torch.linalg.matrix_norm(one.limit))
        scaled.axhline(level, ls=":", color=style["color"], lw=0.8)
        error.loglog(k, one.errors, **style)
        _passes(test, len(results) - 1 - number, one, style["color"])
        floors.append(stationary.sampling_floor(one.limit, len(one.trace.final)))
    handles, labels = size.get_legend_handles_labels()
    size.set_ylabel(r"$\|V_k\|_F$, covariance of the iterates")
    scaled.set_ylabel(r"$\|W_k\|_F$; dotted: $\|W^*\|_F$")
    scaled.set_title(
        r"$W_k = V_k/\alpha_k$; vanishing damping: $V_k\,\mu_k/\alpha_k$", fontsize=9
    )
    error.set_ylabel(r"$\|W_k - W^*\|_F \,/\, \|W^*\|_F$")
    error.axhspan(
        min(floors),
        max(floors),
        color="0.8",
        label="what the number of replicas allows",
    )
    error.legend(fontsize=7)
    test.set_title("Royston's test of x at 5 %: passed (dot), rejected (x)", fontsize=9)
    test.locator_params(axis="x", nbins=4)
    test.set_yticks(range(len(results)), list(results)[::-1], fontsize=7)
    for axes in (size, scaled, error, test):
        axes.set_xlabel("step $k$")
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    figure.suptitle(_title(results))
    return figure


def _passes(axes: Any, height: int, one: RowResult, color: str) -> None:
    """Draw a strip of the even checkpoints at which the test passes or rejects."""
    places, passed = one.verdicts("sw")
    for marker, chosen in ((".", passed), ("x", ~passed)):
        k = places[chosen]
        axes.plot(k, torch.full_like(k, height), marker, ms=6, color=color)


def _norms(matrices: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.matrix_norm(matrices)
    return norms
