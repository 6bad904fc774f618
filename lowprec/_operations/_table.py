"""What is known about each function of torch, found by the function object."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from . import _elementwise, _names
from ._exact import CONDITIONAL, GRADIENT_ADDS, always_exact, objection
from ._products import PRODUCTS, Bind, Bound


@dataclass(frozen=True)
class Operation:
    """What `lowprec` knows about a function.

    Args:
        name: common name of its spellings, as coverage shows it.
        base: the name without the underscore of an operation in place.
        own: whether it is one of lowprec's, which carries its own precision.
        exact: whether it is exact by nature whatever its arguments are.
        governed: whether ``elementwise`` of a precision is about it.
        product: whether a functional computes it as a product of matrices.
        elementwise: whether a functional computes it under ``elementwise``.
        reversed: whether the first argument is the right operand.
        inplace: position of an argument that asks for a result in place, or None.
    """

    name: str
    base: str
    own: bool = False
    exact: bool = False
    governed: bool = False
    product: bool = False
    elementwise: bool = False
    reversed: bool = False
    inplace: int | None = None


def works_in_place(
    operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether a call changes its first argument."""
    if operation.name.endswith("_"):
        return True
    if operation.inplace is None:
        return False
    given = args[operation.inplace] if len(args) > operation.inplace else False
    return bool(kwargs.get("inplace", given))


def _without_inplace(
    operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if operation.inplace is None:
        return args, kwargs
    rest = {name: value for name, value in kwargs.items() if name != "inplace"}
    return args[: operation.inplace], rest


_LARGEST = 10_000  # functions that are remembered; torch has about 2,000
_known: dict[Any, Operation | None] = {}


def operation_of(func: Any) -> Operation | None:
    """Return what is known about a function; None for access to a property.

    Args:
        func: as a ``TorchFunctionMode`` receives it.

    Returns:
        Its row of the table.

    Example:
        >>> import torch
        >>> operation_of(torch.Tensor.__iadd__).name, operation_of(torch.relu).exact
        ('add_', True)
    """
    try:
        return _known[func]
    except KeyError:
        operation = _described(func)
    if len(_known) < _LARGEST:
        _known[func] = operation
    return operation


def is_governed(name: str) -> bool:
    """Whether ``elementwise`` of a precision is about the operation."""
    if name in CONDITIONAL or name in GRADIENT_ADDS or name in ("copy", "setitem"):
        return True
    return _elementwise.is_elementwise(name)


def _described(func: Any) -> Operation | None:
    if _names.is_hidden(func):
        return None
    name = _names.operation_name(func)
    if _names.is_own(func):
        return Operation(name, name, own=True)
    base = name.rstrip("_")
    return Operation(
        name,
        base,
        exact=always_exact(name),
        governed=is_governed(base),
        product=base in PRODUCTS,
        elementwise=_elementwise.binds(base, func),
        reversed=_names.is_reversed(func),
        inplace=_inplace_position(func),
    )


def _inplace_position(func: Any) -> int | None:
    if not isinstance(func, FunctionType):
        return None
    names = list(inspect.signature(func).parameters)
    return names.index("inplace") if "inplace" in names else None


def product(
    operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Bound | None:
    """Return the functional for a product of matrices and its arguments.

    Args:
        operation: what is called.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Returns:
        None if this form of the call is not emulated: integers, complex numbers,
        sparse tensors, ``out=``, a spelling that is not torch's documented one.
    """
    if not operation.product:
        return None
    found = _bound(operation, PRODUCTS[operation.base], args, kwargs)
    return found if found is not None and all(_floating(found)) else None


def rounding(
    operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Bound | None:
    """Return the functional for a call that ``elementwise`` governs.

    Args:
        operation: what is called.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Returns:
        None if this form of the call is exact by nature, or not emulated as `product`.
    """
    if not operation.elementwise:
        return None
    if objection(operation.name, args, kwargs) is None:
        return None
    found = _bound(operation, _elementwise.BINDINGS[operation.base], args, kwargs)
    return found if found is not None and any(_floating(found)) else None


def _bound(
    operation: Operation, bind: Bind, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Bound | None:
    if "out" in kwargs:
        return None
    args, kwargs = _without_inplace(operation, args, kwargs)
    if operation.reversed:
        args = (args[1], args[0])
    try:
        found = bind(*args, **kwargs)
    except TypeError:
        return None
    if found is None:
        return None
    dense = all(_is_dense(x) for x in _tensors((*found[1], *found[2].values())))
    return found if dense else None


def _floating(found: Bound) -> list[bool]:
    operands = _tensors((*found[1], *found[2].values()))
    return [x.is_floating_point() for x in operands]


def is_known(name: str) -> bool:
    """Whether a policy may name an operation: one that some precision governs."""
    return name in PRODUCTS or is_governed(name)


def _is_dense(x: Tensor) -> bool:
    return x.layout == torch.strided and not x.is_complex()


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_tensors(value))
    return found
