"""What the correctly rounded operations share: checks, kernels and a gradient."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import basic as kernel
from ..random import as_seed
from ..rounding import Rounding, Saturation, ScalarRounding
from ._codec import fits
from ._node import applied, has_dual_numbers, refuse_tangents
from ._round import (
    check_carrier,
    refuse_compiled_transforms,
    round,
    transforms_active,
)

WIDEST = 51  # after a rounding to odd
CARRIER_BITS = 53
_LARGEST_INTEGER = 2**53
# Of values of words of at most 26 bits, what these return has at most 53.
_WRAPPING = frozenset({"add", "sub", "mul", "fma"})

# Operands of every kernel: a, b, c. Those that it does not use are a again.
Operands = tuple[Tensor, Tensor, Tensor]


class Operation(NamedTuple):
    """A kernel, and torch's operation in the carrier that knows the gradient."""

    kernel: int
    carrier: Callable[..., Tensor]


# Adds the negated operand, which is exact.
SUB = Operation(kernel.ADD, torch.sub)


class _Rounded(torch.autograd.Function):
    """A correctly rounded result, with the gradient of another tensor of its shape."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor,
        operation: int,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        dtype: torch.dtype,
        rounding: ScalarRounding,
        seed: Tensor | None,
        offset: int,
        backward: ScalarRounding | None,
        backward_seed: Tensor | None,
    ) -> Tensor:
        return computed(operation, (a, b, c), dtype, rounding, seed, offset)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype
        ctx.rounding, seed = inputs[-2:]
        ctx.save_for_backward(seed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (seed,) = ctx.saved_tensors
        if ctx.rounding is not None:
            gradient = round(gradient, ctx.rounding, seed=seed)
        return gradient.to(ctx.dtype), *(None,) * 10


class _Valued(torch.autograd.Function):
    """A value, with the gradient of another tensor of its shape."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


def valued(value: Tensor, carrier: Callable[[], Tensor], x: Tensor) -> Tensor:
    """Return a value with the gradient of torch's operation in the carrier.

    Args:
        value: what the operation on ``x`` returns, without autograd.
        carrier: computes torch's own result, where a gradient is needed.
        x: the operand.
    """
    differentiable = torch.is_grad_enabled() and x.requires_grad
    if not differentiable and not transforms_active():
        if has_dual_numbers():
            refuse_tangents(x)
        return value
    return applied(_Valued, carrier(), value)


def computed(
    operation: int,
    operands: Operands,
    dtype: torch.dtype,
    rounding: ScalarRounding,
    seed: Tensor | None,
    offset: int = 0,
) -> Tensor:
    """Return the correctly rounded result of a kernel, without autograd."""
    code = list(rounding.code)
    return kernel.basic(operation, *operands, code, seed, offset).to(dtype)


def with_gradient_of(
    y: Tensor,
    operation: int,
    operands: Operands,
    dtype: torch.dtype,
    rounding: ScalarRounding,
    seed: Tensor | None,
    backward: ScalarRounding | None = None,
    backward_seed: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Return the correctly rounded result with the gradient of ``y``.

    Args:
        y: any tensor of the result's shape; its gradient is the result's.
        operation: of `lowprec.kernels.basic`.
        operands: tensors of that shape.
        dtype: of the result; it holds the values of the format.
        rounding: of the exact result, to at most 51 bits.
        seed: of a stochastic rounding.
        backward: rounding of the gradient before it is passed to ``y``.
        backward_seed: of that rounding.
        offset: linear index of the first element.

    Returns:
        Tensor of ``dtype``.
    """
    a, b, c = (x.detach() for x in operands)
    return applied(
        _Rounded,
        y,
        operation,
        a,
        b,
        c,
        dtype,
        rounding,
        seed,
        offset,
        backward,
        backward_seed,
    )


def apply_rounded(
    operation: Operation,
    name: str,
    operands: dict[str, Tensor | float],
    rounding: ScalarRounding,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
    offset: int,
) -> Tensor:
    """Check, compute, and attach the gradient of torch's operation if it is needed."""
    refuse_compiled_transforms(f"lowprec.{name}")
    if seed is not None and generator is not None:
        raise ValueError("give either seed= or generator=, not both")
    whole = operation.kernel <= kernel.FMA
    dtype = check_operands(name, operands, rounding, whole=whole)
    key = as_seed(seed, generator) if rounding.stochastic else None
    given = list(operands.values())
    exact = [given[0], -given[1]] if operation is SUB else given
    inputs = aligned(*exact)
    if isinstance(rounding, Rounding) and rounding.saturation is Saturation.WRAP:
        _check_wrapping(name, aligned(*given), rounding)
    differentiable = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in given
    )
    if not differentiable and not transforms_active():
        if has_dual_numbers():
            refuse_tangents(*given)
        return computed(operation.kernel, inputs, dtype, rounding, key, offset)
    y = operation.carrier(*given)
    return with_gradient_of(
        y, operation.kernel, inputs, dtype, rounding, key, offset=offset
    )


def aligned(*given: Tensor | float) -> Operands:
    """Return one to three operands as three broadcast tensors, without rounding any."""
    device = next(x.device for x in given if isinstance(x, Tensor))
    tensors = [x if isinstance(x, Tensor) else _number(x, device) for x in given]
    shape = torch.broadcast_shapes(*[x.shape for x in tensors])
    expanded = [x.expand(shape) for x in tensors]
    first = expanded[0]
    a, b, c = [*expanded, first, first][:3]
    return a, b, c


