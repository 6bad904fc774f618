"""Section 3.2: bounds on r_k and s_k from the format, corrected."""

from __future__ import annotations

import math

import torch

from .._inputs import Form, Real, check_form, nonnegative, plain
from .._unit_roundoff import (
    UnitRoundoff,
    as_unit_roundoff,
    is_nearest,
    relative_error,
)


def relative_error_bound(
    u: UnitRoundoff, *, mode: str = "nearest_even", form: Form = "corrected"
) -> float:
    r"""Return the bound on the relative error delta_0 of one rounding.

    .. math::
        \mathrm{fl}(x) = x (1 + \delta_0), \qquad |\delta_0| \le
        \begin{cases} u / (1 + u) & \text{to nearest,} \\
        2u & \text{in any other direction,} \end{cases} \qquad u = 2^{-p}.

    Contract:
        Holds for |x| from the smallest normal number to the largest finite one; the
        paper claims it from the smallest subnormal (erratum E6). The paper prints
        |delta_0| <= 2^(1-p) without naming the rounding mode: to nearest that is
        2 (1 + u) times too large (E7).

    Args:
        u: a format, its name or dtype, or its unit roundoff 2^-p.
        mode: rounding-direction attribute.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The bound, attained to nearest; strict in every other direction.

    Raises:
        TypeError: if ``u`` is neither a number nor a format.
        ValueError: if ``u`` is not in (0, 1), or ``mode`` or ``form`` is unknown.

    Example:
        >>> relative_error_bound(2.0**-4) == 1 / 17
        True
        >>> relative_error_bound(2.0**-4, mode="toward_zero")
        0.125

    References:
        Cacciola et al., equation (2), corrected (E6, E7); Jeannerod and Rump,
        Math. Comp. 87 (2018), for the bound u/(1 + u).
    """
    corrected = check_form(form)
    value = as_unit_roundoff(u)
    if corrected and is_nearest(mode):
        return value / (1 + value)
    is_nearest(mode)
    return 2 * value


def gradient_error_bound(
    gradient_norm: Real, u: UnitRoundoff, *, c: Real = 1.0, form: Form = "corrected"
) -> Real:
    r"""Return the bound on ||r|| for a gradient with small relative error.

    .. math::
        \tilde g = g \circ (1 + \delta_1),\ \|\delta_1\|_\infty \le c\,u
        \quad\Longrightarrow\quad \|\tilde g - g\| \le c\,u\,\|g\| .

    Contract:
        The paper prints R^2 <= c delta_0 ||g|| (erratum E3); ``form="as_printed"``
        returns the square root of that. No finite c independent of the data exists
        where the gradient's sums cancel (E4): the bound to use there is absolute,
        `lowprec.theory.summation.dot_error_bound`.

    Args:
        gradient_norm: ||g||.
        u: a format, its name or dtype, or the bound on one relative error.
        c: number of relative errors u in each component.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The bound; a float, or a float64 tensor of the broadcast shape.

    Raises:
        TypeError: if ``u`` is neither a number nor a format.
        ValueError: if a norm or c is negative or NaN, or ``u`` is not in (0, 1).

    Example:
        >>> gradient_error_bound(2.0, 2.0**-8, c=3.0)
        0.0234375

    References:
        Cacciola et al., section 3.2, corrected (E3, E4).
    """
    corrected = check_form(form)
    size = nonnegative("gradient_norm", gradient_norm)
    product = nonnegative("c", c) * as_unit_roundoff(u) * size
    value: Real = plain(product if corrected else torch.sqrt(product), gradient_norm, c)
    return value


