"""The frame of a step: what every optimizer here does before and around its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class AbstractSteppingOptimizer(Optimizer):
    """An optimizer whose step changes everything or, if it fails, nothing."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's result, or None.

        Raises:
            RuntimeError: for sparse gradients, and where the optimizer says that it
                takes no step; nothing has changed then.
            TypeError: if a value of a group is of a wrong type; likewise.
            ValueError: if one is out of range, and for gradients that the optimizer
                says it refuses so; likewise.
        """
        self._check_ready()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    def _check_ready(self) -> None:
        """Refuse to step, before the closure is called."""

    @abstractmethod
    def _step(self) -> None:
        """Step along the gradients; if it raises, nothing has changed."""
