"""Multi-head attention: linear layers and attention; torch is the judge."""

import math

import pytest
import torch
from gradients import assert_all_close, assert_all_equal, incoming
from layer_roundings import ROUNDINGS, STOCHASTIC, leaf

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.precision import Precision
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal

ours = functional.multi_head_attention_forward
torchs = torch.nn.functional.multi_head_attention_forward
LOW = Precision(
    elementwise="e7m5",
    accumulator=Accumulator("e7m6", product="e6m4"),
    grad_accumulator="e7m7",
    **ROUNDINGS,
)
RANDOM = Precision(
    elementwise=Rounding("e7m5", "stochastic"),
    accumulator=Rounding("e7m6", "stochastic"),
    **STOCHASTIC,
)
WIDE = Precision(elementwise="e11m50", accumulator="e11m50")
L, S, N, E, H = 3, 4, 2, 6, 2


def parameters(dtype, separate=None, biases=True, extra=False):
    """Leaves by torch's names."""

    def make(*shape):
        return (0.5 * torch.randn(*shape, dtype=dtype)).requires_grad_()

    result = {"out_proj_weight": make(E, E)}
    if separate is None:
        result["in_proj_weight"] = make(3 * E, E)
    else:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        sizes = (E, *separate)
        result |= {a: make(E, n) for a, n in zip(names, sizes, strict=True)}
    if biases:
        result |= {"in_proj_bias": make(3 * E), "out_proj_bias": make(E)}
    if extra:
        result |= {"bias_k": make(1, 1, E), "bias_v": make(1, 1, E)}
    return result


def call(function, inputs, leaves, options, **keywords):
    missing = ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "out_proj_bias")
    return function(
        *inputs,
        embed_dim_to_check=E,
        num_heads=H,
        **{name: None for name in missing if name not in leaves},
        **leaves,
        **({"add_zero_attn": False, "dropout_p": 0.0} | options),
        use_separate_proj_weight="q_proj_weight" in leaves,
        **keywords,
    )


def everything(function, inputs, leaves, options, **keywords):
    y, weights = call(function, inputs, leaves, options, **keywords)
    results = [y] if weights is None else [y, weights]
    gs = incoming(results)
    unique = {id(x): x for x in (*inputs, *leaves.values())}
    gradients = torch.autograd.grad(results, list(unique.values()), gs)
    return [*(x.detach() for x in results), *gradients]


PADDING = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0]]).bool()
SEEN = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]).bool()


def inputs_for(kind, dtype):
    q = leaf(L, N, E, dtype=dtype)
    if kind == "self":
        return q, q, q
    k = leaf(S, N, E, dtype=dtype)
    return (q, k, k) if kind == "cross" else (q, k, leaf(S, N, E, dtype=dtype))


# kind of inputs, arguments of `parameters`, options
CASES = {
    "self": ("self", {}, {}),
    "self without weights": ("self", {}, {"need_weights": False}),
    "cross": ("cross", {}, {"average_attn_weights": False}),
    "three": ("three", {"biases": False}, {}),
    "extra key": ("cross", {"extra": True}, {"attn_mask": SEEN}),
    "zeros": ("cross", {}, {"add_zero_attn": True, "key_padding_mask": PADDING}),
    "both extra": (
        "cross",
        {"extra": True},
        {"add_zero_attn": True, "key_padding_mask": PADDING, "attn_mask": SEEN},
    ),
    "numbers": (
        "cross",
        {},
        {"attn_mask": torch.arange(48).reshape(4, 3, 4) / 16, "training": False},
    ),
    "causal": (
        "self",
        {},
        {
            "attn_mask": torch.ones(3, 3).triu(1).bool(),
            "is_causal": True,
            "need_weights": False,
        },
    ),
}


