"""Borders and sums of fused operations, against the oracle."""

import math

import pytest
import torch
from layer_roundings import ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Precision, Rounding
from lowprec.functional._sums import copied_dims, row_sums
from lowprec.functional._wide import Wide, wide_for
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal, exact_matmul

ACCUMULATORS = [
    Accumulator("e8m15"),
    Accumulator("e6m8", product="e5m2"),  # terms are no products
    Accumulator("e8m7", order="blocked", block_size=2),
    Accumulator(Rounding("e6m4", "toward_zero")),
    Accumulator("e8m3", order="pairwise"),
    Accumulator("e8m4", order="kahan"),
    Accumulator(Rounding("e6m4", "stochastic")),
]
DTYPES = [torch.float32, torch.float64]


def part(seed, number):
    return split_seed(torch.tensor(seed), number + 1)[number]


def exact_sums(terms, accumulator, seed=0):
    """Sum rows by the oracle."""
    plain = accumulator.replace(product="exact")
    ones = torch.ones(terms.shape[1], 1, dtype=torch.float64)
    return exact_matmul(terms, ones, plain, seed=int(seed)).squeeze(1)


def softmax(x, precision, seed=None):
    wide = wide_for(precision, x.dtype, None, seed)
    inside = wide.enter(x)
    e = (inside - inside.amax(-1, True).detach()).exp()
    return wide.leave(e / wide.expand(wide.sum(e, -1, True), e.shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_borders_are_exact_inward_and_round_once_outward(dtype):
    precision = Precision(elementwise="e5m2", weight="e4m3fn", grad_weight="e3m4")
    wide = Wide(precision, dtype)
    x, w, b = (leaf(40, dtype=dtype) for _ in range(3))
    inside = wide.enter(x), wide.enter_weight(w), wide.enter_bias(b)
    assert all(each.dtype == torch.float64 for each in inside)
    assert_bit_equal(inside[0], x.double())
    assert_bit_equal(inside[1], lp.round(w, "e4m3fn").double())
    assert_bit_equal(inside[2], b.double())
    y = wide.leave(inside[0] * inside[1] + inside[2])
    expected = x.double() * lp.round(w, "e4m3fn").double() + b.double()
    assert_bit_equal(y, lp.round(expected, "e5m2").to(dtype))
    g = torch.randn(40, dtype=dtype)
    dx, dw, db = torch.autograd.grad(y, (x, w, b), g)
    arrived = lp.round(g, "e5m2").double()
    assert_bit_equal(dx, lp.round(arrived * inside[1], "e5m2").to(dtype))
    assert_bit_equal(dw, lp.round(arrived * inside[0], "e3m4").to(dtype))
    assert_bit_equal(db, lp.round(arrived, "e3m4").to(dtype))


def test_entering_copies():
    x = torch.ones(3, dtype=torch.float64)
    inside = Wide(Precision(elementwise="e5m2"), x.dtype).enter(x)
    inside.add_(1)
    assert x.tolist() == [1, 1, 1]


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
def test_sums_are_the_oracle(accumulator):
    x = torch.randn(5, 9, dtype=torch.float64) * torch.randn(5, 1).exp()
    assert_bit_equal(
        row_sums(x, accumulator, torch.tensor(3)), exact_sums(x, accumulator, 3)
    )


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
@pytest.mark.parametrize("dims", [1, (0, 2), (2, 0), (-1,), (0, 1, 2), ()])
def test_sum_adds_in_row_major_order_and_copies_back(accumulator, dims):
    x = leaf(3, 4, 2, dtype=torch.float64)
    precision = Precision(elementwise="e5m2", accumulator=accumulator)
    chosen = sorted(d % 3 for d in ((dims,) if isinstance(dims, int) else dims))
    kept = [d for d in range(3) if d not in chosen]
    for keepdim in (False, True):
        y = Wide(precision, x.dtype, None, 5).sum(x, dims, keepdim)
        shape = [1 if d in chosen else n for d, n in enumerate(x.shape)]
        assert list(y.shape) == (shape if keepdim else [x.shape[d] for d in kept])
        rows = (
            x.detach()
            .permute(*kept, *chosen)
            .reshape(math.prod(x.shape[d] for d in kept), -1)
        )
        expected = exact_sums(rows, accumulator, part(5, 0))
        assert_bit_equal(y.flatten(), expected)
        g = torch.randn_like(y)
        (dx,) = torch.autograd.grad(y, x, g)
        assert_bit_equal(dx, g.reshape(shape).expand(x.shape))


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
@pytest.mark.parametrize(
    ("shape", "wanted", "summed"),
    [
        ((3, 1), (3, 4), (1,)),
        ((4,), (3, 4), (0,)),
        ((1, 3, 1), (2, 3, 4), (0, 2)),
        ((), (2, 3), (0, 1)),
        ((1,), (1, 1), (0,)),
    ],
)
def test_expand_copies_and_adds_back(accumulator, shape, wanted, summed):
    x = leaf(*shape, dtype=torch.float64)
    precision = Precision(elementwise="e5m2", grad_accumulator=accumulator)
    y = Wide(precision, x.dtype, None, 5).expand(x, wanted)
    assert_bit_equal(y, x.detach().expand(wanted))
    assert copied_dims(shape, wanted) == summed
    g = torch.randn(wanted, dtype=torch.float64)
    (dx,) = torch.autograd.grad(y, x, g)
    kept = [d for d in range(len(wanted)) if d not in summed]
    rows = g.permute(*kept, *summed).reshape(math.prod(wanted[d] for d in kept), -1)
    expected = exact_sums(rows, accumulator, part(5, 1))
    assert_bit_equal(dx, expected.reshape(shape))


def test_carrier_sums_are_float64():
    precision = Precision(
        elementwise="e5m2", accumulator="bfloat16", grad_accumulator="carrier"
    )
    x, b = leaf(2, 300, dtype=torch.float64), leaf(2, 1, dtype=torch.float64)
    wide = Wide(precision, x.dtype)
    (db,) = torch.autograd.grad(wide.expand(b, x.shape), b, x.detach())
    torch.testing.assert_close(db, x.detach().sum(1, True), rtol=1e-13, atol=1e-13)
    wide = Wide(Precision(elementwise="e5m2"), x.dtype)
    torch.testing.assert_close(wide.sum(x, 1), x.sum(1), rtol=1e-13, atol=1e-13)


def test_terms_of_any_size_are_added():
    # 2^-1000 is far below every value of the format, but it decides a tie.
    terms = torch.tensor(
        [
            [1.0 + 2.0**-8, 2.0**-1000, 0.0],
            [2.0**-1000, 1.0 + 2.0**-8, 0.0],
            [1.0, -(2.0**1000), 2.0],
            [1.0, math.inf, 2.0],
            [1.0, math.nan, 2.0],
            [2.0**-1074, -(2.0**-1074), -0.0],
        ],
        dtype=torch.float64,
    )
    for mode in ("nearest_even", "toward_positive", "toward_negative"):
        for saturation in ("none", "finite"):
            accumulator = Accumulator(Rounding("bfloat16", mode, saturation))
            actual = row_sums(terms, accumulator)
            assert_bit_equal(actual, exact_sums(terms, accumulator))


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_is_its_formula(dtype):
    accumulator = Accumulator("e6m4")
    precision = Precision(elementwise="e5m2", accumulator=accumulator)
    x, g = leaf(6, 10, dtype=dtype), torch.randn(6, 10, dtype=dtype)
    y = softmax(x, precision)
    (dx,) = torch.autograd.grad(y, x, g)
    wide = x.detach().double()
    e = (wide - wide.amax(-1, True)).exp()
    total = exact_sums(e, accumulator).unsqueeze(1)
    assert_bit_equal(y, lp.round(e / total, "e5m2").to(dtype))
    arrived = lp.round(g, "e5m2").double()
    # d total_i = acc sum_k -(g_k e_k / total^2), de = g / total + d total.
    back = exact_sums(-arrived * ((e / total) / total), accumulator).unsqueeze(1)
    de = arrived / total + back
    assert_bit_equal(dx, lp.round(de * e, "e5m2").to(dtype))


def test_seeds_are_numbered_parts():
    rounding = Rounding("e5m2", "stochastic")
    precision = Precision(elementwise=rounding, accumulator=Accumulator(rounding))
    x = torch.randn(20, 3)
    wide = Wide(precision, x.dtype, None, 7)
    inside = wide.enter(x.requires_grad_())  # number 0
    total = wide.sum(inside, 1, True)  # 1
    y = wide.leave(inside / wide.expand(total, inside.shape))  # 3 and 2
    total = exact_sums(x.detach().double(), Accumulator(rounding), part(7, 2))
    assert_bit_equal(
        wide.sum(inside, 1),
        exact_sums(x.detach().double(), Accumulator(rounding), part(7, 8)),
    )
    ratio = x.detach().double() / total.unsqueeze(1)
    assert_bit_equal(y, lp.round(ratio, rounding, seed=part(7, 6)).float())
    g = torch.randn(20, 3)
    (dx,) = torch.autograd.grad(y, x, g)
    arrived = lp.round(g, rounding, seed=part(7, 7)).double()
    denominator = total.unsqueeze(1).expand(20, 3)
    back = -arrived * ((x.detach().double() / denominator) / denominator)
    back = exact_sums(back, Accumulator(rounding), part(7, 5)).unsqueeze(1)
    expected = arrived / denominator + back
    assert_bit_equal(dx, lp.round(expected, rounding, seed=part(7, 1)).float())


def test_many_borders_have_the_seeds_of_few():
    rounding = Rounding("e5m2", "stochastic")
    wide = Wide(Precision(elementwise=rounding), torch.float32, None, 7)
    x = torch.randn(8, dtype=torch.float64)
    for number in range(40):
        expected = lp.round(x, rounding, seed=part(7, 2 * number)).float()
        assert_bit_equal(wide.leave(x), expected)


def test_a_seed_is_drawn_once_and_only_if_needed():
    x = torch.randn(8)
    state = torch.get_rng_state()
    softmax(x, Precision(elementwise="e5m2", output=Rounding("e5m2", "stochastic")))
    assert torch.equal(torch.get_rng_state(), state)
    stochastic = Precision(elementwise=Rounding("e5m2", "stochastic"))
    y = softmax(x, stochastic)
    torch.set_rng_state(state)
    seed = lp.random.draw_seed()
    assert_bit_equal(y, softmax(x, stochastic, seed))


@pytest.mark.parametrize("stochastic", [False, True])
def test_torch_func(stochastic):
    mode = "stochastic" if stochastic else "nearest_even"
    rounding = Rounding("e5m2", mode)
    precision = Precision(elementwise=rounding, accumulator=Accumulator(rounding))
    x, g = torch.randn(3, 2, 5), torch.randn(2, 5)

    def loss(x):
        return (softmax(x, precision, 3) * g).sum()

    actual = torch.func.vmap(torch.func.grad(loss))(x)
    values = torch.func.vmap(lambda x: softmax(x, precision, 3))(x)
    for row, gradient, value in zip(x, actual, values, strict=True):
        leaf = row.clone().requires_grad_()
        y = softmax(leaf, precision, 3)
        assert_bit_equal(value, y.detach())
        assert_bit_equal(gradient, torch.autograd.grad(y, leaf, g)[0])


@ignore_dynamo
@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(backend, mode):
    rounding = Rounding("e5m2", mode)
    precision = Precision(elementwise=rounding, accumulator=Accumulator(rounding))
    x, g, seed = leaf(4, 5), torch.randn(4, 5), torch.tensor(3)

    def run(x, seed):
        return softmax(x, precision, seed)

    torch._dynamo.reset()
    y = torch.compile(run, fullgraph=True, backend=backend)(x, seed)
    expected = run(x, seed)
    assert_bit_equal(y.detach(), expected.detach())
    actual = torch.autograd.grad(y, x, g)[0]
    assert_bit_equal(actual, torch.autograd.grad(expected, x, g)[0])


def test_refusals():
    for field in ("binary64", "e8m24"):
        with pytest.raises(ValueError, match=r"float32 tensors cannot hold.*float64"):
            Wide(Precision(elementwise=field), torch.float32)
    wide = Wide(Precision(elementwise="e5m2", grad_weight="binary64"), torch.float32)
    with pytest.raises(ValueError, match="cannot hold every value of grad_weight="):
        wide.enter_weight(torch.ones(1))
    with pytest.raises(ValueError, match="not both"):
        wide_for(Precision(elementwise="e5m2"), torch.float32, torch.Generator(), 1)
    x = leaf(3)
    y = softmax(x, Precision(elementwise="e5m2"))
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
