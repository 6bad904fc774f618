"""What a worker sends in place of a vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from ..rounding import Rounding


class PayloadKind(StrEnum):
    """How a payload stands for a vector.

    ``sparse``: some entries, by their indices. ``dense``: all entries. ``sign``: all
    signs, +1 or -1, and one magnitude.
    """

    SPARSE = "sparse"
    DENSE = "dense"
    SIGN = "sign"


@dataclass(frozen=True, kw_only=True, eq=False)
class Payload:
    r"""A compressed vector of one worker, or one of each of n workers.

    .. math::
        \tilde p_j = s\,v_i \text{ where } j = \mathrm{indices}_i,
        \text{ and } 0 \text{ elsewhere}

    Contract:
        The tensors are those that `Compressor.compress` made, without copies. Products
        with the scale, a power of two or times +-1, are exact in the carrier's normal
        range.

    Args:
        kind: a `PayloadKind`.
        size: d, number of entries of the vector.
        values: v in the carrier, [..., k] for sparse payloads, [..., d] for others.
        indices: int64, ascending, of the shape of ``values``; sparse payloads only.
        offsets: int64, [n + 1]: worker i has the entries from ``offsets[i]`` to
            ``offsets[i + 1]`` of the flat ``values`` and ``indices``. None where every
            worker has as many.
        scale: s, one for each worker: [...]; None means 1.
        rounding: of the values on the wire; None means that they need the carrier.

    Example:
        >>> payload = Payload(kind=PayloadKind.SPARSE, size=4,
        ...                   values=torch.tensor([5.0]), indices=torch.tensor([2]))
        >>> payload.dense()
        tensor([0., 0., 5., 0.])
    """

    kind: PayloadKind
    size: int
    values: Tensor
    indices: Tensor | None = None
    offsets: Tensor | None = None
    scale: Tensor | None = None
    rounding: Rounding | None = None

    def dense(self) -> Tensor:
        """Return what the receiver takes for the vector.

        Returns:
            [d], or [n, d] for n workers, in the carrier.
        """
        values = self.values
        if self.scale is not None:
            values = values * self.scale.unsqueeze(-1)
        if self.indices is None:
            return values
        if self.offsets is None:
            empty = values.new_zeros((*values.shape[:-1], self.size))
            return empty.scatter_(-1, self.indices, values)
        empty = values.new_zeros(self.offsets.numel() - 1, self.size)
        empty[_rows(self.offsets), self.indices] = values
        return empty

    def apply(self, function: Callable[[Tensor, Tensor], Tensor], p: Tensor) -> Tensor:
        """Replace the entries of p that were sent by a function of p and of them.

        Args:
            function: elementwise, of the entries of p and of what the receiver takes
                for them; it keeps p where that is 0.
            p: [d] or [n, d], as was compressed; changed in place by sparse payloads.

        Returns:
            p, or a new tensor.
        """
        if self.indices is None:
            return function(p, self.dense().to(p.dtype))
        index, values = self.indices, self.values
        if self.scale is not None:
            values = values * self.scale.unsqueeze(-1)
        values = values.to(p.dtype)
        if self.offsets is None:
            return p.scatter_(-1, index, function(p.gather(-1, index), values))
        rows = _rows(self.offsets)
        p[rows, index] = function(p[rows, index], values)
        return p

    def workers(self) -> list[Payload]:
        """Return the payload of each worker, in their order; views, no copies.

        Returns:
            n payloads of one vector each; one for the payload of a vector.
        """
        if self.offsets is not None and self.indices is not None:
            counts = self.offsets.diff().tolist()
            values = self.values.split(counts)
            indices: tuple[Tensor, ...] = self.indices.split(counts)
            return [
                replace(self, values=v, indices=i, offsets=None)
                for v, i in zip(values, indices, strict=True)
            ]
        if self.values.dim() == 1:
            return [self]
        return [
            replace(
                self,
                values=values,
                indices=None if self.indices is None else self.indices[row],
                scale=None if self.scale is None else self.scale[row],
            )
            for row, values in enumerate(self.values)
        ]


def _rows(offsets: Tensor) -> Tensor:
    """Return the number of the worker of each entry."""
    counts = offsets.diff()
    return torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts)
