"""The cheapest way to run an autograd function that transforms can see."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._round import transforms_active


@functools.cache
def _plain(node: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """Return the node's apply in the older style, which binds no signatures.

    torch.func needs ``setup_context``, and looks the signature of forward up at every
    call, which takes longer than a small tensor's arithmetic.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = node.forward(*args)
        node.setup_context(ctx, args, output)
        return output

    members = {
        "forward": staticmethod(forward),
        "backward": staticmethod(node.backward),
    }
    # Made by a call, because autograd names the node by the class when it is made.
    metaclass: Any = type(node)
    plain = metaclass(node.__name__, (torch.autograd.Function,), members)
    # Where no transform is active, Function.apply passes on to its base class.
    result: Callable[..., Tensor] = super(torch.autograd.Function, plain).apply
    return result


def refuse_tangents(*args: Any) -> None:
    """Refuse dual numbers, whose tangents would be lost.

    Raises:
        NotImplementedError: saying what to do instead.
    """
    for x in args:
        if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                "emulated operations have no forward-mode derivative (jvp): their "
                "arithmetic is defined for the backward pass, so use torch.func.vjp, "
                "jacrev or backward, or differentiate outside of the emulation"
            )


def has_dual_numbers() -> bool:
    """Whether a level of forward-mode differentiation is entered."""
    return getattr(forward_ad, "_current_level", 0) >= 0  # private to torch


def applied(node: type[torch.autograd.Function], *args: Any) -> Tensor:
    """Apply an autograd function with ``setup_context`` and one result.

    Args:
        node: the class; its forward may return a view of an operand only if nobody
            changes the result in place.
        args: what its forward takes.

    Returns:
        What ``node.apply`` would return.

    Raises:
        NotImplementedError: under forward-mode differentiation.
    """
    result: Tensor
    if torch.compiler.is_compiling():
        result = node.apply(*args)
    elif has_dual_numbers():
        refuse_tangents(*args)
        result = node.apply(*args)
    elif transforms_active():
        result = node.apply(*args)
    elif torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in args
    ):
        result = _plain(node)(*args)
    else:
        result = node.forward(*args)
    return result
