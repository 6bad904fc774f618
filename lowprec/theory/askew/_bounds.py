"""Theorems 2, 3 and 4 and Corollary 2: bounds on the squared length of the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._inputs import Form, Real, check_form, count, finite, plain, positive, shown


@dataclass(frozen=True, kw_only=True, eq=False)
class StationarityBound:
    """A bound on ||v||^2, the squared length of the direction of ASkewSGD.

    Args:
        value: bounds what ``quantity`` names.
        floor: what remains of the value after infinitely many steps.
        quantity: what is bounded.
        theorem: where the bound comes from.
        form: ``"corrected"`` or ``"as_printed"``.

    Example:
        >>> print(StationarityBound(value=1.5, floor=1.0, quantity="min ||v_k||^2",
        ...                         theorem="Theorem 2"))
        min ||v_k||^2 <= 1.5 (Theorem 2, 1 in the limit)
    """

    value: Real
    floor: Real
    quantity: str
    theorem: str
    form: str = "corrected"

    def __float__(self) -> float:
        """Return the bound."""
        return float(self.value)

    def __str__(self) -> str:
        """Return the bound as a sentence."""
        printed = "" if self.form == "corrected" else " as printed, which is false"
        return (
            f"{self.quantity} <= {shown(self.value)} ({self.theorem}{printed}, "
            f"{shown(self.floor)} in the limit)"
        )


def bound_constant_step(
    decrease: Real,
    gamma: Real,
    steps: Real,
    *,
    alpha: Real,
    clip: Real,
    d: Real,
    G: Real,
    beta: Real,
    form: Form = "corrected",
) -> StationarityBound:
    r"""Return Theorem 2: any constant step size below 1/beta.

    .. math::
        \min_{0 \le k \le T} \|v_k\|^2 \le \frac{2\Delta}{\gamma (T+1)}
        + 2 M_c G \sqrt d + \gamma\beta M_c^2 d + M_c^2 d,
        \qquad \Delta = \ell(w_0) - \ell(w_{T+1})

    Contract:
        Needs |g_i| <= G and ||g|| <= G at the iterates, a beta-Lipschitz gradient and
        gamma < 1/beta. The paper (``form="as_printed"``) assumes Lipschitz continuity
        of l only, with which its bound is false (erratum E8); it has
        2 M_c L d in place of the second term and a further 4 alpha d gamma L^2 (E10),
        where L stands for both constants: max(G, beta) here.

    Args:
        decrease: Delta, or an upper bound on it.
        gamma: step size, positive.
        steps: T + 1, the number of steps.
        alpha: rate at which infeasibility decays; only the printed form depends on it.
        clip: M_c, positive and finite.
        d: number of weights.
        G: bound on the Euclidean norm of the gradient.
        beta: Lipschitz constant of the gradient.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The bound; floats, or float64 tensors of the broadcast shape.

    Raises:
        ValueError: if an argument is out of range, or gamma is not below 1/beta (1/L).

    Example:
        >>> constants = {"alpha": 0.5, "clip": 1.0, "d": 10, "G": 2.0, "beta": 3.0}
        >>> print(bound_constant_step(1.0, 0.01, 1000, **constants))
        min ||v_k||^2 <= 23.1491 (Theorem 2, 22.9491 in the limit)
        >>> print(bound_constant_step(1.0, 0.01, 1000, **constants, form="as_printed"))
        min ||v_k||^2 <= 72.3 (Theorem 2 as printed, which is false, 72.1 in the limit)

    References:
        "Revisiting ASkewSGD", Theorem 2, corrected (E8, E10).
    """
    corrected = check_form(form)
    bound, number, rate = (
        positive("clip", clip),
        count("d", d),
        positive("alpha", alpha),
    )
    step, gradient, smooth = _constants(gamma, G, beta, corrected)
    floor = step * smooth * bound**2 * number + bound**2 * number
    if corrected:
        floor = floor + 2 * bound * gradient * torch.sqrt(number)
    else:
        floor = floor + 2 * bound * gradient * number
        floor = floor + 4 * rate * number * step * gradient**2
    given = (decrease, gamma, steps, alpha, clip, d, G, beta)
    return _bound(decrease, step, steps, floor, given, "Theorem 2", form)


def bound_small_step(
    decrease: Real,
    gamma: Real,
    steps: Real,
    *,
    alpha: Real,
    d: Real,
    G: Real,
    beta: Real,
    form: Form = "corrected",
) -> StationarityBound:
    r"""Return Theorem 3: a step size that Corollary 1 allows, after k_1 steps.

    .. math::
        \min_{k_1 \le k \le k_1+T} \|v_k\|^2 \le \frac{2\Delta}{\gamma (T+1)}
        + 4\alpha\sqrt d\,\gamma G^2 + 4\alpha^2 d\gamma^3\beta G^2
        + 4\alpha^2 d\gamma^2 G^2,
        \qquad \Delta = \ell(w_{k_1}) - \ell(w_{k_1+T+1})

    Contract:
        Needs the conditions of `step_size_conditions`, k_1 of `lemma5_count`, and
        ||g|| <= G. The paper (``form="as_printed"``) has d for sqrt(d) in the second
        term and 8 alpha^2 d gamma L^2 as the last one, larger than ours if and only if
        gamma <= 2 (erratum E17); with Lipschitz continuity of l alone it is false
        (E8). L = max(G, beta) there.

    Args:
        decrease: Delta, or an upper bound on it.
        gamma: step size, positive.
        steps: T + 1, the number of steps after the first k_1.
        alpha: rate at which infeasibility decays, positive.
        d: number of weights.
        G: bound on the Euclidean norm of the gradient.
        beta: Lipschitz constant of the gradient.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The bound; floats, or float64 tensors of the broadcast shape.

    Raises:
        ValueError: if an argument is out of range, or gamma is not below 1/beta (1/L).

    Example:
        >>> print(bound_small_step(1.0, 0.01, 1000, alpha=0.5, d=10, G=2.0, beta=3.0))
        min ||v_k||^2 <= 0.457102 (Theorem 3, 0.257102 in the limit)

    References:
        "Revisiting ASkewSGD", Theorem 3, corrected (E8, E17).
    """
    corrected = check_form(form)
    number, rate = count("d", d), positive("alpha", alpha)
    step, gradient, smooth = _constants(gamma, G, beta, corrected)
    squares = 4 * rate**2 * number * gradient**2
    first = 4 * rate * step * gradient**2
    if corrected:
        floor = first * torch.sqrt(number) + squares * step**2
    else:
        floor = first * number + 2 * squares * step
    floor = floor + squares * smooth * step**3
    given = (decrease, gamma, steps, alpha, d, G, beta)
    return _bound(decrease, step, steps, floor, given, "Theorem 3", form)


def bound_horizon_step(
    decrease: Real,
    steps: Real,
    *,
    alpha: Real,
    d: Real,
    G: Real,
    beta: Real,
    form: Form = "corrected",
) -> StationarityBound:
    r"""Return Corollary 2: Theorem 3 with gamma = 1/sqrt(T + 1).

    Contract:
        The bound tends to 0 as O(1/sqrt(T)), but the k_1 steps that precede it depend
        on the step size, hence on T (erratum E15): `lemma5_count` is
        O(sqrt(T) log T). Conditions as for `bound_small_step`.

    Args:
        decrease: Delta, or an upper bound on it.
        steps: T + 1, the number of steps after the first k_1.
        alpha: rate at which infeasibility decays, positive.
        d: number of weights.
        G: bound on the Euclidean norm of the gradient.
        beta: Lipschitz constant of the gradient.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The bound.

    Raises:
        ValueError: if an argument is out of range, or T is too small for
            gamma < 1/beta.

    Example:
        >>> print(bound_horizon_step(1.0, 10000, alpha=0.5, d=10, G=2.0, beta=3.0))
        min ||v_k||^2 <= 0.277102 (Corollary 2, 0 in the limit)

    References:
        "Revisiting ASkewSGD", Corollary 2, corrected (E15, E17).
    """
    gamma = 1 / torch.sqrt(count("steps", steps))
    constants = {"alpha": alpha, "d": d, "G": G, "beta": beta}
    bound = bound_small_step(decrease, gamma, steps, **constants, form=form)
    given = (decrease, steps, *constants.values())
    value = finite("value", bound.value)
    return StationarityBound(
        value=plain(value, *given),
        floor=plain(torch.zeros_like(value), *given),
        quantity=bound.quantity,
        theorem="Corollary 2",
        form=form,
    )


def bound_decreasing_steps(
    decrease: Real,
    step_sizes: Any,
    *,
    clip: Real,
    d: Real,
    G: Real,
    beta: Real,
    form: Form = "corrected",
) -> StationarityBound:
    r"""Return Theorem 4: decreasing step sizes, the weighted mean of ||v||^2 / 2.

    .. math::
        \frac{1}{\sum\gamma_k} \sum \frac{\gamma_k}2 \|v_k\|^2 \le
        \frac{\Delta}{\sum\gamma_k} + M_c G\sqrt d + \frac{M_c^2 d}{2}
        + \frac{\beta M_c^2 d \sum\gamma_k^2}{2\sum\gamma_k}

    Contract:
        Needs ||g|| <= G at the iterates, a beta-Lipschitz gradient and all
        gamma_k < 1/beta. ``floor`` is the limit for sum gamma_k = inf,
        sum gamma_k^2 < inf, and ``decrease`` bounded. The paper's proof exchanges S+
        and S- (erratum E18); ``form="as_printed"`` has its limit 3/2 M_c^2 d as value
        and as floor: it says nothing of finitely many steps. Half the weighted mean
        is bounded, not the mean.

    Args:
        decrease: Delta = l(w_{k_0}) - l(w_{T+1}), or an upper bound on it.
        step_sizes: gamma_{k_0} ... gamma_T, shape [T - k_0 + 1].
        clip: M_c, positive and finite.
        d: number of weights.
        G: bound on the Euclidean norm of the gradient.
        beta: Lipschitz constant of the gradient.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The bound.

    Raises:
        ValueError: if an argument is out of range, or a step size not below 1/beta.

    Example:
        >>> constants = {"clip": 1.0, "d": 4, "G": 2.0, "beta": 1.0}
        >>> print(bound_decreasing_steps(1.0, [0.5, 0.25, 0.25], **constants))
        mean of gamma_k/2 ||v_k||^2 <= 7.75 (Theorem 4, 6 in the limit)

    References:
        "Revisiting ASkewSGD", Theorem 4, corrected (E18).
    """
    corrected = check_form(form)
    bound, number = positive("clip", clip), count("d", d)
    steps, gradient, smooth = _constants(step_sizes, G, beta, corrected)
    if steps.ndim != 1 or steps.numel() == 0:
        raise ValueError(
            "step_sizes must be a nonempty sequence of numbers, got shape "
            f"{tuple(steps.shape)}"
        )
    push = bound**2 * number
    if corrected:
        floor = bound * gradient * torch.sqrt(number) + push / 2
        total = steps.sum()
        value = finite("decrease", decrease) / total + floor
        value = value + smooth * push * steps.square().sum() / (2 * total)
    else:
        floor = value = 1.5 * push
    given = (decrease, clip, d, G, beta)
    return StationarityBound(
        value=plain(value, *given),
        floor=plain(floor, *given),
        quantity="mean of gamma_k/2 ||v_k||^2",
        theorem="Theorem 4",
        form=form,
    )


def _constants(
    gamma: Any, G: Real, beta: Real, corrected: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return step size, gradient bound and smoothness; L for both if as printed."""
    step = positive("gamma", gamma)
    gradient, smooth = positive("G", G), positive("beta", beta)
    if not corrected:
        gradient = smooth = torch.maximum(gradient, smooth)
    if not bool((step * smooth < 1).all()):
        raise ValueError(
            f"gamma must be below 1/{'beta' if corrected else 'L'} = "
            f"{shown(1 / smooth)}, got {shown(step)}: the descent lemma needs it"
        )
    return step, gradient, smooth


def _bound(
    decrease: Real,
    step: Tensor,
    steps: Real,
    floor: Tensor,
    given: tuple[Real, ...],
    theorem: str,
    form: Form,
) -> StationarityBound:
    value = 2 * finite("decrease", decrease) / (step * count("steps", steps)) + floor
    return StationarityBound(
        value=plain(value, *given),
        floor=plain(floor, *given),
        quantity="min ||v_k||^2",
        theorem=theorem,
        form=form,
    )