def options_for(case, dtype):
    options = CASES[case][2]
    return {
        name: x.to(dtype)
        if isinstance(x, torch.Tensor) and x.dtype != torch.bool
        else x
        for name, x in options.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_wide_formats_are_nearly_float64(case):
    kind, given, _ = CASES[case]
    inputs = inputs_for(kind, torch.float64)
    leaves = parameters(torch.float64, **given)
    options = options_for(case, torch.float64)
    actual = everything(ours, inputs, leaves, options, precision=WIDE)
    wanted = everything(torchs, inputs, leaves, options)
    assert_all_close(actual, wanted)


@pytest.mark.parametrize("case", CASES)
def test_identity_precision_is_torchs(case):
    kind, given, _ = CASES[case]
    inputs = inputs_for(kind, torch.float32)
    leaves = parameters(torch.float32, **given)
    options = options_for(case, torch.float32)
    actual = everything(ours, inputs, leaves, options, precision=Precision())
    wanted = everything(torchs, inputs, leaves, options)
    assert_all_equal(actual, wanted)


@pytest.mark.parametrize("need_weights", [True, False])
def test_separate_weights(need_weights):
    inputs = (
        leaf(L, N, E, dtype=torch.float64),
        leaf(S, N, 5, dtype=torch.float64),
        leaf(S, N, 3, dtype=torch.float64),
    )
    leaves = parameters(torch.float64, separate=(5, 3))
    options = {"need_weights": need_weights}
    actual = everything(ours, inputs, leaves, options, precision=WIDE)
    wanted = everything(torchs, inputs, leaves, options)
    assert_all_close(actual, wanted)


def test_static_keys_and_values():
    inputs = inputs_for("cross", torch.float64)
    leaves = parameters(torch.float64)
    options = {
        "static_k": torch.randn(N * H, 5, E // H, dtype=torch.float64),
        "static_v": torch.randn(N * H, 5, E // H, dtype=torch.float64),
    }
    y, weights = call(ours, inputs, leaves, options, precision=WIDE)
    expected, expected_weights = call(torchs, inputs, leaves, options)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-11, atol=1e-12)


def test_one_example_needs_no_batch_dimension():
    leaves = parameters(torch.float32)
    x = leaf(L, E)
    alone = everything(ours, (x, x, x), leaves, {}, precision=LOW)
    y, weights = call(ours, (x[:, None],) * 3, leaves, {}, precision=LOW)
    assert_bit_equal(alone[0], y[:, 0].detach())
    assert_bit_equal(alone[1], weights[0].detach())


@pytest.mark.parametrize("precision", [LOW, RANDOM], ids=["rne", "sr"])
def test_it_is_layers_and_attention(precision):
    leaves = parameters(torch.float32)
    q = leaf(L, N, E)
    seeds = split_seed(torch.tensor(7), 8)

    def composed(x, w, b, w_out, b_out):
        y = functional.linear(x, w, b, precision=precision, seed=seeds[0])
        q, k, v = (
            part.reshape(L, N, H, E // H).permute(1, 2, 0, 3) for part in y.chunk(3, -1)
        )
        parts = split_seed(seeds[5], 6)
        given = {"precision": precision}
        scores = functional.matmul(q, k.mT, seed=parts[0], **given)
        scale = 1 / math.sqrt(E // H)
        scores = functional.pointwise(torch.mul, scores, scale, seed=parts[1], **given)
        weights = functional.softmax(scores, -1, seed=parts[3], **given)
        heads = functional.matmul(weights, v, seed=parts[5], **given)
        rows = heads.permute(2, 0, 1, 3).reshape(L, N, E)
        out = functional.linear(rows, w_out, b_out, seed=seeds[6], **given)
        return out, functional.mean(weights, 1, seed=seeds[7], **given)

    names = ("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias")
    operands = [q, *(leaves[name] for name in names)]
    wanted = composed(*operands)
    actual = call(ours, (q, q, q), leaves, {}, precision=precision, seed=7)
    gs = [torch.randn(x.shape) for x in wanted]
    for left, right in zip(
        (*actual, *torch.autograd.grad(actual, operands, gs)),
        (*wanted, *torch.autograd.grad(wanted, operands, gs)),
        strict=True,
    ):
        assert_bit_equal(left.detach(), right.detach())


def test_the_result_does_not_depend_on_the_weights_being_asked_for():
    leaves, x = parameters(torch.float32), leaf(L, N, E)
    y, _ = call(ours, (x, x, x), leaves, {}, precision=LOW)
    quiet, nothing = call(
        ours, (x, x, x), leaves, {"need_weights": False}, precision=LOW
    )
    assert nothing is None
    assert_bit_equal(y.detach(), quiet.detach())


@pytest.mark.parametrize("elementwise", ["e7m5", None])
def test_extra_keys_are_used_as_they_are_and_their_gradients_are_sums(elementwise):
    precision = Precision(
        elementwise=elementwise, grad_weight="e8m3", accumulator="e7m6"
    )
    leaves = parameters(torch.float32, extra=True)
    inputs = inputs_for("cross", torch.float32)
    *_, bias_k, bias_v = everything(ours, inputs, leaves, {}, precision=precision)
    for gradient in (bias_k, bias_v):
        assert_bit_equal(lp.round(gradient, "e8m3"), gradient)
    copies = functional._multi_head._for_every_example(
        leaves["bias_k"], 5, precision, None
    )
    assert_bit_equal(copies.detach(), leaves["bias_k"].detach().expand(1, 5, E))
    g = torch.randn(1, 5, E)
    (gradient,) = torch.autograd.grad(copies, leaves["bias_k"], g)
    total = lp.matmul(torch.ones(1, 5), g[0], accumulator="e7m6", output="e8m3")
    assert_bit_equal(gradient, total[None])


def test_dropout_only_in_training():
    leaves, x = parameters(torch.float32), leaf(L, N, E)
    still = {"dropout_p": 0.5, "training": False}
    y, _ = call(ours, (x, x, x), leaves, still, precision=LOW)
    expected, _ = call(ours, (x, x, x), leaves, {}, precision=LOW)
    assert_bit_equal(y.detach(), expected.detach())
    _, weights = call(
        ours,
        (x, x, x),
        leaves,
        {"dropout_p": 0.5, "average_attn_weights": False},
        precision=LOW,
    )
    assert (weights == 0).any()


X = torch.ones(L, N, E)


@pytest.mark.parametrize(
    ("inputs", "options", "kind", "message"),
    [
        ((X.half(),) * 3, {}, TypeError, "half carrier"),
        ((X, X[:, :1], X), {}, ValueError, "query, key and value must be"),
        ((X[..., :4],) * 3, {}, ValueError, "embed_dim_to_check=6"),
        ((X,) * 3, {"attn_mask": SEEN}, ValueError, "attn_mask must have one of"),
        ((X,) * 3, {"key_padding_mask": SEEN}, ValueError, "must have shape"),
        ((X,) * 3, {"is_causal": True}, ValueError, "which is missing"),
        ((X,) * 3, {"static_k": X}, ValueError, r"static_k must be \[4, S, 3\]"),
        (
            (X,) * 3,
            {"attn_mask": torch.ones(3, 3).int()},
            TypeError,
            "attn_mask must be bool or floating point",
        ),
    ],
)
def test_refusals(inputs, options, kind, message):
    with pytest.raises(kind, match=message):
        call(ours, inputs, parameters(torch.float32), options, precision=LOW)


def test_refusals_of_parameters():
    leaves = parameters(torch.float32)
    with pytest.raises(ValueError, match="bias_k and bias_v must both"):
        call(
            ours, (X,) * 3, leaves | {"bias_k": torch.ones(1, 1, E)}, {}, precision=LOW
        )
    del leaves["in_proj_weight"]
    with pytest.raises(ValueError, match="False in_proj_weight"):
        call(ours, (X,) * 3, leaves, {}, precision=LOW)
