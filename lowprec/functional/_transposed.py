"""`lowprec.functional.conv_transpose1d`, `conv_transpose2d` and `conv_transpose3d`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..arithmetic import check_carrier
from ..precision import Precision, as_precision
from ._convolution import per_dimension
from ._once import once_differentiable
from ._parts import (
    add_bias,
    channels_factor,
    check_bias,
    check_same,
    column_sums,
    factor,
    isolated,
    rescaled,
    rounded,
    rounded_once,
    seed_for,
    split,
)
from ._transposed_gradients import (
    carrier_gradients,
    input_sums,
    output_size,
    transposed_arguments,
    weight_sums,
)
from ._unrolled import Geometry, input_gradient

_Sizes = int | Sequence[int]


class _Transposed(torch.autograd.Function):
    """A transposed convolution of operands rounded already, or in blocks here.

    It is the gradient of a convolution's input; its own gradients are that
    convolution and the gradient of its weight, with input and gradient exchanged.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,  # [N, C, *spatial]
        weight: Tensor,  # [C, O/G, *kernel]
        bias: Tensor | None,  # [O]
        geometry: Geometry,
        precision: Precision,
        seed: Tensor | None,
    ) -> Tensor:
        with isolated(input):
            seeds, accumulator = split(seed), precision.accumulator
            groups = geometry.groups
            x = channels_factor(input, precision.input, 1, groups, seeds.input)
            w = channels_factor(weight, precision.weight, 0, groups, seeds.weight)
            if accumulator is None:
                added = None if precision.blocked else bias
                total = torch.convolution(
                    x.values, w.values, added, **transposed_arguments(geometry)
                )
            else:
                added = None
                size = output_size(input.shape[2:], weight.shape[2:], geometry)
                total = input_gradient(
                    x.values, w.values, size, geometry, accumulator, seed
                )
            total = rescaled(total, x, w)
            if bias is not None and added is None:
                column = bias.reshape(-1, *[1] * (input.dim() - 2))
                total = add_bias(total, column, accumulator, seeds.bias)
            return rounded(total, precision.output, seeds.output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.geometry, ctx.precision, seed = inputs
        ctx.save_for_backward(input, weight, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        input, weight, seed = ctx.saved_tensors
        geometry, precision = ctx.geometry, ctx.precision
        accumulator = precision.backward_accumulator
        needed = ctx.needs_input_grad[:3]
        grad_input = grad_weight = grad_bias = None
        with isolated(input):
            seeds = split(seed)
            fl_grad = precision.grad_output
            grad = rounded_once(grad_output, fl_grad, seeds.grad_output)
            if accumulator is None and not precision.blocked:
                grad_input, grad_weight, grad_bias = carrier_gradients(
                    grad, input, weight, geometry, needed
                )
                needed = (False, False, False)
            if needed[0]:
                g = channels_factor(
                    grad, fl_grad, 1, geometry.groups, seeds.grad_output
                )
                w = channels_factor(
                    weight, precision.weight, 1, 1, seeds.weight, again=True
                )
                total = input_sums(
                    g.values,
                    input,
                    w.values,
                    geometry,
                    accumulator,
                    seeds.grad_input_sum,
                )
                grad_input = rescaled(total, g, w)
            if needed[1]:
                g = factor(grad, fl_grad, 0, seeds.grad_output, again=True)
                x = factor(input, precision.input, 0, seeds.input, again=True)
                total = weight_sums(
                    g.values,
                    x.values,
                    weight,
                    geometry,
                    accumulator,
                    seeds.grad_weight_sum,
                )
                grad_weight = rescaled(total, g, x)
            if needed[2]:
                terms = grad.movedim(1, 0).flatten(1).mT  # [N L, O]
                grad_bias = column_sums(terms, accumulator, seeds.grad_bias_sum)
            if grad_input is not None:
                grad_input = rounded(grad_input, precision.grad_input, seeds.grad_input)
            if grad_weight is not None:
                grad_weight = rounded(
                    grad_weight, precision.grad_weight, seeds.grad_weight
                )
            if grad_bias is not None:
                grad_bias = rounded(grad_bias, precision.grad_weight, seeds.grad_bias)
        return grad_input, grad_weight, grad_bias, None, None, None


def _check_operands(
    dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, groups: Any
) -> None:
    check_carrier(input, "input")
    check_same("weight", weight, input, "input")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be a positive int, got {groups!r}")
    fits = input.dim() in (dims + 1, dims + 2) and weight.dim() == dims + 2
    if (
        not fits
        or input.shape[-dims - 1] != weight.shape[0]
        or weight.shape[0] % groups
        or 0 in (*weight.shape[2:], *input.shape[-dims:])
    ):
        raise ValueError(
            f"cannot apply the transposed convolution of weight {tuple(weight.shape)} "
            f"to input {tuple(input.shape)} in {groups} groups: input must be "
            "[N, C, *spatial] or [C, *spatial] and weight [C, O / groups, *kernel] "
            f"with {dims} spatial dimensions, all sizes of these at least 1, and "
            "groups that divide C"
        )
    check_bias(bias, input, weight.shape[1] * groups, "output channel")


def _geometry(
    spatial: Sequence[int],
    kernel: Sequence[int],
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Geometry:
    dims = len(kernel)
    strides = per_dimension("stride", stride, dims, 1)
    dilations = per_dimension("dilation", dilation, dims, 1)
    amounts = per_dimension("padding", padding, dims, 0)
    extras = per_dimension("output_padding", output_padding, dims, 0)
    for extra, step, reach in zip(extras, strides, dilations, strict=True):
        if extra >= max(step, reach):
            raise ValueError(
                "output_padding must be smaller than stride or dilation, got "
                f"output_padding {output_padding!r}, stride {stride!r}, dilation "
                f"{dilation!r}"
            )
    sides = [
        (amount, amount - extra) for amount, extra in zip(amounts, extras, strict=True)
    ]
    geometry = Geometry(strides, tuple(sides), dilations, groups)
    size = output_size(spatial, kernel, geometry)
    if min(size) < 1:
        raise ValueError(
            f"the output would have sizes {tuple(size)}, which must be at least 1: "
            f"spatial sizes {tuple(spatial)}, kernel {tuple(kernel)}, padding "
            f"{padding!r}: pad less"
        )
    return geometry


def _convolve_transposed(
    function: Callable[..., Tensor],
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    precision: Precision,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> Tensor:
    operands = (input, weight, bias)
    if has_torch_function(operands):
        overridden: Tensor = handle_torch_function(
            function,
            operands,
            *operands,
            stride,
            padding,
            output_padding,
            groups,
            dilation,
            precision=precision,
            generator=generator,
            seed=seed,
        )
        return overridden
    precision = as_precision(precision)
    _check_operands(dims, input, weight, bias, groups)
    geometry = _geometry(
        input.shape[-dims:],
        weight.shape[2:],
        stride,
        padding,
        output_padding,
        groups,
        dilation,
    )
    base = seed_for(precision, generator, seed)
    seeds = split(base)
    x = rounded_once(input, precision.input, seeds.input)
    w = rounded_once(weight, precision.weight, seeds.weight)
    batched = input.dim() == dims + 2
    node: Any = _Transposed
    result: Tensor = node.apply(
        x if batched else x.unsqueeze(0), w, bias, geometry, precision, base
    )
    return result if batched else result.squeeze(0)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sizes = 1,
    padding: _Sizes = 0,
    output_padding: _Sizes = 0,
    groups: int = 1,
    dilation: _Sizes = 1,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Apply a transposed convolution to images in emulated arithmetic.

    With x' = fl_input(x), W' = fl_weight(W), dy' = fl_grad_output(dy), l a position of
    the input and k one of the kernel:
    y[n, o, i] = fl_output(fl_acc(acc over (c, l) of x'[n, c, l] W'[c, o, k] + b[o])),
    where k is the kernel position by which input l reaches output i,
    dx[n, c, l] = fl_grad_input(acc over (o, k) of
    dy'[n, o, l stride + k dilation - padding] W'[c, o, k]),
    dW[c, o, k] = fl_grad_weight(acc over (n, l) of x'[n, c, l]
    dy'[n, o, l stride + k dilation - padding]), db[o] = fl_grad_weight(acc of dy').

    Contract:
        As `conv2d`, of whose gradients these are: the sums of y are those of its dx
        (zeros around x' are factors; random words count phase by phase), the sums of
        dx those of its y, and the sums of dW those of its dW with x' and dy'
        exchanged, zeros around dy'. Without accumulators torch's own transposed
        convolution computes, with autocast off.

    Args:
        input: float32 or float64 tensor [N, C, H, W] or [C, H, W].
        weight: tensor [C, O / groups, kH, kW] of the same dtype.
        bias: tensor [O] of the same dtype, or None.
        stride: distance of windows in the output, an int or a pair.
        padding: how much of the output is cut off on both sides, an int or a pair.
        output_padding: how much of it is kept at the end, an int or a pair.
        groups: groups of channels that are convolved separately.
        dilation: distance of the elements of a window.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [N, O, H', W'] or [O, H', W'] of the input's dtype, H' = (H - 1) stride
        - 2 padding + dilation (kH - 1) + output_padding + 1.

    Raises:
        TypeError: as `linear`.
        ValueError: if sizes do not match, as torch, or the carrier cannot hold the
            values.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x, w = torch.full((1, 1, 1, 2), 256.0), torch.ones(1, 1, 1, 2)
        >>> w[..., 0] = 1 / 256
        >>> conv_transpose2d(x, w, precision=Precision(accumulator="bfloat16"))
        tensor([[[[  1., 256., 256.]]]])

    References:
        Dumoulin and Visin 2016, A guide to convolution arithmetic, chapter 4.
    """
    return _convolve_transposed(
        conv_transpose2d,
        2,
        input,
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        precision,
        generator,
        seed,
    )


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sizes = 1,
    padding: _Sizes = 0,
    output_padding: _Sizes = 0,
    groups: int = 1,
    dilation: _Sizes = 1,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Apply a transposed convolution to sequences in emulated arithmetic.

    The formulas are those of `conv_transpose2d`.

    Contract:
        As `conv_transpose2d`.

    Args:
        input: float32 or float64 tensor [N, C, L] or [C, L].
        weight: tensor [C, O / groups, kL] of the same dtype.
        bias: tensor [O] of the same dtype, or None.
        stride: as in `conv_transpose2d`.
        padding: as in `conv_transpose2d`.
        output_padding: as in `conv_transpose2d`.
        groups: as in `conv_transpose2d`.
        dilation: as in `conv_transpose2d`.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [N, O, L'] or [O, L'] of the input's dtype.

    Raises:
        TypeError: as `linear`.
        ValueError: as `conv_transpose2d`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x, w = torch.tensor([[256.0, 1.0]]), torch.ones(1, 1, 2)
        >>> conv_transpose1d(x, w, precision=Precision(accumulator="bfloat16"))
        tensor([[256., 256.,   1.]])

    References:
        Dumoulin and Visin 2016, A guide to convolution arithmetic, chapter 4.
    """
    return _convolve_transposed(
        conv_transpose1d,
        1,
        input,
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        precision,
        generator,
        seed,
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sizes = 1,
    padding: _Sizes = 0,
    output_padding: _Sizes = 0,
    groups: int = 1,
    dilation: _Sizes = 1,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Apply a transposed convolution to volumes in emulated arithmetic.

    The formulas are those of `conv_transpose2d`.

    Contract:
        As `conv_transpose2d`.

    Args:
        input: float32 or float64 tensor [N, C, D, H, W] or [C, D, H, W].
        weight: tensor [C, O / groups, kD, kH, kW] of the same dtype.
        bias: tensor [O] of the same dtype, or None.
        stride: as in `conv_transpose2d`.
        padding: as in `conv_transpose2d`.
        output_padding: as in `conv_transpose2d`.
        groups: as in `conv_transpose2d`.
        dilation: as in `conv_transpose2d`.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [N, O, D', H', W'] or [O, D', H', W'] of the input's dtype.

    Raises:
        TypeError: as `linear`.
        ValueError: as `conv_transpose2d`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x, w = torch.ones(2, 3, 4, 4, 4), torch.ones(3, 5, 2, 2, 2)
        >>> conv_transpose3d(x, w, stride=2, precision=Precision(output="e5m2")).shape
        torch.Size([2, 5, 8, 8, 8])

    References:
        Dumoulin and Visin 2016, A guide to convolution arithmetic, chapter 4.
    """
    return _convolve_transposed(
        conv_transpose3d,
        3,
        input,
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        precision,
        generator,
        seed,
    )
