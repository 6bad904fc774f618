"""Rounding error bounds of sums and inner products (Higham and co-authors).

|computed - exact| <= factor * sum |a_k b_k|, where ``factor`` grows like n u in the
worst case and like sqrt(n) u, with probability close to one, for errors of zero mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ._orders import roundings_per_term as roundings_per_term
from ._orders import whole
from ._unit_roundoff import (
    UnitRoundoff,
    as_unit_roundoff,
    is_unbiased,
    relative_error,
    smallest_error,
)

__all__ = [
    "DotErrorBound",
    "UnitRoundoff",
    "compound",
    "dot_error_bound",
    "failure_probability",
    "gamma",
    "gamma_probabilistic",
    "lambda_for",
    "roundings_per_term",
]

BoundKind: TypeAlias = Literal["gamma", "compound", "probabilistic"]


def gamma(n: int, u: UnitRoundoff, *, mode: str = "nearest_even") -> float:
    r"""Return the classical bound on the accumulation of n relative errors.

    .. math::
        \Bigl| \prod_{i=1}^n (1 + \delta_i)^{\pm1} - 1 \Bigr| \le
        \gamma_n = \frac{n u}{1 - n u}, \qquad |\delta_i| \le u,\ n u < 1 .

    Contract:
        Worst case; no assumption on the errors. In a direction other than nearest the
        bound on one error is 2u. `compound` needs no n u < 1.

    Args:
        n: number of roundings, 0 or more.
        u: a format, its name or dtype, or its unit roundoff 2^-p.
        mode: rounding-direction attribute.

    Returns:
        gamma_n, dimensionless.

    Raises:
        TypeError: if ``n`` is not an integer or ``u`` neither a number nor a format.
        ValueError: if n u >= 1, ``n`` < 0, ``u`` is not in (0, 1) or ``mode`` is
            unknown.

    Example:
        >>> gamma(128, 2.0**-8)
        1.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms (2002), Lemma 3.1.
    """
    total = whole("n", n, 0) * relative_error(u, mode)
    if total >= 1:
        raise ValueError(
            f"gamma_n needs n u < 1, got n u = {total:g} for n = {n}: use "
            "gamma_probabilistic(n, u), which grows like sqrt(n) u, or compound(n, u), "
            "the worst case for any n"
        )
    return total / (1 - total)


def compound(n: int, u: UnitRoundoff, *, mode: str = "nearest_even") -> float:
    r"""Return the worst-case accumulation of n relative errors without divisions.

    .. math::
        \Bigl| \prod_{i=1}^n (1 + \delta_i) - 1 \Bigr| \le (1 + u)^n - 1 \le \gamma_n ,
        \qquad |\delta_i| \le u .

    Contract:
        Attained if all delta_i = u. Holds for every n, also where n u >= 1 and
        gamma_n does not exist; sums and inner products contain no divisions.

    Args:
        n: number of roundings, 0 or more.
        u: a format, its name or dtype, or its unit roundoff 2^-p.
        mode: rounding-direction attribute.

    Returns:
        The bound, dimensionless; +inf if it exceeds the binary64 range.

    Raises:
        TypeError: if ``n`` is not an integer or ``u`` neither a number nor a format.
        ValueError: if ``n`` < 0, ``u`` is not in (0, 1) or ``mode`` is unknown.

    Example:
        >>> round(compound(128, 2.0**-8), 6)
        0.647116

    References:
        Higham, Accuracy and Stability of Numerical Algorithms (2002), Lemma 3.1.
    """
    exponent = whole("n", n, 0) * math.log1p(relative_error(u, mode))
    return _expm1(exponent)


def gamma_probabilistic(
    n: int, u: UnitRoundoff, lambda_: float = 1.0, *, mode: str = "nearest_even"
) -> float:
    r"""Return the probabilistic bound on the accumulation of n relative errors.

    .. math::
        \tilde\gamma_n(\lambda) =
        \exp\Bigl(\lambda \sqrt n\, u + \frac{n u^2}{1 - u}\Bigr) - 1

    bounds |prod (1 + delta_i)^{+-1} - 1| for |delta_i| <= u with probability at least
    1 - 2 exp(-lambda^2 (1 - u)^2/2).

    Contract:
        Assumes errors of mean zero given the earlier ones. Stochastic rounding
        satisfies this, with 2u for u, as far as its random bits resolve the discarded
        fraction; ``random_bits=r`` in variant A adds a bias of at most 2^-r of a
        quantum per rounding. For the deterministic modes it is a model, violated for
        example by constant or all-positive data when additions stagnate.

    Args:
        n: number of roundings, 0 or more.
        u: a format, its name or dtype, or its unit roundoff 2^-p.
        lambda_: deviation lambda, nonnegative; see `lambda_for`.
        mode: rounding-direction attribute; ``"stochastic"`` makes it a theorem.

    Returns:
        The bound, dimensionless; +inf if it exceeds the binary64 range.

    Raises:
        TypeError: if ``n`` is not an integer or ``u`` neither a number nor a format.
        ValueError: if ``n`` or ``lambda_`` is negative, the bound on one error is not
            in (0, 1), or ``mode`` is unknown.

    Example:
        >>> round(gamma_probabilistic(4096, 2.0**-11, 4.0), 6)
        0.134256

    References:
        Higham and Mary, SIAM J. Sci. Comput. 41 (2019), Theorem 2.4; Connolly, Higham
        and Mary, SIAM J. Sci. Comput. 43 (2021), under mean independence.
    """
    delta = _below_one(u, mode)
    if not lambda_ >= 0:
        raise ValueError(f"lambda_ must be nonnegative, got {lambda_!r}")
    count = whole("n", n, 0)
    return _expm1(lambda_ * math.sqrt(count) * delta + count * delta**2 / (1 - delta))


def failure_probability(
    lambda_: float, u: UnitRoundoff, *, terms: int = 1, mode: str = "nearest_even"
) -> float:
    r"""Return how often `gamma_probabilistic` may fail.

    .. math::
        \min\{1,\ 2 n \exp(-\lambda^2 (1 - u)^2/2)\}

    for all of n products of roundings at once, by the union bound; n = 1 for one
    product, n the number of terms for the forward error of an inner product.

    Contract:
        Hypotheses of `gamma_probabilistic`. An upper bound, usually far too large.

    Args:
        lambda_: deviation lambda, nonnegative.
        u: a format, its name or dtype, or its unit roundoff 2^-p.
        terms: n, 1 or more.
        mode: rounding-direction attribute.

    Returns:
        A probability.

    Raises:
        TypeError: if ``terms`` is not an integer or ``u`` neither a number nor a
            format.
        ValueError: if ``terms`` < 1, ``lambda_`` is negative, the bound on one error
            is not in (0, 1), or ``mode`` is unknown.

    Example:
        >>> failure_probability(6.0, 2.0**-11, terms=100) < 1e-5
        True

    References:
        Higham and Mary 2019, Theorems 2.4 and 3.1.
    """
    if not lambda_ >= 0:
        raise ValueError(f"lambda_ must be nonnegative, got {lambda_!r}")
    delta = _below_one(u, mode)
    exponent = -(lambda_**2) * (1 - delta) ** 2 / 2
    return min(1.0, 2 * whole("terms", terms, 1) * math.exp(exponent))


def lambda_for(
    probability: float, u: UnitRoundoff, *, terms: int = 1, mode: str = "nearest_even"
) -> float:
    r"""Return the deviation lambda for a wanted failure probability.

    .. math::
        \lambda = \frac{1}{1 - u} \sqrt{2 \ln(2 n / \text{probability})},

    the inverse of `failure_probability`; it grows only like sqrt(log n).

    Contract:
        Hypotheses of `gamma_probabilistic`.

    Args:
        probability: wanted failure probability, in (0, 1).
        u: a format, its name or dtype, or its unit roundoff 2^-p.
        terms: n, 1 or more.
        mode: rounding-direction attribute.

    Returns:
        lambda, dimensionless.

    Raises:
        TypeError: if ``terms`` is not an integer or ``u`` neither a number nor a
            format.
        ValueError: if ``probability`` is not in (0, 1), ``terms`` < 1, the bound on
            one error is not in (0, 1), or ``mode`` is unknown.

    Example:
        >>> round(lambda_for(1e-3, 2.0**-11, terms=4096), 4)
        5.6452

    References:
        Higham and Mary 2019, Theorem 3.1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie in (0, 1), got {probability!r}")
    delta = _below_one(u, mode)
    ratio = 2 * whole("terms", terms, 1) / probability
    return math.sqrt(2 * math.log(ratio)) / (1 - delta)


