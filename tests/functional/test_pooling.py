"""Pooling, interpolation and dropout against sums and choices made one by one."""

import math

import pytest
import torch
import torch.nn.functional as F
from fused_operations import (
    PRECISION,
    assert_identity,
    check_representable,
    oracle_round,
)
from layer_roundings import ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Precision, Rounding, functional
from lowprec.testing import assert_bit_equal, exact_dot

SHAPES = {1: (2, 3, 11), 2: (2, 2, 6, 7), 3: (1, 2, 4, 5, 4)}
AVERAGES = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": 2, "ceil_mode": True, "count_include_pad": False},
]
MAXIMA = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": 2, "ceil_mode": True},
    {"kernel_size": 2, "stride": 1, "dilation": 2},
]


def oracle(terms, accumulator):
    ones = [1.0] * len(terms)
    return float(exact_dot(terms, ones, Accumulator(accumulator)))


def influence(function, x):
    """Return which elements each result depends on: [results, elements] of slopes."""
    x = x.detach().double().requires_grad_()
    y = function(x).flatten()
    rows = [torch.autograd.grad(one, x, retain_graph=True)[0].flatten() for one in y]
    return torch.stack(rows)


def check_average(ours, theirs, x):
    """Compare with sums of the elements on which torch's averages depend."""
    y = ours(x)
    slopes = influence(theirs, x)
    values = x.detach().double().flatten().tolist()
    means = []
    for row in slopes:
        members = row.nonzero().flatten().tolist()
        divisor = round(1 / row[members[0]].item())
        means.append(oracle([values[j] for j in members], "e6m5") / divisor)
    expected = oracle_round(torch.tensor(means, dtype=torch.float64), "e5m2")
    assert_bit_equal(y.detach().flatten(), expected.to(x.dtype))
    g = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    arrived = oracle_round(g, "e5m2").double().flatten()
    sums = []
    for column in slopes.mT:
        uses = column.nonzero().flatten()
        divisors = (1 / column[uses]).round()
        sums.append(oracle((arrived[uses] / divisors).tolist(), "e6m4"))
    expected = oracle_round(torch.tensor(sums, dtype=torch.float64), "e5m2")
    assert_bit_equal(dx.flatten(), expected.to(x.dtype))


@pytest.mark.parametrize("options", AVERAGES, ids=str)
@pytest.mark.parametrize("dims", [1, 2])
def test_average_pooling(dims, options):
    name = f"avg_pool{dims}d"
    check_average(
        lambda x: getattr(functional, name)(x, **options, precision=PRECISION),
        lambda x: getattr(F, name)(x, **options),
        leaf(*SHAPES[dims]),
    )


def test_average_pooling_of_other_shapes():
    for dtype in (torch.float32, torch.float64):
        check_average(
            lambda x: functional.avg_pool3d(x, 2, 1, precision=PRECISION),
            lambda x: F.avg_pool3d(x, 2, 1),
            leaf(1, 3, 3, 2, dtype=dtype),
        )
    options = {"kernel_size": (3, 2), "padding": (1, 0), "divisor_override": 5}
    check_average(
        lambda x: functional.avg_pool2d(x, **options, precision=PRECISION),
        lambda x: F.avg_pool2d(x, **options),
        leaf(3, 5, 6),
    )


@pytest.mark.parametrize(
    ("dims", "size"),
    [(1, 1), (1, 4), (1, 11), (2, 1), (2, (2, 3)), (2, (None, 2)), (3, (2, 1, 2))],
)
def test_adaptive_average_pooling(dims, size):
    name = f"adaptive_avg_pool{dims}d"
    check_average(
        lambda x: getattr(functional, name)(x, size, precision=PRECISION),
        lambda x: getattr(F, name)(x, size),
        leaf(*SHAPES[dims]),
    )


def check_choice(ours, theirs, x):
    """Compare with torch's choice; gradients are the oracle's sums over uses."""
    y = ours(x)
    assert_bit_equal(y.detach(), theirs(x.detach()))
    g = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    arrived = oracle_round(g, "e5m2").double().flatten()
    sums = [
        oracle(arrived[column.nonzero().flatten()].tolist(), "e6m4")
        for column in influence(theirs, x).mT
    ]
    expected = oracle_round(torch.tensor(sums, dtype=torch.float64), "e5m2")
    assert_bit_equal(dx.flatten(), expected.to(x.dtype))


