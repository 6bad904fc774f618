"""Vectors compressed part by part, as the forms of distributed training share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..rounding import RoundingLike
from ._compressor import Compressor
from ._error_feedback import ErrorFeedback
from ._payload import Payload
from ._sparse import Threshold


@dataclass(frozen=True)
class Compressed:
    """Payloads of several vectors, and the errors that the next step begins with.

    Args:
        payloads: one for each vector.
        errors: of the vectors' shapes; None without error feedback.
    """

    payloads: list[Payload]
    errors: list[Tensor] | None


class Compression:
    """A compressor, with or without error feedback, for vectors of several sizes.

    Contract:
        Pure: what is compressed depends on the arguments of a call alone.

    Args:
        compressor: Q; vectors shorter than its k are sent whole.
        error_feedback: whether what is left out joins the next vector.
        error_format: rounding of the stored errors; None keeps them in the carrier.

    Raises:
        TypeError: if ``compressor`` or ``error_format`` is none.
        ValueError: if there is an ``error_format`` but no error feedback.
    """

    def __init__(
        self,
        compressor: Compressor,
        *,
        error_feedback: bool = True,
        error_format: RoundingLike | torch.dtype | None = None,
    ) -> None:
        """Check the arguments."""
        self._feedback = ErrorFeedback(compressor, error_format)
        if error_format is not None and not error_feedback:
            raise ValueError(
                f"error_format={error_format!r} is the rounding of stored errors, and "
                "error_feedback=False stores none: leave one of the two out"
            )
        self.compressor = compressor
        self.error_feedback = error_feedback

    def __repr__(self) -> str:
        """Return what all ranks must have in common."""
        if not self.error_feedback:
            return f"{self.compressor!r} without error feedback"
        stored = self._feedback.error_format
        errors = "" if stored is None else f", errors in {stored!r}"
        return f"{self.compressor!r} with error feedback{errors}"

    @property
    def stochastic(self) -> bool:
        """Whether payloads or errors depend on random numbers."""
        if self.error_feedback:
            return self._feedback.stochastic
        return self.compressor.stochastic

    @property
    def varying(self) -> bool:
        """Whether the number of entries depends on the vector."""
        return isinstance(self.compressor, Threshold)

    def __call__(
        self,
        vectors: Sequence[Tensor],
        errors: Sequence[Tensor | None],
        offsets: Sequence[int],
        *,
        seed: Tensor | None,
        step: int,
        worker: int = 0,
    ) -> Compressed:
        """Compress vectors, or matrices with a row for each worker.

        Args:
            vectors: finite.
            errors: of the step before, None for zeros.
            offsets: linear index of the first element of each vector.
            seed: of all random numbers; None if there are none.
            step: number of the step.
            worker: number of the first row's worker.
        """
        payloads, left = [], []
        for vector, error, offset in zip(vectors, errors, offsets, strict=True):
            compressor = self.compressor.limited(vector.shape[-1])
            if not self.error_feedback:
                payload = compressor.compress(vector, seed, step, worker, offset)
                payloads.append(payload)
                continue
            feedback = ErrorFeedback(compressor, self._feedback.error_format)
            payload, rest = feedback.step(vector, error, seed, step, worker, offset)
            payloads.append(payload)
            left.append(rest)
        return Compressed(payloads, left if self.error_feedback else None)


def starts(sizes: Sequence[int]) -> list[int]:
    """Return where each part begins."""
    return [0, *accumulate(sizes)][:-1]


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no tensor has a NaN or an infinity."""
    # A finite sum, which takes one pass, has finite terms only.
    return all(
        bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
        for tensor in tensors
    )
