"""`lowprec.add`, `sub`, `mul`, `div`, `sqrt` and `fma`, correctly rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import basic as kernel
from ..random import as_seed
from ..rounding import Rounding, RoundingLike, RoundingMode, Saturation, Variant
from ._correct import aligned, check_operands, computed, with_gradient_of
from ._overrides import overridable
from ._round import chosen, refuse_compiled_transforms, transforms_active


class _Operation(NamedTuple):
    """A kernel, and torch's operation in the carrier that knows the gradient."""

    kernel: int
    carrier: Callable[..., Tensor]


_ADD = _Operation(kernel.ADD, torch.add)
_SUB = _Operation(kernel.ADD, torch.sub)  # of the negated operand, which is exact
_MUL = _Operation(kernel.MUL, torch.mul)
_DIV = _Operation(kernel.DIV, torch.div)
_SQRT = _Operation(kernel.SQRT, torch.sqrt)
_FMA = _Operation(kernel.FMA, lambda a, b, c: a * b + c)


def _apply(
    operation: _Operation,
    name: str,
    operands: dict[str, Tensor | float],
    rounding: Rounding,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
    offset: int,
) -> Tensor:
    """Check, compute, and attach the gradient of torch's operation if it is needed."""
    refuse_compiled_transforms(f"lowprec.{name}")
    if seed is not None and generator is not None:
        raise ValueError("give either seed= or generator=, not both")
    dtype = check_operands(name, operands, rounding)
    key = as_seed(seed, generator) if rounding.stochastic else None
    given = list(operands.values())
    exact = [given[0], -given[1]] if operation is _SUB else given
    inputs = aligned(*exact)
    differentiable = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in given
    )
    if not differentiable and not transforms_active():
        return computed(operation.kernel, inputs, dtype, rounding, key, offset)
    y = operation.carrier(*given)
    return with_gradient_of(
        y, operation.kernel, inputs, dtype, rounding, key, offset=offset
    )