@dataclass(frozen=True, kw_only=True)
class DotErrorBound:
    """|computed - exact| <= factor * sum |a_k b_k| + underflow.

    Args:
        factor: relative to the sum of absolute products, dimensionless.
        underflow: absolute part, from roundings below the normal range; 0 if only u
            was known.
        roundings: most roundings that one term goes through.
        kind: ``"gamma"``, ``"compound"`` or ``"probabilistic"``.
        failure_probability: upper bound on how often it may fail; 0 if worst case.

    Example:
        >>> bound = DotErrorBound(factor=0.5, underflow=0.0, roundings=4, kind="gamma",
        ...                       failure_probability=0.0)
        >>> bound.error(3.0)
        1.5
    """

    factor: float
    underflow: float
    roundings: int
    kind: str
    failure_probability: float

    def error(self, absolute_sum: Any) -> Any:
        """Return the bound on the error of the computed inner product.

        Args:
            absolute_sum: sum |a_k b_k|, a number, array or tensor.

        Returns:
            factor * absolute_sum + underflow.

        Example:
            >>> dot_error_bound(4, 2.0**-4).error(3.0)
            1.0
        """
        return self.factor * absolute_sum + self.underflow

    def __str__(self) -> str:
        """Return the bound in one line."""
        text = f"|error| <= {self.factor:.6g} * sum |a_k b_k|"
        if self.underflow:
            text += f" + {self.underflow:.3g}"
        text += f" ({self.kind}, {self.roundings} roundings"
        if self.failure_probability:
            text += f", fails with probability <= {self.failure_probability:.3g}"
        return text + ")"