@pytest.mark.parametrize("options", MAXIMA, ids=str)
@pytest.mark.parametrize("dims", [1, 2])
def test_max_pooling(dims, options):
    name = f"max_pool{dims}d"
    check_choice(
        lambda x: getattr(functional, name)(x, **options, precision=PRECISION),
        lambda x: getattr(F, name)(x, **options),
        leaf(*SHAPES[dims]),
    )


def test_max_pooling_of_other_shapes():
    check_choice(
        lambda x: functional.max_pool3d(x, 2, 1, precision=PRECISION),
        lambda x: F.max_pool3d(x, 2, 1),
        leaf(2, 3, 3, 4, dtype=torch.float64),
    )
    for dims, size in ((1, 4), (2, (2, 3)), (3, 2)):
        name = f"adaptive_max_pool{dims}d"
        check_choice(
            lambda x, name=name, size=size: getattr(functional, name)(
                x, size, precision=PRECISION
            ),
            lambda x, name=name, size=size: getattr(F, name)(x, size),
            leaf(*SHAPES[dims]),
        )
    x = torch.randn(2, 3, 8)
    y, where = functional.max_pool1d(x, 2, return_indices=True, precision=PRECISION)
    wanted = F.max_pool1d(x, 2, return_indices=True)
    assert torch.equal(y, wanted[0])
    assert torch.equal(where, wanted[1])


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("size", [7, 3, (12, 5)])
def test_nearest_interpolation_is_a_choice(mode, size):
    check_choice(
        lambda x: functional.interpolate(x, size, mode=mode, precision=PRECISION),
        lambda x: F.interpolate(x, size, mode=mode),
        leaf(1, 2, 6, 4),
    )


def test_other_interpolation_is_one_rounding():
    x = leaf(2, 2, 4, 5)
    options = {"scale_factor": 2, "mode": "bilinear", "align_corners": False}
    y = functional.interpolate(x, **options, precision=PRECISION)
    wide = x.detach().double().requires_grad_()
    exact = F.interpolate(wide, **options)
    assert_bit_equal(y.detach(), oracle_round(exact.detach(), "e5m2").float())
    g = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    (wanted,) = torch.autograd.grad(exact, wide, oracle_round(g, "e5m2").double())
    assert_bit_equal(dx, oracle_round(wanted, "e5m2").float())


IDENTITIES = {
    "avg1": lambda f, x, **p: f.avg_pool1d(x[0], 3, 2, 1, **p),
    "avg2": lambda f, x, **p: f.avg_pool2d(x, 3, padding=1, divisor_override=2, **p),
    "avg3": lambda f, x, **p: f.avg_pool3d(x, 2, **p),
    "adaptive avg": lambda f, x, **p: f.adaptive_avg_pool2d(x, (2, 3), **p),
    "max1": lambda f, x, **p: f.max_pool1d(x[0], 3, 2, 1, **p),
    "max2": lambda f, x, **p: f.max_pool2d(x, 3, 1, ceil_mode=True, **p),
    "adaptive max": lambda f, x, **p: f.adaptive_max_pool2d(x, 2, **p),
    "interpolate": lambda f, x, **p: f.interpolate(x, 9, mode="bicubic", **p),
    "dropout": lambda f, x, **p: f.dropout(x, 0.3, **p),
    "alpha": lambda f, x, **p: f.alpha_dropout(x, 0.3, True, **p),
    "channels": lambda f, x, **p: f.dropout2d(x, 0.3, **p),
}


@pytest.mark.parametrize("name", list(IDENTITIES))
def test_identity_is_torch(name):
    call = IDENTITIES[name]
    assert_identity(
        lambda x, **p: call(functional, x, **p), lambda x: call(F, x), leaf(2, 3, 6, 6)
    )


