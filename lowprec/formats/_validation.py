"""Checks of `Format`'s fields: every refusal says what is allowed and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._format import Format

__all__ = [
    "ENCODINGS",
    "LARGEST_EXPONENT",
    "check_integer",
    "check_p3109",
    "check_widths",
    "validate",
]

ENCODINGS = ("ieee", "fn", "fnuz", "finite", "p3109", "normal", "integer")
# Exact numbers of 2^20 bits are still quick; far larger ones would exhaust memory.
LARGEST_EXPONENT = 2**20
_LARGEST_PRECISION = 2**16
_P3109_BITS = (3, 16)

_FLAGS = (
    *("subnormals", "infinities", "nans", "signed", "signed_zero"),
    *("zero", "asymmetric"),
)
# Fields that an encoding cannot do without, and why.
_REQUIRED: dict[str, dict[str, bool]] = {
    "ieee": {},
    "fn": {"infinities": False, "nans": True},
    "fnuz": {"infinities": False, "nans": True, "signed": True, "signed_zero": False},
    "finite": {"infinities": False, "nans": False},
    "p3109": {"nans": True, "signed_zero": False},
    "normal": {"subnormals": False, "infinities": False, "nans": True},
    "integer": {
        "subnormals": True,
        "infinities": False,
        "nans": False,
        "signed_zero": False,
    },
}
_REASONS = {
    "fn": "its one special code is NaN, all ones",
    "fnuz": "its one special code is NaN, in the place of -0",
    "finite": "every code is a finite value",
    "p3109": "it has one zero and one NaN",
    "normal": "exponent field 0 is a binade of normal numbers, all ones NaN",
    "integer": "codes are integers, in two's complement if signed",
}


def check_integer(name: str, value: Any) -> None:
    """Refuse what is no int; ``bool`` is none here."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an int, got {value!r} of type {type(value).__name__}"
        )


def check_name(name: Any) -> None:
    """Refuse names that are no str; None is none."""
    if not (isinstance(name, str) or name is None):
        raise TypeError(
            f"name must be a str or None, got {name!r} of type {type(name).__name__}"
        )


def _check_types(format: Format) -> None:
    check_integer("precision", format.precision)
    check_integer("emax", format.emax)
    for name in ("emin", "max_significand"):
        if getattr(format, name) is not None:
            check_integer(name, getattr(format, name))
    for name in _FLAGS:
        _check_flag(name, getattr(format, name))
    if not isinstance(format.encoding, str):
        raise TypeError(
            f"encoding must be a str, got {format.encoding!r} of type "
            f"{type(format.encoding).__name__}"
        )
    check_name(format.name)


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


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(
            f"{name} must be True or False, got {value!r} of type "
            f"{type(value).__name__}"
        )


def check_widths(word: Any, fraction: Any, signed: Any, symmetric: Any) -> None:
    """Check the arguments of `Format.fixed_point`."""
    check_integer("word", word)
    check_integer("fraction", fraction)
    _check_flag("signed", signed)
    _check_flag("symmetric", symmetric)
    least = 1 + signed
    if word < least:
        text = "a signed word has at least 2 bits" if signed else "a word has a bit"
        raise ValueError(f"{text}, got word={word}")
    if fraction < -word:
        raise ValueError(
            f"fraction={fraction} leaves more than {word} zeros behind a word of "
            f"{word} bits: give at least {-word}"
        )


def check_p3109(bits: Any, precision: Any, signed: Any, extended: Any) -> None:
    """Check the arguments of `Format.p3109`."""
    check_integer("bits", bits)
    check_integer("precision", precision)
    _check_flag("signed", signed)
    _check_flag("extended", extended)
    if not _P3109_BITS[0] <= bits <= _P3109_BITS[1]:
        raise ValueError(
            f"P3109 formats have {_P3109_BITS[0]} to {_P3109_BITS[1]} bits, got {bits}"
        )
    most = bits - signed
    if not 1 <= precision <= most:
        kind = "a signed" if signed else "an unsigned"
        raise ValueError(
            f"{kind} P3109 format of {bits} bits has precision 1 to {most}, got "
            f"{precision}"
        )


def _check_range(format: Format, emin: int, significand: int) -> None:
    """Refuse fields that only some encodings give a meaning."""
    if not format.zero and (format.encoding != "normal" or format.signed):
        raise ValueError(
            "zero=False needs encoding='normal' and signed=False: elsewhere code 0 is "
            f"zero; got encoding={format.encoding!r}, signed={format.signed}"
        )
    if format.encoding == "integer":
        if emin != format.emax or significand != 2**format.precision - 1:
            raise ValueError(
                "encoding='integer' needs emin = emax and every significand: build it "
                "by Format.fixed_point(word, fraction)"
            )
        if format.asymmetric and not format.signed:
            raise ValueError("asymmetric=True needs signed=True")
    elif format.asymmetric:
        raise ValueError(
            "asymmetric=True needs encoding='integer', two's complement; got "
            f"encoding={format.encoding!r}"
        )
    if format.encoding == "normal" and format.zero and format.precision == 1:
        raise ValueError(
            "encoding='normal' with precision=1 has no code for zero besides that of "
            "2^emin: give zero=False"
        )


def _resolved_encoding(format: Format) -> str:
    """Return the encoding; P3109's without infinities has the codes of older ones.

    With one significand bit it differs from them by its rounding of ties.
    """
    if format.encoding != "p3109" or format.infinities or format.precision == 1:
        return format.encoding
    return "fnuz" if format.signed else "fn"


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
    _check_range(format, emin, significand)
    return {
        "encoding": _resolved_encoding(format),
        "emin": emin,
        "max_significand": significand,
        "signed_zero": format.signed_zero and format.signed,
    }
