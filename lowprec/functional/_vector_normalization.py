"""Functions that divide by norms: normalize, cosine similarity, local response."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._nonlinear_reductions import vector_norm
from ._parts import check_same
from ._selection import gather_windows, index_map
from ._wide import Wide, wide_for


def _unit(wide: Wide, x: Tensor, p: float, dim: int, eps: float) -> Tensor:
    """Return x / max(norm, eps)."""
    length = vector_norm(wide, x, p, (dim,), True).clamp(min=eps)
    return x / wide.expand(length, x.shape)


def _both(wide: Wide, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """Return both operands in float64 and of the same shape."""
    try:
        shape = torch.broadcast_shapes(x1.shape, x2.shape)
    except RuntimeError:
        raise ValueError(
            f"x1 {tuple(x1.shape)} and x2 {tuple(x2.shape)} do not broadcast"
        ) from None
    return wide.expand(wide.enter(x1), shape), wide.expand(wide.enter(x2), shape)


@overridable
def normalize(
    input: Tensor,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Divide vectors by their norms in emulated arithmetic.

    y = fl(x / max(acc(sum |x|^p)^(1/p), eps)), fl of ``elementwise``.

    Contract:
        As `layer_norm`; the norm is that of `norm` before rounding.

    Args:
        input: float32 or float64 tensor.
        p: which norm.
        dim: the dimension of the vectors.
        eps: the smallest divisor.
        precision: its ``elementwise`` and its accumulators.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: as `layer_norm`.
        ValueError: as `layer_norm`.
        NotImplementedError: as `layer_norm`.
        RuntimeError: as `layer_norm`.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> normalize(x, precision=Precision(elementwise="e4m3fn"))
        tensor([[0.6250, 0.8125]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 27.8.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.normalize(input, p, dim, eps)
    check_carrier(input, "input")
    wide = wide_for(precision, input.dtype, generator, seed)
    return wide.leave(_unit(wide, wide.enter(input), p, dim % input.dim(), eps))


@overridable
def cosine_similarity(
    x1: Tensor,
    x2: Tensor,
    dim: int = 1,
    eps: float = 1e-8,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Return cosines between vectors in emulated arithmetic.

    y = fl(acc(sum u1 u2)) with u = x / max(sqrt(acc(sum x^2)), eps), in float64.

    Contract:
        As `layer_norm`; the terms of the last sum are products in float64.

    Args:
        x1: float32 or float64 tensor.
        x2: tensor of the same dtype; its shape broadcasts with that of ``x1``.
        dim: the dimension of the vectors, of the broadcast shape.
        eps: the smallest norm.
        precision: its ``elementwise`` and its accumulators.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the broadcast shape without ``dim``.

    Raises:
        TypeError: as `layer_norm`.
        ValueError: if shapes do not broadcast, and as `layer_norm`.
        NotImplementedError: as `layer_norm`.
        RuntimeError: as `layer_norm`.

    Example:
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> cosine_similarity(x, x, precision=Precision(elementwise="e4m3fn"))
        tensor([1.])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.cosine_similarity(x1, x2, dim, eps)
    check_carrier(x1, "x1")
    check_same("x2", x2, x1, "x1")
    wide = wide_for(precision, x1.dtype, generator, seed)
    a, b = _both(wide, x1, x2)
    dim %= a.dim()
    product = _unit(wide, a, 2.0, dim, eps) * _unit(wide, b, 2.0, dim, eps)
    return wide.leave(wide.sum(product, dim))


@overridable
def pairwise_distance(
    x1: Tensor,
    x2: Tensor,
    p: float = 2.0,
    eps: float = 1e-6,
    keepdim: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Return distances between vectors in emulated arithmetic.

    y = fl(acc(sum |x1 - x2 + eps|^p)^(1/p)), over the last dimension.

    Contract:
        As `norm`.

    Args:
        x1: float32 or float64 tensor [..., D].
        x2: tensor of the same dtype; its shape broadcasts with that of ``x1``.
        p: which norm.
        eps: added to every difference.
        keepdim: whether the last dimension stays, with size one.
        precision: its ``elementwise`` and its accumulators.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the broadcast shape without its last dimension.

    Raises:
        TypeError: as `layer_norm`.
        ValueError: if shapes do not broadcast, and as `layer_norm`.
        NotImplementedError: as `layer_norm`.
        RuntimeError: as `layer_norm`.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> low = Precision(elementwise="e4m3fn")
        >>> pairwise_distance(x, torch.zeros(2), precision=low)
        tensor([5.])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 27.8.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.pairwise_distance(x1, x2, p, eps, keepdim)
    check_carrier(x1, "x1")
    check_same("x2", x2, x1, "x1")
    wide = wide_for(precision, x1.dtype, generator, seed)
    a, b = _both(wide, x1, x2)
    return wide.leave(vector_norm(wide, a - b + eps, p, (a.dim() - 1,), keepdim))


@overridable
def local_response_norm(
    input: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Divide by the energy of neighbouring channels in emulated arithmetic.

    y[c] = fl(x[c] / (k + alpha acc(sum x[c']^2) / size)^beta), c' from c - size // 2
    to c + (size - 1) // 2, where there are such channels.

    Contract:
        As `layer_norm`. Where channels are missing, zeros take their places.

    Args:
        input: float32 or float64 tensor [N, C, *] with at least one *.
        size: how many channels.
        alpha: factor of the mean square.
        beta: exponent.
        k: added to the mean square.
        precision: its ``elementwise`` and its accumulators.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: as `layer_norm`.
        ValueError: for less than three dimensions or no channels to sum.
        NotImplementedError: as `layer_norm`.
        RuntimeError: as `layer_norm`.

    Example:
        >>> low = Precision(elementwise="e4m3fn")
        >>> local_response_norm(torch.ones(1, 1, 1), 1, 3.0, 0.5, precision=low)
        tensor([[[0.5000]]])

    References:
        Krizhevsky, Sutskever and Hinton 2012, ImageNet classification with deep
        convolutional neural networks, section 3.3.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.local_response_norm(input, size, alpha, beta, k)
    check_carrier(input, "input")
    if input.dim() < 3 or size < 1:
        raise ValueError(
            "input must be [N, C, *] with at least one *, and size positive, got "
            f"{tuple(input.shape)} and {size}"
        )
    channels = input.shape[1]
    starts = torch.arange(channels, device=input.device).unsqueeze(1) - size // 2
    places = starts + torch.arange(size, device=input.device)
    places = torch.where((places >= 0) & (places < channels), places, -1)
    wide = wide_for(precision, input.dtype, generator, seed)
    x = wide.enter(input)
    squares = x.square().movedim(1, -1)
    with torch.no_grad():
        chosen = gather_windows(squares.detach(), [places])
        index = index_map(gather_windows, squares, [places])
    total = wide.sum(wide.select(squares, chosen, index), -1).movedim(-1, 1)
    return wide.leave(x / (total / size * alpha + k).pow(beta))
