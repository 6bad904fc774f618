"""Reductions of functions of the elements: norms and log-sum-exp."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arithmetic import overridable
from ..precision import Precision
from ._reductions import Dims, Seed, converted, dims_of, reduced, root
from ._wide import Wide


def _keep(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Drop dimensions of size one unless they are to be kept."""
    if not keepdim:
        for dim in reversed(dims):
            x = x.squeeze(dim)
    return x


def vector_norm(
    wide: Wide, x: Tensor, power: float, dims: tuple[int, ...], keepdim: bool
) -> Tensor:
    if math.isinf(power) or power == 0:
        extreme: Tensor = torch.linalg.vector_norm(x, power, dims, keepdim)
        return extreme
    sizes = x.abs()
    if power == 1:
        return wide.sum(sizes, dims, keepdim)
    if power == 2:
        return root(wide.sum(x.square(), dims, keepdim))
    total = wide.sum(sizes.pow(power), dims, keepdim)
    positive = total > 0
    return torch.where(
        positive, torch.where(positive, total, 1.0).pow(1 / power), total
    )


@overridable
def logsumexp(
    input: Tensor,
    dim: Dims,
    keepdim: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Compute y = fl(log(acc(sum exp(x_i - m))) + m) with m the largest x_i.

    Contract:
        As `sum`; dx_i = fl(fl(dy) exp(x_i - m) / acc).

    Args:
        input: float32 or float64 tensor of any shape.
        dim: dimension or dimensions to reduce.
        keepdim: whether reduced dimensions stay, with size one.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of torch's shape and the input's dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.tensor([1000.0, 1000.0])
        >>> logsumexp(x, 0, precision=Precision(elementwise="e8m15")).item()
        1000.6875

    References:
        Blanchard, Higham and Higham, Accurately computing the log-sum-exp, 2021.
    """
    dims = dims_of(input, dim)

    def inside(wide: Wide, x: Tensor) -> Tensor:
        largest = x.detach().amax(dims, True)
        largest = torch.where(largest.isfinite(), largest, 0.0)
        total = wide.sum((x - largest).exp(), dims, True)
        return _keep(total.log() + largest, dims, keepdim)

    return reduced(
        inside,
        lambda x: torch.logsumexp(x, dims, keepdim),
        input,
        precision,
        generator,
        seed,
    )


@overridable
def norm(
    input: Tensor,
    p: float | str = "fro",
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Compute y = fl(acc(sum |x_i|^p)^(1/p)), p > 0, or largest and smallest sizes.

    Contract:
        As `sum`; dx_i = fl(fl(dy) sign(x_i) (|x_i| / s)^(p-1)) with the norm s
        before rounding, and 0 where s = 0. For p = inf and -inf torch shares the
        gradient among ties; p = 0 counts.

    Args:
        input: float32 or float64 tensor of any shape.
        p: a number, or ``"fro"``, which means 2.
        dim: dimension or dimensions to reduce; None means all.
        keepdim: whether reduced dimensions stay, with size one.
        dtype: to which the input is converted first.
        precision: ``elementwise``, ``accumulator`` and ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of torch's shape and the input's dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.tensor([3.0, 4.0])
        >>> norm(x, precision=Precision(elementwise="e5m2")).item()
        5.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 27.8.
    """
    if isinstance(p, str) and p != "fro":
        raise NotImplementedError(
            f"only vector norms are emulated, got p={p!r}: use a number or 'fro'"
        )
    power = 2.0 if isinstance(p, str) else float(p)
    x = converted(input, dtype)
    dims = dims_of(x, dim)
    return reduced(
        lambda wide, x: vector_norm(wide, x, power, dims, keepdim),
        lambda x: torch.linalg.vector_norm(x, power, dim, keepdim),
        x,
        precision,
        generator,
        seed,
    )