@pytest.mark.parametrize("name", list(IDENTITIES))
def test_results_and_gradients_are_representable(name):
    x = lp.round(torch.randn(2, 3, 6, 6), "e5m2").requires_grad_()
    y = IDENTITIES[name](functional, x, precision=PRECISION)
    check_representable(y, [x], "e5m2")


DROPOUTS = ["dropout", "dropout1d", "dropout2d", "dropout3d"]


@pytest.mark.parametrize("name", DROPOUTS)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_has_the_mask_of_torch(name, p):
    x = leaf(
        *{"dropout1d": (4, 5, 6), "dropout3d": (4, 5, 2, 2, 2)}.get(name, (9, 5, 4, 2))
    )
    state = torch.get_rng_state()
    kept = getattr(F, name)(torch.ones_like(x), p) != 0
    torch.set_rng_state(state)
    y = getattr(functional, name)(x, p, precision=PRECISION)
    scale = 1 - p if p < 1 else 1.0  # nothing is kept otherwise

    def expected(x):
        return oracle_round(torch.where(kept, x.double() / scale, 0.0), "e5m2").float()

    assert_bit_equal(y.detach(), expected(x.detach()))
    g = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    assert_bit_equal(dx, expected(oracle_round(g, "e5m2")))
    assert torch.equal(getattr(functional, name)(x, p, False, precision=PRECISION), x)


@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_alpha_dropout_is_that_of_torch_nearly(name, p):
    x = torch.randn(8, 5, 4, dtype=torch.float64, requires_grad=True)
    precision = Precision(elementwise="e11m50")
    state = torch.get_rng_state()
    wanted = getattr(F, name)(x, p, True)
    torch.set_rng_state(state)
    y = getattr(functional, name)(x, p, True, precision=precision)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(v, x, g)[0] for v in (y, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_stochastic_roundings_leave_the_mask_alone():
    x = torch.randn(200)
    precision = Precision(elementwise=Rounding("e5m2", "stochastic"))
    state = torch.get_rng_state()
    first = functional.dropout(x, 0.5, precision=precision, seed=1)
    torch.set_rng_state(state)
    second = functional.dropout(x, 0.5, precision=precision, seed=2)
    assert torch.equal(first == 0, second == 0)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["avg2", "adaptive avg", "max2", "adaptive max"])
def test_torch_func(name):
    x = torch.randn(2, 3, 6, 6)

    def loss(x):
        return IDENTITIES[name](functional, x, precision=PRECISION).sum()

    actual = torch.func.vmap(torch.func.grad(loss))(x)
    for row, gradient in zip(x, actual, strict=True):
        assert_bit_equal(gradient, torch.func.grad(loss)(row))


@ignore_dynamo
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(backend):
    x = leaf(1, 2, 6, 6)

    def run(x):
        y = functional.max_pool2d(x, 3, 1, precision=PRECISION)
        y = functional.avg_pool2d(y, 2, precision=PRECISION)
        return functional.adaptive_avg_pool2d(y, 1, precision=PRECISION)

    torch._dynamo.reset()
    y = torch.compile(run, fullgraph=True, backend=backend)(x)
    assert_bit_equal(y.detach(), run(x).detach())
    (ours,) = torch.autograd.grad(y.sum(), x)
    assert_bit_equal(ours, torch.autograd.grad(run(x).sum(), x)[0])


def test_specials_stay_in_their_windows():
    x = torch.tensor([[1.0, math.inf, 2.0, 4.0, math.nan, 8.0]])
    y = functional.avg_pool1d(x, 2, padding=1, precision=PRECISION)
    assert_bit_equal(y, torch.tensor([[0.5, math.inf, math.nan, 4.0]]))


def test_refusals():
    with pytest.raises(TypeError, match="half carrier"):
        functional.avg_pool1d(torch.ones(1, 4).half(), 2, precision=PRECISION)
    with pytest.raises(TypeError, match="half carrier"):
        functional.max_pool1d(torch.ones(1, 4).half(), 2, precision=PRECISION)
    with pytest.raises(RuntimeError, match="pad"):
        functional.avg_pool1d(torch.ones(1, 4), 2, padding=2, precision=PRECISION)
