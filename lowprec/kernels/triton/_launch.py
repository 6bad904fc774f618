"""What every launch needs: the device, and whether kernels are interpreted."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

# Decided by TRITON_INTERPRET=1 when triton is imported.
INTERPRETED: bool = triton.knobs.runtime.interpret
# Arguments for which Triton shall compile no variants (values of 1, multiples of 16).
SIZES = [
    *("count", "first_block", "offset", "rows", "columns", "terms", "block_size"),
    *("chunk", "a_batch", "b_batch", "tiles", "tiles_across"),
]


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device current: Triton launches on the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def power_of_two(count: int) -> int:
    """The least power of two that is at least ``count`` and 16."""
    return max(16, 1 << (count - 1).bit_length())
