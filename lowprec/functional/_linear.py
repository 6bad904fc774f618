"""`lowprec.functional.linear`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..arithmetic import applied, check_carrier
from ..precision import Precision, as_precision
from ._once import once_differentiable
from ._parts import (
    add_bias,
    check_bias,
    check_same,
    column_sums,
    factor,
    factor_product,
    isolated,
    rounded,
    rounded_once,
    seed_for,
    split,
)


class _Linear(torch.autograd.Function):
    """y = x W^T + b for operands that are rounded already, or in blocks here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,  # [M, K]
        weight: Tensor,  # [N, K]
        bias: Tensor | None,  # [N]
        precision: Precision,
        seed: Tensor | None,
    ) -> Tensor:
        with isolated(input):
            seeds, accumulator = split(seed), precision.accumulator
            if accumulator is None and not precision.blocked:
                total = torch.nn.functional.linear(input, weight, bias)
            else:
                x = factor(input, precision.input, -1, seeds.input)
                w = factor(weight, precision.weight, -1, seeds.weight)
                total = factor_product(x, w.mT, accumulator, seed)
                if bias is not None:
                    total = add_bias(total, bias, accumulator, seeds.bias)
            return rounded(total, precision.output, seeds.output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.precision, seed = inputs
        ctx.save_for_backward(input, weight, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        input, weight, seed = ctx.saved_tensors
        precision = ctx.precision
        accumulator = precision.backward_accumulator
        grad_input = grad_weight = grad_bias = None
        with isolated(input):
            seeds = split(seed)
            grad = rounded_once(grad_output, precision.grad_output, seeds.grad_output)
            if ctx.needs_input_grad[0]:
                g = factor(grad, precision.grad_output, -1, seeds.grad_output)
                w = factor(weight, precision.weight, 0, seeds.weight, again=True)
                total = factor_product(g, w, accumulator, seeds.grad_input_sum)
                grad_input = rounded(total, precision.grad_input, seeds.grad_input)
            if ctx.needs_input_grad[1]:
                g = factor(
                    grad, precision.grad_output, 0, seeds.grad_output, again=True
                )
                x = factor(input, precision.input, 0, seeds.input, again=True)
                total = factor_product(g.mT, x, accumulator, seeds.grad_weight_sum)
                grad_weight = rounded(total, precision.grad_weight, seeds.grad_weight)
            if ctx.needs_input_grad[2]:
                total = column_sums(grad, accumulator, seeds.grad_bias_sum)
                grad_bias = rounded(total, precision.grad_weight, seeds.grad_bias)
        return grad_input, grad_weight, grad_bias, None, None


def _check_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_carrier(input, "input")
    check_same("weight", weight, input, "input")
    if input.dim() == 0 or weight.dim() != 2 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"cannot apply weight {tuple(weight.shape)} to input {tuple(input.shape)}: "
            "input must be [..., K] and weight [N, K]"
        )
    check_bias(bias, input, weight.shape[0], "row of weight")


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Apply a linear map in emulated arithmetic, forward and backward.

    With x' = fl_input(x), W' = fl_weight(W), dy' = fl_grad_output(dy) and sums under
    ``accumulator`` (forward) and ``grad_accumulator`` (backward):
    y = fl_output(fl_acc(acc(x' W'^T) + b)), dx = fl_grad_input(acc(dy' W')),
    dW = fl_grad_weight(acc(dy'^T x')), db = fl_grad_weight(acc(1^T dy')).

    Contract:
        The operands are rounded once and the rounded ones are kept for backward; to
        block formats they are rounded for each product, see `Precision`. The bias is
        used as it is and added to the finished sum by one more correctly rounded
        addition of the accumulator (whatever its order; two negative zeros give +0).
        dW and db are summed by the accumulator over all batch positions in row-major
        order; db has no products, so none are rounded. Rounding has derivative one.
        Where an accumulator is None the carrier's own torch product is used, with
        autocast off. Results depend on the inputs, the seed and nothing else.
        Autograd's own additions, where a tensor is used more than once, are those of
        the carrier.

    Args:
        input: float32 or float64 tensor [..., K].
        weight: tensor [N, K] of the same dtype.
        bias: tensor [N] of the same dtype, or None.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [..., N] of the input's dtype.

    Raises:
        TypeError: if the tensors are not float32 or float64 of one dtype, or
            ``precision`` is not a `Precision`.
        ValueError: if shapes do not match, or the carrier cannot hold the values.
        NotImplementedError: for accumulators of more than 51 significant bits.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x, w = torch.tensor([[256.0, 1.0]]), torch.ones(1, 2, requires_grad=True)
        >>> y = linear(x, w, precision=Precision(accumulator="bfloat16"))
        >>> y.item()
        256.0
        >>> y.backward()
        >>> w.grad
        tensor([[256.,   1.]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    operands = (input, weight, bias)
    if has_torch_function(operands):
        return handle_torch_function(
            linear,
            operands,
            *operands,
            precision=precision,
            generator=generator,
            seed=seed,
        )
    precision = as_precision(precision)
    _check_linear(input, weight, bias)
    base = seed_for(precision, generator, seed)
    seeds = split(base)
    x = rounded_once(input, precision.input, seeds.input)
    w = rounded_once(weight, precision.weight, seeds.weight)
    rows = x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)
    result = applied(_Linear, rows, w, bias, precision, base)
    return result.reshape(*x.shape[:-1], weight.shape[0])
