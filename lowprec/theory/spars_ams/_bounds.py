"""Bounds B1 to B3: errors, what is sent, and the length of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from .._inputs import Real, count, nonnegative, plain, positive


def contraction(q: Real) -> Tensor:
    """Return q in binary64.

    Raises:
        ValueError: unless 0 <= q < 1.
    """
    factor = nonnegative("q", q)
    if not bool((factor < 1).all()):
        raise ValueError(
            f"q must be from 0 to below 1, got {q!r}: with q >= 1 errors are not "
            "bounded by the gradients"
        )
    return factor


def error_bound(q: Real, G: Real, steps: Real | None = None) -> Real:
    r"""Return B1: how large the error of error feedback can be.

    .. math::
        \|e_{t+1}\| \le \sum_{s=1}^{t} q^{t-s+1} \|g_s\|
        \le q G \frac{1 - q^t}{1 - q} \le \frac{q G}{1 - q}

    Args:
        q: contraction of the compressor on g + e, from 0 to below 1.
        G: bound on the Euclidean norm of each worker's gradient.
        steps: t, the number of steps; None means any.

    Returns:
        The bound; a float, or a float64 tensor of the broadcast shape.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> error_bound(0.5, 1.0), error_bound(0.5, 1.0, steps=1)
        (1.0, 0.5)

    References:
        Bound B1; equation (9) of the paper, whose last sum is one term too long.
    """
    factor = contraction(q)
    bound = factor * nonnegative("G", G) / (1 - factor)
    if steps is not None:
        bound = bound * (1 - factor ** count("steps", steps))
    return plain(bound, q, G, steps)  # type: ignore[no-any-return]


def sent_bound(
    q: Real, G: Real, *, selection: bool = True, error_feedback: bool = True
) -> Real:
    r"""Return B2: how large what a worker sends can be, and so m and the root of v.

    .. math::
        \|\tilde g_t\| \le \hat G := \frac{G}{1 - q} \text{ for selections, }
        \frac{(1 + q) G}{1 - q} \text{ else}; \qquad
        \|m_t\| \le \hat G, \quad \hat v_{t,j} \le \hat G^2

    Without error feedback the bounds are G and (1 + q) G.

    Args:
        q: contraction of the compressor, from 0 to below 1.
        G: bound on the Euclidean norm of each worker's gradient.
        selection: whether ||Q(p)|| <= ||p||, as for compressors that keep some entries.
        error_feedback: whether errors join the gradients.

    Returns:
        G-hat.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> sent_bound(0.5, 1.0), sent_bound(0.5, 1.0, error_feedback=False)
        (2.0, 1.0)

    References:
        Bound B2; the paper's (15) has sqrt(1 + q^2) G, which is false.
    """
    factor = contraction(q)
    bound = nonnegative("G", G) * (1 if selection else 1 + factor)
    if error_feedback:
        bound = bound / (1 - factor)
    return plain(bound + 0 * factor, q, G)  # type: ignore[no-any-return]


def largest_relative_step(beta1: Real, beta2: Real) -> Real:
    r"""Return c such that no entry moves by more than c eta in one step.

    .. math::
        \frac{|m_{t,j}|}{\sqrt{\hat v_{t,j}}} \le c
        = \frac{1 - \beta_1}{\sqrt{(1 - \beta_2)(1 - \beta_1^2 / \beta_2)}}

    Contract:
        Holds for all gradients, and is approached by histories that grow as
        :math:`(\beta_2/\beta_1)^t`.

    Args:
        beta1: beta_1, from 0.
        beta2: beta_2, above beta_1^2 and below 1.

    Returns:
        c.

    Raises:
        ValueError: unless beta_1^2 < beta_2 < 1.

    Example:
        >>> round(largest_relative_step(0.9, 0.999), 2)
        7.27

    References:
        Bound B3 for one entry, which corrects (56) to (58) of the paper.
    """
    first, second = nonnegative("beta1", beta1), positive("beta2", beta2)
    if not bool(((first**2 < second) & (second < 1)).all()):
        raise ValueError(
            f"the bound needs beta1^2 < beta2 < 1, got beta1={beta1!r} and "
            f"beta2={beta2!r}"
        )
    bound = (1 - first) / torch.sqrt((1 - second) * (1 - first**2 / second))
    return plain(bound, beta1, beta2)  # type: ignore[no-any-return]


def step_length_bound(eta: Real, d: Real, *, beta1: Real, beta2: Real) -> Real:
    r"""Return B3: a bound on the squared length of one step.

    .. math::
        \|\theta_t - \theta_{t-1}\|^2
        \le \frac{\eta^2 d (1 - \beta_1)^2}{(1 - \beta_2)(1 - \beta_1^2 / \beta_2)}

    Args:
        eta: step size.
        d: number of parameters.
        beta1: beta_1, from 0.
        beta2: beta_2, above beta_1^2 and below 1.

    Returns:
        The bound on the square.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> step_length_bound(0.1, 4, beta1=0.0, beta2=0.75)
        0.16000000000000003

    References:
        Bound B3.
    """
    relative = largest_relative_step(beta1, beta2)
    square = (nonnegative("eta", eta) * relative) ** 2 * count("d", d)
    return plain(square, eta, d, beta1, beta2)  # type: ignore[no-any-return]
