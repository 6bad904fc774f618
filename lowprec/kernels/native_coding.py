"""Codes of CPU tensors by the C++ library; `native` says how it is called."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import native

_Encoding = ctypes.c_int64 * 9


def encode(x: Tensor, encoding: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Write values of a format as its codes.

    Args:
        x: float32 or float64 CPU tensor of values of the format.
        encoding: the integers of an `Encoding` whose codes the carrier is as wide as.
        dtype: integer dtype that holds the codes.

    Returns:
        New contiguous tensor of ``x``'s shape.

    Raises:
        ValueError: if the carrier is too narrow for the codes.
    """
    library, width = native.loaded(), native.width_of(x)
    source = x.contiguous()
    result = torch.empty(source.shape, dtype=dtype)
    wrong = library.lowprec_encode(
        width,
        result.element_size(),
        native.memory_of(source),
        native.memory_of(result),
        source.numel(),
        _Encoding(*encoding),
        torch.get_num_threads(),
    )
    if wrong:
        raise ValueError(f"{x.dtype} is too narrow for the encoding {encoding}")
    return result


def decode(codes: Tensor, encoding: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Read codes of a format.

    Args:
        codes: integer CPU tensor.
        encoding: the integers of an `Encoding` whose codes the carrier is as wide as.
        dtype: carrier of the result.

    Returns:
        New contiguous tensor of ``codes``' shape; NaN where a code denotes nothing.

    Raises:
        ValueError: if the carrier is too narrow for the codes.
    """
    library = native.loaded()
    if not codes.is_cpu or codes.is_floating_point() or codes.is_complex():
        raise TypeError(
            f"the native kernels take codes in integer CPU tensors, got {codes.dtype} "
            f"on {codes.device}"
        )
    source = codes.contiguous()
    result = torch.empty(source.shape, dtype=dtype)
    wrong = library.lowprec_decode(
        native.width_of(result),
        source.element_size(),
        native.memory_of(source),
        native.memory_of(result),
        source.numel(),
        _Encoding(*encoding),
        torch.get_num_threads(),
    )
    if wrong:
        raise ValueError(f"{dtype} is too narrow for the encoding {encoding}")
    return result
