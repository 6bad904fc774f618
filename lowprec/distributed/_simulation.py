"""A server and its workers in one process: what the other forms must equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..random import as_seed
from ..rounding import RoundingLike
from ._collectives import mean_in_order
from ._communicator import Traffic
from ._compressor import Compressor
from ._parts import Compression, all_finite, starts
from ._payload import Payload
from ._wire import IndexCoding, Wire, index_coding


class WorkerSimulation:
    r"""The mean of what n workers send of their gradients.

    .. math::
        p_i = g_i + e_i, \quad \tilde g_i = Q(p_i), \quad
        e_i \leftarrow p_i - \tilde g_i, \qquad \bar g = \frac1n \sum_{i=1}^n \tilde g_i

    Contract:
        The sum runs in the order of the workers, as in `mean_in_order`. If a gradient
        is not finite, errors and step number stay as they are. ``stats`` counts all
        workers together: what they send to the server, and, as received, a model of d
        numbers in the carrier for each.

    Args:
        compressor: Q.
        workers: n.
        sizes: lengths of the tensors of which each is compressed alone (scope
            "tensor"); None compresses whole gradients (scope "global").
        error_feedback: whether there are errors e_i; otherwise p_i = g_i.
        error_format: rounding of the stored errors; None keeps them in the carrier.
        indices: how indices are counted: ``"packed"`` or ``"int32"``.
        seed: of the random numbers; None draws one if needed.

    Raises:
        TypeError: if ``compressor`` or ``error_format`` is none.
        ValueError: if an argument is out of range.

    Example:
        >>> from lowprec.distributed import TopK
        >>> server = WorkerSimulation(TopK(k=1), workers=2)
        >>> g = torch.tensor([[10.0, 0.5], [-10.0, 0.5]])
        >>> means = [server.mean(g) for _ in range(40)]
        >>> torch.stack(means).sum(0), server.error[0]  # what is not sent is kept
        (tensor([ 0.0000, 10.5000]), tensor([0.0000, 9.5000]))

    References:
        "Sparsified Distributed Adaptive Learning with Error Feedback", algorithm 1.
    """

    def __init__(
        self,
        compressor: Compressor,
        workers: int,
        *,
        sizes: Sequence[int] | None = None,
        error_feedback: bool = True,
        error_format: RoundingLike | torch.dtype | None = None,
        indices: IndexCoding | str = "packed",
        seed: int | Tensor | None = None,
    ) -> None:
        """Start without errors."""
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, got {workers}")
        self.compression = Compression(
            compressor, error_feedback=error_feedback, error_format=error_format
        )
        self.workers = workers
        self.sizes = None if sizes is None else list(sizes)
        self.indices = index_coding(indices)
        self.error: Tensor | None = None
        self.step = 0
        self.seed = as_seed(seed) if self.compression.stochastic else None
        self.stats = Traffic()

    @torch.no_grad()
    def mean(self, gradients: Tensor) -> Tensor | None:
        """Take one gradient of every worker and return the mean of what they send.

        Args:
            gradients: [n, d], float32 or float64.

        Returns:
            [d]; None if a gradient is not finite.

        Raises:
            TypeError: if it is no tensor of these dtypes.
            ValueError: if its shape is another, or a payload cannot be made of it.
        """
        sizes = self._sizes(gradients)
        if not all_finite([gradients]):
            return None
        error = self.error
        compressed = self.compression(
            gradients.split(sizes, dim=1),
            [None] * len(sizes) if error is None else error.split(sizes, dim=1),
            starts(sizes),
            seed=self.seed,
            step=self.step,
        )
        if compressed.errors is not None:
            self.error = torch.cat(compressed.errors, dim=1)
        self.step += 1
        sent = [payload.workers() for payload in compressed.payloads]
        for of_one_tensor in sent:
            self._count(of_one_tensor)
        self.stats.steps += 1
        return torch.cat([mean_in_order(of_one_tensor) for of_one_tensor in sent])

    def _sizes(self, gradients: Tensor) -> list[int]:
        if gradients.dim() != 2 or gradients.shape[0] != self.workers:
            raise ValueError(
                f"gradients must be [n, d] with n={self.workers} workers, got shape "
                f"{tuple(gradients.shape)}"
            )
        sizes = [gradients.shape[1]] if self.sizes is None else self.sizes
        if sum(sizes) != gradients.shape[1]:
            raise ValueError(
                f"gradients have {gradients.shape[1]} entries, sizes {sizes} make "
                f"{sum(sizes)}"
            )
        return sizes

    def _count(self, payloads: list[Payload]) -> None:
        wire = Wire.of(payloads[0], self.indices)
        sent = sum(wire.bytes(payload.values.numel()) for payload in payloads)
        dense = len(payloads) * wire.size * wire.dtype.itemsize
        self.stats.sent_bits += 8 * sent
        self.stats.dense_bits += 8 * dense
        self.stats.recv_bits += 8 * dense

    def state_dict(self) -> dict[str, Any]:
        """Return errors, step number and seed; not the accounts ``stats``."""
        return {"error": self.error, "step": self.step, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue, bit for bit, where `state_dict` was taken.

        Args:
            state: of a simulation with the same arguments.

        Raises:
            ValueError: if it has another number of workers.
        """
        error = state["error"]
        if error is not None and error.shape[0] != self.workers:
            raise ValueError(
                f"the state has errors of {error.shape[0]} workers, there are "
                f"{self.workers}: give each the mean of the old errors, "
                f"error.mean(0).expand({self.workers}, -1).clone()"
            )
        self.error = None if error is None else error.clone()
        self.step, self.seed = state["step"], state["seed"]
