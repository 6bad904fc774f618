"""Max pooling: a choice of elements, whose gradients are sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._wide import wide_for

Sizes = int | Sequence[int]
Seed = int | Tensor | None

_DIMENSIONS: dict[Callable[..., Any], int] = {
    F.max_pool1d: 1,
    F.max_pool2d: 2,
    F.max_pool3d: 3,
    F.adaptive_max_pool1d: 1,
    F.adaptive_max_pool2d: 2,
    F.adaptive_max_pool3d: 3,
}


def _maximum(
    function: Callable[..., Any],
    input: Tensor,
    arguments: Sequence[Any],
    return_indices: bool,
    precision: Precision,
    generator: torch.Generator | None,
    seed: Seed,
) -> Any:
    """Return maxima, which are elements, and where they are if that is asked for."""
    if as_precision(precision).elementwise is None:
        return function(input, *arguments, return_indices=return_indices)
    check_carrier(input, "input")
    wide = wide_for(precision, input.dtype, generator, seed)
    values, indices = function(input.detach(), *arguments, return_indices=True)
    dims = _DIMENSIONS[function]
    planes = input.shape[:-dims]
    first = torch.arange(math.prod(planes), device=input.device)
    first = (first * math.prod(input.shape[-dims:])).view(*planes, *[1] * dims)
    result = wide.select_across(input, values, indices + first)
    return (result, indices) if return_indices else result


@overridable
def max_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Any:
    """Choose the largest element of each window, exactly.

    Contract:
        As `selection`: dx_j = fl(acc(sum of fl(dy) over the windows whose maximum is
        x_j)). With ``elementwise=None`` this is torch's own function.

    Args:
        input: float32 or float64 tensor [N, C, L] or [C, L].
        kernel_size: size of the window.
        stride: distance of windows; None means ``kernel_size``.
        padding: of negative infinities on both sides.
        dilation: distance of the elements of a window.
        ceil_mode: whether the last window may reach beyond the input.
        return_indices: whether to return where the maxima are, too.
        precision: ``elementwise`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of torch's shape and the input's dtype, or a pair of it and int64
        indices.

    Raises:
        TypeError: as `selection`.
        ValueError: as `selection`.
        RuntimeError: from torch, for other arguments, or if the gradient is
            differentiated again.

    Example:
        >>> x = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
        >>> y = max_pool1d(x, 2, 1, precision=Precision(elementwise="e5m2"))
        >>> torch.autograd.grad(y.sum(), x)[0]
        tensor([[0., 2., 0.]])

    References:
        As `selection`.
    """
    arguments = (kernel_size, stride, padding, dilation, ceil_mode)
    return _maximum(
        F.max_pool1d, input, arguments, return_indices, precision, generator, seed
    )


@overridable
def max_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Any:
    """Choose maxima in 2 dimensions; see `max_pool1d`."""
    arguments = (kernel_size, stride, padding, dilation, ceil_mode)
    return _maximum(
        F.max_pool2d, input, arguments, return_indices, precision, generator, seed
    )


@overridable
def max_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Any:
    """Choose maxima in 3 dimensions; see `max_pool1d`."""
    arguments = (kernel_size, stride, padding, dilation, ceil_mode)
    return _maximum(
        F.max_pool3d, input, arguments, return_indices, precision, generator, seed
    )


@overridable
def adaptive_max_pool1d(
    input: Tensor,
    output_size: Any,
    return_indices: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Any:
    """Choose the largest elements of as many windows as asked for.

    Contract:
        As `max_pool1d`, with the windows of `adaptive_avg_pool1d`.

    Args:
        input: float32 or float64 tensor [N, C, L] or [C, L].
        output_size: number of windows.
        return_indices: whether to return where the maxima are, too.
        precision: as `max_pool1d`.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        As `max_pool1d`.

    Raises:
        TypeError: as `max_pool1d`.
        ValueError: as `max_pool1d`.
        RuntimeError: as `max_pool1d`.

    Example:
        >>> x = torch.tensor([[1.0, 3.0, 2.0]])
        >>> adaptive_max_pool1d(x, 1, precision=Precision(elementwise="e5m2"))
        tensor([[3.]])

    References:
        As `selection`.
    """
    return _maximum(
        F.adaptive_max_pool1d,
        input,
        (output_size,),
        return_indices,
        precision,
        generator,
        seed,
    )


@overridable
def adaptive_max_pool2d(
    input: Tensor,
    output_size: Any,
    return_indices: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Any:
    """Choose maxima in 2 dimensions; see `adaptive_max_pool1d`."""
    return _maximum(
        F.adaptive_max_pool2d,
        input,
        (output_size,),
        return_indices,
        precision,
        generator,
        seed,
    )


@overridable
def adaptive_max_pool3d(
    input: Tensor,
    output_size: Any,
    return_indices: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Any:
    """Choose maxima in 3 dimensions; see `adaptive_max_pool1d`."""
    return _maximum(
        F.adaptive_max_pool3d,
        input,
        (output_size,),
        return_indices,
        precision,
        generator,
        seed,
    )
