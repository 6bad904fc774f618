"""Sums of float64 terms under an accumulator: rows, dimensions, segments, prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..arithmetic import row_sums, sum_settings
from ..kernels import segment_sums as sum_segments
from ..kernels import summable
from ..rounding import Accumulator
from ._parts import plain


def segment_sums(
    terms: Tensor,  # [N, *], float64
    index: Tensor,  # [N], int64
    size: int,
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Return s [size, *], s[j] the sum of terms[i] with index[i] = j, i ascending.

    Terms with a negative index are dropped; a sum without terms is +0.
    """
    if accumulator is None:
        known = (index >= 0).reshape(-1, *[1] * (terms.dim() - 1))
        kept = torch.where(known, terms, 0.0)
        zeros = terms.new_zeros(size, *terms.shape[1:])
        return zeros.index_add(0, index.clamp(min=0), kept)
    adder = plain(accumulator)
    settings = sum_settings(adder)
    key = seed if adder.stochastic else None
    terms = summable(terms, *settings[:2])
    return sum_segments(terms, index, size, *settings, key)


def running_sums(
    terms: Tensor,  # [M, K], float64
    accumulator: Accumulator | None,
    seed: Tensor | None,
    reverse: bool = False,
) -> Tensor:
    """Return the sums of all beginnings of every row, or of all endings.

    A stochastic sum of k terms has the words of the sum of all.
    """
    count = terms.shape[1]
    if accumulator is None:
        return terms.flip(1).cumsum(1).flip(1) if reverse else terms.cumsum(1)
    parts = [terms[:, k:] if reverse else terms[:, : k + 1] for k in range(count)]
    sums = [row_sums(part, accumulator, seed) for part in parts]
    return torch.stack(sums, 1) if sums else terms


def copied_dims(shape: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the dimensions of ``wanted`` along which broadcasting copies."""
    new = len(wanted) - len(shape)
    padded = (*(1,) * new, *shape)
    return tuple(
        dim for dim, size in enumerate(wanted) if padded[dim] != size or dim < new
    )
