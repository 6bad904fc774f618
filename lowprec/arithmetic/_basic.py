"""`lowprec.add`, `sub`, `mul`, `div`, `sqrt` and `fma`, correctly rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import basic as kernel
from ..rounding import RoundingMode, Saturation, ScalarRoundingLike, Variant
from ._correct import SUB, Operation, apply_rounded
from ._overrides import overridable
from ._round import chosen

_ADD = Operation(kernel.ADD, torch.add)
_MUL = Operation(kernel.MUL, torch.mul)
_DIV = Operation(kernel.DIV, torch.div)
_SQRT = Operation(kernel.SQRT, torch.sqrt)
_FMA = Operation(kernel.FMA, lambda a, b, c: a * b + c)


@overridable
def add(
    a: Tensor | float,
    b: Tensor | float,
    rounding: ScalarRoundingLike,
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
        `lowprec.functional.pointwise` emulates it. Of posits, infinite results are NaR,
        shown as NaN.

    Args:
        a: float32 or float64 tensor, or a number.
        b: tensor of the same dtype that broadcasts with ``a``, or a number.
        rounding: a `Rounding`, or a `Format`, format name or torch dtype, which mean
            nearest-even without saturation; at most 53 significant bits, 51 in
            stochastic modes. Or a `TableRounding`, or a `Posit`, its name, or `Levels`.
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
            2^53, devices differ, both ``generator`` and ``seed`` are given, or the
            result is to wrap and an operand is no value of the format.
        NotImplementedError: for more than 51 significant bits in stochastic modes and
            of fixed point, and for levels, or mid-points that count, of more than 52.

    Example:
        >>> add(torch.tensor([256.0, 256.0]), torch.tensor([1.0, 3.0]), "bfloat16")
        tensor([256., 260.])

    References:
        IEEE 754-2019 sections 4.3, 5.4.1 and 6.3; Standard for Posit Arithmetic, 2022,
        section 5; Boldo and Melquiond 2008 (rounding
        to odd).
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return apply_rounded(_ADD, "add", {"a": a, "b": b}, fl, generator, seed, offset)


@overridable
def sub(
    a: Tensor | float,
    b: Tensor | float,
    rounding: ScalarRoundingLike,
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
    return apply_rounded(SUB, "sub", {"a": a, "b": b}, fl, generator, seed, offset)


@overridable
def mul(
    a: Tensor | float,
    b: Tensor | float,
    rounding: ScalarRoundingLike,
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
    return apply_rounded(_MUL, "mul", {"a": a, "b": b}, fl, generator, seed, offset)


@overridable
def div(
    a: Tensor | float,
    b: Tensor | float,
    rounding: ScalarRoundingLike,
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
        As `add`. Finite numbers divided by zero are infinite, and NaR in posits; 0 / 0
        is NaN.

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
    return apply_rounded(_DIV, "div", {"a": a, "b": b}, fl, generator, seed, offset)


@overridable
def sqrt(
    a: Tensor,
    rounding: ScalarRoundingLike,
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
    return apply_rounded(_SQRT, "sqrt", {"a": a}, fl, generator, seed, offset)


@overridable
def fma(
    a: Tensor | float,
    b: Tensor | float,
    c: Tensor | float,
    rounding: ScalarRoundingLike,
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
    return apply_rounded(
        _FMA, "fma", {"a": a, "b": b, "c": c}, fl, generator, seed, offset
    )
