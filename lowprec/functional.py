"""Layers as functions, with emulated arithmetic in forward and backward.

Every product has three GEMMs (output, grad_input, grad_weight); a `Precision` says how
each rounds. One seed serves a call: the sum of the output takes it as it is (the words
are those of `lowprec.matmul` with that seed), everything else takes the numbered parts
of ``random.split_seed(seed, 11)`` (`Seeds`). Backward therefore needs no generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from .arithmetic import (
    check_carrier,
    check_product_shapes,
    gemm,
    refuse_compiled_transforms,
    round,
)
from .precision import Precision, as_precision
from .random import as_seed, split_seed
from .rounding import Accumulator, Order, Rounding

__all__ = ["Seeds", "linear", "matmul"]


class Seeds(NamedTuple):
    """The seed of each stochastic rounding of a call, in the order of its parts.

    This order is part of the numerical contract.
    """

    input: Tensor | None
    weight: Tensor | None
    output: Tensor | None
    bias: Tensor | None
    grad_output: Tensor | None
    grad_input_sum: Tensor | None
    grad_input: Tensor | None
    grad_weight_sum: Tensor | None
    grad_weight: Tensor | None
    grad_bias_sum: Tensor | None
    grad_bias: Tensor | None


_PARTS = 11


def _split(seed: Tensor | None) -> Seeds:
    return Seeds(*((None,) * _PARTS if seed is None else split_seed(seed, _PARTS)))


def _rounded(x: Tensor, rounding: Rounding | None, seed: Tensor | None) -> Tensor:
    if rounding is None:
        return x
    return round(x, rounding, seed=seed if rounding.stochastic else None)


def _product(
    a: Tensor,  # [..., M, K]
    b: Tensor,  # [..., K, N]
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    if accumulator is not None and not accumulator.stochastic:
        seed = None
    return gemm(a, b, accumulator, seed)


def _plain(accumulator: Accumulator) -> Accumulator:
    """Return the accumulator for terms that are no products."""
    return accumulator.replace(product="exact")


def _add_bias(
    total: Tensor,  # [M, N]
    bias: Tensor,  # [N]
    accumulator: Accumulator,
    seed: Tensor | None,
) -> Tensor:
    # One more addition of a recursive sum, whatever the order of the sum before it.
    adder = _plain(accumulator).replace(
        order=Order.SEQUENTIAL, block_size=None, within=None
    )
    terms = torch.stack(torch.broadcast_tensors(total, bias), dim=-1)  # [M, N, 2]
    ones = terms.new_ones(2, 1)
    result = _product(terms.reshape(total.numel(), 2), ones, adder, seed)
    return result.reshape(total.shape)


@contextmanager
def _isolated(x: Tensor) -> Iterator[None]:
    """Keep function modes and autocast away from the arithmetic of a node.

    Backward may run inside an `emulate` context, which would emulate the carrier's own
    products a second time, and autocast would compute them in half precision.
    """
    device = x.device.type
    with torch._C.DisableTorchFunction():
        if torch.amp.is_autocast_available(device):
            with torch.autocast(device, enabled=False):
                yield
        else:
            yield


class _Linear(torch.autograd.Function):
    """y = x W^T + b for operands that are rounded already."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,  # [M, K]
        weight: Tensor,  # [N, K]
        bias: Tensor | None,  # [N]
        precision: Precision,
        seed: Tensor | None,
    ) -> Tensor:
        with _isolated(input):
            seeds, accumulator = _split(seed), precision.accumulator
            if accumulator is None:
                total = torch.nn.functional.linear(input, weight, bias)
            else:
                total = _product(input, weight.mT, accumulator, seed)
                if bias is not None:
                    total = _add_bias(total, bias, accumulator, seeds.bias)
            return _rounded(total, precision.output, seeds.output)

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
        with _isolated(input):
            seeds = _split(seed)
            grad = _rounded(grad_output, precision.grad_output, seeds.grad_output)
            if ctx.needs_input_grad[0]:
                total = _product(grad, weight, accumulator, seeds.grad_input_sum)
                grad_input = _rounded(total, precision.grad_input, seeds.grad_input)
            if ctx.needs_input_grad[1]:
                total = _product(grad.mT, input, accumulator, seeds.grad_weight_sum)
                grad_weight = _rounded(total, precision.grad_weight, seeds.grad_weight)
            if ctx.needs_input_grad[2]:
                total = _column_sums(grad, accumulator, seeds.grad_bias_sum)
                grad_bias = _rounded(total, precision.grad_weight, seeds.grad_bias)
        return grad_input, grad_weight, grad_bias, None, None


