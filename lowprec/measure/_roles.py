"""Which rounding, and so which format, each tensor of a layer has."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import Format
from ..formats import format as as_format
from ..precision import Precision
from ..rounding import Accumulator, Rounding

OPERANDS = ("input", "weight", "grad_output")
RESULTS = ("output", "grad_input", "grad_weight")
ROLES = (*OPERANDS[:2], "output", "grad_output", *RESULTS[1:], "update")

# Layers whose results are sums of products. Others round only what they compute, to
# `elementwise`, and their parameters.
_PRODUCTS = (
    torch.nn.Linear,
    torch.nn.Bilinear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
    torch.nn.MultiheadAttention,
)


def rounding_of(
    role: str, module: torch.nn.Module, precision: Precision
) -> Rounding | None:
    """Return the rounding that puts a tensor of a layer into its format.

    A result that is not rounded has the format of the accumulator that summed it.

    Args:
        role: one of ``OPERANDS`` or ``RESULTS``.
        module: the layer.
        precision: its precision.

    Returns:
        The rounding; None if the tensor stays in its carrier.
    """
    if isinstance(module, _PRODUCTS):
        rounding: Rounding | None = getattr(precision, role)
        if rounding is None and role in RESULTS:
            accumulator = accumulator_of(role, precision)
            return None if accumulator is None else accumulator.rounding
        return rounding
    if precision.elementwise is None or role == "input":
        return None
    if role in ("weight", "grad_weight"):
        named: Rounding | None = getattr(precision, role)
        return named
    return precision.elementwise


def accumulator_of(role: str, precision: Precision) -> Accumulator | None:
    """Return the accumulator of one of the ``RESULTS``."""
    if role == "output":
        return precision.accumulator
    return precision.backward_accumulator


def format_of(rounding: Rounding | None, x: Tensor) -> Format | None:
    """Return the format of a tensor; None if it is not one of floating point."""
    if rounding is None:
        return as_format(str(x.dtype).removeprefix("torch."))
    known = rounding.format
    return known if isinstance(known, Format) else None
