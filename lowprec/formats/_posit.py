"""Posits: tapered precision, exact, up to 16 bits."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ._encoding import decode_value, encode_value
from ._exact import Real, exact_or_special, power_of_two
from ._html import page
from ._line import Line, TableLine
from ._table import Table
from ._text import columns
from ._validation import check_integer

__all__ = ["Posit"]

_MOST_BITS = 16
_MOST_EXPONENT_BITS = 4
_NAME = re.compile(r"posit(\d{1,2})(?:_(\d))?")


@dataclass(frozen=True)
class Posit:
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
        bits: width of a code, 2 to 16.
        es: exponent bits, 0 to 4; the standard of 2022 has 2.

    Raises:
        TypeError: if a width is not an int.
        ValueError: if it is out of range.

    Example:
        >>> Posit(8, 0).max, Posit(16).max == 2.0**56
        (64.0, True)

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
                raise ValueError(
                    f"{name} of a posit must be from {least} to {most}, got {value}"
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

    def __str__(self) -> str:
        """Return the properties as a small text table."""
        return "\n".join(columns(self.properties().items()))

    def _repr_html_(self) -> str:
        """Return a number line and the properties for notebooks."""
        return page(self.line, self.properties())

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
        return self.table.values[-1]

    @property
    def min(self) -> float:
        """Least value, -max."""
        return self.table.values[0]

    @property
    def smallest_positive(self) -> float:
        """Smallest positive value, 1/max."""
        return self.table.values[len(self.table.values) // 2 + 1]

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger value."""
        one = self.table.values.index(1.0)
        return self.table.values[min(one + 1, len(self.table.values) - 1)] - 1.0

    @property
    def table(self) -> Table:
        """The values and the ties between them."""
        return _table(self)

    @property
    def in_binary32(self) -> bool:
        """Whether binary32 holds every value: the ends, that is, which are powers."""
        return (self.bits - 2) << self.es <= 127

    def values(self) -> list[float]:
        """Return every value in ascending order."""
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
        negative_zero = isinstance(exact, float) and exact == 0
        code = None if negative_zero else _codes(self).get(exact)
        if code is None:
            raise ValueError(f"{x!r} is not a value of {self.name}: round it first")
        return code

    def value_of(self, code: int) -> Real:
        """Return the value of a single code, which is in range."""
        if code == 1 << (self.bits - 1):
            return math.nan
        return float(_decoded(code, self.bits, self.es))


def _decoded(code: int, bits: int, es: int) -> Fraction:
    """Return the value of a code that is not NaR."""
    if code == 0:
        return Fraction(0)
    if code >> (bits - 1):
        return -_decoded((1 << bits) - code, bits, es)
    text = f"{code:0{bits}b}"[1:]
    run = len(text) - len(text.lstrip(text[0]))
    regime = run - 1 if text[0] == "1" else -run
    rest = text[run + 1 :]
    exponent = int(rest[:es].ljust(es, "0") or "0", 2)
    fraction = rest[es:]
    significand = 1 + Fraction(int(fraction or "0", 2), 1 << len(fraction))
    return significand * power_of_two(regime * (1 << es) + exponent)


@functools.lru_cache(maxsize=64)
def _codes(posit: Posit) -> dict[Real, int]:
    values = posit.table.values
    first = -(len(values) // 2)
    return {x: (first + i) % (1 << posit.bits) for i, x in enumerate(values)}


@functools.lru_cache(maxsize=64)
def _table(posit: Posit) -> Table:
    bits, es = posit.bits, posit.es
    last = (1 << (bits - 1)) - 1
    positive = [_decoded(code, bits, es) for code in range(1, last + 1)]
    # Only zero is zero, so that both ties beside it are zero themselves.
    between = [_decoded(2 * code + 1, bits + 1, es) for code in range(1, last)]
    upper = [Fraction(0), *between]
    codes = range(-last, last + 1)
    return Table(
        values=tuple(map(float, (*[-x for x in reversed(positive)], 0, *positive))),
        ties=(*[-x for x in reversed(upper)], *upper),
        upper=tuple((code + 1) % 2 == 0 for code in codes[:-1]),
        odd=tuple(code % 2 == 1 for code in codes),
        infinite="nan",
    )
