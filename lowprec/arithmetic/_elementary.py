"""`lowprec.exp`, `log`, `tanh` and `sigmoid`, correctly rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import basic as kernel
from ..rounding import RoundingMode, Saturation, ScalarRoundingLike, Variant
from ._correct import Operation, apply_rounded
from ._overrides import overridable
from ._round import chosen

_EXP = Operation(kernel.EXP, torch.exp)
_LOG = Operation(kernel.LOG, torch.log)
_TANH = Operation(kernel.TANH, torch.tanh)
_SIGMOID = Operation(kernel.SIGMOID, torch.sigmoid)


@overridable
def exp(
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
    """Exponentiate with one rounding: fl(exp(a)).

    Contract:
        The exact value is rounded once, in every mode and for every operand, whatever
        the device and its mathematics library: float64 values are trusted to 16 units
        in the last place, and where these leave a doubt the value is computed in
        integers. That takes some 0.1 ms an element, and happens about once in 2^(45-p)
        elements for p significant bits: rarely up to 32 bits, always from 46 on. exp(0)
        is 1, exp(-infinity) +0. Stochastic modes and the gradient are as in `add`.

    Args:
        a: float32 or float64 tensor.
        rounding: a `Rounding`, or a `Format`, format name or torch dtype, which mean
            nearest-even without saturation; at most 51 significant bits. Or a
            `TableRounding`, or a `Posit`, its name, or `Levels`.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor of the operand's shape and dtype.

    Raises:
        TypeError: if the operand is not a float32 or float64 tensor.
        ValueError: if the dtype cannot hold the format's values, or both ``generator``
            and ``seed`` are given.
        NotImplementedError: for more than 51 significant bits, levels of more than 52,
            and if the result is to wrap.

    Example:
        >>> exp(torch.tensor([0.0, 1.0, 7.0]), "e4m3fn", "toward_zero").tolist()
        [1.0, 2.5, 448.0]

    References:
        IEEE 754-2019 section 9.2; Ziv, Fast evaluation of elementary mathematical
        functions with correctly rounded last bit, 1991.
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return apply_rounded(_EXP, "exp", {"a": a}, fl, generator, seed, offset)


@overridable
def log(
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
    """Take natural logarithms with one rounding: fl(log(a)).

    Contract:
        As `exp`. log(1) is +0, log(0) -infinity, or NaR in posits, and that of negative
        numbers NaN.

    Args:
        a: float32 or float64 tensor.
        rounding: as in `exp`, and so are the others.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor of the operand's shape and dtype.

    Raises:
        TypeError: as `exp`.
        ValueError: as `exp`.
        NotImplementedError: as `exp`.

    Example:
        >>> log(torch.tensor([1.0, 2.0, 0.0]), "bfloat16")
        tensor([0.0000, 0.6914,   -inf])

    References:
        IEEE 754-2019 section 9.2.
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return apply_rounded(_LOG, "log", {"a": a}, fl, generator, seed, offset)


@overridable
def tanh(
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
    """Take hyperbolic tangents with one rounding: fl(tanh(a)).

    Contract:
        As `exp`. Zeros keep their sign, tanh(infinity) is 1. Other values lie strictly
        between -1 and 1, and between 0 and a, which directed modes show.

    Args:
        a: float32 or float64 tensor.
        rounding: as in `exp`, and so are the others.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor of the operand's shape and dtype.

    Raises:
        TypeError: as `exp`.
        ValueError: as `exp`.
        NotImplementedError: as `exp`.

    Example:
        >>> tanh(torch.tensor([0.5, 9.0]), "bfloat16", "toward_zero")
        tensor([0.4609, 0.9961])

    References:
        IEEE 754-2019 section 9.2.
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return apply_rounded(_TANH, "tanh", {"a": a}, fl, generator, seed, offset)


@overridable
def sigmoid(
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
    """Take logistic functions with one rounding: fl(1 / (1 + exp(-a))).

    Contract:
        As `exp`. sigmoid(0) is 1/2, sigmoid(infinity) 1 and sigmoid(-infinity) +0;
        other values lie strictly between 0 and 1, which directed modes show.

    Args:
        a: float32 or float64 tensor.
        rounding: as in `exp`, and so are the others.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor of the operand's shape and dtype.

    Raises:
        TypeError: as `exp`.
        ValueError: as `exp`.
        NotImplementedError: as `exp`.

    Example:
        >>> sigmoid(torch.tensor([0.5, 9.0]), "bfloat16")
        tensor([0.6211, 1.0000])

    References:
        IEEE 754-2019 section 9.2.
    """
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    return apply_rounded(_SIGMOID, "sigmoid", {"a": a}, fl, generator, seed, offset)
