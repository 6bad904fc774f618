"""Fused operations: float64 inside, a rounding at every border, sums emulated.

An operation that the field ``elementwise`` of a `Precision` governs behaves like one
fused kernel. Tensors *enter* it exactly, float64 torch code between the borders
computes the value and, by autograd, the chain rule, and the result *leaves* it by one
rounding. Gradients cross the borders the other way and are rounded there. Additions of
many terms are the accumulators': `Wide.sum` adds forward and copies backward,
`Wide.expand` copies forward and adds backward. Code between the borders therefore never
lets torch sum, nor broadcast a tensor that needs a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import (
    WIDEST,
    Operands,
    applied,
    fits,
    refuse_compiled_transforms,
    sum_over,
    with_gradient_of,
)
from ..precision import Precision
from ..random import as_seed, split_seed
from ..rounding import Accumulator, Rounding
from ._once import once_differentiable
from ._parts import isolated, rounded
from ._sums import copied_dims, running_sums, segment_sums

_FIRST_SEEDS = 16


class _Cross(torch.autograd.Function):
    """Round, then change the dtype; the gradient likewise, by another rounding."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        dtype: torch.dtype,
        rounding: Rounding | None,
        seed: Tensor | None,
        backward: Rounding | None,
        backward_seed: Tensor | None,
    ) -> Tensor:
        with isolated(x):
            # Exact either way, as the carrier holds the format's values. A copy, since
            # an operand that were returned as it is could be changed in place.
            return rounded(x, rounding, seed).to(dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, _, _, ctx.rounding, seed = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (seed,) = ctx.saved_tensors
        with isolated(gradient):
            result = rounded(gradient, ctx.rounding, seed).to(ctx.dtype)
        return result, None, None, None, None, None


class _Sum(torch.autograd.Function):
    """Sum over dimensions; the gradient is copied."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        dims: tuple[int, ...],
        accumulator: Accumulator | None,
        seed: Tensor | None,
    ) -> Tensor:
        with isolated(x):
            return sum_over(x, dims, accumulator, seed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.dims, _, _ = inputs
        ctx.shape = x.shape

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        with isolated(gradient):
            for dim in sorted(ctx.dims):
                gradient = gradient.unsqueeze(dim)
            return gradient.expand(ctx.shape), None, None, None


class _Expand(torch.autograd.Function):
    """Copy along new or single dimensions; the gradient is summed over them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        shape: tuple[int, ...],
        accumulator: Accumulator | None,
        seed: Tensor | None,
    ) -> Tensor:
        with isolated(x):
            return x.expand(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.accumulator, seed = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (seed,) = ctx.saved_tensors
        with isolated(gradient):
            dims = copied_dims(ctx.shape, gradient.shape)
            total = sum_over(gradient, dims, ctx.accumulator, seed)
            return total.reshape(ctx.shape), None, None, None


class _Select(torch.autograd.Function):
    """A choice of elements; the gradient is summed over the uses of each element."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        chosen: Tensor,
        index: Tensor | None,
        accumulator: Accumulator | None,
        seed: Tensor | None,
        backward: Rounding | None,
        arriving_seed: Tensor | None,
        leaving_seed: Tensor | None,
    ) -> Tensor:
        with isolated(x):
            return chosen.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, index, ctx.accumulator, *seeds = inputs
        seed, ctx.rounding, arriving_seed, leaving_seed = seeds
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.save_for_backward(index, seed, arriving_seed, leaving_seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        index, seed, arriving_seed, leaving_seed = ctx.saved_tensors
        with isolated(gradient):
            terms = rounded(gradient, ctx.rounding, arriving_seed).to(torch.float64)
            if index is None:
                dims = copied_dims(ctx.shape, terms.shape)
                total = sum_over(terms, dims, ctx.accumulator, seed)
            else:
                terms, places = terms.reshape(-1), index.reshape(-1)
                size = math.prod(ctx.shape)
                total = segment_sums(terms, places, size, ctx.accumulator, seed)
            total = total.reshape(ctx.shape)
            result = rounded(total, ctx.rounding, leaving_seed).to(ctx.dtype)
        return result, *(None,) * 7


class _RunningSum(torch.autograd.Function):
    """Sums of all beginnings of rows; the gradient is the sum of all endings."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,  # [M, K]
        accumulator: Accumulator | None,
        seed: Tensor | None,
        backward: Accumulator | None,
        backward_seed: Tensor | None,
    ) -> Tensor:
        with isolated(x):
            return running_sums(x, accumulator, seed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, _, ctx.accumulator, seed = inputs
        ctx.save_for_backward(seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (seed,) = ctx.saved_tensors
        with isolated(gradient):
            result = running_sums(gradient, ctx.accumulator, seed, reverse=True)
        return result, None, None, None, None


class Wide:
    """The borders and sums of one call of a fused operation.

    Every border and every sum takes a pair of seeds, for its forward and its backward
    rounding, in the order in which the operation calls them: number k takes parts 2k
    and 2k + 1 of `lowprec.random.split_seed`. This order is part of the numerical
    contract of the operation. The call's own seed is drawn when something stochastic
    first needs it, so that otherwise torch's stream stays as it is.

    Args:
        precision: whose ``elementwise`` is not None.
        dtype: the carrier of the operands and results.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Raises:
        ValueError: if the carrier cannot hold the values of ``elementwise``.
    """

    def __init__(
        self,
        precision: Precision,
        dtype: torch.dtype,
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
    ) -> None:
        """Check that results can be returned in the carrier."""
        self._precision = precision
        self._dtype = dtype
        self._generator = generator
        self._given = seed
        self._number = 0
        self._seeds: tuple[Tensor, ...] = ()
        check_held("elementwise", precision.elementwise, dtype)

    def enter(self, x: Tensor) -> Tensor:
        """Return x in float64; its gradient is rounded to ``elementwise``."""
        return self._cross(x, torch.float64, None, self._precision.elementwise)

    def enter_weight(self, w: Tensor) -> Tensor:
        """Return fl_weight(w) in float64; its gradient is fl_grad_weight of it.

        Where ``weight`` has a block format, ``elementwise`` takes its place.
        """
        precision = self._precision
        check_held("grad_weight", precision.grad_weight, self._dtype)
        return self._cross(w, torch.float64, precision.parameter, precision.grad_weight)

    def enter_bias(self, b: Tensor) -> Tensor:
        """Return b in float64; its gradient is rounded to ``grad_weight``."""
        check_held("grad_weight", self._precision.grad_weight, self._dtype)
        return self._cross(b, torch.float64, None, self._precision.grad_weight)

    def leave(self, y: Tensor) -> Tensor:
        """Return fl_elementwise(y) in the carrier; its gradient is rounded too."""
        elementwise = self._precision.elementwise
        return self._cross(y, self._dtype, elementwise, elementwise)

    def sum(
        self, x: Tensor, dims: int | Sequence[int], keepdim: bool = False
    ) -> Tensor:
        """Return sums under ``accumulator``, terms in row-major order of ``dims``.

        An empty sequence of dimensions sums over none, unlike torch's.
        """
        chosen = (dims,) if isinstance(dims, int) else dims
        summed = tuple(sorted(dim % x.dim() for dim in chosen))
        accumulator = self._precision.accumulator
        seed, _ = self._pair(accumulator)
        total = applied(_Sum, x, summed, accumulator, seed)
        if keepdim:
            for dim in summed:
                total = total.unsqueeze(dim)
        return total

    def expand(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Return x broadcast to a shape; ``grad_accumulator`` sums its gradient."""
        if tuple(x.shape) == tuple(shape):
            return x
        accumulator = self._precision.backward_accumulator
        _, seed = self._pair(accumulator)
        result = applied(_Expand, x, tuple(shape), accumulator, seed)
        return result

    def running_sum(self, x: Tensor) -> Tensor:
        """Return the sums of all beginnings of the rows of x [M, K]."""
        accumulator = self._precision.accumulator
        backward = self._precision.backward_accumulator
        seed, backward_seed = self._pair(accumulator, backward)
        result = applied(_RunningSum, x, accumulator, seed, backward, backward_seed)
        return result

    def select(self, x: Tensor, chosen: Tensor, index: Tensor) -> Tensor:
        """Return ``chosen``, elements of x; ``grad_accumulator`` sums its gradient.

        Element i of ``chosen`` is element index[i] of x in row-major order, or a
        constant where the index is negative.
        """
        return self._select(x, chosen, index, None)

    def select_across(self, x: Tensor, chosen: Tensor, index: Tensor | None) -> Tensor:
        """Do the same in the carrier; both gradients are rounded to ``elementwise``.

        No index means that x was broadcast, which needs no sorting.
        """
        return self._select(x, chosen, index, self._precision.elementwise)

    def _select(
        self, x: Tensor, chosen: Tensor, index: Tensor | None, outside: Rounding | None
    ) -> Tensor:
        accumulator = self._precision.backward_accumulator
        _, seed = self._pair(accumulator)
        arriving, leaving = self._pair(outside)
        result = applied(
            _Select, x, chosen, index, accumulator, seed, outside, arriving, leaving
        )
        return result

    def leave_exactly(self, y: Tensor, operation: int, operands: Operands) -> Tensor:
        """Return a correctly rounded result in the carrier, with the gradient of y.

        Args:
            y: the value in float64.
            operation: of `lowprec.kernels.basic`.
            operands: tensors of y's shape.
        """
        elementwise = self._precision.elementwise
        if elementwise is None or elementwise.format.precision > WIDEST:
            return self.leave(y)
        seed, backward_seed = self._pair(elementwise)
        return with_gradient_of(
            y,
            operation,
            operands,
            self._dtype,
            elementwise,
            seed,
            elementwise,
            backward_seed,
        )

    def _cross(
        self,
        x: Tensor,
        dtype: torch.dtype,
        rounding: Rounding | None,
        backward: Rounding | None,
    ) -> Tensor:
        seed, backward_seed = self._pair(rounding, backward)
        result = applied(_Cross, x, dtype, rounding, seed, backward, backward_seed)
        return result

    def _pair(
        self, *roundings: Rounding | Accumulator | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the two seeds of the next border, or None where all is certain."""
        first = 2 * self._number
        self._number += 1
        if not any(each is not None and each.stochastic for each in roundings):
            return None, None
        if not self._seeds:
            self._given = as_seed(self._given, self._generator)
            self._generator = None
        if len(self._seeds) <= first:
            # Parts do not depend on how many there are.
            count = max(_FIRST_SEEDS, 2 * first)
            self._seeds = split_seed(as_seed(self._given), count)
        return self._seeds[first], self._seeds[first + 1]


def check_held(field: str, rounding: Rounding | None, dtype: torch.dtype) -> None:
    """Refuse a format whose values do not fit into the carrier.

    Raises:
        ValueError: saying what to do.
    """
    if rounding is None or fits(rounding.format, dtype):
        return
    name = str(dtype).removeprefix("torch.")
    advice = ": use float64 tensors" if dtype == torch.float32 else ""
    raise ValueError(
        f"{name} tensors cannot hold every value of {field}={rounding!r}{advice}"
    )


def wide_for(
    precision: Precision,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> Wide:
    """Return the borders of one call of a fused operation; see `Wide`.

    Raises:
        ValueError: as `Wide`, or if both ``generator`` and ``seed`` are given.
        NotImplementedError: while torch.compile traces a torch.func transform.
    """
    refuse_compiled_transforms("an operation with an emulated gradient")
    if seed is not None and generator is not None:
        raise ValueError("give either seed= or generator=, not both")
    return Wide(precision, dtype, generator, seed)
