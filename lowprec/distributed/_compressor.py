"""What every compressor is: a value object that turns vectors into payloads."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from fractions import Fraction

import torch
from torch import Tensor

from ..kernels import portable
from ..random import as_seed
from ._payload import Payload
from ._seeds import worker_seeds


class Compressor(ABC):
    r"""A map Q from vectors to payloads that are cheaper to send.

    Contract:
        Deterministic unless ``stochastic``; then a pure function of the vector, the
        seed, the step and the worker's number. One row of a matrix is one worker, and
        is compressed as it would be alone. Nothing is differentiated.

    Example:
        >>> from lowprec.distributed import TopK
        >>> payload = TopK(k=1).compress(torch.tensor([1.0, -4.0, 2.0]))
        >>> payload.dense()
        tensor([ 0., -4.,  0.])
    """

    @property
    def stochastic(self) -> bool:
        """Whether payloads depend on random numbers."""
        return False

    @property
    def unbiased(self) -> bool:
        """Whether E Q(p) = p."""
        return False

    @abstractmethod
    def contraction(self, size: int) -> float:
        r"""Return q: :math:`\|p - Q(p)\| \le q \|p\|` for every p of ``size`` entries.

        The root mean square over Q's own random numbers, where the class says so; at
        least 1 if Q does not contract.
        """

    def limited(self, size: int) -> Compressor:
        """Return the compressor for vectors that may have fewer than k entries."""
        return self

    def check_size(self, size: int) -> None:
        """Refuse vectors of ``size`` entries that cannot be compressed.

        Raises:
            ValueError: if k is larger.
        """
        return None

    def check_error_feedback(self, size: int) -> None:
        """Refuse what error feedback makes diverge.

        Raises:
            ValueError: if the error would grow without bound.
        """
        return None

    @torch.no_grad()
    def compress(
        self,
        p: Tensor,
        seed: int | Tensor | None = None,
        step: int = 0,
        worker: int = 0,
        offset: int = 0,
    ) -> Payload:
        """Compress a vector, or one of each of n workers.

        Args:
            p: [d] or [n, d], float32 or float64, finite.
            seed: 64-bit key of the random numbers; None draws one if needed.
            step: number of the step, modulo 2^32.
            worker: number of the first row's worker.
            offset: linear index of the first element, where p is part of a longer
                vector: parts have other random numbers then.

        Returns:
            The payload, of n workers for a matrix.

        Raises:
            TypeError: if p is no tensor of these dtypes.
            ValueError: if p has another shape, a NaN or an infinity, or k exceeds d.
        """
        check_vector(p)
        self.check_size(p.shape[-1])
        rows = p.detach().reshape(-1, p.shape[-1])
        seeds = None
        if self.stochastic:
            seeds = worker_seeds(as_seed(seed), step, worker, rows.shape[0], offset)
        payload = self._compress(rows, seeds)
        return payload if p.dim() == 2 else payload.workers()[0]

    @abstractmethod
    def _compress(self, rows: Tensor, seeds: Tensor | None) -> Payload:
        """Compress [n, d]; ``seeds``, [n], is for stochastic compressors only."""


def check_vector(p: Tensor) -> None:
    """Refuse what is no vector, or one of each worker.

    Raises:
        TypeError: if it is no float32 or float64 tensor.
        ValueError: if it has another shape than [d] or [n, d], or no entries.
    """
    if not isinstance(p, Tensor) or p.dtype not in portable.CARRIERS:
        given = p.dtype if isinstance(p, Tensor) else type(p).__name__
        raise TypeError(
            f"compressors take float32 or float64 tensors, got {given}: use p.float()"
        )
    if p.dim() not in (1, 2) or p.numel() == 0:
        raise ValueError(
            "compressors take a vector [d], or a matrix [n, d] with one row for each "
            f"worker, with entries, got shape {tuple(p.shape)}: use p.flatten()"
        )


def check_finite(largest: Tensor) -> None:
    """Refuse vectors whose largest magnitude is NaN or infinite.

    Raises:
        ValueError: saying what error feedback would make of it.
    """
    if not bool(largest.isfinite().all()):
        raise ValueError(
            "the vector to compress has a NaN or an infinity, which error feedback "
            "would keep for ever: skip the step"
        )


def share(density: float, size: int) -> int:
    """Return max(1, ceil(density d)), where 0.07 means seven hundredths."""
    return max(1, math.ceil(Fraction(repr(float(density))) * size))
