"""Selections: exact forward, the oracle's sums of gradients backward."""

import math

import pytest
import torch
import torch.nn.functional as F
from fused_operations import PRECISION, assert_identity, oracle_round, part
from layer_roundings import ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Precision, Rounding, functional
from lowprec.functional._sums import segment_sums
from lowprec.testing import assert_bit_equal, exact_dot

INDEX = torch.tensor([[0, 2, 2, 1], [3, 2, 2, 2], [0, 0, 0, 0]])
CASES = {
    "expand": (lambda x: x.expand(4, *x.shape), (3, 4)),
    "repeat": (lambda x: x.repeat(2, 3), (3, 4)),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, 1), (3, 4)),
    "gather": (lambda x: x.gather(0, INDEX[:, :2]), (4, 3)),
    "index_select": (lambda x: x.index_select(1, INDEX.flatten()), (2, 4)),
    "index": (lambda x: x[INDEX, INDEX], (4, 4)),
    "take": (lambda x: x.take(INDEX), (2, 4)),
    "mask": (lambda x: x[:, torch.tensor([True, False, True])], (2, 3)),
    "reflect": (lambda x: F.pad(x, (2, 1), mode="reflect"), (2, 3)),
    "constants": (lambda x: F.pad(x, (2, 1), value=2.0), (2, 3)),
    "replicate": (lambda x: F.pad(x, (2, 5), mode="replicate"), (2, 3)),
    "unfold": (lambda x: F.unfold(x, 2, padding=1), (1, 2, 3, 4)),
    "Tensor.unfold": (lambda x: x.unfold(1, 3, 1), (2, 6)),
    "transpose": (lambda x: x.mT, (2, 3)),
}
ACCUMULATORS = [
    Accumulator("e6m4"),
    Accumulator("e6m4", product="e5m2"),  # terms are no products
    Accumulator("e8m3", order="pairwise"),
    Accumulator("e8m4", order="kahan"),
    Accumulator(Rounding("e6m4", "toward_zero"), order="blocked", block_size=2),
    Accumulator(Rounding("e6m4", "stochastic")),
    Accumulator(Rounding("e6m4", "stochastic"), order="pairwise"),
]


def expected_sums(index, terms, size, accumulator, seed=0):
    """Add the terms of each place by the oracle, one place after the other."""
    sums = []
    for j in range(size):
        chosen = [t for i, t in zip(index, terms, strict=True) if i == j]
        ones = [1.0] * len(chosen)
        exact = accumulator.replace(product="exact")
        sums.append(float(exact_dot(chosen, ones, exact, int(seed), j)))
    return torch.tensor(sums, dtype=torch.float64)


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
def test_segments_are_summed_by_the_oracle(accumulator):
    # Few long segments, many short ones, some empty, some terms dropped.
    index = torch.cat([torch.full((9,), 7), torch.randint(-1, 20, (40,))])
    index = index[torch.randperm(49)]
    terms = torch.randn(49, dtype=torch.float64)
    seed = torch.tensor(5) if accumulator.stochastic else None
    actual = segment_sums(terms, index, 24, accumulator, seed)
    wanted = expected_sums(index.tolist(), terms.tolist(), 24, accumulator, 5)
    assert_bit_equal(actual, wanted)


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
def test_segments_of_one_term_are_rounded_too(accumulator):
    index = torch.tensor([5, 0, -1, 3, 1])
    terms = torch.tensor([1.3, -0.0, 2.0, -0.7, 1e-9], dtype=torch.float64)
    seed = torch.tensor(5) if accumulator.stochastic else None
    actual = segment_sums(terms, index, 7, accumulator, seed)
    wanted = expected_sums(index.tolist(), terms.tolist(), 7, accumulator, 5)
    assert_bit_equal(actual, wanted)


@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
@pytest.mark.parametrize(
    ("shape", "wanted"), [((3,), (4, 3)), ((2, 1, 3), (5, 2, 4, 3)), ((), (2, 2))]
)
def test_broadcasts_are_the_selections_they_are(shape, wanted, mode):
    rounding = Rounding("e5m2", mode)
    precision = Precision(elementwise=rounding, accumulator=Accumulator(rounding))
    x, g = leaf(*shape), torch.randn(wanted)
    seed = 3 if mode == "stochastic" else None
    results = []
    for function in (torch.Tensor.expand, torch.broadcast_to, lambda x, s: x.expand(s)):
        y = functional.selection(function, x, wanted, precision=precision, seed=seed)
        results.append(torch.autograd.grad(y, x, g)[0])
    assert_bit_equal(results[0], results[2])
    assert_bit_equal(results[1], results[2])


def test_segments_of_nothing():
    nothing = torch.empty(0, dtype=torch.float64)
    index = torch.empty(0, dtype=torch.int64)
    for accumulator in (ACCUMULATORS[0], None):
        actual = segment_sums(nothing, index, 3, accumulator, None)
        assert_bit_equal(actual, torch.zeros(3, dtype=torch.float64))
        dropped = torch.tensor([-1, -1])
        terms = torch.tensor([math.nan, 1.0], dtype=torch.float64)
        actual = segment_sums(terms, dropped, 3, accumulator, None)
        assert_bit_equal(actual, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(CASES))
