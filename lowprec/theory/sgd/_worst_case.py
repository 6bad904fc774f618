"""Lemma 7.1: the worst admissible error of one normalised step, and its maximiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._inputs import Form, Real, check_form, finite, nonnegative, plain, positive


@dataclass(frozen=True, kw_only=True, eq=False)
class WorstCase:
    """A point at which the maximum of Lemma 7.1 is attained.

    Args:
        offset: w - w*, of norm C with <direction, offset> = B, shape [d].
        error: r, of norm R, shape [d].
        value: eta ||direction + error||^2 - 2 <offset, direction + error> there.

    Example:
        >>> worst = worst_case_step(0.5, 0.4, 1.0, 2.0)
        >>> print(worst)
        eta ||g + r||^2 - 2 <w, g + r> = 0.0222205 at ||w|| = 2, ||r|| = 0.4
    """

    offset: Tensor
    error: Tensor
    value: float

    def __str__(self) -> str:
        """Return the value and the norms in one line."""
        return (
            f"eta ||g + r||^2 - 2 <w, g + r> = {self.value:.6g} at "
            f"||w|| = {self.offset.norm().item():.6g}, "
            f"||r|| = {self.error.norm().item():.6g}"
        )


def worst_case_increase(
    eta: Real, R: Real, B: Real, C: Real, *, form: Form = "corrected"
) -> Real:
    r"""Return the maximum of Lemma 7.1 in closed form.

    .. math::
        \max_{\langle g, w\rangle \ge B,\ \|r\| \le R,\ \|w\| \le C}
        \eta \|g + r\|^2 - 2 \langle w, g + r \rangle
        = \eta (1 + R^2) + 2 R \sqrt{\eta^2 + C^2 - 2\eta B} - 2 B, \quad \|g\| = 1.

    Times eta, it is the most that ||w - w*||^2 can grow in one unprojected step.

    Contract:
        Attained in two or more dimensions (`worst_case_step`); R < 1 is not needed.
        The paper takes the larger of this and eta (R^2 - 1), claiming that the result
        is attained; the second term is redundant and can exceed the maximum (erratum
        E13). ``form="as_printed"`` includes it.

    Args:
        eta: step size, positive.
        R: bound on ||r||.
        B: lower bound on <g, w>, positive.
        C: bound on ||w||, at least B.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The maximum; a float, or a float64 tensor of the broadcast shape.

    Raises:
        ValueError: unless eta > 0, R >= 0 and 0 < B <= C, all but R finite.

    Example:
        >>> round(worst_case_increase(0.5, 0.4, 1.0, 2.0), 12)
        0.022220510186

    References:
        Cacciola et al., Lemma 7.1 and Corollary 7.0.1, corrected (E13, E14).
    """
    corrected = check_form(form)
    step, error = positive("eta", eta), nonnegative("R", R)
    inner, outer = _ordered(B, C)
    root = torch.sqrt((step**2 + outer**2 - 2 * step * inner).clamp(min=0))
    # Where the root is zero, an infinite R would give 0 * inf.
    reach = torch.where(root > 0, 2 * error * root, torch.zeros_like(error * root))
    value = step * (1 + error**2) + reach - 2 * inner
    if not corrected:
        value = torch.maximum(value, step * (error**2 - 1))
    result: Real = plain(value, eta, R, B, C)
    return result


def worst_case_step(
    eta: float,
    R: float,
    B: float,
    C: float,
    *,
    direction: Tensor | None = None,
) -> WorstCase:
    r"""Return a point at which the maximum of Lemma 7.1 is attained.

    .. math::
        w = B g + \sqrt{C^2 - B^2}\, e, \qquad
        r = R \frac{\eta g - w}{\|\eta g - w\|}, \qquad e \perp g,\ \|e\| = 1.

    The error pushes the step away from the minimiser (the paper's Figure 10 and
    section 7.1.1 have the opposite sign, erratum E21).

    Contract:
        Deterministic: e is the projection of a coordinate axis. Where eta g = w every
        error of norm R is worst, and r = R g is returned.

    Args:
        eta: step size, positive.
        R: norm of the error, finite.
        B: <g, w>, positive.
        C: norm of w, at least B.
        direction: g up to its length, shape [d] with d >= 2; None for (1, 0).

    Returns:
        Offset, error and the value there, in float64.

    Raises:
        ValueError: unless eta > 0, R >= 0 and 0 < B <= C, all finite, or if
            ``direction`` is zero or not a vector of two or more entries.

    Example:
        >>> worst_case_step(0.5, 0.4, 1.0, 2.0).offset
        tensor([1.0000, 1.7321], dtype=torch.float64)

    References:
        Cacciola et al., Corollary 7.0.1.
    """
    step, error = float(positive("eta", eta)), float(nonnegative("R", finite("R", R)))
    inner, outer = _ordered(B, C)
    unit = _unit(direction)
    axis = torch.zeros_like(unit)
    axis[int(unit.abs().argmin())] = 1.0
    axis = axis - (axis @ unit) * unit
    axis = axis / axis.norm()
    offset = inner * unit + torch.sqrt(outer**2 - inner**2) * axis
    outward = step * unit - offset
    length = outward.norm()
    outward = outward / length if length > 0 else unit
    worst = error * outward
    moved = unit + worst
    value = step * moved.square().sum() - 2 * offset @ moved
    return WorstCase(offset=offset, error=worst, value=value.item())


def _ordered(B: Real, C: Real) -> tuple[Tensor, Tensor]:
    inner, outer = positive("B", B), positive("C", C)
    if not bool((inner <= outer).all()):
        raise ValueError(
            f"B must not exceed C, because <g, w> <= ||w|| <= C: got B = {B!r}, "
            f"C = {C!r}"
        )
    return inner, outer


def _unit(direction: Tensor | None) -> Tensor:
    if direction is None:
        return torch.tensor([1.0, 0.0], dtype=torch.float64)
    vector = torch.as_tensor(direction, dtype=torch.float64)
    if vector.ndim != 1 or vector.numel() < 2 or not 0 < vector.norm() < torch.inf:
        raise ValueError(
            "direction must be a nonzero finite vector of two or more entries, got "
            f"shape {tuple(vector.shape)}: in one dimension the maximum is not attained"
        )
    unit: Tensor = vector / vector.norm()
    return unit
