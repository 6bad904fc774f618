"""Growth of the loss around its minimisers: the fit of p and L (Figure 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import theory
from .data import Dataset
from .multinomial import Objective, Optimum

__all__ = ["figure", "measure"]

# Ascents of the growth modulus; the objective is convex, so few are needed.
_STARTS = 4
_CLIMBS = 40


def measure(objective: Objective, optimum: Optimum) -> theory.sgd.GrowthModulus:
    """Return omega(rho) = max over ||w - w*|| <= rho of f - f* on the default radii.

    Args:
        objective: f.
        optimum: its minimiser.

    Returns:
        Radii and values.
    """
    return theory.sgd.growth_modulus(
        objective.value,
        objective.gradient,
        optimum.weights,
        f_star=optimum.value,
        starts=_STARTS,
        iterations=_CLIMBS,
        generator=torch.Generator().manual_seed(0),
    )


def figure(
    dataset: Dataset,
    penalty: float = 0.0,
    advance: Callable[[], object] = lambda: None,
) -> Any:
    """Draw the growth modulus with power laws above it: p = 1, and the fitted one.

    Args:
        dataset: the data.
        penalty: l2 factor of the objective.
        advance: called when the work is done.

    Returns:
        A matplotlib figure.

    References:
        Cacciola et al., Figure 4; specification section 4.4.
    """
    from matplotlib.figure import Figure

    from .multinomial import minimise

    objective = Objective(dataset.features, dataset.labels, dataset.classes, penalty)
    modulus = measure(objective, minimise(objective))
    advance()
    fitted = theory.sgd.holder_fit(modulus.rho, modulus.omega)
    linear = float(theory.sgd.holder_constant(modulus.rho, modulus.omega, 1.0))
    picture = Figure(figsize=(9.0, 4.0), layout="constrained")
    for axes, p, L in zip(
        picture.subplots(1, 2), (1.0, fitted.p), (linear, fitted.L), strict=True
    ):
        axes.loglog(modulus.rho, modulus.omega, "o", ms=4, label=r"$\omega(\rho)$")
        axes.loglog(
            modulus.rho, L * modulus.rho**p, label=rf"${L:.3g}\,\rho^{{{p:.3g}}}$"
        )
        axes.set_xlabel(r"distance $\rho$ from the minimiser")
        axes.set_ylabel(r"largest $f - f^*$ at that distance")
        axes.legend()
    picture.suptitle(f"Growth of the loss on {dataset.name}: every law lies above it")
    return picture
