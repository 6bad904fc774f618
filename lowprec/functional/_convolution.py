"""`lowprec.functional.conv1d`, `conv2d` and `conv3d`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..arithmetic import applied, check_carrier
from ..precision import Precision, as_precision
from ._convolution_gradients import (
    carrier_gradients,
    input_sums,
    symmetric,
    weight_sums,
)
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
from ._unrolled import Geometry, correlate, zero_padded

_Sizes = int | Sequence[int]


class _Convolution(torch.autograd.Function):
    """A convolution of operands that are rounded already, or in blocks here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,  # [N, C, *spatial]
        weight: Tensor,  # [O, C/G, *kernel]
        bias: Tensor | None,  # [O]
        geometry: Geometry,
        precision: Precision,
        seed: Tensor | None,
    ) -> Tensor:
        with isolated(input):
            seeds, accumulator = split(seed), precision.accumulator
            groups = geometry.groups
            x = channels_factor(input, precision.input, 1, groups, seeds.input)
            w = channels_factor(weight, precision.weight, 1, 1, seeds.weight)
            if accumulator is None:
                padded, arguments = symmetric(x.values, geometry)
                added = None if precision.blocked else bias
                total = torch.convolution(padded, w.values, added, **arguments)
            else:
                added = None
                total = correlate(
                    w.values.unflatten(0, (groups, weight.shape[0] // groups)),
                    zero_padded(x.values, geometry.padding),
                    geometry.stride,
                    geometry.dilation,
                    accumulator,
                    seed,
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
                groups = geometry.groups
                g = channels_factor(grad, fl_grad, 1, groups, seeds.grad_output)
                w = channels_factor(
                    weight, precision.weight, 0, groups, seeds.weight, again=True
                )
                grad_input = rescaled(
                    input_sums(
                        g.values,
                        input,
                        w.values,
                        geometry,
                        accumulator,
                        seeds.grad_input_sum,
                    ),
                    g,
                    w,
                )
            if needed[1]:
                g = factor(grad, fl_grad, 0, seeds.grad_output, again=True)
                x = factor(input, precision.input, 0, seeds.input, again=True)
                grad_weight = rescaled(
                    weight_sums(
                        g.values,
                        x.values,
                        weight,
                        geometry,
                        accumulator,
                        seeds.grad_weight_sum,
                    ),
                    g,
                    x,
                )
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
        or input.shape[-dims - 1] != weight.shape[1] * groups
        or weight.shape[0] % groups
        or 0 in (*weight.shape[2:], *input.shape[-dims:])
    ):
        raise ValueError(
            f"cannot convolve input {tuple(input.shape)} with weight "
            f"{tuple(weight.shape)} in {groups} groups: input must be [N, C, *spatial] "
            f"or [C, *spatial] and weight [O, C / groups, *kernel] with {dims} spatial "
            "dimensions, all sizes of these at least 1, and groups that divide O"
        )
    check_bias(bias, input, weight.shape[0], "output channel")


def per_dimension(name: str, value: Any, dims: int, least: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else value
    valid = isinstance(values, Sequence) and len(values) in (1, dims)
    if not valid or not all(isinstance(one, int) and one >= least for one in values):
        kind = "positive" if least else "non-negative"
        also = ", 'same' or 'valid'" if name == "padding" else ""
        raise ValueError(
            f"{name} must be a {kind} int or {dims} of them{also}, got {value!r}"
        )
    return tuple(values) * dims if len(values) == 1 else tuple(values)


def _geometry(
    spatial: Sequence[int],
    kernel: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Geometry:
    dims = len(kernel)
    strides = per_dimension("stride", stride, dims, 1)
    dilations = per_dimension("dilation", dilation, dims, 1)
    reach = [step * (size - 1) for step, size in zip(dilations, kernel, strict=True)]
    if padding == "same":
        if any(step != 1 for step in strides):
            raise ValueError(
                f"padding='same' needs stride 1, got stride {stride!r}: give the "
                "padding as ints"
            )
        sides = [(total // 2, total - total // 2) for total in reach]
    else:
        amounts = per_dimension(
            "padding", 0 if padding == "valid" else padding, dims, 0
        )
        sides = [(amount, amount) for amount in amounts]
    for size, (before, after), total in zip(spatial, sides, reach, strict=True):
        if before + size + after <= total:
            raise ValueError(
                f"the padded input has {before + size + after} elements in a dimension "
                f"where the dilated kernel needs {total + 1}: spatial sizes "
                f"{tuple(spatial)}, kernel {tuple(kernel)}, padding {padding!r}, "
                f"dilation {dilation!r}"
            )
    return Geometry(strides, tuple(sides), dilations, groups)


def _convolve(
    function: Callable[..., Tensor],
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
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
            dilation,
            groups,
            precision=precision,
            generator=generator,
            seed=seed,
        )
        return overridden
    precision = as_precision(precision)
    _check_operands(dims, input, weight, bias, groups)
    geometry = _geometry(
        input.shape[-dims:], weight.shape[2:], stride, padding, dilation, groups
    )
    base = seed_for(precision, generator, seed)
    seeds = split(base)
    x = rounded_once(input, precision.input, seeds.input)
    w = rounded_once(weight, precision.weight, seeds.weight)
    batched = input.dim() == dims + 2
    result = applied(
        _Convolution,
        x if batched else x.unsqueeze(0),
        w,
        bias,
        geometry,
        precision,
        base,
    )
    return result if batched else result.squeeze(0)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sizes = 1,
    padding: str | _Sizes = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Convolve images in emulated arithmetic, forward and backward.

    With x' = fl_input(x) between zeros, W' = fl_weight(W), dy' = fl_grad_output(dy),
    l a position of the output and k one of the kernel:
    y[n, o, l] = fl_output(fl_acc(acc over (c, k) of x'[n, c, l stride + k dilation]
    W'[o, c, k] + b[o])),
    dx[n, c, i] = fl_grad_input(acc over (o, l) of dy'[n, o, l] W'[o, c, k]), where k
    is the kernel position by which output l sees input i,
    dW[o, c, k] = fl_grad_weight(acc over (n, l) of dy'[n, o, l]
    x'[n, c, l stride + k dilation]), db[o] = fl_grad_weight(acc over (n, l) of dy').

    Contract:
        As `linear`. Every sum takes its terms in the row-major order of the indices
        it runs over, within the group of channels. The zeros around x' are factors
        like all others. So are, for dx, zeros around dy'; pairs (i, l) between which
        no kernel position lies, because of the stride, are no terms. Stochastic sums
        number their outputs in row-major order; those of dx phase by phase, i modulo
        the stride being the phase and the last dimension's running fastest, which for
        stride 1 is the same. The windows are laid out for at most 32 MiB of them at a
        time (more if a single sum needs it); no result depends on that. Without
        accumulators torch's own convolution computes, with autocast off.

    Args:
        input: float32 or float64 tensor [N, C, H, W] or [C, H, W].
        weight: tensor [O, C / groups, kH, kW] of the same dtype.
        bias: tensor [O] of the same dtype, or None.
        stride: distance of windows, an int or a pair.
        padding: zeros on both sides, an int or a pair; ``"valid"`` for none,
            ``"same"`` for an output of the input's size (an odd one comes last).
        dilation: distance of the elements of a window.
        groups: groups of channels that are convolved separately.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [N, O, H', W'] or [O, H', W'] of the input's dtype.

    Raises:
        TypeError: as `linear`.
        ValueError: if sizes do not match, as torch, or the carrier cannot hold the
            values.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x, w = torch.ones(1, 1, 17, 16), torch.ones(1, 1, 17, 16)
        >>> conv2d(x, w, precision=Precision(accumulator="bfloat16")).item()
        256.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    return _convolve(
        conv2d,
        2,
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        precision,
        generator,
        seed,
    )


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sizes = 1,
    padding: str | _Sizes = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Convolve sequences in emulated arithmetic, forward and backward.

    The formulas are those of `conv2d`.

    Contract:
        As `conv2d`.

    Args:
        input: float32 or float64 tensor [N, C, L] or [C, L].
        weight: tensor [O, C / groups, kL] of the same dtype.
        bias: tensor [O] of the same dtype, or None.
        stride: as in `conv2d`.
        padding: as in `conv2d`.
        dilation: as in `conv2d`.
        groups: as in `conv2d`.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [N, O, L'] or [O, L'] of the input's dtype.

    Raises:
        TypeError: as `linear`.
        ValueError: as `conv2d`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x, w = torch.tensor([[256.0, 1.0, 1.0]]), torch.ones(1, 1, 2)
        >>> conv1d(x, w, precision=Precision(accumulator="bfloat16"))
        tensor([[256.,   2.]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    return _convolve(
        conv1d,
        1,
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        precision,
        generator,
        seed,
    )


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sizes = 1,
    padding: str | _Sizes = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Convolve volumes in emulated arithmetic, forward and backward.

    The formulas are those of `conv2d`.

    Contract:
        As `conv2d`.

    Args:
        input: float32 or float64 tensor [N, C, D, H, W] or [C, D, H, W].
        weight: tensor [O, C / groups, kD, kH, kW] of the same dtype.
        bias: tensor [O] of the same dtype, or None.
        stride: as in `conv2d`.
        padding: as in `conv2d`.
        dilation: as in `conv2d`.
        groups: as in `conv2d`.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [N, O, D', H', W'] or [O, D', H', W'] of the input's dtype.

    Raises:
        TypeError: as `linear`.
        ValueError: as `conv2d`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x, w = torch.ones(2, 3, 4, 4, 4), torch.ones(5, 3, 2, 2, 2)
        >>> conv3d(x, w, precision=Precision(output="e4m3fn")).shape
        torch.Size([2, 5, 3, 3, 3])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    return _convolve(
        conv3d,
        3,
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        precision,
        generator,
        seed,
    )
