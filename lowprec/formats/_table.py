"""Finite sets of numbers as tables: where rounding to nearest changes its mind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar, overload

__all__ = ["Computed", "Table"]

T = TypeVar("T")


class Computed(Sequence[T], Generic[T]):
    """Items that are computed when asked for: there may be very many.

    Args:
        count: how many.
        item: returns the one at a place from 0.
    """

    def __init__(self, count: int, item: Callable[[int], T]) -> None:
        """Remember how to compute."""
        self._places = range(count)
        self._item = item

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        """Return the item at a place, or a list of those in a slice."""
        places = self._places[place]
        if isinstance(places, range):
            return [self._item(one) for one in places]
        return self._item(places)


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

    values: Sequence[float]
    ties: Sequence[Fraction]
    upper: Sequence[bool]
    odd: Sequence[bool] | None
    infinite: str
