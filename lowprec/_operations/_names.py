"""The common name of a function, a method, an operator and an aten operation."""

from __future__ import annotations

from typing import Any


def words(text: str) -> frozenset[str]:
    """Return a set of names."""
    return frozenset(text.split())


# Python's operators, where stripping the underscores does not give torch's name.
_OPERATORS = {
    "radd": "add",
    "rsub": "sub",
    "rmul": "mul",
    "truediv": "div",
    "rdiv": "div",
    "rtruediv": "div",
    "rpow": "pow",
    "floordiv": "floor_divide",
    "rfloordiv": "floor_divide",
    "mod": "remainder",
    "rmod": "remainder",
    "rmatmul": "matmul",
    "iadd": "add_",
    "isub": "sub_",
    "imul": "mul_",
    "idiv": "div_",
    "itruediv": "div_",
    "ipow": "pow_",
    "imod": "remainder_",
    "ifloordiv": "floor_divide_",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "invert": "bitwise_not",
    "bool": "item",
    "complex": "item",
    "float": "item",
    "index": "item",
    "int": "item",
}
_ALIASES = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "divide": "div",
    "linalg_matmul": "matmul",
    "multiply": "mul",
    "negative": "neg",
    "subtract": "sub",
    "true_divide": "div",
}
# `a - b` reaches a mode as the method of b where a is a number.
_REVERSED = words(
    """__radd__ __rsub__ __rmul__ __rdiv__ __rtruediv__ __rpow__ __rmod__ __rfloordiv__
    __rmatmul__"""
)


def own_name(func: Any) -> str:
    """Return the name that a function gives itself, without the overload of aten."""
    return str(getattr(func, "__name__", func)).partition(".")[0]


def operation_name(func: Any) -> str:
    """Return the common name of a function, a method, an operator and an aten op.

    Example:
        >>> import torch
        >>> operation_name(torch.Tensor.__rsub__), operation_name(torch.add)
        ('sub', 'add')
    """
    name = own_name(func)
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        name = _OPERATORS.get(name, name)
    name = name.removeprefix("special_")
    in_place = "_" if name.endswith("_") else ""
    base = name.rstrip("_")
    return _ALIASES[base] + in_place if base in _ALIASES else name


def is_hidden(func: Any) -> bool:
    """Whether a call is no operation but access to a property such as ``x.shape``."""
    return own_name(func) in ("__get__", "__set__", "__delete__")


def is_reversed(func: Any) -> bool:
    """Whether the first argument is the right operand."""
    return own_name(func) in _REVERSED


def is_own(func: Any) -> bool:
    """Whether a call is one of lowprec's own, which carries its own precision."""
    if getattr(func, "namespace", None) == "lowprec":
        return True
    return str(getattr(func, "__module__", "")).startswith("lowprec.")
