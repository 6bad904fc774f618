"""Reductions: sums under an accumulator, and what is made of them in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..arithmetic import overridable
from ..precision import Precision, as_precision
from ._parts import dimension
from ._pointwise import carrier_of
from ._wide import Wide, wide_for

Dims = int | tuple[int, ...] | list[int] | None
Seed = int | Tensor | None


def dims_of(x: Tensor, dim: Dims) -> tuple[int, ...]:
    """Return the dimensions that torch reduces, which is all for None and ().

    Raises:
        IndexError: if there is no such dimension.
    """
    if isinstance(dim, int):
        dim = (dim,)
    dims = sorted(dimension(x, one) for one in dim or ())
    return tuple(dims) if dims and x.dim() else tuple(range(x.dim()))


def _size(x: Tensor, dims: tuple[int, ...]) -> int:
    return math.prod([x.shape[dim] for dim in dims])


def reduced(
    function: Callable[[Wide, Tensor], Tensor],
    plain: Callable[[Tensor], Tensor],
    input: Tensor,
    precision: Precision,
    generator: torch.Generator | None,
    seed: Seed,
) -> Tensor:
    """Apply a function between the borders, or torch's where nothing is rounded."""
    if as_precision(precision).elementwise is None or not (
        input.is_floating_point() or input.is_complex()
    ):
        return plain(input)
    wide = wide_for(precision, carrier_of([input]), generator, seed)
    return wide.leave(function(wide, wide.enter(input)))


def converted(input: Tensor, dtype: torch.dtype | None) -> Tensor:
    return input if dtype is None else input.to(dtype)


def _variance(
    wide: Wide, x: Tensor, dims: tuple[int, ...], correction: float, keepdim: bool
) -> Tensor:
    count = _size(x, dims)
    # The mean has no part in the gradient: its own is the sum of the deviations.
    mean = wide.sum(x.detach(), dims, True) / count
    return wide.sum((x - mean).square(), dims, keepdim) / max(count - correction, 0)


def root(x: Tensor) -> Tensor:
    """Return sqrt(x) with a gradient of zero at zero."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), x)


@overridable
def sum(
    input: Tensor,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Add: y = fl(acc(x_1 + ... + x_n)), in row-major order of the reduced dimensions.

    Contract:
        The sum is that of ``accumulator``, the rounding that of ``elementwise``; both
        alike are not one, as a sum may have more bits than its terms. The gradient
        fl(dy) is copied. Integers, and ``elementwise=None``, are torch's own.

    Args:
        input: float32 or float64 tensor of any shape.
        dim: dimension or dimensions to reduce; None means all.
        keepdim: whether reduced dimensions stay, with size one.
        dtype: to which the input is converted first.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of torch's shape and the input's dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> low = Precision(elementwise="bfloat16", accumulator="bfloat16")
        >>> sum(torch.ones(1000), precision=low).item()
        256.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """
    x = converted(input, dtype)
    dims = dims_of(x, dim)
    return reduced(
        lambda wide, x: wide.sum(x, dims, keepdim),
        lambda x: torch.sum(x, dim, keepdim),
        x,
        precision,
        generator,
        seed,
    )


