"""`lowprec.functional.embedding`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._calls import seed_with_elementwise, seeds_of_parts
from ._once import once_differentiable
from ._parts import isolated, rounded
from ._sums import segment_sums
from ._wide import check_held


class _EmbeddingSeeds(NamedTuple):
    """The seed of each rounding, in the order of `split_seed`."""

    weight: Tensor | None
    output: Tensor | None
    grad_output: Tensor | None
    grad_weight_sum: Tensor | None
    grad_weight: Tensor | None


class _Embedding(torch.autograd.Function):
    """Rows of a table; the gradient of a row is one sum over where it was taken."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor,  # [V, D]
        index: Tensor,  # int64 [P]
        ignored: int | None,
        by_frequency: bool,
        precision: Precision,
        *seeds: Tensor | None,
    ) -> Tensor:
        with isolated(weight):
            keys = _EmbeddingSeeds(*seeds)
            table = rounded(weight, precision.parameter, keys.weight)
            rows = table.index_select(0, index)
            return rounded(rows, precision.elementwise, keys.output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, index, ctx.ignored, ctx.by_frequency, ctx.precision, *seeds = inputs
        ctx.count = weight.shape[0]
        ctx.save_for_backward(index, *seeds)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        index, *seeds = ctx.saved_tensors
        precision, keys = ctx.precision, _EmbeddingSeeds(*seeds)
        with isolated(grad_output):
            grad = rounded(grad_output, precision.elementwise, keys.grad_output)
            total = segment_sums(
                grad.double(),
                index,
                ctx.count,
                precision.backward_accumulator,
                keys.grad_weight_sum,
            )
            if ctx.by_frequency:
                ones = torch.ones_like(index, dtype=torch.float64)
                times = ones.new_zeros(ctx.count).index_add(0, index, ones)
                total = total / times.clamp(min=1).unsqueeze(1)
            if ctx.ignored is not None:
                rows = torch.arange(ctx.count, device=index.device) == ctx.ignored
                total = total.masked_fill(rows.unsqueeze(1), 0)
            total = rounded(total, precision.grad_weight, keys.grad_weight)
        return total.to(grad_output.dtype), *(None,) * (4 + len(seeds))


@overridable
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Take rows of a table in emulated arithmetic.

    y[i] = fl(fl_weight(W)[input[i]]), fl being that of ``elementwise``; with
    dy' = fl(dy): dW[v] = fl_grad_weight(acc over i with input[i] = v of dy'[i]).

    Contract:
        The table is rounded once per call. The sum of a row's gradient is that of
        ``grad_accumulator``, positions in row-major order, and float64's where this is
        None; with ``scale_grad_by_freq`` it is divided by the number of its terms
        before the rounding. ``elementwise=None`` leaves the whole operation to torch.

    Args:
        input: integer tensor of any shape, rows of the table.
        weight: float32 or float64 tensor [V, D].
        padding_idx: a row whose gradient is zero.
        max_norm: must be None: it would change the table by the carrier's arithmetic.
        norm_type: as torch's, for ``max_norm``.
        scale_grad_by_freq: whether to divide gradients by how often a row occurs.
        sparse: must be False.
        precision: its ``elementwise``, ``weight``, ``grad_weight`` and accumulators.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [*, D] of the table's dtype, * being the input's shape.

    Raises:
        TypeError: as `linear`, or if the input holds no integers.
        ValueError: if the table is no matrix, ``padding_idx`` no row of it, or the
            carrier cannot hold the values.
        IndexError: from torch, for rows that do not exist.
        NotImplementedError: for ``max_norm``, sparse gradients, and accumulators that
            `lowprec.sum` does not take.
        RuntimeError: as `linear`.

    Example:
        >>> w = torch.zeros(2, 1, requires_grad=True)
        >>> low = Precision(elementwise="bfloat16", accumulator="bfloat16")
        >>> y = embedding(torch.tensor([0, 0, 0, 1]), w, precision=low)
        >>> y.backward(torch.tensor([[256.0], [1.0], [1.0], [1.0]]))
        >>> w.grad
        tensor([[256.],
                [  1.]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 4.1.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    check_carrier(weight, "weight")
    if input.is_floating_point() or input.is_complex() or input.dtype == torch.bool:
        raise TypeError(f"input must hold integers, got {input.dtype}")
    if weight.dim() != 2:
        raise ValueError(f"weight must be [V, D], got {tuple(weight.shape)}")
    if max_norm is not None or sparse:
        raise NotImplementedError(
            f"max_norm={max_norm!r} and sparse={sparse!r} are not emulated: scale the "
            "table before the call, and use dense gradients"
        )
    check_held("elementwise", precision.elementwise, weight.dtype)
    check_held("grad_weight", precision.grad_weight, weight.dtype)
    count = weight.shape[0]
    if padding_idx is not None:
        if not -count <= padding_idx < count:
            raise ValueError(
                f"padding_idx must be a row of a table of {count}, got {padding_idx}"
            )
        padding_idx %= count
    base = seed_with_elementwise(precision, generator, seed)
    seeds = seeds_of_parts(base, len(_EmbeddingSeeds._fields))
    node: Any = _Embedding
    rows: Tensor = node.apply(
        weight,
        input.reshape(-1).long(),
        padding_idx,
        scale_grad_by_freq,
        precision,
        *seeds,
    )
    return rows.reshape(*input.shape, weight.shape[1])
