"""Sums of float64 terms under an accumulator: rows, dimensions, segments, prefixes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..arithmetic import kernel_order
from ..kernels.segments import segment_sums as sum_segments
from ..rounding import Accumulator, Rounding
from ._parts import plain, product

# To a format whose values lie well inside the range of the kernels' exact products, a
# term outside of it is only huge or only a sign.
_SMALLEST_QUANTUM, _LARGEST_EXPONENT = -900, 900


def _is_ordinary(rounding: Rounding | None) -> bool:
    """Whether the format's values lie well inside the range of exact products."""
    if rounding is None:
        return True
    precision, emin, emax = rounding.code[:3]
    return emin - precision >= _SMALLEST_QUANTUM and emax <= _LARGEST_EXPONENT


def _summable(terms: Tensor, accumulator: Accumulator) -> Tensor:
    """Return terms with the same sums, all in the range of the kernels."""
    if not (_is_ordinary(accumulator.rounding) and _is_ordinary(accumulator.within)):
        return terms
    # Literals: Dynamo takes global floats for variables where shapes are dynamic.
    size = terms.abs().clamp(2.0**-960, 2.0**989)
    ordinary = terms.isfinite() & (terms != 0)
    return torch.where(ordinary, size.copysign(terms), terms)


def row_sums(
    terms: Tensor,  # [M, K], float64
    accumulator: Accumulator | None,
    seed: Tensor | None = None,
) -> Tensor:
    """Return the sum of every row, its terms in order.

    Args:
        terms: what to add.
        accumulator: of the additions; None adds in float64.
        seed: of a stochastic accumulator.

    Returns:
        float64 tensor [M].

    Raises:
        ValueError: from the kernels, for terms beyond [2^-960, 2^990] under
            accumulators whose values reach there.
        NotImplementedError: for accumulators of more than 51 significant bits.
    """
    if accumulator is None:
        return terms.sum(1)
    adder = plain(accumulator)
    ones = terms.new_ones(1, terms.shape[1])
    return product(ones, _summable(terms, adder).mT, adder, seed).squeeze(0)


def sum_over(
    x: Tensor,
    dims: tuple[int, ...],
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Return the sums over some dimensions, which are dropped, in row-major order."""
    kept = [dim for dim in range(x.dim()) if dim not in dims]
    shape = [x.shape[dim] for dim in kept]
    terms = math.prod([x.shape[dim] for dim in dims])
    rows = x.permute((*kept, *dims)).reshape(math.prod(shape), terms)
    return row_sums(rows, accumulator, seed).reshape(shape)


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
    within = [] if adder.within is None else list(adder.within.code)
    return sum_segments(
        _summable(terms, adder),
        index,
        size,
        list(adder.rounding.code),
        within,
        kernel_order(adder),
        adder.block_size or 0,
        seed if adder.stochastic else None,
    )


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
