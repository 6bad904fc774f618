"""`lowprec.functional.embedding_bag`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ..rounding import Accumulator
from ._calls import seed_with_elementwise, seeds_of_parts
from ._once import once_differentiable
from ._parts import check_same, isolated
from ._sums import segment_sums
from ._wide import wide_for


class _BagSeeds(NamedTuple):
    """The seed of each part, in the order of `split_seed`."""

    borders: Tensor | None
    sums: Tensor | None
    grad_sums: Tensor | None


class _Rows(torch.autograd.Function):
    """Rows of a matrix; the gradient of each is the sum over where it was taken."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,  # [V, D]
        index: Tensor,  # [P]
        accumulator: Accumulator | None,
        seed: Tensor | None,
    ) -> Tensor:
        with isolated(x):
            return x.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, index, ctx.accumulator, seed = inputs
        ctx.count = x.shape[0]
        ctx.save_for_backward(index, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        index, seed = ctx.saved_tensors
        with isolated(grad):
            total = segment_sums(grad, index, ctx.count, ctx.accumulator, seed)
        return total, None, None, None


class _Bags(torch.autograd.Function):
    """Sums of rows that belong together; the gradient is copied to each."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,  # [P, D]
        owners: Tensor,  # [P]
        count: int,
        accumulator: Accumulator | None,
        seed: Tensor | None,
    ) -> Tensor:
        with isolated(x):
            return segment_sums(x, owners, count, accumulator, seed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, owners, _, _, _ = inputs
        ctx.save_for_backward(owners)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (owners,) = ctx.saved_tensors
        with isolated(grad):
            copies = grad.index_select(0, owners)
        return copies, None, None, None, None


def _owners(
    input: Tensor, offsets: Tensor | None, include_last_offset: bool
) -> tuple[Tensor, int]:
    """Return the number of every element's bag, and of bags."""
    if input.dim() == 2 and offsets is None:
        rows = torch.arange(input.shape[0], device=input.device)
        return rows.repeat_interleave(input.shape[1]), input.shape[0]
    if input.dim() != 1 or offsets is None or offsets.dim() != 1:
        raise ValueError(
            "input must be [B, L] without offsets or [P] with offsets [B], got "
            f"{tuple(input.shape)} and "
            f"{None if offsets is None else tuple(offsets.shape)}"
        )
    starts = offsets[:-1] if include_last_offset else offsets
    places = torch.arange(input.shape[0], device=input.device)
    owners = torch.searchsorted(starts.contiguous().long(), places, right=True) - 1
    return owners, starts.shape[0]


@overridable
def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Add rows of a table, bag by bag, in emulated arithmetic.

    With W' = fl_weight(W), factors s (1 unless given), n the size of a bag for
    ``"mean"`` and 1 for ``"sum"``: y[b] = fl(acc over i in bag b of s[i] W'[input[i]]
    / n); with dy' = fl(dy): dW[v] = fl_grad_weight(acc over i with input[i] = v of
    s[i] dy'[bag of i] / n), ds[i] = fl(acc of dy'[bag of i] W'[input[i]]).

    Contract:
        One fused operation, as `layer_norm`; terms of every sum are in the order of
        the input. ``elementwise=None`` leaves the whole operation to torch.

    Args:
        input: integer tensor, bags [B, L] or all of them [P].
        weight: float32 or float64 tensor [V, D].
        offsets: integer tensor [B], where each bag of a [P] starts.
        max_norm: must be None, as in `embedding`.
        norm_type: as torch's, for ``max_norm``.
        scale_grad_by_freq: must be False.
        mode: ``"sum"`` or ``"mean"``.
        sparse: must be False.
        per_sample_weights: factors of the input's shape, for ``"sum"``.
        include_last_offset: whether the last offset is the end of the last bag.
        padding_idx: a row that takes no part.
        precision: its ``elementwise``, ``weight``, ``grad_weight`` and accumulators.
        generator: source of the seed of stochastic roundings, whose parts, by
            `split_seed`, are the borders', the sums' and their gradients'.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [B, D] of the table's dtype.

    Raises:
        TypeError: as `embedding`.
        ValueError: if shapes or options do not match, and as `embedding`.
        IndexError: from torch, for rows that do not exist.
        NotImplementedError: for what must be None or False, and other modes.
        RuntimeError: as `linear`.

    Example:
        >>> w = torch.tensor([[256.0], [1.0]])
        >>> low = Precision(elementwise="bfloat16", accumulator="bfloat16")
        >>> embedding_bag(torch.tensor([[0, 1, 1]]), w, mode="sum", precision=low)
        tensor([[256.]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.embedding_bag(
            input,
            weight,
            offsets,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
        )
    if max_norm is not None or sparse or scale_grad_by_freq or mode == "max":
        raise NotImplementedError(
            f"max_norm={max_norm!r}, sparse={sparse!r}, scale_grad_by_freq="
            f"{scale_grad_by_freq!r} and mode={mode!r} are not emulated together: only "
            "sums and means without the others are"
        )
    _check(input, weight, mode, per_sample_weights)
    owners, count = _owners(input, offsets, include_last_offset)
    index = input.reshape(-1).long()
    kept = torch.ones_like(index, dtype=torch.bool)
    if padding_idx is not None:
        kept = index != padding_idx % weight.shape[0]
    base = seed_with_elementwise(precision, generator, seed)
    seeds = _BagSeeds(*seeds_of_parts(base, len(_BagSeeds._fields)))
    wide = wide_for(precision, weight.dtype, None, seeds.borders)
    rows_node: Any = _Rows
    rows = rows_node.apply(
        wide.enter_weight(weight),
        index,
        precision.backward_accumulator,
        seeds.grad_sums,
    )
    if per_sample_weights is not None:
        factors = wide.enter(per_sample_weights.reshape(-1)).unsqueeze(1)
        rows = rows * wide.expand(factors, rows.shape)
    rows = rows.masked_fill(~kept.unsqueeze(1), 0)
    bags_node: Any = _Bags
    total = bags_node.apply(rows, owners, count, precision.accumulator, seeds.sums)
    if mode == "mean":
        ones = kept.double()
        sizes = ones.new_zeros(count).index_add(0, owners, ones)
        total = total / sizes.clamp(min=1).unsqueeze(1)
    return wide.leave(total)


def _check(
    input: Tensor, weight: Tensor, mode: str, per_sample_weights: Tensor | None
) -> None:
    check_carrier(weight, "weight")
    if input.is_floating_point() or input.is_complex() or input.dtype == torch.bool:
        raise TypeError(f"input must hold integers, got {input.dtype}")
    if weight.dim() != 2:
        raise ValueError(f"weight must be [V, D], got {tuple(weight.shape)}")
    if mode not in ("sum", "mean"):
        raise ValueError(f"mode must be 'sum', 'mean' or 'max', got {mode!r}")
    if per_sample_weights is None:
        return
    check_same("per_sample_weights", per_sample_weights, weight, "weight")
    if mode != "sum" or per_sample_weights.shape != input.shape:
        raise ValueError(
            "per_sample_weights need mode='sum' and the input's shape "
            f"{tuple(input.shape)}, got {mode!r} and {tuple(per_sample_weights.shape)}"
        )
