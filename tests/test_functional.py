"""linear and matmul: every GEMM against compositions and against the oracle."""

import pytest
import torch
from layer_roundings import ROUNDINGS, STOCHASTIC, ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.functional import Seeds
from lowprec.precision import Precision
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal, exact_matmul

ACCUMULATORS = [
    None,
    Accumulator("e8m15"),
    Accumulator("e6m8", product="e5m2"),
    Accumulator("e8m7", order="blocked", block_size=2),
    Accumulator(Rounding("e6m4", "toward_zero"), product="accumulator"),
    Accumulator("e8m3", order="pairwise"),
    Accumulator(Rounding("e6m4", "stochastic"), product=Rounding("e5m2", "stochastic")),
]


def plain(accumulator):
    return None if accumulator is None else accumulator.replace(product="exact")


def rounded(x, rounding, seed):
    return x if rounding is None else lp.round(x, rounding, seed=seed)


def expected_linear(x, w, b, g, precision, seed):
    """Compose what the docstring says from lp.round and lp.matmul."""
    parts = Seeds(*split_seed(torch.tensor(seed), len(Seeds._fields)))
    forward, backward = precision.accumulator, precision.backward_accumulator
    x2 = rounded(x, precision.input, parts.input)
    w2 = rounded(w, precision.weight, parts.weight)
    y = lp.matmul(x2, w2.mT, accumulator=forward, seed=seed)
    if b is not None and forward is not None:
        adder = plain(forward).replace(order="sequential", block_size=None, within=None)
        pairs = torch.stack(torch.broadcast_tensors(y, b), -1).reshape(-1, 2)
        ones = torch.ones(2, 1, dtype=x.dtype)
        total = lp.matmul(pairs, ones, accumulator=adder, seed=parts.bias)
        y = total.reshape(y.shape)
    elif b is not None:
        y = torch.nn.functional.linear(x2, w2, b)
    y = rounded(y, precision.output, parts.output)
    g2 = rounded(g, precision.grad_output, parts.grad_output)
    seeds = parts.grad_input_sum, parts.grad_weight_sum
    dx = lp.matmul(g2, w2, accumulator=backward, seed=seeds[0])
    dw = lp.matmul(g2.mT, x2, accumulator=backward, seed=seeds[1])
    if backward is None:
        db = g2.sum(0)
    else:
        ones = torch.ones(1, g.shape[0], dtype=x.dtype)
        part = parts.grad_bias_sum
        db = lp.matmul(ones, g2, accumulator=plain(backward), seed=part)[0]
    return (
        y,
        rounded(dx, precision.grad_input, parts.grad_input),
        rounded(dw, precision.grad_weight, parts.grad_weight),
        rounded(db, precision.grad_weight, parts.grad_bias),
    )


@pytest.mark.parametrize("fields", [{}, ROUNDINGS, STOCHASTIC], ids=["", "rne", "sr"])
@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_is_its_composition(accumulator, fields, dtype):
    precision = Precision(accumulator=accumulator, **fields)
    x, w, b = leaf(4, 5, dtype=dtype), leaf(3, 5, dtype=dtype), leaf(3, dtype=dtype)
    g = torch.randn(4, 3, dtype=dtype)
    y = functional.linear(x, w, b, precision=precision, seed=7)
    gradients = torch.autograd.grad(y, (x, w, b), g)
    with torch.no_grad():
        expected = expected_linear(x, w, b, g, precision, 7)
    for actual, wanted in zip((y, *gradients), expected, strict=True):
        assert_bit_equal(actual.detach(), wanted)


@pytest.mark.parametrize("accumulator", ACCUMULATORS[1:], ids=repr)
def test_linear_without_bias_is_the_oracle(accumulator):
    precision = Precision(accumulator=accumulator, grad_accumulator="e8m10")
    x, w, g = leaf(3, 4), leaf(2, 4), torch.randn(3, 2)
    y = functional.linear(x, w, precision=precision, seed=11)
    dx, dw = torch.autograd.grad(y, (x, w), g)
    with torch.no_grad():
        assert_bit_equal(y.double(), exact_matmul(x, w.mT, accumulator, seed=11))
        assert_bit_equal(dx.double(), exact_matmul(g, w, "e8m10"))
        assert_bit_equal(dw.double(), exact_matmul(g.mT, x, "e8m10"))