def _number(value: float, device: torch.device) -> Tensor:
    dtype = torch.float32 if _is_narrow(value) else torch.float64
    return torch.tensor(value, dtype=dtype, device=device)


def _is_narrow(value: float) -> bool:
    """Whether binary32 holds a number."""
    return ctypes.c_float(value).value == value or value != value


# What torch.compiler.assume_constant_result sets, which would import the compiler.
_is_narrow._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_operands(
    name: str,
    operands: dict[str, Any],
    rounding: ScalarRounding,
    *,
    whole: bool = False,
) -> torch.dtype:
    """Return the dtype of the result.

    Args:
        name: of the function.
        operands: by their names.
        rounding: of the exact result.
        whole: whether deterministic modes may need all bits of float64.

    Raises:
        TypeError: for operands that are no carriers, or differ.
        ValueError: for devices that differ, integers that float64 may not hold, or a
            format that the carrier cannot hold.
        NotImplementedError: for more than 51 significant bits, or a result that does
            not wrap.
    """
    tensors = {key: x for key, x in operands.items() if isinstance(x, Tensor)}
    for key, x in operands.items():
        if isinstance(x, bool) or not isinstance(x, (Tensor, int, float)):
            raise TypeError(
                f"{key} must be a tensor or a number, got {type(x).__name__}"
            )
        if isinstance(x, int) and abs(x) > _LARGEST_INTEGER:
            raise ValueError(
                f"{key}={x} may be no float64 number: integers are exact up to 2^53; "
                "give a float or a tensor"
            )
    if not tensors:
        raise TypeError(
            f"lowprec.{name} needs at least one tensor, got only numbers: "
            "torch.tensor(value, dtype=torch.float64) makes one"
        )
    (first, reference), *rest = tensors.items()
    check_carrier(reference, first)
    for key, x in rest:
        check_carrier(x, key)
        if x.dtype != reference.dtype:
            raise TypeError(
                f"{first} and {key} must have the same dtype, got {reference.dtype} "
                f"and {x.dtype}: convert one of them"
            )
        if x.device != reference.device:
            raise ValueError(
                f"{first} and {key} must be on the same device, got "
                f"{reference.device} and {x.device}"
            )
    if isinstance(rounding, Rounding):  # kernels know what tables can be rounded to
        _check_format(name, rounding, whole)
    check_held(rounding, reference.dtype)
    return reference.dtype


def _check_format(name: str, rounding: Rounding, whole: bool) -> None:
    """Refuse formats to which an operation's result cannot be rounded correctly.

    Raises:
        NotImplementedError: saying why.
    """
    check_precision(name, rounding, whole)
    if rounding.saturation is Saturation.WRAP and name not in _WRAPPING:
        raise NotImplementedError(
            f"saturation='wrap' is for lowprec.add, sub, mul, fma, round and sums, got "
            f"{name}, of whose value 53 bits do not tell what is left: round the result"
        )
    if rounding.wraps_inexactly:
        raise NotImplementedError(
            f"lowprec.{name} wraps words of at most 26 bits, whose products have at "
            f"most 53 bits before, got {rounding.format!r}"
        )


def check_precision(name: str, rounding: Rounding, whole: bool) -> None:
    """Refuse formats with more bits than results are correctly rounded to.

    Args:
        name: of the function.
        rounding: of the exact result.
        whole: whether deterministic modes may need all bits of float64.

    Raises:
        NotImplementedError: saying how many bits are possible.
    """
    if whole:  # what no stochastic rounding has, nor fixed point, which may wrap
        whole = not rounding.stochastic and rounding.format.encoding != "integer"
    widest = CARRIER_BITS if whole else WIDEST
    if rounding.format.precision > widest:
        raise NotImplementedError(
            f"lowprec.{name} rounds correctly to at most {widest} significant bits "
            f"in this mode, got {rounding.format.precision}"
        )


def _check_wrapping(name: str, operands: Operands, rounding: Rounding) -> None:
    """Refuse operands whose results may have more than 53 bits before they wrap.

    Contract:
        Compiled code and torch's transforms do not look at values, so there results
        are those of the exact value rounded to odd to 53 bits.

    Raises:
        ValueError: if a finite operand is not a value of the format.
    """
    if torch.compiler.is_compiling() or transforms_active():
        return
    held = Rounding(rounding.format, saturation="finite")
    for x in operands:
        given = x.detach()
        wrong = (round(given, held) != given) & given.isfinite()
        if bool(wrong.any()):
            first = given[wrong].flatten()[0].item()
            raise ValueError(
                f"lowprec.{name} wraps exactly for values of {rounding.format!r} only, "
                f"got {first!r}: round the operands first"
            )


def check_held(rounding: ScalarRounding, dtype: torch.dtype) -> None:
    """Refuse a format whose values a carrier cannot hold.

    Raises:
        ValueError: saying what to do.
    """
    if not fits(rounding.format, dtype):
        carrier = str(dtype).removeprefix("torch.")
        advice = ": use float64 operands" if carrier == "float32" else ""
        raise ValueError(
            f"{carrier} tensors cannot hold every value of {rounding!r}{advice}"
        )