def _column_sums(
    grad: Tensor,  # [M, N]
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    if accumulator is None:
        return grad.sum(0)
    ones = grad.new_ones(1, grad.shape[0])
    return _product(ones, grad, _plain(accumulator), seed).squeeze(0)


class _Matmul(torch.autograd.Function):
    """C = A B with broadcast batches, for operands that are rounded already."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        a: Tensor,  # [..., M, K]
        b: Tensor,  # [..., K, N]
        precision: Precision,
        seed: Tensor | None,
    ) -> Tensor:
        with _isolated(a):
            total = _product(a, b, precision.accumulator, seed)
            return _rounded(total, precision.output, _split(seed).output)

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
        with _isolated(a):
            seeds = _split(seed)
            grad = _rounded(grad_output, precision.grad_output, seeds.grad_output)
            if ctx.needs_input_grad[0]:
                left, right = _fold(grad, b.mT, a.shape[:-2])
                total = _product(
                    left, right, accumulator, seeds.grad_input_sum
                ).reshape(a.shape)
                grad_a = _rounded(total, precision.grad_input, seeds.grad_input)
            if ctx.needs_input_grad[1]:
                left, right = _fold(a.mT, grad, b.shape[:-2])
                total = _product(
                    left, right, accumulator, seeds.grad_weight_sum
                ).reshape(b.shape)
                grad_b = _rounded(total, precision.grad_weight, seeds.grad_weight)
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
    left = left.expand(*batch, *left.shape[-2:])
    right = right.expand(*batch, *right.shape[-2:])
    padded = (1,) * (len(batch) - len(kept)) + tuple(kept)
    summed = [i for i, size in enumerate(padded) if size == 1 and batch[i] != 1]
    if not summed:
        return left, right
    rest = [i for i in range(len(batch)) if i not in summed]
    row, column = len(batch), len(batch) + 1
    left = left.permute(*rest, row, *summed, column)
    right = right.permute(*rest, *summed, row, column)
    return left.flatten(len(rest) + 1), right.flatten(len(rest), -2)


def _seed_for(
    precision: Precision,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> Tensor | None:
    """Draw only if a GEMM rounds stochastically: else torch's stream stays as it is."""
    refuse_compiled_transforms("a product with an emulated gradient")
    gemms = (
        precision.input,
        precision.weight,
        precision.output,
        precision.grad_output,
        precision.grad_input,
        precision.grad_weight,
        precision.accumulator,
        precision.backward_accumulator,
    )
    stochastic = any(item is not None and item.stochastic for item in gemms)
    return as_seed(seed, generator) if stochastic else None


def _check_same(name: str, x: Tensor, other: Tensor, reference: str) -> None:
    check_carrier(x, name)
    if x.dtype != other.dtype:
        raise TypeError(
            f"{name} and {reference} must have the same dtype, got {x.dtype} and "
            f"{other.dtype}: convert one of them"
        )
    if x.device != other.device:
        raise ValueError(
            f"{name} and {reference} must be on the same device, got {x.device} and "
            f"{other.device}"
        )


def _check_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_carrier(input, "input")
    _check_same("weight", weight, input, "input")
    if input.dim() == 0 or weight.dim() != 2 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"cannot apply weight {tuple(weight.shape)} to input {tuple(input.shape)}: "
            "input must be [..., K] and weight [N, K]"
        )
    if bias is None:
        return
    _check_same("bias", bias, input, "input")
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape ({weight.shape[0]},), one element per row of "
            f"weight, got {tuple(bias.shape)}"
        )


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
        The operands are rounded once and the rounded ones are kept for backward. The
        bias is used as it is and added to the finished sum by one more correctly
        rounded addition of the accumulator (whatever its order; two negative zeros
        give +0). dW and db are summed by the accumulator over all batch positions in
        row-major order; db has no products, so none are rounded. Rounding has
        derivative one. Where an accumulator is None the carrier's own torch product
        is used, with autocast off. Results depend on the inputs, the seed and nothing
        else. Autograd's own additions, where a tensor is used more than once, are
        those of the carrier.

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
    base = _seed_for(precision, generator, seed)
    seeds = _split(base)
    x = _rounded(input, precision.input, seeds.input)
    w = _rounded(weight, precision.weight, seeds.weight)
    rows = x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)
    node: Any = _Linear
    result: Tensor = node.apply(rows, w, bias, precision, base)
    return result.reshape(*x.shape[:-1], weight.shape[0])


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
        row-major order outside the contracted dimension.

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
    _check_same("b", b, a, "a")
    check_product_shapes(a, b)
    base = _seed_for(precision, generator, seed)
    seeds = _split(base)
    left = _rounded(a, precision.input, seeds.input)
    right = _rounded(b, precision.weight, seeds.weight)
    left = left.unsqueeze(0) if a.dim() == 1 else left
    right = right.unsqueeze(-1) if b.dim() == 1 else right
    node: Any = _Matmul
    result: Tensor = node.apply(left, right, precision, base)
    if a.dim() == 1:
        result = result.squeeze(-2)
    return result if b.dim() != 1 else result.squeeze(-1)
