"""Additions of an emulated sum that change nothing: the accumulator swamps the term."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arithmetic import matmul
from ..rounding import Accumulator, Order, ScalarRounding

# Partial sums of this many terms are computed by one product, whose row r has the
# first r terms and zeros, which change nothing.
_CHUNK = 64
_SEED = 0  # the run's seeds are not known, and not drawn from


def count_swamped(
    left: Tensor,  # [S, K]
    right: Tensor,  # [S, K]
    accumulator: Accumulator,
) -> tuple[int, int] | None:
    """Count the additions of nonzero terms in sums of products, and the swamped ones.

    An addition acc <- fl(acc + t) with t not zero is swamped if it leaves acc as it
    was. The sums are those of the accumulator, addition by addition: its products,
    rounding, order and blocks. Block sums and their additions count like others; the
    pairwise sum of two nonzero numbers is swamped if it equals one of them.

    Contract:
        Stochastic roundings draw other random numbers than the run's, of the same
        distribution. Sums with terms that are not finite are left out.

    Args:
        left: left factors of S sums of K terms; zeros at the end change nothing.
        right: right factors, of the same dtype.
        accumulator: how the sums are rounded.

    Returns:
        Numbers of additions and of swamped ones; None for ``kahan``, which loses
        nothing where a term is swamped.
    """
    if accumulator.order is Order.KAHAN:
        return None
    finite = (left * right).isfinite().all(-1)
    left, right = (x[finite].to(torch.float64) for x in (left, right))
    if left.numel() == 0:
        return 0, 0
    rounding = accumulator.rounding
    if accumulator.order is Order.PAIRWISE:
        terms = _products(left, right, accumulator.product_rounding or rounding)
        return _pairwise(_sum(terms.unsqueeze(-1), rounding), rounding)
    if accumulator.product_rounding is not None:
        left = _products(left, right, accumulator.product_rounding)
        right = torch.ones_like(left)
    if accumulator.block_size is None:
        return _sequential(left, right, rounding)[1:]
    size = accumulator.block_size
    missing = -left.shape[-1] % size
    a, b = (
        torch.nn.functional.pad(x, (0, missing)).reshape(-1, size)
        for x in (left, right)
    )
    totals, inside, lost_inside = _sequential(a, b, accumulator.within or rounding)
    totals = totals.reshape(left.shape[0], -1)
    _, outside, lost_outside = _sequential(totals, torch.ones_like(totals), rounding)
    return inside + outside, lost_inside + lost_outside


def _sum(terms: Tensor, rounding: ScalarRounding) -> Tensor:
    """Return the sums of the last dimension; fl(x) for one term, fl(x + y) for two."""
    ones = torch.ones_like(terms)
    return matmul(
        terms.unsqueeze(-2), ones.unsqueeze(-1), accumulator=rounding, seed=_SEED
    )[..., 0, 0]


def _products(left: Tensor, right: Tensor, rounding: ScalarRounding) -> Tensor:
    return matmul(
        left[..., None, None],
        right[..., None, None],
        accumulator=rounding,
        seed=_SEED,
    )[..., 0, 0]


def _sequential(
    left: Tensor,  # [S, K]
    right: Tensor,
    rounding: ScalarRounding,
) -> tuple[Tensor, int, int]:
    """Return the sums, the additions of nonzero terms and the swamped ones."""
    acc = left.new_zeros(left.shape[0])
    additions = swamped = 0
    # Rows of one product draw different random numbers: no row continues another one.
    width = 1 if rounding.stochastic else _CHUNK
    for start in range(0, left.shape[-1], width):
        a, b = (x[:, start : start + width] for x in (left, right))
        size = a.shape[-1]
        growing = a.unsqueeze(1).expand(-1, size, -1).tril()
        begun = acc[:, None, None].expand(-1, size, 1)
        one = torch.ones_like(b[:, :1])
        after = matmul(
            torch.cat([begun, growing], -1),
            torch.cat([one, b], -1).unsqueeze(-1),
            accumulator=rounding,
            seed=_SEED + start,
        ).squeeze(-1)
        before = torch.cat([acc[:, None], after[:, :-1]], -1)
        counted = (a != 0) & (b != 0) & before.isfinite()
        additions += int(counted.sum())
        swamped += int((counted & (after == before)).sum())
        acc = after[:, -1]
    return acc, additions, swamped


def _pairwise(terms: Tensor, rounding: ScalarRounding) -> tuple[int, int]:
    additions = swamped = 0
    while terms.shape[-1] > 1:
        padded = torch.nn.functional.pad(terms, (0, terms.shape[-1] % 2))
        pairs = padded.unflatten(-1, (-1, 2))
        terms = _sum(pairs, rounding)
        counted = (pairs != 0).all(-1) & pairs.isfinite().all(-1)
        same = (pairs == terms.unsqueeze(-1)).any(-1)
        additions += int(counted.sum())
        swamped += int((counted & same).sum())
    return additions, swamped
