"""What one rounding to a finite set of numbers is: a frozen value without torch."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from .formats import Levels, Posit, table_format
from .rounding_modes import (
    MOST_RANDOM_BITS,
    RoundingMode,
    Saturation,
    Variant,
    checked_random_bits,
    is_stochastic,
    member,
    position,
)

__all__ = ["TableFormat", "TableRounding", "is_table_name"]

TableFormat: TypeAlias = "Posit | Levels"

# Of a format in place of levels, for kernels that ask how far values reach.
_DIGITS, _LARGEST_EXPONENT = 51, 840
_NANS, _SIGNED, _TAPERED, _LEVELS = 4, 8, 512, 1024  # of lowprec.kernels.codes


def is_table_name(name: str) -> bool:
    """Return whether a name is meant to be that of a posit or of levels."""
    posit = name.strip().lower().startswith("posit")
    return posit or Levels.from_name(name) is not None


@dataclass(frozen=True, init=False)
class TableRounding:
    """A map from the reals to posits or to levels, which are no floating point.

    x between neighbours a < b becomes one of them: the nearer one (of posits, by the
    code), the one in the mode's direction, or at random with the probabilities
    (x - a)/(b - a) and the rest, away from zero being up.

    Contract:
        Results are always numbers of the set: beyond its ends the ends stand. NaN
        stays NaN; infinity becomes an end of the levels, and NaR, hence NaN, in posits.
        ``nearest_even`` takes ties of posits to even codes and ties of levels, which
        have no even ones, to the upper level. The other modes do what they do in
        `Rounding`. Stochastic modes are pure functions of (seed, element index).
        Operations round the exact result once, except to levels of more than 52 bits,
        which they refuse.

    Args:
        format: a `Posit` or `Levels`, or a name such as ``"posit16"`` or
            ``"ternary"``.
        mode: a `RoundingMode` or its name.
        random_bits: random bits per rounding, 1 to 32.
        variant: a `Variant` or its name.

    Raises:
        TypeError: if ``format`` is neither or ``random_bits`` no integer.
        ValueError: if a name is unknown, ``random_bits`` is out of range, or levels
            shall be rounded to odd.

    Example:
        >>> TableRounding("posit8_0", "toward_zero").format
        Posit(bits=8, es=0)

    References:
        Standard for Posit Arithmetic, 2022, section 4.1.
    """

    format: TableFormat
    mode: RoundingMode
    random_bits: int
    variant: Variant
    _code: ClassVar[tuple[int, ...]]  # not a field: it follows from them

    def __init__(
        self,
        format: TableFormat | str,
        mode: RoundingMode | str = RoundingMode.NEAREST_EVEN,
        random_bits: int = MOST_RANDOM_BITS,
        variant: Variant | str = Variant.A,
    ) -> None:
        """Normalise names to values and check ranges."""
        chosen = table_format(format) if isinstance(format, str) else format
        if chosen is None:
            raise ValueError(
                f"unknown posit {format!r}: write positN or positN_E, with E exponent "
                "bits, such as 'posit16_1'; levels are 'binary', 'ternary', "
                "'int_bits(N)' and 'symmetric_int(N)'"
            )
        if not isinstance(chosen, (Posit, Levels)):
            raise TypeError(
                "a table is a Posit, a name such as 'posit16', or Levels; got "
                f"{format!r} of type {type(format).__name__}"
            )
        set_field = object.__setattr__
        set_field(self, "format", chosen)
        set_field(self, "mode", member(RoundingMode, mode, "rounding mode"))
        set_field(self, "variant", member(Variant, variant, "variant"))
        set_field(self, "random_bits", checked_random_bits(random_bits))
        if self.mode is RoundingMode.TO_ODD and isinstance(chosen, Levels):
            raise ValueError(f"{chosen!r} has no odd numbers: use another mode")
        set_field(self, "_code", self._integers())

    def __repr__(self) -> str:
        """Return one line that evaluates back, only what differs from the default."""
        parts = [repr(self.format.name or self.format)]
        if self.mode is not RoundingMode.NEAREST_EVEN:
            parts.append(repr(self.mode.value))
        if self.random_bits != MOST_RANDOM_BITS:
            parts.append(f"random_bits={self.random_bits}")
        if self.variant is not Variant.A:
            parts.append(f"variant={self.variant.value!r}")
        return f"TableRounding({', '.join(parts)})"

    @property
    def stochastic(self) -> bool:
        """Whether results depend on random bits."""
        return is_stochastic(self.mode)

    @property
    def code(self) -> tuple[int, ...]:
        """The integers that kernels take: nine, and the bits of levels behind them."""
        return self._code

    def _integers(self) -> tuple[int, ...]:
        target = self.format
        mode = (
            position(self.mode),
            position(Saturation.NONE),
            self.random_bits,
            position(self.variant),
        )
        if isinstance(target, Posit):
            end = (target.bits - 2) << target.es
            return (target.bits, -end, end, 1, _TAPERED | _SIGNED | _NANS, *mode)
        levels = struct.pack(f"<{len(target)}d", *target.values)
        return (
            _DIGITS,
            -_LARGEST_EXPONENT,
            _LARGEST_EXPONENT,
            (1 << _DIGITS) - 1,
            _LEVELS | _SIGNED,
            *mode,
            *struct.unpack(f"<{len(target)}q", levels),
        )
