"""`lowprec.functional.interpolate`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._selection import selection
from ._wide import wide_for


@overridable
def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Resize the spatial dimensions.

    Contract:
        ``nearest`` and ``nearest-exact`` choose elements, as `selection`. The other
        modes weigh a few neighbours, forward and backward: in float64 with one
        rounding, as `pointwise`. With ``elementwise=None`` this is torch's own
        function.

    Args:
        input: float32 or float64 tensor [N, C, ...].
        size: spatial size of the result, or None.
        scale_factor: or by what to multiply it.
        mode: as in torch.
        align_corners: as in torch.
        recompute_scale_factor: as in torch.
        antialias: as in torch.
        precision: ``elementwise`` and, of choices, ``grad_accumulator`` are used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of torch's shape and the input's dtype.

    Raises:
        TypeError: as `selection`.
        ValueError: as `selection`; from torch, for other arguments.
        RuntimeError: if the gradient is differentiated again.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0]]])
        >>> interpolate(x, scale_factor=2, precision=Precision(elementwise="e5m2"))
        tensor([[[1., 1., 2., 2.]]])

    References:
        As `selection`.
    """
    options = {
        "size": size,
        "scale_factor": scale_factor,
        "mode": mode,
        "align_corners": align_corners,
        "recompute_scale_factor": recompute_scale_factor,
        "antialias": antialias,
    }
    if as_precision(precision).elementwise is None:
        return F.interpolate(input, **options)
    if mode.startswith("nearest"):
        return selection(
            F.interpolate,
            input,
            precision=precision,
            generator=generator,
            seed=seed,
            **options,
        )
    check_carrier(input, "input")
    wide = wide_for(precision, input.dtype, generator, seed)
    return wide.leave(F.interpolate(wide.enter(input), **options))
