"""Figure 5 of the report: decision boundaries before and after quantization."""

from __future__ import annotations

from typing import Any

from .two_moons import TwoMoonsResult

__all__ = ["boundaries"]

_PANEL = (1.7, 1.5)


def boundaries(result: TwoMoonsResult) -> Any:
    """Draw the probability of moon 1 for every method's first network.

    Args:
        result: of `two_moons.run`.

    Returns:
        A ``matplotlib.figure.Figure``: a column for each method, trained weights
        above and quantized ones below.

    Raises:
        ImportError: if matplotlib is not installed.

    References:
        Revisiting ASkewSGD, Figure 5.
    """
    from matplotlib.figure import Figure

    columns = list(result.probabilities)
    width, height = _PANEL
    figure = Figure(
        figsize=(max(width * len(columns), 4.0), 2 * height + 0.4), layout="constrained"
    )
    grid = figure.subplots(2, len(columns), sharex=True, sharey=True, squeeze=False)
    x, y = (axis.numpy() for axis in result.axes)
    points, labels = result.data.test.numpy(), result.data.test_labels.numpy()
    for number, (column, row) in enumerate(zip(columns, result.rows, strict=True)):
        metrics = ("accuracy", "quantized_accuracy")
        for line, (probability, metric) in enumerate(
            zip(result.probabilities[column], metrics, strict=True)
        ):
            axes = grid[line, number]
            field = probability.numpy()
            axes.contourf(x, y, field, levels=10, cmap="coolwarm", vmin=0, vmax=1)
            if field.min() < 0.5 < field.max():
                axes.contour(x, y, field, levels=[0.5], colors="black", linewidths=1)
            axes.scatter(*points.T, c=labels, cmap="gray", s=2, linewidths=0)
            accuracy = float(row.values(metric)[0])
            title = f"{column}, {accuracy:.1f} %" if line == 0 else f"{accuracy:.1f} %"
            axes.set_title(title, fontsize="x-small")
    grid[0, 0].set_ylabel("trained")
    grid[1, 0].set_ylabel("quantized")
    return figure