def dot_error_bound(
    n: int,
    u: UnitRoundoff,
    *,
    mode: str = "nearest_even",
    order: str = "sequential",
    block_size: int | None = None,
    product: str = "exact",
    product_u: UnitRoundoff | None = None,
    kind: BoundKind = "gamma",
    lambda_: float | None = None,
) -> DotErrorBound:
    r"""Return the forward error bound of an inner product of n terms.

    .. math::
        |\mathrm{fl}(a^T b) - a^T b| \le \theta_m \sum_k |a_k b_k| + \epsilon,

    with m = `roundings_per_term` and theta_m from `gamma`, `compound` or
    `gamma_probabilistic`.

    Contract:
        Operands are exact; overflow and saturation are excluded. epsilon covers
        underflow if ``u`` is a format (and ``product_u``, if given, too); if they are
        numbers, underflow is excluded as well. A relative bound does not exist:
        cancellation makes sum |a_k b_k| arbitrarily larger than the result. The
        probabilistic bound has factor near lambda sqrt(m) u; it is a theorem for
        ``mode="stochastic"`` and a model otherwise (see `gamma_probabilistic`).

    Args:
        n: number of terms, 0 or more.
        u: accumulator: a format, its name or dtype, or its unit roundoff 2^-p.
        mode: rounding-direction attribute of the accumulator and of the products.
        order: ``"sequential"``, ``"blocked"`` or ``"pairwise"``.
        block_size: terms per block, for ``"blocked"`` only.
        product: ``"exact"``, ``"accumulator"`` or ``"representable"``.
        product_u: format or unit roundoff to which products are rounded before they
            are added, if it is not the accumulator's; ``product`` then says whether
            the rounded products are ``"representable"`` in the accumulator.
        kind: ``"gamma"``, ``"compound"`` or ``"probabilistic"``.
        lambda_: deviation for ``kind="probabilistic"``; None for a failure
            probability of at most 1 %.

    Returns:
        The bound.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, a name is unknown, arguments do
            not fit together, or kind is ``"gamma"`` and m u >= 1.

    Example:
        >>> print(dot_error_bound(100, 2.0**-11))
        |error| <= 0.0513347 * sum |a_k b_k| (gamma, 100 roundings)
        >>> print(dot_error_bound(4096, 2.0**-11, mode="stochastic",
        ...                       kind="probabilistic", lambda_=6.0))
        ... # doctest: +ELLIPSIS
        |error| <= 0.460692 * sum |a_k b_k| (probabilistic, 4096 roundings, ...)

    References:
        Higham, Accuracy and Stability (2002), equations (3.3) to (3.5); Higham and
        Mary 2019, Theorem 3.1; Connolly, Higham and Mary 2021; Jeannerod and Rump,
        SIAM J. Matrix Anal. Appl. 34 (2013), replace gamma_n by n u to nearest.
    """
    if product_u is not None and product == "accumulator":
        raise ValueError(
            "product_u does not go with product='accumulator': products are rounded "
            "either to product_u or to the accumulator"
        )
    depth = roundings_per_term(n, order=order, block_size=block_size, product=product)
    factor, chance = _accumulated(depth, n, u, mode, kind, lambda_)
    # Roundings in the whole sum; each may lose half or all of one smallest value.
    additions = n if order == "sequential" else 2 * n
    lost = additions * smallest_error(u, mode)
    growth = 1 + compound(depth, u, mode=mode)
    if product_u is not None and n > 0:
        extra = relative_error(product_u, mode)
        factor = factor + extra + factor * extra
        depth += 1
        lost += n * smallest_error(product_u, mode)
    elif product == "accumulator":
        lost += n * smallest_error(u, mode)
    return DotErrorBound(
        factor=factor,
        underflow=lost * growth if lost else 0.0,
        roundings=depth,
        kind=kind,
        failure_probability=chance,
    )


