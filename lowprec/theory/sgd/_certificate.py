"""The trajectory certificate: an identity that holds for every run, whatever the noise.

It says what Theorem 4.3 leaves out for a given run: five correlation terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._inputs import Real, finite, nonnegative, positive

# A radial f attains equality; a few units of rounding error are no violation.
_SLACK = 2.0**-49


class CrossTerms(NamedTuple):
    """The five inner products that Theorem 4.3 assumes to have mean zero.

    Args:
        direction_gradient: <g_k, r_k>, g_k the exact unit direction.
        direction_update: <g_k, s_k>.
        gradient_update: <r_k, s_k>.
        gradient_offset: <r_k, w_k - w*>.
        update_offset: <s_k, w_k - w*>.

    Example:
        >>> CrossTerms(0.0, 0.0, 0.0, 0.0, 1.5).update_offset
        1.5
    """

    direction_gradient: Any
    direction_update: Any
    gradient_update: Any
    gradient_offset: Any
    update_offset: Any


class StepQuantities(NamedTuple):
    """What `certificate` needs of each step; all of shape [K].

    Args:
        phi: <g_k, w_k - w*>.
        r2: ||r_k||^2.
        s2: ||s_k||^2.
        cross: the five inner products.
        direction2: ||g_k||^2: 1, or 0 in a step that was skipped.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> step_quantities(1.5 * one, one, 0 * one, 0.5 * one, 0 * one[0]).phi
        tensor([1.5000], dtype=torch.float64)
    """

    phi: Tensor
    r2: Tensor
    s2: Tensor
    cross: CrossTerms
    direction2: Tensor


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a run of K normalised steps proves about itself.

    Every part is divided by 2 sum(eta_k), so that they add up to ``mean_phi`` and
    compare with Gamma_s.

    Args:
        steps: K.
        mean_phi: sum(eta_k phi_k)/sum(eta_k), the certified radius.
        progress: part of D_0^2 - D_K^2.
        step: part of eta_k^2, there without any rounding error.
        gradient: part of eta_k^2 ||r_k||^2.
        update: part of ||s_k||^2.
        cross: parts of the five correlation terms, with their signs and factors.
        residual: ``mean_phi`` minus the sum of the parts: zero but for rounding
            without a projection, not positive with one.
        bias_score: sum of X_k over the square root of the sum of X_k^2; of unit
            variance if the X_k are uncorrelated with mean zero.
        bound: f* + L mean_phi^p, an upper bound on min f(w_k) in any case.
        stochastic_bound: f* + L Gamma_s^p with the moments of this run.
        stochastic_bound_applies: whether |X/(2 eta)| is small beside Gamma_s.
        smallest_phi: min phi_k; negative only if w* is no minimiser or f is not
            quasi-convex.
        smallest_value: min f(w_k), or None if the values were not given.
        growth_violations: steps with phi_k < ((f(w_k) - f*)/L)^(1/p), where L and p
            are too small; None if the values were not given.

    Example:
        >>> run = certificate(2**-9, [1.5] * 8, [0.0] * 8, [4.0**-9] * 8,
        ...                   CrossTerms(0.0, 2**-9, 0.0, 0.0, 1.5 * 2**-9),
        ...                   D_0=1.5, D_K=1.5)
        >>> run.stochastic_bound_applies
        False
    """

    steps: int
    mean_phi: float
    progress: float
    step: float
    gradient: float
    update: float
    cross: CrossTerms
    residual: float
    bias_score: float
    bound: float
    stochastic_bound: float
    stochastic_bound_applies: bool
    smallest_phi: float
    smallest_value: float | None
    growth_violations: int | None

    @property
    def gamma_stochastic(self) -> float:
        """Gamma_s of Theorem 4.3 with the second moments of this run."""
        return self.step + self.gradient + self.update

    @property
    def bias(self) -> float:
        """X/(2 eta), the sum of the five cross terms; zero mean in Theorem 4.3."""
        return math.fsum(self.cross)

    @property
    def holds(self) -> bool | None:
        """Whether min f(w_k) <= bound; None if the values were not given."""
        if self.smallest_value is None:
            return None
        return self.smallest_value <= self.bound + _SLACK * abs(self.bound)

    def __str__(self) -> str:
        """Return the identity and the two bounds."""
        cross = ", ".join(
            f"{name} {part:.3g}" for name, part in self.cross._asdict().items()
        )
        applies = "applies" if self.stochastic_bound_applies else "does NOT apply"
        lines = [
            f"trajectory certificate over {self.steps} steps",
            f"mean phi = {self.mean_phi:.6g} = progress {self.progress:.6g} + "
            f"step {self.step:.6g} + gradient {self.gradient:.6g} + "
            f"update {self.update:.6g} + bias {self.bias:.6g}",
            f"bias: {cross}",
            f"min f(w_k) <= {self.bound:.6g} for this run",
            f"Theorem 4.3 would give {self.stochastic_bound:.6g}; it {applies} "
            f"(bias score {self.bias_score:.3g})",
        ]
        return "\n".join(lines)


