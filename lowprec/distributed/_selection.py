"""Which entries a compressor keeps: exact ranks, ties to the lowest index."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..random import philox_words

# Longer rows are searched among the entries above a guess.
_LONG = 1 << 16
_SAMPLE = 1 << 14
_DEVIATIONS = 5  # of the rank in the sample, by which the guess is too low


def largest(magnitudes: Tensor, k: int) -> Tensor:
    """Return the indices of the k largest entries of each row, ascending.

    Contract:
        Exactly k entries; of equal ones those of lowest index, on every device.

    Args:
        magnitudes: [n, d], no NaN.
        k: from 1 to d.

    Returns:
        int64, [n, k].
    """
    rows, size = magnitudes.shape
    if size > _LONG:
        thresholds = torch.stack([_kth_largest(row, k) for row in magnitudes])
    else:
        thresholds = magnitudes.topk(k, sorted=False).values.amin(-1)
    threshold = thresholds.unsqueeze(-1)
    row, index = (magnitudes >= threshold).nonzero().unbind(-1)
    if index.numel() > rows * k:
        tie = magnitudes[row, index] == threshold[row, 0]
        ties = row[tie].bincount(minlength=rows)
        room = k - (row.bincount(minlength=rows) - ties)
        rank = tie.cumsum(0) - (ties.cumsum(0) - ties)[row]
        index = index[~tie | (rank <= room[row])]
    return index.reshape(rows, k)


def _kth_largest(row: Tensor, k: int) -> Tensor:
    """Return the k-th largest entry of a long row; a bad guess only costs time."""
    if k <= row.numel() // 4:
        stride = row.numel() // _SAMPLE
        sample = row[::stride]
        rank = k / stride
        rank = math.ceil(rank + _DEVIATIONS * (math.sqrt(rank) + 1))
        if rank < sample.numel():
            guess = sample.topk(rank, sorted=False).values.amin()
            candidates = row[row >= guess]
            if candidates.numel() >= k:
                row = candidates
    return row.topk(k, sorted=False).values.amin()


def random_subsets(size: int, count: int, seeds: Tensor) -> Tensor:
    r"""Return a uniformly random subset of [0, size) for each seed, ascending.

    Contract:
        The first ``count`` distinct numbers of the sequence
        :math:`\lfloor w_j \cdot \mathrm{size} / 2^{62} \rfloor`, where w_j are words 2j
        and 2j + 1 of the Philox stream of the seed, 31 bits of each; or, for more than
        half of all, those that are not in such a subset. A pure function of its
        arguments that takes time in proportion to ``count``.

    Args:
        size: d, below 2^31.
        count: from 0 to ``size``.
        seeds: int64, [n].

    Returns:
        int64, [n, count].
    """
    rows = seeds.numel()
    if count > size // 2:
        rest = torch.ones(rows, size, dtype=torch.bool)
        rest.scatter_(-1, random_subsets(size, size - count, seeds), False)
        return rest.nonzero()[:, 1].reshape(rows, count)
    drawn = torch.empty(rows, 0, dtype=torch.int64)
    while True:
        more = count + count // 2 + 16
        new = _draws(size, drawn.shape[-1], more, seeds.cpu())
        drawn = torch.cat([drawn, new], -1)
        ordered, position = drawn.sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        if int(first.sum(-1).min()) >= count:
            break
    # The distinct numbers in the order in which they were drawn.
    when = torch.where(first, position, drawn.shape[-1]).argsort()[:, :count]
    return ordered.gather(-1, when).sort().values


def _draws(size: int, start: int, count: int, seeds: Tensor) -> Tensor:
    index = torch.arange(2 * start, 2 * (start + count)).expand(seeds.numel(), -1)
    words = philox_words(index, seeds.unsqueeze(-1)) >> 1
    high, low = words[:, 0::2], words[:, 1::2]
    # floor((high 2^31 + low) size / 2^62) in 64 bits.
    return (high * size + (low * size >> 31)) >> 31
