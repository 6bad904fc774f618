"""lowprec.sum: every addition rounds, in every order, and torch's shapes."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_roundings import ignore_dynamo, leaf
from tables import MODES

import lowprec as lp
from lowprec import Accumulator, Rounding
from lowprec.arithmetic import fits
from lowprec.testing import assert_bit_equal, exact_sum
from lowprec.testing import strategies as lps

ORDERS = [
    {"order": "sequential"},
    {"order": "pairwise"},
    {"order": "kahan"},
    {"order": "blocked", "block_size": 3},
    {"order": "blocked", "block_size": 4, "within": "e8m15"},
]


def expected(x, dims, accumulator, seed, offset=0):
    kept = [dim for dim in range(x.dim()) if dim not in dims]
    shape = [x.shape[dim] for dim in kept]
    rows = x.permute(*kept, *dims).reshape(math.prod(shape), -1).tolist()
    sums = [exact_sum(row, accumulator, seed, offset + i) for i, row in enumerate(rows)]
    return torch.tensor(sums, dtype=x.dtype).reshape(shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order["order"])
def test_orders_and_modes(order, mode):
    x = torch.randn(3, 2, 7) * 4
    x[0, 0, 0], x[1, 1, 3], x[2, 0] = -0.0, math.inf, -0.0
    for target in ("bfloat16", "e5m2", "e4m3fn"):
        accumulator = Accumulator(Rounding(target, mode), **order)
        seed = 9 if accumulator.stochastic else None
        for dims in ((2,), (0, 2)):
            wanted = expected(x, dims, accumulator, 9, 5)
            result = lp.sum(x, dims, accumulator=accumulator, seed=seed, offset=5)
            assert_bit_equal(result, wanted)


@given(accumulator=lps.accumulators(max_block_size=4), data=st.data())
@settings(max_examples=60)
def test_any_accumulator(accumulator, data):
    within = accumulator.within or accumulator.rounding
    assume(all(fits(r.format, torch.float64) for r in (accumulator.rounding, within)))
    x = data.draw(lps.tensors((2, 5), torch.float32, near=accumulator.rounding.format))
    seed = 3 if accumulator.replace(product="exact").stochastic else None
    wanted = expected(x.double(), (1,), accumulator, 3)
    result = lp.sum(x.double(), 1, accumulator=accumulator, seed=seed)
    assert_bit_equal(result, wanted)


def test_shapes_are_those_of_torch():
    x = torch.randint(-4, 5, (2, 3, 4)).float()
    dims = [None, 0, -1, (0, 2), (1, -3), (0, 1, 2), ()]
    for dim, keepdim in itertools.product(dims, (False, True)):
        result = lp.sum(x, dim, keepdim, accumulator="binary32")
        assert_bit_equal(result, torch.sum(x, dim, keepdim))
    assert lp.sum(torch.tensor(1.125), accumulator="e5m2").item() == 1.0
    assert lp.sum(torch.empty(0, 3), 0, accumulator="e5m2").tolist() == [0, 0, 0]
    assert lp.sum(torch.empty(0, 3), 1, accumulator="e5m2").shape == (0,)


def test_terms_of_float64_beyond_the_kernels_range():
    x = torch.tensor([[1e-320, 1.0], [1e308, -1e308], [-5e-324, 0.0]]).double()
    accumulator = Accumulator(Rounding("bfloat16", "toward_positive"))
    wanted = expected(x, (1,), accumulator, 0)
    assert_bit_equal(lp.sum(x, 1, accumulator=accumulator), wanted)


def test_kahan_keeps_what_recursion_loses():
    ones = torch.ones(1000)
    assert lp.sum(ones, accumulator="bfloat16").item() == 256.0
    kahan = lp.sum(ones, accumulator=Accumulator("bfloat16", order="kahan"))
    assert kahan.item() == 1000.0


def test_products_play_no_part():
    x = torch.randn(20)
    rounded = Accumulator("e8m10", product="e5m2")
    assert_bit_equal(
        lp.sum(x, accumulator=rounded), lp.sum(x, accumulator=Accumulator("e8m10"))
    )


def test_gradient_is_copied():
    x = leaf(3, 4)
    for dim, keepdim in ((None, False), (1, True), (0, False)):
        y = lp.sum(x, dim, keepdim, accumulator="bfloat16")
        g = torch.randn_like(y)
        theirs = torch.autograd.grad(torch.sum(x, dim, keepdim), x, g)
        assert_bit_equal(torch.autograd.grad(y, x, g)[0], theirs[0])

    def total(row):
        return lp.sum(row, accumulator="bfloat16")

    rows = torch.func.vmap(total)(x.detach())
    assert_bit_equal(rows, lp.sum(x.detach(), 1, accumulator="bfloat16"))
    slope = torch.func.vmap(torch.func.grad(total))(x.detach())
    assert_bit_equal(slope, torch.ones(3, 4))


@ignore_dynamo
def test_compiles_without_graph_breaks():
    def run(x):
        return lp.sum(x, 1, accumulator=Accumulator("bfloat16", order="pairwise"))

    torch._dynamo.reset()
    x = leaf(3, 9)
    y = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert_bit_equal(y, run(x))
    assert_bit_equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(3, 9))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x: lp.sum(x.half(), accumulator="e5m2"), TypeError, "half carrier"),
        (lambda x: lp.sum(x, 2, accumulator="e5m2"), IndexError, "dim=2 is none of"),
        (lambda x: lp.sum(x, (0, -2), accumulator="e5m2"), ValueError, "twice"),
        (lambda x: lp.sum(x, accumulator="e8m30"), ValueError, "float64 operands"),
        (
            lambda x: lp.sum(
                x.double(), accumulator=Rounding("binary64", "stochastic"), seed=1
            ),
            NotImplementedError,
            "51 significant bits in this mode, got 53",
        ),
        (
            lambda x: lp.sum(
                x, accumulator="e5m2", seed=1, generator=torch.Generator()
            ),
            ValueError,
            "not both",
        ),
    ],
)
def test_refusals(call, kind, message):
    with pytest.raises(kind, match=message):
        call(torch.ones(2, 3))


def test_no_dimensions_are_all_of_them_as_torch_has_it():
    x = torch.arange(6.0).reshape(2, 3).requires_grad_()
    for dim in ((), []):
        for keepdim in (False, True):
            result = lp.sum(x, dim, keepdim, accumulator="binary32")
            assert_bit_equal(result.detach(), torch.sum(x, dim, keepdim).detach())
        (gradient,) = torch.autograd.grad(result.sum(), x)
        assert torch.equal(gradient, torch.ones(2, 3))
    assert lp.sum(x.detach(), [0, 1], accumulator="binary32") == 15


@pytest.mark.parametrize("dim", ["a", 1.0, True, (0, "b")])
def test_dimensions_are_ints(dim):
    with pytest.raises(TypeError, match="dim must be an int, several of them, or None"):
        lp.sum(torch.ones(2, 2), dim, accumulator="bfloat16")
