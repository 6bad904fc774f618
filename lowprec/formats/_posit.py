"""Posits: tapered precision, exact, up to 32 bits."""

from __future__ import annotations

import functools
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

from ._encoding import decode_value, encode_value
from ._exact import Real, exact_or_special
from ._html import Shown
from ._line import Line, TableLine
from ._table import Computed, Table
from ._validation import check_integer

__all__ = ["Posit"]

_MOST_BITS, _MOST_LISTED_BITS = 32, 16
_MOST_EXPONENT_BITS = 4
_BINARY32_BITS, _BINARY32_EXPONENT = 24, 126
T = TypeVar("T")
_NAME = re.compile(r"posit(\d{1,2})(?:_(\d))?")


@dataclass(frozen=True)
class Posit(Shown):
    """The posits of ``bits`` bits with ``es`` exponent bits.

    A positive code is a zero, a run of k equal bits with the opposite bit behind it
    (regime r = k - 1 for ones, -k for zeros), es bits e and a fraction f, cut off where
    the code ends: (1 + f) 2^(r 2^es + e). Negative numbers have the two's complement
    of the code.

    Contract:
        Exact. 2^bits - 1 reals, one zero, and NaR, the code 10...0, which is NaN here.
        Rounding takes the nearest code, ties to the even one: the tie of neighbours is
        the posit between them with one bit more, which in the tapered region is not
        their mean. Nothing rounds to NaR, and nothing but zero to zero: beyond the
        ends the largest and the smallest positive posit stand.

    Args:
        bits: width of a code, 2 to 32.
        es: exponent bits, 0 to 4; the standard of 2022 has 2.

    Raises:
        TypeError: if a width is not an int.
        ValueError: if it is out of range: posits of 64 bits have up to 60 significant
            bits, more than float64.

    Example:
        >>> Posit(8, 0).max, Posit(16).max == 2.0**56, Posit(32).max == 2.0**120
        (64.0, True, True)

    References:
        Standard for Posit Arithmetic, 2022; Gustafson and Yonemoto 2017.
    """

    bits: int
    es: int = 2

    def __post_init__(self) -> None:
        """Check the widths."""
        for name, least, most in (
            ("bits", 2, _MOST_BITS),
            ("es", 0, _MOST_EXPONENT_BITS),
        ):
            value = getattr(self, name)
            check_integer(name, value)
            if not least <= value <= most:
                reason = ""
                if name == "bits" and value > most:
                    reason = (
                        ": wider ones, as posit64 with up to 60 significant bits, have "
                        "values that float64 does not hold"
                    )
                raise ValueError(
                    f"{name} of a posit must be from {least} to {most}, got "
                    f"{value}{reason}"
                )

    @classmethod
    def from_name(cls, name: str) -> Posit | None:
        """Return the posit of a name, ``"posit16"`` or ``"posit8_0"``, else None.

        Raises:
            ValueError: if a width is out of range.
        """
        found = _NAME.fullmatch(name.strip().lower())
        if not found:
            return None
        return cls(int(found[1]), 2 if found[2] is None else int(found[2]))

    @property
    def name(self) -> str:
        """``"posit8_0"``; ``es`` is left out where the standard of 2022 has it."""
        return f"posit{self.bits}" + ("" if self.es == 2 else f"_{self.es}")

    @property
    def line(self) -> Line:
        """The numbers as pictures ask for them."""
        return TableLine(self.name, self.table.values)

    def properties(self) -> dict[str, str]:
        """Return the properties as text by their labels."""
        return {
            "": self.name,
            "bits": f"{self.bits}",
            "exponent bits es": f"{self.es}",
            "max": f"{self.max:.7g}",
            "smallest positive": f"{self.smallest_positive:.7g}",
            "eps": f"{self.eps:.7g}",
            "special values": "NaR",
        }

    @property
    def max(self) -> float:
        """Largest value."""
        return 2.0**self._reach

    @property
    def min(self) -> float:
        """Least value, -max."""
        return -self.max

    @property
    def smallest_positive(self) -> float:
        """Smallest positive value, 1/max."""
        return 2.0**-self._reach

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger value."""
        one = 1 << (self.bits - 2)
        return _decoded(min(one + 1, 2 * one - 1), self.bits, self.es) - 1.0

    @property
    def table(self) -> Table:
        """The values and the ties between them; many are computed when asked for."""
        return _table(self)

    @property
    def in_binary32(self) -> bool:
        """Whether binary32 holds every value: the ends, and the bits of those at 1."""
        significant = self.bits - 2 - self.es
        return self._reach <= _BINARY32_EXPONENT and significant <= _BINARY32_BITS

    @property
    def _reach(self) -> int:
        """The exponent of the largest value, which is a power of two."""
        return (self.bits - 2) << self.es

    def values(self) -> list[float]:
        """Return every value in ascending order.

        Raises:
            ValueError: beyond 16 bits, of which there are too many.
        """
        if self.bits > _MOST_LISTED_BITS:
            raise ValueError(
                f"{self.name} has 2^{self.bits} - 1 values, too many for a list: "
                "decode the codes that you need"
            )
        return list(self.table.values)

    def encode(self, x: Any) -> Any:
        """Return the code of a value, or of each of several; NaN has that of NaR.

        Args:
            x: a number, a list or tuple, or a float32 or float64 tensor.

        Returns:
            An int from 0 to 2^bits - 1, a list, or an integer tensor.

        Raises:
            TypeError: if ``x`` is none of these.
            ValueError: if ``x`` is not a value.

        Example:
            >>> Posit(8, 0).encode([1.0, -1.0])
            [64, 192]
        """
        return encode_value(x, self)

    def decode(self, codes: Any) -> Any:
        """Return the value of a code, or of each of several; NaR is NaN.

        Args:
            codes: an int, a list or tuple of them, or an integer tensor.

        Returns:
            A float, a list, or a tensor.

        Raises:
            TypeError: if ``codes`` is none of these.
            ValueError: if a code is out of range.

        Example:
            >>> Posit(16).decode(0x4400)
            1.5
        """
        return decode_value(codes, self)

    def code_of(self, x: Any) -> int:
        """Return the code of a single number."""
        exact = exact_or_special(x)
        if isinstance(exact, float) and math.isnan(exact):
            return 1 << (self.bits - 1)
        values = self.table.values
        place = bisect_left(values, exact)
        negative_zero = isinstance(exact, float) and exact == 0
        if negative_zero or place == len(values) or values[place] != exact:
            raise ValueError(f"{x!r} is not a value of {self.name}: round it first")
        return (place - len(values) // 2) % (1 << self.bits)

    def value_of(self, code: int) -> Real:
        """Return the value of a single code, which is in range."""
        nar = 1 << (self.bits - 1)
        if code == nar:
            return math.nan
        signed = code - 2 * nar if code > nar else code
        return _decoded(signed, self.bits, self.es)


def _decoded(code: int, bits: int, es: int) -> float:
    """Return the value of a code, which is negative for negative values."""
    if code <= 0:
        return -_decoded(-code, bits, es) if code else 0.0
    ones = code >> (bits - 2)  # the first bit of the regime, and all bits like it
    other = (1 << (bits - 1)) - 1 - code if ones else code
    rest = max(other.bit_length() - 1, 0)  # bits behind the regime
    regime = bits - 2 - other.bit_length() if ones else other.bit_length() - bits + 1
    behind = (code & ((1 << rest) - 1)) << es
    exponent, fraction = divmod(behind, 1 << rest)
    # Exact: a fraction has at most 30 bits, that of a tie included.
    return math.ldexp((1 << rest) + fraction, (regime << es) + exponent - rest)


def _tie(code: int, bits: int, es: int) -> Fraction:
    """Return the tie above a code: between both, a posit with one bit more."""
    # Only zero is zero, so that both ties beside it are zero themselves.
    near_zero = code in (-1, 0)
    return Fraction(0 if near_zero else _decoded(2 * code + 1, bits + 1, es))


@functools.lru_cache(maxsize=64)
def _table(posit: Posit) -> Table:
    bits, es = posit.bits, posit.es
    last = (1 << (bits - 1)) - 1  # codes go from -last to last

    def items(count: int, item: Callable[[int], T]) -> Sequence[T]:
        every = Computed(count, lambda place: item(place - last))
        return tuple(every) if bits <= _MOST_LISTED_BITS else every

    return Table(
        values=items(2 * last + 1, lambda code: _decoded(code, bits, es)),
        ties=items(2 * last, lambda code: _tie(code, bits, es)),
        upper=items(2 * last, lambda code: code % 2 == 1),
        odd=items(2 * last + 1, lambda code: code % 2 == 1),
        infinite="nan",
    )
