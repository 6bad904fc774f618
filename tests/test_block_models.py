"""Products with block formats: each GEMM's operands in blocks along its own sum."""

import copy
import json
import pickle

import pytest
import torch
from layer_roundings import ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, BlockFormat, BlockRounding, Precision, functional
from lowprec.functional import Seeds
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal

SMALL = BlockFormat("e2m1fn", "e8m0", 4, "even")
TENSOR_SCALED = BlockFormat("e2m1fn", "e4m3fn", 4, "amax", "binary32")
PRECISIONS = {
    "mx": Precision(input="mxfp8_e4m3", weight="mxfp8_e4m3", grad_output="mxfp8_e5m2"),
    "small": Precision(
        input=SMALL,
        weight=BlockRounding(SMALL, "toward_zero"),
        grad_output=BlockRounding(SMALL, "stochastic"),
        output="bfloat16",
        grad_input="e6m8",
        grad_weight="e8m3",
        accumulator="e8m15",
        grad_accumulator=Accumulator("e8m10", order="pairwise"),
    ),
    "nv": Precision(input="nvfp4", weight="nvfp4", grad_output="nvfp4"),
    "two levels": Precision(
        input=BlockRounding(TENSOR_SCALED, "stochastic"),
        weight=BlockRounding(TENSOR_SCALED, "stochastic"),
        grad_output=BlockRounding(TENSOR_SCALED, "stochastic"),
        accumulator="e8m15",
    ),
    "mixed": Precision(
        input="e4m3fn", weight=SMALL, grad_output=lp.Rounding("e5m2", "stochastic")
    ),
}
each_precision = pytest.mark.parametrize(
    "precision", PRECISIONS.values(), ids=PRECISIONS
)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def seed_or_none(rounding, seed):
    stochastic = getattr(rounding, "stochastic", False)
    return seed if stochastic else None


def operand(x, rounding, axis, seed):
    """Values without the tensor scale, and that scale; from the public codec."""
    seed = seed_or_none(rounding, seed)
    if rounding is None:
        return x, None
    if not isinstance(rounding, BlockRounding):
        return lp.round(x, rounding, seed=seed), None
    codes = lp.encode_blocks(x, rounding, axis, seed=seed)
    if codes.tensor_scale is None:
        return lp.round(x, rounding, axis=axis, seed=seed), None
    bare = rounding.format.replace(tensor_scale=None)
    plain = codes._replace(tensor_scale=None)
    return lp.decode_blocks(plain, bare, axis, dtype=x.dtype), codes.tensor_scale


def again(rounding, seed):
    """The seed of an operand's second rounding; element-wise it is the first one."""
    if isinstance(rounding, BlockRounding):
        return split_seed(seed, 1)[0]
    return seed


def rescaled(total, *scales):
    scales = [scale for scale in scales if scale is not None]
    if not scales:
        return total
    joint = scales[0] * scales[1] if len(scales) == 2 else scales[0]
    if total.dtype == torch.float32:
        joint = lp.round(joint, "binary32")
    return total * joint.to(total.dtype)


def product(a, b, accumulator, seed):
    total = lp.matmul(a[0], b[0], accumulator=accumulator, seed=seed)
    return rescaled(total, a[1], b[1])


def transposed(pair):
    return pair[0].mT, pair[1]


def expected_linear(x, w, g, precision, seed):
    """What Precision's docstring says, from public functions."""
    parts = Seeds(*split_seed(torch.tensor(seed), len(Seeds._fields)))
    p, backward = precision, precision.backward_accumulator
    left, right = (
        operand(x, p.input, 1, parts.input),
        operand(w, p.weight, 1, parts.weight),
    )
    y = product(left, transposed(right), p.accumulator, seed)
    first = operand(g, p.grad_output, 1, parts.grad_output)
    weight = operand(w, p.weight, 0, again(p.weight, parts.weight))
    dx = product(first, weight, backward, parts.grad_input_sum)
    other = operand(g, p.grad_output, 0, again(p.grad_output, parts.grad_output))
    inputs = operand(x, p.input, 0, again(p.input, parts.input))
    dw = product(transposed(other), inputs, backward, parts.grad_weight_sum)

    def result(total, rounding, part):
        return total if rounding is None else lp.round(total, rounding, seed=part)

    return (
        result(y, p.output, parts.output),
        result(dx, p.grad_input, parts.grad_input),
        result(dw, p.grad_weight, parts.grad_weight),
    )


