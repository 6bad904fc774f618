"""The value object `Format`: one set of binary floating-point numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

from ._encoding import (
    decode_value,
    encode_value,
    exponent_bits,
    resolved_emin,
    stored_bits,
    total_bits,
)
from ._exact import Real, exact_or_special, power_of_two, simplest
from ._html import Shown
from ._line import FormatLine, Line
from ._numbers import all_values, is_value, largest, quantum, smallest
from ._text import describe, properties
from ._validation import check_p3109, check_widths, validate

__all__ = ["Format"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Format(Shown):
    """A set of binary floating-point numbers, and the codes that denote them.

    The finite values are +-k 2^(e-p+1) with integers e from ``emin`` to ``emax`` and k
    from 2^(p-1) to 2^p - 1 (normal), and with e = ``emin`` and k < 2^(p-1) (zero and
    subnormal); in the largest binade k goes to ``max_significand``. Fixed point is the
    case emin = emax: one spacing throughout; `fixed_point` builds it.

    Contract:
        Exact: integers and fractions inside, no rounding anywhere. Numeric properties
        are floats where binary64 holds the number exactly, fractions otherwise. Two
        formats are equal when their fields are, defaults resolved; the name does not
        count. An unsigned format has no negative zero, whatever
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
            ``"fnuz"``: the code of -0 is NaN, no infinity; ``"finite"``: neither;
            ``"p3109"``: infinity is all ones, NaN the code of -0, or all ones without
            a sign, where infinity is next to it; ``"normal"``: the smallest exponent
            field is a binade like the others, but for its first code, which is zero,
            and all ones is NaN; ``"integer"``: multiples of the spacing, in two's
            complement if signed.
        zero: whether 0 is in the format; False for scales like E8M0 only.
        asymmetric: whether the negative values go one step further than the positive
            ones; two's complement only.
        name: what to call it; not compared.

    Raises:
        TypeError: if a field has the wrong type; ``bool`` is no integer here.
        ValueError: if the fields denote no set of numbers, or contradict ``encoding``.

    Example:
        >>> e6m8 = Format(precision=9, emax=31, name="e6m8")
        >>> e6m8.bits, e6m8.max, e6m8.unit_roundoff
        (15, 4286578688.0, 0.001953125)

    References:
        IEEE 754-2019, section 3.3; OCP 8-bit floating point specification 1.0; P3109
        interim report 3.2.2.
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
    zero: bool = True
    asymmetric: bool = False
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

    @classmethod
    def fixed_point(
        cls,
        word: int,
        fraction: int = 0,
        *,
        signed: bool = True,
        symmetric: bool = False,
        name: str | None = None,
    ) -> Format:
        """Return fixed point k 2^-fraction with k an integer of ``word`` bits.

        Contract:
            -2^(word-1) <= k < 2^(word-1), or 0 <= k < 2^word without a sign; codes are
            two's complement. There is no infinity, NaN or -0, so rounding saturates,
            or wraps with ``saturation="wrap"``. Integers have fraction 0.

        Args:
            word: width in bits, at least 1, or 2 with a sign.
            fraction: bits behind the binary point; more than ``word``, or negative
                down to -``word``, leave the point outside of the word.
            signed: whether negative values exist.
            symmetric: whether the most negative value is left out; its code is still
                decoded, as hardware does.
            name: what to call it.

        Returns:
            The format.

        Raises:
            TypeError: if a width is not an int.
            ValueError: if a width is out of range.

        Example:
            >>> q = Format.fixed_point(8, 4)
            >>> q.min, q.max, q.smallest_subnormal
            (-8.0, 7.9375, 0.0625)

        References:
            Oberstar, Fixed-point representation and fractional math, 2007.
        """
        check_widths(word, fraction, signed, symmetric)
        precision = word - signed
        exponent = precision - 1 - fraction
        return cls(
            precision=precision,
            emax=exponent,
            emin=exponent,
            infinities=False,
            nans=False,
            signed=signed,
            signed_zero=False,
            encoding="integer",
            asymmetric=signed and not symmetric,
            name=name,
        )

    @classmethod
    def p3109(
        cls,
        bits: int,
        precision: int,
        *,
        signed: bool = True,
        extended: bool = True,
        name: str | None = None,
    ) -> Format:
        """Return the P3109 format of ``bits`` bits and ``precision``.

        Its bias is 2^(bits-precision-1), or 2^(bits-precision) without a sign.

        Contract:
            One zero, one NaN, subnormals; infinities if extended. A finite format has
            the values and codes of an ``fnuz`` one (signed) or ``fn`` one and is equal
            to it; what is too large for it becomes NaN as there, which is SatNone of
            the draft D1. SatFinite and SatPropagate are ``saturation="finite"``.

        Args:
            bits: K, 3 to 16.
            precision: P, 1 to K - 1, or to K without a sign.
            signed: whether negative values exist.
            extended: whether infinity is in the format.
            name: what to call it.

        Returns:
            The format.

        Raises:
            TypeError: if a width is not an int.
            ValueError: if a width is out of range.

        Example:
            >>> Format.p3109(8, 3).max, Format.p3109(8, 3, extended=False).max
            (49152.0, 57344.0)

        References:
            IEEE P3109 interim report 3.2.2, section 4; P3109/D1, section 4.7.5.
        """
        check_p3109(bits, precision, signed, extended)
        bias = 1 << (bits - precision - signed)
        special = extended + (not signed)  # codes above the largest finite value
        largest = (1 << (bits - signed)) - 1 - special
        field, stored = divmod(largest, 1 << (precision - 1))
        return cls(
            precision=precision,
            emax=field - bias,
            emin=1 - bias,
            infinities=extended,
            signed=signed,
            signed_zero=False,
            max_significand=stored + (1 << (precision - 1)),
            encoding="p3109",
            name=name,
        )

    def __repr__(self) -> str:
        """Return one line that evaluates back, only what differs from the default."""
        defaults = {
            "emin": 1 - self.emax,
            "signed_zero": self.signed,
            "max_significand": 2**self.precision - 1,
        }
        shown = [
            f"{one.name}={getattr(self, one.name)!r}"
            for one in fields(self)
            if getattr(self, one.name) != defaults.get(one.name, one.default)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __str__(self) -> str:
        """Return the properties as a small text table."""
        return describe(self)

    @property
    def line(self) -> Line:
        """The numbers as pictures ask for them."""
        return FormatLine(self.name or repr(self), self)

    def properties(self) -> dict[str, str]:
        """Return the properties as text by their labels."""
        return properties(self)

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
        """Stored significand bits p - 1; p in fixed point, without implicit bit."""
        return stored_bits(self)

    @property
    def bias(self) -> int:
        """Exponent bias: a normal number 2^e has exponent field e + bias."""
        return int(self.encoding != "normal") - resolved_emin(self)

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
        return simplest(largest(self))

    @property
    def min(self) -> Real:
        """Smallest finite value: -max, further in two's complement, 0 if unsigned."""
        if self.signed:
            return simplest(-largest(self, negative=True))
        return simplest(Fraction(0) if self.zero else smallest(self))

    @property
    def smallest_normal(self) -> Real:
        """Smallest positive normal value 2^emin, or the next one if that is zero."""
        emin = power_of_two(resolved_emin(self))
        return simplest(max(emin, smallest(self)))

    @property
    def tiny(self) -> Real:
        """The same as `smallest_normal`."""
        return self.smallest_normal

    @property
    def smallest_subnormal(self) -> Real:
        """Smallest positive value: 2^(emin-p+1), or 2^emin without subnormals."""
        return simplest(smallest(self))

    @property
    def dtype(self) -> str | None:
        """Name of the torch dtype that stands for this format, or None."""
        from ._registry import dtype_of

        return dtype_of(self)

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
        return all_values(self)

    def ulp(self, x: Any) -> Real:
        """Return the unit in the last place: the spacing of the format around a number.

        2^(max(e, emin)-p+1) for 2^e <= |x| < 2^(e+1).

        Contract:
            Zero gives the smallest positive value; infinity and NaN give NaN. Beyond
            the largest value the formula continues. Without subnormals the spacing
            below 2^emin is 2^emin. Fixed point has one spacing. Exact.

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
        return simplest(quantum(self, abs(exact)))

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
        return is_value(self, exact_or_special(x))

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
