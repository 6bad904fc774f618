"""Lemma 2: the skewing force as a function of the distance to the feasible set."""

from __future__ import annotations

import math

import torch

from .._inputs import Form, Real, check_form, nonnegative, plain, positive
from ._remoteness import Remoteness


def skew_ratio(delta: Real, psi: Remoteness, cell: int) -> Real:
    r"""Return |u| / (alpha delta) for a weight at distance delta from C, unclipped.

    With D the width of the infeasible part of the cell and e the slack (its root for
    the quartics),

    .. math::
        \frac{|u|}{\alpha\delta} = \frac{D - \delta}{D - 2\delta}
        \quad\text{(quadratic, inside a cell)}, \qquad 1 \quad\text{(outside)} .

    The quartics have the further factor (s + e)/(2s), in (1/2, 1), where s is the
    product of the distances to the two levels; outside, the quartic has
    (2 sqrt(e) + delta) / (2 (sqrt(e) + delta)) and its extension
    (E + delta)/(E + 2 delta) with E = sqrt(gap^2 + 4e) times that factor.

    Contract:
        Exact for every kind. |u| increases with delta; the ratio tends to infinity at
        the mid-point, delta = D/2, where inf is returned. Inside a cell the ratio is
        at most 2 for delta <= D/3 and larger beyond for the quadratic, so Lemma 2 is
        tight; its proof is not right as printed (erratum E6), and the remark after it
        needs delta <= D/3 (E7).

    Args:
        delta: distance of w to C, at most D/2 inside a cell.
        psi: the remoteness function.
        cell: 0 for the left of all levels, j for between the levels j and j + 1 (from
            1), K for the right of all.

    Returns:
        The ratio (its limit at delta = 0); a float, or a float64 tensor.

    Raises:
        ValueError: if delta is negative or beyond the mid-point, there is no such cell,
            or the cell is feasible throughout.

    Example:
        >>> psi = Remoteness((-1, 1), 0.75)  # D = 1
        >>> skew_ratio(0.25, psi, 1), skew_ratio(0.25, psi, 0)
        (1.5, 1.0)

    References:
        "Revisiting ASkewSGD", Lemma 2, extended to Definition 2 and the end cells.
    """
    distance = nonnegative("delta", delta)
    e = psi.epsilon if psi.kind == "quadratic" else math.sqrt(psi.epsilon)
    if cell in (0, len(psi.levels)):
        ratio = _outer_ratio(distance, psi, e, cell)
    else:
        width = infeasible_width(psi, cell)
        if not bool((distance <= width / 2).all()):
            raise ValueError(
                f"delta must be at most D/2 = {width / 2!r} in cell {cell}, "
                f"got {delta!r}"
            )
        ratio = (width - distance) / (width - 2 * distance)
        if psi.kind != "quadratic":
            ratio = ratio * _quartic_factor(e, distance * (width - distance))
    value: Real = plain(ratio, delta)
    return value


def skew_ratio_bounds(psi: Remoteness) -> tuple[float, float]:
    r"""Return bounds on |u| / (alpha delta) for 0 < delta <= D/3 and outside the hull.

    .. math::
        [1, 2] \;\text{(quadratic)}, \quad [\tfrac12, 2] \;\text{(quartic)}, \quad
        [\tfrac14, 2] \;\text{(extended quartic)}

    Args:
        psi: the remoteness function.

    Returns:
        The smallest and the largest ratio.

    Example:
        >>> skew_ratio_bounds(Remoteness((-1, 1), 0.2))
        (1.0, 2.0)

    References:
        "Revisiting ASkewSGD", Lemma 2; lower bounds of the quartics are not in it.
    """
    lower = {"quadratic": 1.0, "quartic": 0.5, "quartic_ext": 0.25}
    return lower[psi.kind], 2.0


def skew_bound(
    delta: Real, psi: Remoteness, *, alpha: Real, form: Form = "corrected"
) -> Real:
    r"""Return Lemma 2's bound 2 alpha delta on |u_i| at distance delta from C.

    Contract:
        Corrected: inf if delta > D/3 for some cell, because the ratio is unbounded up
        to the mid-point (erratum E7). ``form="as_printed"`` leaves the condition out.

    Args:
        delta: bound on the distance of w_i to C.
        psi: the remoteness function.
        alpha: rate at which infeasibility decays, positive.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The bound; a float, or a float64 tensor of the broadcast shape.

    Raises:
        ValueError: if delta is negative, alpha is not positive or ``form`` is unknown.

    Example:
        >>> psi = Remoteness((-1, 1), 0.75)  # D/3 = 1/3
        >>> skew_bound(0.25, psi, alpha=0.5), skew_bound(0.5, psi, alpha=0.5)
        (0.25, inf)

    References:
        "Revisiting ASkewSGD", Lemma 2 and the remark after it (E7).
    """
    distance, rate = nonnegative("delta", delta), positive("alpha", alpha)
    bound = 2 * rate * distance
    if check_form(form):
        limit = min(psi.infeasible_widths, default=math.inf) / 3
        bound = torch.where(distance <= limit, bound, torch.inf)
    value: Real = plain(bound, delta, alpha)
    return value


def infeasible_width(psi: Remoteness, cell: int) -> float:
    """Return D of an inner cell after checking that it has an infeasible part."""
    inner = len(psi.levels) - 1
    if not 1 <= cell <= inner:
        raise ValueError(f"cell must be in 0 ... {inner + 1}, got {cell!r}")
    width = psi.infeasible_widths[cell - 1]
    if width == 0:
        raise ValueError(
            f"all of cell {cell} is feasible: epsilon = {psi.epsilon!r} is not below "
            "its maximum there"
        )
    return width


def _outer_ratio(
    distance: torch.Tensor, psi: Remoteness, e: float, cell: int
) -> torch.Tensor:
    if psi.kind == "quadratic":
        return torch.ones_like(distance)
    if psi.kind == "quartic":
        return (2 * e + distance) / (2 * (e + distance))
    gap = psi.gaps[0 if cell == 0 else -1]
    extent = math.sqrt(gap**2 + 4 * e)
    ratio = (extent + distance) / (extent + 2 * distance)
    return ratio * _quartic_factor(e, distance * (extent + distance))


def _quartic_factor(e: float, excess: torch.Tensor) -> torch.Tensor:
    # (s + e)/(2s) for the product s = e + excess
    return (2 * e + excess) / (2 * (e + excess))
