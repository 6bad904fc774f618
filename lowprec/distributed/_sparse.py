"""Compressors that send some of the entries: the largest, random ones, large ones."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ..rounding import RoundingLike
from ._compressor import Compressor, check_finite, share
from ._dense import Cast
from ._payload import Payload, PayloadKind
from ._selection import largest, random_subsets


@dataclass(frozen=True)
class _Counted(Compressor):
    """A compressor that sends k entries, or a share of them."""

    k: int | None = None
    density: float | None = None

    def __post_init__(self) -> None:
        """Check that one of the two is given."""
        name = type(self).__name__
        if (self.k is None) == (self.density is None):
            raise ValueError(
                f"{name} needs exactly one of k, the number of entries to send, and "
                f"density, their share of all, got k={self.k} and "
                f"density={self.density}"
            )
        if self.k is not None:
            if isinstance(self.k, bool) or not isinstance(self.k, int):
                raise TypeError(
                    f"k must be an int, got {self.k!r} of type {type(self.k).__name__}"
                )
            if self.k < 1:
                raise ValueError(f"k must be at least 1, got {self.k}")
        elif not 0 < float(self.density or 0) <= 1:
            raise ValueError(
                f"density must be above 0 and at most 1, got {self.density}"
            )

    def __repr__(self) -> str:
        """Return one line that evaluates back, only what differs from the default."""
        return f"{type(self).__name__}({', '.join(self._parts())})"

    def _parts(self) -> list[str]:
        return [f"k={self.k}" if self.density is None else f"density={self.density}"]

    def count(self, size: int) -> int:
        """Return k for vectors of ``size`` entries.

        Raises:
            ValueError: if it is larger than ``size``.
        """
        if self.k is None:
            return share(float(self.density or 0), size)
        if self.k > size:
            raise ValueError(
                f"k={self.k} entries of a vector that has {size}: k must be from 1 to "
                f"{size}; density= is a share of any size"
            )
        return self.k

    def check_size(self, size: int) -> None:
        """Refuse vectors shorter than k.

        Raises:
            ValueError: if k is larger than ``size``.
        """
        self.count(size)

    def limited(self, size: int) -> Compressor:
        """Return the compressor with k at most ``size``."""
        return self if self.k is None else replace(self, k=min(self.k, size))

    def _compress(self, rows: Tensor, seeds: Tensor | None) -> Payload:
        magnitudes = rows.abs()
        check_finite(magnitudes.amax())
        indices = self._chosen(magnitudes, self.count(rows.shape[-1]), seeds)
        return self._sent(rows.gather(-1, indices), indices, rows.shape[-1], seeds)

    @abstractmethod
    def _chosen(self, magnitudes: Tensor, k: int, seeds: Tensor | None) -> Tensor: ...

    @abstractmethod
    def _sent(
        self,
        values: Tensor,
        indices: Tensor,
        size: int,
        seeds: Tensor | None,
    ) -> Payload: ...


@dataclass(frozen=True, init=False, repr=False)
class TopK(_Counted):
    r"""Send the k entries of largest magnitude, optionally rounded.

    .. math::
        Q(p)_j = Q_v(p_j) \text{ if } |p_j| \text{ is one of the k largest, else } 0,
        \qquad q^2 = 1 - (1 - u^2) k / d

    Contract:
        Exactly k entries, which may be zeros; of equal magnitudes those of lowest
        index. u is the unit roundoff of the values (2^-P to nearest, 2^(1-P) in other
        modes), 0 if they are not rounded; q is attained then if and only if all
        magnitudes are equal. Entry i of the payload takes the random word i.

    Args:
        k: number of entries, from 1 to d.
        density: their share of d instead: k = max(1, ceil(density d)).
        values: rounding of the values that are sent, or a `Cast` for one with a scale.

    Raises:
        TypeError: if ``k`` is no integer.
        ValueError: unless exactly one of ``k`` and ``density`` is given, in range.

    Example:
        >>> TopK(density=0.01).contraction(10000) ** 2
        0.99

    References:
        "Sparsified Distributed Adaptive Learning with Error Feedback", algorithm 1;
        Stich, Cordonnier and Jaggi 2018.
    """

    values: Cast | None = None

    def __init__(
        self,
        k: int | None = None,
        density: float | None = None,
        values: Cast | RoundingLike | torch.dtype | None = None,
    ) -> None:
        """Normalise the rounding of the values."""
        # Written out so that type checkers know the shorthands that fields never hold.
        set_field = object.__setattr__
        set_field(self, "k", k)
        set_field(self, "density", density)
        if values is not None and not isinstance(values, Cast):
            values = Cast(values)
        set_field(self, "values", values)
        self.__post_init__()

    def _parts(self) -> list[str]:
        cast = self.values
        if cast is None:
            return super()._parts()
        return [*super()._parts(), f"values={cast if cast.scaled else cast.rounding!r}"]

    @property
    def stochastic(self) -> bool:
        """Whether the values are rounded stochastically."""
        return self.values is not None and self.values.stochastic

    def contraction(self, size: int) -> float:
        """Return q, for every vector whose rounded values are in the normal range."""
        kept = self.count(size) / size
        u = 0.0 if self.values is None else self.values.unit_roundoff
        return math.sqrt(1 - (1 - u * u) * kept)

    def _chosen(self, magnitudes: Tensor, k: int, seeds: Tensor | None) -> Tensor:
        return largest(magnitudes, k)

    def _sent(
        self,
        values: Tensor,
        indices: Tensor,
        size: int,
        seeds: Tensor | None,
    ) -> Payload:
        if self.values is None:
            return Payload(
                kind=PayloadKind.SPARSE, size=size, values=values, indices=indices
            )
        rounded = self.values.compress_rows(values, seeds)
        return replace(rounded, kind=PayloadKind.SPARSE, size=size, indices=indices)


@dataclass(frozen=True, repr=False)
class RandomK(_Counted):
    r"""Send k entries chosen uniformly at random.

    .. math::
        E\|p - Q(p)\|^2 = (1 - k/d) \|p\|^2, \quad\text{or } (d/k - 1) \|p\|^2
        \text{ if unbiased, } Q(p)_j = (d/k) p_j

    Contract:
        The indices are those of `random_subsets`: every subset of k entries is equally
        likely. Every worker has its own. ``contraction`` is the root mean square; no
        q < 1 holds for all draws. The factor d/k is rounded to the carrier, and so are
        the products with it.

    Args:
        k: number of entries, from 1 to d.
        density: their share of d instead: k = max(1, ceil(density d)).
        unbiased: whether the values are multiplied by d/k; without error feedback.

    Raises:
        TypeError: if ``k`` is no integer.
        ValueError: unless exactly one of ``k`` and ``density`` is given, in range.

    Example:
        >>> RandomK(k=1, unbiased=True).contraction(5)
        2.0

    References:
        Stich, Cordonnier and Jaggi 2018; Wangni et al. 2018.
    """

    unbiased: bool = False

    def _parts(self) -> list[str]:
        return [*super()._parts(), *(["unbiased=True"] if self.unbiased else [])]

    @property
    def stochastic(self) -> bool:
        """Whether payloads depend on random numbers: always."""
        return True

    def contraction(self, size: int) -> float:
        """Return the root mean square of the relative error."""
        k = self.count(size)
        return math.sqrt(size / k - 1) if self.unbiased else math.sqrt(1 - k / size)

    def check_error_feedback(self, size: int) -> None:
        """Refuse unbiased values with d/k >= 2.

        Raises:
            ValueError: saying what to use instead.
        """
        k = self.count(size)
        if self.unbiased and size >= 2 * k:
            raise ValueError(
                f"unbiased random-k of k={k} of d={size} entries has errors of "
                f"{self.contraction(size):.3g} times the vector in the mean square, "
                "which error feedback amplifies without bound: use unbiased=False, or "
                f"error_feedback=False, or k above {size // 2}"
            )

    def _chosen(self, magnitudes: Tensor, k: int, seeds: Tensor | None) -> Tensor:
        size = magnitudes.shape[-1]
        subsets = random_subsets(size, k, cast(Tensor, seeds))
        return subsets.to(magnitudes.device)

    def _sent(
        self,
        values: Tensor,
        indices: Tensor,
        size: int,
        seeds: Tensor | None,
    ) -> Payload:
        if self.unbiased:
            values = values * (size / indices.shape[-1])
        return Payload(
            kind=PayloadKind.SPARSE, size=size, values=values, indices=indices
        )


@dataclass(frozen=True, kw_only=True)
class Threshold(Compressor):
    r"""Send the entries that are large enough, as many as there are.

    .. math::
        Q(p)_j = p_j \text{ if } 0 < |p_j| \ge \lambda \|p\|_\infty
        \text{ (relative) or } |p_j| \ge \tau \text{ (absolute), else } 0

    Contract:
        A relative threshold contracts:
        :math:`q^2 = (d-1)\lambda^2 / (1 + (d-1)\lambda^2)`. An absolute one does not
        (q = 1), but the errors of error feedback stay below tau in every entry. The
        product with lambda is rounded to the carrier once. Zeros are not sent. Payloads
        of several workers have ``offsets``.

    Args:
        relative: lambda, above 0 and at most 1.
        absolute: tau, positive and finite.

    Raises:
        ValueError: unless exactly one of them is given, in range.

    Example:
        >>> Threshold(relative=0.5).compress(torch.tensor([4.0, 1.0, -2.0])).dense()
        tensor([ 4.,  0., -2.])

    References:
        Dutta et al. 2020, On the discrepancy between the theoretical analysis and
        practical implementations of compressed communication.
    """

    relative: float | None = None
    absolute: float | None = None

    def __post_init__(self) -> None:
        """Check that one of the two is given."""
        if (self.relative is None) == (self.absolute is None):
            raise ValueError(
                "Threshold needs exactly one of relative, a share of the largest "
                f"magnitude, and absolute, got relative={self.relative} and "
                f"absolute={self.absolute}"
            )
        if self.relative is not None and not 0 < self.relative <= 1:
            raise ValueError(
                f"relative must be above 0 and at most 1, got {self.relative}"
            )
        if self.absolute is not None and not 0 < self.absolute < math.inf:
            raise ValueError(
                f"absolute must be positive and finite, got {self.absolute}"
            )

    def __repr__(self) -> str:
        """Return one line that evaluates back."""
        if self.absolute is None:
            return f"Threshold(relative={self.relative})"
        return f"Threshold(absolute={self.absolute})"

    def contraction(self, size: int) -> float:
        """Return q; 1 for an absolute threshold, which may keep nothing."""
        if self.relative is None:
            return 1.0
        rest = (size - 1) * self.relative**2
        return math.sqrt(rest / (1 + rest))

    def _compress(self, rows: Tensor, seeds: Tensor | None) -> Payload:
        magnitudes = rows.abs()
        tops = magnitudes.amax(-1, keepdim=True)
        check_finite(tops)
        if self.relative is None:
            kept = magnitudes >= float(self.absolute or 0)
        else:
            # Of a vector of zeros all entries are as large as the largest.
            kept = (magnitudes >= tops * self.relative) & (magnitudes > 0)
        indices = kept.nonzero()[:, 1]
        offsets = indices.new_zeros(rows.shape[0] + 1)
        torch.cumsum(kept.sum(-1), 0, out=offsets[1:])
        return Payload(
            kind=PayloadKind.SPARSE,
            size=rows.shape[-1],
            values=rows[kept],
            indices=indices,
            offsets=offsets,
        )
