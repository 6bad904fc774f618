"""`lowprec.functional.softmax`, `log_softmax` and `softmin`."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._parts import dimension
from ._wide import Wide, wide_for


def normalized_exponentials(wide: Wide, x: Tensor, dim: int) -> Tensor:
    """Return exp(x - max) / sum, the float64 value of a softmax."""
    powers = (x - x.detach().amax(dim, keepdim=True)).exp()
    return powers / wide.expand(wide.sum(powers, dim, keepdim=True), powers.shape)


def _logarithms(wide: Wide, x: Tensor, dim: int) -> Tensor:
    shifted = x - x.detach().amax(dim, keepdim=True)
    total = wide.sum(shifted.exp(), dim, keepdim=True)
    return shifted - wide.expand(total.log(), shifted.shape)


def _of_opposites(wide: Wide, x: Tensor, dim: int) -> Tensor:
    return normalized_exponentials(wide, -x, dim)


def _along(
    formula: Callable[[Wide, Tensor, int], Tensor],
    torchs: Callable[..., Tensor],
    input: Tensor,
    dim: int | None,
    dtype: torch.dtype | None,
    precision: Precision,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> Tensor:
    """Apply a formula to the float64 values along one dimension."""
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torchs(input, dim, dtype=dtype)
    x = input if dtype is None else input.to(dtype)
    check_carrier(x, "input")
    if dim is None:  # torch's choice of old, which it warns about as well
        dim = 0 if x.dim() in (0, 1, 3) else 1
        name = torchs.__name__
        warnings.warn(f"Implicit dimension choice for {name}: use dim=", stacklevel=4)
    dim = dimension(x, dim)
    if x.numel() == 0:
        return torchs(x, dim)
    wide = wide_for(precision, x.dtype, generator, seed)
    values = wide.enter(x if x.dim() else x.unsqueeze(0))
    return wide.leave(formula(wide, values, dim)).reshape(x.shape)


@overridable
def softmax(
    input: Tensor,
    dim: int | None = None,
    dtype: torch.dtype | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Normalise exponentials along a dimension in emulated arithmetic.

    y = fl(exp(x - m) / s) with m = max(x), s = acc(exp(x - m)) and fl of
    ``elementwise``; with dy' = fl(dy): dx = fl((dy' / s + t) exp(x - m)),
    t = acc_grad(-dy' exp(x - m) / s^2).

    Contract:
        One fused operation: everything but the sums is computed in float64, and the
        result and the gradients are rounded once. The sums are those of
        ``accumulator`` and ``grad_accumulator``, terms in order, and float64's where
        these are None. ``elementwise=None`` leaves the whole operation to torch.

    Args:
        input: float32 or float64 tensor.
        dim: the dimension along which the results add up to about one.
        dtype: float32 or float64, to convert the input to first.
        precision: its ``elementwise`` and its accumulators.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: if the tensor is not float32 or float64, or ``precision`` is not a
            `Precision`.
        ValueError: if the carrier cannot hold the values.
        IndexError: if there is no such dimension.
        NotImplementedError: for accumulators that `lowprec.sum` does not take.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.zeros(257, 1)
        >>> low = Precision(elementwise="bfloat16", accumulator="bfloat16")
        >>> softmax(x, 0, precision=low).sum().item()  # the sum stays at 256
        1.00390625

    References:
        Blanchard, Higham and Higham 2021, Accurately computing the log-sum-exp and
        softmax functions.
    """
    return _along(
        normalized_exponentials,
        torch.nn.functional.softmax,
        input,
        dim,
        dtype,
        precision,
        generator,
        seed,
    )


@overridable
def log_softmax(
    input: Tensor,
    dim: int | None = None,
    dtype: torch.dtype | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Return the logarithm of `softmax` in emulated arithmetic.

    y = fl(x - m - log(s)) with m = max(x), s = acc(exp(x - m)); with dy' = fl(dy):
    dx = fl(dy' - acc_grad(dy') exp(x - m) / s).

    Contract:
        As `softmax`.

    Args:
        input: float32 or float64 tensor.
        dim: the dimension along which the exponentials add up to about one.
        dtype: float32 or float64, to convert the input to first.
        precision: its ``elementwise`` and its accumulators.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: as `softmax`.
        ValueError: as `softmax`.
        IndexError: as `softmax`.
        NotImplementedError: as `softmax`.
        RuntimeError: as `softmax`.

    Example:
        >>> log_softmax(torch.zeros(4), 0, precision=Precision(elementwise="e4m3fn"))
        tensor([-1.3750, -1.3750, -1.3750, -1.3750])

    References:
        Blanchard, Higham and Higham 2021, Accurately computing the log-sum-exp and
        softmax functions.
    """
    return _along(
        _logarithms,
        torch.nn.functional.log_softmax,
        input,
        dim,
        dtype,
        precision,
        generator,
        seed,
    )


@overridable
def softmin(
    input: Tensor,
    dim: int | None = None,
    dtype: torch.dtype | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Return the `softmax` of the opposite numbers.

    The formulas are those of `softmax` with -x for x.

    Contract:
        As `softmax`.

    Args:
        input: float32 or float64 tensor.
        dim: the dimension along which the results add up to about one.
        dtype: float32 or float64, to convert the input to first.
        precision: its ``elementwise`` and its accumulators.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: as `softmax`.
        ValueError: as `softmax`.
        IndexError: as `softmax`.
        NotImplementedError: as `softmax`.
        RuntimeError: as `softmax`.

    Example:
        >>> softmin(torch.zeros(4), 0, precision=Precision(elementwise="e4m3fn"))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])

    References:
        Blanchard, Higham and Higham 2021, Accurately computing the log-sum-exp and
        softmax functions.
    """
    return _along(
        _of_opposites,
        torch.nn.functional.softmin,
        input,
        dim,
        dtype,
        precision,
        generator,
        seed,
    )