@each_dtype
@each_precision
def test_linear_is_its_composition(precision, dtype):
    x, w = leaf(37, 41, dtype=dtype), leaf(35, 41, dtype=dtype)
    g = torch.randn(37, 35, dtype=dtype)
    y = functional.linear(x, w, precision=precision, seed=7)
    gradients = torch.autograd.grad(y, (x, w), g)
    with torch.no_grad():
        expected = expected_linear(x, w, g, precision, 7)
    for actual, wanted in zip((y, *gradients), expected, strict=True):
        assert_bit_equal(actual.detach(), wanted)


@each_precision
def test_bias_is_added_to_the_scaled_sum_and_its_gradient_is_not_in_blocks(precision):
    x, w, b = leaf(6, 9), leaf(5, 9), leaf(5)
    g = torch.randn(6, 5)
    without = functional.linear(x, w, precision=precision, seed=7)
    y = functional.linear(x, w, b, precision=precision, seed=7)
    (db,) = torch.autograd.grad(y, b, g)
    if precision.accumulator is None:
        assert_bit_equal(y.detach(), (without + b).detach())
    if isinstance(precision.grad_output, BlockRounding):
        ones = torch.ones(1, 6)
        parts = Seeds(*split_seed(torch.tensor(7), len(Seeds._fields)))
        total = lp.matmul(
            ones,
            g,
            accumulator=precision.backward_accumulator,
            seed=parts.grad_bias_sum,
        )
        if precision.backward_accumulator is None:
            total = g.sum(0, keepdim=True)
        if precision.grad_weight is not None:
            total = lp.round(total, precision.grad_weight)
        assert_bit_equal(db, total[0])


@pytest.mark.parametrize("name", ["mx", "nv"])
def test_matmul_with_batches_is_linear(name):
    precision = PRECISIONS[name]
    x, w = leaf(3, 7, 10), leaf(6, 10)
    g = torch.randn(3, 7, 6)
    y = functional.linear(x, w, precision=precision, seed=5)
    wanted = torch.autograd.grad(y, (x, w), g)
    z = functional.matmul(x, w.mT, precision=precision, seed=5)
    assert_bit_equal(z.detach(), y.detach())
    for actual, other in zip(torch.autograd.grad(z, (x, w), g), wanted, strict=True):
        assert_bit_equal(actual, other)


def test_matmul_batches_have_blocks_of_their_own():
    precision = Precision(input="mxfp4", weight="mxfp4", grad_output="mxfp4")
    a, b, g = leaf(4, 5, 40), leaf(4, 40, 36), torch.randn(4, 5, 36)
    y = functional.matmul(a, b, precision=precision)
    da, db = torch.autograd.grad(y, (a, b), g)

    def fl(x, axis):
        return lp.round(x.detach(), "mxfp4", axis=axis)

    assert_bit_equal(y.detach(), fl(a, 2) @ fl(b, 1))
    assert_bit_equal(da, fl(g, 2) @ fl(b, 2).mT)
    assert_bit_equal(db, fl(a, 1).mT @ fl(g, 1))


def by_group(x, rounding, axis, groups):
    apart = x.unflatten(axis, (groups, -1))
    return lp.round(apart, rounding, axis=axis + 1).flatten(axis, axis + 1)