def test_bias_is_one_more_rounded_addition():
    # The sum is 256 and its ulp 2: adding 1 to the finished accumulator is a tie.
    x, w, b = torch.tensor([[256.0, 1.0]]), torch.ones(2, 2), torch.tensor([1.0, 3.0])
    y = functional.linear(x, w, b, precision=Precision(accumulator="bfloat16"))
    assert y.tolist() == [[256.0, 260.0]]


def test_bias_gradient_has_no_rounded_products():
    accumulator = Accumulator("e8m15", product="e2m1")
    b = torch.zeros(1, requires_grad=True)
    y = functional.linear(
        torch.ones(2, 1),
        torch.ones(1, 1),
        b,
        precision=Precision(accumulator=accumulator),
    )
    y.backward(torch.tensor([[1.125], [1.125]]))
    assert b.grad.item() == 2.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 5), (2, 3, 5), (0, 5), (2, 0, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_identity_precision_is_torch(shape, bias, dtype):
    x, w = leaf(*shape, dtype=dtype), leaf(4, 5, dtype=dtype)
    b = leaf(4, dtype=dtype) if bias else None
    leaves = (x, w, b) if bias else (x, w)
    actual = functional.linear(x, w, b, precision=Precision())
    expected = torch.nn.functional.linear(x, w, b)
    g = torch.randn_like(expected)
    assert_bit_equal(actual.detach(), expected.detach())
    pairs = zip(
        torch.autograd.grad(actual, leaves, g),
        torch.autograd.grad(expected, leaves, g),
        strict=True,
    )
    for ours, theirs in pairs:
        assert_bit_equal(ours, theirs)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3), (0, 3), (2, 0, 3)])
def test_shapes_and_batching(shape):
    precision = Precision(accumulator="e8m7", **ROUNDINGS)
    x, w, b = leaf(*shape), leaf(4, 3), leaf(4)
    y = functional.linear(x, w, b, precision=precision)
    assert y.shape == (*shape[:-1], 4)
    flat = functional.linear(x.reshape(-1, 3), w, b, precision=precision)
    assert_bit_equal(y.detach(), flat.detach().reshape(y.shape))
    g = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, w, b), g)
    theirs = torch.autograd.grad(flat, (x, w, b), g.reshape(-1, 4))
    for actual, expected in zip(ours, theirs, strict=True):
        assert_bit_equal(actual, expected)


def test_layout_of_operands_does_not_matter():
    precision = Precision(accumulator=Rounding("e8m4", "stochastic"), **STOCHASTIC)
    x, w = torch.randn(4, 6), torch.randn(3, 6)
    expected = functional.linear(x, w, precision=precision, seed=3)
    strided = functional.linear(
        x.mT.contiguous().mT, w.repeat(1, 2)[:, :6], precision=precision, seed=3
    )
    assert_bit_equal(strided, expected)


