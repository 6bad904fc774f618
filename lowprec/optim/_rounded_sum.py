"""Linear combinations of tensors with one rounding, for updates of every kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import round as fl
from ..random import as_seed
from ..rounding import Rounding, RoundingLike, RoundingMode, as_rounding
from ._exact import Term, by_pieces, check_storage, round_sum, scaled

# Relative to the sum of sizes, an addition and a product err by at most half an ulp
# each; doubled, so that errors of the bound do not matter.
_ERROR = 2.0**-51
# Below, float64 loses bits of products and of the bound.
_SMALLEST = 2.0**-900


def rounded_sum(
    scales: Sequence[float],
    tensors: Sequence[Tensor],
    rounding: RoundingLike,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Return a linear combination of tensors, rounded once.

    .. math::
        \mathrm{fl}\Bigl(\sum_i s_i x_i\Bigr)

    Contract:
        The exact sum of the exact products is rounded, for products of 2^-960 to
        2^1024 in size. Stochastic modes are a pure function of (seed, row-major element
        index + offset). Infinities, NaN and signs of zeros are those of the float64
        sum; an exact zero is -0 toward negative. Ziv's test decides in float64 whether
        errors there could matter, which is rare, and only then the sum is made exact.

    Args:
        scales: s_i, finite.
        tensors: x_i, one or more, of one shape and dtype, float32 or float64.
        rounding: fl, of at most 51 significant bits.
        seed: of stochastic modes; None draws one.
        generator: source of that seed; None means torch's default generator.
        offset: linear index of the first element, for shards of a larger tensor.

    Returns:
        Tensor of the shape and dtype of the others.

    Raises:
        TypeError: if a tensor is not float32 or float64.
        ValueError: if numbers, shapes or dtypes differ, or the dtype cannot hold the
            format's values.
        NotImplementedError: for more than 51 significant bits.

    Example:
        >>> x, v = torch.tensor([1.0, 3.0]), torch.tensor([2.0**-30, 0.25])
        >>> rounded_sum([1.0, -0.5], [x, v], "bfloat16", seed=0).tolist()
        [1.0, 2.875]
        >>> down = Rounding("bfloat16", "toward_zero")
        >>> rounded_sum([1.0, -0.5], [x, v], down).tolist()  # just below 1
        [0.99609375, 2.875]

    References:
        Ziv 1991, Fast evaluation of elementary mathematical functions with correctly
        rounded last bit; Boldo and Melquiond 2008 for rounding to odd.
    """
    chosen = as_rounding(rounding)
    _check(scales, tensors, chosen)
    key = as_seed(seed, generator) if chosen.stochastic else None
    dtype = tensors[0].dtype

    def combined(*operands: Any) -> Tensor:
        *pieces, start = operands
        wide = [one.to(torch.float64) for one in pieces]
        result = _by_float64(scales, wide, chosen, key, start)
        if result is None:
            terms = [
                Term(x) if s == 1 else scaled(s, x, chosen)
                for s, x in zip(scales, wide, strict=True)
            ]
            result = round_sum(terms, chosen, torch.float64, key, start)
        return result.to(dtype)

    with torch.no_grad():
        return by_pieces(combined, [one.detach() for one in tensors], offset)


def _by_float64(
    scales: Sequence[float],
    tensors: Sequence[Tensor],
    rounding: Rounding,
    seed: Tensor | None,
    offset: int,
) -> Tensor | None:
    """Return the result if no error of float64 can change it, else None.

    Rounding is monotone, also with given random bits: what both ends of an interval
    round to, all numbers between them round to.
    """
    if rounding.mode is RoundingMode.TOWARD_NEGATIVE:  # exact zeros differ in sign
        return None
    products = [x if s == 1 else x * s for s, x in zip(scales, tensors, strict=True)]
    total, size = products[0], products[0].abs()
    for one in products[1:]:
        total = total + one
        size += one.abs()
    tiny = size < _SMALLEST
    if bool(tiny.any()) and any(bool(((x != 0) & tiny).any()) for x in tensors):
        return None
    size *= _ERROR * len(products)
    lower = fl(total - size, rounding, seed=seed, offset=offset)
    upper = fl(size.add_(total), rounding, seed=seed, offset=offset)
    # The bits of zeros too; infinities and NaN may have come from float64's range.
    same = torch.equal(lower.view(torch.int64), upper.view(torch.int64))
    return lower if same and bool(total.isfinite().all()) else None


def _check(
    scales: Sequence[float], tensors: Sequence[Tensor], rounding: Rounding
) -> None:
    if len(scales) != len(tensors) or not tensors:
        raise ValueError(
            "scales and tensors must be as many, one or more, got "
            f"{len(scales)} and {len(tensors)}"
        )
    for s in scales:
        if not math.isfinite(s):
            raise ValueError(f"scales must be finite, got {s}")
    shapes = {(tuple(x.shape), x.dtype) for x in tensors}
    if len(shapes) > 1:
        found = ", ".join(sorted(f"{shape} of {dtype}" for shape, dtype in shapes))
        raise ValueError(f"tensors must have one shape and dtype, got {found}")
    check_storage(rounding, tensors[0], "rounded_sum")
