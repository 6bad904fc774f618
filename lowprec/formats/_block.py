"""Block formats: elements of a small format that share one scale per block."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any

from ._exact import floor_log2
from ._format import Format
from ._html import Shown
from ._line import FormatLine, Line
from ._parse import format as as_format
from ._validation import check_name

__all__ = ["BlockFormat", "ScaleRule", "SharedExponent"]

# The kernels divide integers: quotients have 50 bits, of which stochastic rounding of
# the elements wants precision + 34, and divisors have at most 28, in binary32 24.
_WIDEST_ELEMENT = 16
_WIDEST_DIVISOR = 28
_WIDEST_STEP = 24
_WIDEST_EXPONENT = 8


class ScaleRule(StrEnum):
    """How the scale of a block follows from its largest magnitude, amax.

    With E the exponent of the element's largest binade, M its largest value and p its
    precision, a shared exponent k is, before it is clamped to its range,
    ``floor``: floor(log2 amax) - E (OCP MX 1.0);
    ``ceil``: ceil(log2 amax) - E;
    ``rceil``: the smallest k with amax <= M 2^k (NVIDIA's for MXFP8);
    ``even``: floor(log2 r) - E, r being amax rounded to p bits, ties to even (Quark).
    A scale s with a significand, with t the scale of the whole tensor (1 if there is
    none), is
    ``amax``: fl_scale(amax / (M t)), one rounding, and at least the smallest positive
    scale;
    ``nv``: the same in steps that each round to binary32, as NVFP4 software does.

    References:
        OCP Microscaling Formats 1.0, section 6.3; cuBLAS documentation, "1D block
        scaling"; NVIDIA, Pretraining LLMs with NVFP4, 2025.
    """

    FLOOR = "floor"
    CEIL = "ceil"
    RCEIL = "rceil"
    EVEN = "even"
    AMAX = "amax"
    NV = "nv"


_OF_EXPONENTS = (ScaleRule.FLOOR, ScaleRule.CEIL, ScaleRule.RCEIL, ScaleRule.EVEN)
_OF_FORMATS = (ScaleRule.AMAX, ScaleRule.NV)


@dataclass(frozen=True)
class SharedExponent:
    """A scale 2^k, -bias <= k <= bias = 2^(bits-1) - 1, with code k + bias.

    The code of all ones is NaN; there is no zero. With 8 bits this is E8M0.

    Args:
        bits: width of a code in bits, 2 to 8.

    Raises:
        TypeError: if ``bits`` is not an int.
        ValueError: if it is out of range.

    Example:
        >>> SharedExponent(8).bias
        127

    References:
        OCP Microscaling Formats 1.0, section 5.4.1.
    """

    bits: int = _WIDEST_EXPONENT

    def __post_init__(self) -> None:
        """Check the range."""
        _check_size("bits of a shared exponent", self.bits, 2)
        if self.bits > _WIDEST_EXPONENT:
            raise ValueError(
                f"a shared exponent has 2 to {_WIDEST_EXPONENT} bits, got {self.bits}"
            )

    @property
    def bias(self) -> int:
        """Largest exponent, and minus the smallest."""
        return (1 << (self.bits - 1)) - 1


def _check_size(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an int, got {value!r} of type {type(value).__name__}"
        )
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _as_scale(value: Any) -> SharedExponent | Format:
    if isinstance(value, SharedExponent):
        return value
    if isinstance(value, str) and value.strip().lower() == "e8m0":
        return SharedExponent()
    scale = as_format(value)
    return scale if scale.zero else SharedExponent()  # E8M0 by its other names


@dataclass(frozen=True, init=False, repr=False)
class BlockFormat(Shown):
    """Numbers q s: elements q of a small format, one scale s per block of them.

    With ``tensor_scale`` the numbers are q s t, t being one more scale for the whole
    tensor (NVFP4). A tensor is cut into blocks along one of its axes; a last block that
    is shorter has its own scale all the same.

    Contract:
        Fixed-point elements (classic block floating point, MXINT8) are a `Format` whose
        emin is its emax: k 2^(emin-p+1), |k| < 2^p. A block of zeros has the smallest
        scale. A block that contains NaN or infinity has the scale NaN, and all its
        elements are NaN. Equality does not count the name.

    Args:
        element: a `Format` or its name, at most 16 bits precise and within the range
            of binary32.
        scale: `SharedExponent`, ``"e8m0"``, or a `Format` with NaN, or its name, such
            as ``"e4m3fn"``, of which the non-negative values are used.
        block_size: elements per block, positive.
        rule: a `ScaleRule` or its name; None means ``floor`` for shared exponents and
            ``amax`` for formats.
        tensor_scale: `Format` of the second scale, or None; needs a scale that is a
            `Format`.
        name: what to call it; not compared.

    Raises:
        TypeError: if a field has the wrong type.
        ValueError: if fields contradict each other or are out of range.

    Example:
        >>> mx = BlockFormat("e4m3fn", "e8m0", 32)
        >>> mx.bits_per_value
        8.25

    References:
        OCP Microscaling Formats 1.0; Rouhani et al. 2020 (MSFP); NVIDIA 2025 (NVFP4).
    """

    element: Format
    scale: SharedExponent | Format
    block_size: int
    rule: ScaleRule
    tensor_scale: Format | None
    name: str | None = field(compare=False)

    def __init__(
        self,
        element: Format | str,
        scale: SharedExponent | Format | str = "e8m0",
        block_size: int = 32,
        rule: ScaleRule | str | None = None,
        tensor_scale: Format | str | None = None,
        name: str | None = None,
    ) -> None:
        """Normalise names and check that the fields agree."""
        set_field = object.__setattr__
        set_field(self, "element", as_format(element))
        set_field(self, "scale", _as_scale(scale))
        _check_size("block_size", block_size, 1)
        set_field(self, "block_size", block_size)
        set_field(self, "rule", _rule(self.scale, rule))
        set_field(
            self,
            "tensor_scale",
            None if tensor_scale is None else as_format(tensor_scale),
        )
        check_name(name)
        set_field(self, "name", name)
        _validate(self)

    @classmethod
    def fixed_point(
        cls, bits: int, block_size: int = 16, *, exponent_bits: int = 8
    ) -> BlockFormat:
        """Return classic block floating point: a shared exponent, signed magnitudes.

        Args:
            bits: width of an element, sign and magnitude (no implicit bit), 2 to 17.
            block_size: elements per block.
            exponent_bits: width of the shared exponent, 2 to 8.

        Returns:
            The format; each element is k 2^(2-bits) with |k| < 2^(bits-1).

        Raises:
            TypeError: if an argument is not an int.
            ValueError: if one is out of range.

        Example:
            >>> BlockFormat.fixed_point(4).element.max
            1.75

        References:
            Wilkinson 1963, section 1.3; Rouhani et al. 2020.
        """
        _check_size("bits", bits, 2)
        element = _fixed_point(bits - 1)
        return cls(element, SharedExponent(exponent_bits), block_size)

    def __repr__(self) -> str:
        """Return one line that evaluates back."""
        parts = [_short(self.element), _short(self.scale), repr(self.block_size)]
        if self.rule is not _default_rule(self.scale):
            parts.append(f"rule={self.rule.value!r}")
        if self.tensor_scale is not None:
            parts.append(f"tensor_scale={_short(self.tensor_scale)}")
        if self.name is not None:
            parts.append(f"name={self.name!r}")
        return f"BlockFormat({', '.join(parts)})"

    @property
    def line(self) -> Line:
        """The elements as pictures ask for them, in units of their block's scale."""
        return FormatLine(self.name or repr(self), self.element, "the block's scale")

    def properties(self) -> dict[str, str]:
        """Return the properties as text by their labels."""
        scale = self.scale
        if isinstance(scale, SharedExponent):
            text = f"2^k, |k| <= {scale.bias} ({scale.bits} bits)"
        else:
            text = f"{_label(scale)} ({scale.bits} bits)"
        return {
            "": self.name or "(no name)",
            "element": f"{_label(self.element)} ({self.element.bits} bits)",
            "largest element": f"{self.element.max:g}",
            "scale": text,
            "scale of the tensor": _label(self.tensor_scale),
            "rule": self.rule.value,
            "block size": f"{self.block_size}",
            "bits per value": f"{self.bits_per_value:g}",
        }

    @property
    def scale_bits(self) -> int:
        """Width of the code of a block's scale in bits."""
        return self.scale.bits

    @property
    def bits_per_value(self) -> float:
        """Storage per value in bits, the block's scale shared out."""
        return self.element.bits + self.scale_bits / self.block_size

    def replace(self, **changes: Any) -> BlockFormat:
        """Return a copy with some fields changed; it has no name unless one is given.

        Args:
            **changes: fields and their new values.

        Returns:
            The new format.

        Example:
            >>> BlockFormat("e2m1fn").replace(rule="even").rule.value
            'even'
        """
        kept = {
            "element": self.element,
            "scale": self.scale,
            "block_size": self.block_size,
            "rule": self.rule,
            "tensor_scale": self.tensor_scale,
        }
        return BlockFormat(**(kept | changes))


def _fixed_point(magnitude_bits: int, signed_zero: bool = True) -> Format:
    return Format(
        precision=magnitude_bits,
        emax=0,
        emin=0,
        infinities=False,
        nans=False,
        signed_zero=signed_zero,
        encoding="finite",
    )


def _label(format: Format | None) -> str:
    if format is None:
        return "none"
    if format.name is not None:
        return format.name
    if format.emin == format.emax:
        return f"fixed point, {format.precision} magnitude bits"
    return repr(format)


def _short(value: SharedExponent | Format) -> str:
    if value == SharedExponent():
        return "'e8m0'"
    if isinstance(value, SharedExponent) or value.name is None:
        return repr(value)
    try:
        known = as_format(value.name) == value
    except ValueError:
        known = False
    return repr(value.name if known else value)


def _default_rule(scale: SharedExponent | Format) -> ScaleRule:
    return ScaleRule.FLOOR if isinstance(scale, SharedExponent) else ScaleRule.AMAX


def _rule(scale: SharedExponent | Format, given: Any) -> ScaleRule:
    if given is None:
        return _default_rule(scale)
    shared = isinstance(scale, SharedExponent)
    allowed = _OF_EXPONENTS if shared else _OF_FORMATS
    if given not in list(allowed):
        names = ", ".join(repr(rule.value) for rule in allowed)
        kind = "a shared exponent" if shared else "a scale with a significand"
        raise ValueError(f"the rule of {kind} must be one of {names}, got {given!r}")
    return ScaleRule(given)


def _significant_bits(value: Any) -> int:
    """Return the bits from the first to the last one of a positive number."""
    numerator = Fraction(value).numerator
    return (numerator // (numerator & -numerator)).bit_length()


def _is_within_binary32(format: Format) -> bool:
    binary32 = as_format("binary32")
    smallest = floor_log2(Fraction(format.smallest_subnormal))
    return (
        Fraction(format.max) <= Fraction(binary32.max)
        and smallest >= floor_log2(Fraction(binary32.smallest_subnormal))
        and format.precision <= binary32.precision
    )


def _validate(format: BlockFormat) -> None:
    element, scale, second = format.element, format.scale, format.tensor_scale
    if element.precision > _WIDEST_ELEMENT or not _is_within_binary32(element):
        raise ValueError(
            f"the element of a block format has at most {_WIDEST_ELEMENT} bits of "
            f"precision and values within the range of binary32, got {element!r}"
        )
    for each in (scale, second):
        if isinstance(each, Format) and not _is_within_binary32(each):
            raise ValueError(
                f"scales must have values that binary32 has too, got {each!r}"
            )
    if isinstance(scale, SharedExponent):
        if second is not None:
            raise ValueError(
                "tensor_scale needs a scale with a significand, such as 'e4m3fn'; "
                f"got {scale!r}"
            )
        return
    if not scale.nans:
        raise ValueError(
            f"the scale of a block must be able to say NaN, which {scale!r} cannot"
        )
    # Dividends are divided by the element's largest value, the scales, their products.
    widest = _WIDEST_STEP if format.rule is ScaleRule.NV else _WIDEST_DIVISOR
    top = Fraction(element.max)
    width = 0 if second is None else second.precision
    divisors = (
        scale.precision + width,
        _significant_bits(top) + width,
        _significant_bits(top * Fraction(scale.max)),
    )
    if max(divisors) > _WIDEST_DIVISOR or max(divisors[2], width) > widest:
        raise ValueError(
            "scales, times each other and times the largest element, must have at most "
            f"{widest} significant bits, got {max(divisors)}"
        )
