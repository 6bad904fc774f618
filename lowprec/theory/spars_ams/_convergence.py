"""The convergence theorem of SPARS-AMS: corrected, and as the paper prints it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._inputs import Real, count, every, finite, nonnegative, plain, positive, shown
from ._bounds import contraction, sent_bound


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvergenceBound:
    """A bound on the mean of the squared gradient norms at theta_1 ... theta_T.

    Args:
        value: the bound, the sum of the terms.
        terms: each term by what it is due to.
        step_ok: whether the step size meets the theorem's condition.
        note: what to know before it is quoted.
        form: ``"corrected"`` or ``"as_printed"``.

    Example:
        >>> print(ConvergenceBound(value=0.5, terms={"start": 0.5}, step_ok=True))
        mean of E||grad f||^2 <= 0.5
    """

    value: Real
    terms: dict[str, Real] = field(default_factory=dict)
    step_ok: bool | Tensor
    note: str = ""
    form: str = "corrected"

    def __float__(self) -> float:
        """Return the bound."""
        return float(self.value)

    def __str__(self) -> str:
        """Return the bound as a sentence."""
        sentence = f"mean of E||grad f||^2 <= {shown(self.value)}"
        if not every(self.step_ok):
            sentence += ", if the step size were small enough, which it is not"
        return f"{sentence} ({self.note})" if self.note else sentence


def convergence_bound(
    f0: Real,
    fstar: Real,
    *,
    L: Real,
    G: Real,
    q: Real,
    beta1: Real,
    eps: Real,
    eta: Real,
    T: Real,
    n: Real,
    sigma2: Real,
    d: Real,
    selection: bool = True,
) -> ConvergenceBound:
    r"""Return the corrected theorem.

    .. math::
        \begin{aligned}
        & \frac1T \sum_{t=1}^{T} E\|\nabla f(\theta_t)\|^2 \le 4 C_0 \Bigl\{
          \frac{f(\theta_1) - f^*}{\eta T} + \frac{\eta^2 C_0 L^2 B^2}{2\epsilon^2}
          + \frac{G_y U d}{\sqrt\epsilon\, T} + \frac{L\eta\sigma^2}{n\epsilon}
          + \frac{L\eta U^2 d}{\epsilon T} \Bigr\} \\
        & C_0 = \sqrt{\hat G^2 + \epsilon}, \quad
          B = \frac{qG}{1-q} + \frac{\beta_1 G}{1-\beta_1}, \quad
          U = \frac{G}{1-\beta_1} + \frac{qG}{1-q}, \quad
          G_y = G + \frac{L\eta B}{\sqrt\epsilon}
        \end{aligned}

    Contract:
        Needs L-smooth f_i, unbiased gradients with E||g_t - grad f||^2 <= sigma^2/n,
        ||g_{t,i}|| <= G, a compressor with q on g + e, error feedback, and the constant
        step size :math:`\eta \le \epsilon / (4 L C_0)`; where that fails, ``step_ok``
        is false and the value is no bound. With eta = c/sqrt(T) every term tends to 0,
        for every q < 1.

    Args:
        f0: f(theta_1).
        fstar: a lower bound of f.
        L: Lipschitz constant of the gradients.
        G: bound on the norm of each worker's gradient.
        q: contraction of the compressor, from 0 to below 1.
        beta1: beta_1, from 0 to below 1.
        eps: epsilon, positive.
        eta: step size, positive.
        T: number of steps.
        n: number of workers.
        sigma2: sigma^2, variance of one worker's gradient.
        d: number of parameters.
        selection: as in `sent_bound`.

    Returns:
        The bound; floats, or float64 tensors of the broadcast shape.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> constants = {"L": 0.02, "G": 1.0, "q": 0.5**0.5, "beta1": 0.9, "eps": 1.0}
        >>> bound = convergence_bound(
        ...     0.7, 0.0, **constants, eta=3e-3, T=10**4, n=20, sigma2=1.0, d=20
        ... )
        >>> print(bound, bound.step_ok)
        mean of E||grad f||^2 <= 0.68593 True

    References:
        Theorem 1 of "Sparsified Distributed Adaptive Learning with Error Feedback",
        corrected: smoothness along the virtual iterates of `iterate_residual`.
    """
    smooth, gradient = positive("L", L), positive("G", G)
    factor, momentum = contraction(q), _momentum(beta1)
    epsilon, step = positive("eps", eps), positive("eta", eta)
    steps, workers, size = count("T", T), count("n", n), count("d", d)
    variance = nonnegative("sigma2", sigma2)
    sent = finite("sent", sent_bound(factor, gradient, selection=selection))
    scale = torch.sqrt(sent**2 + epsilon)
    left = factor * gradient / (1 - factor)
    lag = left + momentum * gradient / (1 - momentum)
    push = gradient / (1 - momentum) + left
    slope = gradient + smooth * step * lag / torch.sqrt(epsilon)
    terms = {
        "start": (finite("f0", f0) - finite("fstar", fstar)) / (step * steps),
        "lag": step**2 * scale * smooth**2 * lag**2 / (2 * epsilon**2),
        "preconditioner": slope * push * size / (torch.sqrt(epsilon) * steps),
        "noise": smooth * step * variance / (workers * epsilon),
        "preconditioner squared": smooth * step * push**2 * size / (epsilon * steps),
    }
    given = (f0, fstar, L, G, q, beta1, eps, eta, T, n, sigma2, d)
    scaled = {name: 4 * scale * term for name, term in terms.items()}
    return ConvergenceBound(
        value=plain(
            torch.stack(torch.broadcast_tensors(*scaled.values())).sum(0), *given
        ),
        terms={name: plain(term, *given) for name, term in scaled.items()},
        step_ok=plain(step <= epsilon / (4 * smooth * scale), *given),
    )


def convergence_bound_as_printed(
    f0: Real,
    fstar: Real,
    *,
    L: Real,
    G: Real,
    q: Real,
    beta1: Real,
    beta2: Real,
    eps: Real,
    T: Real,
    n: Real,
    d: Real,
) -> ConvergenceBound:
    r"""Return Theorem 1 as the paper prints it, which says nothing.

    .. math::
        \begin{aligned}
        & \frac{f(\theta_0) - f^*}{L \Delta_1 \sqrt T}
          + \frac{d L \Delta_3}{\Delta_1 \sqrt T} + \frac{\Delta_2}{\eta \Delta_1 T}
          + \frac{1-\beta_1}{\Delta_1} \sqrt{\frac{q^2+1}{\epsilon}} G^2,
          \qquad \eta = L / \sqrt T \\
        & \Delta_1 = \frac{1-\beta_1}{2}
          \Bigl(\epsilon + \frac{(q^2+1) G^2}{1-\beta_2}\Bigr)^{-1/2}, \quad
          \Delta_2 = q^2 + \frac{\beta_1^3}{1-\beta_1} \frac{G^2}{2\epsilon n^2}, \\
        & \Delta_3 = \Bigl(\frac L2 + 1 + \frac{\beta_1 L}{1-\beta_1}\Bigr)
          (1-\beta_2)^{-1} (1 - \beta_1^2/\beta_2)^{-1}
        \end{aligned}

    Contract:
        For comparison only. The last term does not fall with T and is at least 2 G^2,
        twice what the left side can be at most; the proof has errors besides (S1 to
        S18). The free index in the paper's Delta_2 is read as a sum from its first
        term on.

    Args:
        f0: f(theta_0).
        fstar: a lower bound of f.
        L: Lipschitz constant of the gradients, also the factor of the step size.
        G: bound on the norm of each worker's gradient.
        q: contraction of the compressor, from 0 to below 1.
        beta1: beta_1, from 0 to below 1.
        beta2: beta_2, above beta_1^2 and below 1.
        eps: epsilon, positive.
        T: number of steps.
        n: number of workers.
        d: number of parameters.

    Returns:
        The right side; ``step_ok`` is true, as there is no condition.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> constants = {"L": 0.02, "G": 1.0, "q": 0.0, "beta1": 0.9, "beta2": 0.999}
        >>> print(convergence_bound_as_printed(
        ...     0.7, 0.0, **constants, eps=1.0, T=20000, n=20, d=20
        ... ))
        mean of E||grad f||^2 <= 11479.4 (as printed; vacuous: term 4 >= 2G^2)

    References:
        "Sparsified Distributed Adaptive Learning with Error Feedback", Theorem 1.
    """
    smooth, gradient = positive("L", L), positive("G", G)
    factor, momentum = contraction(q), _momentum(beta1)
    second, epsilon = positive("beta2", beta2), positive("eps", eps)
    if not bool(((momentum**2 < second) & (second < 1)).all()):
        raise ValueError(
            f"the theorem needs beta1^2 < beta2 < 1, got beta1={beta1!r} and "
            f"beta2={beta2!r}"
        )
    steps, workers, size = count("T", T), count("n", n), count("d", d)
    spread = (factor**2 + 1) * gradient**2
    one = (1 - momentum) / 2 / torch.sqrt(epsilon + spread / (1 - second))
    two = gradient**2 / (2 * epsilon * workers**2)
    two = factor**2 + momentum**3 / (1 - momentum) * two
    three = smooth / 2 + 1 + momentum * smooth / (1 - momentum)
    three = three / ((1 - second) * (1 - momentum**2 / second))
    root = torch.sqrt(steps)
    start = finite("f0", f0) - finite("fstar", fstar)
    terms = {
        "start": start / (smooth * one * root),
        "step length": size * smooth * three / (one * root),
        "compression": two / (smooth * one * root),
        "momentum": (1 - momentum)
        / one
        * torch.sqrt((factor**2 + 1) / epsilon)
        * gradient**2,
    }
    given = (f0, fstar, L, G, q, beta1, beta2, eps, T, n, d)
    return ConvergenceBound(
        value=plain(
            torch.stack(torch.broadcast_tensors(*terms.values())).sum(0), *given
        ),
        terms={name: plain(term, *given) for name, term in terms.items()},
        step_ok=True,
        note="as printed; vacuous: term 4 >= 2G^2",
        form="as_printed",
    )


def _momentum(beta1: Real) -> Tensor:
    momentum = nonnegative("beta1", beta1)
    if not bool((momentum < 1).all()):
        raise ValueError(f"beta1 must be from 0 to below 1, got {beta1!r}")
    return momentum
