"""`lowprec.functional.multi_head_attention_forward`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._attention import AttentionSeeds, attend
from ._calls import leaves_everything, seed_with_elementwise, seeds_of_parts
from ._linear import linear
from ._reductions import mean
from ._wide import wide_for


class _MultiHeadSeeds(NamedTuple):
    """The seed of each part, in the order of `split_seed`."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None
    attention: Tensor | None
    projection: Tensor | None
    average: Tensor | None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _projected(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: tuple[Tensor | None, ...],
    bias: Tensor | None,
    precision: Precision,
    seeds: _MultiHeadSeeds,
) -> tuple[Tensor, Tensor, Tensor]:
    """Project by one layer where the inputs are one tensor, as torch does."""

    def layer(x: Tensor, first: int, count: int, seed: Tensor | None) -> list[Tensor]:
        part = slice(first * size, (first + count) * size)
        w = given[first] if separate else given[0][part]
        b = None if bias is None else bias[part]
        y = linear(x, w, b, precision=precision, seed=seed)
        return list(y.unflatten(-1, (count, size)).unbind(-2))

    size, separate = query.shape[-1], len(weights) == 3
    given = [weight for weight in weights if weight is not None]
    _require(
        len(given) == len(weights),
        "use_separate_proj_weight=True needs three weights, and False in_proj_weight",
    )
    if not separate and key is value:
        if query is key:
            q, k, v = layer(query, 0, 3, seeds.query)
            return q, k, v
        k, v = layer(key, 1, 2, seeds.key)
        return layer(query, 0, 1, seeds.query)[0], k, v
    return (
        layer(query, 0, 1, seeds.query)[0],
        layer(key, 1, 1, seeds.key)[0],
        layer(value, 2, 1, seeds.value)[0],
    )


