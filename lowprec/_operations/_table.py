"""What is known about each function of torch, found by the function object."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch

from ..arithmetic import tensors_in
from ..formats import Format
from . import _elementwise, _names
from ._constants import puts_off_grid
from ._exact import CONDITIONAL, GRADIENT_ADDS, always_exact, objection
from ._products import PRODUCTS, Bound


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
        composite: whether it is written in Python, in terms of other operations.
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
    composite: bool = False
    inplace: int | None = None


def written(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the tensor that a call writes its result to, or None."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    if operation.name.endswith("_"):
        return args[0]
    if operation.inplace is None:
        return None
    given = args[operation.inplace] if len(args) > operation.inplace else False
    return args[0] if kwargs.get("inplace", given) else None


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
        composite=isinstance(func, FunctionType),
        inplace=_inplace_position(func),
    )


def _inplace_position(func: Any) -> int | None:
    if not isinstance(func, FunctionType):
        return None
    try:
        names = list(inspect.signature(func).parameters)
    except ValueError:  # a wrapped builtin
        return None
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
        sparse tensors, a spelling that is not torch's documented one.
    """
    if not operation.product:
        return None
    args, kwargs = _plain(operation, args, kwargs)
    try:
        found = PRODUCTS[operation.base](*args, **kwargs)
    except TypeError:
        return None
    return found if found is not None and _is_dense(found) else None


def rounding(
    func: Any,
    operation: Operation,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    format: Format,
) -> Bound | None:
    """Return the functional for a call that ``elementwise`` governs.

    Args:
        func: what is called.
        operation: what is known about it.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        format: of ``elementwise``.

    Returns:
        None if this form of the call is exact by nature, or not emulated as `product`.
    """
    if not operation.elementwise:
        return None
    name = operation.base
    # The table of an embedding is a weight, which is rounded also where all is exact.
    is_exact = name != "embedding" and not objection(operation.name, args, kwargs)
    off_grid = puts_off_grid(name, args, kwargs, format)
    if is_exact and not off_grid:
        return None
    args, kwargs = _plain(operation, args, kwargs)
    try:
        found = _elementwise.bound(name, func, args, kwargs, off_grid=off_grid)
    except TypeError:
        return None
    return found if found is not None and _is_dense(found) else None


def _plain(
    operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the call that is not in place, operands in order."""
    if operation.inplace is not None:
        args = args[: operation.inplace]
    kwargs = {k: v for k, v in kwargs.items() if k not in ("inplace", "out")}
    return ((args[1], args[0]) if operation.reversed else args), kwargs


def _is_dense(found: Bound) -> bool:
    """Whether all operands are dense and real, and one is floating."""
    operands = tensors_in((*found[1], *found[2].values()))
    dense = [x.layout == torch.strided and not x.is_complex() for x in operands]
    return all(dense) and any([x.is_floating_point() for x in operands])


def is_known(name: str) -> bool:
    """Whether the name is that of an operation that the tables have."""
    return name in PRODUCTS or is_governed(name) or always_exact(name)
