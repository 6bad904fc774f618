"""What pictures show of a set of numbers, whatever kind of format it belongs to."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

from ._exact import Real, floor_log2, power_of_two, simplest

if TYPE_CHECKING:
    from ._format import Format

__all__ = ["FormatLine", "Line", "TableLine"]

_MOST_MARKS, _MOST_POWERS = 600, 100


class Line(Protocol):
    """A set of numbers as pictures ask for it: exact, in ascending order.

    Args:
        title: what to call it.
        unit: what 1 stands for, empty if that is 1.
    """

    @property
    def title(self) -> str:
        """What to call it."""
        ...

    @property
    def unit(self) -> str:
        """What 1 stands for, empty if that is 1."""
        ...

    @property
    def least(self) -> Real:
        """The least number."""
        ...

    @property
    def largest(self) -> Real:
        """The largest number."""
        ...

    def values(self, most: int) -> list[Real] | None:
        """Return all numbers, or None if there are more than ``most``."""
        ...

    def marks(self) -> tuple[list[Fraction], str]:
        """Return at most some hundred numbers to mark, the ends, and what they are."""
        ...

    def gaps(self) -> list[tuple[Real, Real]]:
        """Return numbers that begin a binade and the distances to the next ones."""
        ...

    def positive(self, count: int) -> Real:
        """Return the positive number of this rank, or the largest."""
        ...


@dataclass(frozen=True)
class FormatLine:
    """The numbers of a `Format`, found by its parameters: there may be very many."""

    title: str
    format: Format
    unit: str = ""

    @property
    def least(self) -> Real:
        """The least number."""
        return self.format.min

    @property
    def largest(self) -> Real:
        """The largest number."""
        return self.format.max

    def _binades(self) -> range:
        first = floor_log2(Fraction(self.format.smallest_subnormal))
        return range(first, floor_log2(Fraction(self.format.max)) + 1)

    def values(self, most: int) -> list[Real] | None:
        """Return all numbers, or None if there are more than ``most``."""
        # Of the positive ones, subnormals like one more binade, there are at most so
        # many: no list of very many is made.
        binades = self.format.emax + self.format.bias + 1
        if binades << (self.format.precision - 1) > 2 * most:
            return None
        every = self.format.values()
        return every if len(every) <= most else None

    def marks(self) -> tuple[list[Fraction], str]:
        """Return all numbers, or powers of two and the ends."""
        target = self.format
        every = self.values(_MOST_MARKS)
        if every is not None:
            return [Fraction(value) for value in every], "values"
        binades = self._binades()
        step = 1 << max(0, ((len(binades) - 1) // _MOST_POWERS).bit_length())
        powers = {power_of_two(e) for e in binades if e % step == 0}
        above = powers | {Fraction(target.smallest_subnormal), Fraction(target.max)}
        every_end = {*above, *({Fraction(0)} if target.zero else ())}
        if target.signed:
            every_end |= {-value for value in above} | {Fraction(target.min)}
        what = "powers of two" if step == 1 else f"powers of 2^{step}"
        return sorted(every_end), what

    def gaps(self) -> list[tuple[Real, Real]]:
        """Return the powers of two and the units in their last places."""
        powers = [simplest(power_of_two(e)) for e in self._binades()]
        return [(x, self.format.ulp(x)) for x in powers]

    def positive(self, count: int) -> Real:
        """Return the positive number of this rank, or the largest."""
        value, largest = Fraction(0), Fraction(self.format.max)
        for _ in range(count):
            value = min(value + Fraction(self.format.ulp(value)), largest)
        return simplest(value)


@dataclass(frozen=True)
class TableLine:
    """Numbers that a sequence has: posits and levels."""

    title: str
    numbers: Sequence[float]
    unit: str = ""

    @property
    def least(self) -> Real:
        """The least number."""
        return self.numbers[0]

    @property
    def largest(self) -> Real:
        """The largest number."""
        return self.numbers[-1]

    def values(self, most: int) -> list[Real] | None:
        """Return all numbers, or None if there are more than ``most``."""
        return list(self.numbers) if len(self.numbers) <= most else None

    def marks(self) -> tuple[list[Fraction], str]:
        """Return all numbers, or every so many to both sides of the middle one."""
        count, what = len(self.numbers), "values"
        step = 1 << ((count - 1) // _MOST_MARKS).bit_length()
        chosen = {*range(count // 2 % step, count, step), 0, count - 1}
        if step > 1:
            what = f"every {step}th value"
        return [Fraction(self.numbers[i]) for i in sorted(chosen)], what

    def gaps(self) -> list[tuple[Real, Real]]:
        """Return the first number of each binade and the distance to the next one."""
        numbers, last = self.numbers, len(self.numbers) - 1
        first = place = bisect_right(numbers, 0)
        found: list[tuple[Real, Real]] = []
        while place <= last:
            value = Fraction(numbers[place])
            if place < last:
                gap = Fraction(numbers[place + 1]) - value
            else:  # behind it there is nothing: what is before it stands there
                gap = value - (Fraction(numbers[place - 1]) if place > first else 0)
            found.append((simplest(value), simplest(gap)))
            next_power = power_of_two(floor_log2(value) + 1)
            place = bisect_left(numbers, next_power, place + 1)
        return found

    def positive(self, count: int) -> Real:
        """Return the positive number of this rank, or the largest."""
        above = bisect_right(self.numbers, 0)
        return self.numbers[min(above + count, len(self.numbers)) - 1]
