"""Compressed gradients in DistributedDataParallel, by its communication hook."""

# Without `from __future__ import annotations`: DDP compares those of a hook with types.
from typing import Any

import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future, collect_all

from ._hook_state import CompressionState, TopKState
from ._parts import all_finite


@torch.no_grad()
def compression_hook(state: CompressionState, bucket: GradBucket) -> Future[Tensor]:
    """Replace the gradients of a bucket by the mean of what all ranks send of theirs.

    Args:
        state: what ``register_comm_hook`` got.
        bucket: of DDP.

    Returns:
        The future of the bucket's buffer.

    Raises:
        TypeError: if this is not called by DDP, or gradients are not float32 or
            float64.
        ValueError: if ranks differ in model or options, or a compressor refuses.
        RuntimeError: if another rank fails or the group's time-out passes.
    """
    if not isinstance(bucket, GradBucket):
        raise TypeError(
            "compression_hook is for DistributedDataParallel.register_comm_hook, "
            f"which calls it with a GradBucket, got {type(bucket).__name__}: "
            "parameters sharded by FSDP are not supported"
        )
    parameters = bucket.parameters()
    exchange = state._opened(parameters)
    if bucket.index() == 0:
        state._begin()
    gradients = bucket.gradients()
    scale = 1.0 if state.loss_scale is None else float(state.loss_scale())
    vectors = [gradient.flatten() / scale for gradient in gradients]
    finite = all_finite(vectors)
    if not finite:  # the payloads have the right sizes, and are not sent
        vectors = [torch.zeros_like(vector) for vector in vectors]
    sizes = [vector.numel() for vector in vectors]
    kept = [state._errors.get(p) for p in parameters]
    # DDP drops the mean of a parameter that no rank has used, and with it what would
    # be sent of its error.
    idle = [not bool(vector.any()) for vector in vectors]
    errors = [
        None if unused else error for error, unused in zip(kept, idle, strict=True)
    ]
    offsets = [state._offset(p) for p in parameters]
    if state.scope == "bucket":
        errors = [
            None if all(error is None for error in errors) else _joined(errors, vectors)
        ]
        vectors, offsets = [torch.cat(vectors)], offsets[:1]
    compressed = state.compression(
        vectors,
        errors,
        offsets,
        seed=state._seed,
        step=state.step,
        worker=exchange.rank,
    )
    if compressed.errors is not None:
        left = torch.cat(compressed.errors).split(sizes)
        for p, new, old, unused in zip(parameters, left, kept, idle, strict=True):
            state._pending[p] = new + old if unused and old is not None else new

    def written(means: list[Tensor] | None) -> bool:
        if means is None:
            bucket.buffer().fill_(torch.nan)
            return False
        parts = torch.cat(means).split(sizes)
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient)).mul_(scale)
        return True

    means = exchange.means(compressed.payloads, finite=finite)
    state._finished.append(exchange.after(means, written))
    everything = state._finished
    if not bucket.is_last():
        return everything[-1].then(lambda done: _result(done, bucket))
    state._finished = []
    exchange.stats.steps += 1

    def concluded(finished: Future[Any]) -> Tensor:
        state._keep(finished)
        return bucket.buffer()

    return collect_all(everything).then(concluded)


def topk_hook(state: TopKState, bucket: GradBucket) -> Future[Tensor]:
    """Do what `compression_hook` does.

    Args:
        state: what ``register_comm_hook`` got.
        bucket: of DDP.

    Returns:
        The future of the bucket's buffer.

    Raises:
        TypeError: as `compression_hook`.
        ValueError: likewise.
        RuntimeError: likewise.
    """
    return compression_hook(state, bucket)


def _result(done: Future[bool], bucket: GradBucket) -> Tensor:
    done.value()  # raises what failed
    return bucket.buffer()


def _joined(errors: list[Tensor | None], vectors: list[Tensor]) -> Tensor:
    known = zip(errors, vectors, strict=True)
    return torch.cat([torch.zeros_like(v) if e is None else e for e, v in known])
