"""How function modes and tensor subclasses meet lowprec's own functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

P = ParamSpec("P")
R = TypeVar("R")


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among values and inside their lists and tuples, in order."""
    # No generator, since Dynamo traces this.
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(tensors_in(value))
    return found


def overridable(function: Callable[P, R]) -> Callable[P, R]:
    """Let a mode or subclass see a call as one operation, as torch's functions do."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        operands = tuple(tensors_in((*args, *kwargs.values())))
        if has_torch_function(operands):
            result: R = handle_torch_function(call, operands, *args, **kwargs)
            return result
        return function(*args, **kwargs)

    return call