def update_error_bound(
    updated_norm: Real,
    u: UnitRoundoff,
    *,
    mode: str = "nearest_even",
    step_norm: Real | None = None,
    form: Form = "corrected",
) -> Real:
    r"""Return the bound on ||s||, the rounding error of the weight update.

    .. math::
        \|s\| \le \delta \|w'\|, \quad w' = w_k - \eta \tilde g \quad
        \text{(one rounding)}; \qquad
        \|s\| \le v \|w'\| + (1 + v)\, v\, \|\eta \tilde g\| \quad
        \text{(eta g rounded first)},

    with delta = u/(1 + u) to nearest and 2u otherwise, and v = u or 2u.

    Contract:
        Barring underflow and overflow. The paper prints S^2 <= delta_0 ||w_k||
        (erratum E3): the wrong power of the wrong vector, since w_k = 0 leaves an
        error; ``form="as_printed"`` returns sqrt(2u ||w_k||) for
        ``updated_norm`` = ||w_k||, and does not use ``mode`` or ``step_norm``.

    Args:
        updated_norm: ||w'|| before rounding; see `stored_update_error_bound` for a
            bound in terms of w_{k+1}.
        u: a format, its name or dtype, or its unit roundoff 2^-p.
        mode: rounding-direction attribute of the update.
        step_norm: ||eta g~|| if that product is rounded before the subtraction; None
            for a single rounding of w_k - eta g~.
        form: ``"corrected"`` or ``"as_printed"``.

    Returns:
        The bound; a float, or a float64 tensor of the broadcast shape.

    Raises:
        TypeError: if ``u`` is neither a number nor a format.
        ValueError: if a norm is negative or NaN, ``u`` is not in (0, 1), or ``mode``
            or ``form`` is unknown.

    Example:
        >>> round(update_error_bound(4000.0 - 8.0, 2.0**-8), 6)
        15.533074
        >>> round(update_error_bound(4000.0, 2.0**-8, form="as_printed"), 6)
        5.59017

        The first bounds what happens, s = 8 in bfloat16; the printed one does not.

    References:
        Cacciola et al., section 3.2, corrected (E3).
    """
    size = nonnegative("updated_norm", updated_norm)
    if not check_form(form):
        printed = torch.sqrt(2 * as_unit_roundoff(u) * size)
        result: Real = plain(printed, updated_norm)
        return result
    if step_norm is None:
        bound = relative_error_bound(u, mode=mode) * size
    else:
        delta = relative_error(u, mode)
        product = nonnegative("step_norm", step_norm)
        bound = delta * size + (1 + delta) * delta * product
    value: Real = plain(bound, updated_norm, step_norm)
    return value


def stored_update_error_bound(
    stored_norm: Real, u: UnitRoundoff, *, mode: str = "nearest_even"
) -> Real:
    r"""Return the bound on ||s|| in terms of the stored weights w_{k+1}.

    .. math::
        \|s\| \le u \|w_{k+1}\| \text{ to nearest}, \qquad
        \|s\| \le 2u \|w_{k+1}\| \text{ otherwise,}

    because both neighbours of w' lie in its closed binade.

    Contract:
        One rounding, barring underflow and overflow.

    Args:
        stored_norm: ||w_{k+1}||.
        u: a format, its name or dtype, or its unit roundoff 2^-p.
        mode: rounding-direction attribute of the update.

    Returns:
        The bound; a float, or a float64 tensor of the broadcast shape.

    Raises:
        TypeError: if ``u`` is neither a number nor a format.
        ValueError: if the norm is negative or NaN, ``u`` is not in (0, 1), or
            ``mode`` is unknown.

    Example:
        >>> stored_update_error_bound(4000.0, 2.0**-8)
        15.625

    References:
        Cacciola et al., section 3.2, corrected (E3).
    """
    size = nonnegative("stored_norm", stored_norm)
    value: Real = plain(relative_error(u, mode) * size, stored_norm)
    return value


def direction_error_bound(
    relative_error: Real, *, normalisation_error: Real = 0.0
) -> Real:
    r"""Return the bound on ||r|| of a normalised direction.

    .. math::
        \varepsilon = \frac{\|\tilde g - g\|}{\|g\|} < 1 \quad\Longrightarrow\quad
        \Bigl\| \frac{\tilde g}{\|\tilde g\|} - \frac{g}{\|g\|} \Bigr\| \le
        2 \sin\frac{\arcsin\varepsilon}{2} \le \sqrt2\,\varepsilon .

    Contract:
        Sharp for epsilon < 1; the result is below 1 if and only if
        epsilon < sqrt(3)/2 (without normalisation error). For epsilon >= 1 nothing
        relates the directions, and 2, the distance of opposite ones, is returned.

    Args:
        relative_error: epsilon, the relative error of the gradient before
            normalisation.
        normalisation_error: bound nu on the componentwise relative error of the
            rounded normalisation; it is added.

    Returns:
        The bound; a float, or a float64 tensor of the broadcast shape.

    Raises:
        ValueError: if an argument is negative or NaN.

    Example:
        >>> round(direction_error_bound(0.6), 12)  # 2 sin(arcsin(0.6)/2) = sqrt(0.4)
        0.632455532034

    References:
        Not in the paper, whose section 3.2 bounds the error before normalisation.
    """
    epsilon = nonnegative("relative_error", relative_error)
    rounding = nonnegative("normalisation_error", normalisation_error)
    inside = epsilon < 1
    # 2 sin(a/2) = sqrt(2 (1 - cos a)) = sqrt(2) eps/sqrt(1 + sqrt(1 - eps^2)), which
    # does not cancel for small eps.
    small = torch.where(inside, epsilon, torch.zeros_like(epsilon))
    chord = math.sqrt(2) * small / torch.sqrt(1 + torch.sqrt(1 - small**2))
    bound = torch.where(inside, chord, torch.full_like(chord, 2.0)) + rounding
    value: Real = plain(bound, relative_error, normalisation_error)
    return value
