"""Embeddings: rows forward, and backward one sum per row, against lowprec.dot."""

import pytest
import torch
from gradients import assert_all_close, assert_all_equal, everything, incoming
from layer_roundings import ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.precision import Precision
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal, exact_dot

embedding = functional.embedding
torchs = torch.nn.functional.embedding
LOW = Precision(
    elementwise="e6m4",
    weight="e5m2",
    grad_weight="e8m3",
    accumulator="e6m6",
    grad_accumulator=Accumulator("e6m5", product="e3m1", order="pairwise"),
)
WIDE = Precision(elementwise="e11m50", accumulator="e11m50")
INDEX = torch.tensor([[3, 0, 3, 5], [3, 1, 0, 3]])
ACCUMULATORS = [
    Accumulator("e6m4"),
    Accumulator("e6m4", order="pairwise"),
    Accumulator("e6m4", order="blocked", block_size=3, within="e6m6"),
    Accumulator("e6m4", order="kahan"),
    Accumulator(Rounding("e6m4", "stochastic")),
]


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
def test_gradients_are_sums_of_the_oracle(accumulator):
    precision = Precision(elementwise="binary64", grad_accumulator=accumulator)
    index = torch.randint(7, (40,))
    index[index == 2] = 3
    w = leaf(8, 2, dtype=torch.float64)
    terms = torch.randn(40, 2, dtype=torch.float64)
    y = embedding(index, w, precision=precision, seed=3)
    (actual,) = torch.autograd.grad(y, w, terms)
    key = split_seed(torch.tensor(3), 5)[3].item() % 2**64
    for v in range(8):
        rows = terms[index == v]
        for d in range(2):
            column = rows[:, d].tolist()
            ones = [1.0] * len(column)
            exact = exact_dot(ones, column, accumulator, key, 2 * v + d)
            wanted = torch.tensor(float(exact), dtype=torch.float64)
            assert_bit_equal(actual[v, d], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by_frequency", [False, True])
@pytest.mark.parametrize("padding", [None, 3, -3])
def test_it_is_its_formula(padding, by_frequency, dtype):
    w = leaf(6, 3, dtype=dtype)
    y, dw = everything(
        lambda w: embedding(INDEX, w, padding, None, 2.0, by_frequency, precision=LOW),
        [w],
    )
    table = lp.round(w.detach(), LOW.weight)
    assert_bit_equal(y, lp.round(table[INDEX], LOW.elementwise))
    (g,) = incoming([y])
    g = lp.round(g, LOW.elementwise).double().reshape(-1, 3)
    expected = torch.zeros(6, 3, dtype=torch.float64)
    adder = LOW.grad_accumulator.replace(product="exact")
    for v in range(6):
        rows = g[INDEX.reshape(-1) == v]
        if len(rows) and (padding is None or v != 3):
            ones = torch.ones(1, len(rows), dtype=torch.float64)
            expected[v] = lp.matmul(ones, rows, accumulator=adder)[0]
            expected[v] /= len(rows) if by_frequency else 1
    assert_bit_equal(dw, lp.round(expected, LOW.grad_weight).to(dtype))


@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": 3}, {"scale_grad_by_freq": True}]
)
def test_wide_formats_are_nearly_float64(options):
    w = leaf(6, 3, dtype=torch.float64)
    ours = everything(lambda w: embedding(INDEX, w, precision=WIDE, **options), [w])
    theirs = everything(lambda w: torchs(INDEX, w, **options), [w])
    assert_all_close(ours, theirs)


def test_without_elementwise_it_is_torchs():
    w = leaf(6, 3)
    precision = Precision(weight="e5m2", accumulator="e6m4")
    assert_all_equal(
        everything(lambda w: embedding(INDEX, w, precision=precision), [w]),
        everything(lambda w: torchs(INDEX, w), [w]),
    )


def test_stochastic_weights_are_rounded_once():
    stochastic = Rounding("e4m3", "stochastic")
    precision = Precision(weight=stochastic, elementwise="binary32")
    w, index = torch.randn(2, 50), torch.zeros(3, dtype=torch.int64)
    y = embedding(index, w, precision=precision, seed=3)
    assert_bit_equal(y[0], y[1])
    table = lp.round(w, stochastic, seed=split_seed(torch.tensor(3), 5)[0])
    assert_bit_equal(y[0], table[0])


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_shapes_at_the_edge(shape):
    w = leaf(6, 3)
    index = torch.zeros(shape, dtype=torch.int32)
    y, dw = everything(lambda w: embedding(index, w, precision=LOW), [w])
    assert y.shape == (*shape, 3)
    assert dw.shape == w.shape
    assert dw.any() == (shape == ())


W = torch.ones(6, 3)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((INDEX, W.half()), TypeError, "half carrier"),
        ((INDEX.double(), W), TypeError, "input must hold integers, got"),
        ((INDEX, W[0]), ValueError, r"weight must be \[V, D\]"),
        ((INDEX, W, 6), ValueError, "must be a row of a table of 6, got 6"),
        ((INDEX, W, None, 1.0), NotImplementedError, r"max_norm=1\.0"),
        ((INDEX + 3, W), IndexError, "out of range"),
        ((INDEX - 3, W), IndexError, "out of range"),
    ],
)
def test_refusals(arguments, kind, message):
    with pytest.raises(kind, match=message):
        embedding(*arguments, precision=LOW)


@pytest.mark.parametrize("field", ["elementwise", "grad_weight"])
def test_formats_wider_than_the_carrier_are_refused(field):
    precision = Precision(**({"elementwise": "e5m2"} | {field: "e11m50"}))
    with pytest.raises(ValueError, match=f"hold every value of {field}"):
        embedding(INDEX, W, precision=precision)


@ignore_dynamo
def test_compiles_without_graph_breaks():
    w = leaf(6, 3)

    def run(w):
        return embedding(INDEX, w, precision=LOW)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_all_equal(everything(compiled, [w]), everything(run, [w]))


def test_per_sample_gradients_by_torch_func():
    w, scale = torch.randn(6, 3), torch.randn(4, 3)

    def loss(w, index):
        return (embedding(index, w, precision=LOW) * scale).sum()

    gradient = torch.func.grad(loss)
    actual = torch.func.vmap(gradient, in_dims=(None, 0))(w, INDEX)
    for i, index in enumerate(INDEX):
        assert_bit_equal(actual[i], gradient(w, index))
