"""One layer of a recurrent network in one direction, as one autograd node.

The node sees every step, so that the gradient of a weight that is used at every step
is one product over all of them. Sequences of different lengths lie behind each other
step by step, longest first, as in torch's ``PackedSequence``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..block_rounding import BlockRounding
from ..precision import Precision
from ..random import split_seed
from ..rounding import Rounding
from ._cells import Cell
from ._parts import (
    Factor,
    add_bias,
    column_sums,
    factor,
    factor_product,
    isolated,
    rounded,
    rounded_once,
    split,
)
from ._wide import check_held

_States = tuple[Tensor, ...]


class LayerSeeds(NamedTuple):
    """The seeds of a layer in one direction, in the order of `split_seed`."""

    own: Tensor | None
    recurrent: Tensor | None
    projection: Tensor | None
    steps: Tensor | None


class _StepSeeds(NamedTuple):
    """The seeds of one step, in the order of `split_seed`."""

    recurrent: Tensor | None
    projection: Tensor | None
    hidden: Tensor | None
    cell: Tensor | None
    grad_hidden: Tensor | None
    grad_cell: Tensor | None
    grad_own: Tensor | None
    grad_recurrent: Tensor | None
    grad_direct: Tensor | None
    grad_kept: Tensor | None


def parts(kind: Callable[..., Any], seed: Tensor | None, count: int) -> Any:
    """Return a tuple of seeds, or of None where nothing is stochastic."""
    return kind(*((None,) * count if seed is None else split_seed(seed, count)))


def _steps(seed: Tensor | None, count: int) -> list[_StepSeeds]:
    """Return the seeds of every step in time, and of the initial states."""
    fields = len(_StepSeeds._fields)
    seeds = [None] * (count + 1) if seed is None else split_seed(seed, count + 1)
    return [parts(_StepSeeds, one, fields) for one in seeds]


class Walk(NamedTuple):
    """In which order the steps are taken, and how many sequences reach each.

    Args:
        sizes: sequences per step, not increasing.
        backwards: from the last step to the first.
    """

    sizes: tuple[int, ...]
    backwards: bool

    def slices(self) -> list[tuple[int, slice]]:
        """Return the number of each step and its rows, in the order of the walk."""
        ends = itertools.accumulate(self.sizes)
        rows = [
            (number, slice(end - size, end))
            for number, (end, size) in enumerate(zip(ends, self.sizes, strict=True))
        ]
        return rows[::-1] if self.backwards else rows


def _product(
    x: Tensor,
    weight: Factor,
    bias: Tensor | None,
    precision: Precision,
    seed: Tensor | None,
) -> Tensor:
    """Return fl_output(fl_acc(acc(fl_input(x) W^T) + b)), as `linear`."""
    seeds, accumulator = split(seed), precision.accumulator
    x = rounded_once(x, precision.input, seeds.input)
    if accumulator is None and not precision.blocked:
        total = torch.nn.functional.linear(x, weight.values, bias)
    else:
        operand = factor(x, precision.input, -1, seeds.input)
        total = factor_product(operand, weight.mT, accumulator, seed)
        if bias is not None:
            total = add_bias(total, bias, accumulator, seeds.bias)
    return rounded(total, precision.output, seeds.output)


def _product_backward(
    grad: Tensor, weight: Factor, precision: Precision, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the incoming gradient, rounded once, and that of the operand."""
    seeds, accumulator = split(seed), precision.backward_accumulator
    grad = rounded_once(grad, precision.grad_output, seeds.grad_output)
    g = factor(grad, precision.grad_output, -1, seeds.grad_output)
    total = factor_product(g, weight, accumulator, seeds.grad_input_sum)
    return grad, rounded(total, precision.grad_input, seeds.grad_input)


