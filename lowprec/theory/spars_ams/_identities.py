"""Identities I1 to I3: residuals that are zero but for the rounding of the formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from .._inputs import nonnegative, positive


def transmission_residual(
    gradients: Tensor,
    sent: Tensor,
    error: Tensor,
    rounding_errors: Tensor | None = None,
) -> Tensor:
    r"""Return the residual of I1: what was not sent yet is in the errors.

    .. math::
        \sum_{s \le t} \bar{\tilde g}_s + \bar e_{t+1} - \sum_{s \le t} \bar\rho_s
        - \sum_{s \le t} \bar g_s, \qquad \text{bars are means over workers}

    Contract:
        Exact for every compressor, rounded values included, if the stored errors are
        exact (rho = 0); with rho what rounding added to them, always. The sums are
        those of torch in float64.

    Args:
        gradients: g, [t, n, d].
        sent: what the payloads stand for, [t, n, d].
        error: e_{t+1}, the errors after the last step, [n, d].
        rounding_errors: rho, what storing changed in the errors, [t, n, d]; None means
            zeros.

    Returns:
        float64 [d].

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> g = torch.ones(2, 1, 1)
        >>> transmission_residual(g, torch.tensor([0.0, 2.0]).view(2, 1, 1), g[0] * 0)
        tensor([0.], dtype=torch.float64)

    References:
        Identity I1; section 4.2 of the low-precision accumulator.
    """
    steps = [gradients, sent, *([] if rounding_errors is None else [rounding_errors])]
    if gradients.dim() != 3 or any(each.shape != gradients.shape for each in steps):
        raise ValueError(
            "gradients, sent and rounding_errors must be [steps, workers, d], got "
            f"{[tuple(each.shape) for each in steps]}"
        )
    if error.shape != gradients.shape[1:]:
        raise ValueError(
            f"error must be [workers, d] = {tuple(gradients.shape[1:])}, got "
            f"{tuple(error.shape)}"
        )
    total = (sent.double() - gradients.double()).sum(0) + error.double()
    if rounding_errors is not None:
        total = total - rounding_errors.double().sum(0)
    return total.mean(0)


def momentum_residual(
    gradients: Tensor, errors: Tensor, momenta: Tensor, beta1: float
) -> Tensor:
    r"""Return the residuals of I2: momentum is that of the gradients, but for errors.

    .. math::
        m_t - m'_t - \mu_t + \mu_{t+1}, \quad
        m'_t = \beta_1 m'_{t-1} + (1 - \beta_1) g_t, \quad
        \mu_{t+1} = \beta_1 \mu_t + (1 - \beta_1) \bar e_{t+1}, \quad \mu_1 = 0

    Args:
        gradients: mean over the workers of g_t, [t, d].
        errors: mean over the workers of e_{t+1}, after each step, [t, d].
        momenta: m_t, [t, d].
        beta1: beta_1.

    Returns:
        float64 [t, d].

    Raises:
        ValueError: if the shapes differ, or beta_1 is out of range.

    Example:
        >>> g = torch.ones(3, 1)
        >>> momentum_residual(g, 0 * g, torch.tensor([[0.5], [0.75], [0.875]]), 0.5)
        tensor([[0.],
                [0.],
                [0.]], dtype=torch.float64)

    References:
        Identity I2.
    """
    _check_trajectories(gradients=gradients, errors=errors, momenta=momenta)
    plain, shifts = _averages(gradients, beta1), _averages(errors, beta1)
    before = torch.cat([torch.zeros_like(shifts[:1]), shifts[:-1]])
    return momenta.double() - plain - before + shifts


def iterate_residual(
    iterates: Tensor,
    gradients: Tensor,
    errors: Tensor,
    largest: Tensor,
    *,
    eta: float,
    beta1: float,
    eps: float,
) -> Tensor:
    r"""Return the residuals of I3: the virtual iterate moves by the plain gradient.

    .. math::
        \begin{aligned}
        & y_t = \theta_t - \eta D_{t-1} \mu_t - \eta b D_{t-1} m'_{t-1}, \quad
          D_t = \mathrm{diag}(\hat v_t + \epsilon)^{-1/2}, \quad
          b = \beta_1 / (1 - \beta_1) \\
        & y_{t+1} - y_t + \eta D_{t-1} g_t
          - \eta (D_{t-1} - D_t)(g_t + b m'_{t-1} + \mu_t)
        \end{aligned}

    with :math:`\hat v_0 = 0`, where g_t is taken at theta_t and
    theta_{t+1} = theta_t - eta D_t m_t; mu and m' are those of `momentum_residual`.

    Args:
        iterates: theta_1 ... theta_{t+1}, [t + 1, d].
        gradients: mean over the workers of g_t, [t, d].
        errors: mean over the workers of e_{t+1}, after each step, [t, d].
        largest: v-hat after each step, [t, d].
        eta: step size, constant.
        beta1: beta_1.
        eps: epsilon, positive.

    Returns:
        float64 [t, d].

    Raises:
        ValueError: if the shapes do not fit, or an argument is out of range.

    Example:
        >>> theta = torch.tensor([[1.0], [0.5]])  # g = 1, v-hat + eps = 1, beta1 = 0
        >>> ones = torch.ones(1, 1)
        >>> constants = {"eta": 0.5, "beta1": 0.0, "eps": 0.25}
        >>> iterate_residual(theta, ones, 0 * ones, 0.75 * ones, **constants)
        tensor([[0.]], dtype=torch.float64)

    References:
        Identity I3.
    """
    positive("eta", eta), positive("eps", eps)
    _check_trajectories(gradients=gradients, errors=errors, largest=largest)
    if iterates.shape != (gradients.shape[0] + 1, gradients.shape[1]):
        raise ValueError(
            f"iterates must be [steps + 1, d] for gradients {tuple(gradients.shape)}, "
            f"got {tuple(iterates.shape)}"
        )
    zero = torch.zeros_like(gradients[:1], dtype=torch.float64)
    g, b = gradients.double(), beta1 / (1 - beta1)
    plain = torch.cat([zero, _averages(gradients, beta1)])  # m'_0 ... m'_t
    shifts = torch.cat([zero, _averages(errors, beta1)])  # mu_1 ... mu_{t+1}
    scales = (torch.cat([zero, largest.double()]) + eps).rsqrt()  # D_0 ... D_t
    virtual = iterates.double() - eta * scales * (shifts + b * plain)
    change = scales[:-1] - scales[1:]
    push = change * (g + b * plain[:-1] + shifts[:-1]) - scales[:-1] * g
    return virtual[1:] - virtual[:-1] - eta * push


def _averages(values: Tensor, beta: float) -> Tensor:
    """Return the exponential moving averages from 0, in float64."""
    if not 0 <= float(nonnegative("beta1", beta)) < 1:
        raise ValueError(f"beta1 must be from 0 to below 1, got {beta}")
    average = torch.zeros_like(values[0], dtype=torch.float64)
    averages = []
    for value in values.double():
        average = beta * average + (1 - beta) * value
        averages.append(average)
    return torch.stack(averages)


def _check_trajectories(**given: Tensor) -> None:
    shapes = {name: tuple(value.shape) for name, value in given.items()}
    if len(set(shapes.values())) > 1 or any(
        len(shape) != 2 or shape[0] == 0 for shape in shapes.values()
    ):
        raise ValueError(f"trajectories must be [steps, d], all alike, got {shapes}")
