"""Gradients of convolutions: by torch in the carrier, or by an accumulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..rounding import Accumulator
from ._unrolled import Geometry, input_gradient, weight_gradient, zero_padded


def symmetric(x: Tensor, geometry: Geometry) -> tuple[Tensor, dict[str, Any]]:
    """Return torch's arguments, which pad both sides alike, and what to pad before."""
    common = [min(sides) for sides in geometry.padding]
    extra = [
        (before - both, after - both)
        for (before, after), both in zip(geometry.padding, common, strict=True)
    ]
    arguments = {
        "stride": geometry.stride,
        "padding": common,
        "dilation": geometry.dilation,
        "transposed": False,
        "output_padding": [0] * len(common),
        "groups": geometry.groups,
    }
    return zero_padded(x, extra), arguments


def carrier_gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return torch's gradients of input, weight and bias, where needed."""
    padded, arguments = symmetric(input, geometry)
    gradients: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward.default(
        grad, padded, weight, [weight.shape[0]], **arguments, output_mask=list(needed)
    )
    total = gradients[0]
    if total is not None and total.shape != input.shape:
        cut = [
            (min(sides) - sides[0], min(sides) - sides[1]) for sides in geometry.padding
        ]
        total = zero_padded(total, cut)
    return (total, *gradients[1:])


def input_sums(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Return the sums of the input's gradient; of ``input`` only the shape counts."""
    if accumulator is not None:
        spatial = input.shape[2:]
        return input_gradient(grad, weight, spatial, geometry, accumulator, seed)
    needed = (True, False, False)
    total = carrier_gradients(grad, input, weight, geometry, needed)[0]
    assert total is not None  # it was asked for
    return total


def weight_sums(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Return the sums of the weight's gradient; of ``weight`` only the shape counts."""
    if accumulator is not None:
        kernel = weight.shape[2:]
        return weight_gradient(grad, input, kernel, geometry, accumulator, seed)
    needed = (False, True, False)
    total = carrier_gradients(grad, input, weight, geometry, needed)[1]
    assert total is not None  # it was asked for
    return total
