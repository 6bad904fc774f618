"""Average pooling: windows are chosen, their sums are those of an accumulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._selection import gather_windows, index_map
from ._wide import wide_for

Sizes = int | Sequence[int]
Seed = int | Tensor | None


def _tuple(value: Sizes, dims: int) -> tuple[int, ...]:
    chosen = (value,) if isinstance(value, int) else tuple(value)
    return chosen * dims if len(chosen) == 1 else chosen


def _regular_places(
    length: int, outputs: int, kernel: int, stride: int, padding: int
) -> Tensor:
    """Return the elements of each window, [outputs, kernel], -1 in the padding."""
    starts = torch.arange(outputs).unsqueeze(1) * stride - padding
    place = starts + torch.arange(kernel)
    return torch.where((place >= 0) & (place < length), place, -1)


def _adaptive_places(length: int, outputs: int) -> Tensor:
    """Return windows from floor(i L / O) up to ceil((i + 1) L / O), -1 beyond."""
    bounds = [
        (i * length // outputs, -(-(i + 1) * length // outputs)) for i in range(outputs)
    ]
    widest = max([0, *[end - first for first, end in bounds]])
    ends = torch.tensor([end for _, end in bounds], dtype=torch.int64)
    starts = torch.tensor([first for first, _ in bounds], dtype=torch.int64)
    place = starts.unsqueeze(1) + torch.arange(widest)
    return torch.where(place < ends.unsqueeze(1), place, -1)


def _members(places: Sequence[Tensor]) -> Tensor:
    """Return how many elements each window has, [O_1, ..., O_d]."""
    count = torch.ones((), dtype=torch.float64)
    for place in places:
        count = count.unsqueeze(-1) * (place >= 0).sum(1)
    return count


def _window_means(
    input: Tensor,
    places: Sequence[Tensor],
    divisor: Tensor | float,
    precision: Precision,
    generator: torch.Generator | None,
    seed: Seed,
) -> Tensor:
    """Return fl(acc(window) / divisor) for every window."""
    check_carrier(input, "input")
    places = [place.to(input.device) for place in places]
    if isinstance(divisor, Tensor):
        divisor = divisor.to(input.device)
    wide = wide_for(precision, input.dtype, generator, seed)
    x = wide.enter(input)
    with torch.no_grad():
        chosen = gather_windows(x.detach(), places)
        index = index_map(gather_windows, x, places)
    windows = wide.select(x, chosen, index)
    total = wide.sum(windows, range(windows.dim() - len(places), windows.dim()))
    return wide.leave(total / divisor)


def _average(
    function: Callable[..., Tensor],
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    options: dict[str, Any],
    precision: Precision,
    generator: torch.Generator | None,
    seed: Seed,
) -> Tensor:
    steps = kernel_size if stride is None else stride
    options = {key: x for key, x in options.items() if x is not None}
    if as_precision(precision).elementwise is None:
        return function(input, kernel_size, steps, padding, **options)
    dims = _DIMENSIONS[function]
    spatial = input.shape[-dims:]
    # torch refuses bad arguments, and knows the outputs and the divisors.
    ones = torch.ones(1, 1, *spatial, dtype=torch.float64)
    means = function(ones, kernel_size, steps, padding, **options)[0, 0]
    places = [
        _regular_places(*sizes)
        for sizes in zip(
            spatial,
            means.shape,
            _tuple(kernel_size, dims),
            _tuple(steps, dims),
            _tuple(padding, dims),
            strict=True,
        )
    ]
    divisor = (_members(places) / means).round()
    return _window_means(input, places, divisor, precision, generator, seed)


_DIMENSIONS: dict[Callable[..., Any], int] = {
    F.avg_pool1d: 1,
    F.avg_pool2d: 2,
    F.avg_pool3d: 3,
    F.adaptive_avg_pool1d: 1,
    F.adaptive_avg_pool2d: 2,
    F.adaptive_avg_pool3d: 3,
}


def _adaptive_average(
    function: Callable[..., Tensor],
    input: Tensor,
    output_size: Any,
    precision: Precision,
    generator: torch.Generator | None,
    seed: Seed,
) -> Tensor:
    if as_precision(precision).elementwise is None:
        return function(input, output_size)
    dims = _DIMENSIONS[function]
    spatial = input.shape[-dims:]
    given = output_size if isinstance(output_size, Sequence) else (output_size,) * dims
    outputs = [
        length if size is None else size
        for length, size in zip(spatial, given, strict=True)
    ]
    places = [_adaptive_places(*each) for each in zip(spatial, outputs, strict=True)]
    return _window_means(input, places, _members(places), precision, generator, seed)


@overridable
def avg_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Average windows: y = fl(acc(window) / n), the elements in row-major order.

    Contract:
        The sum is that of ``accumulator``, rounding that of ``elementwise``; n is
        torch's divisor. Elements in the padding are zeros. Every element's gradient
        is fl(acc(sum of fl(dy) / n over its windows)), the sum that of
        ``grad_accumulator``. With ``elementwise=None`` this is torch's own function.

    Args:
        input: float32 or float64 tensor [N, C, L] or [C, L].
        kernel_size: size of the window.
        stride: distance of windows; None means ``kernel_size``.
        padding: zeros on both sides.
        ceil_mode: whether the last window may reach beyond the input.
        count_include_pad: whether padding counts in n.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of ``torch.nn.functional.avg_pool1d``'s shape and the input's dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, for other arguments, or if the gradient is
            differentiated again.

    Example:
        >>> x = torch.tensor([[256.0, 1.0, 1.0, 2.0]])
        >>> avg_pool1d(x, 4, precision=Precision(
        ...     elementwise="bfloat16", accumulator="bfloat16"))
        tensor([[64.5000]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """
    options = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    return _average(
        F.avg_pool1d,
        input,
        kernel_size,
        stride,
        padding,
        options,
        precision,
        generator,
        seed,
    )


