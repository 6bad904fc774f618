"""`lowprec.functional.extremum`: largest and smallest elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._wide import wide_for


@overridable
def extremum(
    function: Callable[..., Tensor],
    input: Tensor,
    *args: Any,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Choose the largest or smallest elements; equal ones share the gradient.

    y = max(x), dx_j = fl(fl(dy) / n) for the n elements that equal y, 0 for others,
    with fl that of ``elementwise``.

    Contract:
        Values are rounded to ``elementwise``, as those of every fused operation. With
        ``elementwise=None`` this is torch's own function, bit for bit.

    Args:
        function: ``torch.amax``, ``torch.amin``, or ``torch.max``, ``torch.min`` and
            ``torch.median`` of all elements.
        input: float32 or float64 tensor.
        args: what the function takes besides.
        precision: ``elementwise`` is used.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic.
        seed: the seed itself instead, an int or 0-d int64 tensor.
        options: keyword arguments of ``function``.

    Returns:
        Tensor of the function's shape and the input's dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` is not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.ones(3, requires_grad=True)
        >>> y = extremum(torch.max, x, precision=Precision(elementwise="e4m3fn"))
        >>> torch.autograd.grad(y, x)[0]
        tensor([0.3438, 0.3438, 0.3438])

    References:
        ``torch.amax``, whose gradient is distributed evenly between equal elements.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return function(input, *args, **options)
    check_carrier(input, "input")
    wide = wide_for(precision, input.dtype, generator, seed)
    return wide.leave(function(wide.enter(input), *args, **options))
