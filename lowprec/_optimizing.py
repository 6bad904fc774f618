"""Whether an optimizer is at work: its arithmetic is its own, not the model's."""

from __future__ import annotations

import functools
import sys
import threading
from types import FrameType
from typing import Any


class _Local(threading.local):
    """The frame in which ``Optimizer.step`` runs, and whether it is lowprec's."""

    step: FrameType | None = None
    own: bool = False


_local = _Local()


@functools.cache
def watch() -> None:
    """Follow the steps of all optimizers, by torch's public hooks."""
    from torch.optim.optimizer import (
        register_optimizer_step_post_hook,
        register_optimizer_step_pre_hook,
    )

    register_optimizer_step_pre_hook(_before)
    register_optimizer_step_post_hook(_after)


def _before(optimizer: Any, *_: Any) -> None:
    _local.step = sys._getframe(1)
    _local.own = type(optimizer).__module__.startswith("lowprec.")


def _after(*_: Any) -> None:
    _local.step = None


def in_step() -> bool:
    """Whether the step of an optimizer calls, in this thread."""
    step = _local.step
    if step is None:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame is step:
            return True
        frame = frame.f_back
    # The step ended by an error, which runs no hook.
    _local.step = None
    return False


def is_own() -> bool:
    """Whether that optimizer is one of lowprec, whose arithmetic is emulated."""
    return _local.own