@overridable
def avg_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Average windows of 2 dimensions; see `avg_pool1d`."""
    options = {
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
        "divisor_override": divisor_override,
    }
    return _average(
        F.avg_pool2d,
        input,
        kernel_size,
        stride,
        padding,
        options,
        precision,
        generator,
        seed,
    )


@overridable
def avg_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Average windows of 3 dimensions; see `avg_pool1d`."""
    options = {
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
        "divisor_override": divisor_override,
    }
    return _average(
        F.avg_pool3d,
        input,
        kernel_size,
        stride,
        padding,
        options,
        precision,
        generator,
        seed,
    )


@overridable
def adaptive_avg_pool1d(
    input: Tensor,
    output_size: Any,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Average as many windows as asked for, as `avg_pool1d`.

    Contract:
        Window i reaches from floor(i L / O) up to ceil((i + 1) L / O). Where windows
        differ in size, the smaller ones end with zeros.

    Args:
        input: float32 or float64 tensor [N, C, L] or [C, L].
        output_size: number of windows.
        precision: as `avg_pool1d`.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of torch's shape and the input's dtype.

    Raises:
        TypeError: as `avg_pool1d`.
        ValueError: as `avg_pool1d`.
        RuntimeError: as `avg_pool1d`.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 4.0]])
        >>> adaptive_avg_pool1d(x, 2, precision=Precision(elementwise="bfloat16"))
        tensor([[1.5000, 3.0000]])

    References:
        As `avg_pool1d`.
    """
    return _adaptive_average(
        F.adaptive_avg_pool1d, input, output_size, precision, generator, seed
    )


@overridable
def adaptive_avg_pool2d(
    input: Tensor,
    output_size: Any,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Average windows of 2 dimensions; see `adaptive_avg_pool1d`."""
    return _adaptive_average(
        F.adaptive_avg_pool2d, input, output_size, precision, generator, seed
    )


@overridable
def adaptive_avg_pool3d(
    input: Tensor,
    output_size: Any,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Average windows of 3 dimensions; see `adaptive_avg_pool1d`."""
    return _adaptive_average(
        F.adaptive_avg_pool3d, input, output_size, precision, generator, seed
    )
