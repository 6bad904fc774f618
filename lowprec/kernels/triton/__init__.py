"""Triton kernels for CUDA and ROCm tensors, bit-equal to the portable ones.

triton is imported when the first such tensor arrives, never before, and the kernels
are used only if a small rounding of theirs comes back right. ``available()`` says
whether that happened; ``status()`` says why not. With ``TRITON_INTERPRET=1`` in the
environment triton interprets kernels on CPU tensors, which is how they are tested
where no GPU is::

    round(x, code) -> Tensor
    round_stochastic(x, code, seed, offset) -> Tensor
    matmul(a, b, accumulate, product, within, order, block_size, seed, offset)
        -> Tensor
    chunked_dot(a, b, accumulate, chunk, seed, offset=0) -> Tensor
    available() -> bool;  interpreted() -> bool;  status() -> str

What `matmul` has no kernel for (pairwise and compensated sums, products of more than 53
bits) is computed by the portable kernel on the same device. `chunked_dot` alone is not
bit-exact, and nothing in the library calls it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import codes, portable, sums

_TYPES = (torch.float32, torch.float64)
_CHUNKED_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_DEPTH = 16


def interpreted() -> bool:
    """Whether triton interprets kernels on CPU tensors (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _missing() -> str | None:
    """What is missing, found without importing triton."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted() and not torch.cuda.is_available():
        return "there is no CUDA or ROCm device"
    return None


@functools.cache
def _failure() -> str | None:
    """Import triton and try a kernel: why it cannot be used, or None."""
    missing = _missing()
    if missing is not None:
        return missing
    # Whatever goes wrong in a foreign compiler and driver, portable kernels remain.
    try:
        from . import _elementwise

        device = "cpu" if interpreted() else "cuda"
        x = torch.tensor([1.0 + 2.0**-8, -3.0, float("inf"), 1e-40], device=device)
        code = (8, -126, 127, 255, 31, codes.NEAREST_EVEN, codes.SATURATE_NONE, 32, 0)
        rounded = _elementwise.round(x, code)
        wanted = portable.round(x, code)
    except Exception as error:
        return f"triton does not work: {type(error).__name__}: {error}"
    if not torch.equal(rounded.view(torch.int32), wanted.view(torch.int32)):
        return "a trial rounding came back wrong"
    return None


def available() -> bool:
    """Whether the kernels can run; imports triton where there is a device for it."""
    return _failure() is None


def status() -> str:
    """Say whether the kernels can run, or why not; does not import triton."""
    untried = _failure.cache_info().currsize == 0
    if untried and not interpreted() and _missing() is None:
        return "triton (not tried yet)"
    reason = _missing() if untried else _failure()
    if reason is not None:
        return f"not available: {reason}"
    return "interpreted, for CPU tensors only" if interpreted() else "triton"


def _check(x: Tensor, types: tuple[torch.dtype, ...]) -> None:
    reason = _failure()
    if reason is not None:
        raise RuntimeError(f"the Triton kernels are not available: {reason}")
    names = [str(dtype).removeprefix("torch.") for dtype in (*types, x.dtype)]
    device = "cpu" if interpreted() else "cuda"
    if x.dtype not in types or x.device.type != device:
        raise TypeError(
            f"this kernel takes {', '.join(names[:-1])} {device} tensors, "
            f"got {names[-1]} on {x.device}"
        )


def _check_shapes(a: Tensor, b: Tensor) -> None:
    fits = a.dim() >= 2 and a.dim() == b.dim() and a.shape[-1] == b.shape[-2]
    if not fits or a.shape[:-2] != b.shape[:-2] or a.device != b.device:
        raise ValueError(
            f"cannot multiply {tuple(a.shape)} on {a.device} "
            f"by {tuple(b.shape)} on {b.device}"
        )


def round(x: Tensor, code: Sequence[int]) -> Tensor:
    """Round every element in a deterministic mode.

    Args:
        x: float32 or float64 tensor on a GPU, any strides.
        code: the nine integers of a `RoundingCode`.

    Returns:
        A new contiguous tensor.

    Raises:
        ValueError: if the carrier cannot hold the format.
    """
    _check(x, _TYPES)
    from . import _elementwise

    return _elementwise.round(x, tuple(code))


def round_stochastic(
    x: Tensor, code: Sequence[int], seed: Tensor, offset: int = 0
) -> Tensor:
    """Round every element with the random word of its linear index plus ``offset``.

    Args:
        x: float32 or float64 tensor on a GPU, any strides.
        code: the nine integers of a `RoundingCode` with a stochastic mode.
        seed: 0-d int64 tensor, the key of the random words, on any device.
        offset: index of the first element.

    Returns:
        A new contiguous tensor.

    Raises:
        ValueError: if the carrier cannot hold the format.
    """
    _check(x, _TYPES)
    from . import _elementwise

    return _elementwise.round_stochastic(x, tuple(code), seed, offset)


def matmul(
    a: Tensor,
    b: Tensor,
    accumulate: Sequence[int],
    product: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: Tensor,
    offset: int,
) -> Tensor:
    """Multiply [..., M, K] by [..., K, N], rounding after every addition.

    Args:
        a: left operand, float32 or float64 on a GPU, any strides.
        b: right operand of the same dtype and batch shape.
        accumulate: code of the accumulator's rounding.
        product: code of the products' rounding, empty for exact products.
        within: code of the rounding inside blocks, empty for ``accumulate``; BLOCKED
            only.
        order: SEQUENTIAL, BLOCKED, PAIRWISE or KAHAN.
        block_size: terms per block, BLOCKED only.
        seed: 0-d int64 tensor, the key of the random words, on any device.
        offset: linear index of the first output element.

    Returns:
        Contiguous tensor [..., M, N] of the operands' dtype.

    Raises:
        NotImplementedError: for accumulators of more than 51 bits.
        ValueError: where exact results cannot be computed or returned.
    """
    _check(a, _TYPES)
    _check(b, (a.dtype,))
    _check_shapes(a, b)
    if order == codes.BLOCKED and block_size < 1:
        raise ValueError(f"a block needs at least one term, got {block_size}")
    from . import _matmul

    rest = (order, block_size, seed, offset)
    if not _matmul.covers(a, b, order):
        return sums.matmul(a, b, accumulate, product, within, *rest)
    chosen = _matmul.Codes(tuple(accumulate), tuple(product), tuple(within))
    return _matmul.matmul(a, b, chosen, *rest)


def chunked_dot(
    a: Tensor,
    b: Tensor,
    accumulate: Sequence[int],
    chunk: int,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Multiply matrices on tensor cores, rounding once per chunk of terms.

    .. math:: c \leftarrow fl(c + \hat s_j), \quad j = 1, 2, \ldots

    where :math:`\hat s_j` is the sum of the products of chunk j as the hardware
    computes it.

    Contract:
        Fast and **not bit-exact**: the order of the additions inside a chunk, and how a
        tensor core rounds them, are the hardware's. Each chunk's sum is a float32
        number with :math:`|\hat s_j - s_j| \le (n + 1) 2^{-21} \sum |a_k b_k|` for n
        terms (the widest truncation of the documented tensor cores; float32 operands
        are multiplied without tensor cores and stay below :math:`n 2^{-23}`), barring
        overflow and underflow of float32. Additions of chunk sums are rounded
        correctly. Only this function computes so; no other falls back to it.

    Args:
        a: left operand [..., M, K], float32, float16 or bfloat16, on a GPU.
        b: right operand [..., K, N] of the same dtype and batch shape.
        accumulate: code of the accumulator's rounding.
        chunk: terms per chunk, a positive multiple of 16.
        seed: 0-d int64 tensor, the key of the random words; stochastic modes only.
        offset: linear index of the first output element.

    Returns:
        Contiguous float32 tensor [..., M, N].

    Raises:
        TypeError: for operands of another dtype or device.
        ValueError: if shapes do not match, or ``chunk`` is not a multiple of 16.

    References:
        Blanchard, Higham, Lopez, Mary and Pranesh, Mixed precision block fused
        multiply-add, SIAM J. Sci. Comput. 2020.
    """
    _check(a, _CHUNKED_TYPES)
    _check(b, (a.dtype,))
    _check_shapes(a, b)
    if chunk < _DEPTH or chunk % _DEPTH:
        raise ValueError(f"chunk must be a positive multiple of {_DEPTH}, got {chunk}")
    if seed is None:
        if codes.decode(accumulate).stochastic:
            raise ValueError("a stochastic accumulator needs a seed")
        seed = torch.zeros((), dtype=torch.int64, device=a.device)
    from . import _chunked

    return _chunked.chunked_dot(a, b, tuple(accumulate), chunk, seed, offset)
