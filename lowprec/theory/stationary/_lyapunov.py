"""The Lyapunov equation that limit covariances solve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._inputs import finite
from ._matrices import square, symmetric

_ITERATIONS = 100


def lyapunov(D: Any, S: Any, d0: float = 0.0) -> Tensor:
    r"""Return the solution W of the Lyapunov equation of a central limit theorem.

    .. math::
        (D - \tfrac{d_0}2 I) W + W (D - \tfrac{d_0}2 I)^T = S

    Contract:
        float64. Solved by the matrix sign function of [[D, S], [0, -D^T]], scaled by
        determinants, and refined once by its own residual; cost O(n^3).

    Args:
        D: drift matrix, n x n, the negative of a Hurwitz matrix.
        S: covariance of the noise, n x n, symmetric.
        d0: of the schedule, `PowerSchedule.d0`.

    Returns:
        W, n x n, symmetric.

    Raises:
        ValueError: if D - d0/2 I is not positive stable: there is no limit then.

    Example:
        >>> lyapunov([[2.0]], [[1.0]], d0=1.0).item()
        0.3333333333333333

    References:
        Li, Xiao and Yang, (47); Roberts 1980, Linear model reduction and solution of
        the algebraic Riccati equation by use of the sign function.
    """
    drift = square("D", D)
    shift = float(finite("d0", d0))
    drift = drift - shift / 2 * torch.eye(len(drift), dtype=drift.dtype)
    source = symmetric("S", S)
    if source.shape != drift.shape:
        raise ValueError(
            f"S must be as large as D, got {tuple(source.shape)} and "
            f"{tuple(drift.shape)}"
        )
    rate = torch.linalg.eigvals(drift).real.min().item() + shift / 2
    check_stable(rate, shift)
    solution = _solve(drift, source)
    left = source - drift @ solution - solution @ drift.T
    solution = solution + _solve(drift, (left + left.T) / 2)
    return (solution + solution.T) / 2


def check_stable(rate: float, d0: float, what: str = "lambda_D") -> None:
    """Refuse a schedule that decays faster than the iteration forgets.

    Raises:
        ValueError: saying which inequality fails.
    """
    if not 2 * rate > d0:
        cause = (
            f"the drift has the rate {what} = {rate:.6g}, which must be positive"
            if rate <= 0
            else f"d0 < 2 {what} fails: d0 = {d0:.6g}, {what} = {rate:.6g}; steps "
            "K/k need a larger K, slower steps k^-a with a < 1 have d0 = 0"
        )
        raise ValueError(
            f"D - d0/2 I is not positive stable, there is no limit covariance: {cause}"
        )


def _solve(drift: Tensor, source: Tensor) -> Tensor:
    n = len(drift)
    for _ in range(_ITERATIONS):
        inverse = torch.linalg.inv(drift)
        # |det|^(1/n) of the eigenvalues' geometric mean: they end at 1 anyway.
        scale = torch.exp(torch.linalg.slogdet(drift).logabsdet / n)
        new = (drift / scale + scale * inverse) / 2
        source = (source / scale + scale * inverse @ source @ inverse.T) / 2
        moved = (new - drift).norm() / new.norm()
        drift = new
        if moved < 1e-14 * n:
            break
    return source / 2
