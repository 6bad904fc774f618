"""Compressors that send every entry in fewer bits: its sign, or a rounded value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .. import kernels
from ..rounding import Rounding, RoundingLike, RoundingMode, as_rounding
from ._compressor import Compressor, check_finite
from ._payload import Payload, PayloadKind

_NEAREST = (
    RoundingMode.NEAREST_EVEN,
    RoundingMode.NEAREST_AWAY,
    RoundingMode.NEAREST_ZERO,
)
_SINGLE = as_rounding("binary32")
# Powers of two whose inverses are normal float32 numbers too.
_SCALE_EXPONENTS = {torch.float32: 126, torch.float64: 1022}


@dataclass(frozen=True)
class Sign(Compressor):
    r"""Send the signs, and the mean magnitude.

    .. math::
        Q(p)_j = \frac{\|p\|_1}{d} \mathrm{sign}(p_j), \quad \mathrm{sign}(0) = +1,
        \qquad q^2 = 1 - \frac{\|p\|_1^2}{d \|p\|_2^2} \le 1 - 1/d

    Contract:
        Both zeros count as positive. The magnitudes are added in float64 in a fixed
        order, pairwise, whatever the number of threads; the mean is rounded to the
        carrier once.

    Example:
        >>> Sign().compress(torch.tensor([3.0, -1.0])).dense()
        tensor([ 2., -2.])

    References:
        Karimireddy et al. 2019, Error feedback fixes SignSGD.
    """

    def contraction(self, size: int) -> float:
        """Return the q of the worst vector, which has one entry other than 0."""
        return math.sqrt(1 - 1 / size)

    def _compress(self, rows: Tensor, seeds: Tensor | None) -> Payload:
        magnitudes = rows.abs()
        check_finite(magnitudes.amax())
        scale = _row_sums(magnitudes.to(torch.float64)) / rows.shape[-1]
        if rows.dtype == torch.float32:
            scale = kernels.round(scale, list(_SINGLE.code)).to(torch.float32)
        one = torch.ones((), dtype=rows.dtype, device=rows.device)
        return Payload(
            kind=PayloadKind.SIGN,
            size=rows.shape[-1],
            values=torch.where(rows < 0, -one, one),
            scale=scale,
        )


def _row_sums(rows: Tensor) -> Tensor:
    """Add the columns of [n, d] pairwise, in an order that depends on d alone."""
    while rows.shape[-1] > 1:
        half = rows.shape[-1] // 2
        pairs = rows[:, :half] + rows[:, half : 2 * half]
        rows = torch.cat([pairs, rows[:, 2 * half :]], -1)
    return rows.squeeze(-1)


@dataclass(frozen=True, init=False)
class Cast(Compressor):
    r"""Send every entry rounded to a format, optionally with one scale.

    .. math::
        Q(p) = s\,\mathrm{fl}(p / s), \qquad q = \frac{u}{1 + u}
        \text{ to nearest, } q = 2u = 2^{1-P} \text{ in other modes}, \quad u = 2^{-P}

    Contract:
        s is 1, or, if ``scaled``, the smallest power of two by which the largest
        magnitude is within the format (1 for a vector of zeros). Each entry is rounded
        once; entry j takes the random word j of its worker. q holds for entries in the
        format's normal range: those that underflow make it 1. What overflows is
        refused, unless the rounding saturates.

    Args:
        rounding: fl; a `Rounding` or its shorthand.
        scaled: whether there is a scale for each vector.

    Raises:
        TypeError: if ``rounding`` is none.
        ValueError: if its name is unknown.

    Example:
        >>> payload = Cast("e4m3fn", scaled=True).compress(torch.tensor([1e6, 1.0]))
        >>> payload.dense()
        tensor([983040.,      0.])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, theorem 2.2; Jeannerod
        and Rump 2018 for u/(1+u).
    """

    rounding: Rounding
    scaled: bool = False

    def __init__(
        self, rounding: RoundingLike | torch.dtype, scaled: bool = False
    ) -> None:
        """Normalise the rounding."""
        object.__setattr__(self, "rounding", as_rounding(rounding))
        object.__setattr__(self, "scaled", scaled)

    def __repr__(self) -> str:
        """Return one line that evaluates back, only what differs from the default."""
        return f"Cast({self.rounding!r}{', scaled=True' if self.scaled else ''})"

    @property
    def stochastic(self) -> bool:
        """Whether the rounding is stochastic."""
        return self.rounding.stochastic

    @property
    def unbiased(self) -> bool:
        """Whether E Q(p) = p, up to the number of random bits."""
        return self.rounding.mode is RoundingMode.STOCHASTIC

    @property
    def unit_roundoff(self) -> float:
        """Largest relative change of a number: 2^-P to nearest, else 2^(1-P)."""
        nearest = self.rounding.mode in _NEAREST
        return math.ldexp(1.0, (0 if nearest else 1) - self.rounding.format.precision)

    def contraction(self, size: int) -> float:
        """Return q, for every vector of entries in the normal range."""
        u = self.unit_roundoff
        return u / (1 + u) if self.rounding.mode in _NEAREST else u

    def _compress(self, rows: Tensor, seeds: Tensor | None) -> Payload:
        return self.compress_rows(rows, seeds)

    def compress_rows(self, rows: Tensor, seeds: Tensor | None) -> Payload:
        """Compress [n, d]; ``seeds`` has one for each row, if stochastic.

        Raises:
            ValueError: for entries that are not finite, or overflow.
        """
        tops = rows.abs().amax(-1)
        check_finite(tops)
        scale = self._scale(tops) if self.scaled else None
        rounded = rows if scale is None else _divided(rows, scale)
        rounded = self._rounded(rounded, seeds).to(rows.dtype)
        reached = rounded.abs().amax(-1)
        if scale is not None:
            reached = reached * scale
        if not bool(reached.isfinite().all()):
            raise ValueError(
                f"an entry of {tops.max().item():g} overflows in {self!r}, whose "
                f"largest value is {float(self.rounding.format.max):g}: use "
                "scaled=True or saturation='finite'"
            )
        return Payload(
            kind=PayloadKind.DENSE,
            size=rows.shape[-1],
            values=rounded,
            scale=scale,
            rounding=self.rounding,
        )

    def _scale(self, tops: Tensor) -> Tensor:
        """Return the smallest powers of two 2^e with tops <= max 2^e."""
        largest, exponent = math.frexp(float(self.rounding.format.max))
        significands, exponents = torch.frexp(tops)
        over = (significands > largest).to(exponents.dtype)
        bound = _SCALE_EXPONENTS[tops.dtype]
        chosen = (exponents - exponent + over).clamp(-bound, bound)
        scale = torch.ldexp(torch.ones_like(tops), chosen)
        return torch.where(tops > 0, scale, torch.ones_like(scale))

    def _rounded(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        code = list(self.rounding.code)
        if seeds is None:
            return cast(Tensor, kernels.round(x, code))
        rows = zip(x, seeds, strict=True)
        return torch.stack(
            [kernels.round_stochastic(row, code, seed, 0) for row, seed in rows]
        )


def _divided(rows: Tensor, scale: Tensor) -> Tensor:
    """Return rows / scale in float64, where float32 numbers lose nothing."""
    return rows.to(torch.float64) / scale.to(torch.float64).unsqueeze(-1)