def step_quantities(
    w: Tensor, direction: Tensor, r: Tensor, s: Tensor, w_star: Tensor
) -> StepQuantities:
    r"""Return the scalars of each step that `certificate` needs.

    The iteration is w_{k+1} = w_k - eta_k (g_k + r_k) + s_k with unit g_k.

    Contract:
        Computed in binary64, whatever the dtypes: a float32 difference would hide
        errors s_k below 2^-24.

    Args:
        w: iterates w_0 ... w_{K-1}, shape [K, ...].
        direction: exact unit directions g_k (zero where a step was skipped), same
            shape.
        r: errors of the direction, same shape.
        s: errors of the update, same shape.
        w_star: one minimiser, shape [...].

    Returns:
        Inner products and squared norms over all but the first axis, shape [K].

    Raises:
        ValueError: if the shapes do not match.

    Example:
        >>> w = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        >>> step_quantities(w, w / 5, 0 * w, 0 * w, 0 * w[0]).phi
        tensor([5.], dtype=torch.float64)

    References:
        `certificate`.
    """
    named = {"direction": direction, "r": r, "s": s, "w_star": w_star}
    for name, tensor in named.items():
        expected = w.shape[1:] if name == "w_star" else w.shape
        if tensor.shape != expected:
            raise ValueError(
                f"{name} must have shape {tuple(expected)} to go with w of shape "
                f"{tuple(w.shape)}, got {tuple(tensor.shape)}"
            )
    offset, g, gradient, update = (
        tensor.to(torch.float64).reshape(len(w), -1)
        for tensor in (w.to(torch.float64) - w_star, direction, r, s)
    )
    return StepQuantities(
        phi=_inner(g, offset),
        r2=_inner(gradient, gradient),
        s2=_inner(update, update),
        cross=CrossTerms(
            _inner(g, gradient),
            _inner(g, update),
            _inner(gradient, update),
            _inner(gradient, offset),
            _inner(update, offset),
        ),
        direction2=_inner(g, g),
    )