def _accumulated(
    depth: int, n: int, u: UnitRoundoff, mode: str, kind: str, lambda_: float | None
) -> tuple[float, float]:
    if kind not in ("gamma", "compound", "probabilistic"):
        raise ValueError(
            f"kind must be 'gamma', 'compound' or 'probabilistic', got {kind!r}"
        )
    if kind != "probabilistic":
        if lambda_ is not None:
            raise ValueError(f"lambda_ needs kind='probabilistic', got kind={kind!r}")
        worst = gamma if kind == "gamma" else compound
        return worst(depth, u, mode=mode), 0.0
    if not is_unbiased(mode) and not mode.startswith("nearest"):
        raise ValueError(
            f"mode={mode!r} rounds with a bias, so that errors do not average out: use "
            "kind='compound', or mode='stochastic'"
        )
    terms = max(n, 1)
    deviation = (
        lambda_for(0.01, u, terms=terms, mode=mode) if lambda_ is None else lambda_
    )
    factor = gamma_probabilistic(depth, u, deviation, mode=mode)
    return factor, failure_probability(deviation, u, terms=terms, mode=mode)


def _below_one(u: UnitRoundoff, mode: str) -> float:
    delta = relative_error(as_unit_roundoff(u), mode)
    if delta >= 1:
        raise ValueError(
            f"one error may reach {delta:g} in mode {mode!r}: a probabilistic bound "
            "needs errors below 1, that is a precision of two bits or more"
        )
    return delta


def _expm1(exponent: float) -> float:
    try:
        return math.expm1(exponent)
    except OverflowError:
        return math.inf
