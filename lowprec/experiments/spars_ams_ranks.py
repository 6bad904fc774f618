"""The process group of `lowprec run spars-ams --distributed`."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta

from torch import distributed

__all__ = ["started"]

_TIMEOUT = timedelta(minutes=5)
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started() -> int:
    """Join the processes of torchrun, once, and return their number.

    Raises:
        ValueError: if torchrun has not started this process.
    """
    if not distributed.is_initialized():
        missing = [name for name in _VARIABLES if name not in os.environ]
        if missing:
            raise ValueError(
                "--distributed needs the processes of torchrun, and "
                f"{', '.join(missing)} is not set: torchrun --nproc-per-node 4 -m "
                "lowprec run spars-ams --distributed"
            )
        distributed.init_process_group("gloo", timeout=_TIMEOUT)
        atexit.register(_left)
    return distributed.get_world_size()


def _left() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
