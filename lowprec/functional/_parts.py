"""What every layer function shares: seeds, roundings, products, checks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ..arithmetic import (
    AlongAxis,
    check_carrier,
    gemm,
    refuse_compiled_transforms,
    round,
)
from ..block_rounding import AnyRounding, BlockRounding
from ..precision import Precision
from ..random import as_seed, split_seed
from ..rounding import Accumulator, Order


class Seeds(NamedTuple):
    """The seed of each stochastic rounding of a call, in the order of its parts.

    This order is part of the numerical contract.
    """

    input: Tensor | None
    weight: Tensor | None
    output: Tensor | None
    bias: Tensor | None
    grad_output: Tensor | None
    grad_input_sum: Tensor | None
    grad_input: Tensor | None
    grad_weight_sum: Tensor | None
    grad_weight: Tensor | None
    grad_bias_sum: Tensor | None
    grad_bias: Tensor | None


_PARTS = 11


def split(seed: Tensor | None) -> Seeds:
    """Return the seeds of a call's parts; None means that nothing is stochastic."""
    return Seeds(*((None,) * _PARTS if seed is None else split_seed(seed, _PARTS)))


def rounded(x: Tensor, rounding: AnyRounding | None, seed: Tensor | None) -> Tensor:
    """Round with the gradient of the identity, or not at all.

    Raises:
        NotImplementedError: for block formats, whose blocks need a sum's dimension.
    """
    if rounding is None:
        return x
    if isinstance(rounding, BlockRounding):
        raise NotImplementedError(
            f"{rounding!r} has blocks along the dimension that a product sums over, "
            "and this operation rounds element by element: give it a Precision without "
            "block formats"
        )
    return round(x, rounding, seed=seed if rounding.stochastic else None)


def rounded_once(
    x: Tensor, rounding: AnyRounding | None, seed: Tensor | None
) -> Tensor:
    """Round an operand for all its products, unless it is rounded for each by `factor`.

    The gradient is that of the identity.
    """
    return x if isinstance(rounding, BlockRounding) else rounded(x, rounding, seed)


class Factor(NamedTuple):
    """An operand of one product: values, and the scale that was left out of them."""

    values: Tensor
    scale: Tensor | None

    @property
    def mT(self) -> Factor:
        """The transposed operand."""
        return Factor(self.values.mT, self.scale)


def factor(
    x: Tensor,
    rounding: AnyRounding | None,
    axis: int,
    seed: Tensor | None,
    *,
    again: bool = False,
) -> Factor:
    """Round an operand to a block format for the product that sums over ``axis``.

    Other roundings have been applied before, by `rounded_once`. ``again``: for the
    operand's second product, which has random words of its own.
    """
    if not isinstance(rounding, BlockRounding):
        return Factor(x, None)
    if not rounding.stochastic:
        seed = None
    elif seed is not None and again:
        (seed,) = split_seed(seed, 1)
    along = AlongAxis(rounding, axis % x.dim())
    return Factor(*along.without_tensor_scale(x, seed, 0))


