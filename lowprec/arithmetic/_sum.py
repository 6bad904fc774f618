"""`lowprec.sum`: sums of many terms in which every addition rounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels import summable, term_sums
from ..random import as_seed
from ..rounding import (
    Accumulator,
    AccumulatorLike,
    Rounding,
    Saturation,
    as_accumulator,
)
from ._correct import check_held, check_precision, valued
from ._matmul import kernel_order
from ._overrides import overridable
from ._round import check_carrier, refuse_compiled_transforms


def sum_settings(
    accumulator: Accumulator,
) -> tuple[list[int], list[int], int, int]:
    """Return what kernels know of an accumulator that adds terms: codes and order.

    Raises:
        ValueError: if float64 cannot hold the values of one of its formats.
        NotImplementedError: for more than 53 significant bits, or 51 in stochastic
            modes and of fixed point.
    """
    given = (accumulator.rounding, accumulator.within)
    for rounding in given:
        if isinstance(rounding, Rounding):  # kernels know what tables are possible
            check_precision("sum", rounding, whole=True)
            check_held(rounding, torch.float64)
    accumulate, within = ([] if one is None else list(one.code) for one in given)
    order = kernel_order(accumulator)
    return accumulate, within, order, accumulator.block_size or 0


def row_sums(
    terms: Tensor,  # [M, K], float64
    accumulator: Accumulator | None,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Return the sum of every row, its terms in order.

    Args:
        terms: what to add.
        accumulator: of the additions; None adds in float64.
        seed: of a stochastic accumulator.
        offset: linear index of the first sum.

    Returns:
        float64 tensor [M].

    Raises:
        ValueError: as `sum_settings`.
        NotImplementedError: as `sum_settings`.
    """
    if accumulator is None:
        return terms.sum(1)
    adder = accumulator.replace(product="exact")  # terms are no products
    settings = sum_settings(adder)
    key = seed if adder.stochastic else None
    columns = summable(terms, *settings[:2]).mT
    return term_sums(columns, *settings, key, offset)


def sum_over(
    x: Tensor,
    dims: tuple[int, ...],
    accumulator: Accumulator | None,
    seed: Tensor | None,
    offset: int = 0,
) -> Tensor:
    """Return the sums over some dimensions, which are dropped, in row-major order."""
    kept = [dim for dim in range(x.dim()) if dim not in dims]
    shape = [x.shape[dim] for dim in kept]
    terms = math.prod([x.shape[dim] for dim in dims])
    rows = x.permute((*kept, *dims)).reshape(math.prod(shape), terms)
    return row_sums(rows, accumulator, seed, offset).reshape(shape)


def _dims(x: Tensor, dim: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Return which to add up, in ascending order; None and () mean all, as torch's."""
    if dim is None or dim in ((), []):
        return tuple(range(x.dim()))
    given = dim if isinstance(dim, (tuple, list)) else (dim,)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in given):
        raise TypeError(
            f"dim must be an int, several of them, or None, got {dim!r}: lowprec.sum "
            "knows dimensions by number"
        )
    rank = max(x.dim(), 1)
    for one in given:
        if not -rank <= one < rank:
            raise IndexError(f"dim={one} is none of the {x.dim()} dimensions of input")
    chosen = sorted({one % rank for one in given}) if x.dim() else []
    if x.dim() and len(chosen) != len(given):
        raise ValueError(f"dim={dim!r} names a dimension twice")
    return tuple(chosen)


def _check_wrapping(terms: Tensor, accumulator: Accumulator) -> None:
    """Refuse terms whose sums may have more than 53 bits before they wrap.

    Contract:
        As for operands of basic operations, compiled code does not look at values.

    Raises:
        ValueError: saying how large they may be.
    """
    if torch.compiler.is_compiling():
        return
    for rounding in (accumulator.rounding, accumulator.within):
        if not isinstance(rounding, Rounding) or rounding.saturation is not (
            Saturation.WRAP
        ):
            continue
        precision, emin = rounding.code[:2]
        limit = math.ldexp(1.0, emin - precision + 52)
        wrong = (terms.abs() >= limit) & terms.isfinite()
        if bool(wrong.any()):
            raise ValueError(
                f"lowprec.sum wraps exactly for terms below {limit:g}, got "
                f"{terms[wrong].flatten()[0].item()!r}: round the terms first"
            )


@overridable
def sum(
    input: Tensor,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    *,
    accumulator: AccumulatorLike,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Add up, rounding every addition: acc <- fl(acc + x_k), from +0.

    Contract:
        Each addition rounds the exact sum once, for any terms, in the accumulator's
        order: ``sequential``, ``pairwise``, ``blocked`` or ``kahan``; its ``product``
        plays no part. Nothing overflows or underflows before the format says so. Terms
        are taken in row-major order of the reduced dimensions, exactly: the first
        addition rounds the first term. The sum of no terms is +0. Infinities, NaN and
        the signs of zeros follow IEEE 754. Stochastic modes see each exact sum rounded
        to odd to 53 bits; sum number i has the random words of element i + offset of
        `dot`. The gradient is copied, as torch's, and not emulated:
        `lowprec.functional.sum` emulates it.

    Args:
        input: float32 or float64 tensor.
        dim: dimension or dimensions to add up; None and () mean all.
        keepdim: whether reduced dimensions stay, with size one.
        accumulator: an `Accumulator`, or a rounding or its shorthand, such as
            ``"posit16"``, which mean sequential sums; at most 53 significant bits, 51
            in stochastic modes.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.
        offset: linear index of the first sum, for shards.

    Returns:
        Tensor of torch's shape and the input's dtype.

    Raises:
        TypeError: if the input is not a float32 or float64 tensor, or ``dim`` is no
            int.
        ValueError: if the dtype cannot hold the accumulator's values, or float64 those
            of its ``within``, a dimension is named twice, both ``generator`` and
            ``seed`` are given, or terms are so large that sums lose bits before they
            wrap.
        IndexError: if there is no such dimension.
        NotImplementedError: for accumulators of more than 53 significant bits, of more
            than 51 in stochastic modes and of fixed point, or of levels, or mid-points
            that count, of more than 52.

    Example:
        >>> x = torch.ones(1000)
        >>> sum(x, accumulator="bfloat16").item()
        256.0
        >>> sum(x, accumulator=Accumulator("bfloat16", order="kahan")).item()
        1000.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, chapter 4.
    """
    check_carrier(input, "input")
    refuse_compiled_transforms("lowprec.sum")
    if seed is not None and generator is not None:
        raise ValueError("give either seed= or generator=, not both")
    adder = as_accumulator(accumulator).replace(product="exact")
    check_held(adder.rounding, input.dtype)
    dims = _dims(input, dim)
    key = as_seed(seed, generator) if adder.stochastic else None
    terms = input.detach().to(torch.float64)
    _check_wrapping(terms, adder)
    value = sum_over(terms, dims, adder, key, offset).to(input.dtype)
    if keepdim:
        for one in dims:
            value = value.unsqueeze(one)

    def carrier() -> Tensor:
        return torch.sum(input, dims, keepdim)

    return valued(value, carrier, input)
