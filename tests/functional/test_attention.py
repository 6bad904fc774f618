"""Attention: against its steps, written out forward and backward."""

import math

import pytest
import torch
from gradients import assert_all_close, assert_all_equal, everything, incoming, sums
from layer_roundings import ROUNDINGS, STOCHASTIC, ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.functional import Seeds
from lowprec.precision import Precision
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal

attention = functional.scaled_dot_product_attention
torchs_attention = torch.nn.functional.scaled_dot_product_attention
LOW = Precision(
    elementwise="e7m5",
    accumulator=Accumulator("e7m6", product="e6m4"),
    grad_accumulator=Accumulator("e7m7", order="blocked", block_size=2),
    **ROUNDINGS,
)
RANDOM = Precision(
    elementwise=Rounding("e7m5", "stochastic"),
    accumulator=Rounding("e7m6", "stochastic"),
    **STOCHASTIC,
)
WIDE = Precision(elementwise="e11m50", accumulator="e11m50")
Q, K, V = (2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3)


def leaves_of(*shapes, dtype=torch.float32):
    return [leaf(*shape, dtype=dtype) for shape in shapes]


def product(a, b, precision, seed):
    """A product's result, and what gives its gradients."""
    parts = Seeds(*(split_seed(seed, 11) if seed is not None else (None,) * 11))
    a = lp.round(a, precision.input, seed=parts.input)
    b = lp.round(b, precision.weight, seed=parts.weight)
    y = lp.matmul(a, b, accumulator=precision.accumulator, seed=seed)
    backward = precision.backward_accumulator

    def gradients(g):
        g = lp.round(g, precision.grad_output, seed=parts.grad_output)
        da = lp.matmul(g, b.mT, accumulator=backward, seed=parts.grad_input_sum)
        db = lp.matmul(a.mT, g, accumulator=backward, seed=parts.grad_weight_sum)
        return (
            lp.round(da, precision.grad_input, seed=parts.grad_input),
            lp.round(db, precision.grad_weight, seed=parts.grad_weight),
        )

    return lp.round(y, precision.output, seed=parts.output), gradients


def expected(q, k, v, mask, scale, precision, seed=None):
    """Output and gradients of q, k, v and, if it is one of numbers, the mask."""
    parts = split_seed(seed, 6) if seed is not None else (None,) * 6

    def numbered(part):
        pairs = split_seed(part, 16) if part is not None else (None,) * 16
        return list(zip(pairs[::2], pairs[1::2], strict=True))

    def fl(x, key):
        return lp.round(x.double(), precision.elementwise, seed=key).float()

    scores, to_qk = product(q, k.mT, precision, parts[0])
    multiply, leave_t = numbered(parts[1])[:2]
    # Some products are so near a tie that float64 does not tell.
    t = lp.mul(scores, scale, precision.elementwise, seed=leave_t[0])
    u = t
    numbers = mask is not None and mask.dtype != torch.bool
    if numbers:
        enter_t, enter_mask, copy_mask, leave_u = numbered(parts[2])[:4]
        u = fl(t.double() + mask.double(), leave_u[0])
    elif mask is not None:
        u = t.masked_fill(~mask, -math.inf)
    enter_u, sum_e, copy_s, leave_p = numbered(parts[3])[:4]
    e = (u.double() - u.double().amax(-1, keepdim=True)).exp()
    s = sums(e, precision.accumulator, sum_e[0])
    weights = fl(e / s, leave_p[0])
    y, to_pv = product(weights, v, precision, parts[5])

    (g,) = incoming([y])
    dp, dv = to_pv(g)
    g = fl(dp, leave_p[1]).double()
    backward = precision.backward_accumulator
    inner = sums(-g * (e / s) / s, backward, copy_s[1])
    du = fl((g / s + inner) * e, enter_u[1])
    result = [y]
    if numbers:
        g = fl(du, leave_u[1])
        dt = fl(g, enter_t[1])
        terms = g.double().flatten(0, 1).permute(1, 2, 0)  # [L, S, N H]
        dmask = sums(terms, backward, copy_mask[1])[..., 0]
        result.append(fl(dmask, enter_mask[1]))
    else:
        dt = du if mask is None else du.masked_fill(~mask, 0)
    g = fl(dt, leave_t[1])
    dq, dk = to_qk(fl(g.double() * scale, multiply[1]))
    result[1:1] = [dq, dk.mT, dv]
    return result


MASKS = {
    "none": None,
    "numbers": (3, 5),
    "truth": torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool(),
}


@pytest.mark.parametrize("precision", [LOW, RANDOM], ids=["rne", "sr"])
@pytest.mark.parametrize("mask", MASKS)
def test_it_is_its_steps(mask, precision):
    leaves = leaves_of(Q, K, V)
    mask = MASKS[mask]
    if isinstance(mask, tuple):
        mask = leaf(*mask)
        leaves.append(mask)
    seed = torch.tensor(7)
    ours = everything(
        lambda q, k, v, *rest: attention(
            q,
            k,
            v,
            rest[0] if rest else mask,
            scale=0.3,
            precision=precision,
            seed=seed,
        ),
        leaves,
    )
    with torch.no_grad():
        stochastic = precision is RANDOM
        wanted = expected(
            *leaves[:3], mask, 0.3, precision, seed if stochastic else None
        )
    assert_all_equal(ours, wanted)


OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.7},
    "causal": {"is_causal": True},
    "truth": {"attn_mask": MASKS["truth"]},
    "numbers": {"attn_mask": torch.randn(2, 1, 3, 5).double()},
    "nothing seen": {"attn_mask": torch.tensor([1, 0, 1]).bool()[:, None].expand(3, 5)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_wide_formats_are_nearly_float64(options):
    leaves = leaves_of(Q, K, V, dtype=torch.float64)
    ours = everything(lambda *x: attention(*x, precision=WIDE, **options), leaves)
    theirs = everything(lambda *x: torchs_attention(*x, **options), leaves)
    assert_all_close(ours, theirs)


@pytest.mark.parametrize("precision", [WIDE, Precision(accumulator="e8m50")])
@pytest.mark.parametrize("heads", [1, 2])
def test_grouped_queries(heads, precision):
    leaves = leaves_of((2, 4, 3, 4), (2, heads, 5, 4), (2, heads, 5, 3))
    leaves = [x.detach().double().requires_grad_() for x in leaves]
    ours = everything(
        lambda *x: attention(*x, enable_gqa=True, precision=precision), leaves
    )
    theirs = everything(lambda *x: torchs_attention(*x, enable_gqa=True), leaves)
    assert_all_close(ours, theirs)


def test_groups_are_one_sum():
    # Four queries add 256, 1, 1 and 1 to the gradient of a value, in this order.
    q, k = torch.zeros(4, 1, 1), torch.zeros(1, 1, 1)
    v = torch.ones(1, 1, 1, requires_grad=True)
    y = attention(q, k, v, enable_gqa=True, precision=Precision(accumulator="bfloat16"))
    g = torch.tensor([256.0, 1.0, 1.0, 1.0]).reshape(4, 1, 1)
    assert torch.autograd.grad(y, v, g)[0].item() == 256.0


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_identity_precision_is_torchs(options):
    options = {
        name: x.float() if name == "attn_mask" and x.dtype == torch.float64 else x
        for name, x in options.items()
    }
    leaves = leaves_of(Q, K, V)
    assert_all_equal(
        everything(lambda *x: attention(*x, precision=Precision(), **options), leaves),
        everything(lambda *x: torchs_attention(*x, **options), leaves),
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_without_elementwise_torch_computes_between_the_products(options):
    precision = Precision(accumulator="e7m6", grad_accumulator="e7m9", **ROUNDINGS)
    mask = options.get("attn_mask")
    if mask is not None and mask.dtype == torch.float64:
        options = {"attn_mask": mask.float()}
        mask = mask.float()
    leaves = leaves_of(Q, K, V)

    def steps(q, k, v):
        scores = functional.matmul(q, k.mT, precision=precision)
        scores = scores * options.get("scale", 0.5)
        if options.get("is_causal"):
            seen = torch.ones(3, 5).tril().bool()
            scores = scores.masked_fill(~seen, -torch.inf)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif mask is not None:
            scores = scores + mask
        weights = torch.ops.aten._safe_softmax(scores, -1)
        return functional.matmul(weights, v, precision=precision)

    assert_all_equal(
        everything(lambda *x: attention(*x, precision=precision, **options), leaves),
        everything(steps, leaves),
    )


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_dropout_has_torchs_zeros(probability):
    q, v = torch.zeros(1, 8, 4), torch.eye(8)[None]
    torch.manual_seed(3)
    weights = attention(q, q, v, None, probability, precision=WIDE_32)
    torch.manual_seed(3)
    wanted = torch.dropout(torch.full((1, 8, 8), 0.125), probability, True)
    torch.testing.assert_close(weights, wanted, rtol=1e-6, atol=0)
    low = Precision(elementwise="e4m3fn")
    torch.manual_seed(3)
    weights = attention(q, q, v, None, probability, precision=low)
    assert_bit_equal(weights, lp.round(wanted, "e4m3fn"))


WIDE_32 = Precision(elementwise="binary32")


def test_nothing_is_drawn_without_stochastic_roundings():
    leaves = leaves_of(Q, K, V)
    state = torch.get_rng_state()
    attention(*leaves, precision=LOW)
    assert torch.equal(torch.get_rng_state(), state)


ONES = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((ONES.half(), ONES, ONES), {}, TypeError, "half carrier"),
        ((ONES, ONES.double(), ONES), {}, TypeError, "key and query must have"),
        ((ONES, ONES[..., :2], ONES), {}, ValueError, r"must be \[..., L, E\]"),
        ((ONES, ONES[:, :2], ONES), {}, ValueError, r"must be \[..., L, E\]"),
        ((ONES, ONES, ONES, None, 1.5), {}, ValueError, "dropout_p must be from 0"),
        (
            (ONES, ONES[:1].expand(3, 3, 4), ONES),
            {"enable_gqa": True},
            ValueError,
            "enable_gqa needs",
        ),
        ((ONES, ONES, ONES, ONES.double()), {}, TypeError, "attn_mask and query"),
    ],
)
def test_refusals(arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        attention(*arguments, precision=LOW, **options)


@ignore_dynamo
@pytest.mark.parametrize("elementwise", [None, "e7m5"])
def test_compiles_without_graph_breaks(elementwise):
    precision = Precision(elementwise=elementwise, accumulator="e7m6", **ROUNDINGS)
    leaves = leaves_of(Q, K, V)

    def run(q, k, v):
        return attention(q, k, v, is_causal=True, precision=precision)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_all_equal(everything(compiled, leaves), everything(run, leaves))


def test_per_sample_gradients_by_torch_func():
    q, k, v = torch.randn(3, 2, 3, 4), torch.randn(2, 5, 4), torch.randn(3, 2, 5, 4)
    weights = torch.randn(2, 3, 4)

    def loss(q, k, v):
        y = attention(q, k, v, torch.ones(3, 5), is_causal=True, precision=LOW)
        return (y * weights).sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2))
    actual = torch.func.vmap(gradient, in_dims=(0, None, 0))(q, k, v)
    for i in range(3):
        assert_all_equal([part[i] for part in actual], gradient(q[i], k, v[i]))
