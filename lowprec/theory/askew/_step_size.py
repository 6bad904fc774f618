"""Corollary 1 and Lemma 5: step sizes that confine, and steps until they have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .._inputs import Form, Real, check_form, nonnegative, positive
from ._remoteness import Remoteness
from ._skew import skew_ratio, skew_ratio_bounds


@dataclass(frozen=True, kw_only=True)
class StepSizeConditions:
    """Limits on the step size, each named after what it ensures.

    Args:
        confinement: gamma must be below, so that no step leaves a level's interval
            (c1); negative where the printed form cannot be met.
        skew: gamma must not exceed, so that |u_i| <= 2 alpha gamma G (c2).
        smoothness: gamma must be below 1/beta, for the descent lemma (c3).
        monotone: gamma must not exceed 1/alpha, so that the skewing force does not
            overshoot C (c4).

    Example:
        >>> conditions = StepSizeConditions(
        ...     confinement=0.5, skew=0.25, smoothness=0.25, monotone=2.0
        ... )
        >>> conditions.allows(0.25), conditions.allows(0.2)
        (False, True)
    """

    confinement: float
    skew: float
    smoothness: float
    monotone: float

    def allows(self, gamma: float) -> bool:
        """Return whether a step size meets all conditions."""
        below = min(self.confinement, self.smoothness)
        return 0 < gamma < below and gamma <= min(self.skew, self.monotone)


def step_size_conditions(
    psi: Remoteness,
    *,
    alpha: float,
    clip: float,
    G: float,
    beta: float,
    form: Form = "corrected",
) -> StepSizeConditions:
    r"""Return the conditions on the step size of Lemmas 3 to 5 and Corollary 1.

    With [q-, q+] the part of C around a level, m-, m+ the mid-points beside it and D
    the width of the infeasible part of a cell, for every level and cell,

    .. math::
        \gamma \max(G, M_c) < \min\{q_+ - q_-,\; q_- - m_-,\; m_+ - q_+\}, \quad
        \gamma G \le \tfrac D3, \quad \gamma < \tfrac1\beta, \quad
        \alpha\gamma \le 1 .

    Contract:
        The paper prints m- - q+ for the last term at inner levels (errata E12, E15),
        which is negative, and compares gamma itself with D/3, at inner levels only:
        ``form="as_printed"`` returns those, and no fourth condition, with
        L = max(G, beta) for the paper's one constant L. The fourth condition is ours;
        without it weights can oscillate (`cycle`).

    Args:
        psi: the remoteness function; epsilon below its maximum.
        alpha: rate at which infeasibility decays, positive.
        clip: M_c, positive and finite.
        G: bound on every |g_i|, stochastic ones included, positive.
        beta: Lipschitz constant of the gradient, positive.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The four limits.

    Raises:
        ValueError: if a constant is not positive and finite, or parts of C touch.

    Example:
        >>> psi = Remoteness((-1, 1), 0.75)
        >>> step_size_conditions(psi, alpha=0.5, clip=1.0, G=2.0, beta=3.0)
        ... # doctest: +NORMALIZE_WHITESPACE
        StepSizeConditions(confinement=0.25, skew=0.16666666666666666,
                           smoothness=0.3333333333333333, monotone=2.0)

    References:
        "Revisiting ASkewSGD", Lemmas 3 and 4, Corollary 1; corrected (E12, E13, E15).
    """
    corrected = check_form(form)
    rate, bound = float(positive("alpha", alpha)), float(positive("clip", clip))
    gradient, smooth = float(positive("G", G)), float(positive("beta", beta))
    narrow = min(psi.infeasible_widths, default=math.inf)
    if narrow == 0:
        raise ValueError(
            f"epsilon = {psi.epsilon!r} must be below {psi.epsilon_max!r}: parts of C "
            "touch, and no step size keeps a weight near one level"
        )
    largest = max(gradient, bound)
    room = min(*(high - low for low, high in psi.pieces), narrow / 2, math.inf)
    if corrected:
        return StepSizeConditions(
            confinement=room / largest,
            skew=narrow / 3 / gradient,
            smoothness=1 / smooth,
            monotone=1 / rate,
        )
    constant = max(gradient, smooth)
    return StepSizeConditions(
        confinement=min(room, _printed_room(psi)) / max(constant, bound),
        skew=narrow / 3 if len(psi.levels) > 2 else math.inf,
        smoothness=1 / constant,
        monotone=math.inf,
    )


def max_stepsize(
    psi: Remoteness,
    *,
    alpha: float,
    clip: float,
    G: float,
    beta: float,
    form: Form = "corrected",
) -> float:
    r"""Return the largest binary64 step size that meets `step_size_conditions`.

    Contract:
        The result itself meets them: strict conditions are met with one ulp to spare.

    Args:
        psi: the remoteness function; epsilon below its maximum.
        alpha: rate at which infeasibility decays, positive.
        clip: M_c, positive and finite.
        G: bound on every |g_i|, positive.
        beta: Lipschitz constant of the gradient, positive.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The step size.

    Raises:
        ValueError: as `step_size_conditions`, or if no step size meets the printed
            conditions, which is so whenever there are three levels or more.

    Example:
        >>> psi = Remoteness((-1, 1), 0.75)
        >>> max_stepsize(psi, alpha=0.5, clip=1.0, G=2.0, beta=3.0)
        0.16666666666666666

    References:
        "Revisiting ASkewSGD", Corollary 1, corrected (E15).
    """
    conditions = step_size_conditions(
        psi, alpha=alpha, clip=clip, G=G, beta=beta, form=form
    )
    strict = min(conditions.confinement, conditions.smoothness)
    if strict <= 0:
        raise ValueError(
            "no step size meets the printed conditions, whose last term is negative "
            "at inner levels: use form='corrected'"
        )
    return min(math.nextafter(strict, 0.0), conditions.skew, conditions.monotone)


def lemma5_count(
    distance: float,
    psi: Remoteness,
    *,
    alpha: float,
    clip: float,
    G: float,
    gamma: float,
    count: Literal["loose", "tight"] = "tight",
) -> int:
    r"""Return the number of steps until every dist(w_i, C) <= gamma G, for ever.

    .. math::
        \Bigl\lceil \frac{d_0 - \gamma G}{\tau\gamma} \Bigr\rceil \;\text{(loose)},
        \qquad
        \Bigl\lceil \frac{(d_0 - M_c/c)_+}{\gamma M_c} \Bigr\rceil + \Bigl\lceil
        \frac{\log(\min(d_0, M_c/c) / \gamma G)}{-\log(1 - c\gamma)} \Bigr\rceil
        \;\text{(tight)},

    where tau is the smallest skewing force at distances of at least gamma G, and
    c = alpha times the smallest `skew_ratio_bounds`.

    Contract:
        Holds for step sizes that `step_size_conditions` allows. The loose count is
        Lemma 5, by coordinate, with tau where the paper also prints eta (E14); the
        tight one is ours, full steps of M_c and then geometric decay, and never more
        than the loose one.

    Args:
        distance: d_0 = max_i dist(w_i, C) at the start, or an upper bound on it.
        psi: the remoteness function.
        alpha: rate at which infeasibility decays, positive.
        clip: M_c, positive and finite.
        G: bound on every |g_i|, positive.
        gamma: step size, positive.
        count: ``"loose"`` or ``"tight"``.

    Returns:
        A number of steps, k_1 - k_0.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> psi = Remoteness((-1, 1), 0.2)
        >>> constants = {"alpha": 0.5, "clip": 1.0, "G": 1.0, "gamma": 0.01}
        >>> lemma5_count(0.5, psi, **constants, count="loose")
        9800
        >>> lemma5_count(0.5, psi, **constants)
        781

    References:
        "Revisiting ASkewSGD", Lemma 5 (E14).
    """
    start = float(nonnegative("distance", distance))
    rate, bound = float(positive("alpha", alpha)), float(positive("clip", clip))
    step = float(positive("gamma", gamma))
    reach = step * float(positive("G", G))
    if count not in ("loose", "tight"):
        raise ValueError(f"count must be 'loose' or 'tight', got {count!r}")
    if start <= reach:
        return 0
    least = _least_force(reach, psi, rate, bound)
    loose = math.ceil((start - reach) / (step * least))
    if count == "loose":
        return loose
    rate *= skew_ratio_bounds(psi)[0]
    tight = math.ceil(max(start - bound / rate, 0.0) / (step * bound))
    close = min(start, bound / rate)
    if close > reach:
        decays = rate * step < 1
        rounds = math.log(close / reach) / -math.log1p(-rate * step) if decays else 1
        tight += math.ceil(rounds)
    return min(loose, tight)


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """How far from C the weights stay after the steps of `lemma5_count`.

    Args:
        distance: bound on dist(w_i, C) of each coordinate.
        distance_norm: bound on the Euclidean distance of w to C.
        skew: bound on each |u_i| of a coordinate with a skewing force.
        form: ``"corrected"`` or ``"as_printed"``.

    Example:
        >>> neighbourhood(0.01, alpha=0.5, G=2.0, d=4)
        ... # doctest: +NORMALIZE_WHITESPACE
        Neighbourhood(distance=0.02, distance_norm=0.04, skew=0.02,
                      form='corrected')
    """

    distance: float
    distance_norm: float
    skew: float
    form: str


def neighbourhood(
    gamma: float, *, alpha: float, G: Real, d: int, form: Form = "corrected"
) -> Neighbourhood:
    r"""Return Corollary 1: the distance to C, and the skewing force, in the long run.

    .. math::
        \mathrm{dist}(w_i, C_i) \le \gamma G, \quad
        \mathrm{dist}(w, C) \le \gamma G \sqrt d, \quad |u_i| \le 2\alpha\gamma G

    Contract:
        For step sizes that `step_size_conditions` allows. The paper's
        |u_i| <= 2 alpha gamma G sqrt(d) (``form="as_printed"``) is only loose: the
        proof of Lemma 5 bounds each coordinate (errata E14, E16).

    Args:
        gamma: step size, positive.
        alpha: rate at which infeasibility decays, positive.
        G: bound on every |g_i|, positive; the paper's L.
        d: number of weights, at least 1.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The bounds.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        See `Neighbourhood`.

    References:
        "Revisiting ASkewSGD", Corollary 1, corrected (E16).
    """
    root = math.sqrt(positive("d", d))
    single = float(positive("gamma", gamma) * positive("G", G))
    together = single * root
    each = single if check_form(form) else together
    return Neighbourhood(
        distance=each,
        distance_norm=together,
        skew=2 * float(positive("alpha", alpha)) * each,
        form=form,
    )


def _printed_room(psi: Remoteness) -> float:
    # (q^(j-1) + q^(j))/2 - q+ at inner levels
    inner = zip(psi.levels, psi.levels[1:-1], psi.inner_half_widths[1:], strict=False)
    terms = ((low + level) / 2 - (level + half) for low, level, half in inner)
    return min(terms, default=math.inf)


def _least_force(reach: float, psi: Remoteness, rate: float, bound: float) -> float:
    """Return the smallest clipped force at distances >= reach; it is at reach.

    In cells narrower than that no weight is so far away.
    """
    forces = [bound]
    for cell in range(len(psi.levels) + 1):
        outer = cell in (0, len(psi.levels))
        if outer or reach < psi.infeasible_widths[cell - 1] / 2:
            forces.append(rate * reach * float(skew_ratio(reach, psi, cell)))
    return min(forces)