@overridable
def add(
    a: Tensor | float,
    b: Tensor | float,
    rounding: RoundingLike,
    mode: RoundingMode | str | None = None,
    *,
    saturation: Saturation | str | None = None,
    random_bits: int | None = None,
    variant: Variant | str | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Add tensors with one rounding: fl(a + b).

    Contract:
        The exact result is rounded once, for any operands: nothing overflows or
        underflows before the format says so. Infinities, NaN and signs of zeros follow
        IEEE 754; an exact zero sum is +0, and -0 toward negative. Numbers are used
        exactly. Stochastic modes see the exact result rounded to odd to 53 bits and
        are a pure function of (seed, row-major element index + offset). The gradient
        is that of torch's operation in the carrier, not emulated:
        `lowprec.functional.pointwise` emulates it.

    Args:
        a: float32 or float64 tensor, or a number.
        b: tensor of the same dtype that broadcasts with ``a``, or a number.
        rounding: a `Rounding`, or a `Format`, format name or torch dtype, which mean
            nearest-even without saturation; at most 51 significant bits.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes; None means torch's default
            generator.
        seed: the seed itself instead, an int or 0-d int64 tensor.
        offset: linear index of the first element, for shards of a larger tensor.

    Returns:
        Tensor of the broadcast shape and the operands' dtype.

    Raises:
        TypeError: if no operand is a tensor, or tensors are not float32 or float64 of
            one dtype.
        ValueError: if the dtype cannot hold the format's values, an integer is beyond
            2^53, devices differ, or both ``generator`` and ``seed`` are given.
        NotImplementedError: for more than 51 significant bits.

    Example:
        >>> add(torch.tensor([256.0, 256.0]), torch.tensor([1.0, 3.0]), "bfloat16")
        tensor([256., 260.])

    References:
        IEEE 754-2019 sections 4.3, 5.4.1 and 6.3; Boldo and Melquiond 2008 (rounding
        to odd).
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return _apply(_ADD, "add", {"a": a, "b": b}, fl, generator, seed, offset)


@overridable
def sub(
    a: Tensor | float,
    b: Tensor | float,
    rounding: RoundingLike,
    mode: RoundingMode | str | None = None,
    *,
    saturation: Saturation | str | None = None,
    random_bits: int | None = None,
    variant: Variant | str | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Subtract tensors with one rounding: fl(a - b).

    Contract:
        As `add` of a and -b.

    Args:
        a: float32 or float64 tensor, or a number.
        b: tensor of the same dtype that broadcasts with ``a``, or a number.
        rounding: as in `add`, and so are the others.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor of the broadcast shape and the operands' dtype.

    Raises:
        TypeError: as `add`.
        ValueError: as `add`.
        NotImplementedError: as `add`.

    Example:
        >>> sub(torch.tensor([256.0]), 1, "bfloat16")
        tensor([255.])

    References:
        IEEE 754-2019 section 5.4.1.
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return _apply(_SUB, "sub", {"a": a, "b": b}, fl, generator, seed, offset)


@overridable
def mul(
    a: Tensor | float,
    b: Tensor | float,
    rounding: RoundingLike,
    mode: RoundingMode | str | None = None,
    *,
    saturation: Saturation | str | None = None,
    random_bits: int | None = None,
    variant: Variant | str | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Multiply tensors with one rounding: fl(a b).

    Contract:
        As `add`.

    Args:
        a: float32 or float64 tensor, or a number.
        b: tensor of the same dtype that broadcasts with ``a``, or a number.
        rounding: as in `add`, and so are the others.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor of the broadcast shape and the operands' dtype.

    Raises:
        TypeError: as `add`.
        ValueError: as `add`.
        NotImplementedError: as `add`.

    Example:
        >>> mul(torch.tensor([3.0, 1e30]), torch.tensor([1.1, 1e30]), "e5m2")
        tensor([3.5000,    inf])

    References:
        IEEE 754-2019 section 5.4.1.
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return _apply(_MUL, "mul", {"a": a, "b": b}, fl, generator, seed, offset)


@overridable
def div(
    a: Tensor | float,
    b: Tensor | float,
    rounding: RoundingLike,
    mode: RoundingMode | str | None = None,
    *,
    saturation: Saturation | str | None = None,
    random_bits: int | None = None,
    variant: Variant | str | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Divide tensors with one rounding: fl(a / b).

    Contract:
        As `add`. Finite numbers divided by zero are infinite, 0 / 0 is NaN.

    Args:
        a: float32 or float64 tensor, or a number.
        b: tensor of the same dtype that broadcasts with ``a``, or a number.
        rounding: as in `add`, and so are the others.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor of the broadcast shape and the operands' dtype.

    Raises:
        TypeError: as `add`.
        ValueError: as `add`.
        NotImplementedError: as `add`.

    Example:
        >>> div(1.0, torch.tensor([3.0, 0.0]), "bfloat16")
        tensor([0.3340,    inf])

    References:
        IEEE 754-2019 section 5.4.1.
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return _apply(_DIV, "div", {"a": a, "b": b}, fl, generator, seed, offset)


@overridable
def sqrt(
    a: Tensor,
    rounding: RoundingLike,
    mode: RoundingMode | str | None = None,
    *,
    saturation: Saturation | str | None = None,
    random_bits: int | None = None,
    variant: Variant | str | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Take square roots with one rounding: fl(sqrt(a)).

    Contract:
        As `add`. The root of -0 is -0, that of negative numbers NaN.

    Args:
        a: float32 or float64 tensor.
        rounding: as in `add`, and so are the others.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor of the broadcast shape and the operands' dtype.

    Raises:
        TypeError: as `add`.
        ValueError: as `add`.
        NotImplementedError: as `add`.

    Example:
        >>> sqrt(torch.tensor([2.0, -1.0]), "bfloat16")
        tensor([1.4141,    nan])

    References:
        IEEE 754-2019 section 5.4.1.
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return _apply(_SQRT, "sqrt", {"a": a}, fl, generator, seed, offset)


@overridable
def fma(
    a: Tensor | float,
    b: Tensor | float,
    c: Tensor | float,
    rounding: RoundingLike,
    mode: RoundingMode | str | None = None,
    *,
    saturation: Saturation | str | None = None,
    random_bits: int | None = None,
    variant: Variant | str | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Multiply and add with one rounding: fl(a b + c).

    Contract:
        As `add`; the product is not rounded.

    Args:
        a: float32 or float64 tensor, or a number.
        b: the second factor, likewise.
        c: the addend, likewise.
        rounding: as in `add`, and so are the others.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor of the broadcast shape and the operands' dtype.

    Raises:
        TypeError: as `add`.
        ValueError: as `add`.
        NotImplementedError: as `add`.

    Example:
        >>> a = torch.tensor([1 + 2.0**-6])
        >>> fma(a, a, -1, "bfloat16").item() == 2.0**-5 + 2.0**-12
        True

    References:
        IEEE 754-2019 section 5.4.1 (fusedMultiplyAdd).
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return _apply(_FMA, "fma", {"a": a, "b": b, "c": c}, fl, generator, seed, offset)
