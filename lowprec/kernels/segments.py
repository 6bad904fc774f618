"""Sums of the terms that an index sends to the same place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .terms import term_sums

_LIBRARY = torch.library.Library("lowprec", "FRAGMENT")
_LIBRARY.define(
    "segment_sums(Tensor terms, Tensor index, SymInt size, int[] accumulate, "
    "int[] within, int order, int block_size, Tensor? seed) -> Tensor"
)


def _runs(rows: Tensor, lengths: Tensor, adjacent: bool) -> list[int]:
    """Return where runs of segments of one length start, and where the last ends."""
    new = lengths[1:] != lengths[:-1]
    if adjacent:
        new = new | (rows[1:] != rows[:-1] + 1)
    starts: list[int] = (new.nonzero().flatten() + 1).tolist()
    return [0, *starts, rows.numel()]


def _segment_sums(
    terms: Tensor,
    index: Tensor,
    size: int,
    accumulate: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: Tensor | None,
) -> Tensor:
    def sums(columns: Tensor, offset: int) -> Tensor:  # [terms, segments, *]
        settings = (accumulate, within, order, block_size, seed, offset)
        return term_sums(columns.flatten(1), *settings).reshape(columns.shape[1:])

    result = terms.new_zeros(size, *terms.shape[1:])
    kept = index >= 0
    if not bool(kept.all()):
        index, terms = index[kept], terms[kept]
    if index.numel() == 0:
        return result
    counts = torch.bincount(index, minlength=size)
    if int(counts.max()) == 1:  # a permutation, which needs no sorting
        return sums(result.index_copy(0, index, terms).unsqueeze(0), 0)
    terms = terms[index.argsort(stable=True)]
    starts = counts.cumsum(0) - counts
    rows = counts.nonzero().flatten()
    if seed is None:
        # Any order of the segments will do. A stochastic kernel numbers its results
        # without gaps, so that there only adjacent segments can share a call.
        rows = rows[counts[rows].argsort(stable=True)]
    lengths = counts[rows]
    bounds = _runs(rows, lengths, adjacent=seed is not None)
    for first, last in itertools.pairwise(bounds):
        here = rows[first:last]
        steps = torch.arange(int(lengths[first]), device=terms.device)
        columns = terms[starts[here] + steps.unsqueeze(1)]
        result[here] = sums(columns, int(here[0]) * math.prod(terms.shape[1:]))
    return result


def _segment_sums_fake(terms: Tensor, index: Tensor, size: int, *_: Any) -> Tensor:
    return terms.new_empty((size, *terms.shape[1:]))


_LIBRARY.impl("segment_sums", _segment_sums, "CompositeExplicitAutograd")
_LIBRARY.impl("segment_sums", _segment_sums_fake, "Meta")


@torch.library.register_vmap("lowprec::segment_sums", lib=_LIBRARY)
def _segment_sums_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    terms: Tensor,
    index: Tensor,
    size: int,
    accumulate: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: Tensor | None,
) -> tuple[Tensor, int]:
    def rows(value: Any, dim: int | None) -> list[Any]:
        return [value] * info.batch_size if dim is None else list(value.unbind(dim))

    results = [
        segment_sums(x, i, size, accumulate, within, order, block_size, one)
        for x, i, one in zip(
            rows(terms, in_dims[0]),
            rows(index, in_dims[1]),
            rows(seed, in_dims[7]),
            strict=True,
        )
    ]
    return torch.stack(results), 0


def segment_sums(
    terms: Tensor,
    index: Tensor,
    size: int,
    accumulate: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: Tensor | None,
) -> Tensor:
    """Return s with s[j] = the sum of terms[i] over i with index[i] = j, i ascending.

    Args:
        terms: what to add, float64 [N, *], as `terms.summable` returns it.
        index: where to, int64 [N]; terms with a negative index are dropped.
        size: number of sums; one without terms is +0.
        accumulate: code of the accumulator's rounding.
        within: code of the rounding inside blocks, empty for ``accumulate``.
        order: SEQUENTIAL, BLOCKED, PAIRWISE or KAHAN.
        block_size: terms per block, BLOCKED only.
        seed: 0-d int64, of stochastic roundings only; a sum has the words of its
            element of the output.

    Returns:
        float64 tensor [size, *].
    """
    arguments = (terms, index, size, accumulate, within, order, block_size, seed)
    result: Tensor = torch.ops.lowprec.segment_sums.default(*arguments)
    return result
