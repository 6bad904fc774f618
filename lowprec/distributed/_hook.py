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
        ValueError: if ranks differ in model or options.
        RuntimeError: if another rank fails or the group's time-out passes; or, from
            the future of the last bucket, if the compressor or the format of errors
            refuses values of this rank.
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
    if finite:
        try:
            payloads = state._compressed(parameters, vectors, exchange.rank)
        except ValueError as error:
            # Raised after the last bucket: until then the other ranks wait for this.
            finite, state._refusal = False, error
    if not finite:  # the payloads have the right sizes, and are not sent
        vectors = [torch.zeros_like(vector) for vector in vectors]
        payloads = state._compressed(parameters, vectors, exchange.rank, fresh=True)
    sizes = [vector.numel() for vector in vectors]

    def written(means: list[Tensor] | None) -> bool:
        if means is None:
            bucket.buffer().fill_(torch.nan)
            return False
        parts = torch.cat(means).split(sizes)
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient)).mul_(scale)
        return True

    means = exchange.means(payloads, finite=finite)
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
