"""Known formats: their names, aliases and torch dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ._format import Format
from ._text import markdown, table

__all__ = ["ALIASES", "KNOWN", "FormatTable", "dtype_of", "formats"]

_FN: dict[str, Any] = {"infinities": False, "encoding": "fn"}
_FNUZ: dict[str, Any] = {
    "infinities": False,
    "signed_zero": False,
    "encoding": "fnuz",
}
_FINITE: dict[str, Any] = {"infinities": False, "nans": False, "encoding": "finite"}

# The smallest exponent field is a binade like the others.
_NORMAL: dict[str, Any] = {
    "subnormals": False,
    "infinities": False,
    "encoding": "normal",
}
_WORDS = (4, 8, 16, 32)


def _integer(word: int, signed: bool) -> Format:
    name = f"{'' if signed else 'u'}int{word}"
    return Format.fixed_point(word, signed=signed, name=name)


# Each format with its other names; a name of a torch dtype stands for that dtype.
_TABLE: tuple[tuple[Format, tuple[str, ...]], ...] = (
    (
        Format(precision=53, emax=1023, name="binary64"),
        ("float64", "double", "fp64"),
    ),
    (
        Format(precision=24, emax=127, name="binary32"),
        ("float32", "single", "fp32"),
    ),
    (Format(precision=11, emax=127, name="tf32"), ()),
    (Format(precision=11, emax=15, name="binary16"), ("float16", "half", "fp16")),
    (Format(precision=8, emax=127, name="bfloat16"), ("bf16",)),
    (Format(precision=3, emax=15, name="e5m2"), ("float8_e5m2", "hfp8_e5m2")),
    (
        Format(precision=4, emax=8, emin=-6, max_significand=14, name="e4m3fn", **_FN),
        ("float8_e4m3fn",),
    ),
    (Format(precision=4, emax=7, name="e4m3"), ("float8_e4m3",)),
    (Format(precision=5, emax=3, name="e3m4"), ("float8_e3m4",)),
    (
        Format(precision=3, emax=15, emin=-15, name="e5m2fnuz", **_FNUZ),
        ("float8_e5m2fnuz",),
    ),
    (
        Format(precision=4, emax=7, emin=-7, name="e4m3fnuz", **_FNUZ),
        ("float8_e4m3fnuz",),
    ),
    (
        Format(precision=4, emax=4, emin=-10, name="e4m3b11fnuz", **_FNUZ),
        ("float8_e4m3b11fnuz",),
    ),
    (
        Format(precision=3, emax=4, emin=-2, name="e3m2fn", **_FINITE),
        ("float6_e3m2fn",),
    ),
    (
        Format(precision=4, emax=2, emin=0, name="e2m3fn", **_FINITE),
        ("float6_e2m3fn",),
    ),
    (
        Format(precision=2, emax=2, emin=0, name="e2m1fn", **_FINITE),
        ("float4_e2m1fn", "float4_e2m1fn_x2"),
    ),
    (
        Format(
            precision=1,
            emax=127,
            emin=-127,
            signed=False,
            zero=False,
            name="e8m0fnu",
            **_NORMAL,
        ),
        ("float8_e8m0fnu",),
    ),
    (
        Format(
            precision=10,
            emax=32,
            emin=-31,
            max_significand=1022,
            name="dlfloat16",
            **_NORMAL,
        ),
        (),
    ),
    # Not all sources agree on their special values: AMD's is IEEE-like, PXR24 binary32
    # without its last byte, IBM's FP8 without infinity and NaN.
    (Format(precision=17, emax=63, subnormals=False, name="fp24"), ("fp24_ati",)),
    (Format(precision=16, emax=127, name="e8m15"), ("pxr24",)),
    (
        Format(precision=4, emax=11, emin=-3, name="hfp8_e4m3", **_FINITE),
        ("e4m3b4fn",),
    ),
    *((_integer(word, signed), ()) for signed in (True, False) for word in _WORDS),
)

KNOWN: dict[str, Format] = {one.name: one for one, _ in _TABLE if one.name}
ALIASES: dict[str, str] = {
    alias: one.name for one, aliases in _TABLE for alias in aliases if one.name
}

_TORCH_DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e5m2",
    "float8_e4m3fn",
    "float8_e5m2fnuz",
    "float8_e4m3fnuz",
    "float8_e8m0fnu",
    *("int8", "int16", "int32", "uint8", "uint16", "uint32"),
)
_DTYPE_OF: dict[Format, str] = {
    **{KNOWN[ALIASES.get(name, name)]: name for name in _TORCH_DTYPES},
    _integer(64, signed=True): "int64",
    _integer(64, signed=False): "uint64",
}


def dtype_of(format: Format) -> str | None:
    """Return the name of the torch dtype with the values and codes of a format."""
    return _DTYPE_OF.get(format)


@dataclass(frozen=True, repr=False)
class FormatTable:
    """Formats in a row: iterate over them, index them by name, print them as a table.

    Args:
        rows: the formats.

    Example:
        >>> [one.name for one in formats() if one.precision == 11]
        ['tf32', 'binary16']
    """

    rows: tuple[Format, ...]

    def __iter__(self) -> Iterator[Format]:
        """Iterate over the formats."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Return the number of formats."""
        return len(self.rows)

    def __getitem__(self, name: str) -> Format:
        """Return the format of a name or alias; KeyError if it is not here."""
        wanted = ALIASES.get(name, name)
        for one in self.rows:
            if one.name == wanted:
                return one
        raise KeyError(name)

    def __contains__(self, item: object) -> bool:
        """Return whether a format, or a format of this name, is here."""
        if isinstance(item, str):
            return any(one.name == ALIASES.get(item, item) for one in self.rows)
        return item in self.rows

    def __str__(self) -> str:
        """Return the table as text, one format a line."""
        return table(self.rows, self._other_names())

    def _repr_markdown_(self) -> str:
        """Return the table in Markdown, for notebooks and for the documentation."""
        return markdown(self.rows, self._other_names())

    def _other_names(self) -> list[str]:
        other = {one.name: ", ".join(names) for one, names in _TABLE}
        return [other.get(one.name, "") for one in self.rows]

    # The table is the answer to `lowprec.formats()` at a prompt.
    __repr__ = __str__


def formats() -> FormatTable:
    """Return the table of known formats; families are known by their names too.

    Contract:
        `format` says which names of families there are: ``eXmY``, ``fixedWfF`` ...

    Returns:
        The formats: binary floating point widest first, then integers.

    Example:
        >>> formats()["bf16"].emax
        127

    References:
        IEEE 754-2019; OCP 8-bit floating point specification 1.0; OCP microscaling
        formats specification 1.0.
    """
    return FormatTable(tuple(KNOWN.values()))
