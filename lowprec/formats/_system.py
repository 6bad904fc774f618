"""F(beta, t, emin, emax): an exact reference for any base, in rationals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["System"]

_MODES = {
    "nearest_even": "rn",
    "toward_zero": "rz",
    "toward_negative": "rd",
    "toward_positive": "ru",
}
_OVERFLOWS = ("inf", "saturate")


@dataclass(frozen=True)
class System:
    """The floating-point system F(beta, t, emin, emax) with subnormals.

    F = {+-m beta^(e-t) : 0 <= m < beta^t, emin <= e <= emax}.

    Contract:
        Exact rationals throughout; slow, meant as a reference. Exponents follow the
        paper: values are 0.d_1...d_t beta^e, one more than in IEEE 754.

    Args:
        beta: base, 2 or more.
        t: significand digits, 1 or more.
        emin: smallest exponent.
        emax: largest exponent.

    Raises:
        TypeError: if an argument is no integer.
        ValueError: if an argument is out of range.

    Example:
        >>> tiny = System(2, 3, -2, 3)
        >>> len(tiny.values()), tiny.max
        (28, Fraction(7, 1))

    References:
        Cacciola et al., equation (1); Higham 2002, section 2.1.
    """

    beta: int
    t: int
    emin: int
    emax: int

    def __post_init__(self) -> None:
        """Check types and ranges."""
        for name in ("beta", "t", "emin", "emax"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f"{name} must be an int, got {value!r} of type "
                    f"{type(value).__name__}"
                )
        if self.beta < 2:
            raise ValueError(f"beta must be 2 or more, got {self.beta}")
        if self.t < 1:
            raise ValueError(f"t must be 1 or more, got {self.t}")
        if self.emin > self.emax:
            raise ValueError(f"emin={self.emin} must not be above emax={self.emax}")

    def _power(self, exponent: int) -> Fraction:
        return Fraction(self.beta) ** exponent

    @property
    def max(self) -> Fraction:
        """Largest value, beta^emax (1 - beta^-t)."""
        return self._power(self.emax) * (1 - self._power(-self.t))

    @property
    def smallest_normal(self) -> Fraction:
        """beta^(emin-1)."""
        return self._power(self.emin - 1)

    @property
    def smallest_positive(self) -> Fraction:
        """beta^(emin-t)."""
        return self._power(self.emin - self.t)

    def values(self) -> list[Fraction]:
        """Return the non-negative values in ascending order.

        Their number is (beta-1) beta^(t-1) (emax-emin+1) + beta^(t-1).

        Returns:
            List of fractions, zero first.

        Example:
            >>> System(2, 1, 0, 1).values()
            [Fraction(0, 1), Fraction(1, 2), Fraction(1, 1)]
        """
        lowest = self.beta ** (self.t - 1)
        values = [m * self.smallest_positive for m in range(lowest)]
        for e in range(self.emin, self.emax + 1):
            quantum = self._power(e - self.t)
            values += [m * quantum for m in range(lowest, self.beta**self.t)]
        return values

    def _exponent(self, size: Fraction) -> int:
        """Return e with beta^(e-1) <= size < beta^e."""
        bits = size.numerator.bit_length() - size.denominator.bit_length()
        e = math.floor(bits / math.log2(self.beta))  # a guess; the loops make it exact
        while self._power(e) <= size:
            e += 1
        while size < self._power(e - 1):
            e -= 1
        return e

    def round(
        self, x: Fraction | int | float, mode: str = "rn", overflow: str = "inf"
    ) -> Fraction | float:
        """Round a real number to the system.

        Contract:
            Exact. Zero is unsigned. With ``overflow="inf"``, ``"rn"`` overflows from
            beta^emax (1 - beta^-t / 2) on, half a quantum above the largest value.

        Args:
            x: a finite number.
            mode: ``"rn"`` (ties to even multiples of the quantum), ``"rz"``, ``"rd"``
                or ``"ru"``, or the `RoundingMode` of the same meaning.
            overflow: ``"inf"`` or ``"saturate"`` (the paper's projection).

        Returns:
            The rounded number, or an infinite float.

        Raises:
            ValueError: if ``mode`` or ``overflow`` is unknown, or ``x`` not finite.

        Example:
            >>> System(10, 2, -1, 1).round(Fraction(1, 3))
            Fraction(33, 100)
        """
        mode = _MODES.get(mode, mode)
        if mode not in _MODES.values() or overflow not in _OVERFLOWS:
            raise ValueError(
                f"mode must be one of {list(_MODES)} or {list(_MODES.values())} and "
                f"overflow one of {_OVERFLOWS}, "
                f"got {mode!r} and {overflow!r}"
            )
        if isinstance(x, float) and not math.isfinite(x):
            raise ValueError(f"System.round takes finite numbers, got {x!r}")
        exact = Fraction(x)
        if exact == 0:
            return Fraction(0)
        size, negative = abs(exact), exact < 0
        quantum = self._power(max(self._exponent(size), self.emin) - self.t)
        quanta = size / quantum
        k = math.floor(quanta)
        if mode == "rn":
            k = round(quanta)  # Python rounds ties of a Fraction to even
        elif quanta != k and mode == ("rd" if negative else "ru"):
            k += 1
        result = k * quantum
        # An odd base has an even largest significand, so its tie would stay there.
        threshold = self._power(self.emax) * (1 - self._power(-self.t) / 2)
        if result > self.max or (mode == "rn" and size >= threshold):
            toward_zero = mode == "rz" or mode == ("ru" if negative else "rd")
            if overflow == "inf" and not toward_zero:
                return -math.inf if negative else math.inf
            result = self.max
        return -result if negative else result
