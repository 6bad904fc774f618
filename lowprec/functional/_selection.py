"""Operations that choose elements: exact forward, sums of gradients backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._wide import wide_for

_BROADCASTS = (
    torch.broadcast_to,
    Tensor.broadcast_to,
    Tensor.expand,
    Tensor.expand_as,
)


def index_map(
    function: Callable[..., Tensor],
    x: Tensor,
    *args: Any,
    **options: Any,
) -> Tensor:
    """Return which element of x each element of ``function(x)`` is.

    Args:
        function: chooses elements, and may put constants between them.
        x: what it is applied to; only its shape matters.
        args: further arguments.
        options: keyword arguments.

    Returns:
        int64 tensor of row-major indices, -1 where the result is a constant.
    """
    # In float64 because not every operation moves integers. From one, so that elements
    # change their sign with the numbers, and constants do not.
    numbers = torch.arange(1, x.numel() + 1, dtype=torch.float64, device=x.device)
    chosen = function(numbers.view(x.shape), *args, **options)
    mirrored = function(-numbers.view(x.shape), *args, **options)
    return torch.where(mirrored == -chosen, chosen, 0.0).to(torch.int64) - 1


@overridable
def selection(
    function: Callable[..., Tensor],
    x: Tensor,
    *args: Any,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Choose elements exactly; add the gradients of an element under an accumulator.

    y_i = x_I(i), dx_j = fl(acc(sum of fl(dy_i) over all i with I(i) = j, i ascending)),
    with fl that of ``elementwise`` and the sum that of ``grad_accumulator``.

    Contract:
        The index map I is the function applied to the elements' numbers; constants
        that it puts in have no gradient. Every element's sum, also of one term, starts
        from +0 and has the random words of that element. With ``elementwise=None`` this
        is torch's own function, bit for bit. The result is a copy, never a view.

    Args:
        function: a function of torch that copies elements whatever their values, such
            as ``torch.gather``, ``Tensor.expand`` or ``torch.nn.functional.unfold``.
        x: float32 or float64 tensor to choose from.
        args: what the function takes besides.
        precision: ``elementwise`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic.
        seed: the seed itself instead, an int or 0-d int64 tensor.
        options: keyword arguments of ``function``.

    Returns:
        Tensor of the function's shape and ``x``'s dtype.

    Raises:
        TypeError: if ``x`` is no carrier, or ``precision`` is not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> low = Precision(elementwise="bfloat16", grad_accumulator="bfloat16")
        >>> y = selection(Tensor.expand, x, (300,), precision=low)
        >>> torch.autograd.grad(y, x, torch.ones(300))[0].item()
        256.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return function(x, *args, **options)
    check_carrier(x, "x")
    wide = wide_for(precision, x.dtype, generator, seed)
    with torch.no_grad():
        chosen = function(x.detach(), *args, **options)
        index = None
        if function not in _BROADCASTS:
            index = index_map(function, x, *args, **options)
    return wide.select_across(x, chosen, index)


def gather_windows(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Return the windows of the last dimensions, zeros where a place is negative.

    Args:
        x: tensor [..., L_1, ..., L_d].
        places: for each of these dimensions int64 [O_k, K_k]: the elements of each
            window, -1 for none.

    Returns:
        Tensor [..., O_1, ..., O_d, K_1, ..., K_d].
    """
    leading = x.dim() - len(places)
    for place in places:
        chosen = x.index_select(leading, place.clamp(min=0).flatten())
        chosen = chosen.unflatten(leading, place.shape)
        chosen = chosen.movedim((leading, leading + 1), (-2, -1))
        x = torch.where(place >= 0, chosen, 0.0)
    outputs = range(leading, x.dim(), 2)
    members = range(leading + 1, x.dim(), 2)
    return x.permute(*range(leading), *outputs, *members)
