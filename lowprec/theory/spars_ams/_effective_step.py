"""What error feedback does to the step size: sparse releases, larger second moments."""

from __future__ import annotations

from torch import Tensor

from .._inputs import Real, count, nonnegative, plain, positive


def largest_second_moment(tau: Real, g: Real = 1.0, *, beta2: Real) -> Real:
    r"""Return the largest second moment of an entry that is sent every tau steps.

    .. math::
        \hat v_{\max} = \tau^2 g^2 \frac{1 - \beta_2}{1 - \beta_2^\tau}
        \approx \tau g^2 \text{ for } \tau (1 - \beta_2) \ll 1

    Contract:
        For a constant gradient g, all of which is sent at once: tau g every tau steps.

    Args:
        tau: d/k, the steps from one release to the next.
        g: the gradient.
        beta2: beta_2, positive and below 1.

    Returns:
        The supremum over all steps.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> largest_second_moment(2, 3.0, beta2=0.5)
        24.0

    References:
        Section 2.4, error feedback changes the effective step.
    """
    releases, factor = count("tau", tau), _factor(beta2)
    square = nonnegative("g", abs(g)) ** 2
    moment = (releases**2 * square) * ((1 - factor) / (1 - factor**releases))
    return plain(moment, tau, g, beta2)  # type: ignore[no-any-return]


def effective_step_ratio(tau: Real, *, beta2: Real) -> Real:
    r"""Return the speed under error feedback, relative to that of full gradients.

    .. math::
        \rho(\tau) = \Bigl[\tau^2 \frac{1-\beta_2}{1-\beta_2^\tau}\Bigr]^{-1/2}
        \approx \tau^{-1/2}

    Contract:
        Exact in the limit of many steps for a constant gradient with equal entries:
        the mean of m stays, the second moment grows. A fair comparison tunes the step
        size of each method.

    Args:
        tau: d/k.
        beta2: beta_2, positive and below 1.

    Returns:
        rho.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> [round(effective_step_ratio(tau, beta2=0.999), 4) for tau in (4, 16, 64)]
        [0.4996, 0.2491, 0.1231]

    References:
        Section 2.4.
    """
    moment = positive("moment", largest_second_moment(tau, beta2=beta2))
    return plain(moment.rsqrt(), tau, beta2)  # type: ignore[no-any-return]


def _factor(beta2: Real) -> Tensor:
    factor = positive("beta2", beta2)
    if not bool((factor < 1).all()):
        raise ValueError(f"beta2 must be positive and below 1, got {beta2!r}")
    return factor
