"""Maps of weights and their quantization sets, by the C++ library.

`native` says how it is called; the formulas are in ``lowprec/optim``.
"""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import native

# The numbers of LevelOperation in table.h.
NEAREST, SAMPLED, FROM_NEAREST = range(3)
PROX = {"l1": 3, "sq": 4, "l2": 5}
SKEW = {"quadratic": 6, "quartic": 7, "quartic_ext": 8}
SQUARED = 9

# Elements of a sum of squares and lanes that add them: kSquared, kSums in level_maps.h.
BLOCK, LANES = 4096, 32

Hull = tuple[float, float] | None
OWN_ENDS = (math.nan, math.nan)

_pointer, _long, _double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class _Task(ctypes.Structure):
    """LevelTask of table.h."""

    _fields_ = (
        ("operation", _long),
        ("weights", _pointer),
        ("directions", _pointer),
        ("out", _pointer),
        ("count", _long),
        ("first", _long),
        ("levels", _pointer),
        ("middles", _pointer),
        ("width", _long),
        ("level_run", _long),
        ("spacing", _double),
        ("scales", _pointer),
        ("scale_run", _long),
        ("epsilon", _double),
        ("alpha", _double),
        ("clip", _double),
        ("clip_by_size", _long),
        ("midpoint_moves", _long),
        ("factor", _double),
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("step", _long),
        ("low", _double),
        ("high", _double),
        ("keeps_clamped", _long),
        ("threads", _long),
    )


class _Descent(ctypes.Structure):
    """DescentTask of table.h."""

    _fields_ = (
        ("gradients", _pointer),
        ("step_size", _double),
        ("decay", _double),
        ("momentum", _double),
        ("share", _double),
        ("maximize", _long),
        ("first_momentum", _long),
        ("nesterov", _long),
        ("skew_gradient", _long),
        ("fused", _long),
    )


@dataclass(frozen=True)
class Rows:
    """Levels and scales of a contiguous parameter, as the kernels take them.

    Args:
        levels: increasing levels [K] or [rows, K], padded by inf; contiguous.
        middles: their mid-points, rounded up to the dtype.
        scale: positive, 0-d or [rows].
        level_run: how many consecutive weights a row of levels serves; 0 means all.
        scale_run: likewise for an entry of ``scale``.
        spacing: of equidistant levels that are its multiples, a power of two and at
            most 1; 0 means others.
    """

    levels: Tensor
    middles: Tensor
    scale: Tensor
    level_run: int = 0
    scale_run: int = 0
    spacing: float = 0.0

    def task(
        self,
        operation: int,
        count: int,
        hull: Hull = None,
        **fields: Any,
    ) -> _Task:
        """Return the task for ``count`` consecutive weights.

        ``hull`` bounds them, in units of the levels; NaN is a row's own end.
        """
        low, high = (-math.inf, math.inf) if hull is None else hull
        return _Task(
            operation=operation,
            count=count,
            low=low,
            high=high,
            levels=native.memory_of(self.levels),
            middles=native.memory_of(self.middles),
            width=self.levels.shape[-1],
            level_run=self.level_run,
            spacing=self.spacing,
            scales=native.memory_of(self.scale),
            scale_run=self.scale_run,
            threads=torch.get_num_threads(),
            **fields,
        )


def map_levels(
    operation: int,
    w: Tensor,
    rows: Rows,
    out: Tensor,
    *,
    direction: Tensor | None = None,
    **fields: Any,
) -> None:
    """Apply an elementwise function of weights, their levels and their scale.

    Args:
        operation: one of the numbers above.
        w: weights, contiguous, float32 or float64, while the library is loaded.
        rows: their levels and scales.
        out: contiguous result; may be ``w`` or ``direction``. For ``SQUARED``,
            a float64 number for each block.
        direction: what skewed directions replace, contiguous.
        fields: of the task; ``first`` is the linear index of the first weight.

    Raises:
        TypeError: if a tensor has not the dtype that the kernel reads or writes.
    """
    expected = [(x, w.dtype) for x in (rows.levels, rows.middles, rows.scale)]
    expected.append((out, torch.float64 if operation == SQUARED else w.dtype))
    if direction is not None:
        expected.append((direction, w.dtype))
    if any(x.dtype != dtype for x, dtype in expected):
        given = ", ".join(f"{x.dtype} for {dtype}" for x, dtype in expected)
        raise TypeError(
            "levels, mid-points, scale, result and direction must fit weights of "
            f"{w.dtype}, got {given}: convert them"
        )
    task = rows.task(
        operation,
        w.numel(),
        weights=native.memory_of(w),
        directions=None if direction is None else native.memory_of(direction),
        out=native.memory_of(out),
        **fields,
    )
    if native.loaded().lowprec_levels(native.width_of(w), ctypes.byref(task)):
        raise ValueError(f"no level operation has the number {operation}")


def descend(
    operation: int,
    w: Tensor,
    gradient: Tensor,
    buffer: Tensor | None,
    rows: Rows,
    skew: dict[str, Any],
    **descent: Any,
) -> None:
    """Move weights along skewed directions, in place and in one pass.

    Args:
        operation: one of `SKEW`.
        w: weights, contiguous, float32 or float64, while the library is loaded.
        gradient: contiguous, of the same dtype.
        buffer: momentum, likewise; None without momentum.
        rows: levels and scales of the weights.
        skew: fields of the task.
        descent: fields of the descent but ``fused``, which `torch_fuses` gives.
    """
    out = None if buffer is None else native.memory_of(buffer)
    weights = native.memory_of(w)
    task = rows.task(operation, w.numel(), weights=weights, out=out, **skew)
    step = _Descent(
        gradients=native.memory_of(gradient),
        fused=bool(torch_fuses(w.dtype)),
        **descent,
    )
    arguments = native.width_of(w), ctypes.byref(task), ctypes.byref(step)
    if native.loaded().lowprec_descent(*arguments):
        raise ValueError(f"no skewed direction has the number {operation}")


@functools.cache
def torch_fuses(dtype: torch.dtype) -> bool | None:
    """Whether ``torch.add(x, y, alpha=a)`` rounds once; None if that depends.

    Torch's vector code does where the processor has such an instruction.
    """
    bits = 12 if dtype == torch.float32 else 27
    factor = 1 + 2.0**-bits
    seen = set()
    for count in (*range(1, 70), 1000, 100_000):
        # factor^2 - (1 + 2^(1-bits)) is 2^(-2 bits), of which rounding leaves nothing.
        y = torch.full((count,), factor, dtype=dtype)
        x = torch.full((count,), -1 - 2.0 ** (1 - bits), dtype=dtype)
        seen |= set((torch.add(x, y, alpha=factor) != 0).unique().tolist())
    return seen.pop() if len(seen) == 1 else None
