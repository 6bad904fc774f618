"""Rounding of tensors to block formats, along an axis of theirs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from .. import kernels
from ..block_rounding import BlockRounding
from ..formats import BlockFormat, Format, ScaleRule, SharedExponent
from ..rounding import Rounding, Saturation
from ._overrides import overridable

_BINARY32 = Rounding("binary32")


@dataclass(frozen=True)
class AlongAxis:
    """A block rounding and the axis along which blocks run."""

    rounding: BlockRounding
    axis: int

    @property
    def stochastic(self) -> bool:
        """Whether results depend on random bits."""
        return self.rounding.stochastic

    def apply(self, x: Tensor, seed: Tensor | None, offset: int) -> Tensor:
        """Round without autograd: q s t, rounded once if a float32 carrier must."""
        values, scale = self.without_tensor_scale(x, seed, offset)
        return values if scale is None else with_tensor_scale(values, scale)

    def without_tensor_scale(
        self, x: Tensor, seed: Tensor | None, offset: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return q s, exact in the carrier, and the tensor scale t if there is one."""
        format = self.rounding.format
        refuse_unheld(format, x.dtype)
        code = block_code(self.rounding)
        values, scale = kernels.round_blocks(x, code, self.axis, seed, offset)
        return values, None if format.tensor_scale is None else scale


@overridable
def with_tensor_scale(values: Tensor, scale: Tensor) -> Tensor:
    """Return q s t from q s and t, rounded once to the carrier."""
    wide = values.to(torch.float64) * scale  # exact
    if values.dtype == torch.float64:
        return wide
    single: Tensor = kernels.eager_round(wide, _BINARY32.code)
    return single.to(values.dtype)


def normalised_axis(axis: object, dims: int) -> int:
    """Return the axis counted from the front.

    Raises:
        TypeError: if it is not an int.
        ValueError: if there is no such axis.
    """
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(
            f"axis must be an int, got {axis!r} of type {type(axis).__name__}"
        )
    if not -dims <= axis < dims:
        text = f"from {-dims} to {dims - 1}" if dims else "possible with no dimensions"
        raise ValueError(
            f"axis {axis} is not {text}: blocks run along a dimension of the tensor"
        )
    return axis % dims


def _saturating(format: Format | None) -> tuple[int, ...]:
    if format is None:
        return ()
    return Rounding(format, saturation=Saturation.FINITE).code


def block_code(rounding: BlockRounding) -> kernels.BlockCode:
    """Return the integers by which kernels know a block rounding."""
    format = rounding.format
    shared = isinstance(format.scale, SharedExponent)
    return kernels.BlockCode(
        element=rounding.element.code,
        scale=()
        if isinstance(format.scale, SharedExponent)
        else _saturating(format.scale),
        tensor_scale=_saturating(format.tensor_scale),
        single=_BINARY32.code,
        rule=list(ScaleRule).index(format.rule),
        block_size=format.block_size,
        bias=format.scale.bias if shared else 0,
    )


def holds(format: BlockFormat, dtype: torch.dtype) -> bool:
    """Return whether a carrier holds every q s of a format within its range."""
    if dtype == torch.float64:
        return True
    element, scale = format.element, format.scale
    if isinstance(scale, SharedExponent):
        precision, lowest = element.precision, Fraction(2) ** -scale.bias
    else:
        precision = element.precision + scale.precision
        lowest = Fraction(scale.smallest_subnormal)
    binary32 = _BINARY32.format
    smallest = lowest * Fraction(element.smallest_subnormal)
    return precision <= binary32.precision and smallest >= binary32.smallest_subnormal


def refuse_unheld(format: BlockFormat, dtype: torch.dtype) -> None:
    """Refuse formats whose q s a float32 carrier would round.

    Raises:
        ValueError: saying what to do.
    """
    if not holds(format, dtype):
        raise ValueError(
            f"a float32 carrier cannot hold every value of {format!r}: use a float64 "
            "carrier"
        )