def test_selections_copy_and_their_gradients_add(name, dtype):
    function, shape = CASES[name]
    x = leaf(*shape, dtype=dtype)
    y = functional.selection(function, x, precision=PRECISION)
    assert_bit_equal(y.detach(), function(x.detach()).contiguous())
    g = torch.randn(y.shape, dtype=dtype)
    (dx,) = torch.autograd.grad(y, x, g)
    # Where each element goes is found by moving elements of which one is one.
    arrived = oracle_round(g, "e5m2").double().flatten().tolist()
    index = [-1] * y.numel()
    for j in range(x.numel()):
        one = torch.zeros(x.numel()).index_fill(0, torch.tensor(j), 1.0)
        changed = function(one.view(x.shape)) != function(torch.zeros(x.shape))
        for i in changed.flatten().nonzero().flatten().tolist():
            index[i] = j
    sums = expected_sums(index, arrived, x.numel(), Accumulator("e6m4"))
    assert_bit_equal(dx, oracle_round(sums, "e5m2").to(dtype).view(x.shape))


@pytest.mark.parametrize("name", list(CASES))
def test_identity_is_torch(name):
    function, shape = CASES[name]
    assert_identity(
        lambda x, **p: functional.selection(function, x, **p), function, leaf(*shape)
    )


def test_stochastic_seeds():
    rounding = Rounding("e5m2", "stochastic")
    precision = Precision(elementwise=rounding, accumulator=Accumulator(rounding))
    x, g = leaf(4), torch.randn(3, 4)
    y = functional.selection(
        torch.Tensor.__getitem__, x, INDEX, precision=precision, seed=3
    )
    assert_bit_equal(y.detach(), x.detach()[INDEX])
    (dx,) = torch.autograd.grad(y, x, g)
    # The sum is border 0; the gradient arrives and leaves at border 1.
    arrived = lp.round(g, rounding, seed=part(3, 2)).double()
    sums = expected_sums(
        INDEX.flatten().tolist(),
        arrived.flatten().tolist(),
        4,
        precision.accumulator,
        part(3, 1),
    )
    assert_bit_equal(dx, lp.round(sums, rounding, seed=part(3, 3)).float())


def test_carrier_sums():
    precision = Precision(elementwise="binary32", grad_accumulator="carrier")
    x, g = leaf(4), torch.randn(3, 4)
    y = functional.selection(torch.take, x, INDEX, precision=precision)
    (dx,) = torch.autograd.grad(y, x, g)
    wanted = torch.zeros(4).index_add(0, INDEX.flatten(), g.flatten())
    torch.testing.assert_close(dx, wanted)


def test_torch_func():
    x = torch.randn(3, 4)

    def loss(x):
        y = functional.selection(lambda x: x[INDEX], x, precision=PRECISION)
        return (y * torch.arange(12.0).view(3, 4)).sum()

    actual = torch.func.vmap(torch.func.grad(loss))(x)
    for row, gradient in zip(x, actual, strict=True):
        assert_bit_equal(gradient, torch.func.grad(loss)(row))


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
def test_opcheck(accumulator):
    arguments = (
        torch.randn(12, dtype=torch.float64),
        INDEX.flatten(),
        5,
        *lp.arithmetic.sum_settings(accumulator),
        torch.tensor(3) if accumulator.stochastic else None,
    )
    torch.library.opcheck(torch.ops.lowprec.segment_sums.default, arguments)


@ignore_dynamo
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(backend):
    x, g = leaf(4), torch.randn(3, 4)

    def run(x, index):
        return functional.selection(torch.take, x, index, precision=PRECISION)

    torch._dynamo.reset()
    y = torch.compile(run, fullgraph=True, backend=backend)(x, INDEX)
    assert_bit_equal(y.detach(), run(x, INDEX).detach())
    (ours,) = torch.autograd.grad(y, x, g)
    assert_bit_equal(ours, torch.autograd.grad(run(x, INDEX), x, g)[0])


def test_results_are_no_views():
    x = torch.ones(3)
    y = functional.selection(torch.Tensor.expand, x, (2, 3), precision=PRECISION)
    y.add_(1)
    assert x.tolist() == [1, 1, 1]
    z = functional.selection(torch.Tensor.expand, leaf(3), (2, 3), precision=PRECISION)
    z.add_(1)  # allowed, as after torch.index_select


def test_refusals():
    with pytest.raises(TypeError, match="half carrier"):
        functional.selection(torch.take, leaf(4).half(), INDEX, precision=PRECISION)
    with pytest.raises(TypeError, match="expected a Precision"):
        functional.selection(torch.take, leaf(4), INDEX, precision="e5m2")
