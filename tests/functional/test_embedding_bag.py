"""Bags of embeddings: sums forward and backward, against lowprec.matmul and torch."""

import pytest
import torch
from gradients import everything, incoming
from layer_roundings import leaf

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.precision import Precision
from lowprec.testing import assert_bit_equal

ours, torchs = functional.embedding_bag, torch.nn.functional.embedding_bag
LOW = Precision(
    elementwise="e6m4",
    weight="e5m2",
    grad_weight="e8m3",
    accumulator=Accumulator("e6m6", product="e3m1"),
    grad_accumulator="e6m5",
)
WIDE = Precision(elementwise="e11m50", accumulator="e11m50")
INDEX = torch.tensor([[3, 0, 3, 5], [3, 1, 0, 3]])
FLAT = torch.tensor([3, 0, 3, 5, 3, 1, 0])
CASES = {
    "mean": (INDEX, {}),
    "sum": (INDEX, {"mode": "sum"}),
    "ragged": (FLAT, {"offsets": torch.tensor([0, 3, 3, 4])}),
    "last offset": (
        FLAT,
        {"offsets": torch.tensor([0, 3, 7]), "include_last_offset": True},
    ),
    "padding": (INDEX, {"padding_idx": 3}),
    "padding from the end": (INDEX, {"padding_idx": -3, "mode": "sum"}),
}


def call(function, case, leaves, **keywords):
    index, options = CASES[case]
    return everything(lambda w: function(index, w, **options, **keywords), leaves)


@pytest.mark.parametrize("case", CASES)
def test_wide_formats_are_nearly_float64(case):
    leaves = [leaf(6, 3, dtype=torch.float64)]
    actual = call(ours, case, leaves, precision=WIDE)
    for left, right in zip(actual, call(torchs, case, leaves), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_without_elementwise_it_is_torchs(case):
    leaves = [leaf(6, 3)]
    actual = call(ours, case, leaves, precision=Precision(weight="e5m2"))
    for left, right in zip(actual, call(torchs, case, leaves), strict=True):
        assert_bit_equal(left, right)


def test_per_sample_weights():
    leaves = [leaf(6, 3, dtype=torch.float64), leaf(2, 4, dtype=torch.float64)]

    def run(function, **keywords):
        return everything(
            lambda w, s: function(
                INDEX, w, mode="sum", per_sample_weights=s, **keywords
            ),
            leaves,
        )

    actual = run(ours, precision=WIDE)
    for left, right in zip(actual, run(torchs), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-14)


def test_it_is_its_formula():
    w, s = leaf(6, 3), leaf(2, 4)
    y, dw, ds = everything(
        lambda w, s: ours(INDEX, w, mode="sum", per_sample_weights=s, precision=LOW),
        [w, s],
    )
    table = lp.round(w.detach(), LOW.weight).double()
    factors = s.detach().double()
    ones = torch.ones(1, 4, dtype=torch.float64)
    terms = table[INDEX] * factors.unsqueeze(-1)
    plain = LOW.accumulator.replace(product="exact")
    wanted = lp.matmul(ones, terms, accumulator=plain, output=LOW.elementwise)
    assert_bit_equal(y, wanted[:, 0].float())
    (g,) = incoming([y])
    g = lp.round(g, LOW.elementwise).double().unsqueeze(1)  # [2, 1, 3]
    uses = (g * factors.unsqueeze(-1)).reshape(-1, 3)
    for v in range(6):
        rows = uses[INDEX.reshape(-1) == v]
        ones = torch.ones(1, len(rows), dtype=torch.float64)
        total = lp.matmul(ones, rows, accumulator="e6m5", output=LOW.grad_weight)
        assert_bit_equal(dw[v], total[0].float())
    ones = torch.ones(3, 1, dtype=torch.float64)
    inner = lp.matmul(g * table[INDEX], ones, accumulator="e6m5", output="e6m4")
    assert_bit_equal(ds, inner[..., 0].float())


def test_stochastic_results_are_on_the_grid_and_reproduce():
    stochastic = Rounding("e6m4", "stochastic")
    precision = Precision(
        elementwise=stochastic, grad_weight=stochastic, accumulator=stochastic
    )
    leaves = [leaf(6, 3)]
    first = call(ours, "ragged", leaves, precision=precision, seed=3)
    for left, right in zip(
        first, call(ours, "ragged", leaves, precision=precision, seed=3), strict=True
    ):
        assert_bit_equal(lp.round(left, "e6m4"), left)
        assert_bit_equal(left, right)


def test_per_sample_gradients_by_torch_func():
    w, scale = torch.randn(6, 3), torch.randn(2, 3)

    def loss(w, index):
        return (ours(index, w, precision=LOW) * scale).sum()

    several = torch.stack([INDEX, INDEX.flip(0)])
    actual = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, several)
    for i, index in enumerate(several):
        assert_bit_equal(actual[i], torch.func.grad(loss)(w, index))


W = torch.ones(6, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((INDEX, W.half()), {}, TypeError, "half carrier"),
        ((INDEX.double(), W), {}, TypeError, "input must hold integers"),
        ((INDEX, W[0]), {}, ValueError, r"weight must be \[V, D\]"),
        ((FLAT, W), {}, ValueError, r"\[P\] with offsets \[B\], got \(7,\) and None"),
        ((INDEX, W), {"mode": "max"}, NotImplementedError, "only sums and means"),
        ((INDEX, W), {"sparse": True}, NotImplementedError, "only sums and means"),
        ((INDEX, W), {"mode": "median"}, ValueError, "mode must be"),
        (
            (INDEX, W),
            {"per_sample_weights": torch.ones(2, 4)},
            ValueError,
            "need mode='sum'",
        ),
    ],
)
def test_refusals(arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        ours(*arguments, precision=LOW, **options)