class _Fused(NamedTuple):
    """A cell's elementwise part: wide inside, rounded at the borders."""

    cell: Cell
    rounding: Rounding | None

    def _wide(self, x: Tensor) -> Tensor:
        return x if self.rounding is None else x.double()

    def _narrow(self, x: Tensor, like: Tensor, seed: Tensor | None) -> Tensor:
        return rounded(x, self.rounding, seed).to(like.dtype)

    def forward(
        self, own: Tensor, recurrent: Tensor, states: _States, seeds: _StepSeeds
    ) -> _States:
        wide = [self._wide(x) for x in (own, recurrent, *states)]
        new = self.cell.forward(wide[0], wide[1], tuple(wide[2:]))
        keys = (seeds.hidden, seeds.cell)
        return tuple(
            self._narrow(x, own, key) for x, key in zip(new, keys, strict=False)
        )

    def backward(
        self,
        own: Tensor,
        recurrent: Tensor,
        states: _States,
        grads: _States,
        seeds: _StepSeeds,
    ) -> tuple[Tensor, Tensor, list[Any]]:
        """Return the gradients of own, recurrent and, where it uses them, states."""
        keys = (seeds.grad_hidden, seeds.grad_cell)
        arrived = [
            rounded(self._wide(x), self.rounding, key)
            for x, key in zip(grads, keys, strict=False)
        ]
        wide = [self._wide(x) for x in (own, recurrent, *states)]
        d_own, d_recurrent, d_states = self.cell.backward(
            wide[0], wide[1], tuple(wide[2:]), tuple(arrived)
        )
        keys = (seeds.grad_direct, seeds.grad_kept)
        return (
            self._narrow(d_own, own, seeds.grad_own),
            self._narrow(d_recurrent, own, seeds.grad_recurrent),
            [
                None if x is None else self._narrow(x, own, key)
                for x, key in zip(d_states, keys, strict=False)
            ],
        )


def _weights(
    weight: Tensor,
    projection: Tensor | None,
    precision: Precision,
    seeds: LayerSeeds,
    axis: int,
    *,
    again: bool = False,
) -> tuple[Factor, Factor | None]:
    """Return the weights as factors of products that sum over ``axis``."""
    fl, own = precision.weight, split(seeds.recurrent).weight
    first = factor(weight, fl, axis, own, again=again)
    if projection is None:
        return first, None
    own = split(seeds.projection).weight
    return first, factor(projection, fl, axis, own, again=again)


def _replaced(whole: Tensor, first: Tensor) -> Tensor:
    """Return ``whole`` with its first rows replaced."""
    rest = whole[first.shape[0] :]
    return torch.cat([first, rest]) if rest.shape[0] else first


