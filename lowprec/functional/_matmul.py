"""`lowprec.functional.matmul`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..arithmetic import applied, check_carrier, check_product_shapes
from ..precision import Precision, as_precision
from ._once import once_differentiable
from ._parts import (
    check_same,
    factor,
    factor_product,
    isolated,
    rounded,
    rounded_once,
    seed_for,
    split,
)


class _Matmul(torch.autograd.Function):
    """C = A B with broadcast batches, for operands rounded before or in blocks here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        a: Tensor,  # [..., M, K]
        b: Tensor,  # [..., K, N]
        precision: Precision,
        seed: Tensor | None,
    ) -> Tensor:
        with isolated(a):
            seeds = split(seed)
            left = factor(a, precision.input, -1, seeds.input)
            right = factor(b, precision.weight, -2, seeds.weight)
            total = factor_product(left, right, precision.accumulator, seed)
            return rounded(total, precision.output, seeds.output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, b, ctx.precision, seed = inputs
        ctx.save_for_backward(a, b, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        a, b, seed = ctx.saved_tensors
        precision = ctx.precision
        accumulator = precision.backward_accumulator
        grad_a = grad_b = None
        with isolated(a):
            seeds = split(seed)
            fl_grad = precision.grad_output
            grad = rounded_once(grad_output, fl_grad, seeds.grad_output)
            if ctx.needs_input_grad[0]:
                left, right = _fold(grad, b.mT, a.shape[:-2])
                g = factor(left, fl_grad, -1, seeds.grad_output)
                w = factor(right, precision.weight, -2, seeds.weight, again=True)
                total = factor_product(g, w, accumulator, seeds.grad_input_sum)
                total = total.reshape(a.shape)
                grad_a = rounded(total, precision.grad_input, seeds.grad_input)
            if ctx.needs_input_grad[1]:
                left, right = _fold(a.mT, grad, b.shape[:-2])
                x = factor(left, precision.input, -1, seeds.input, again=True)
                g = factor(right, fl_grad, -2, seeds.grad_output, again=True)
                total = factor_product(x, g, accumulator, seeds.grad_weight_sum)
                total = total.reshape(b.shape)
                grad_b = rounded(total, precision.grad_weight, seeds.grad_weight)
        return grad_a, grad_b, None, None


def _fold(
    left: Tensor,  # [..., P, S]
    right: Tensor,  # [..., S, Q]
    kept: torch.Size,
) -> tuple[Tensor, Tensor]:
    """Move the batch dimensions that ``kept`` broadcasts into the contraction.

    The accumulator then sums over them, batch positions in row-major order before S.
    """
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    padded = (1,) * (len(batch) - len(kept)) + tuple(kept)
    summed = [i for i, size in enumerate(padded) if size == 1 and batch[i] != 1]
    if not summed:
        return left, right
    left = left.expand(*batch, *left.shape[-2:])
    right = right.expand(*batch, *right.shape[-2:])
    rest = [i for i in range(len(batch)) if i not in summed]
    row, column = len(batch), len(batch) + 1
    left = left.permute(*rest, row, *summed, column)
    right = right.permute(*rest, *summed, row, column)
    return left.flatten(len(rest) + 1), right.flatten(len(rest), -2)


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Multiply matrices in emulated arithmetic, forward and backward.

    With A' = fl_input(A), B' = fl_weight(B), dC' = fl_grad_output(dC) and sums under
    ``accumulator`` (forward) and ``grad_accumulator`` (backward):
    C = fl_output(acc(A' B')), dA = fl_grad_input(acc(dC' B'^T)),
    dB = fl_grad_weight(acc(A'^T dC')).

    Contract:
        As `linear`. Shapes are those of ``torch.matmul``; where a batch dimension was
        broadcast, the accumulator sums the gradient over it, batch positions in
        row-major order outside the contracted dimension; blocks then run along both.

    Args:
        a: float32 or float64 tensor [..., M, K] or [K].
        b: tensor [..., K, N] or [K] of the same dtype.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [..., M, N] of the operands' dtype.

    Raises:
        TypeError: as `linear`.
        ValueError: as `linear`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> a = torch.ones(2, 3, 4, requires_grad=True)
        >>> matmul(a, torch.ones(4, 5), precision=Precision(output="e4m3fn")).shape
        torch.Size([2, 3, 5])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    if has_torch_function((a, b)):
        return handle_torch_function(
            matmul,
            (a, b),
            a,
            b,
            precision=precision,
            generator=generator,
            seed=seed,
        )
    precision = as_precision(precision)
    check_carrier(a, "a")
    check_same("b", b, a, "a")
    check_product_shapes(a, b)
    base = seed_for(precision, generator, seed)
    seeds = split(base)
    left = rounded_once(a, precision.input, seeds.input)
    right = rounded_once(b, precision.weight, seeds.weight)
    left = left.unsqueeze(0) if a.dim() == 1 else left
    right = right.unsqueeze(-1) if b.dim() == 1 else right
    result = applied(_Matmul, left, right, precision, base)
    if a.dim() == 1:
        result = result.squeeze(-2)
    return result if b.dim() != 1 else result.squeeze(-1)