def _by_heads(x: Tensor, heads: int) -> Tensor:
    """Rearrange [*, N, E] as [N, H, *, E / H]."""
    split: Tensor = x.unflatten(-1, (heads, x.shape[-1] // heads))
    return split.permute(1, 2, 0, 3)


def _static(x: Tensor, name: str, batch: int, heads: int, size: int) -> Tensor:
    """Rearrange [N H, S, E / H] as [N, H, S, E / H]."""
    wanted = (batch * heads, size // heads)
    _require(
        x.dim() == 3 and (x.shape[0], x.shape[2]) == wanted,
        f"{name} must be [{wanted[0]}, S, {wanted[1]}], got {tuple(x.shape)}",
    )
    split: Tensor = x.unflatten(0, (batch, heads))
    return split


def _for_every_example(
    bias: Tensor,  # [1, 1, E]
    count: int,
    precision: Precision,
    seed: Tensor | None,
) -> Tensor:
    """Copy a parameter along the batch; the accumulator sums its gradient."""
    # Rounding to elementwise would be one of a value that no arithmetic made.
    wide = wide_for(
        Precision(
            grad_weight=precision.grad_weight,
            accumulator=precision.accumulator,
            grad_accumulator=precision.grad_accumulator,
        ),
        bias.dtype,
        None,
        seed,
    )
    copies = wide.expand(wide.enter_bias(bias), (1, count, bias.shape[-1]))
    return wide.leave(copies)


def _additive(mask: Tensor | None, name: str, like: Tensor) -> Tensor | None:
    """Return a mask of numbers: -inf where a mask of truth values is true."""
    if mask is None or mask.is_floating_point():
        return mask if mask is None else mask.to(like.dtype)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool or floating point, got {mask.dtype}")
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def _merged_mask(
    attn_mask: Tensor | None,  # [L, S] or [N H, L, S]
    padding: Tensor | None,  # [N, S]
    heads: int,
    batch: int,
    extra: int,
) -> Tensor | None:
    """Return what to add to scores [N, H, L, S + extra]; extra keys are all seen."""
    if attn_mask is not None:
        attn_mask = torch.nn.functional.pad(attn_mask, (0, extra))
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (batch, heads))
    if padding is None:
        return attn_mask
    padding = torch.nn.functional.pad(padding, (0, extra))[:, None, None]
    return padding if attn_mask is None else attn_mask + padding


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    size: int,
    heads: int,
    separate: bool,
    attn_mask: Tensor | None,
    padding: Tensor | None,
) -> None:
    """Refuse batched operands that torch refuses."""
    check_carrier(query, "query")
    shapes = tuple(tuple(x.shape) for x in (query, key, value))
    _require(
        all(len(shape) == 3 for shape in shapes)
        and query.shape[1] == key.shape[1]
        and (key.shape[:2] == value.shape[:2] if separate else shapes[1] == shapes[2]),
        f"query, key and value must be [L, N, E], [S, N, E] and [S, N, E], or all "
        f"without N, got {shapes}",
    )
    _require(
        query.shape[2] == size and heads > 0 and size % heads == 0,
        f"the query's size {query.shape[2]} must be embed_dim_to_check={size} and a "
        f"multiple of num_heads={heads}",
    )
    length, batch, source = query.shape[0], query.shape[1], key.shape[0]
    allowed = ((length, source), (batch * heads, length, source))
    _require(
        attn_mask is None or tuple(attn_mask.shape) in allowed,
        f"attn_mask must have one of the shapes {allowed}, got "
        f"{None if attn_mask is None else tuple(attn_mask.shape)}",
    )
    _require(
        padding is None or tuple(padding.shape) == (batch, source),
        f"key_padding_mask must have shape {(batch, source)}, got "
        f"{None if padding is None else tuple(padding.shape)}",
    )


@overridable
def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute multi-head attention in emulated arithmetic, forward and backward.

    `linear` projections of query, key and value, `scaled_dot_product_attention` of each
    head with scale 1 / sqrt(head size), and a `linear` projection of the result.

    Contract:
        As these. Where query, key and value are one tensor, one linear layer projects
        it (two where only key and value are), so the gradient of that tensor is one
        sum. Masks add -inf, or numbers; attention and padding mask are added to each
        other by the carrier first. ``bias_k`` and ``bias_v`` are used as they are,
        their gradients are summed over the batch by ``grad_accumulator`` and rounded
        to ``grad_weight``. The result does not depend on ``need_weights``; the weights
        returned are those after dropout, their mean over heads rounded to
        ``elementwise``. If nothing is rounded torch's own function computes.

    Args:
        query: float32 or float64 tensor [L, N, E] or [L, E].
        key: tensor [S, N, E] or [S, E].
        value: tensor of the key's shape.
        embed_dim_to_check: E.
        num_heads: number of heads, a divisor of E.
        in_proj_weight: tensor [3 E, E], or None with separate weights.
        in_proj_bias: tensor [3 E], or None.
        bias_k: tensor [1, 1, E], one more key, or None.
        bias_v: tensor [1, 1, E], its value, or None.
        add_zero_attn: whether one more key and its value are zeros.
        dropout_p: probability of dropping a weight in training.
        out_proj_weight: tensor [E, E].
        out_proj_bias: tensor [E], or None.
        training: whether to drop weights.
        key_padding_mask: tensor [N, S] or [S], true or -inf at keys to ignore.
        need_weights: whether to return the weights as well.
        attn_mask: tensor [L, S] or [N num_heads, L, S], true or -inf at keys that a
            query does not see.
        use_separate_proj_weight: whether the next three weights are used.
        q_proj_weight: tensor [E, E].
        k_proj_weight: tensor [E, Ek], Ek being the key's size.
        v_proj_weight: tensor [E, Ev], Ev being the value's size.
        static_k: tensor [N num_heads, S, E / num_heads] instead of projected keys.
        static_v: tensor of its shape instead of projected values.
        average_attn_weights: whether the weights returned are means over the heads.
        is_causal: a hint that ``attn_mask``, which it needs, is causal.
        precision: the roundings.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic. Its eight parts, by `split_seed`, are those of the
            projections of query, key and value, ``bias_k``, ``bias_v``,
            `scaled_dot_product_attention`, the last projection and the mean weights.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        The result [L, N, E] or [L, E], and the weights [N, L, S] or [L, S], with heads
        [N, num_heads, L, S] or [num_heads, L, S], or None.

    Raises:
        TypeError: as `linear`, or if a mask is neither bool nor floating point.
        ValueError: if shapes or options do not match, or the carrier cannot hold the
            values.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x, w = torch.ones(3, 1, 4), torch.eye(4)
        >>> y, weights = multi_head_attention_forward(
        ...     x, x, x, 4, 2, w.repeat(3, 1), None, None, None, False, 0.0, w, None,
        ...     precision=Precision(elementwise="e4m3fn"),
        ... )
        >>> weights
        tensor([[[0.3438, 0.3438, 0.3438],
                 [0.3438, 0.3438, 0.3438],
                 [0.3438, 0.3438, 0.3438]]])

    References:
        Vaswani et al. 2017, Attention is all you need, section 3.2.2.
    """
    precision = as_precision(precision)
    if leaves_everything(precision):
        plain: tuple[Tensor, Tensor | None] = (
            torch.nn.functional.multi_head_attention_forward(
                query,
                key,
                value,
                embed_dim_to_check,
                num_heads,
                in_proj_weight,
                in_proj_bias,
                bias_k,
                bias_v,
                add_zero_attn,
                dropout_p,
                out_proj_weight,
                out_proj_bias,
                training,
                key_padding_mask,
                need_weights,
                attn_mask,
                use_separate_proj_weight,
                q_proj_weight,
                k_proj_weight,
                v_proj_weight,
                static_k,
                static_v,
                average_attn_weights,
                is_causal,
            )
        )
        return plain
    batched = query.dim() == 3
    if not batched:
        same_value, same_query = value is key, query is key
        query = query.unsqueeze(1)
        key = query if same_query else key.unsqueeze(1)
        value = key if same_value else value.unsqueeze(1)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    _check(
        query,
        key,
        value,
        embed_dim_to_check,
        num_heads,
        use_separate_proj_weight,
        attn_mask,
        key_padding_mask,
    )
    _require(
        attn_mask is not None or not is_causal,
        "is_causal is a hint about attn_mask, which is missing",
    )
    _require(
        (bias_k is None) == (bias_v is None),
        "bias_k and bias_v must both be given or both be None",
    )
    _require(
        bias_k is None or (static_k is None and static_v is None),
        "bias_k and bias_v cannot be added to static_k and static_v",
    )
    base = seed_with_elementwise(precision, generator, seed)
    seeds = _MultiHeadSeeds(*seeds_of_parts(base, len(_MultiHeadSeeds._fields)))
    weights: tuple[Tensor | None, ...] = (in_proj_weight,)
    if use_separate_proj_weight:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    inputs = (query, key, value)
    q, k, v = _projected(*inputs, weights, in_proj_bias, precision, seeds)
    length, batch, size = query.shape
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, _for_every_example(bias_k, batch, precision, seeds.bias_k)])
        v = torch.cat([v, _for_every_example(bias_v, batch, precision, seeds.bias_v)])
    keys = _by_heads(k, num_heads)
    values = _by_heads(v, num_heads)
    if static_k is not None:
        keys = _static(static_k, "static_k", batch, num_heads, size)
    if static_v is not None:
        values = _static(static_v, "static_v", batch, num_heads, size)
    if add_zero_attn:
        keys = torch.nn.functional.pad(keys, (0, 0, 0, 1))
        values = torch.nn.functional.pad(values, (0, 0, 0, 1))
    mask = _merged_mask(
        _additive(attn_mask, "attn_mask", query),
        _additive(key_padding_mask, "key_padding_mask", query),
        num_heads,
        batch,
        (bias_k is not None) + add_zero_attn,
    )
    heads, seen = attend(
        _by_heads(q, num_heads),
        keys,
        values,
        mask,
        False,
        dropout_p if training else 0.0,
        1 / math.sqrt(size // num_heads),
        False,
        precision,
        AttentionSeeds(*seeds_of_parts(seeds.attention, len(AttentionSeeds._fields))),
    )
    rows = heads.permute(2, 0, 1, 3).reshape(length, batch, size)
    result = linear(
        rows, out_proj_weight, out_proj_bias, precision=precision, seed=seeds.projection
    )
    result = result if batched else result.squeeze(1)
    if not need_weights:
        return result, None
    if average_attn_weights:
        seen = mean(seen, 1, precision=precision, seed=seeds.average)
    return result, seen if batched else seen.squeeze(0)
