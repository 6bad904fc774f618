"""softmax along a dimension, each element the exact quotient rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import elementary, transcendental
from .basic import round_scaled, rounder
from .codes import decode, numbers_of
from .elementary import Enclosure, resolved, undecided
from .levels import check_decidable
from .transcendental import Scaled

_LIBRARY = torch.library.Library("lowprec", "FRAGMENT")
_LIBRARY.define(
    "softmax(Tensor x, int dim, int[] code, Tensor? seed, SymInt offset) -> Tensor"
)


def _softmax(
    x: Tensor, dim: int, code: Sequence[int], seed: Tensor | None, offset: int
) -> Tensor:
    check_decidable(code)
    named, round = decode(code), rounder(seed, offset, numbers_of(code))
    x = x.to(torch.float64)
    if x.numel() == 0:
        return x.clone()
    ends = elementary.softmax(x, dim)
    rounded = Enclosure(*(round(end, named) for end in ends))
    hard = undecided(ends, rounded, named)
    if not bool(hard.any()):
        return rounded.low.contiguous()
    rows = x.movedim(dim, -1)
    flat = rows.reshape(-1, rows.shape[-1])

    def exact(places: Tensor) -> list[Scaled]:
        values = []
        for number in (places // flat.shape[1]).unique().tolist():
            columns = places[places // flat.shape[1] == number] % flat.shape[1]
            row = flat[number].tolist()
            values += transcendental.softmax(row, columns.tolist())
        return values

    odd = resolved(ends.low.movedim(dim, -1), hard.movedim(dim, -1), exact)
    significand, exponent = (part.movedim(-1, dim) for part in odd)
    exactly = round_scaled(significand, exponent, named, round)
    result = torch.where(hard, exactly, rounded.low)
    return result.contiguous()


def _softmax_fake(
    x: Tensor, dim: int, code: Sequence[int], seed: Tensor | None, offset: int
) -> Tensor:
    return torch.empty(x.shape, dtype=torch.float64, device=x.device)


_LIBRARY.impl("softmax", _softmax, "CompositeExplicitAutograd")
_LIBRARY.impl("softmax", _softmax_fake, "Meta")


@torch.library.register_vmap("lowprec::softmax", lib=_LIBRARY)
def _softmax_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    dim: int,
    code: Sequence[int],
    seed: Tensor | None,
    offset: int,
) -> tuple[Tensor, int]:
    # Elements are counted inside one example, as a loop over the examples would.
    def rows(value: Any, axis: int | None) -> list[Any]:
        return [value] * info.batch_size if axis is None else list(value.unbind(axis))

    results = [
        softmax(one, dim, code, key, offset)
        for one, key in zip(rows(x, in_dims[0]), rows(seed, in_dims[3]), strict=True)
    ]
    return torch.stack(results), 0


def softmax(
    x: Tensor, dim: int, code: Sequence[int], seed: Tensor | None, offset: int
) -> Tensor:
    """Return fl(exp(x_i) / sum_j exp(x_j)), j along a dimension.

    Args:
        x: float32 or float64 tensor of at least one dimension.
        dim: which one.
        code: integers of a rounding, as of `lowprec.kernels.basic.basic`.
        seed: 0-d int64, of stochastic modes only.
        offset: linear index of the first element.

    Returns:
        float64 tensor of that shape.
    """
    result: Tensor = torch.ops.lowprec.softmax.default(x, dim, code, seed, offset)
    return result
