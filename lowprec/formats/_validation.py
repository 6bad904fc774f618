"""Checks of `Format`'s fields: every refusal says what is allowed and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._format import Format

__all__ = ["ENCODINGS", "LARGEST_EXPONENT", "validate"]

ENCODINGS = ("ieee", "fn", "fnuz", "finite")
# Exact numbers of 2^20 bits are still quick; far larger ones would exhaust memory.
LARGEST_EXPONENT = 2**20
_LARGEST_PRECISION = 2**16

_FLAGS = ("subnormals", "infinities", "nans", "signed", "signed_zero")
# Fields that an encoding cannot do without, and why.
_REQUIRED: dict[str, dict[str, bool]] = {
    "ieee": {},
    "fn": {"infinities": False, "nans": True},
    "fnuz": {"infinities": False, "nans": True, "signed": True, "signed_zero": False},
    "finite": {"infinities": False, "nans": False},
}
_REASONS = {
    "fn": "its one special code is NaN, all ones",
    "fnuz": "its one special code is NaN, in the place of -0",
    "finite": "every code is a finite value",
}


def _check_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an int, got {value!r} of type {type(value).__name__}"
        )


def _check_types(format: Format) -> None:
    _check_integer("precision", format.precision)
    _check_integer("emax", format.emax)
    for name in ("emin", "max_significand"):
        if getattr(format, name) is not None:
            _check_integer(name, getattr(format, name))
    for name in _FLAGS:
        value = getattr(format, name)
        if not isinstance(value, bool):
            raise TypeError(
                f"{name} must be True or False, got {value!r} of type "
                f"{type(value).__name__}"
            )
    for name, optional in (("encoding", False), ("name", True)):
        value = getattr(format, name)
        if not (isinstance(value, str) or (optional and value is None)):
            raise TypeError(
                f"{name} must be a str{' or None' * optional}, got {value!r} of type "
                f"{type(value).__name__}"
            )


def _check_encoding(format: Format) -> None:
    if format.encoding not in ENCODINGS:
        raise ValueError(
            f"unknown encoding {format.encoding!r}: it must be one of "
            + ", ".join(map(repr, ENCODINGS))
        )
    required = dict(_REQUIRED[format.encoding])
    if not format.signed and format.encoding != "fnuz":
        required.pop("signed_zero", None)
    wrong = {k: v for k, v in required.items() if getattr(format, k) != v}
    if wrong:
        given = ", ".join(f"{name}={not value}" for name, value in wrong.items())
        needed = ", ".join(f"{name}={value}" for name, value in wrong.items())
        raise ValueError(
            f"encoding={format.encoding!r} contradicts {given}: "
            f"{_REASONS[format.encoding]}; give {needed} or another encoding"
        )


def validate(format: Format) -> dict[str, Any]:
    """Check the fields of a format under construction; return the resolved ones."""
    _check_types(format)
    p, emax = format.precision, format.emax
    if p < 1:
        raise ValueError(
            f"precision={p} is a zero-width mantissa: precision counts the implicit "
            "bit, so it must be at least 1 (powers of two)"
        )
    if p > _LARGEST_PRECISION:
        raise ValueError(f"precision must be at most {_LARGEST_PRECISION}, got {p}")
    emin = 1 - emax if format.emin is None else format.emin
    if max(abs(emax), abs(emin)) > LARGEST_EXPONENT:
        raise ValueError(
            f"emin and emax must be within +-{LARGEST_EXPONENT}: the numbers of this "
            "format would fill the memory"
        )
    if emin > emax:
        hint = " (emin=None means 1 - emax)" if format.emin is None else ""
        raise ValueError(
            f"emin={emin} is above emax={emax}{hint}: there is no binade between them; "
            "give emin <= emax"
        )
    significand = format.max_significand
    low, high = 2 ** (p - 1), 2**p - 1
    if significand is None:
        significand = high
    if not low <= significand <= high:
        raise ValueError(
            f"max_significand must be from {low} to {high} for precision={p}, "
            f"got {significand}"
        )
    _check_encoding(format)
    return {
        "emin": emin,
        "max_significand": significand,
        "signed_zero": format.signed_zero and format.signed,
    }
