"""`checkpoint`: activation checkpointing whose second forward is emulated likewise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ._emulation import Emulation, entered, innermost
from .random import replayed

__all__ = ["checkpoint"]


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function without keeping its activations; backward computes them again.

    Contract:
        As ``torch.utils.checkpoint.checkpoint`` without reentrance. The second forward
        runs under the `emulate` context, or inside the converted module, where the
        first one ran, although backward may run elsewhere. It rounds stochastically
        with the same seeds, whatever generators they come from, so gradients are those
        without checkpointing, bit for bit. `coverage` counts both forwards.

    Args:
        function: a module or any function of tensors.
        *args: its positional arguments.
        **kwargs: its keyword arguments; ``preserve_rng_state``, ``determinism_check``,
            ``debug`` and ``early_stop`` are those of torch.

    Returns:
        What the function returns.

    Raises:
        RuntimeError: in backward, if the context does not exist any more.

    Example:
        >>> import lowprec
        >>> layer, x = torch.nn.Linear(2, 3), torch.ones(4, 2)
        >>> with lowprec.emulate(lowprec.Precision(weight="e4m3fn")):
        ...     y = checkpoint(layer, x)
        >>> y.sum().backward()

    References:
        Chen et al. 2016, Training deep nets with sublinear memory cost.
    """
    emulation = innermost()

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        first, second = replayed()
        return first, _again(emulation, second)

    return torch.utils.checkpoint.checkpoint(
        function, *args, use_reentrant=False, context_fn=contexts, **kwargs
    )


@contextmanager
def _again(
    emulation: Emulation | None, seeds: AbstractContextManager[Any]
) -> Iterator[None]:
    owner = None if emulation is None else emulation.owner
    lent: AbstractContextManager[Any] = (
        nullcontext() if owner is None else owner.context()
    )
    with lent, entered(emulation), seeds:
        yield
