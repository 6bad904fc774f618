"""Quantization sets: finite sets of levels that a weight may take."""

from __future__ import annotations

import ctypes
import functools
import math
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from ._encoding import decode_value, encode_value
from ._exact import exact_or_special
from ._html import Shown
from ._line import Line, TableLine
from ._table import Table

__all__ = ["Levels"]

_MOST_BITS = 16
_MOST_SHOWN = 8
_OF_BITS = re.compile(r"(int_bits|symmetric_int)\((\d{1,4})\)")


@dataclass(frozen=True)
class Levels(Shown):
    r"""A quantization set Q of levels q_1 < ... < q_K.

    .. math::
        P(w) = \arg\min_{q \in Q} |w - q|, \quad\text{ties to the upper level}

    Contract:
        Levels are finite floats in strictly increasing order, -0 being 0. Comparisons
        with levels and with the mid-points between them are exact.

    Args:
        values: the levels, any iterable of numbers.

    Raises:
        TypeError: if a level is no number.
        ValueError: if there is none, one is not finite, or they do not increase.

    Example:
        >>> Levels.int_bits(2)
        Levels(values=(-2.0, -1.0, 0.0, 1.0))
        >>> Levels.binary().nearest(0.0)
        1.0

    References:
        Revisiting ASkewSGD, section 2; Leconte et al. 2023.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the levels."""
        if isinstance(self.values, str) or not isinstance(self.values, Iterable):
            raise TypeError(
                "levels must be an iterable of numbers, got "
                f"{type(self.values).__name__}: use Levels([-1, 1])"
            )
        try:
            values = tuple(map(_level, self.values))
        except OverflowError:
            raise ValueError(
                "levels must be finite floats, got an integer or fraction beyond "
                "binary64"
            ) from None
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"levels must be numbers, got {self.values!r}: give levels that differ "
                "between channels as a tensor, to the optimizer"
            ) from error
        if not values:
            raise ValueError("levels must have at least one value, got none")
        if not all(map(math.isfinite, values)):
            raise ValueError(f"levels must be finite, got {values}")
        if any(a >= b for a, b in pairwise(values)):
            raise ValueError(
                f"levels must be strictly increasing, got {values}: sort them and drop "
                "duplicates"
            )
        object.__setattr__(self, "values", values)

    @classmethod
    def binary(cls) -> Levels:
        """Return {-1, 1}."""
        return cls((-1.0, 1.0))

    @classmethod
    def ternary(cls) -> Levels:
        """Return {-1, 0, 1}."""
        return cls((-1.0, 0.0, 1.0))

    @classmethod
    def int_bits(cls, bits: int) -> Levels:
        """Return -2^(x-1), ..., 2^(x-1) - 1, the signed integers of x ``bits``.

        Raises:
            ValueError: for fewer than 2 bits, whose set would be {-1, 0}.
        """
        half = _half(bits)
        return cls(tuple(range(-half, half)))

    @classmethod
    def symmetric_int(cls, bits: int) -> Levels:
        """Return -2^(x-1), ..., 2^(x-1): 2^x + 1 levels, symmetric around 0.

        Raises:
            ValueError: for fewer than 2 bits; see `ternary`.
        """
        half = _half(bits)
        return cls(tuple(range(-half, half + 1)))

    @classmethod
    def from_levels(cls, values: Iterable[float]) -> Levels:
        """Return the set of these values, for example of a 1-D tensor."""
        return cls(tuple(values))

    @classmethod
    def from_name(cls, name: str) -> Levels | None:
        """Return the set of a name, else None.

        Args:
            name: ``"binary"``, ``"ternary"``, ``"int_bits(N)"`` or
                ``"symmetric_int(N)"``, the constructors that make them.

        Returns:
            The set, or None.

        Raises:
            ValueError: if a width is out of range.

        Example:
            >>> Levels.from_name("int_bits(2)")
            Levels(values=(-2.0, -1.0, 0.0, 1.0))
        """
        given = name.strip().lower()
        if given == "binary":
            return cls.binary()
        if given == "ternary":
            return cls.ternary()
        found = _OF_BITS.fullmatch(given)
        if not found:
            return None
        made = cls.int_bits if found[1] == "int_bits" else cls.symmetric_int
        return made(int(found[2]))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def min_gap(self) -> float:
        """Smallest distance of two levels; inf if there is only one."""
        pairs = pairwise(self.values)
        return min((b - a for a, b in pairs), default=math.inf)

    @property
    def midpoints(self) -> tuple[Fraction, ...]:
        """The exact mid-points between neighbouring levels."""
        pairs = pairwise(self.values)
        return tuple((Fraction(a) + Fraction(b)) / 2 for a, b in pairs)

    @property
    def name(self) -> str | None:
        """The name by which `from_name` makes the set; None if it has none."""
        return _name(self)

    @property
    def line(self) -> Line:
        """The levels as pictures ask for them."""
        return TableLine(self.name or f"{len(self)} levels", self.values)

    def properties(self) -> dict[str, str]:
        """Return the properties as text by their labels."""
        shown = [f"{value:.7g}" for value in self.values]
        if len(shown) > _MOST_SHOWN:
            shown[_MOST_SHOWN // 2 : -_MOST_SHOWN // 2] = ["..."]
        return {
            "": self.name or "(no name)",
            "levels": f"{len(self)}",
            "bits": f"{self.bits}",
            "values": ", ".join(shown),
            "smallest gap": f"{self.min_gap:.7g}",
            "special values": "none",
        }

    @property
    def table(self) -> Table:
        """The levels and the mid-points between them, which go up."""
        return _table(self)

    @property
    def in_binary32(self) -> bool:
        """Whether binary32 holds every level."""
        return _in_binary32(self.values)

    @property
    def bits(self) -> int:
        """Width of a code, the number of a level from 0."""
        return max((len(self.values) - 1).bit_length(), 1)

    def encode(self, x: Any) -> Any:
        """Return the number, from 0, of a level or of each of several.

        Args:
            x: a number, a list or tuple, or a float32 or float64 tensor.

        Returns:
            An int, a list, or an integer tensor.

        Raises:
            TypeError: if ``x`` is none of these.
            ValueError: if ``x`` is no level.

        Example:
            >>> Levels.ternary().encode([-1, 1])
            [0, 2]
        """
        return encode_value(x, self)

    def decode(self, codes: Any) -> Any:
        """Return the level of a number from 0, or of each of several.

        Args:
            codes: an int, a list or tuple of them, or an integer tensor.

        Returns:
            A float, a list, or a tensor.

        Raises:
            TypeError: if ``codes`` is none of these.
            ValueError: if a code is out of range.

        Example:
            >>> Levels.ternary().decode(2)
            1.0
        """
        return decode_value(codes, self)

    def code_of(self, x: Any) -> int:
        """Return the number of a single level."""
        exact = exact_or_special(x)
        if exact not in self.values or (exact == 0 and isinstance(exact, float)):
            raise ValueError(f"{x!r} is not one of the levels: round it first")
        return self.values.index(float(exact))

    def value_of(self, code: int) -> float:
        """Return the level of a single number."""
        if code >= len(self.values):
            raise ValueError(
                f"codes of {len(self.values)} levels are from 0 to "
                f"{len(self.values) - 1}, got {code}"
            )
        return self.values[code]

    def nearest(self, w: float) -> float:
        """Return P(w); a mid-point goes to its upper level.

        Raises:
            ValueError: for NaN, which has no nearest level.
        """
        exact = _comparable(w)
        return self.values[bisect_right(self.midpoints, exact)]

    def cell(self, w: float) -> int:
        """Return the number j, 0 to K, of the cell q_j <= w < q_(j+1).

        Raises:
            ValueError: for NaN.
        """
        return bisect_right(self.values, _comparable(w))


@functools.lru_cache(maxsize=64)
def _name(levels: Levels) -> str | None:
    """Return the name of a set, which its size and its least level suggest."""
    # Integers of some bits are 2^bits levels, or one more if they are symmetric.
    bits, symmetric = (len(levels) // 2).bit_length(), len(levels) % 2
    suggested = ["binary", "ternary"]
    if 2 <= bits <= _MOST_BITS and levels.values[0] == -(1 << (bits - 1)):
        suggested = [f"symmetric_int({bits})" if symmetric else f"int_bits({bits})"]
    return next((n for n in suggested if Levels.from_name(n) == levels), None)


@functools.lru_cache(maxsize=64)
def _table(levels: Levels) -> Table:
    gaps = len(levels) - 1
    return Table(levels.values, levels.midpoints, (True,) * gaps, None, "end")


def _in_binary32(values: tuple[float, ...]) -> bool:
    return all(ctypes.c_float(value).value == value for value in values)


# What torch.compiler.assume_constant_result sets: a constant to what traces this.
_in_binary32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _comparable(w: float) -> Fraction | float:
    if math.isnan(w):
        raise ValueError("NaN has no nearest level")
    return w if math.isinf(w) else Fraction(w)


def _level(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"a text is no number: {value!r}")
    return float(value) + 0.0


def _half(bits: int) -> int:
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits must be an int, got {bits!r}")
    if not 2 <= bits <= _MOST_BITS:
        raise ValueError(
            f"bits must be from 2 to {_MOST_BITS}, got {bits}: for one bit use "
            "Levels.binary()"
        )
    return 1 << (bits - 1)
