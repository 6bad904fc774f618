"""Losses: terms in float64, their sum under an accumulator, one rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._wide import Wide, wide_for

Seed = int | Tensor | None


def reduce(
    wide: Wide, terms: Tensor, reduction: str, count: Tensor | float | None = None
) -> Tensor:
    """Return the terms, their sum, or it divided by their number or by ``count``.

    Raises:
        ValueError: if there is no such reduction.
    """
    if reduction == "none":
        return wide.leave(terms)
    if reduction not in ("sum", "mean"):
        raise ValueError(
            f"reduction must be 'none', 'sum' or 'mean', got {reduction!r}"
        )
    total = wide.sum(terms, range(terms.dim()))
    if reduction == "mean":
        total = total / (terms.numel() if count is None else count)
    return wide.leave(total)


def entered(
    operands: tuple[Tensor | None, ...],
    precision: Precision,
    generator: torch.Generator | None,
    seed: Seed,
) -> tuple[Wide, list[Tensor]]:
    """Return the borders, and the operands in float64 and of one shape."""
    given = [x for x in operands if x is not None]
    for x in given:
        check_carrier(x, "an operand")
    dtype = given[0].dtype
    for x in given[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    wide = wide_for(precision, dtype, generator, seed)
    shape = torch.broadcast_shapes(*[x.shape for x in given])
    return wide, [wide.expand(wide.enter(x), shape) for x in given]


def _difference_loss(
    term: Callable[[Tensor], Tensor],
    plain: Callable[..., Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    options: dict[str, Any],
    precision: Precision,
    generator: torch.Generator | None,
    seed: Seed,
) -> Tensor:
    """Return a loss whose terms are functions of input - target."""
    if as_precision(precision).elementwise is None:
        if weight is not None:  # not every torch has it
            options = {**options, "weight": weight}
        return plain(input, target, reduction=reduction, **options)
    operands = (input, target, weight)
    wide, (x, y, *weights) = entered(operands, precision, generator, seed)
    terms = term(x - y)
    if not weights:
        return reduce(wide, terms, reduction)
    (w,) = weights
    count = wide.sum(w, range(w.dim())) if reduction == "mean" else None
    return reduce(wide, terms * w, reduction, count)


@overridable
def mse_loss(
    input: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    weight: Tensor | None = None,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Return squared errors: y = fl(acc(sum (x_i - t_i)^2) / n).

    Contract:
        The terms are float64, the sum that of ``accumulator``, in row-major order.
        dx_i = fl(2 (x_i - t_i) fl(dy) / n), and dt_i = -dx_i; where an operand was
        broadcast, ``grad_accumulator`` adds. With ``elementwise=None`` this is torch's
        own function, bit for bit.

    Args:
        input: float32 or float64 tensor of any shape.
        target: tensor that broadcasts with it.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        weight: of the terms, or None; a mean divides by the sum of the weights.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        0-d tensor, or one of the broadcast shape for ``"none"``.

    Raises:
        TypeError: if an operand is no carrier, or ``precision`` not a `Precision`.
        ValueError: if ``reduction`` is unknown, or the carrier cannot hold the values
            of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x, t = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
        >>> mse_loss(x, t, precision=Precision(elementwise="bfloat16")).item()
        2.5

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """
    return _difference_loss(
        torch.square,
        F.mse_loss,
        input,
        target,
        weight,
        reduction,
        {},
        precision,
        generator,
        seed,
    )


@overridable
def l1_loss(
    input: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    weight: Tensor | None = None,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Return absolute errors: y = fl(acc(sum |x_i - t_i|) / n).

    Contract:
        As `mse_loss`; dx_i = fl(sign(x_i - t_i) fl(dy) / n).

    Args:
        input: float32 or float64 tensor of any shape.
        target: tensor that broadcasts with it.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        weight: of the terms, or None; a mean divides by the sum of the weights.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        0-d tensor, or one of the broadcast shape for ``"none"``.

    Raises:
        TypeError: if an operand is no carrier, or ``precision`` not a `Precision`.
        ValueError: if ``reduction`` is unknown, or the carrier cannot hold the values
            of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x, t = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
        >>> l1_loss(x, t, precision=Precision(elementwise="bfloat16")).item()
        1.5

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """
    return _difference_loss(
        torch.abs,
        F.l1_loss,
        input,
        target,
        weight,
        reduction,
        {},
        precision,
        generator,
        seed,
    )


@overridable
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    beta: float = 1.0,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Return errors, squared where they are smaller than beta.

    Contract:
        As `mse_loss`, with terms d^2 / (2 beta) for |d| < beta, |d| - beta / 2
        otherwise.

    Args:
        input: float32 or float64 tensor of any shape.
        target: tensor that broadcasts with it.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        beta: from which error on terms are linear, not negative.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        0-d tensor, or one of the broadcast shape for ``"none"``.

    Raises:
        TypeError: if an operand is no carrier, or ``precision`` not a `Precision`.
        ValueError: if ``reduction`` is unknown, or the carrier cannot hold the values
            of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x, t = torch.tensor([0.5, 3.0]), torch.zeros(2)
        >>> smooth_l1_loss(x, t, precision=Precision(elementwise="e5m2")).item()
        1.25

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """
    return _difference_loss(
        lambda d: F.smooth_l1_loss(d, torch.zeros_like(d), reduction="none", beta=beta),
        F.smooth_l1_loss,
        input,
        target,
        None,
        reduction,
        {"beta": beta},
        precision,
        generator,
        seed,
    )


@overridable
def huber_loss(
    input: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    delta: float = 1.0,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Return errors, squared where they are smaller than delta.

    Contract:
        As `mse_loss`, with terms d^2 / 2 for |d| <= delta, delta (|d| - delta / 2)
        otherwise.

    Args:
        input: float32 or float64 tensor of any shape.
        target: tensor that broadcasts with it.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        delta: from which error on terms are linear, positive.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        0-d tensor, or one of the broadcast shape for ``"none"``.

    Raises:
        TypeError: if an operand is no carrier, or ``precision`` not a `Precision`.
        ValueError: if ``reduction`` is unknown, or the carrier cannot hold the values
            of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x, t = torch.tensor([0.5, 3.0]), torch.zeros(2)
        >>> huber_loss(x, t, precision=Precision(elementwise="e5m2")).item()
        1.25

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """
    return _difference_loss(
        lambda d: F.huber_loss(d, torch.zeros_like(d), reduction="none", delta=delta),
        F.huber_loss,
        input,
        target,
        None,
        reduction,
        {"delta": delta},
        precision,
        generator,
        seed,
    )
