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
from torch.autograd.function import once_differentiable

from ..arithmetic import fits, refuse_compiled_transforms
from ..precision import Precision
from ..random import as_seed, split_seed
from ..rounding import Accumulator, Rounding
from ._parts import isolated, plain, product, rounded

# Terms outside are too large or too small for the kernels' exact products. To a format
# whose values lie well inside, such a term is only huge or only a sign.
_SMALLEST_TERM, _LARGEST_TERM = 2.0**-960, 2.0**989
_SMALLEST_QUANTUM, _LARGEST_EXPONENT = -900, 900
_FIRST_SEEDS = 16


def row_sums(
    terms: Tensor,  # [M, K], float64
    accumulator: Accumulator | None,
    seed: Tensor | None = None,
) -> Tensor:
    """Return the sum of every row, its terms in order.

    Args:
        terms: what to add.
        accumulator: of the additions; None adds in float64.
        seed: of a stochastic accumulator.

    Returns:
        float64 tensor [M].

    Raises:
        ValueError: from the kernels, for terms beyond [2^-960, 2^990] under
            accumulators whose values reach there.
        NotImplementedError: for accumulators of more than 51 significant bits.
    """
    if accumulator is None:
        return terms.sum(1)
    adder = plain(accumulator)
    if _is_ordinary(adder.rounding) and _is_ordinary(adder.within):
        size = terms.abs().clamp(_SMALLEST_TERM, _LARGEST_TERM)
        extreme = terms.isfinite() & (terms != 0)
        terms = torch.where(extreme, size.copysign(terms), terms)
    ones = terms.new_ones(1, terms.shape[1])
    return product(ones, terms.mT, adder, seed).squeeze(0)


def _is_ordinary(rounding: Rounding | None) -> bool:
    """Whether the format's values lie well inside the range of exact products."""
    if rounding is None:
        return True
    precision, emin, emax = rounding.code[:3]
    return emin - precision >= _SMALLEST_QUANTUM and emax <= _LARGEST_EXPONENT


def sum_over(
    x: Tensor,
    dims: tuple[int, ...],
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Return the sums over some dimensions, which are dropped, in row-major order."""
    kept = [dim for dim in range(x.dim()) if dim not in dims]
    shape = [x.shape[dim] for dim in kept]
    terms = math.prod([x.shape[dim] for dim in dims])
    rows = x.permute(*kept, *dims).reshape(math.prod(shape), terms)
    return row_sums(rows, accumulator, seed).reshape(shape)


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


def copied_dims(shape: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the dimensions of ``wanted`` along which broadcasting copies."""
    new = len(wanted) - len(shape)
    padded = (*(1,) * new, *shape)
    return tuple(
        dim for dim, size in enumerate(wanted) if padded[dim] != size or dim < new
    )


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
        _check_held("elementwise", precision.elementwise, dtype)

    def enter(self, x: Tensor) -> Tensor:
        """Return x in float64; its gradient is rounded to ``elementwise``."""
        return self._cross(x, torch.float64, None, self._precision.elementwise)

    def enter_weight(self, w: Tensor) -> Tensor:
        """Return fl_weight(w) in float64; its gradient is fl_grad_weight of it.

        Where ``weight`` has a block format, ``elementwise`` takes its place.
        """
        precision = self._precision
        _check_held("grad_weight", precision.grad_weight, self._dtype)
        return self._cross(w, torch.float64, precision.parameter, precision.grad_weight)

    def enter_bias(self, b: Tensor) -> Tensor:
        """Return b in float64; its gradient is rounded to ``grad_weight``."""
        _check_held("grad_weight", self._precision.grad_weight, self._dtype)
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
        node: Any = _Sum
        total: Tensor = node.apply(x, summed, accumulator, seed)
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
        node: Any = _Expand
        result: Tensor = node.apply(x, tuple(shape), accumulator, seed)
        return result

    def _cross(
        self,
        x: Tensor,
        dtype: torch.dtype,
        rounding: Rounding | None,
        backward: Rounding | None,
    ) -> Tensor:
        seed, backward_seed = self._pair(rounding, backward)
        node: Any = _Cross
        result: Tensor = node.apply(x, dtype, rounding, seed, backward, backward_seed)
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


def _check_held(field: str, rounding: Rounding | None, dtype: torch.dtype) -> None:
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
