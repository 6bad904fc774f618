"""Sums of rows that belong together, in the order in which they stand."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from torch import Tensor

from .. import _values
from ..random import split_seed
from ..rounding import Accumulator, as_accumulator
from ._wide import row_sums

# An operation, as its shapes depend on values, which torch.compile cannot trace.
_LIBRARY = torch.library.Library("lowprec", "FRAGMENT")
_LIBRARY.define(
    "segment_sums(Tensor terms, Tensor owners, int count, str accumulator, "
    "Tensor? seed) -> Tensor"
)


def segment_sums(
    terms: Tensor,  # [P, D], float64
    owners: Tensor,  # [P], int64
    count: int,
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Return, for each owner, the sum of its rows, first to last.

    Args:
        terms: rows to add.
        owners: the number of the sum that each row belongs to.
        count: how many sums there are.
        accumulator: of the additions; None adds in float64.
        seed: of a stochastic accumulator. Owners of n rows take part n of it, and count
            their elements in row-major order.

    Returns:
        float64 tensor [count, D]; owners without rows have zeros.
    """
    if accumulator is None:
        return terms.new_zeros(count, terms.shape[1]).index_add(0, owners, terms)
    text = json.dumps(_values.to_json(accumulator))
    key = seed if accumulator.stochastic else None
    result: Tensor = torch.ops.lowprec.segment_sums.default(
        terms, owners, count, text, key
    )
    return result


@functools.lru_cache(maxsize=256)
def _accumulator(text: str) -> Accumulator:
    return as_accumulator(_values.parse("accumulator", json.loads(text)))


def _segment_sums(
    terms: Tensor, owners: Tensor, count: int, accumulator: str, seed: Tensor | None
) -> Tensor:
    # Segments of equal length are summed together, so nothing is padded, and the
    # memory is that of the terms.
    adder = _accumulator(accumulator)
    order = owners.argsort(stable=True)
    lengths = torch.bincount(owners, minlength=count)
    ends = lengths.cumsum(0)
    result = terms.new_zeros(count, terms.shape[1])
    for length in lengths.unique().tolist():
        if length == 0:
            continue
        chosen = (lengths == length).nonzero().squeeze(1)
        first = (ends[chosen] - length).unsqueeze(1)
        rows = order[first + torch.arange(length, device=order.device)]
        grouped = terms[rows].transpose(1, 2).reshape(-1, length)  # [chosen D, length]
        key = None if seed is None else split_seed(seed, length + 1)[length]
        total = row_sums(grouped, adder, key)
        result[chosen] = total.reshape(-1, terms.shape[1])
    return result


def _fake(
    terms: Tensor, owners: Tensor, count: int, accumulator: str, seed: Tensor | None
) -> Tensor:
    return terms.new_empty((count, terms.shape[1]))


_LIBRARY.impl("segment_sums", _segment_sums, "CompositeExplicitAutograd")
# For fake tensors too; register_fake would read source files at import.
_LIBRARY.impl("segment_sums", _fake, "Meta")


@torch.library.register_vmap("lowprec::segment_sums", lib=_LIBRARY)
def _vmapped(
    info: Any,
    in_dims: tuple[Any, ...],
    terms: Tensor,
    owners: Tensor,
    count: int,
    accumulator: str,
    seed: Tensor | None,
) -> tuple[Tensor, int]:
    def part(x: Any, dim: int | None, i: int) -> Any:
        return x if dim is None else x.select(dim, i)

    rows = [
        _segment_sums(
            part(terms, in_dims[0], i),
            part(owners, in_dims[1], i),
            count,
            accumulator,
            part(seed, in_dims[4], i),
        )
        for i in range(info.batch_size)
    ]
    return torch.stack(rows), 0
