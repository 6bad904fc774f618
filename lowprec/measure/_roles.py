"""Which rounding, and so which format, each tensor of a layer has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..arithmetic import round
from ..block_rounding import AnyRounding, BlockRounding
from ..formats import Format
from ..formats import format as as_format
from ..precision import Precision
from ..rounding import Accumulator
from ..table_rounding import TableRounding

OPERANDS = ("input", "weight", "grad_output")
RESULTS = ("output", "grad_input", "grad_weight")
ROLES = ("input", "weight", "output", "grad_output", "grad_input", "grad_weight")
UPDATE = "update"

_CONVOLUTIONS = (
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
)
# Layers whose results are sums of products. Others round only what they compute, to
# `elementwise`, and their parameters.
_PRODUCTS = (
    torch.nn.Linear,
    torch.nn.Bilinear,
    torch.nn.MultiheadAttention,
    *_CONVOLUTIONS,
)
_SEED = 0  # the run's seeds are not known, and not drawn from


class Layer(NamedTuple):
    """A layer as it was called: its name, module and precision."""

    name: str
    module: torch.nn.Module
    precision: Precision

    def rounding(self, role: str) -> AnyRounding | None:
        """Return the rounding that puts a tensor into its format.

        A result that is not rounded has the format of the accumulator that summed it;
        None means that it stays in its carrier.
        """
        precision = self.precision
        if isinstance(self.module, _PRODUCTS):
            rounding: AnyRounding | None = getattr(precision, role)
            if rounding is None and role in RESULTS:
                accumulator = self.accumulator(role)
                return None if accumulator is None else accumulator.rounding
            return rounding
        if precision.elementwise is None or role == "input":
            return None
        if role in ("weight", "grad_weight"):
            named: AnyRounding | None = getattr(precision, role)
            # Blocks, posits and levels are for factors of products.
            factors = isinstance(named, (BlockRounding, TableRounding))
            return precision.elementwise if factors else named
        return precision.elementwise

    def accumulator(self, role: str) -> Accumulator | None:
        """Return the accumulator of one of the ``RESULTS``."""
        if role == "output":
            return self.precision.accumulator
        return self.precision.backward_accumulator

    def rounded(self, role: str, x: Tensor) -> Tensor:
        """Return an operand as the product that it comes to first rounds it."""
        rounding = self.rounding(role)
        if rounding is None:
            return x
        if not isinstance(rounding, BlockRounding):
            return rounded(x, rounding)
        if not isinstance(self.module, _CONVOLUTIONS) or x.dim() < 3:
            return rounded(x, rounding)
        # Blocks run along the channels of a group.
        dims = len(self.module.kernel_size)
        axis = x.dim() - dims - 1
        groups = self.module.groups if role != "weight" else 1
        apart = x.unflatten(axis, (groups, x.shape[axis] // groups))
        return round(
            apart,
            rounding,
            axis=axis + 1,
            seed=_SEED if rounding.stochastic else None,
        ).flatten(axis, axis + 1)

    def factor(self, role: str, terms: Tensor) -> Tensor | None:
        """Return gathered factors [S, K] of sums, rounded; None if that is not known.

        Blocks run along the terms of a linear layer's sums, but not of a
        convolution's; a scale of the whole tensor is not known from some of it.
        """
        rounding = self.rounding(role)
        if isinstance(rounding, BlockRounding) and (
            isinstance(self.module, _CONVOLUTIONS)
            or rounding.format.tensor_scale is not None
        ):
            return None
        return rounded(terms, rounding)

    def format(self, role: str, x: Tensor) -> object:
        """Return the format of a tensor, of whatever kind it is."""
        rounding = self.rounding(role)
        if rounding is None:
            return as_format(str(x.dtype).removeprefix("torch."))
        return rounding.format


def rounded(x: Tensor, rounding: AnyRounding | None) -> Tensor:
    """Return ``x`` rounded with a fixed seed; blocks run along the last dimension."""
    if rounding is None:
        return x
    return round(x, rounding, seed=_SEED if rounding.stochastic else None)


def floating_point(format: object) -> Format | None:
    """Return a format if it is one whose values have units in the last place."""
    return format if isinstance(format, Format) else None
