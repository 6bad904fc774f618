"""Which calls that only choose values put a constant that is off a format's grid.

They are exact by nature as long as the numbers that they may put are values of the
format. Filling with a number (``fill_``, ``full``, ``x[i] = c``, ``index_fill``,
``scatter``) is fresh data, as a new tensor is: it is left as it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..formats import Format


class _Place(NamedTuple):
    """Where a call has a number that its result may hold."""

    position: int
    keyword: str
    default: float | None = None


_TWO = (_Place(0, "input"), _Place(1, "other"))
_BOUNDS = (_Place(1, "min"), _Place(2, "max"))
_PLACES = {
    "clamp": _BOUNDS,
    "clamp_max": (_Place(1, "max"),),
    "clamp_min": (_Place(1, "min"),),
    "clip": _BOUNDS,
    "fmax": _TWO,
    "fmin": _TWO,
    "hardtanh": (_Place(1, "min_val", -1.0), _Place(2, "max_val", 1.0)),
    "masked_fill": (_Place(2, "value"),),
    "max": _TWO,
    "maximum": _TWO,
    "min": _TWO,
    "minimum": _TWO,
    "pad": (_Place(3, "value", 0.0),),
    "relu6": (_Place(2, "", 6.0),),
    "threshold": (_Place(2, "value"),),
    "where": (_Place(0, "self"), _Place(1, "input"), _Place(2, "other")),
}
MAY_PUT = frozenset(_PLACES)


def puts_off_grid(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], format: Format
) -> bool:
    """Whether a finite constant of a call is no value of a format.

    Constants are numbers, and tensors without dimensions beside larger ones.

    Args:
        name: of the operation, without the underscore of one in place.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        format: of ``elementwise``.
    """
    if name not in MAY_PUT:
        return False
    if name in ("max", "min") and not _is_of_two(args, kwargs):
        return False
    if name == "pad" and _mode(args, kwargs) != "constant":
        return False
    given = [*args, *kwargs.values()]
    sized = any(isinstance(x, Tensor) and _is_number(x, sized=True) for x in given)
    for value in _constants(_PLACES[name], args, kwargs):
        if isinstance(value, Tensor):
            if sized and _is_number(value, sized=False) and _is_off(value, format):
                return True
        elif not _holds(format, value):
            return True
    return False


def _constants(
    places: tuple[_Place, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Any]:
    for position, keyword, default in places:
        value = args[position] if len(args) > position else kwargs.get(keyword)
        value = default if value is None else value
        if isinstance(value, (int, float, Tensor)) and not isinstance(value, bool):
            yield value


def _is_number(x: Tensor, *, sized: bool) -> bool:
    return x.is_floating_point() and (x.dim() > 0) == sized


def _is_of_two(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    other = args[1] if len(args) > 1 else kwargs.get("other")
    return isinstance(other, Tensor)


def _mode(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[2] if len(args) > 2 else kwargs.get("mode", "constant")


def _is_off(value: Tensor, format: Format) -> bool:
    # Where the value is not known, rounding once more changes no value of the format.
    if torch.compiler.is_dynamo_compiling():
        return True
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return True
    with torch._C.DisableTorchFunction():
        return not _holds(format, value.item())


def _holds(format: Format, value: float) -> bool:
    return not math.isfinite(value) or format.is_representable(value)
