"""What one rounding to a block format is: a frozen value without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .formats import BlockFormat, block_format, is_block_name
from .rounding import (
    Rounding,
    RoundingMode,
    Saturation,
    ScalarRounding,
    ScalarRoundingLike,
    Variant,
    as_scalar_rounding,
)

__all__ = [
    "AnyRounding",
    "BlockRounding",
    "BlockRoundingLike",
    "OperandLike",
    "as_any_rounding",
]

AnyRounding: TypeAlias = "ScalarRounding | BlockRounding"
BlockRoundingLike: TypeAlias = "BlockRounding | BlockFormat | str"
OperandLike: TypeAlias = "ScalarRoundingLike | BlockRoundingLike"


@dataclass(frozen=True, init=False)
class BlockRounding:
    """A map from blocks of reals to a block format.

    The scale S of each block is chosen by the format's rule; each element becomes
    fl_element(x / S) S, with one rounding of the exact quotient.

    Contract:
        The mode is that of the elements; scales follow the format's rule. Elements
        beyond the largest saturate, as OCP MX prescribes, unless told otherwise.
        Stochastic modes are pure functions of (seed, element index).

    Args:
        format: a `BlockFormat` or its name, such as ``"mxfp8_e4m3"``.
        mode: a `RoundingMode` or its name, for the elements.
        saturation: a `Saturation` or its name, for the elements.
        random_bits: random bits per rounding, 1 to 32.
        variant: a `Variant` or its name.

    Raises:
        TypeError: if ``format`` is no block format or ``random_bits`` no integer.
        ValueError: if a name is unknown or ``random_bits`` is out of range.

    Example:
        >>> BlockRounding("mxfp4", "stochastic").element.mode.value
        'stochastic'

    References:
        OCP Microscaling Formats 1.0, section 6.3.
    """

    format: BlockFormat
    mode: RoundingMode
    saturation: Saturation
    random_bits: int
    variant: Variant
    element: Rounding = field(init=False, compare=False)  # it follows from them

    def __init__(
        self,
        format: BlockFormat | str,
        mode: RoundingMode | str = RoundingMode.NEAREST_EVEN,
        saturation: Saturation | str = Saturation.FINITE,
        random_bits: int = 32,
        variant: Variant | str = Variant.A,
    ) -> None:
        """Normalise names to values and check ranges."""
        chosen = block_format(format)
        element = Rounding(chosen.element, mode, saturation, random_bits, variant)
        set_field = object.__setattr__
        set_field(self, "format", chosen)
        for name in ("mode", "saturation", "random_bits", "variant"):
            set_field(self, name, getattr(element, name))
        set_field(self, "element", element)

    def __repr__(self) -> str:
        """Return one line that evaluates back, only what differs from the default."""
        plain = BlockRounding(self.format)
        parts = [repr(self.format.name) if self.named else repr(self.format)]
        for name in ("mode", "saturation", "random_bits", "variant"):
            value = getattr(self, name)
            if value != getattr(plain, name):
                parts.append(f"{name}={getattr(value, 'value', value)!r}")
        return f"BlockRounding({', '.join(parts)})"

    @property
    def named(self) -> bool:
        """Whether the format's name alone gives it back."""
        name = self.format.name
        known = name is not None and is_block_name(name)
        return known and block_format(name) == self.format

    @property
    def stochastic(self) -> bool:
        """Whether results depend on random bits."""
        return self.element.stochastic


def as_any_rounding(value: Any) -> AnyRounding:
    """Return ``value`` as a `Rounding`, or as that of blocks or of tables.

    Args:
        value: what `as_scalar_rounding` takes, or a `BlockRounding`, a `BlockFormat`
            or the name of one.

    Returns:
        The rounding.

    Raises:
        TypeError: if ``value`` is none of these.
        ValueError: if it is an unknown name.

    Example:
        >>> as_any_rounding("mxfp8_e4m3")
        BlockRounding('mxfp8_e4m3')
        >>> as_any_rounding("bfloat16")
        Rounding('bfloat16')
    """
    if isinstance(value, BlockRounding):
        return value
    if isinstance(value, BlockFormat) or (
        isinstance(value, str) and is_block_name(value)
    ):
        return BlockRounding(value)
    return as_scalar_rounding(value)
