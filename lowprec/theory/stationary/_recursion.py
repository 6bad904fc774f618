"""The exact second moments of linear iterations at any step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...schedules import Iteration
from .._inputs import count
from ._joint import JointCovariance, from_pairs
from ._matrices import Eigenbasis, covariance, vector


def linear_covariance(
    iteration: Iteration,
    A: Any,
    Sigma: Any,
    n: int | Sequence[int],
    x0: Any = 0.0,
) -> JointCovariance:
    r"""Return E Z_n Z_n^T of an iteration with linear gradients, exactly.

    .. math::
        V_k = M_k V_{k-1} M_k^T + N_k \Sigma N_k^T, \qquad
        F(x) = A (x - x^*) - \xi_k, \quad \mathrm{Cov}(\xi_k) = \Sigma

    Contract:
        Costs O(n d^2) in the eigenbasis of A, with some sqrt(n) vectorised steps: a
        million steps take seconds. Sigma need not commute with A. It is the second
        moment about x*: a start away from x* counts until it is forgotten.

    Args:
        iteration: method, step sizes and damping.
        A: Hessian, d x d, symmetric positive definite.
        Sigma: covariance of the noise, d x d.
        n: number of steps, or an increasing sequence of such numbers.
        x0: x_0 - x*, d elements or a number for all.

    Returns:
        V_n; for a sequence, with its length as the leading dimension.

    Raises:
        ValueError: if an argument is out of range, or the moments overflow.

    Example:
        >>> from lowprec.schedules import PowerSchedule
        >>> sgd = Iteration("sgd", PowerSchedule(1.0, 0.5))
        >>> V = linear_covariance(sgd, [[0.5]], [[1.0]], 100_000)
        >>> round(V.position.item() / sgd.step_size(100_000), 5)
        1.00238

    References:
        Li, Xiao and Yang, (22), (43), (49), (53) without remainders (C6).
    """
    basis = Eigenbasis.of(A)
    noise = basis.into(covariance("Sigma", Sigma, basis.size))
    start = basis.vectors.T @ vector("x0", x0, basis.size)
    count("n", n)
    steps = [int(x) for x in n] if isinstance(n, Sequence) else [int(n)]
    if not steps:
        raise ValueError("n must hold one or more numbers of steps, got none")
    if any(after <= before for before, after in itertools.pairwise(steps)):
        raise ValueError(f"n must increase, got {steps}")

    # Pairs i <= j of eigenvectors; each has a 2 x 2 matrix E (x_i, v_i)(x_j, v_j)^T.
    rows, columns = pairs = torch.triu_indices(basis.size, basis.size)
    # Unit noise is scaled by Sigma_ij at the end; the start has moments of its own.
    unit = torch.zeros(2, 2, len(rows), dtype=torch.float64)
    initial = unit.clone()
    initial[0, 0] = start[rows] * start[columns]
    found, done = [], 0
    for step in steps:
        while done < step:
            stop = min(step, done + _MOST)
            product = _advanced(iteration, basis.values, pairs, done, stop)
            unit = product.of(unit, pairs) + product.noise
            initial = product.of(initial, pairs)
            done = stop
        upper = noise[rows, columns] * unit + initial
        full = torch.empty(basis.size, basis.size, 2, 2, dtype=torch.float64)
        full[columns, rows] = upper.permute(2, 1, 0)
        full[rows, columns] = upper.permute(2, 0, 1)
        found.append(full)
    result = torch.stack(found)
    if not bool(result.isfinite().all()):
        raise ValueError(
            f"the second moments overflow within {steps[-1]} steps: the step sizes are "
            "too large; the iteration diverges"
        )
    if not iteration.has_velocity:
        result = result[..., :1, :1]
    return from_pairs(result if isinstance(n, Sequence) else result[0], basis)


# Steps whose coefficients are held in memory at a time.
_MOST = 1 << 20


class _Product(NamedTuple):
    """Many steps in one: V -> P_i V P_j^T + noise for a pair of eigenvectors i and j.

    The propagators P are [2, 2, d], the second moments that unit noise leaves
    [2, 2, pairs].
    """

    propagators: Tensor
    noise: Tensor

    def of(self, moments: Tensor, pairs: Tensor) -> Tensor:
        left, right = (self.propagators[..., index] for index in pairs)
        half = torch.einsum("abp,bcp->acp", left, moments)
        return torch.einsum("acp,dcp->adp", half, right)


def _advanced(
    iteration: Iteration, eigenvalues: Tensor, pairs: Tensor, done: int, stop: int
) -> _Product:
    """Return the product of the steps done + 1 ... stop.

    Blocks of consecutive steps advance side by side, one step of each at a time, and
    are then multiplied.
    """
    length = math.isqrt(stop - done - 1) + 1
    blocks = -(-(stop - done) // length)
    numbers = iteration.coefficients(torch.arange(done + 1, stop + 1))
    # Steps that fill the last block do nothing: v is kept, x does not advance.
    fills = (0.0, 1.0, 0.0, 0.0)
    missing = blocks * length - (stop - done)
    columns = [
        torch.nn.functional.pad(x, (0, missing), value=fill).view(blocks, length).T
        for x, fill in zip(map(torch.as_tensor, numbers), fills, strict=True)
    ]
    noise = torch.zeros(2, 2, blocks, pairs.shape[1], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)[..., None, None]
    propagators = eye.expand(2, 2, blocks, len(eigenvalues)).clone()
    for step in range(length):
        alpha, retained, advance, ahead = (column[step, :, None] for column in columns)
        pull = -alpha * eigenvalues
        keep = retained + ahead * pull
        _step(propagators[0], propagators[1], pull, keep, advance)
        left, right = pairs
        _step(noise[0], noise[1], pull[:, left], keep[:, left], advance)
        _step(noise[:, 0], noise[:, 1], pull[:, right], keep[:, right], advance)
        # The noise of this step enters v by alpha, and x by what v advances it.
        square = alpha * alpha
        noise[1, 1] += square
        noise[0, 1] += advance * square
        noise[1, 0] += advance * square
        noise[0, 0] += advance * advance * square
    total = _Product(propagators[:, :, 0], noise[:, :, 0])
    for block in range(1, blocks):
        after = _Product(propagators[:, :, block], noise[:, :, block])
        total = _Product(
            torch.einsum("abi,bci->aci", after.propagators, total.propagators),
            after.of(total.noise, pairs) + after.noise,
        )
    return total


def _step(x: Tensor, v: Tensor, pull: Tensor, keep: Tensor, advance: Tensor) -> None:
    """Apply v <- keep v + pull x, x <- x + advance v in place."""
    v.mul_(keep).addcmul_(pull, x)
    x.addcmul_(advance, v)
