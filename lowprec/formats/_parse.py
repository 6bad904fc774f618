"""From names and dtypes to formats."""

from __future__ import annotations

import difflib
from typing import Any

from ._families import from_family
from ._format import Format
from ._levels import Levels
from ._peers import from_peer
from ._posit import Posit
from ._registry import ALIASES, KNOWN

__all__ = ["format"]

_HELP = (
    "write eXmY for an IEEE-like format with X exponent and Y stored significand bits "
    "(X >= 2, Y >= 1), such as 'e6m8', eXmYbB for one with bias B, eXmYbBfn or "
    "eXmYbBfnuz for one without infinities, intN, fixedWfF for fixed point, binaryKpP "
    "for P3109, or see lowprec.formats()"
)
_PLACES = (
    "stands where lowprec.round, or a Precision's input, weight or grad_output does"
)


def _refusal(obj: Any, given: str) -> str | None:
    """Return why sets of numbers that are no `Format` are none, None for the rest."""
    from ._block import BlockFormat  # which needs this module

    if isinstance(obj, BlockFormat):
        return (
            f"{given} is a block format, whose blocks run along an axis: it {_PLACES}; "
            "lowprec.block_format returns it"
        )
    if isinstance(obj, Posit):
        return (
            f"{given} is a posit, which {_PLACES}, in an Accumulator and in arithmetic "
            "such as lowprec.add; lowprec.Posit(bits, es) makes it"
        )
    if isinstance(obj, Levels):
        return (
            f"{given} are levels, whose set {_PLACES}, in an Accumulator and in "
            "arithmetic such as lowprec.add"
        )
    return None


def _from_name(given: str) -> Format:
    name = given.strip().lower().removeprefix("torch.")
    name = ALIASES.get(name, name)
    if name in KNOWN:
        return KNOWN[name]
    member = from_family(name)
    if member is not None:
        return member
    from ._any import table_format  # these modules need this one
    from ._block_registry import block_format, is_block_name

    other = block_format(name) if is_block_name(name) else table_format(name)
    refusal = _refusal(other, repr(given))
    if refusal is not None:
        raise ValueError(refusal)
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
    754: precision = Y + 1, emax = 2^(X-1) - 1, subnormals, infinities and NaN;
    ``eXmYbB`` has the exponent bias B instead of 2^(X-1) - 1. With ``fn`` behind the
    bias every code is a finite value (HFP8 with another bias: ``e4m3b5fn``), with
    ``fnuz`` every code but that of -0, which is NaN. ``e4m3fn``, without a bias, is
    the format of OCP, whose last code is NaN. ``intN`` and ``uintN``
    are integers of N bits, ``fixedWfF`` and ``ufixedWfF`` fixed point of W bits, F of
    them behind the point. ``binaryKpP`` are the formats of P3109, followed by ``s`` or
    ``u`` (signed, unsigned) and ``e`` or ``f`` (extended by infinity, finite); left
    out, they mean ``se``.

    Contract:
        A pure function; names are case-insensitive; a `Format` is returned unchanged.

    Args:
        obj: a `Format`, a name such as ``"bfloat16"``, ``"e4m3fn"`` or ``"e6m8"``, or
            a torch, NumPy or ml_dtypes dtype, or a number object of QPyTorch, whose
            floating point reserves no exponent: the format of its name does.

    Returns:
        The format.

    Raises:
        TypeError: if ``obj`` is neither a format nor a name nor a dtype.
        ValueError: if the name is unknown or denotes no format.

    Example:
        >>> format("e6m8") == Format(precision=9, emax=31)
        True

    References:
        IEEE 754-2019, section 3.4; OCP 8-bit floating point specification 1.0; P3109
        interim report 3.2.2.
    """
    if isinstance(obj, Format):
        return obj
    name = obj if isinstance(obj, str) else _dtype_name(obj)
    if name is None and (peers := from_peer(obj)) is not None:
        return peers
    if name is None and (refusal := _refusal(obj, repr(obj))) is not None:
        raise TypeError(refusal)
    if name is None:
        raise TypeError(
            "a format is a Format, a name such as 'bfloat16' or 'e6m8', a dtype, or a "
            "number object of qtorch; "
            f"got {obj!r} of type {type(obj).__name__}"
        )
    return _from_name(name)
