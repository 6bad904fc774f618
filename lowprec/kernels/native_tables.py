"""Rounding of CPU tensors to levels by the C++ library; `native` says how."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native, native_levels


def round_levels(x: Tensor, levels: Tensor, steps: Tensor) -> Tensor:
    """Return the level that x reaches with the last step that is not above it.

    Args:
        x: float32 or float64 CPU tensor.
        levels: [N] levels, ascending, of the same dtype.
        steps: [N - 1] where the next level begins, contiguous.

    Returns:
        New contiguous tensor of ``x``'s shape; NaN stays NaN.
    """
    source = x.contiguous()
    out = torch.empty_like(source)
    rows = native_levels.Rows(levels, steps, torch.ones((), dtype=x.dtype))
    native_levels.map_levels(native_levels.NEAREST, source, rows, out)
    return out


def sample_levels(
    x: Tensor,
    levels: Tensor,
    steps: Tensor,
    mode: int,
    random_bits: int,
    variant: int,
    seed: int | Tensor,
    offset: int,
) -> Tensor:
    """Return one of the levels around x at random.

    Args:
        x: float32 or float64 CPU tensor.
        levels: [N] levels, ascending, of the same dtype.
        steps: [N - 1], all levels but the first.
        mode: STOCHASTIC or STOCHASTIC_EQUAL.
        random_bits: random bits per rounding.
        variant: VARIANT_A, VARIANT_B or VARIANT_C.
        seed: key of the random words.
        offset: linear index of the first element.

    Returns:
        New contiguous tensor of ``x``'s shape; NaN stays NaN.
    """
    if len(levels) == 1:
        return round_levels(x, levels, steps)
    library, width = native.loaded(), native.width_of(x)
    source = x.contiguous()
    out = torch.empty_like(source)
    wrong = library.lowprec_sample_levels(
        width,
        native.memory_of(source),
        native.memory_of(out),
        source.numel(),
        native.memory_of(levels),
        len(levels),
        *(mode, random_bits, variant),
        native.key_of(seed),
        native.checked_offset(offset, source.numel()),
        torch.get_num_threads(),
    )
    if wrong:
        raise ValueError(f"no stochastic mode has the number {mode}")
    return out
