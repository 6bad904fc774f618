"""How often a leaf is used in one graph: autograd adds its gradients in the carrier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arithmetic import tensors_in

_USES = "lowprec uses"


def repeated(args: Any, kwargs: Any, result: Any) -> int:
    """Count the operands of a call that are leaves with an earlier use in their graph.

    The count is kept by the node that accumulates the leaf's gradient, which lives as
    long as a graph that leads to it, and starts anew after a backward pass.

    Args:
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        result: what it returned.

    Returns:
        The number of additions that autograd will do besides those of the nodes.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> y = x.exp()
        >>> repeated((x,), {}, y)
        0
        >>> repeated((x, y), {}, x * y)
        1
    """
    if not torch.is_grad_enabled():
        return 0
    operands = tensors_in((*args, *kwargs.values()))
    leaves = [x for x in operands if x.requires_grad and x.grad_fn is None]
    if not leaves or all(y.grad_fn is None for y in tensors_in([result])):
        return 0
    return sum(map(_use, leaves))


def _use(leaf: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        node = torch.autograd.graph.get_gradient_edge(leaf).node
    counts: Any = node.metadata
    if _USES not in counts:
        # Without a reference to the node, which would keep it alive.
        node.register_hook(lambda *_: counts.__setitem__(_USES, 0))
    known: int = counts.get(_USES, 0)
    counts[_USES] = known + 1
    return min(known, 1)