SHAPES = [
    ((2, 3), (3, 4)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((3,), (3,)),
    ((2, 2, 3), (2, 3, 4)),
    ((2, 2, 3), (3, 4)),
    ((2, 3), (2, 3, 4)),
    ((2, 1, 2, 3), (1, 3, 3, 4)),
    ((0, 2, 3), (3, 4)),
    ((2, 0), (0, 4)),
]


@pytest.mark.parametrize(("shape_a", "shape_b"), SHAPES)
def test_matmul_shapes_follow_torch(shape_a, shape_b):
    # An accumulator of 51 bits differs from float64 by less than any real mistake.
    a, b = leaf(*shape_a, dtype=torch.float64), leaf(*shape_b, dtype=torch.float64)
    precision = Precision(accumulator="e8m50")
    actual, expected = functional.matmul(a, b, precision=precision), torch.matmul(a, b)
    g = torch.randn_like(expected)
    ours = torch.autograd.grad(actual, (a, b), g)
    theirs = torch.autograd.grad(expected, (a, b), g)
    for x, y in zip((actual, *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("shape_a", "shape_b"), [SHAPES[0], SHAPES[4], SHAPES[5]])
def test_identity_matmul_is_torch(shape_a, shape_b):
    a, b = leaf(*shape_a), leaf(*shape_b)
    actual = functional.matmul(a, b, precision=Precision())
    expected = torch.matmul(a, b)
    g = torch.randn_like(expected)
    ours = torch.autograd.grad(actual, (a, b), g)
    theirs = torch.autograd.grad(expected, (a, b), g)
    for x, y in zip((actual, *ours), (expected, *theirs), strict=True):
        assert_bit_equal(x.detach(), y.detach())


def test_broadcast_batches_are_summed_by_the_accumulator():
    # Adding ones to 256 one by one stays at 256 in bfloat16; torch.sum would not.
    a = torch.tensor([[[256.0]], [[1.0]], [[1.0]]])
    b = torch.ones(1, 1, requires_grad=True)
    c = functional.matmul(a, b, precision=Precision(accumulator="bfloat16"))
    (gradient,) = torch.autograd.grad(c, b, torch.ones_like(c))
    assert gradient.item() == 256.0


def test_broadcast_gradient_is_the_folded_product():
    precision = Precision(accumulator="e8m4", **ROUNDINGS)
    a, b, g = leaf(2, 1, 2, 3), leaf(1, 3, 3, 2), torch.randn(2, 3, 2, 2)
    c = functional.matmul(a, b, precision=precision)
    da, db = torch.autograd.grad(c, (a, b), g)
    with torch.no_grad():
        a2 = lp.round(a, precision.input).expand(2, 3, 2, 3)
        b2 = lp.round(b, precision.weight).expand(2, 3, 3, 2)
        g2 = lp.round(g, precision.grad_output)
        for i in range(2):
            left = torch.cat([g2[i, j] for j in range(3)], -1)
            right = torch.cat([b2[i, j].mT for j in range(3)], 0)
            wanted = lp.matmul(left, right, accumulator="e8m4", output="e6m4")
            assert_bit_equal(da[i, 0], wanted)
        for j in range(3):
            left = torch.cat([a2[i, j].mT for i in range(2)], -1)
            right = torch.cat([g2[i, j] for i in range(2)], 0)
            wanted = lp.matmul(left, right, accumulator="e8m4", output="e8m3")
            assert_bit_equal(db[0, j], wanted)


def test_wide_formats_are_nearly_float64():
    precision = Precision(accumulator="e8m50")
    x, w, b = (leaf(*s, dtype=torch.float64) for s in ((2, 3), (2, 3), (2,)))
    assert torch.autograd.gradcheck(
        lambda *leaves: functional.linear(*leaves, precision=precision), (x, w, b)
    )


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_seeds_of_parts_do_not_depend_on_what_needs_gradients(needed):
    precision = Precision(accumulator=Rounding("e8m4", "stochastic"), **STOCHASTIC)
    leaves = [torch.randn(3, 4), torch.randn(2, 4), torch.randn(2)]
    all_need = [x.clone().requires_grad_() for x in leaves]
    y = functional.linear(*all_need, precision=precision, seed=5)
    expected = torch.autograd.grad(y.sum(), all_need)[needed]
    leaves[needed].requires_grad_()
    y = functional.linear(*leaves, precision=precision, seed=5)
    (actual,) = torch.autograd.grad(y.sum(), leaves[needed])
    assert_bit_equal(actual, expected)


def test_seeds_and_generators_reproduce():
    precision = Precision(weight=Rounding("e4m3fn", "stochastic"))
    x, w = torch.randn(3, 4), torch.randn(2, 4)

    def run(**randomness):
        return functional.linear(x, w, precision=precision, **randomness)

    assert_bit_equal(run(seed=1), run(seed=torch.tensor(1)))
    assert not torch.equal(run(seed=1), run(seed=2))
    first = run(generator=torch.Generator().manual_seed(3))
    assert_bit_equal(first, run(generator=torch.Generator().manual_seed(3)))
    torch.manual_seed(4)
    first = run()
    second = run()
    torch.manual_seed(4)
    assert_bit_equal(first, run())
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="not both"):
        run(seed=1, generator=torch.Generator())


def test_nothing_is_drawn_without_stochastic_roundings():
    state = torch.get_rng_state()
    precision = Precision(elementwise=Rounding("e4m3fn", "stochastic"), **ROUNDINGS)
    functional.linear(torch.ones(1, 2), torch.ones(1, 2), precision=precision)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_grad_gives_the_same_values():
    precision = Precision(accumulator="e8m7", **ROUNDINGS)
    x, w = leaf(2, 3), leaf(4, 3)
    with torch.no_grad():
        quiet = functional.linear(x, w, precision=precision)
    assert not quiet.requires_grad
    assert_bit_equal(quiet, functional.linear(x, w, precision=precision).detach())


def test_double_backward_is_refused():
    x, w = leaf(2, 3), leaf(4, 3)
    y = functional.linear(x, w, precision=Precision(accumulator="e8m7"))
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("accumulator", [None, "e8m7"])
def test_autocast_is_off_inside(accumulator):
    precision = Precision(accumulator=accumulator, **ROUNDINGS)
    x, w, b = leaf(2, 3), leaf(4, 3), leaf(4)
    expected = functional.linear(x, w, b, precision=precision)
    gradients = torch.autograd.grad(expected.sum(), (x, w, b))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = functional.linear(x, w, b, precision=precision)
        inside = torch.autograd.grad(actual.sum(), (x, w, b))
    assert_bit_equal(actual.detach(), expected.detach())
    for ours, theirs in zip(inside, gradients, strict=True):
        assert_bit_equal(ours, theirs)


@ignore_dynamo
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("accumulator", [None, "e8m7"])
def test_compiles_without_graph_breaks(accumulator, backend):
    precision = Precision(accumulator=accumulator, **ROUNDINGS)
    x, w, b = leaf(2, 3), leaf(4, 3), leaf(4)

    def run(x, w, b):
        return functional.linear(x, w, b, precision=precision)

    torch._dynamo.reset()
    actual = torch.compile(run, fullgraph=True, backend=backend)(x, w, b)
    expected = run(x, w, b)
    assert_bit_equal(actual.detach(), expected.detach())
    ours = torch.autograd.grad(actual.square().sum(), (x, w, b))
    theirs = torch.autograd.grad(expected.square().sum(), (x, w, b))
    for left, right in zip(ours, theirs, strict=True):
        assert_bit_equal(left, right)


@ignore_dynamo
def test_compiles_stochastic_with_a_seed():
    precision = Precision(accumulator=Rounding("e8m4", "stochastic"), **STOCHASTIC)
    x, w, seed = torch.randn(2, 3), torch.randn(4, 3), torch.tensor(9)

    def run(x, w, seed):
        return functional.linear(x, w, precision=precision, seed=seed)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_bit_equal(compiled(x, w, seed), run(x, w, seed))


def test_per_sample_gradients_by_torch_func():
    precision = Precision(accumulator="e8m4", **ROUNDINGS)
    x, w = torch.randn(3, 4), torch.randn(2, 4)

    def loss(w, x):
        return functional.linear(x, w, precision=precision).sum()

    actual = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x)
    for row, gradient in zip(x, actual, strict=True):
        assert_bit_equal(gradient, torch.func.grad(loss)(w, row))


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((ONES.half(), ONES), TypeError, "half carrier.*x.float"),
        ((ONES, ONES.double()), TypeError, "weight and input must have the same dtype"),
        ((ONES, ONES, ONES[:, 0].double()), TypeError, "bias and input must have"),
        ((ONES, ONES.mT), ValueError, r"weight \(3, 2\) to input \(2, 3\)"),
        ((ONES, ONES, torch.ones(3)), ValueError, r"bias must have shape \(2,\)"),
        ((torch.tensor(1.0), ONES), ValueError, "input must be"),
        ((ONES, ONES.to("meta")), ValueError, "must be on the same device"),
    ],
)
def test_linear_refusals(arguments, kind, message):
    with pytest.raises(kind, match=message):
        functional.linear(*arguments, precision=Precision())


def test_other_refusals():
    with pytest.raises(ValueError, match=r"cannot multiply shapes \(2, 3\) and \(2,"):
        functional.matmul(ONES, ONES, precision=Precision())
    with pytest.raises(ValueError, match=r"\(2, 3, 2\): their batch dimensions"):
        functional.matmul(
            ONES.expand(3, 2, 3), ONES.mT.expand(2, 3, 2), precision=Precision()
        )
    with pytest.raises(TypeError, match="expected a Precision"):
        functional.linear(ONES, ONES, precision="bfloat16")
    with pytest.raises(NotImplementedError, match="52 significant bits"):
        functional.matmul(
            ONES.double(),
            ONES.double().mT,
            precision=Precision(accumulator="e8m51"),
        )


def test_nan_and_infinity_propagate():
    x = torch.tensor([[1.0, float("inf")], [float("nan"), 1.0]])
    y = functional.linear(x, torch.ones(1, 2), precision=Precision(accumulator="e8m7"))
    assert y[0].item() == float("inf")
    assert y[1].isnan().all()
