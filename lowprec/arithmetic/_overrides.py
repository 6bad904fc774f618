"""How function modes and tensor subclasses meet lowprec's own functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

P = ParamSpec("P")
R = TypeVar("R")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def overridable(function: Callable[P, R]) -> Callable[P, R]:
    """Let a mode or subclass see a call as one operation, as torch's functions do."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        operands = tuple(_tensors((*args, *kwargs.values())))
        if has_torch_function(operands):
            result: R = handle_torch_function(call, operands, *args, **kwargs)
            return result
        return function(*args, **kwargs)

    return call