def channels_factor(
    x: Tensor,
    rounding: AnyRounding | None,
    axis: int,
    groups: int,
    seed: Tensor | None,
    *,
    again: bool = False,
) -> Factor:
    """Round to a block format in blocks along the channels of each group."""
    apart = x.unflatten(axis, (groups, x.shape[axis] // groups))
    result = factor(apart, rounding, axis + 1, seed, again=again)
    return Factor(result.values.flatten(axis, axis + 1), result.scale)


def rescaled(total: Tensor, *factors: Factor) -> Tensor:
    """Multiply finished sums by the scales that were left out of their operands."""
    scales = [each.scale for each in factors if each.scale is not None]
    if not scales:
        return total
    # Two binary32 numbers: their product is exact in binary64, then rounded once.
    joint = math.prod(scales[1:], start=scales[0])
    if total.dtype == torch.float32:
        joint = round(joint, "binary32")
    return total * joint.to(total.dtype)


def factor_product(
    a: Factor,  # [..., M, K]
    b: Factor,  # [..., K, N]
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Multiply matrices and apply the scales that were left out."""
    return rescaled(product(a.values, b.values, accumulator, seed), a, b)


def product(
    a: Tensor,  # [..., M, K]
    b: Tensor,  # [..., K, N]
    accumulator: Accumulator | None,
    seed: Tensor | None,
    offset: int = 0,
) -> Tensor:
    """Multiply matrices; ``offset`` is the index of the first output element."""
    if accumulator is not None and not accumulator.stochastic:
        seed = None
    return gemm(a, b, accumulator, seed, offset)


def plain(accumulator: Accumulator) -> Accumulator:
    """Return the accumulator for terms that are no products."""
    return accumulator.replace(product="exact")


def add_bias(
    total: Tensor,
    bias: Tensor,  # broadcasts to total
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Add the bias to finished sums.

    One more addition of a recursive sum, whatever the order of the sum before it.
    """
    if accumulator is None:
        return total + bias
    adder = plain(accumulator).replace(
        order=Order.SEQUENTIAL, block_size=None, within=None
    )
    terms = torch.stack(torch.broadcast_tensors(total, bias))  # [2, *total.shape]
    ones = terms.new_ones(1, 2)
    result = product(ones, terms.reshape(2, total.numel()), adder, seed)
    return result.reshape(total.shape)


@contextmanager
def isolated(x: Tensor) -> Iterator[None]:
    """Keep function modes and autocast away from the arithmetic of a node.

    Backward may run inside an `emulate` context, which would emulate the carrier's own
    products a second time, and autocast would compute them in half precision.
    """
    device = x.device.type
    with torch._C.DisableTorchFunction():
        # Asked first, because switching off what is off takes as long as a small sum.
        available = torch.amp.is_autocast_available(device)
        if available and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                yield
        else:
            yield


def column_sums(
    grad: Tensor,  # [M, N]
    accumulator: Accumulator | None,
    seed: Tensor | None,
) -> Tensor:
    """Return 1^T grad, whose terms are no products."""
    if accumulator is None:
        return grad.sum(0)
    ones = grad.new_ones(1, grad.shape[0])
    return product(ones, grad, plain(accumulator), seed).squeeze(0)


def seed_for(
    precision: Precision,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> Tensor | None:
    """Draw only if a GEMM rounds stochastically: else torch's stream stays as it is."""
    refuse_compiled_transforms("a product with an emulated gradient")
    products = precision.products
    stochastic = any(item is not None and item.stochastic for item in products)
    return as_seed(seed, generator) if stochastic else None


def check_same(name: str, x: Tensor, other: Tensor, reference: str) -> None:
    """Refuse a tensor that differs from another in dtype or device.

    Raises:
        TypeError: for the dtype.
        ValueError: for the device.
    """
    check_carrier(x, name)
    if x.dtype != other.dtype:
        raise TypeError(
            f"{name} and {reference} must have the same dtype, got {x.dtype} and "
            f"{other.dtype}: convert one of them"
        )
    if x.device != other.device:
        raise ValueError(
            f"{name} and {reference} must be on the same device, got {x.device} and "
            f"{other.device}"
        )


def check_bias(bias: Tensor | None, input: Tensor, outputs: int, each: str) -> None:
    """Refuse a bias that does not have one element per output."""
    if bias is None:
        return
    check_same("bias", bias, input, "input")
    if bias.shape != (outputs,):
        raise ValueError(
            f"bias must have shape ({outputs},), one element per {each}, got "
            f"{tuple(bias.shape)}"
        )


def dimension(x: Tensor, dim: int) -> int:
    """Return the number from the front of a dimension, as torch counts them.

    Raises:
        IndexError: if there is no such dimension; a number has one.
    """
    count = max(1, x.dim())
    if not -count <= dim < count:
        raise IndexError(f"dim {dim} is out of range for shape {tuple(x.shape)}")
    return dim % count
