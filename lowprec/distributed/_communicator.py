"""All-gathers of bytes with accounts, clear failures, and agreement between ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.futures import Future

from ..random import draw_seed

if TYPE_CHECKING:  # builds of torch without torch.distributed lack it
    from torch.distributed import ProcessGroup

_Result = TypeVar("_Result")
_DIGEST_BYTES = 32


@dataclass
class Traffic:
    """What one rank has exchanged, in bits, beside a dense exchange.

    Args:
        sent_bits: bits of the tensors this rank has handed to collectives.
        recv_bits: bits it has got from the other ranks.
        dense_bits: bits that it would have sent uncompressed: size times carrier bits
            a step, the uplink of a server; the ring all-reduce of n ranks sends
            and receives 2 (n - 1)/n times as many.
        steps: how many means were taken.
    """

    sent_bits: int = 0
    recv_bits: int = 0
    dense_bits: int = 0
    steps: int = 0

    @property
    def ratio(self) -> float:
        """Bits sent over those of a dense uplink; NaN before the first step."""
        return self.sent_bits / self.dense_bits if self.dense_bits else float("nan")


class Communicator:
    """One process group: gathers bytes of all ranks and counts them.

    Contract:
        Only ``torch.distributed`` moves data: ``all_gather`` of integer tensors, which
        gloo and NCCL have. Everything is returned in rank order. If a rank dies or
        hangs, the others raise within the time-out of the group.

    Args:
        group: a process group, None for the default one.

    Raises:
        RuntimeError: if ``torch.distributed`` has no process group.
        ValueError: if this rank is not in the group.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        """Find out the rank and the number of ranks."""
        if not (distributed.is_available() and distributed.is_initialized()):
            raise RuntimeError(
                "there is no process group: call torch.distributed.init_process_group "
                "first, and start one process per rank, for example by torchrun"
            )
        self.group = group
        self.rank = distributed.get_rank(group)
        self.size = distributed.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this rank is not in the process group it was given")
        nccl = "nccl" in distributed.get_backend(group)
        self.device = torch.device("cuda" if nccl else "cpu")
        self.stats = Traffic()

    def gather(self, sent: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, which have one shape.

        Args:
            sent: integer tensor.

        Raises:
            RuntimeError: if another rank fails or the group's time-out passes.
        """
        return self.gather_later(sent).wait()

    def gather_later(self, sent: Tensor) -> Future[list[Tensor]]:
        """Return the future of `gather`."""
        sent = sent.contiguous()
        bits = sent.numel() * sent.element_size() * 8
        self.stats.sent_bits += bits
        self.stats.recv_bits += (self.size - 1) * bits
        received = [torch.empty_like(sent) for _ in range(self.size)]
        if sent.numel() == 0:
            done: Future[list[Tensor]] = Future()
            done.set_result(received)
            return done
        try:
            work = distributed.all_gather(
                received, sent, group=self.group, async_op=True
            )
            future = work.get_future()
        except RuntimeError as error:
            raise self._failure(error) from error
        return self.after(future, lambda _: received)

    def after(
        self, future: Future[Any], work: Callable[[Any], _Result]
    ) -> Future[_Result]:
        """Return the future of ``work`` on what ``future`` brings."""

        def done(future: Future[Any]) -> _Result:
            try:
                value = future.value()
            except RuntimeError as error:
                raise self._failure(error) from error
            return work(value)

        return future.then(done)

    def _failure(self, error: RuntimeError) -> RuntimeError:
        if _FAILED in str(error):
            return error
        return RuntimeError(
            f"rank {self.rank} of {self.size}: {_FAILED}. Another rank died or hangs "
            "(the time-out is that of init_process_group): end all ranks and start "
            f"again from the last checkpoint. torch.distributed says: {error}"
        )

    def agree(self, facts: Mapping[str, str]) -> None:
        """Return if all ranks have the same facts.

        Every rank must call this with the same names. Only digests travel.

        Args:
            facts: descriptions by name.

        Raises:
            ValueError: on every rank, naming the facts that differ and the ranks.
            RuntimeError: as `gather`.
        """
        texts = [f"{len(facts)} {list(facts)}", *facts.values()]
        names = ["kind of set-up", *facts]
        # A rank with more or fewer facts must find out without gathering.
        whole = _digest("\0".join(texts))
        if self._same(whole.unsqueeze(0))[0] == []:
            return
        if self._same(_digest(texts[0]).unsqueeze(0))[0]:
            raise ValueError(
                f"the ranks call different things: rank {self.rank} sets up {names[1:]}"
            )
        others = self._same(torch.stack([_digest(text) for text in texts]))
        different = [
            f"{name} (rank {self.rank} has {_shortened(text)}, "
            f"{_ranks(ranks)} something else)"
            for name, text, ranks in zip(names, texts, others, strict=True)
            if ranks
        ]
        raise ValueError(
            "the ranks must train one model with the same options, but differ in "
            + "; ".join(different)
        )

    def everywhere(self, fact: bool) -> bool:
        """Return whether something is true on all ranks; the same on each.

        Args:
            fact: whether it is true on this rank.

        Raises:
            RuntimeError: as `gather`.
        """
        own = torch.tensor([fact], dtype=torch.uint8, device=self.device)
        return all(bool(one) for one in self._uncounted(own))

    def first_seed(self, seed: Tensor | None) -> Tensor:
        """Return rank 0's seed, which it draws if it has none.

        Args:
            seed: 0-d int64, or None; only rank 0's counts.
        """
        own = draw_seed() if seed is None else seed
        received = self._uncounted(own.reshape(1).to(self.device))
        return received[0].reshape(()).cpu()

    def _uncounted(self, sent: Tensor) -> list[Tensor]:
        """Gather what is no gradient: the accounts are those of gradients."""
        before = (self.stats.sent_bits, self.stats.recv_bits)
        received = self.gather(sent)
        self.stats.sent_bits, self.stats.recv_bits = before
        return received

    def _same(self, digests: Tensor) -> list[list[int]]:
        """Return, for every row, the ranks whose digest is not this one's."""
        digests = digests.to(self.device)
        received = self._uncounted(digests)
        return [
            [
                rank
                for rank, one in enumerate(received)
                if not torch.equal(one[row], own)
            ]
            for row, own in enumerate(digests)
        ]


_FAILED = "the exchange of gradients failed"
_SHOWN = 200


def _digest(text: str) -> Tensor:
    data = hashlib.sha256(text.encode()).digest()
    return torch.tensor(list(data), dtype=torch.uint8)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
