"""Tensors inside the tuples, lists and mappings that modules take and return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return ``value`` with ``function`` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, function) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, function) for item in value)
    return value


def floating_tensors(value: Any) -> list[Tensor]:
    """Return the different floating-point tensors in ``value``, in order."""
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            found.setdefault(id(tensor), tensor)
        return tensor

    mapped(value, note)
    return list(found.values())


def converted(value: Any, dtype: torch.dtype) -> Any:
    """Return ``value`` with all floating-point tensors in ``dtype``."""
    return mapped(value, lambda x: x.to(dtype) if x.is_floating_point() else x)
