"""Swamped additions: counted in exact rationals, over the terms of the kernels."""

from fractions import Fraction

import pytest
import torch

import lowprec as lp
from lowprec.measure._additions import count_swamped
from lowprec.measure._products import TERMS
from lowprec.testing import exact_round

ORDERS = {
    "sequential": {},
    "blocked": {"order": "blocked", "block_size": 5},
    "blocked, other rounding within": {
        "order": "blocked",
        "block_size": 4,
        "within": "e5m2",
    },
    "pairwise": {"order": "pairwise"},
}
PRODUCTS = ["exact", "accumulator", "e5m1"]


def factors(count=6, terms=70):
    generator = torch.Generator().manual_seed(2)
    left, right = (
        lp.round(torch.randn(count, terms, generator=generator), "e4m3fn")
        for _ in range(2)
    )
    left[:, ::7] = 0
    left[0, 10] = 200.0
    return left, right


def counted(left, right, accumulator):
    """Return additions and swamped ones of one sum, in rationals."""
    rounding, product = accumulator.rounding, accumulator.product_rounding
    seen = lost = 0

    def add(acc, term, how):
        nonlocal seen, lost
        after = Fraction(exact_round(acc + term, how))
        if term != 0:
            seen += 1
            lost += after == acc
        return after

    terms = [Fraction(a) * Fraction(b) for a, b in zip(left, right, strict=True)]
    if product is not None:
        terms = [Fraction(exact_round(t, product)) for t in terms]
    if accumulator.order == "pairwise":
        level = [Fraction(exact_round(t, rounding)) for t in terms]
        while len(level) > 1:
            level += [Fraction(0)] * (len(level) % 2)
            following = []
            for x, y in zip(level[::2], level[1::2], strict=True):
                total = Fraction(exact_round(x + y, rounding))
                if x != 0 and y != 0:
                    seen += 1
                    lost += total in (x, y)
                following.append(total)
            level = following
        return seen, lost
    size = accumulator.block_size or len(terms)
    within = accumulator.within or rounding
    sums = []
    for start in range(0, len(terms), size):
        acc = Fraction(0)
        for term in terms[start : start + size]:
            acc = add(acc, term, within)
        sums.append(acc)
    if accumulator.block_size is not None:
        acc = Fraction(0)
        for term in sums:
            acc = add(acc, term, rounding)
    return seen, lost


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_are_those_of_exact_rationals(order, product, dtype):
    accumulator = lp.Accumulator("e8m5", product, **ORDERS[order])
    left, right = (x.to(dtype) for x in factors())
    expected = [
        counted(a, b, accumulator)
        for a, b in zip(left.tolist(), right.tolist(), strict=True)
    ]
    additions, swamped = (sum(column) for column in zip(*expected, strict=True))
    assert count_swamped(left, right, accumulator) == (additions, swamped)
    assert 0 < swamped < additions


def test_ones_in_eight_bits_are_swamped_from_256_on():
    ones = torch.ones(1, 1000)
    assert count_swamped(ones, ones, lp.Accumulator("bfloat16")) == (1000, 744)


def test_a_stochastic_sum_loses_fewer_additions_than_ones_that_cannot_move():
    ones = torch.ones(4, 1000)
    accumulator = lp.Accumulator(lp.Rounding("bfloat16", "stochastic"))
    additions, swamped = count_swamped(ones, ones, accumulator)
    assert additions == 4000
    # From 256 to 512 half of the additions change nothing, from 512 three quarters.
    assert 0 < swamped < 0.75 * 4 * 744


def test_compensated_sums_are_not_counted_and_infinite_ones_left_out():
    ones = torch.ones(2, 8)
    assert count_swamped(ones, ones, lp.Accumulator("e5m2", order="kahan")) is None
    broken = ones.clone()
    broken[1, 3] = torch.inf
    assert count_swamped(broken, ones, lp.Accumulator("e5m2")) == (8, 0)


LAYERS = {
    "linear": (torch.nn.Linear(13, 5, bias=False), (4, 3, 13)),
    "conv1d": (torch.nn.Conv1d(4, 6, 3, stride=2, groups=2, bias=False), (3, 4, 11)),
    "conv2d": (
        torch.nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), bias=False),
        (2, 2, 6, 5),
    ),
    "conv2d, dilated": (
        torch.nn.Conv2d(2, 3, 3, stride=(3, 2), dilation=(2, 1), padding=2, bias=False),
        (2, 2, 9, 7),
    ),
    "conv2d, same": (
        torch.nn.Conv2d(2, 3, (2, 3), padding="same", bias=False),
        (2, 2, 5, 4),
    ),
    "conv2d, one image": (
        torch.nn.Conv2d(2, 3, 3, padding="valid", bias=False),
        (2, 5, 4),
    ),
    "conv3d": (torch.nn.Conv3d(2, 2, 2, padding=1, bias=False), (1, 2, 3, 3, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("order", ORDERS)
def test_watched_terms_sum_up_to_what_the_layer_computes(name, order):
    """The same accumulator over the factors gives the layer's results, bit for bit."""
    plain, shape = LAYERS[name]
    accumulator = lp.Accumulator("e8m4", **ORDERS[order])
    layer = type(plain).__new__(type(plain))
    layer.__dict__.update(plain.__dict__)
    lp.nn.convert_(layer, lp.Precision(accumulator=accumulator))
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    y = layer(x)
    dy = torch.randn(y.shape, generator=generator)
    grads = torch.autograd.grad(y, [x, layer.weight], dy)
    results = {"output": y, "grad_input": grads[0], "grad_weight": grads[1]}
    for role, (_, terms_of) in TERMS.items():
        wanted = results[role].detach().flatten()
        other = y if role == "output" else dy
        left, right = terms_of(layer, x.detach(), other.detach(), 10**9)
        sums = lp.dot(left.detach(), right.detach(), accumulator=accumulator)
        assert torch.equal(sums, wanted), role


def test_other_layers_have_no_terms():
    layer = torch.nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")
    x = torch.ones(1, 1, 5)
    for _, terms_of in TERMS.values():
        assert terms_of(layer, x, x, 4) is None
        assert terms_of(torch.nn.Tanh(), x, x, 4) is None