class _Recurrence(torch.autograd.Function):
    """All steps of a layer; weights are rounded already, or in blocks here.

    The outputs after the final states are what backward needs: the preactivations,
    states and unprojected results of every step.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        own: Tensor,  # [P, G H]
        weight: Tensor,  # [G H, R]
        bias: Tensor | None,  # [G H]
        projection: Tensor | None,  # [R, H]
        hidden: Tensor,  # [N, R]
        kept: Tensor | None,  # [N, H], the cell state
        cell: Cell,
        walk: Walk,
        precision: Precision,
        *seeds: Tensor | None,
    ) -> tuple[Tensor, ...]:
        with isolated(own):
            keys = LayerSeeds(*seeds)
            steps = _steps(keys.steps, len(walk.sizes))
            w, w_projection = _weights(weight, projection, precision, keys, -1)
            fused = _Fused(cell, precision.elementwise)
            states = [hidden] if kept is None else [hidden, kept]
            pieces: dict[int, list[Tensor]] = {}
            for number, rows in walk.slices():
                key = steps[number]
                before = tuple(state[: walk.sizes[number]] for state in states)
                recurrent = _product(before[0], w, bias, precision, key.recurrent)
                new = fused.forward(own[rows], recurrent, before, key)
                result = new[0]
                if w_projection is not None:
                    result = _product(
                        new[0], w_projection, None, precision, key.projection
                    )
                states = [
                    _replaced(state, part)
                    for state, part in zip(states, (result, *new[1:]), strict=True)
                ]
                pieces[number] = [result, recurrent, *before]
                if projection is not None:
                    pieces[number].append(new[0])
            columns = zip(*(pieces[i] for i in range(len(pieces))), strict=True)
            result, *saved = (torch.cat(column) for column in columns)
            # Final states may be views of initial ones, which autograd forbids.
            return (result, *(state.clone() for state in states), *saved)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]
    ) -> None:
        own, weight, _, projection, _, _, *rest = inputs
        ctx.cell, ctx.walk, ctx.precision, *seeds = rest
        saved = outputs[1 + ctx.cell.states :]
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(own, weight, projection, *saved, *seeds)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        own, weight, projection, recurrent, *rest = ctx.saved_tensors
        cell, walk, precision = ctx.cell, ctx.walk, ctx.precision
        before, rest = rest[: cell.states], rest[cell.states :]
        seeds = LayerSeeds(*rest[-len(LayerSeeds._fields) :])
        with isolated(own):
            steps = _steps(seeds.steps, len(walk.sizes))
            w, w_projection = _weights(
                weight, projection, precision, seeds, 0, again=True
            )
            fused = _Fused(cell, precision.elementwise)
            grad_result, *grad_states = grads[: 1 + cell.states]
            pieces: dict[int, list[Tensor]] = {}
            for number, rows in reversed(walk.slices()):
                key, size = steps[number], walk.sizes[number]
                arriving = [state[:size] for state in grad_states]
                arriving[0] = arriving[0] + grad_result[rows]
                extra = []
                if w_projection is not None:
                    projected, arriving[0] = _product_backward(
                        arriving[0], w_projection, precision, key.projection
                    )
                    extra = [projected]
                states = tuple(state[rows] for state in before)
                d_own, d_recurrent, d_states = fused.backward(
                    own[rows], recurrent[rows], states, tuple(arriving), key
                )
                incoming, d_hidden = _product_backward(
                    d_recurrent, w, precision, key.recurrent
                )
                if d_states[0] is not None:
                    d_hidden = d_hidden + d_states[0]
                grad_states[0] = _replaced(grad_states[0], d_hidden)
                if cell.states == 2:
                    grad_states[1] = _replaced(grad_states[1], d_states[1])
                pieces[number] = [d_own, incoming, *extra]
            columns = zip(*(pieces[i] for i in range(len(pieces))), strict=True)
            grad_own, *incoming_all = (torch.cat(column) for column in columns)
            operands = [(before[0], seeds.recurrent)]
            if projection is not None:
                operands.append((rest[0], seeds.projection))
            weights: list[Tensor | None] = [None, None]
            for i, (x, seed) in enumerate(operands):
                if ctx.needs_input_grad[(1, 3)[i]]:
                    weights[i] = _weight_gradient(
                        incoming_all[i], x, walk, steps, i, precision, seed
                    )
            grad_bias = None
            if ctx.needs_input_grad[2]:
                part = split(seeds.recurrent)
                total = column_sums(
                    incoming_all[0], precision.backward_accumulator, part.grad_bias_sum
                )
                grad_bias = rounded(total, precision.grad_weight, part.grad_bias)
            key = steps[-1]
            grad_hidden = rounded(
                grad_states[0], precision.elementwise, key.grad_hidden
            )
            grad_kept = None
            if cell.states == 2:
                grad_kept = rounded(
                    grad_states[1], precision.elementwise, key.grad_cell
                )
        return (
            grad_own,
            weights[0],
            grad_bias,
            weights[1],
            grad_hidden,
            grad_kept,
            *(None,) * (3 + len(seeds)),
        )


def _weight_gradient(
    incoming: Tensor,  # [P, M]
    operand: Tensor,  # [P, K], not rounded yet
    walk: Walk,
    steps: list[_StepSeeds],
    which: int,
    precision: Precision,
    seed: Tensor | None,
) -> Tensor:
    """Return the gradient of a weight of all steps: one sum over them."""
    fl, part = precision.input, split(seed)
    if fl is None or not fl.stochastic or isinstance(fl, BlockRounding):
        operand = rounded_once(operand, fl, None)
    else:  # each step has its own random words
        slices = Walk(walk.sizes, False).slices()
        operand = torch.cat(
            [
                rounded(operand[rows], fl, split(steps[i][which]).input)
                for i, rows in slices
            ]
        )
    g = factor(incoming, precision.grad_output, 0, part.grad_output)
    x = factor(operand, fl, 0, part.input)
    accumulator = precision.backward_accumulator
    total = factor_product(g.mT, x, accumulator, part.grad_weight_sum)
    return rounded(total, precision.grad_weight, part.grad_weight)


def recurrence(
    own: Tensor,  # [P, G H]
    weight: Tensor,  # [G H, R]
    bias: Tensor | None,  # [G H]
    projection: Tensor | None,  # [R, H]
    states: _States,  # [N, R] and, for two states, [N, H]
    cell: Cell,
    walk: Walk,
    precision: Precision,
    seeds: LayerSeeds,
) -> tuple[Tensor, _States]:
    """Return the results [P, R] of all steps and the final states."""
    check_held("elementwise", precision.elementwise, own.dtype)
    w = rounded_once(weight, precision.weight, split(seeds.recurrent).weight)
    if projection is not None:
        projection = rounded_once(
            projection, precision.weight, split(seeds.projection).weight
        )
    kept = states[1] if cell.states == 2 else None
    node: Any = _Recurrence
    result, *others = node.apply(
        own, w, bias, projection, states[0], kept, cell, walk, precision, *seeds
    )
    return result, tuple(others[: cell.states])
