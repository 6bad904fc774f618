"""`lowprec.functional.pointwise`: elementwise functions, rounded once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import Operands, aligned, check_carrier, overridable
from ..kernels import basic
from ..precision import Precision, as_precision
from ._wide import Wide, wide_for

_ADDS = (torch.add, operator.add)
_SUBTRACTS = (torch.sub, torch.subtract, operator.sub)
_MULTIPLIES = (torch.mul, torch.multiply, operator.mul)
_DIVIDES = (torch.div, torch.divide, torch.true_divide, operator.truediv)


def _basic_operation(
    function: Callable[..., Any], operands: tuple[Any, ...], options: dict[str, Any]
) -> tuple[int, list[Any]] | None:
    """Return the kernel that computes this correctly rounded, and its operands."""
    scale = options.get("alpha", options.get("value", 1))
    others = set(options) - {"alpha", "value"}
    if function in _ADDS and not others:
        a, b = operands
        return (basic.ADD, [a, b]) if scale == 1 else (basic.FMA, [b, scale, a])
    if function in _SUBTRACTS and not others:
        a, b = operands
        return (basic.ADD, [a, -b]) if scale == 1 else (basic.FMA, [b, -scale, a])
    if function is torch.rsub and scale == 1 and not others:
        a, b = operands
        return basic.ADD, [b, -a]
    if function is torch.addcmul and scale == 1 and not others:
        a, b, c = operands
        return basic.FMA, [b, c, a]
    if options:
        return None
    if function in _MULTIPLIES:
        return basic.MUL, list(operands)
    if function in _DIVIDES:
        return basic.DIV, list(operands)
    if function is torch.reciprocal:
        return basic.DIV, [1.0, *operands]
    if function is torch.square:
        return basic.MUL, [*operands, *operands]
    if function is torch.sqrt:
        return basic.SQRT, list(operands)
    return None


def _exact_operands(given: list[Any]) -> Operands:
    """Return operands as `aligned` does, integers as the float64 numbers they are."""
    wide = [
        x.detach() if isinstance(x, Tensor) and x.is_floating_point() else _number(x)
        for x in given
    ]
    return aligned(*wide)


def _number(x: Any) -> Any:
    return x.to(torch.float64) if isinstance(x, Tensor) else x


def carrier_of(tensors: list[Tensor]) -> torch.dtype:
    """Return the floating dtype to which torch promotes, checked to be a carrier.

    Raises:
        TypeError: if it is not float32 or float64.
    """
    floating = [x for x in tensors if x.is_floating_point() or x.is_complex()]
    for x in floating:
        check_carrier(x, "an operand")
    sized = [x for x in floating if x.dim() > 0] or floating
    dtypes = [x.dtype for x in sized] or [torch.get_default_dtype()]
    return reduce(torch.promote_types, dtypes)


@overridable
def pointwise(
    function: Callable[..., Tensor],
    *operands: Any,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Apply an elementwise function with one rounding, forward and backward.

    y = fl(f(x_1, ..., x_n)), dx_k = fl(acc(df/dx_k fl(dy))) with fl that of
    ``elementwise``, where the sum, that of ``grad_accumulator`` in row-major order,
    is over the positions to which x_k was broadcast.

    Contract:
        Sums, differences (also with ``alpha``), products, quotients, reciprocals,
        squares, square roots and ``addcmul`` are correctly rounded for any operands
        and every mode, up to 51 bits. Other functions are computed in float64, whose
        value is rounded once, and so are all derivatives. Numbers are used exactly.
        With ``elementwise=None`` this is torch's own function, bit for bit. Seeds of
        stochastic roundings are numbered as the operands come, each entering and
        broadcast, then the result (`Wide`).

    Args:
        function: a function of torch that treats elements alike, such as ``torch.exp``,
            ``torch.mul`` or ``torch.nn.functional.gelu``.
        operands: what it takes: float32 or float64 tensors, which broadcast, and
            anything else.
        precision: ``elementwise`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic.
        seed: the seed itself instead, an int or 0-d int64 tensor.
        options: keyword arguments of ``function``, such as ``approximate="tanh"``.

    Returns:
        Tensor of the broadcast shape, of the dtype to which torch promotes.

    Raises:
        TypeError: if an operand is a floating tensor but no carrier, or ``precision``
            is not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.tensor([0.5, 1.0], requires_grad=True)
        >>> y = pointwise(torch.exp, x, precision=Precision(elementwise="e5m2"))
        >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
        ([1.75, 2.5], [1.75, 2.5])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 2.2.
    """
    precision = as_precision(precision)
    tensors = [x for x in (*operands, *options.values()) if isinstance(x, Tensor)]
    if precision.elementwise is None:
        return function(*operands, **options)
    if not any(x.is_floating_point() or x.is_complex() for x in tensors):
        plain = function(*operands, **options)
        if not plain.is_floating_point():
            return plain
    dtype = carrier_of(tensors)
    wide = wide_for(precision, dtype, generator, seed)
    shape = torch.broadcast_shapes(*[x.shape for x in tensors])
    inside = [_enter(wide, x, shape) for x in operands]
    settings = {key: _enter(wide, x, shape) for key, x in options.items()}
    y = function(*inside, **settings)
    correct = _basic_operation(function, operands, options)
    if correct is None:
        return wide.leave(y)
    operation, given = correct
    return wide.leave_exactly(y, operation, _exact_operands(given))


def _enter(wide: Wide, x: Any, shape: torch.Size) -> Any:
    """Return an argument in float64 and, if it is a floating tensor, broadcast."""
    if not isinstance(x, Tensor) or x.dtype == torch.bool:
        return x
    if not x.is_floating_point():
        return x.to(torch.float64)
    return wide.expand(wide.enter(x), shape)


@overridable
def prelu(
    input: Tensor,
    weight: Tensor,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Apply a rectifier with learned slopes: y = fl(x) if x >= 0, else fl(w' x).

    Contract:
        As `pointwise`, but w' = fl_weight(w) and dw = fl_grad_weight(acc(dy x)).

    Args:
        input: float32 or float64 tensor [N, C, ...].
        weight: tensor [1] or [C] of the same dtype.
        precision: ``elementwise``, ``weight``, ``grad_weight`` and
            ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of the input's shape and dtype.

    Raises:
        TypeError: as `pointwise`.
        ValueError: as `pointwise`.
        RuntimeError: as `pointwise`.

    Example:
        >>> x, w = torch.tensor([[-1.5, 1.5]]), torch.tensor([0.3])
        >>> prelu(x, w, precision=Precision(weight="e5m2", elementwise="e4m3fn"))
        tensor([[-0.4688,  1.5000]])

    References:
        He, Zhang, Ren and Sun, Delving deep into rectifiers, ICCV 2015.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.prelu(input, weight)
    wide = wide_for(precision, carrier_of([input, weight]), generator, seed)
    channels = [1] * input.dim()
    if input.dim() > 1:
        channels[1] = -1
    x = wide.enter(input)
    slopes = wide.enter_weight(weight).reshape(channels if weight.numel() > 1 else [])
    return wide.leave(torch.where(x >= 0, x, x * wide.expand(slopes, x.shape)))
