"""Codes: where each value of a format sits among the integers 0 to 2^bits - 1.

A code is sign, exponent field, stored significand, from high to low bits. Read as one
integer, the code of a nonnegative value counts the values below it, so codes and values
have the same order.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import singledispatch
from typing import TYPE_CHECKING, Any, NoReturn

from ._exact import Real, exact_or_special, floor_log2, power_of_two, simplest

if TYPE_CHECKING:
    from ._format import Format

__all__ = [
    "decode_value",
    "encode_value",
    "exponent_bits",
    "resolved_emin",
    "stored_bits",
    "total_bits",
]


def _label(format: Any) -> str:
    return format.name or repr(format)


def resolved_emin(format: Format) -> int:
    """Return ``emin``, which construction has resolved."""
    if format.emin is None:
        raise ValueError("the format was not constructed by Format(...)")
    return format.emin


def _largest_field(format: Format) -> int:
    """Return the exponent field of the largest finite value."""
    return format.emax + format.bias


def _first_normal(format: Format) -> int:
    """Return what the code of 2^emin is, or would be."""
    return 0 if format.encoding == "normal" else 1 << (format.precision - 1)


def _largest_magnitude(format: Format) -> int:
    """Return the code of the largest finite value."""
    stored, significand = format.precision - 1, format.max_significand or 0
    offset = (format.emax - resolved_emin(format) - 1) << stored
    return offset + significand + _first_normal(format)


def exponent_bits(format: Format) -> int:
    """Return the width of the exponent field: the smallest that holds every code."""
    stored = format.precision - 1
    match format.encoding:
        case "ieee":  # the largest field is reserved
            width = (_largest_field(format) + 1).bit_length()
            if stored == 0 and format.infinities and format.nans:
                raise ValueError(
                    f"{_label(format)} has no codes: with precision=1 the reserved "
                    "exponent field holds one code, too few for infinity and NaN; give "
                    "infinities=False or nans=False, or do without encode and decode"
                )
            return width
        case "integer":
            return 0
        case "p3109":  # the largest codes are infinity and, without a sign, NaN
            above = format.infinities + (not format.signed)
            return (_largest_magnitude(format) + above).bit_length() - stored
        case "fn" | "normal":  # all ones is NaN
            return (_largest_magnitude(format) + 1).bit_length() - stored
        case _:
            return _largest_field(format).bit_length()


def total_bits(format: Format) -> int:
    """Return the width of a code."""
    return format.signed + exponent_bits(format) + stored_bits(format)


def stored_bits(format: Format) -> int:
    """Return the width of the stored significand: integers have no implicit bit."""
    return format.precision - (format.encoding != "integer")


def _infinity(format: Format) -> int | None:
    """Return the code of +infinity, None if there is none."""
    if not format.infinities:
        return None
    if format.encoding == "p3109":
        return (1 << (total_bits(format) - format.signed)) - 1 - (not format.signed)
    return ((1 << exponent_bits(format)) - 1) << (format.precision - 1)


def _nan(format: Format) -> int:
    """Return the code of the (quiet) NaN."""
    stored, width = format.precision - 1, exponent_bits(format)
    match format.encoding:
        case "ieee":
            return (((1 << width) - 1) << stored) + (1 << stored >> 1)
        case "fn" | "normal":
            return (1 << (width + stored)) - 1
        case _ if not format.signed:
            return (1 << (width + stored)) - 1
        case _:
            return 1 << (width + stored)


def _refuse_value(x: Any, format: Format) -> NoReturn:
    raise ValueError(
        f"{x!r} is not a value of {_label(format)}: round it first, for example with "
        "lowprec.round"
    )


@singledispatch
def encode_value(x: Any, format: Any) -> Any:
    """Return the code of ``x``; other types register themselves here.

    Args:
        x: int, float, Fraction, or a registered type (list, tuple).
        format: the format whose code is asked for.

    Returns:
        An int, or what the registered type defines.

    Raises:
        TypeError: if ``x`` is not a number.
        ValueError: if ``x`` is not a value of the format.

    Example:
        >>> from lowprec.formats import format
        >>> encode_value(1.0, format("bfloat16"))
        16256
    """
    if (single := getattr(format, "code_of", None)) is not None:
        return single(x)  # a set that is no Format, such as posits
    exact = exact_or_special(x)
    sign = 1 << (total_bits(format) - 1)
    if not format.is_representable(exact):
        _refuse_value(x, format)
    if isinstance(exact, float):
        if math.isnan(exact):
            return _nan(format)
        magnitude = _infinity(format) or 0 if math.isinf(exact) else 0
        return magnitude + (sign if math.copysign(1.0, exact) < 0 else 0)
    if exact == 0:
        return 0
    emin = resolved_emin(format)
    if format.encoding == "integer":
        return int(exact / power_of_two(emin - format.precision + 1)) % (2 * sign)
    binade = max(floor_log2(abs(exact)), emin)
    quanta = abs(exact) / power_of_two(binade - format.precision + 1)
    code = ((binade - emin) << (format.precision - 1)) + int(quanta)
    code += _first_normal(format) - (1 << (format.precision - 1))
    return code + sign if exact < 0 else code


@singledispatch
def decode_value(codes: Any, format: Any) -> Any:
    """Return the value of a code; other types register themselves here.

    Args:
        codes: int, or a registered type (list, tuple).
        format: the format that gives the code its meaning.

    Returns:
        A float, a Fraction where binary64 does not hold the value, or what the
        registered type defines.

    Raises:
        TypeError: if ``codes`` is not an int.
        ValueError: if the code is out of range or denotes nothing.

    Example:
        >>> from lowprec.formats import format
        >>> decode_value(16256, format("bfloat16"))
        1.0
    """
    single = getattr(format, "value_of", None)
    if single is not None:
        return single(_checked_code(codes, format, format.bits))
    code = _checked_code(codes, format, total_bits(format))
    if format.encoding == "integer":
        return _integer(code, format)
    stored, width = format.precision - 1, exponent_bits(format)
    sign, magnitude = divmod(code, 1 << (width + stored))
    if magnitude == _infinity(format):
        return -math.inf if sign else math.inf
    if magnitude > _largest_magnitude(format) or (code != 0 and magnitude == 0):
        return _special(code, magnitude, format)
    if magnitude == 0 and format.zero:
        return 0.0
    exponent_field, fraction = divmod(magnitude, 1 << stored)
    lowest = int(format.encoding != "normal")  # the field of 2^emin
    if exponent_field < lowest and not format.subnormals:
        raise ValueError(
            f"code {code:#x} denotes nothing in {_label(format)}, which has no "
            "subnormals"
        )
    significand = fraction + (1 << stored if exponent_field >= lowest else 0)
    exponent = max(exponent_field, lowest) - format.bias - stored
    value: Fraction = significand * power_of_two(exponent)
    return simplest(-value if sign else value)


def _integer(code: int, format: Format) -> Real:
    """Return what a code of fixed point means, two's complement if signed."""
    sign = 1 << (total_bits(format) - 1)
    count = (code ^ sign) - sign if format.signed else code
    return simplest(count * power_of_two(resolved_emin(format) - format.precision + 1))


def _special(code: int, magnitude: int, format: Format) -> float:
    """Return what a code beyond the finite values means."""
    if magnitude == 0 and format.signed_zero:
        return -0.0
    if format.nans:
        return math.nan
    raise ValueError(f"code {code:#x} denotes nothing in {_label(format)}")


def _checked_code(code: Any, format: Any, bits: int) -> int:
    if isinstance(code, bool) or not hasattr(code, "__index__"):
        raise TypeError(
            f"codes are integers, got {code!r} of type {type(code).__name__}"
        )
    code = int(code)
    if not 0 <= code < 1 << bits:
        raise ValueError(
            f"codes of {_label(format)} are from 0 to {2**bits - 1}, got {code}"
        )
    return int(code)


@encode_value.register(list)
@encode_value.register(tuple)
def _encode_sequence(x: Any, format: Any) -> list[Any]:
    return [encode_value(one, format) for one in x]


@decode_value.register(list)
@decode_value.register(tuple)
def _decode_sequence(codes: Any, format: Any) -> list[Any]:
    return [decode_value(one, format) for one in codes]
