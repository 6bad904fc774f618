"""What replicas of one model on several ranks must have in common."""

from __future__ import annotations

import hashlib
import sys

import torch
from torch import Tensor

from ..distributed import Compressor, Exchange, Threshold
from ._base import Group

# Differs between ranks until the first step, for which rank 0's is taken.
_OWN = ("params", "rounding_seed")


def agree(exchange: Exchange, groups: list[Group], stochastic: bool) -> None:
    """Check that all ranks train one model with one seed; set rank 0's.

    Args:
        exchange: of the ranks.
        groups: of the optimizer.
        stochastic: whether it draws random numbers.

    Raises:
        ValueError: on all ranks, naming what differs.
        RuntimeError: if another rank fails or the group's time-out passes.
    """
    compressors: list[Compressor] = [group["compressor"] for group in groups]
    varying = any(isinstance(one, Threshold) for one in compressors)
    exchange.varying = exchange.varying or varying
    parameters: list[list[Tensor]] = [group["params"] for group in groups]
    shapes = [[(tuple(p.shape), str(p.dtype)) for p in group] for group in parameters]
    options = [
        {key: value for key, value in sorted(group.items()) if key not in _OWN}
        for group in groups
    ]
    exchange.agree(
        {
            "shapes of parameters": repr(shapes),
            "options of the optimizer": repr(options),
            "indices": exchange.indices.value,
            "initial weights": _digest([p for group in parameters for p in group]),
        }
    )
    if stochastic:
        known = groups[0]["rounding_seed"]
        own = None if known is None else torch.tensor(known)
        seed = int(exchange.first_seed(own))
        for group in groups:
            group["rounding_seed"] = seed


def refuse_sharded(parameter: Tensor) -> None:
    """Refuse parameters of which this rank has a part only.

    Raises:
        NotImplementedError: saying what to use instead.
    """
    # Imported by whoever made one; an import here would slow down everybody.
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is not None and isinstance(parameter, tensors.DTensor):
        raise NotImplementedError(
            "SparsAMS selects entries of whole gradients, and a parameter is a DTensor "
            "(FSDP2 or tensor parallelism), of which this rank has a shard: keep whole "
            "replicas, with process_group= or with DistributedDataParallel and "
            "lowprec.distributed.compression_hook"
        )


def _digest(parameters: list[Tensor]) -> str:
    total = hashlib.sha256()
    for p in parameters:
        total.update(p.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
