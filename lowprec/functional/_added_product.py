"""The node of a product to which a tensor is added, both of them scaled."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import mul
from ..precision import Precision
from ..random import split_seed
from ..rounding import Accumulator, Rounding
from ._once import once_differentiable
from ._parts import (
    Seeds,
    add_bias,
    column_sums,
    factor,
    factor_product,
    isolated,
    rounded,
    rounded_once,
    split,
)
from ._sums import copied_dims


def _scaled(
    x: Tensor, number: float, rounding: Rounding | None, seed: Tensor | None
) -> Tensor:
    """Return fl(number x); a number of one is no operation."""
    if number == 1:
        return x
    if rounding is None:
        return x * number
    return mul(x, number, rounding, seed=seed if rounding.stochastic else None)


def _scale_seeds(seed: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the seeds of alpha and beta, forward and backward: parts after `Seeds`."""
    first = len(Seeds._fields)
    return (None,) * 4 if seed is None else split_seed(seed, first + 4)[first:]


def _summed_to(
    grad: Tensor,  # [B, M, N]
    shape: torch.Size,
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Sum over the dimensions along which a tensor of this shape was copied."""
    dims = copied_dims(shape, grad.shape)
    if not dims:
        return grad
    rest = [dim for dim in range(grad.dim()) if dim not in dims]
    terms = math.prod([grad.shape[dim] for dim in dims])
    columns = math.prod([grad.shape[dim] for dim in rest])
    rows = grad.permute(*dims, *rest).reshape(terms, columns)
    return column_sums(rows, accumulator, seed).reshape(shape)


class _AddedProduct(torch.autograd.Function):
    """beta C + alpha A B for factors that are rounded already, or in blocks here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        a: Tensor,  # [B, M, K]
        b: Tensor,  # [B, K, N]
        added: Tensor | None,  # broadcasts to [B, M, N]
        beta: float,
        alpha: float,
        precision: Precision,
        seed: Tensor | None,
    ) -> Tensor:
        with isolated(a):
            seeds, accumulator = split(seed), precision.accumulator
            alpha_seed, beta_seed, *_ = _scale_seeds(seed)
            left = factor(a, precision.input, -1, seeds.input)
            right = factor(b, precision.weight, -2, seeds.weight)
            total = factor_product(left, right, accumulator, seed)
            total = _scaled(total, alpha, precision.elementwise, alpha_seed)
            if added is not None:
                term = added.expand(total.shape)
                term = _scaled(term, beta, precision.elementwise, beta_seed)
                total = add_bias(total, term, accumulator, seeds.bias)
            return rounded(total, precision.output, seeds.output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, b, added, ctx.beta, ctx.alpha, ctx.precision, seed = inputs
        ctx.shape = None if added is None else added.shape
        ctx.save_for_backward(a, b, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        a, b, seed = ctx.saved_tensors
        precision = ctx.precision
        elementwise = precision.elementwise
        accumulator = precision.backward_accumulator
        grad_a = grad_b = grad_added = None
        with isolated(a):
            seeds = split(seed)
            *_, alpha_seed, beta_seed = _scale_seeds(seed)
            fl_grad = precision.grad_output
            grad = rounded_once(grad_output, fl_grad, seeds.grad_output)
            inner = _scaled(grad, ctx.alpha, elementwise, alpha_seed)
            if ctx.needs_input_grad[0]:
                g = factor(inner, fl_grad, -1, seeds.grad_output)
                w = factor(b, precision.weight, -1, seeds.weight, again=True)
                total = factor_product(g, w.mT, accumulator, seeds.grad_input_sum)
                grad_a = rounded(total, precision.grad_input, seeds.grad_input)
            if ctx.needs_input_grad[1]:
                g = factor(inner, fl_grad, -2, seeds.grad_output, again=True)
                x = factor(a, precision.input, -2, seeds.input, again=True)
                total = factor_product(x.mT, g, accumulator, seeds.grad_weight_sum)
                grad_b = rounded(total, precision.grad_weight, seeds.grad_weight)
            if ctx.needs_input_grad[2]:
                total = _summed_to(grad, ctx.shape, accumulator, seeds.grad_bias_sum)
                total = _scaled(total, ctx.beta, elementwise, beta_seed)
                grad_added = rounded(total, precision.grad_weight, seeds.grad_bias)
        return grad_a, grad_b, grad_added, None, None, None, None


def added_product(
    a: Tensor,  # [B, M, K]
    b: Tensor,  # [B, K, N]
    added: Tensor | None,  # broadcasts to [B, M, N]
    *,
    precision: Precision,
    beta: float = 1,
    alpha: float = 1,
    seed: Tensor | None,
) -> Tensor:
    """Return fl_output(fl_acc(fl(alpha acc(A' B')) + fl(beta C))); see `addmm`."""
    seeds = split(seed)
    node: Any = _AddedProduct
    result: Tensor = node.apply(
        rounded_once(a, precision.input, seeds.input),
        rounded_once(b, precision.weight, seeds.weight),
        None if beta == 0 else added,
        beta,
        alpha,
        precision,
        seed,
    )
    return result
