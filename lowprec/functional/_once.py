"""Backward functions whose own derivatives are refused, wherever they come from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Once(torch.autograd.Function):
    """A copy of a gradient that depends on other tensors, but by no known rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *_: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "trying to differentiate twice an operation with an emulated gradient, "
            "which has no second derivative; compute it outside of the emulation"
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to differentiate the gradients that a backward function computes.

    torch's decorator of this name overlooks what gradients owe to saved tensors, and
    its error is no function of any input: `torch.autograd.grad` passes it by, and
    nested `torch.func.grad` finds zeros. Here the result is linked to all of them.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: Any) -> Any:
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return results
        sources = [
            x
            for x in (*gradients, *ctx.saved_tensors)
            if isinstance(x, Tensor) and x.is_floating_point()
        ]
        several = results if isinstance(results, tuple) else (results,)
        node: Any = _Once
        linked = [None if x is None else node.apply(x, *sources) for x in several]
        return tuple(linked) if isinstance(results, tuple) else linked[0]

    return wrapper
