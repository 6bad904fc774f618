"""Families of formats, whose members are named by their widths."""

from __future__ import annotations

import re

from ._format import Format

__all__ = ["from_family"]

_MOST_EXPONENT_BITS = 20
_EXMY = re.compile(r"e(\d{1,4})m(\d{1,4})(?:b(-?\d{1,5}))?")
_FULL = re.compile(r"e(\d{1,4})m(\d{1,4})b(-?\d{1,5})(fn|fnuz)")
_INTEGER = re.compile(r"(u?)int(\d{1,3})")
_FIXED = re.compile(r"(u?)fixed(\d{1,3})f(-?\d{1,4})")
_P3109 = re.compile(r"binary(\d{1,2})p(\d{1,2})([su]?)([ef]?)")


def from_family(name: str) -> Format | None:
    """Return the format of a name such as ``e6m8``, None if it is of no family.

    Raises:
        ValueError: if the widths in the name denote no format.
    """
    if found := _EXMY.fullmatch(name):
        bias = None if found[3] is None else int(found[3])
        return _ieee(int(found[1]), int(found[2]), bias)
    if found := _FULL.fullmatch(name):
        width, stored, bias = (int(found[i]) for i in (1, 2, 3))
        return _without_reserved_field(width, stored, bias, found[4])
    if found := _INTEGER.fullmatch(name):
        return _fixed(not found[1], int(found[2]), 0, f"{found[1]}int{int(found[2])}")
    if found := _FIXED.fullmatch(name):
        word, fraction = int(found[2]), int(found[3])
        named = f"{found[1]}fixed{word}f{fraction}"
        return _fixed(not found[1], word, fraction, named)
    if found := _P3109.fullmatch(name):
        bits, precision = int(found[1]), int(found[2])
        sign, domain = found[3] or "s", found[4] or "e"
        return Format.p3109(
            bits,
            precision,
            signed=sign == "s",
            extended=domain == "e",
            name=f"binary{bits}p{precision}{sign}{domain}",
        )
    return None


def _fixed(signed: bool, word: int, fraction: int, name: str) -> Format:
    return Format.fixed_point(word, fraction, signed=signed, name=name)


def _without_reserved_field(width: int, stored: int, bias: int, kind: str) -> Format:
    name = f"e{width}m{stored}b{bias}{kind}"
    if not 1 <= width <= _MOST_EXPONENT_BITS:
        raise ValueError(
            f"{name!r} has an exponent field of width {width}: eXmYbB{kind} needs X "
            f"from 1 to {_MOST_EXPONENT_BITS}"
        )
    nan = kind == "fnuz"
    return Format(
        precision=stored + 1,
        emin=1 - bias,
        emax=2**width - 1 - bias,
        infinities=False,
        nans=nan,
        signed_zero=not nan,
        encoding="fnuz" if nan else "finite",
        name=name,
    )


def _ieee(width: int, stored: int, bias: int | None) -> Format:
    usual = 2 ** (width - 1) - 1 if width else 0
    name = f"e{width}m{stored}" + ("" if bias is None else f"b{bias}")
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
    shift = 0 if bias is None else usual - bias
    return Format(
        precision=stored + 1, emax=usual + shift, emin=1 - usual + shift, name=name
    )
