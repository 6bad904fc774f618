"""The value object `Format`: one set of binary floating-point numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

from ._encoding import decode_value, encode_value, exponent_bits, total_bits
from ._exact import Real, exact_or_special, floor_log2, power_of_two, simplest
from ._html import format_html
from ._text import describe
from ._validation import validate

__all__ = ["Format"]

_MOST_VALUES = 2**20


@dataclass(frozen=True, kw_only=True, repr=False)
class Format:
    """A set of binary floating-point numbers, and the codes that denote them.

    The finite values are +-k 2^(e-p+1) with integers e from ``emin`` to ``emax`` and k
    from 2^(p-1) to 2^p - 1 (normal), and with e = ``emin`` and k < 2^(p-1) (zero and
    subnormal); in the largest binade k goes to ``max_significand``.

    Contract:
        Exact: integers and fractions inside, no rounding anywhere. Numeric properties
        are floats where binary64 holds the number exactly, fractions otherwise. Two
        formats are equal when they denote the same numbers with the same codes; the
        name does not count. An unsigned format has no negative zero, whatever
        ``signed_zero`` says.

    Args:
        precision: p, significand bits with the implicit one, at least 1.
        emax: exponent e of the largest binade [2^e, 2^(e+1)), as in IEEE 754.
        emin: exponent of the smallest normal number 2^emin; None means 1 - emax.
        subnormals: whether the values between 0 and 2^emin exist.
        infinities: whether +-infinity are in the format.
        nans: whether NaN is in the format.
        signed: whether negative values exist.
        signed_zero: whether -0 differs from +0.
        max_significand: integer significand of the largest finite value, in units of
            2^(emax-p+1); None means 2^p - 1.
        encoding: where the special codes sit. ``"ieee"``: the largest exponent field
            is reserved for infinity and NaN; ``"fn"``: all ones is NaN, no infinity;
            ``"fnuz"``: the code of -0 is NaN, no infinity; ``"finite"``: neither.
        name: what to call it; not compared.

    Raises:
        TypeError: if a field has the wrong type; ``bool`` is no integer here.
        ValueError: if the fields denote no set of numbers, or contradict ``encoding``.

    Example:
        >>> e6m8 = Format(precision=9, emax=31, name="e6m8")
        >>> e6m8.bits, e6m8.max, e6m8.unit_roundoff
        (15, 4286578688.0, 0.001953125)

    References:
        IEEE 754-2019, section 3.3; OCP 8-bit floating point specification 1.0.
    """

    precision: int
    emax: int
    emin: int | None = None
    subnormals: bool = True
    infinities: bool = True
    nans: bool = True
    signed: bool = True
    signed_zero: bool = True
    max_significand: int | None = None
    encoding: str = "ieee"
    name: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check the fields and resolve those that were left to their default."""
        for key, value in validate(self).items():
            object.__setattr__(self, key, value)

    @classmethod
    def from_system(cls, t: int, emin: int, emax: int, beta: int = 2) -> Format:
        """Return the format of the floating-point system F(beta, t, emin, emax).

        The system writes its numbers +-0.d_1 d_2 ... d_t beta^e with emin <= e <= emax,
        so its exponents are one larger than those of IEEE 754.

        Contract:
            Infinities and NaN are added as carriers, as in IEEE 754.

        Args:
            t: digits of the significand.
            emin: smallest exponent of the system.
            emax: largest exponent of the system.
            beta: base, must be 2; `System` covers the others.

        Returns:
            The format with the same finite values.

        Raises:
            ValueError: if ``beta`` is not 2 or the exponents are out of order.

        Example:
            >>> Format.from_system(3, -2, 3).max
            7.0

        References:
            Higham, Accuracy and Stability of Numerical Algorithms, section 2.1.
        """
        if beta != 2:
            raise ValueError(
                f"a Format has base 2, got beta={beta!r}; use "
                "lowprec.formats.System(beta, t, emin, emax) for other bases"
            )
        return cls(precision=t, emax=emax - 1, emin=emin - 1)

    def __repr__(self) -> str:
        """Return one line that evaluates back, only what differs from the default."""
        emin, significand = self._resolved()
        defaults = {
            "emin": 1 - self.emax,
            "signed_zero": self.signed,
            "max_significand": 2**self.precision - 1,
        }
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values |= {"emin": emin, "max_significand": significand}
        shown = [
            f"{one.name}={values[one.name]!r}"
            for one in fields(self)
            if values[one.name] != defaults.get(one.name, one.default)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __str__(self) -> str:
        """Return the properties as a small text table."""
        return describe(self)

    def _repr_html_(self) -> str:
        """Return a number line and the properties for notebooks."""
        return format_html(self)

    def _resolved(self) -> tuple[int, int]:
        """Return ``emin`` and ``max_significand``, which construction has resolved."""
        if self.emin is None or self.max_significand is None:
            raise ValueError("the format was not constructed by Format(...)")
        return self.emin, self.max_significand

    @property
    def bits(self) -> int:
        """Width of a code in bits: sign, exponent field and stored significand."""
        return total_bits(self)

    @property
    def exponent_bits(self) -> int:
        """Width of the exponent field in bits."""
        return exponent_bits(self)

    @property
    def significand_bits(self) -> int:
        """Stored significand bits p - 1: the implicit bit does not count."""
        return self.precision - 1

    @property
    def bias(self) -> int:
        """Exponent bias 1 - emin: a normal number 2^e has exponent field e + bias."""
        return 1 - self._resolved()[0]

    @property
    def eps(self) -> Real:
        """Distance 2^(1-p) from 1 to the next larger value; twice `unit_roundoff`."""
        return simplest(power_of_two(1 - self.precision))

    @property
    def unit_roundoff(self) -> Real:
        """Largest relative error 2^-p of rounding to nearest; half of `eps`."""
        return simplest(power_of_two(-self.precision))

    @property
    def max(self) -> Real:
        """Largest finite value."""
        return simplest(self._largest())

    @property
    def min(self) -> Real:
        """Smallest finite value: -max, or 0 in an unsigned format."""
        return simplest(-self._largest() if self.signed else Fraction(0))

    @property
    def smallest_normal(self) -> Real:
        """Smallest positive normal value 2^emin."""
        return simplest(power_of_two(self._resolved()[0]))

    @property
    def tiny(self) -> Real:
        """The same as `smallest_normal`."""
        return self.smallest_normal

    @property
    def smallest_subnormal(self) -> Real:
        """Smallest positive value: 2^(emin-p+1), or 2^emin without subnormals."""
        return simplest(self._smallest())

    @property
    def dtype(self) -> str | None:
        """Name of the torch dtype with the same values and codes, or None."""
        from ._registry import dtype_of

        return dtype_of(self)

    def _largest(self) -> Fraction:
        significand = self._resolved()[1]
        return significand * power_of_two(self.emax - self.precision + 1)

    def _smallest(self) -> Fraction:
        emin = self._resolved()[0]
        return power_of_two(emin - self.precision + 1 if self.subnormals else emin)

    def _quantum(self, magnitude: Fraction) -> Fraction:
        """Return the spacing of the values around a positive magnitude."""
        emin = self._resolved()[0]
        e = floor_log2(magnitude)
        if e < emin:
            return self._smallest()
        return power_of_two(e - self.precision + 1)

    def values(self) -> list[Real]:
        """Return every finite value in ascending order, zero once.

        Returns:
            List of floats, or fractions where binary64 does not hold the value.

        Raises:
            ValueError: if there are more than 2^20 values.

        Example:
            >>> Format(precision=2, emax=1).values()[-5:]
            [0.5, 1.0, 1.5, 2.0, 3.0]
        """
        emin, largest = self._resolved()
        p = self.precision
        binades = self.emax - emin + 1
        positive = binades * 2 ** (p - 1) - (2**p - 1 - largest)
        positive += (2 ** (p - 1) - 1) * self.subnormals
        count = 1 + positive * (1 + self.signed)
        if count > _MOST_VALUES:
            raise ValueError(
                f"{self.name or repr(self)} has {count} finite values; values() lists "
                f"at most {_MOST_VALUES}"
            )
        above: list[Real] = []
        unit = power_of_two(emin - p + 1)
        if self.subnormals:
            above += [simplest(k * unit) for k in range(1, 2 ** (p - 1))]
        for e in range(emin, self.emax + 1):
            unit = power_of_two(e - p + 1)
            last = largest if e == self.emax else 2**p - 1
            above += [simplest(k * unit) for k in range(2 ** (p - 1), last + 1)]
        below = [-value for value in reversed(above)] if self.signed else []
        return [*below, 0.0, *above]

    def ulp(self, x: Any) -> Real:
        """Return the unit in the last place: the spacing of the format around a number.

        2^(max(e, emin)-p+1) for 2^e <= |x| < 2^(e+1).

        Contract:
            Zero gives the smallest positive value; infinity and NaN give NaN. Beyond
            the largest value the formula continues. Without subnormals the spacing
            below 2^emin is 2^emin. Exact.

        Args:
            x: int, float or Fraction; it need not be in the format.

        Returns:
            Positive float, or Fraction where binary64 does not hold it.

        Raises:
            TypeError: if ``x`` is not a number.

        Example:
            >>> Format(precision=9, emax=31).ulp(3.7)
            0.0078125

        References:
            Muller et al., Handbook of Floating-Point Arithmetic, section 2.3.2.
        """
        exact = exact_or_special(x)
        if exact == 0:
            return self.smallest_subnormal
        if isinstance(exact, float):
            return math.nan
        return simplest(self._quantum(abs(exact)))

    def is_representable(self, x: Any) -> bool:
        """Return whether a number is a value of the format.

        Contract:
            Exact; infinity, NaN and -0.0 are values where the format has them.

        Args:
            x: int, float or Fraction.

        Returns:
            True or False.

        Raises:
            TypeError: if ``x`` is not a number.

        Example:
            >>> Format(precision=9, emax=31).is_representable(257)
            True
            >>> Format(precision=9, emax=31).is_representable(0.1)
            False
        """
        exact = exact_or_special(x)
        if isinstance(exact, float):
            if math.isnan(exact):
                return self.nans
            if exact == 0:
                return self.signed_zero
            return self.infinities and (exact > 0 or self.signed)
        if exact == 0:
            return True
        if (exact < 0 and not self.signed) or abs(exact) > self._largest():
            return False
        return (exact / self._quantum(abs(exact))).denominator == 1

    def encode(self, x: Any) -> Any:
        """Return the integer code of a value, or of each of several values.

        Contract:
            Exact inverse of `decode`; nothing is rounded. NaN takes the quiet NaN.

        Args:
            x: int, float or Fraction, or a list or tuple of them; also a tensor once
                ``lowprec`` is imported.

        Returns:
            An int from 0 to 2^bits - 1, a list, or an integer tensor, as the input.

        Raises:
            TypeError: if ``x`` is not a number or collection of numbers.
            ValueError: if ``x`` is not a value of the format, or a special value of
                the format has no code.

        Example:
            >>> Format(precision=11, emax=15).encode([1.0, -2.0])
            [15360, 49152]

        References:
            IEEE 754-2019, section 3.4.
        """
        return encode_value(x, self)

    def decode(self, codes: Any) -> Any:
        """Return the value of an integer code, or of each of several codes.

        Contract:
            Exact. A code that stands for neither a finite value nor an infinity is NaN
            where the format has NaN; the code of -0 gives -0.0.

        Args:
            codes: int from 0 to 2^bits - 1, or a list or tuple of them; also an
                integer tensor once ``lowprec`` is imported.

        Returns:
            A float (Fraction where binary64 does not hold the value), a list, or a
            tensor, as the input.

        Raises:
            TypeError: if ``codes`` is not an integer or collection of integers.
            ValueError: if a code is out of range, or denotes nothing in the format.

        Example:
            >>> Format(precision=11, emax=15).decode(0x7C00)
            inf

        References:
            IEEE 754-2019, section 3.4.
        """
        return decode_value(codes, self)
