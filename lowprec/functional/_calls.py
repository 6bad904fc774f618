"""What functions with many operands share: overrides, seeds of several steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..precision import Precision
from ..random import split_seed
from ._parts import Seeds, seed_for

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def overridable(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let tensor subclasses and function modes see calls, as torch's functions do."""

    @functools.wraps(function)
    def public(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        operands = (*_tensors(args), *_tensors(kwargs.values()))
        if has_torch_function(operands):
            overridden: _R = handle_torch_function(public, operands, *args, **kwargs)
            return overridden
        return function(*args, **kwargs)

    return public


def leaves_products(precision: Precision) -> bool:
    """Whether matrix products are torch's own, forward and backward."""
    roundings = (
        precision.input,
        precision.weight,
        precision.output,
        precision.grad_output,
        precision.grad_input,
        precision.grad_weight,
        precision.accumulator,
        precision.backward_accumulator,
    )
    return all(each is None for each in roundings)


class Steps:
    """The seeds of a function that consists of several products.

    The first takes the seed of the call as it is, so that a single product is that of
    `matmul` with this seed; the others take the parts of the seed behind those of
    `Seeds`, in the order in which they are computed. This order is part of the
    numerical contract.

    Args:
        precision: of the products.
        generator: source of the seed, from which is drawn only if a product rounds
            stochastically.
        seed: the seed itself instead.
    """

    def __init__(
        self,
        precision: Precision,
        generator: torch.Generator | None,
        seed: int | Tensor | None,
    ) -> None:
        """Draw the seed."""
        self._base = seed_for(precision, generator, seed)
        self._number = 0

    def next(self) -> Tensor | None:
        """Return the seed of the next step; None means that nothing is stochastic."""
        self._number += 1
        if self._base is None or self._number == 1:
            return self._base
        part = len(Seeds._fields) + self._number - 2
        return split_seed(self._base, part + 1)[part]
