"""Rounding of CPU tensors to levels by the C++ library; `native` says how."""

from __future__ import annotations

import torch
from torch import Tensor

from . import codes, native, native_levels
from .codes import RoundingCode
from .levels import Table, prepared


def round_into_levels(
    x: Tensor,
    code: tuple[int, ...],
    seed: int | Tensor | None,
    offset: int,
    target: Tensor,
) -> bool:
    """Round to levels, or return False where products of their distances may overflow.

    Args:
        x: contiguous float32 or float64 CPU tensor.
        code: of levels.
        seed: key of the random words; None in deterministic modes.
        offset: linear index of the first element.
        target: where to write, as `native.target_for` returns it.

    Returns:
        Whether it is done.

    Raises:
        ValueError: if the dtype does not hold the levels, or float64 not their
            distances, which stochastic rounding needs.
    """
    named = codes.decode(code)
    table = prepared(codes.numbers_of(code), named.mode, x.dtype, x.device)
    if seed is None or len(table.levels) == 1:
        # Steps serve as the mid-points between which a level is the nearest one.
        rows = native_levels.Rows(
            table.levels, table.steps, torch.ones((), dtype=x.dtype)
        )
        native_levels.map_levels(native_levels.NEAREST, x, rows, target)
    elif named.mode == codes.STOCHASTIC and not table.moderate:
        return False
    else:
        _sample(x, named, table, seed, offset, target)
    return True


def _sample(
    x: Tensor,
    code: RoundingCode,
    table: Table,
    seed: int | Tensor,
    offset: int,
    target: Tensor,
) -> None:
    library, width = native.loaded(), native.width_of(x)
    wrong = library.lowprec_sample_levels(
        width,
        native.memory_of(x),
        native.memory_of(target),
        x.numel(),
        native.memory_of(table.levels),
        len(table.levels),
        *(code.mode, code.random_bits, code.variant),
        native.key_of(seed),
        native.checked_offset(offset, x.numel()),
        torch.get_num_threads(),
    )
    if wrong:
        raise ValueError(f"no stochastic mode has the number {code.mode}")
