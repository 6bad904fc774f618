"""Number objects of other libraries, recognised without importing them."""

from __future__ import annotations

from typing import Any

from ._families import from_family
from ._format import Format

__all__ = ["from_peer"]


def from_peer(obj: Any) -> Format | None:
    """Return the format that an object of QPyTorch means, None for other objects.

    QPyTorch's floating point reserves no exponent for infinity and NaN; what is meant
    by it is the IEEE 754 format of the same widths.

    Raises:
        ValueError: for its block floating point, which is no `Format`, and for fixed
            point that is not clamped, which has no largest value.
    """
    kind = type(obj)
    if kind.__module__.partition(".")[0] != "qtorch":
        return None
    match kind.__name__:
        case "FloatingPoint":
            return from_family(f"e{obj.exp}m{obj.man}")
        case "FixedPoint" if obj.clamp and not obj.symmetric:
            return from_family(f"fixed{obj.wl}f{obj.fl}")
        case "FixedPoint" if obj.clamp:
            return Format.fixed_point(obj.wl, obj.fl, symmetric=True)
        case "FixedPoint":
            raise ValueError(
                "qtorch's FixedPoint with clamp=False has no largest value: clamp it, "
                f"or use Format.fixed_point(word, {obj.fl}) with a wide word"
            )
        case "BlockFloatingPoint":
            # A slice has all axes but one, a block of ours one axis.
            across = (
                "a whole tensor" if obj.dim == -1 else f"each slice of dim {obj.dim}"
            )
            raise ValueError(
                f"qtorch's BlockFloatingPoint shares an exponent among {across}, which "
                "may have several axes, where blocks of lowprec run along one: use "
                f"lowprec.BlockFormat.fixed_point({obj.wl}, block_size)"
            )
    return None
