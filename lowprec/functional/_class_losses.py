"""Losses of classes: cross entropy and negative log-likelihood."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._losses import reduce
from ._wide import Wide, wide_for

Seed = int | Tensor | None


def _class_dim(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _likelihood_loss(
    wide: Wide,
    log_probabilities: Tensor,  # [N, C, ...] or [C], float64
    target: Tensor,  # [N, ...] or []
    weight: Tensor | None,  # [C], float64
    ignore_index: int,
    reduction: str,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the loss of integer targets.

    A mean divides by the number of targets that count, or the sum of their weights.
    """
    dim = _class_dim(log_probabilities)
    counted = target != ignore_index
    place = torch.where(counted, target, 0)
    chosen = log_probabilities.gather(dim, place.unsqueeze(dim)).squeeze(dim)
    losses = -chosen if weight is None else -chosen * weight[place]
    terms = torch.where(counted, losses, 0.0)
    if smoothing > 0:
        classes = log_probabilities.shape[dim]
        spread = -log_probabilities
        if weight is not None:
            spread = spread * _along(weight, dim, spread.dim())
        share = torch.where(counted, wide.sum(spread, dim), 0.0)
        terms = (1 - smoothing) * terms + smoothing / classes * share
    total = None
    if reduction == "mean" and weight is None:
        total = counted.sum()  # an integer, which no accumulator rounds
    elif reduction == "mean" and weight is not None:
        weights = torch.where(counted, weight[place], 0.0)
        total = wide.sum(weights, range(weights.dim()))
    return reduce(wide, terms, reduction, total)


def _along(weight: Tensor, dim: int, dims: int) -> Tensor:
    return weight.reshape([-1 if one == dim else 1 for one in range(dims)])


def _log_probabilities(wide: Wide, x: Tensor) -> Tensor:
    """Return x - log(acc(sum exp(x - m))) - m over the classes, m the largest x."""
    dim = _class_dim(x)
    shifted = x - x.detach().amax(dim, True)
    total = wide.sum(shifted.exp(), dim, True)
    return shifted - wide.expand(total.log(), shifted.shape)


@overridable
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Return the cross entropy of softmax(x) and classes or probabilities.

    y = fl(acc(sum over n of w_t (-log p_t)) / acc(sum w_t)), log p = x - m -
    log(acc(sum over classes of exp(x - m))), m the largest x, t the class of n;
    without weights the divisor is the number of samples.

    Contract:
        One fused operation in float64: logarithms and exponentials are not rounded,
        sums are those of ``accumulator``, over classes first, then over samples in
        row-major order; gradients' sums are those of ``grad_accumulator``, and only
        the result and dx = fl(...) are rounded. With ``elementwise=None`` this is
        torch's own function, bit for bit.

    Args:
        input: float32 or float64 scores [N, C, ...] or [C].
        target: int64 classes [N, ...] or [], or probabilities of the input's shape.
        weight: weights of the classes [C], or None.
        ignore_index: class whose samples do not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: share of the uniform distribution in the targets.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        0-d tensor, or [N, ...] for ``"none"``.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if ``reduction`` is unknown, or the carrier cannot hold the values
            of ``elementwise``.
        RuntimeError: from torch, for shapes that do not match, or if the gradient is
            differentiated again.

    Example:
        >>> x, t = torch.zeros(2, 4), torch.tensor([0, 3])
        >>> low = Precision(elementwise="bfloat16", accumulator="e8m15")
        >>> cross_entropy(x, t, precision=low).item()
        1.3828125

    References:
        Blanchard, Higham and Higham, Accurately computing the log-sum-exp, 2021.
    """
    if as_precision(precision).elementwise is None:
        return F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    check_carrier(input, "input")
    wide = wide_for(precision, input.dtype, generator, seed)
    logs = _log_probabilities(wide, wide.enter(input))
    weights = None if weight is None else weight.detach().to(torch.float64)
    if not target.is_floating_point():
        return _likelihood_loss(
            wide, logs, target, weights, ignore_index, reduction, label_smoothing
        )
    dim = _class_dim(input)
    classes = input.shape[dim]
    goal = wide.enter(target)
    goal = goal * (1 - label_smoothing) + label_smoothing / classes
    terms = -goal * logs
    if weights is not None:
        terms = terms * _along(weights, dim, terms.dim())
    losses = wide.sum(terms, dim)
    return reduce(wide, losses, reduction)


@overridable
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Return the negative log-likelihood: y = fl(acc(sum w_t (-x_t)) / acc(sum w_t)).

    Contract:
        As `cross_entropy`, of logarithms of probabilities.

    Args:
        input: float32 or float64 tensor [N, C, ...] or [C].
        target: int64 classes [N, ...] or [].
        weight: weights of the classes [C], or None.
        ignore_index: class whose samples do not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        precision: as `cross_entropy`.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        0-d tensor, or [N, ...] for ``"none"``.

    Raises:
        TypeError: as `cross_entropy`.
        ValueError: as `cross_entropy`.
        RuntimeError: as `cross_entropy`.

    Example:
        >>> x, t = torch.tensor([[-1.0, -2.0]]), torch.tensor([1])
        >>> nll_loss(x, t, precision=Precision(elementwise="e5m2")).item()
        2.0

    References:
        As `cross_entropy`.
    """
    if as_precision(precision).elementwise is None:
        return F.nll_loss(
            input, target, weight, ignore_index=ignore_index, reduction=reduction
        )
    check_carrier(input, "input")
    wide = wide_for(precision, input.dtype, generator, seed)
    weights = None if weight is None else weight.detach().to(torch.float64)
    x = wide.enter(input)
    return _likelihood_loss(wide, x, target, weights, ignore_index, reduction)
