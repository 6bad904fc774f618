"""Finite sets of numbers as tables: where rounding to nearest changes its mind."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """Numbers in ascending order and the ties between neighbours.

    Args:
        values: the N numbers; binary64 holds them.
        ties: N - 1 numbers; above ties[i], values[i + 1] is nearer than values[i].
        upper: N - 1 answers: whether the tie itself goes up, to the even neighbour
            where the set has even numbers.
        odd: N answers: whether the code is odd; None if codes have no such meaning.
        infinite: what infinity becomes: ``"end"``, the last number, or ``"nan"``.
    """

    values: tuple[float, ...]
    ties: tuple[Fraction, ...]
    upper: tuple[bool, ...]
    odd: tuple[bool, ...] | None
    infinite: str
