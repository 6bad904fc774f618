"""What one rounding to a finite set of numbers is: a frozen value without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from .formats import Levels, Posit
from .rounding import Rounding, RoundingMode, Variant

__all__ = ["TableFormat", "TableRounding", "is_table_name"]

TableFormat: TypeAlias = "Posit | Levels"

_TAPERED = 4 + 8 + 512  # flags of posits: NaN, a sign, and what they are


def is_table_name(name: str) -> bool:
    """Return whether a name is meant to be that of a posit."""
    return name.strip().lower().startswith("posit")


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

    Args:
        format: a `Posit`, its name such as ``"posit16"``, or `Levels`.
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
        random_bits: int = 32,
        variant: Variant | str = Variant.A,
    ) -> None:
        """Normalise names to values and check ranges."""
        chosen = Posit.from_name(format) if isinstance(format, str) else format
        if chosen is None:
            raise ValueError(
                f"unknown posit {format!r}: write positN or positN_E, with E exponent "
                "bits, such as 'posit16_1'"
            )
        if not isinstance(chosen, (Posit, Levels)):
            raise TypeError(
                "a table is a Posit, a name such as 'posit16', or Levels; got "
                f"{format!r} of type {type(format).__name__}"
            )
        # Any format will do to check the others.
        plain = Rounding("binary32", mode, "none", random_bits, variant)
        if plain.mode is RoundingMode.TO_ODD and chosen.table.odd is None:
            raise ValueError(f"{chosen!r} has no odd numbers: use another mode")
        set_field = object.__setattr__
        set_field(self, "format", chosen)
        for name in ("mode", "random_bits", "variant"):
            set_field(self, name, getattr(plain, name))
        set_field(self, "_code", _integers(chosen, plain.code))

    def __repr__(self) -> str:
        """Return one line that evaluates back, only what differs from the default."""
        parts = [repr(self.format.name or self.format)]
        if self.mode is not RoundingMode.NEAREST_EVEN:
            parts.append(repr(self.mode.value))
        if self.random_bits != 32:
            parts.append(f"random_bits={self.random_bits}")
        if self.variant is not Variant.A:
            parts.append(f"variant={self.variant.value!r}")
        return f"TableRounding({', '.join(parts)})"

    @property
    def code(self) -> tuple[int, ...]:
        """The integers that kernels take (`lowprec.kernels.RoundingCode`).

        Of levels only the last four of nine mean something.
        """
        return self._code

    @property
    def stochastic(self) -> bool:
        """Whether results depend on random bits."""
        return self.mode in (RoundingMode.STOCHASTIC, RoundingMode.STOCHASTIC_EQUAL)


def _integers(format: TableFormat, plain: tuple[int, ...]) -> tuple[int, ...]:
    """Return the code of a rounding to ``format`` instead of another one's."""
    if isinstance(format, Levels):
        return (*plain[:4], 0, *plain[5:])
    end = (format.bits - 2) << format.es
    return (format.bits, -end, end, 1, _TAPERED, *plain[5:])
