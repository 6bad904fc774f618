"""From names and dtypes to formats."""

from __future__ import annotations

import difflib
import re
from typing import Any

from ._format import Format
from ._registry import ALIASES, KNOWN

__all__ = ["format"]

_MOST_EXPONENT_BITS = 20
_EXMY = re.compile(r"e(\d{1,4})m(\d{1,4})")
_HELP = (
    "write eXmY for an IEEE-like format with X exponent and Y stored significand bits "
    "(X >= 2, Y >= 1), such as 'e6m8', or see lowprec.formats()"
)


def _from_widths(name: str, width: int, stored: int) -> Format:
    if stored == 0:
        raise ValueError(
            f"{name!r} has a zero-width mantissa: with no stored significand bit the "
            "reserved exponent field cannot tell infinity from NaN; use Y >= 1, or "
            "Format(precision=1, emax=...) for a set of powers of two"
        )
    if not 2 <= width <= _MOST_EXPONENT_BITS:
        raise ValueError(
            f"{name!r} has an exponent field of width {width}: eXmY needs X from 2 to "
            f"{_MOST_EXPONENT_BITS} (one exponent code is for zero and subnormals, one "
            "for infinity and NaN, the others are for normal numbers)"
        )
    return Format(precision=stored + 1, emax=2 ** (width - 1) - 1, name=name)


def _from_name(given: str) -> Format:
    name = given.strip().lower().removeprefix("torch.")
    name = ALIASES.get(name, name)
    if name in KNOWN:
        return KNOWN[name]
    if widths := _EXMY.fullmatch(name):
        width, stored = int(widths[1]), int(widths[2])
        return _from_widths(f"e{width}m{stored}", width, stored)
    from ._block_registry import is_block_name  # which needs this module

    if is_block_name(name):
        raise ValueError(
            f"{given!r} is a block format, whose blocks run along an axis: it stands "
            "where lowprec.round, or a Precision's input, weight or grad_output does; "
            "lowprec.block_format returns it"
        )
    near = difflib.get_close_matches(name, [*KNOWN, *ALIASES], n=3, cutoff=0.6)
    suggestion = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown format {given!r}: {suggestion}{_HELP}")


def _dtype_name(obj: Any) -> str | None:
    """Return the name of a torch, NumPy or ml_dtypes dtype, without importing them."""
    kind = obj if isinstance(obj, type) else type(obj)
    library = kind.__module__.partition(".")[0]
    if library == "torch" and kind.__name__ == "dtype":
        return str(obj)
    if library in ("numpy", "ml_dtypes"):
        name = obj.__name__ if isinstance(obj, type) else getattr(obj, "name", None)
        return name if isinstance(name, str) else None
    return None


def format(obj: Any) -> Format:
    """Return the format that a name, a dtype or a format stands for.

    ``eXmY`` has X exponent bits and Y stored significand bits in the manner of IEEE
    754: precision = Y + 1, emax = 2^(X-1) - 1, subnormals, infinities and NaN.

    Contract:
        A pure function; names are case-insensitive; a `Format` is returned unchanged.

    Args:
        obj: a `Format`, a name such as ``"bfloat16"``, ``"e4m3fn"`` or ``"e6m8"``, or
            a torch, NumPy or ml_dtypes dtype.

    Returns:
        The format.

    Raises:
        TypeError: if ``obj`` is neither a format nor a name nor a dtype.
        ValueError: if the name is unknown or denotes no format.

    Example:
        >>> format("e6m8") == Format(precision=9, emax=31)
        True

    References:
        IEEE 754-2019, section 3.4; OCP 8-bit floating point specification 1.0.
    """
    if isinstance(obj, Format):
        return obj
    name = obj if isinstance(obj, str) else _dtype_name(obj)
    if name is None:
        raise TypeError(
            "a format is a Format, a name such as 'bfloat16' or 'e6m8', or a dtype; "
            f"got {obj!r} of type {type(obj).__name__}"
        )
    return _from_name(name)
