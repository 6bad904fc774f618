"""What every launch needs: the device, and whether kernels are interpreted."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

# Decided by TRITON_INTERPRET=1 when triton is imported.
INTERPRETED: bool = triton.knobs.runtime.interpret


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device current: Triton launches on the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def power_of_two(count: int) -> int:
    """The least power of two that is at least ``count`` and 16."""
    return max(16, 1 << (count - 1).bit_length())