@overridable
def mean(
    input: Tensor,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Average: y = fl(acc(x_1 + ... + x_n) / n).

    Contract:
        As `sum`; dx_i = fl(fl(dy) / n).

    Args:
        input: float32 or float64 tensor of any shape.
        dim: dimension or dimensions to reduce; None means all.
        keepdim: whether reduced dimensions stay, with size one.
        dtype: to which the input is converted first.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of torch's shape and the input's dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> low = Precision(elementwise="bfloat16", accumulator="e8m15")
        >>> mean(torch.tensor([1.0, 2.0, 2.0]), precision=low).item()
        1.6640625

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """
    x = converted(input, dtype)
    dims = dims_of(x, dim)
    count = _size(x, dims)
    return reduced(
        lambda wide, x: wide.sum(x, dims, keepdim) / count,
        lambda x: torch.mean(x, dim, keepdim),
        x,
        precision,
        generator,
        seed,
    )


@overridable
def var(
    input: Tensor,
    dim: Dims = None,
    *,
    correction: float = 1,
    keepdim: bool = False,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Compute variances by two passes.

    Contract:
        With m = acc(sum x_i) / n in float64: y = fl(acc(sum (x_i - m)^2) / (n - c)),
        dx_i = fl(fl(dy) 2 (x_i - m) / (n - c)). Integers, and ``elementwise=None``,
        are torch's own.

    Args:
        input: float32 or float64 tensor of any shape.
        dim: dimension or dimensions to reduce; None means all.
        correction: c, degrees of freedom that the mean takes.
        keepdim: whether reduced dimensions stay, with size one.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of torch's shape and the input's dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> var(x, precision=Precision(elementwise="bfloat16")).item()
        1.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 1.9.
    """
    dims = dims_of(input, dim)
    return reduced(
        lambda wide, x: _variance(wide, x, dims, correction, keepdim),
        lambda x: torch.var(x, dim, correction=correction, keepdim=keepdim),
        input,
        precision,
        generator,
        seed,
    )


@overridable
def std(
    input: Tensor,
    dim: Dims = None,
    *,
    correction: float = 1,
    keepdim: bool = False,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Compute standard deviations, fl(sqrt(v)) with v as in `var`, not rounded.

    Contract:
        As `var`; one rounding of the root. dx_i = fl(fl(dy) (x_i - m) / (y (n - c))),
        y not rounded, and 0 for y = 0.

    Args:
        input: float32 or float64 tensor of any shape.
        dim: dimension or dimensions to reduce; None means all.
        correction: c, degrees of freedom that the mean takes.
        keepdim: whether reduced dimensions stay, with size one.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of torch's shape and the input's dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> std(x, precision=Precision(elementwise="bfloat16")).item()
        1.0

    References:
        As `var`.
    """
    dims = dims_of(input, dim)
    return reduced(
        lambda wide, x: root(_variance(wide, x, dims, correction, keepdim)),
        lambda x: torch.std(x, dim, correction=correction, keepdim=keepdim),
        input,
        precision,
        generator,
        seed,
    )


@overridable
def prod(
    input: Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Multiply elements: y = fl(x_1 ... x_n), the product in float64.

    Contract:
        As `sum`, but without sums, as `pointwise`.

    Args:
        input: float32 or float64 tensor of any shape.
        dim: dimension to reduce; None means all.
        keepdim: whether reduced dimensions stay, with size one.
        dtype: to which the input is converted first.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of torch's shape and the input's dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.tensor([1.5, 1.5, 1.5])
        >>> prod(x, precision=Precision(elementwise="e5m2")).item()
        3.5

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """

    def product(x: Tensor) -> Tensor:
        return torch.prod(x) if dim is None else torch.prod(x, dim, keepdim)

    return reduced(
        lambda _, x: product(x),
        product,
        converted(input, dtype),
        precision,
        generator,
        seed,
    )


@overridable
def cumsum(
    input: Tensor,
    dim: int,
    *,
    dtype: torch.dtype | None = None,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Add up: y_k = fl(acc(x_1 + ... + x_k)).

    Contract:
        As `sum`, for every beginning; dx_j = fl(acc(sum of fl(dy_k), k = j, ..., n)).
        Stochastic sums of one row have the same random words, so that they are the
        steps of one sum.

    Args:
        input: float32 or float64 tensor of any shape.
        dim: dimension along which to add.
        dtype: to which the input is converted first.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of the input's shape and dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.tensor([256.0, 1.0, 1.0])
        >>> low = Precision(elementwise="bfloat16", accumulator="bfloat16")
        >>> cumsum(x, 0, precision=low).tolist()
        [256.0, 256.0, 256.0]

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """

    def running(wide: Wide, x: Tensor) -> Tensor:
        if x.dim() == 0:
            return wide.sum(x, ())
        rows = x.movedim(dim, -1)
        count = math.prod(rows.shape[:-1])
        sums = wide.running_sum(rows.reshape(count, rows.shape[-1]))
        return sums.reshape(rows.shape).movedim(-1, dim)

    return reduced(
        running,
        lambda x: torch.cumsum(x, dim),
        converted(input, dtype),
        precision,
        generator,
        seed,
    )
