"""`lowprec.functional.scaled_dot_product_attention`, and the arithmetic inside."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._calls import leaves_everything, seed_with_elementwise, seeds_of_parts
from ._dropout import dropout
from ._matmul import matmul
from ._parts import check_same
from ._pointwise import pointwise
from ._wide import wide_for


class AttentionSeeds(NamedTuple):
    """The seed of each part of an attention, in the order of `split_seed`."""

    scores: Tensor | None
    scale: Tensor | None
    mask: Tensor | None
    softmax: Tensor | None
    dropout: Tensor | None
    output: Tensor | None


def _safe_softmax(x: Tensor, precision: Precision, seed: Tensor | None) -> Tensor:
    """Return the softmax of rows; a row that is masked entirely gives zeros."""
    if precision.elementwise is None:
        plain: Tensor = torch.ops.aten._safe_softmax.default(x, -1)
        return plain
    if x.numel() == 0:  # no keys, and no maximum of them
        return x
    wide = wide_for(precision, x.dtype, None, seed)
    scores = wide.enter(x)
    largest = scores.detach().amax(-1, keepdim=True)
    nothing = largest == -math.inf
    powers = (scores - largest.masked_fill(nothing, 0)).exp()
    total = wide.sum(powers, -1, keepdim=True).masked_fill(nothing, 1)
    return wide.leave(powers / wide.expand(total, powers.shape))


def _masked(
    scores: Tensor,
    mask: Tensor | None,
    causal: bool,
    precision: Precision,
    seed: Tensor | None,
) -> Tensor:
    """Add a mask of numbers, and put -inf where a mask of truth values is false."""
    if mask is not None and mask.dtype != torch.bool:
        scores = pointwise(torch.add, scores, mask, precision=precision, seed=seed)
    elif mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if causal:
        size = scores.shape[-2:]
        seen = torch.ones(size, dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    return scores


def _grouped_product(
    many: Tensor,  # [..., H, M, K]
    few: Tensor,  # [..., H / R, K, N]
    precision: Precision,
    seed: Tensor | None,
) -> Tensor:
    """Multiply; each head of ``few`` serves R neighbouring ones of ``many``.

    Where it serves several, one sum over all of them is its gradient.
    """
    if many.dim() < 3 or few.dim() < 3 or many.shape[-3] == few.shape[-3]:
        return matmul(many, few, precision=precision, seed=seed)
    heads = few.shape[-3]
    grouped = many.unflatten(-3, (heads, many.shape[-3] // heads))
    result = matmul(grouped, few.unsqueeze(-3), precision=precision, seed=seed)
    return result.flatten(-4, -3)


def attend(
    query: Tensor,  # [..., H, L, E]
    key: Tensor,  # [..., H, S, E]
    value: Tensor,  # [..., H, S, V]
    mask: Tensor | None,  # broadcasts to [..., H, L, S]
    causal: bool,
    dropout_p: float,
    scale: float,
    grouped: bool,
    precision: Precision,
    seeds: AttentionSeeds,
) -> tuple[Tensor, Tensor]:
    """Return the result [..., H, L, V] and the weights [..., H, L, S]."""
    multiply = _grouped_product if grouped else _plain_product
    scores = multiply(query, key.mT, precision, seeds.scores)
    scores = pointwise(torch.mul, scores, scale, precision=precision, seed=seeds.scale)
    scores = _masked(scores, mask, causal, precision, seeds.mask)
    weights = _safe_softmax(scores, precision, seeds.softmax)
    if dropout_p > 0:
        weights = dropout(weights, dropout_p, precision=precision, seed=seeds.dropout)
    return multiply(weights, value, precision, seeds.output), weights


def _plain_product(
    a: Tensor, b: Tensor, precision: Precision, seed: Tensor | None
) -> Tensor:
    return matmul(a, b, precision=precision, seed=seed)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    causal: bool,
    grouped: bool,
) -> None:
    check_carrier(query, "query")
    check_same("key", key, query, "query")
    check_same("value", value, query, "query")
    shapes = tuple(tuple(x.shape) for x in (query, key, value))
    if (
        min(map(len, shapes)) < 2
        or query.shape[-1] != key.shape[-1]
        or key.shape[-2] != value.shape[-2]
    ):
        raise ValueError(
            "query, key and value must be [..., L, E], [..., S, E] and [..., S, V], "
            f"got {shapes}"
        )
    if grouped and (
        min(map(len, shapes)) < 3
        or query.shape[-3] % key.shape[-3]
        or query.shape[-3] % value.shape[-3]
    ):
        raise ValueError(
            "enable_gqa needs numbers of heads, third from last, that divide that of "
            f"the query, got shapes {shapes}"
        )
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must be from 0 to 1, got {dropout_p}")
    if mask is not None and causal:
        raise RuntimeError(
            "attn_mask must be None with is_causal=True, as in torch: put the causal "
            "part into the mask"
        )
    if mask is not None and mask.dtype != torch.bool:
        check_same("attn_mask", mask, query, "query")


def _default_scale(query: Tensor) -> float:
    features = query.shape[-1]
    return 1 / math.sqrt(features) if features else 1.0  # all scores are zero


@overridable
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Compute attention in emulated arithmetic, forward and backward.

    Two products and, between them, elementwise operations, fl being that of
    ``elementwise``: S = fl_output(acc(Q' K'^T)), T = fl(scale S),
    U = fl(T + mask), P = `softmax` of U, Y = fl_output(acc(P' V'))
    with Q' = fl_input(Q), K' = fl_weight(K), P' = fl_input(P), V' = fl_weight(V).

    Contract:
        Every step is an operation of its own, with its own gradient: `matmul`, whose
        weights are the keys and the values, `pointwise` multiplication and addition,
        `softmax` and `dropout`. Without a mask of numbers there is no U; masks of
        truth values and ``is_causal`` put -inf, which is exact; rows of -inf have
        weights of zero. Groups of queries that share a key or a value are one sum in
        its gradient. Where ``elementwise`` is None torch computes these steps in the
        carrier; if nothing is rounded its own attention computes.

    Args:
        query: float32 or float64 tensor [..., H, L, E].
        key: tensor [..., H, S, E] of the same dtype.
        value: tensor [..., H, S, V] of the same dtype.
        attn_mask: tensor that broadcasts to [..., H, L, S], numbers to add or truth
            values, true where a key is seen.
        dropout_p: probability of dropping a weight.
        is_causal: key s is seen by query l only if s <= l.
        scale: factor of the scores; None means 1 / sqrt(E).
        enable_gqa: key and value may have fewer heads, each for neighbouring queries.
        precision: the roundings.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic. It has six parts, by `split_seed`: those of the first
            product, the scaling, the mask, the softmax, the dropout and the second
            product.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [..., H, L, V] of the query's dtype.

    Raises:
        TypeError: as `linear`.
        ValueError: if shapes do not match, or the carrier cannot hold the values.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`, and for ``attn_mask`` with ``is_causal``.

    Example:
        >>> q, v = torch.zeros(1, 257, 4), torch.ones(1, 257, 1)
        >>> low = Precision(elementwise="bfloat16", accumulator="bfloat16")
        >>> scaled_dot_product_attention(q, q, v, precision=low)[0, 0, 0]
        tensor(1.)

    References:
        Vaswani et al. 2017, Attention is all you need, equation 1.
    """
    precision = as_precision(precision)
    if leaves_everything(precision):
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
    _check(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    base = seed_with_elementwise(precision, generator, seed)
    result, _ = attend(
        query,
        key,
        value,
        attn_mask,
        is_causal,
        dropout_p,
        _default_scale(query) if scale is None else scale,
        enable_gqa,
        precision,
        AttentionSeeds(*seeds_of_parts(base, len(AttentionSeeds._fields))),
    )
    return result
