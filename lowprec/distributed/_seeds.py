"""Seeds of the random numbers of compressors, by worker and step."""

from __future__ import annotations

import torch
from torch import Tensor

from ..random import philox_words

# Not used by roundings; lowprec.random itself has 2^32 - 1.
_PURPOSE_WORKER = 0xFFFFFFFE
_STEPS = 2**32


def worker_seeds(
    seed: Tensor, step: int, worker: int, count: int, offset: int = 0
) -> Tensor:
    """Return the seeds of ``count`` workers, the first numbered ``worker``.

    Contract:
        Worker i has words 2i and 2i + 1 of the Philox stream of ``seed`` with the step
        number in the third counter word. A vector that begins at another ``offset``
        than 0 has words 2 offset and 2 offset + 1 of the stream of that seed.

    Args:
        seed: 0-d int64.
        step: number of the step, modulo 2^32.
        worker: number of the first worker.
        count: number of workers.
        offset: linear index of the vector's first element.

    Returns:
        int64, [count], on the CPU.
    """
    first = torch.arange(2 * worker, 2 * (worker + count))
    seeds = _joined(first, seed.cpu(), step % _STEPS)
    if offset == 0:
        return seeds
    place = torch.arange(2 * offset, 2 * offset + 2).expand(count, 2)
    return _joined(place, seeds.unsqueeze(-1), 0).squeeze(-1)


def _joined(index: Tensor, seed: Tensor, step: int) -> Tensor:
    words = philox_words(index, seed, step=step, purpose=_PURPOSE_WORKER)
    return (words[..., 0::2] << 32) | words[..., 1::2]
