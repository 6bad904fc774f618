"""The drift matrices of SGD and its variants, and how fast they forget."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...schedules import Method
from .._inputs import Form, Real, check_form, plain, positive
from ._matrices import Eigenbasis, positive_definite


def drift_matrix(method: Method, A: Any, damping: float | None = None) -> Tensor:
    r"""Return the matrix D of Z_k = (I - alpha_k D + o(alpha_k)) Z_{k-1} + noise.

    .. math::
        D = A \text{ (SGD)}, \quad
        \begin{pmatrix} 0 & -I \\ A & \mu I \end{pmatrix}
        \text{ (momentum, Nesterov)}, \quad
        \begin{pmatrix} 0 & -I \\ A & \mu I + A \end{pmatrix} \text{ (NaSGD)}

    Args:
        method: ``"sgd"``, ``"momentum"``, ``"nesterov"`` or ``"nasgd"``, as in
            `Iteration`.
        A: Hessian at the minimum, d x d.
        damping: mu, positive; None for SGD.

    Returns:
        Matrix of d rows for SGD, else 2d: x first, then v.

    Raises:
        TypeError: if damping is missing or superfluous.
        ValueError: if A is not symmetric positive definite.

    Example:
        >>> drift_matrix("nasgd", [[2.0]], 0.5).tolist()
        [[0.0, -1.0], [2.0, 2.5]]

    References:
        Li, Xiao and Yang, Theorems 4.1 and 4.2; erratum C7: the matrix of section 4.2
        belongs to (49), not to Nesterov's (5).
    """
    hessian = positive_definite("A", A)
    mu = check_damping(method, damping)
    if mu is None:
        return hessian
    eye = torch.eye(len(hessian), dtype=torch.float64)
    friction = mu * eye + (hessian if method == "nasgd" else 0)
    upper = torch.cat([torch.zeros_like(eye), -eye], 1)
    return torch.cat([upper, torch.cat([hessian, friction], 1)])


def drift_rate(method: Method, A: Any, damping: float | None = None) -> float:
    r"""Return lambda_D, the smallest real part of the eigenvalues of the drift matrix.

    .. math::
        \lambda_D = \min_\lambda \mathrm{Re}\,
        \tfrac12 \bigl(m - \sqrt{m^2 - 4\lambda}\bigr), \qquad
        m = \mu \text{ or, for NaSGD, } \mu + \lambda

    over the eigenvalues lambda of A; the smallest eigenvalue for SGD.

    Contract:
        A central limit theorem needs d0 < 2 lambda_D.

    Args:
        method: as in `drift_matrix`.
        A: Hessian at the minimum, d x d.
        damping: mu, positive; None for SGD.

    Returns:
        A positive number.

    Raises:
        TypeError: if damping is missing or superfluous.
        ValueError: if A is not symmetric positive definite.

    Example:
        >>> drift_rate("momentum", torch.diag(torch.tensor([1.0, 4.0])), damping=0.2)
        0.1

    References:
        Li, Xiao and Yang, Theorem 4.1.
    """
    mu = check_damping(method, damping)
    return rate_of(method, Eigenbasis.of(A).values, mu)


def rate_of(method: Method, eigenvalues: Tensor, mu: float | None) -> float:
    """Return lambda_D from the eigenvalues of A."""
    if mu is None:
        return eigenvalues.min().item()
    m = mu + (eigenvalues if method == "nasgd" else torch.zeros_like(eigenvalues))
    root = torch.sqrt((m * m - 4 * eigenvalues).clamp(min=0))
    # 2 lambda / (m + root) is (m - root) / 2 without cancellation.
    rates = torch.where(root > 0, 2 * eigenvalues / (m + root), m / 2)
    return rates.min().item()


def drift_rate_bound(
    method: Method, mu: Real, L: Real, damping: Real, *, form: Form = "corrected"
) -> Real:
    r"""Return h_D, from the constants of f alone: d0 < h_D implies d0 < 2 lambda_D.

    .. math::
        h_D &= \min\Bigl\{\frac{\zeta\mu}2, \frac{\tilde\mu}{1 + \mu\zeta^2}\Bigr\},
        \quad \zeta = \frac{\tilde\mu}{2L + \tilde\mu^2} \text{ (momentum, Nesterov)} \\
        h_D &= \min\Bigl\{\frac{\zeta\mu}4,
        \frac{\mu + \tilde\mu}{1 + \mu\zeta^2}\Bigr\}, \quad
        \zeta = \frac{\mu + \tilde\mu}{2 (L + 2L^2 + \tilde\mu^2)} \text{ (NaSGD)}

    Contract:
        h_D <= 2 lambda_D for every Hessian with eigenvalues in [mu, L]. The printed
        forms are reciprocals of rates (errata C4, C5) and do not have this property.

    Args:
        method: ``"momentum"``, ``"nesterov"`` or ``"nasgd"``.
        mu: strong convexity constant, positive.
        L: smoothness constant, at least mu.
        damping: mu-tilde, positive.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        h_D; a float, or a tensor of the broadcast shape.

    Raises:
        ValueError: if an argument is out of range or the method has no damping.

    Example:
        >>> drift_rate_bound("momentum", 1.0, 1.0, 1.0)
        0.16666666666666666
        >>> drift_rate_bound("momentum", 1.0, 1.0, 1.0, form="as_printed")  # false
        2.2222222222222223

    References:
        Li, Xiao and Yang, Remarks 4.1 and 4.3, corrected.
    """
    convex, smooth = positive("mu", mu), positive("L", L)
    friction = positive("damping", damping)
    if not bool((convex <= smooth).all()):
        raise ValueError(f"mu must not exceed L, got mu = {mu!r} and L = {L!r}")
    if method not in ("momentum", "nesterov", "nasgd"):
        raise ValueError(
            "method must be 'momentum', 'nesterov' or 'nasgd', which have damping, got "
            f"{method!r}"
        )
    paper = method == "nasgd"
    if check_form(form):
        total = friction + convex if paper else friction
        if paper:
            zeta = total / (2 * (smooth + 2 * smooth**2 + friction**2))
        else:
            zeta = total / (2 * smooth + friction**2)
        first = zeta * convex / (4 if paper else 2)
        bound = torch.minimum(first, total / (1 + convex * zeta**2))
    else:
        zeta = (convex + friction if paper else convex) / (2 * smooth + friction**2)
        first = 2 / zeta if paper else 2 / (zeta * convex)
        bound = torch.minimum(first, 2 * (1 + convex * zeta**2) / friction)
    value: Real = plain(bound, mu, L, damping)
    return value


def check_damping(method: Method, damping: float | None) -> float | None:
    """Return mu as a float, None for SGD.

    Raises:
        TypeError: if damping is missing or superfluous.
        ValueError: if it is not positive, or the method has no limit of its own.
    """
    if method == "heavy_ball":
        raise ValueError(
            "heavy_ball has no drift of its own: with constant beta and small steps it "
            "is 'sgd' with steps alpha/(1 - beta), with beta_k -> 1 'momentum'"
        )
    if method not in ("sgd", "momentum", "nesterov", "nasgd"):
        raise ValueError(
            f"method must be 'sgd', 'momentum', 'nesterov' or 'nasgd', got {method!r}"
        )
    if (damping is None) != (method == "sgd"):
        allowed = "no damping" if method == "sgd" else "a damping"
        raise TypeError(f"method {method!r} takes {allowed}, got damping={damping!r}")
    return None if damping is None else float(positive("damping", damping))
