"""Means of compressed gradients over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.futures import Future

from ._communicator import Communicator
from ._payload import Payload
from ._wire import IndexCoding, Wire, index_coding

if TYPE_CHECKING:  # builds of torch without torch.distributed lack it
    from torch.distributed import ProcessGroup

_NOT_FINITE = -1


def mean_in_order(payloads: Sequence[Payload]) -> Tensor:
    r"""Return the mean of payloads, added in their order.

    .. math::
        \bar g = \frac1n \big(((0 + \tilde g_1) + \tilde g_2) + \dots + \tilde g_n\big)

    Contract:
        One addition in the carrier for every entry sent, one division by n at the end:
        the same bits on every rank and device, as no payload has an index twice.

    Args:
        payloads: of one vector each, of one size and carrier.

    Returns:
        [d].

    Example:
        >>> from lowprec.distributed import TopK
        >>> top = TopK(k=1)
        >>> g = torch.tensor([[1.0, 3.0], [4.0, 0.0]])
        >>> mean_in_order(top.compress(g).workers())
        tensor([2.0000, 1.5000])
    """
    first = payloads[0]
    total = first.values.new_zeros(first.size)
    for payload in payloads:
        values = payload.values
        if payload.scale is not None:
            values = values * payload.scale
        if payload.indices is None:
            total += values
        else:
            total[payload.indices] += values
    return total.div_(len(payloads))


class Exchange(Communicator):
    """Gathers the payloads of all ranks and returns their mean.

    Contract:
        Every rank gets the same bits, those of `mean_in_order`. Payloads of one call
        travel in one message. ``stats`` counts the tensors that are handed to
        ``all_gather``.

    Args:
        group: a process group, None for the default one.
        indices: how indices travel: ``"packed"`` or ``"int32"``.
        varying: whether payloads of ranks may differ in their number of entries;
            the numbers are exchanged first then, and messages padded to the longest.

    Raises:
        RuntimeError: if there is no process group.
        ValueError: if ``indices`` is unknown, or this rank is not in the group.
    """

    def __init__(
        self,
        group: ProcessGroup | None = None,
        *,
        indices: IndexCoding | str = "packed",
        varying: bool = False,
    ) -> None:
        """Find out the rank and the number of ranks."""
        super().__init__(group)
        self.indices = index_coding(indices)
        self.varying = varying

    def mean(self, payload: Payload, *, finite: bool = True) -> Tensor | None:
        """Return the mean of the payloads of all ranks.

        Args:
            payload: what this rank sends.
            finite: False tells all ranks that this gradient is not finite; of the
                payload only kind, sizes and formats count then.

        Returns:
            [d]; None, on all ranks alike, if one of them is not finite.

        Raises:
            RuntimeError: if another rank fails or the group's time-out passes.
        """
        means = self.means([payload], finite=finite).wait()
        self.stats.steps += 1
        return None if means is None else means[0]

    def means(
        self, payloads: Sequence[Payload], *, finite: bool = True
    ) -> Future[list[Tensor] | None]:
        """Return the future of the means of several payloads of every rank.

        A step may have several calls: whoever makes them counts ``stats.steps``.

        Args:
            payloads: what this rank sends: as many, of the same kinds and sizes, as
                every other.
            finite: as `mean`; it holds for all of them.

        Raises:
            RuntimeError: as `mean`.
        """
        wires = [Wire.of(payload, self.indices) for payload in payloads]
        counts = [payload.values.numel() for payload in payloads]
        for payload in payloads:
            bits = 8 * payload.values.element_size()
            self.stats.dense_bits += payload.size * bits
        if self.varying:
            table = self._counts(counts, finite, payloads[0].values.device)
        else:
            table = [counts] * self.size
        if any(_NOT_FINITE in row for row in table):
            refused: Future[list[Tensor] | None] = Future()
            refused.set_result(None)
            return refused
        message = _joined(wires, payloads, counts, finite)
        lengths = [
            [wire.bytes(count) for wire, count in zip(wires, row, strict=True)]
            for row in table
        ]
        longest = max(map(sum, lengths))
        if message.numel() < longest:
            message = torch.cat([message, message.new_zeros(longest - message.numel())])

        def averaged(received: list[Tensor]) -> list[Tensor] | None:
            ranks: list[list[Payload]] = []
            for sent, row, parts in zip(received, table, lengths, strict=True):
                pieces = sent[: sum(parts)].split(parts)
                unpacked = [
                    wire.unpack(piece, count)
                    for wire, piece, count in zip(wires, pieces, row, strict=True)
                ]
                known = [payload for payload in unpacked if payload is not None]
                if len(known) < len(unpacked):
                    return None
                ranks.append(known)
            return [mean_in_order(of_one) for of_one in zip(*ranks, strict=True)]

        return self.after(self.gather_later(message), averaged)

    def _counts(
        self, counts: list[int], finite: bool, device: torch.device
    ) -> list[list[int]]:
        sent = counts if finite else [_NOT_FINITE] * len(counts)
        tensor = torch.tensor(sent, dtype=torch.int32, device=device)
        return [row.tolist() for row in self.gather(tensor)]


def _joined(
    wires: list[Wire], payloads: Sequence[Payload], counts: list[int], finite: bool
) -> Tensor:
    if finite:
        pairs = zip(wires, payloads, strict=True)
        return torch.cat([wire.pack(payload) for wire, payload in pairs])
    device = payloads[0].values.device
    lengths = zip(wires, counts, strict=True)
    return torch.cat([wire.refusal(count, device) for wire, count in lengths])
