"""Losses of probabilities: binary cross entropies, Kullback-Leibler divergence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import overridable
from ..precision import Precision, as_precision
from ._losses import entered, reduce

Seed = int | Tensor | None


@overridable
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Return y = fl(acc(sum -w_i (t_i log x_i + (1 - t_i) log(1 - x_i))) / n).

    Contract:
        As `mse_loss`; logarithms are not smaller than -100, as in torch.

    Args:
        input: float32 or float64 probabilities of any shape.
        target: tensor of the same shape.
        weight: of the terms, or None; broadcasts.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        precision: as `mse_loss`.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        0-d tensor, or one of the input's shape for ``"none"``.

    Raises:
        TypeError: as `mse_loss`.
        ValueError: as `mse_loss`.
        RuntimeError: from torch, for probabilities outside [0, 1], or if the gradient
            is differentiated again.

    Example:
        >>> x, t = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])
        >>> binary_cross_entropy(x, t, precision=Precision(elementwise="e5m2")).item()
        0.75

    References:
        As `mse_loss`.
    """
    if as_precision(precision).elementwise is None:
        return F.binary_cross_entropy(input, target, weight, reduction=reduction)
    operands = (input, target, weight)
    wide, (x, t, *weights) = entered(operands, precision, generator, seed)
    terms = F.binary_cross_entropy(x, t, reduction="none")
    return reduce(wide, terms * weights[0] if weights else terms, reduction)


@overridable
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Return `binary_cross_entropy` of sigmoid(x), without overflow.

    y = fl(acc(sum w_i ((1 - t_i) x_i + (1 + (q_i - 1) t_i) log(1 + exp(-x_i)))) / n)
    with the weights q of positive targets.

    Contract:
        As `mse_loss`.

    Args:
        input: float32 or float64 scores of any shape.
        target: tensor of the same shape.
        weight: of the terms, or None; broadcasts.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: q, or None for ones; broadcasts.
        precision: as `mse_loss`.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        0-d tensor, or one of the input's shape for ``"none"``.

    Raises:
        TypeError: as `mse_loss`.
        ValueError: as `mse_loss`.
        RuntimeError: as `mse_loss`.

    Example:
        >>> x, t, low = torch.zeros(2), torch.ones(2), Precision(elementwise="e5m2")
        >>> binary_cross_entropy_with_logits(x, t, precision=low).item()
        0.75

    References:
        As `mse_loss`.
    """
    if as_precision(precision).elementwise is None:
        return F.binary_cross_entropy_with_logits(
            input, target, weight, reduction=reduction, pos_weight=pos_weight
        )
    operands = (input, target, weight, pos_weight)
    wide, given = entered(operands, precision, generator, seed)
    x, t, *weights = given
    softplus = -F.logsigmoid(x)
    if pos_weight is not None:
        softplus = softplus * (1 + (weights.pop() - 1) * t)
    terms = (1 - t) * x + softplus
    return reduce(wide, terms * weights[0] if weights else terms, reduction)


@overridable
def kl_div(
    input: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    log_target: bool = False,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Return y = fl(acc(sum t_i (log t_i - x_i)) / n), x logarithms of probabilities.

    Contract:
        As `mse_loss`; terms with t_i = 0 are zero.

    Args:
        input: float32 or float64 logarithms of probabilities.
        target: probabilities, or their logarithms; broadcasts.
        reduction: ``"mean"``, ``"batchmean"`` (n is the first size), ``"sum"`` or
            ``"none"``.
        log_target: whether ``target`` holds logarithms.
        precision: as `mse_loss`.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        0-d tensor, or one of the broadcast shape for ``"none"``.

    Raises:
        TypeError: as `mse_loss`.
        ValueError: as `mse_loss`.
        RuntimeError: as `mse_loss`.

    Example:
        >>> x, t = torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 0.0])
        >>> kl_div(x, t, reduction="sum", precision=Precision(elementwise="e5m2"))
        tensor(1.)

    References:
        As `mse_loss`.
    """
    if as_precision(precision).elementwise is None:
        return F.kl_div(input, target, reduction=reduction, log_target=log_target)
    wide, (x, t) = entered((input, target), precision, generator, seed)
    terms = F.kl_div(x, t, reduction="none", log_target=log_target)
    if reduction == "batchmean":
        return reduce(wide, terms, "mean", x.shape[0])
    return reduce(wide, terms, reduction)
