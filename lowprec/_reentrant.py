"""Torch's reentrant checkpoints: their second forward would be silent float32."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

# Each access makes a new method-wrapper; they are equal.
_ASKS: Any = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_FORWARD = CheckpointFunction.forward.__code__
# Between its frame and that of a mode: torch's check of the inputs, and the mode's own.
_NEAR = 8


def refuse(func: Any) -> None:
    """Refuse a call if it is the one by which a reentrant checkpoint begins.

    Torch asks there whether the inputs require gradients. The modes that see it were
    entered outside of the checkpoint; backward, which computes again, may have none.

    Raises:
        NotImplementedError: saying what to do instead.
    """
    if func != _ASKS:
        return
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_NEAR):
        if frame is None:
            return
        if frame.f_code is _FORWARD:
            raise NotImplementedError(
                "torch.utils.checkpoint with use_reentrant=True computes again outside "
                "of lowprec.emulate, where nothing is emulated: call "
                "lowprec.checkpoint, which is torch's with use_reentrant=False and "
                "enters the context again, or convert the model by lowprec.nn.convert_"
            )
        frame = frame.f_back