def certificate(
    eta: Real,
    phi: Any,
    r2: Any,
    s2: Any,
    cross: Any,
    *,
    D_0: float,
    D_K: float,
    L: float = 1.0,
    p: float = 1.0,
    f_star: float = 0.0,
    f: Any = None,
    direction2: Any = 1.0,
    tolerance: float = 0.5,
) -> Certificate:
    r"""Return the bound that a run proves about itself, and its parts.

    .. math::
        \frac{\sum \eta_k \varphi_k}{\sum \eta_k} = \frac{1}{2 \sum \eta_k} \Bigl[
        D_0^2 - D_K^2 + \sum \eta_k^2 (1 + \|r_k\|^2) + \sum \|s_k\|^2 + \sum X_k
        \Bigr],

    .. math::
        X_k = 2\eta_k^2 \langle g_k, r_k\rangle - 2\eta_k \langle g_k, s_k\rangle
        - 2\eta_k \langle r_k, s_k\rangle - 2\eta_k \langle r_k, w_k - w^*\rangle
        + 2 \langle s_k, w_k - w^*\rangle ,

    and min f(w_k) <= f* + L (left side)^p, because
    phi_k = <g_k, w_k - w*> >= ((f(w_k) - f*)/L)^(1/p).

    Contract:
        Needs no assumption on the errors, only that f is quasi-convex with the stated
        growth and that w* is a minimiser; any window of consecutive steps may be
        given. With a projection the equality becomes ``<=``. Theorem 4.3 says that
        the sum of X_k has mean zero: if |X/(2 eta)| > tolerance * Gamma_s, its bound
        does not describe this run. If mean_phi is negative, the assumptions fail and
        the bounds that rest on it are +inf.

    Args:
        eta: step sizes, shape [K] or one number, positive.
        phi: <g_k, w_k - w*>, shape [K].
        r2: ||r_k||^2, shape [K].
        s2: ||s_k||^2, shape [K].
        cross: `CrossTerms`, or an array of shape [K, 5] with columns in its order.
        D_0: ||w_0 - w*|| at the start of the window.
        D_K: ||w_K - w*|| after its last step.
        L: constant of f - f* <= L dist(w, W*)^p, positive.
        p: order of that growth condition, positive.
        f_star: infimum f* of the objective.
        f: f(w_k), shape [K], or None.
        direction2: ||g_k||^2, shape [K]; 1 unless some step was skipped.
        tolerance: largest |X/(2 eta)|/Gamma_s for which Theorem 4.3 is said to apply.

    Returns:
        The identity with its parts and both bounds.

    Raises:
        ValueError: if an argument is out of range, not finite, or of the wrong shape.

    Example:
        >>> run = certificate(2**-9, [1.5] * 8, [0.0] * 8, [4.0**-9] * 8,
        ...                   CrossTerms(0.0, 2**-9, 0.0, 0.0, 1.5 * 2**-9),
        ...                   D_0=1.5, D_K=1.5)  # stagnation of |w| in bfloat16
        >>> run.bound, run.stochastic_bound
        (1.5, 0.001953125)

    References:
        Not in the paper; compare the proof of Theorem 4.3 and erratum E9.
    """
    window = finite("phi", phi).reshape(-1)
    if window.numel() == 0:
        raise ValueError("phi is empty: a certificate needs one step or more")
    steps = _like(positive("eta", eta), window, "eta")
    first = _like(nonnegative("r2", finite("r2", r2)), window, "r2")
    second = _like(nonnegative("s2", finite("s2", s2)), window, "s2")
    unit = _like(nonnegative("direction2", direction2), window, "direction2")
    terms = _signed(_columns(cross, window), steps)
    total = 2 * steps.sum()
    ends = (
        nonnegative("D_0", finite("D_0", D_0)),
        nonnegative("D_K", finite("D_K", D_K)),
    )
    progress = ((ends[0] - ends[1]) * (ends[0] + ends[1]) / total).item()
    parts = [
        _part(steps**2 * unit, total),
        _part(steps**2 * first, total),
        _part(second, total),
    ]
    mean_phi = _part(2 * steps * window, total)
    biases = CrossTerms(*(_part(term, total) for term in terms))
    noise = torch.stack(terms).sum(dim=0)
    scale = noise.norm().item()
    values = None if f is None else _like(finite("f", f), window, "f")
    gamma = math.fsum(parts)
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance!r}")
    L, p, f_star = (
        positive("L", L).item(),
        positive("p", p).item(),
        finite("f_star", f_star).item(),
    )
    return Certificate(
        steps=window.numel(),
        mean_phi=mean_phi,
        progress=progress,
        step=parts[0],
        gradient=parts[1],
        update=parts[2],
        cross=biases,
        residual=math.fsum([mean_phi, -progress, *(-x for x in (*parts, *biases))]),
        bias_score=noise.sum().item() / scale if scale > 0 else 0.0,
        bound=f_star + L * _power(mean_phi, p) if mean_phi >= 0 else math.inf,
        stochastic_bound=f_star + L * _power(gamma, p),
        stochastic_bound_applies=abs(math.fsum(biases)) <= tolerance * gamma,
        smallest_phi=window.min().item(),
        smallest_value=None if values is None else values.min().item(),
        growth_violations=None
        if values is None
        else _violations(window, values, L, p, f_star),
    )


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=1)


def _part(terms: Tensor, total: Tensor) -> float:
    # fsum: the parts are differences of large sums, and the identity is checked.
    return math.fsum(terms.tolist()) / total.item()


def _power(radius: float, p: float) -> float:
    try:
        return float(radius**p)
    except OverflowError:
        return math.inf


def _like(tensor: Tensor, window: Tensor, name: str) -> Tensor:
    if tensor.numel() not in (1, window.numel()):
        raise ValueError(
            f"{name} must have one entry per step like phi ({window.numel()}), or be "
            f"one number, got shape {tuple(tensor.shape)}"
        )
    return tensor.reshape(-1).expand(window.numel())


def _columns(cross: Any, window: Tensor) -> CrossTerms:
    if not isinstance(cross, CrossTerms):
        table = torch.as_tensor(cross, dtype=torch.float64)
        if table.shape != (window.numel(), 5):
            raise ValueError(
                f"cross must be CrossTerms or have shape ({window.numel()}, 5), got "
                f"{tuple(table.shape)}"
            )
        cross = CrossTerms(*table.unbind(dim=1))
    return CrossTerms(
        *(
            _like(finite(name, value), window, name)
            for name, value in cross._asdict().items()
        )
    )


def _signed(cross: CrossTerms, eta: Tensor) -> list[Tensor]:
    return [
        2 * eta**2 * cross.direction_gradient,
        -2 * eta * cross.direction_update,
        -2 * eta * cross.gradient_update,
        -2 * eta * cross.gradient_offset,
        2 * cross.update_offset,
    ]


def _violations(phi: Tensor, values: Tensor, L: float, p: float, f_star: float) -> int:
    radius = ((values - f_star).clamp(min=0) / L) ** (1 / p)
    return int((phi < radius - _SLACK * radius).sum())