@pytest.mark.parametrize("accumulator", [None, "e8m15"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_has_blocks_of_channels_and_of_samples(groups, accumulator):
    precision = Precision(
        input=SMALL, weight=SMALL, grad_output="mxfp8_e5m2", accumulator=accumulator
    )
    plain = Precision(accumulator=accumulator)
    shapes = {"stride": 2, "padding": 1, "groups": groups}
    x, w, b = leaf(6, 6, 7, 7), leaf(10, 6 // groups, 3, 3), leaf(10)
    y = functional.conv2d(x, w, b, precision=precision, **shapes)
    g = torch.randn_like(y)
    actual = torch.autograd.grad(y, (x, w, b), g)
    with torch.no_grad():
        x1, w1 = by_group(x, SMALL, 1, groups), lp.round(w, SMALL, axis=1)
        w0 = by_group(w, SMALL, 0, groups)
        x0 = lp.round(x, SMALL, axis=0)
        g1 = by_group(g, "mxfp8_e5m2", 1, groups)
        g0 = lp.round(g, "mxfp8_e5m2", axis=0)
    if accumulator is None:
        wanted = torch.nn.functional.conv2d(x1, w1, None, **shapes)
        assert_bit_equal(y.detach(), wanted + b.detach()[:, None, None])
    else:
        wanted = functional.conv2d(x1, w1, b.detach(), precision=plain, **shapes)
        assert_bit_equal(y.detach(), wanted)

    def gradient(inputs, weights, gradients, which):
        leaves = [inputs.clone().requires_grad_(), weights.clone().requires_grad_()]
        out = functional.conv2d(*leaves, precision=plain, **shapes)
        return torch.autograd.grad(out, leaves[which], gradients)[0]

    assert_bit_equal(actual[0], gradient(x, w0, g1, 0))
    assert_bit_equal(actual[1], gradient(x0, w, g0, 1))
    if accumulator is None:
        assert torch.equal(actual[2], g.movedim(1, 0).flatten(1).mT.sum(0))


@pytest.mark.parametrize("accumulator", [None, "e8m15"])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_has_blocks_of_channels_and_samples(groups, accumulator):
    precision = Precision(
        input=SMALL, weight=SMALL, grad_output="mxfp8_e5m2", accumulator=accumulator
    )
    plain = Precision(accumulator=accumulator)
    shapes = {"stride": 2, "padding": 1, "groups": groups}
    x, w, b = leaf(6, 10, 4, 4), leaf(10, 6 // groups, 3, 3), leaf(6)
    y = functional.conv_transpose2d(x, w, b, precision=precision, **shapes)
    g = torch.randn_like(y)
    actual = torch.autograd.grad(y, (x, w, b), g)
    with torch.no_grad():
        x1, w0 = by_group(x, SMALL, 1, groups), by_group(w, SMALL, 0, groups)
        w1, x0 = lp.round(w, SMALL, axis=1), lp.round(x, SMALL, axis=0)
        g1 = by_group(g, "mxfp8_e5m2", 1, groups)
        g0 = lp.round(g, "mxfp8_e5m2", axis=0)
    if accumulator is not None:
        wanted = functional.conv_transpose2d(
            x1, w0, b.detach(), precision=plain, **shapes
        )
        assert_bit_equal(y.detach(), wanted)

    def gradient(inputs, weights, gradients, which):
        leaves = [inputs.clone().requires_grad_(), weights.clone().requires_grad_()]
        out = functional.conv_transpose2d(*leaves, precision=plain, **shapes)
        return torch.autograd.grad(out, leaves[which], gradients)[0]

    assert_bit_equal(actual[0], gradient(x, w1, g1, 0))
    assert_bit_equal(actual[1], gradient(x0, w, g0, 1))
    terms = g.movedim(1, 0).flatten(1)
    if accumulator is None:
        assert torch.equal(actual[2], terms.mT.sum(0))
    else:
        ones = torch.ones(terms.shape[1])
        assert_bit_equal(actual[2], lp.matmul(terms, ones, accumulator=accumulator))


@pytest.mark.parametrize("name", ["mx", "nv"])
def test_relatives_of_matmul_are_matmul(name):
    precision = PRECISIONS[name]
    a, b, c = leaf(2, 7, 40), leaf(2, 40, 6), leaf(7, 6)
    g = torch.randn(2, 7, 6)
    y = functional.matmul(a, b, precision=precision)
    wanted = torch.autograd.grad(y, (a, b), g)
    z = functional.einsum("bik,bkj->bij", a, b, precision=precision)
    assert_bit_equal(z.detach(), y.detach())
    for actual, other in zip(torch.autograd.grad(z, (a, b), g), wanted, strict=True):
        assert_bit_equal(actual, other)
    z = functional.baddbmm(c, a, b, precision=precision)
    assert_bit_equal(z.detach(), (y + c).detach())
    *actual, added = torch.autograd.grad(z, (a, b, c), g)
    assert torch.equal(added, g.sum(0))
    for one, other in zip(actual, wanted, strict=True):
        assert_bit_equal(one, other)


def test_attention_has_blocks_along_heads_and_keys():
    precision = PRECISIONS["mx"]
    q, k, v = leaf(2, 5, 40), leaf(2, 33, 40), leaf(2, 33, 8)
    y = functional.scaled_dot_product_attention(q, k, v, precision=precision)
    scores = functional.matmul(q, k.mT, precision=precision) / 40**0.5
    wanted = functional.matmul(scores.softmax(-1), v, precision=precision)
    assert torch.allclose(
        y, wanted, atol=0.1
    )  # a score next to a tie may go either way
    for gradient in torch.autograd.grad(y.sum(), (q, k, v)):
        assert gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_are_their_linear_steps():
    fine = BlockFormat("e4m7", "e8m0", 8)
    precision = Precision(input=fine, weight=fine, grad_output=fine)
    torch.manual_seed(0)
    layer = torch.nn.LSTM(40, 12, proj_size=5)
    x = torch.randn(6, 3, 40, requires_grad=True)
    g = torch.randn(6, 3, 5)
    wanted = torch.autograd.grad(layer(x)[0], (x, *layer.parameters()), g)
    with lp.emulate(precision):
        y, _ = layer(x)
    actual = torch.autograd.grad(y, (x, *layer.parameters()), g)
    for one, other in zip(actual, wanted, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()
    h, c = torch.zeros(3, 5), torch.zeros(3, 12)
    w_ih, w_hh, b_ih, b_hh, w_hr = layer.parameters()
    with torch.no_grad():
        for step, result in zip(x, y, strict=True):
            own = functional.linear(step, w_ih, b_ih, precision=precision)
            recurrent = functional.linear(h, w_hh, b_hh, precision=precision)
            i, f, n, o = (own + recurrent).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * n.tanh()
            h = functional.linear(o.sigmoid() * c.tanh(), w_hr, precision=precision)
            assert torch.allclose(result, h, rtol=1e-5, atol=1e-6)


def test_gradient_of_a_recurrent_weight_has_blocks_of_steps():
    precision = Precision(input=SMALL, weight=SMALL, grad_output=SMALL)
    torch.manual_seed(0)
    layer = torch.nn.RNN(8, 6, nonlinearity="relu", bias=False)
    x, g = torch.randn(5, 3, 8), torch.randn(5, 3, 6)
    with lp.emulate(precision):
        y, _ = layer(x)
    (actual,) = torch.autograd.grad(y, layer.weight_hh_l0, g)
    h, steps, states = torch.zeros(3, 6), [], []
    for step in x:
        states.append(h.detach())
        own = functional.linear(step, layer.weight_ih_l0, precision=precision)
        steps.append(functional.linear(h, layer.weight_hh_l0, precision=precision))
        steps[-1].retain_grad()
        h = (own + steps[-1]).relu()
        states.append(h)
    torch.autograd.backward(states[1::2], list(g))
    incoming = lp.round(torch.cat([step.grad for step in steps]), SMALL, axis=0)
    before = lp.round(torch.cat(states[0::2]), SMALL, axis=0)
    assert torch.allclose(actual, incoming.mT @ before, rtol=1e-5, atol=1e-6)


def test_norms_round_parameters_elementwise():
    precision = Precision(weight="mxfp8", elementwise="bfloat16")
    x, gamma, beta = leaf(3, 8), leaf(8), leaf(8)
    y = functional.layer_norm(x, (8,), gamma, beta, precision=precision)
    plain = Precision(weight="bfloat16", elementwise="bfloat16")
    wanted = functional.layer_norm(x, (8,), gamma, beta, precision=plain)
    assert_bit_equal(y.detach(), wanted.detach())


@pytest.mark.parametrize("dims", [1, 3])
def test_every_convolution_takes_block_formats(dims):
    function = getattr(functional, f"conv{dims}d")
    x, w = leaf(2, 5, *[4] * dims), leaf(3, 5, *[2] * dims)
    precision = Precision(input="nvfp4", weight="nvfp4", grad_output="nvfp4")
    y = function(x, w, precision=precision)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert w.grad.shape == w.shape


def test_operands_keep_their_carrier_values_for_backward():
    # Rounded along K the two rows of the weight vanish beside 448; along N they do not.
    w = torch.tensor([[448.0 * 2**20, 1.0], [448.0 * 2**20, 1.0]], requires_grad=True)
    precision = Precision(weight=BlockFormat("e4m3fn", "e8m0", 2))
    x = torch.ones(1, 2, requires_grad=True)
    y = functional.linear(x, w, precision=precision)
    assert y.tolist() == [[448.0 * 2**20] * 2]
    y.sum().backward()
    assert x.grad.tolist() == [[448.0 * 2**21, 2.0]]


def test_accumulator_sees_elements_times_block_scales_only():
    # With the tensor scales inside, 2^-80 would vanish below 2^-62.
    x = torch.full((1, 16), 2.0**-40)
    accumulator = lp.Format(precision=24, emax=40)
    precision = Precision(input="nvfp4", weight="nvfp4", accumulator=accumulator)
    y = functional.linear(x, x, precision=precision)
    # 2^-40 / 2688 is not in binary32: that, the scales' product and the sum round.
    assert y.item() / (16 * 2.0**-80) == pytest.approx(1, rel=4 * 2.0**-24)


@ignore_dynamo
@each_precision
def test_seed_reproduces_and_torch_seeds_it(precision):
    x, w = leaf(5, 40), leaf(6, 40)

    def run(**seeds):
        y = functional.linear(x, w, precision=precision, **seeds)
        return [y.detach(), *torch.autograd.grad(y.sum(), (x, w))]

    for one, two in zip(run(seed=3), run(seed=3), strict=True):
        assert_bit_equal(one, two)
    torch.manual_seed(0)
    first = run()
    torch.manual_seed(0)
    for one, two in zip(first, run(), strict=True):
        assert_bit_equal(one, two)


@ignore_dynamo
@pytest.mark.parametrize("name", ["mx", "nv"])
def test_vmap_is_a_loop(name):
    precision = PRECISIONS[name]
    x, w = torch.randn(3, 5, 40), torch.randn(3, 6, 40)

    def loss(x, w):
        return functional.linear(x, w, precision=precision).square().sum()

    mapped = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(x, w)
    loop = [
        torch.func.grad(loss, argnums=(0, 1))(a, b) for a, b in zip(x, w, strict=True)
    ]
    for actual, rows in zip(mapped, zip(*loop, strict=True), strict=True):
        assert_bit_equal(actual, torch.stack(rows))


@pytest.mark.slow
@ignore_dynamo
def test_compiles_in_one_graph():
    precision = PRECISIONS["nv"]
    x, w = leaf(5, 40), leaf(6, 40)

    def function(x, w):
        return functional.linear(x, w, precision=precision)

    compiled = torch.compile(function, fullgraph=True)
    results = []
    for run in (function, compiled):
        y = run(x, w)
        results.append([y.detach(), *torch.autograd.grad(y.sum(), (x, w))])
    for one, two in zip(*results, strict=True):
        assert_bit_equal(one, two)


def test_emulate_and_convert_are_equal():
    precision = PRECISIONS["mx"]
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 5)
    )
    x = torch.randn(40, 3, 6, 6)
    with lp.emulate(precision):
        y = model(x)
    y.square().sum().backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    converted = lp.nn.convert_(copy.deepcopy(model), precision)
    converted.zero_grad()
    z = converted(x)
    z.square().sum().backward()
    assert_bit_equal(z.detach(), y.detach())
    for parameter, gradient in zip(converted.parameters(), wanted, strict=True):
        assert_bit_equal(parameter.grad, gradient)


@each_precision
def test_precisions_go_to_json_and_back(precision):
    assert Precision.from_json(json.loads(json.dumps(precision.to_json()))) == precision
    names = {
        name: getattr(lp, name)
        for name in (
            "Accumulator",
            "BlockFormat",
            "BlockRounding",
            "Precision",
            "Rounding",
            "SharedExponent",
        )
    }
    assert eval(repr(precision), names) == precision
    assert pickle.loads(pickle.dumps(precision)) == precision


def test_json_of_other_block_formats():
    formats = [
        BlockFormat.fixed_point(5, 7, exponent_bits=5),
        lp.block_format("mxint8").replace(rule="ceil"),
        TENSOR_SCALED,
        BlockFormat("e4m3fn", "e5m2", 8),
    ]
    for format in formats:
        for rounding in (BlockRounding(format), BlockRounding(format, "to_odd")):
            precision = Precision(weight=rounding)
            text = json.dumps(precision.to_json())
            assert Precision.from_json(json.loads(text)) == precision
    assert Precision(input="mxfp8").to_json() == {"input": "mxfp8_e4m3"}
    spelled = Precision(input=BlockRounding("mxfp8_e4m3"))
    assert Precision(input=lp.block_format("mxfp8_e4m3")) == spelled


@pytest.mark.parametrize(
    "field", ["output", "grad_input", "grad_weight", "elementwise", "accumulator"]
)
def test_results_and_sums_have_no_block_format(field):
    with pytest.raises(ValueError, match=f"{field}.*blocks run along an axis"):
        Precision(**{field: "mxfp8_e4m3"})
    with pytest.raises(TypeError, match=field):
        Precision(**{field: BlockRounding("mxfp8_e4m3")})


def test_parameters_that_are_no_factors_follow_elementwise():
    blocks = Precision(weight="mxfp8", elementwise="bfloat16")
    assert blocks.blocked
    assert blocks.parameter == lp.Rounding("bfloat16")
    plain = Precision(weight="e4m3fn", elementwise="bfloat16")
    assert not plain.blocked
    assert plain.parameter == lp.Rounding("e4m3fn")


def test_operations_without_a_sum_refuse_block_formats():
    from lowprec.functional._parts import rounded

    with pytest.raises(NotImplementedError, match="element by element"):
        rounded(torch.ones(2), BlockRounding("mxfp4"), None)


def test_nan_reaches_the_output_and_stays_in_its_row():
    x = torch.randn(4, 40)
    x[1, 3] = float("nan")
    y = functional.linear(x, torch.randn(3, 40), precision=PRECISIONS["nv"])
    assert y[1].isnan().all()
    assert y[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("name", ["mx", "nv"])
def test_a_small_network_learns(name):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 32, generator=generator)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)
    )
    lp.nn.convert_(model, PRECISIONS[name])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4"])
def test_presets_say_what_their_recipes_say_and_go_to_json(name):
    policy = lp.preset(name)
    precision = policy.precision_for("layers.0")
    assert precision.blocked
    assert precision.input.format.block_size == {"mxfp8": 32, "nvfp4": 16}[name]
    assert precision.grad_output.stochastic == (name == "nvfp4")
    assert lp.Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4"])
def test_presets_keep_tensors_on_the_grid(name):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(32, 48), torch.nn.LayerNorm(48), torch.nn.Linear(48, 40)
    )
    x = torch.randn(2, 20, 32, requires_grad=True)
    with lp.emulate(lp.preset(name), model=model, strict=True):
        y = model(x)
    y.backward(torch.randn_like(y))
    for tensor in (y.detach(), x.grad, *(each.grad for each in model.parameters())):
        assert_bit_equal(tensor, lp.round(tensor, "bfloat16"))
        assert tensor.abs().sum() > 0


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4"])
def test_presets_hold_a_transformer_layer(name):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dropout=0.0)
    x = torch.randn(2, 20, 32, requires_grad=True)
    with lp.emulate(lp.preset(name), model=layer, strict=True):
        y = layer(x)
    y.backward(torch.randn_like(y))
    for tensor in (y.detach(), *(each.grad for each in layer.parameters())):
        assert_bit_equal(tensor, lp.round(tensor, "bfloat16"))
