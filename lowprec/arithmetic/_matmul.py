"""Dot and matrix products in which every addition rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import kernels
from ..kernels import codes
from ..random import as_seed, split_seed
from ..rounding import (
    Accumulator,
    AccumulatorLike,
    Order,
    ScalarRounding,
    ScalarRoundingLike,
    as_accumulator,
    as_scalar_rounding,
)
from ._round import apply, check_carrier

_ORDERS = {
    Order.SEQUENTIAL: codes.SEQUENTIAL,
    Order.BLOCKED: codes.BLOCKED,
    Order.PAIRWISE: codes.PAIRWISE,
    Order.KAHAN: codes.KAHAN,
}
_NO_SEED = 0


def kernel_order(accumulator: Accumulator) -> int:
    """Return the integer by which kernels know the accumulator's order."""
    return _ORDERS[accumulator.order]


def gemm(
    a: Tensor,
    b: Tensor,
    accumulator: Accumulator | None,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Multiply [..., M, K] by [..., K, N] under an accumulator, without autograd.

    Args:
        a: left operand.
        b: right operand; batch shapes broadcast.
        accumulator: None means torch's own product in the carrier.
        seed: 0-d int64, needed by stochastic accumulators.
        offset: linear index of the first output element.

    Returns:
        Tensor [..., M, N].
    """
    if accumulator is None:
        return torch.matmul(a, b)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    product, within = accumulator.product_rounding, accumulator.within
    result: Tensor = kernels.matmul(
        a.expand(*batch, *a.shape[-2:]),
        b.expand(*batch, *b.shape[-2:]),
        list(accumulator.rounding.code),
        [] if product is None else list(product.code),
        [] if within is None else list(within.code),
        kernel_order(accumulator),
        accumulator.block_size or 0,
        torch.tensor(_NO_SEED) if seed is None else seed,
        offset,
    )
    return result


def _check_operands(a: Tensor, b: Tensor) -> None:
    check_carrier(a, "a")
    check_carrier(b, "b")
    if a.dtype != b.dtype:
        raise TypeError(
            f"a and b must have the same dtype, got {a.dtype} and {b.dtype}: "
            "convert one of them"
        )
    if a.device != b.device:
        raise ValueError(
            f"a and b must be on the same device, got {a.device} and {b.device}"
        )


def _broadcast(a: torch.Size, b: torch.Size) -> bool:
    pairs = zip(reversed(a), reversed(b), strict=False)
    return all(m == n or m == 1 or n == 1 for m, n in pairs)


def check_product_shapes(a: Tensor, b: Tensor) -> None:
    """Refuse shapes that ``torch.matmul`` cannot multiply.

    Raises:
        ValueError: naming the dimensions that differ.
    """
    text = f"cannot multiply shapes {tuple(a.shape)} and {tuple(b.shape)}: "
    if a.dim() == 0 or b.dim() == 0 or a.shape[-1] != b.shape[max(b.dim() - 2, 0)]:
        raise ValueError(
            f"{text}the last dimension of a must equal the second last (or only) one "
            "of b"
        )
    if not _broadcast(a.shape[:-2], b.shape[:-2]):
        raise ValueError(f"{text}their batch dimensions do not broadcast")


def _refuse_gradients(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise NotImplementedError(
            "the gradient of an emulated product needs its own precision: use "
            "lowprec.functional.matmul or linear with a Precision, or torch.no_grad()"
        )


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    accumulator: AccumulatorLike | None = None,
    input: ScalarRoundingLike | None = None,
    weight: ScalarRoundingLike | None = None,
    output: ScalarRoundingLike | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Multiply matrices, rounding operands, every addition, and the result.

    c[i, j] = fl_output(acc_K), acc_0 = +0, acc_{k+1} = fl(acc_k + pi(a[i,k] b[k,j])),
    with a and b first rounded to ``input`` and ``weight``.

    Contract:
        Each addition rounds the exact sum once, correctly, for accumulators of up to
        51 significant bits and any finite operands; order and products are the
        accumulator's. Results do not depend on batching, strides or threads. Infinity
        and NaN propagate as in IEEE 754; an overflowing accumulator follows its
        saturation.

    Args:
        a: float32 or float64 tensor [..., M, K], or [K] as in ``torch.matmul``.
        b: tensor [..., K, N] or [K] of the same dtype.
        accumulator: an `Accumulator`, or a rounding or its shorthand, which mean
            sequential sums of exact products; None computes in the carrier with
            torch's own unrounded product.
        input: rounding of ``a``; None leaves it.
        weight: rounding of ``b``; None leaves it.
        output: rounding of the result; None leaves the accumulator's value.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.
        offset: linear index of the first output element, for shards.

    Returns:
        Tensor [..., M, N] of the operands' dtype.

    Raises:
        TypeError: if the operands are not float32 or float64 of one dtype.
        ValueError: if shapes do not match, or the operands' dtype cannot hold the
            accumulator's values or the exact products.
        NotImplementedError: for accumulators of more than 51 significant bits, or of
            levels of more than 52, and for operands that require gradients (use
            `lowprec.functional.matmul`).

    Example:
        >>> ones = torch.ones(1, 1000)
        >>> matmul(ones, ones.T, accumulator="bfloat16").item()
        256.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1;
        Boldo and Melquiond 2008 (rounding to odd).
    """
    _check_operands(a, b)
    _refuse_gradients(a, b)
    check_product_shapes(a, b)
    left = a if a.dim() != 1 else a.unsqueeze(0)
    right = b if b.dim() != 1 else b.unsqueeze(-1)
    sums = None if accumulator is None else as_accumulator(accumulator)
    roundings = [
        None if value is None else as_scalar_rounding(value)
        for value in (input, weight, output)
    ]
    parts: tuple[Tensor | None, ...] = (None, None, None, None)
    if any(item is not None and item.stochastic for item in (sums, *roundings)):
        # The sum takes the seed itself, so that its words are those of the contract.
        base = as_seed(seed, generator)
        parts = (*split_seed(base, 3), base)
    left = _rounded(left, roundings[0], parts[0])
    right = _rounded(right, roundings[1], parts[1])
    result = gemm(left, right, sums, parts[3], offset)
    result = _rounded(result, roundings[2], parts[2], offset)
    if a.dim() == 1:
        result = result.squeeze(-2)
    return result if b.dim() != 1 else result.squeeze(-1)


def _rounded(
    x: Tensor, rounding: ScalarRounding | None, seed: Tensor | None, offset: int = 0
) -> Tensor:
    if rounding is None:
        return x
    return apply(x, rounding, seed if rounding.stochastic else None, offset)


def dot(
    a: Tensor,
    b: Tensor,
    *,
    accumulator: AccumulatorLike,
    output: ScalarRoundingLike | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Return inner products over the last dimension, rounding every addition.

    dot(a, b)[...] = fl_output(acc_n), acc_{k+1} = fl(acc_k + pi(a[..., k] b[..., k])).

    Contract:
        As `matmul`, of which it is one element per leading index.

    Args:
        a: float32 or float64 tensor [..., K].
        b: tensor [..., K] of the same dtype; leading dimensions broadcast.
        accumulator: an `Accumulator` or its shorthand.
        output: rounding of the result.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.
        offset: linear index of the first output element, for shards.

    Returns:
        Tensor [...] of the operands' dtype.

    Raises:
        TypeError: as `matmul`.
        ValueError: as `matmul`.
        NotImplementedError: as `matmul`.

    Example:
        >>> x = torch.tensor([256.0, 1.0, 1.0])
        >>> dot(x, torch.ones(3), accumulator="bfloat16").item()
        256.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    _check_operands(a, b)
    scalars = a.dim() == 0 or b.dim() == 0
    if scalars or a.shape[-1] != b.shape[-1] or not _broadcast(a.shape, b.shape):
        raise ValueError(
            "dot needs equal last dimensions and leading ones that broadcast, got "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
    result = matmul(
        a.unsqueeze(-2),
        b.unsqueeze(-1),
        accumulator=accumulator,
        output=output,
        generator=generator,
        seed=seed,
        offset=offset,
    )
    return result.squeeze(-1).squeeze(-1)
