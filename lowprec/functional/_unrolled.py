"""Sums over sliding windows, as matrix products in one workspace of limited size.

The windows of a tensor are a view; a product needs them as a matrix, which repeats each
element once per kernel position. Only a part of that matrix exists at a time: outputs
are computed in boxes, never terms, so every sum keeps its order, and every box is told
the index of its outputs, so stochastic roundings do not depend on the boxes either.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..rounding import Accumulator
from ._parts import product

WORKSPACE = 32 * 2**20  # bytes of windows that are laid out at a time


@dataclass(frozen=True)
class Geometry:
    """Where the windows of a convolution lie; one entry per spatial dimension.

    Args:
        stride: distance of windows.
        padding: zeros before the first and after the last element.
        dilation: distance of the elements of a window.
        groups: groups of channels that are convolved separately.
    """

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


def zero_padded(x: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """Add zeros around the spatial dimensions; negative amounts cut elements off."""
    if not any(itertools.chain.from_iterable(padding)):
        return x
    # torch lists the last dimension first.
    amounts = list(itertools.chain.from_iterable(reversed(padding)))
    return torch.nn.functional.pad(x, amounts)


def _sliced(x: Tensor, parts: Sequence[slice]) -> Tensor:
    """Slice the last dimensions."""
    index: tuple[Any, ...] = (..., *parts)
    return x[index]


def _windows(
    x: Tensor,  # [N, C, *spatial]
    groups: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the windows [N, G, C/G, *positions, *kernel] as a view."""
    view = x.unflatten(1, (groups, x.shape[1] // groups))
    for axis, size in enumerate(kernel):
        reach = dilation[axis] * (size - 1) + 1
        view = view.unfold(3 + axis, reach, stride[axis])
    return _sliced(view, [slice(None, None, step) for step in dilation])


def _boxes(sizes: Sequence[int], budget: int) -> Iterator[tuple[slice, ...]]:
    """Cut an index space into boxes of at most ``budget`` (but one) elements.

    Every box is contiguous in row-major order.
    """
    inner, axis = 1, len(sizes)
    while axis > 0 and inner * sizes[axis - 1] <= budget:
        axis -= 1
        inner *= sizes[axis]
    rest = [slice(0, size) for size in sizes[axis:]]
    if axis == 0:
        yield tuple(rest)
        return
    length, size = max(1, budget // inner), sizes[axis - 1]
    for outer in itertools.product(*map(range, sizes[: axis - 1])):
        before = [slice(i, i + 1) for i in outer]
        for start in range(0, size, length):
            yield (*before, slice(start, min(start + length, size)), *rest)


def _row_major(box: Sequence[slice], sizes: Sequence[int]) -> int:
    index = 0
    for part, size in zip(box, sizes, strict=True):
        index = index * size + part.start
    return index


def _columns_product(
    left: Tensor,  # [*batch, M, K]
    right: Tensor,  # [*batch, K, N]
    across: int,
    accumulator: Accumulator,
    seed: Tensor | None,
    first: int,
) -> Tensor:
    """Multiply by some of ``across`` columns; ``first`` is the index of element 0."""
    if right.shape[-1] == across or not accumulator.stochastic:
        return product(left, right, accumulator, seed, first)
    # Only the outputs of one row have consecutive indices.
    lines = [
        product(line, right, accumulator, seed, first + row * across)
        for row, line in enumerate(left.split(1, dim=-2))
    ]
    return torch.cat(lines, dim=-2)


def _product(
    left: Tensor,  # [G, M, K]
    view: Tensor,  # [*batch, *columns, *terms], the last batch dimension being G
    batch: int,
    columns: int,
    matrix: Callable[[Tensor], Tensor],  # lays out a box as [*batch, K, columns]
    accumulator: Accumulator,
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    """Multiply each ``left`` by its windows: [*batch, M, *columns]."""
    sizes, rows = view.shape[: batch + columns], left.shape[1]
    across = math.prod(sizes[batch:])
    terms = math.prod(view.shape[batch + columns :])
    budget = WORKSPACE // (view.element_size() * max(1, terms))
    result = None
    for box in _boxes(sizes, max(1, budget)):
        first = offset + rows * across * _row_major(box[:batch], sizes[:batch])
        first += _row_major(box[batch:], sizes[batch:])
        # No name here keeps a matrix alive while the next one is made.
        piece = _columns_product(
            left[box[batch - 1]], matrix(view[box]), across, accumulator, seed, first
        )
        extents = [part.stop - part.start for part in box]
        piece = piece.reshape(*extents[:batch], rows, *extents[batch:])
        if extents == list(sizes):
            return piece
        if result is None:
            result = piece.new_empty((*sizes[:batch], rows, *sizes[batch:]))
        result[(*box[:batch], slice(None), *box[batch:])] = piece
    assert result is not None  # a space without elements is one box
    return result


def correlate(
    weight: Tensor,  # [G, M, C/G, *kernel]
    x: Tensor,  # [N, C, *spatial]
    stride: Sequence[int],
    dilation: Sequence[int],
    accumulator: Accumulator,
    seed: Tensor | None,
    offset: int = 0,
) -> Tensor:
    """Return [N, G M, *positions]: sums over the channels of a group and the kernel.

    Terms are in the row-major order of a row of ``weight``.
    """
    kernel, dims = weight.shape[3:], weight.dim() - 3
    view = _windows(x, weight.shape[0], kernel, stride, dilation)
    positions = range(3, 3 + dims)
    inside = range(3 + dims, 3 + 2 * dims)
    view = view.permute(0, 1, *positions, 2, *inside)

    def matrix(box: Tensor) -> Tensor:  # [n, g, *positions, C/G, *kernel]
        terms = math.prod(box.shape[2 + dims :])
        across = math.prod(box.shape[2 : 2 + dims])
        ordered = box.permute(0, 1, *range(2 + dims, 3 + 2 * dims), *range(2, 2 + dims))
        return ordered.reshape(*box.shape[:2], terms, across)

    total = _product(
        weight.flatten(2), view, 2, dims, matrix, accumulator, seed, offset
    )
    return total.flatten(1, 2)


def weight_gradient(
    grad: Tensor,  # [N, O, *positions]
    input: Tensor,  # [N, C, *spatial]
    kernel: Sequence[int],
    geometry: Geometry,
    accumulator: Accumulator,
    seed: Tensor | None,
) -> Tensor:
    """Return [O, C/G, *kernel]: sums over samples and positions, row-major."""
    groups, dims = geometry.groups, len(kernel)
    padded = zero_padded(input, geometry.padding)
    view = _windows(padded, groups, kernel, geometry.stride, geometry.dilation)
    positions = range(3, 3 + dims)
    inside = range(3 + dims, 3 + 2 * dims)
    view = view.permute(1, 2, *inside, 0, *positions)
    terms = math.prod(view.shape[2 + dims :])

    def matrix(box: Tensor) -> Tensor:  # [g, c, *kernel, N, *positions]
        across = math.prod(box.shape[1 : 2 + dims])
        return box.reshape(box.shape[0], across, terms).mT

    left = grad.movedim(1, 0).reshape(groups, grad.shape[1] // groups, terms)
    total = _product(left, view, 1, 1 + dims, matrix, accumulator, seed, 0)
    return total.flatten(0, 1)


@dataclass(frozen=True)
class _Phase:
    """The input elements r, r + stride, ... of one dimension, and what they add up.

    Args:
        elements: which elements of the input.
        taps: the kernel positions that meet them.
        step: distance of the outputs that two neighbouring taps belong to.
        padding: zeros to add to the outputs so that the first window starts there.
    """

    elements: slice
    count: int
    taps: slice
    step: int
    padding: tuple[int, int]


def _phases(
    size: int, positions: int, kernel: int, stride: int, before: int, dilation: int
) -> list[_Phase]:
    """Sort the elements of one dimension by their distance from a window's start."""
    common = math.gcd(stride, dilation)
    step = dilation // common
    result = []
    for first in range(min(stride, size)):
        meets = [
            k for k in range(kernel) if (first + before - dilation * k) % stride == 0
        ]
        count = len(range(first, size, stride))
        padding = (0, 0)
        if meets:
            # Output of the last tap, which is the lowest, at the first element.
            lowest = (first + before - dilation * meets[-1]) // stride
            end = lowest + count + (len(meets) - 1) * step
            padding = (-lowest, end - positions)
        start = meets[0] if meets else kernel
        result.append(
            _Phase(
                slice(first, None, stride),
                count,
                slice(start, None, stride // common),
                step,
                padding,
            )
        )
    return result


def input_gradient(
    grad: Tensor,  # [N, O, *positions]
    weight: Tensor,  # [O, C/G, *kernel]
    spatial: Sequence[int],
    geometry: Geometry,
    accumulator: Accumulator,
    seed: Tensor | None,
) -> Tensor:
    """Return [N, C, *spatial]: sums over output channels and positions, row-major.

    Elements whose distance from the windows' starts differs meet different kernel
    positions, so each phase of the stride is a product of its own.
    """
    groups, dims = geometry.groups, len(spatial)
    channels = weight.shape[1] * groups
    by_group = weight.unflatten(0, (groups, weight.shape[0] // groups)).transpose(1, 2)
    per_dimension = [
        _phases(
            spatial[i],
            grad.shape[2 + i],
            weight.shape[2 + i],
            geometry.stride[i],
            geometry.padding[i][0],
            geometry.dilation[i],
        )
        for i in range(dims)
    ]
    result, offset = None, 0
    for phases in itertools.product(*per_dimension):
        counts = [phase.count for phase in phases]
        taps = _sliced(by_group, [phase.taps for phase in phases])
        if 0 in taps.shape[3:]:  # between the windows: sums without terms
            nothing = grad.new_zeros((grad.shape[0], groups, 0, math.prod(counts)))
            none = taps.reshape(groups, taps.shape[1], 0)
            total = product(none, nothing, accumulator, seed)
            total = total.reshape(grad.shape[0], channels, *counts)
        else:
            total = correlate(
                # Later outputs are met by earlier kernel positions.
                taps.flip(list(range(3, 3 + dims))),
                zero_padded(grad, [phase.padding for phase in phases]),
                [1] * dims,
                [phase.step for phase in phases],
                accumulator,
                seed,
                offset,
            )
        offset += total.numel()
        if list(total.shape[2:]) == list(spatial):
            return total
        if result is None:
            result = total.new_empty((grad.shape[0], channels, *spatial))
        _sliced(result, [phase.elements for phase in phases]).copy_(total)
    assert result is not None
    return result
