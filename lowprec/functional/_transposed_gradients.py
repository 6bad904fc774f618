"""Gradients of transposed convolutions: by torch, or by an accumulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..rounding import Accumulator
from ._unrolled import Geometry, correlate, weight_gradient, zero_padded


def transposed_arguments(geometry: Geometry) -> dict[str, Any]:
    """Return torch's arguments; its output padding is what the end lacks in padding."""
    return {
        "stride": geometry.stride,
        "padding": [before for before, _ in geometry.padding],
        "dilation": geometry.dilation,
        "transposed": True,
        "output_padding": [before - after for before, after in geometry.padding],
        "groups": geometry.groups,
    }


def output_size(
    spatial: Sequence[int], kernel: Sequence[int], geometry: Geometry
) -> list[int]:
    """Return the sizes of the image whose windows are as many as the input's elements.

    The padding goes round the output: it is where the convolution back would pad.
    """
    return [
        (size - 1) * stride + dilation * (taps - 1) + 1 - before - after
        for size, taps, stride, dilation, (before, after) in zip(
            spatial,
            kernel,
            geometry.stride,
            geometry.dilation,
            geometry.padding,
            strict=True,
        )
    ]


def carrier_gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return torch's gradients of input, weight and bias, where needed."""
    gradients: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward.default(
        grad,
        input,
        weight,
        [grad.shape[1]],
        **transposed_arguments(geometry),
        output_mask=list(needed),
    )
    return gradients


def input_sums(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Return the sums of the input's gradient; of ``input`` only the shape counts."""
    if accumulator is None:
        needed = (True, False, False)
        total = carrier_gradients(grad, input, weight, geometry, needed)[0]
        assert total is not None  # it was asked for
        return total
    groups = geometry.groups
    return correlate(
        weight.unflatten(0, (groups, weight.shape[0] // groups)),
        zero_padded(grad, geometry.padding),
        geometry.stride,
        geometry.dilation,
        accumulator,
        seed,
    )


def weight_sums(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Return the sums of the weight's gradient; of ``weight`` only the shape counts."""
    if accumulator is None:
        needed = (False, True, False)
        total = carrier_gradients(grad, input, weight, geometry, needed)[1]
        assert total is not None  # it was asked for
        return total
    kernel = weight.shape[2:]
    return weight_gradient(input, grad, kernel, geometry, accumulator, seed)
