"""Reductions: the oracle's sums, float64 formulas, one rounding."""

import math

import pytest
import torch
from fused_operations import (
    PRECISION,
    assert_identity,
    check_representable,
    oracle_round,
    oracle_sum,
    part,
)
from layer_roundings import ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Precision, Rounding, functional
from lowprec.testing import assert_bit_equal, exact_dot

CARRIERS = [torch.float32, torch.float64]
DIMS = [None, 0, -1, (0, 2), [1]]


def rows_of(x, dim):
    """Return the terms of each sum as rows, and the reduced dimensions."""
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = sorted(d % x.dim() for d in dims)
    kept = [d for d in range(x.dim()) if d not in dims]
    rows = x.permute(*kept, *dims).reshape(
        math.prod(x.shape[d] for d in kept), math.prod(x.shape[d] for d in dims)
    )
    return rows, dims


def spread(values, x, dims):
    """Copy one value per row back over the reduced dimensions."""
    shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
    return values.reshape(shape).expand(x.shape)


def check(ours, x, dim, value, slope):
    """Compare a reduction with formulas of rows and sums, and of wide copies."""
    y = ours(x)
    rows, dims = rows_of(x.detach().double(), dim)
    expected = value(rows, oracle_sum)
    assert_bit_equal(y.flatten().detach(), oracle_round(expected, "e5m2").to(x.dtype))
    g = torch.randn(y.shape, dtype=x.dtype)
    (dx,) = torch.autograd.grad(y, x, g)
    arrived = spread(oracle_round(g, "e5m2").double(), x, dims)
    gradient = arrived * slope(rows, lambda v: spread(v, x, dims), x.detach().double())
    assert_bit_equal(dx, oracle_round(gradient, "e5m2").to(x.dtype))


@pytest.mark.parametrize("dtype", CARRIERS)
@pytest.mark.parametrize("dim", DIMS)
def test_sum_and_mean(dim, dtype):
    x = leaf(3, 4, 5, dtype=dtype)
    check(
        lambda x: functional.sum(x, dim, precision=PRECISION),
        x,
        dim,
        lambda rows, add: add(rows),
        lambda rows, wide, x: torch.ones_like(x),
    )
    check(
        lambda x: functional.mean(x, dim, True, precision=PRECISION),
        x,
        dim,
        lambda rows, add: add(rows) / rows.shape[1],
        lambda rows, wide, x: torch.full_like(x, 1 / rows.shape[1]),
    )


@pytest.mark.parametrize("dtype", CARRIERS)
@pytest.mark.parametrize("dim", [None, 1, (0, 2)])
@pytest.mark.parametrize("correction", [0, 1])
def test_var_and_std(dim, correction, dtype):
    def variance(rows, add=oracle_sum):
        mean = add(rows).unsqueeze(1) / rows.shape[1]
        return add((rows - mean) ** 2) / (rows.shape[1] - correction)

    def deviations(rows, wide, x):
        return x - wide(oracle_sum(rows) / rows.shape[1])

    check(
        lambda x: functional.var(x, dim, correction=correction, precision=PRECISION),
        leaf(3, 4, 5, dtype=dtype),
        dim,
        variance,
        lambda rows, wide, x: (
            2 * deviations(rows, wide, x) / (rows.shape[1] - correction)
        ),
    )
    check(
        lambda x: functional.std(x, dim, correction=correction, precision=PRECISION),
        leaf(3, 4, 5, dtype=dtype),
        dim,
        lambda rows, add: variance(rows, add).sqrt(),
        lambda rows, wide, x: (
            deviations(rows, wide, x)
            / wide(variance(rows).sqrt())
            / (rows.shape[1] - correction)
        ),
    )


@pytest.mark.parametrize("dtype", CARRIERS)
@pytest.mark.parametrize("dim", [0, (0, 2)])
def test_logsumexp(dim, dtype):
    def shares(rows, add=oracle_sum):
        return (rows - rows.amax(1, True)).exp()

    check(
        lambda x: functional.logsumexp(x, dim, precision=PRECISION),
        leaf(3, 4, 5, dtype=dtype),
        dim,
        lambda rows, add: add(shares(rows)).log() + rows.amax(1),
        lambda rows, wide, x: (
            (x - wide(rows.amax(1))).exp() / wide(oracle_sum(shares(rows)))
        ),
    )


@pytest.mark.parametrize("power", [1, 2, 3.0, "fro"])
@pytest.mark.parametrize("dim", [None, 1])
def test_norms(power, dim):
    p = 2 if power == "fro" else power

    def norm(rows, add=oracle_sum):
        return add(rows.abs() ** p) ** (1 / p)

    check(
        lambda x: functional.norm(x, power, dim, precision=PRECISION),
        leaf(3, 4, 5),
        dim,
        norm,
        lambda rows, wide, x: x.sign() * (x.abs() / wide(norm(rows))) ** (p - 1),
    )


def test_norms_at_zero_and_at_the_ends():
    x = torch.zeros(3, requires_grad=True)
    for power in (1, 2, 3):
        y = functional.norm(x, power, precision=PRECISION)
        assert torch.autograd.grad(y, x)[0].tolist() == [0, 0, 0]
    x = torch.tensor([1.0, -3.0, 0.0])
    for power, wanted in ((math.inf, 3.0), (-math.inf, 0.0), (0, 2.0)):
        assert functional.norm(x, power, precision=PRECISION).item() == wanted
    with pytest.raises(NotImplementedError, match="vector norms"):
        functional.norm(x, "nuc", precision=PRECISION)


@pytest.mark.parametrize("accumulator", ["e6m4", Rounding("e6m4", "stochastic")])
@pytest.mark.parametrize("dim", [0, 1])
def test_cumsum_is_the_steps_of_one_sum(accumulator, dim):
    accumulator = Accumulator(accumulator)
    precision = Precision(elementwise="e8m10", accumulator=accumulator)
    x = leaf(4, 6)
    y = functional.cumsum(x, dim, precision=precision, seed=3)
    g = torch.randn(4, 6)
    (dx,) = torch.autograd.grad(y, x, g)
    forward, backward = (int(part(3, number)) for number in (2, 3))
    rows = x.detach().double().movedim(dim, -1).tolist()
    arrived = oracle_round(g, "e8m10").double().movedim(dim, -1).tolist()
    for i, (row, gradient) in enumerate(zip(rows, arrived, strict=True)):
        ones = [1.0] * len(row)
        for k in range(len(row)):
            sums = exact_dot(row[: k + 1], ones[: k + 1], accumulator, forward, i)
            at = y.detach().movedim(dim, -1)[i, k]
            assert at.item() == lp.round(torch.tensor(sums), "e8m10").item()
            sums = exact_dot(gradient[k:], ones[k:], accumulator, backward, i)
            at = dx.movedim(dim, -1)[i, k]
            assert at.item() == lp.round(torch.tensor(sums), "e8m10").item()


def test_cumsum_keeps_later_specials_out():
    x = torch.tensor([1.0, math.inf, 1.0, math.nan])
    y = functional.cumsum(x, 0, precision=PRECISION)
    assert_bit_equal(y, torch.tensor([1.0, math.inf, math.inf, math.nan]))


def test_prod():
    x = torch.tensor([[1.5, 2.5, -3.0], [0.0, 2.0, 5.0]], requires_grad=True)
    y = functional.prod(x, 1, precision=PRECISION)
    assert y.tolist() == [-12.0, 0.0]  # -11.25 rounds to 3 significant bits
    (dx,) = torch.autograd.grad(y, x, torch.ones(2))
    exact = torch.tensor([[-7.5, -4.5, 3.75], [10.0, 0.0, 0.0]])
    assert_bit_equal(dx, oracle_round(exact, "e5m2"))
    assert functional.prod(x, precision=PRECISION).item() == 0


REDUCTIONS = {
    "sum": lambda f, x, **p: f.sum(x, 1, **p),
    "all": lambda f, x, **p: f.sum(x, **p),
    "mean": lambda f, x, **p: f.mean(x, (0, 2), True, **p),
    "var": lambda f, x, **p: f.var(x, 1, correction=0, **p),
    "std": lambda f, x, **p: f.std(x, (1, 2), keepdim=True, **p),
    "prod": lambda f, x, **p: f.prod(x, 1, **p),
    "prod of all": lambda f, x, **p: f.prod(x, **p),
    "cumsum": lambda f, x, **p: f.cumsum(x, 1, **p),
    "logsumexp": lambda f, x, **p: f.logsumexp(x, 1, **p),
    "norm": lambda f, x, **p: f.norm(x, 2, 1, **p),
    "norm of all": lambda f, x, **p: f.norm(x, **p),
}


@pytest.mark.parametrize("name", list(REDUCTIONS))
def test_identity_is_torch(name):
    call = REDUCTIONS[name]
    assert_identity(
        lambda x, **p: call(functional, x, **p), lambda x: call(torch, x), leaf(3, 4, 5)
    )


@pytest.mark.parametrize("name", list(REDUCTIONS))
def test_shapes_values_and_formats(name):
    call, x = REDUCTIONS[name], leaf(3, 4, 5, dtype=torch.float64)
    y = call(functional, x, precision=PRECISION)
    assert y.shape == call(torch, x).shape
    check_representable(y, [x], "e5m2")
    # With formats that are nearly exact the value is nearly torch's.
    fine = Precision(elementwise="e11m50", accumulator="e11m50")
    y, wanted = call(functional, x, precision=fine), call(torch, x)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    g = torch.randn(y.shape, dtype=y.dtype)
    ours, theirs = (torch.autograd.grad(v, x, g)[0] for v in (y, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", list(REDUCTIONS))
def test_torch_func(name):
    call, x = REDUCTIONS[name], torch.randn(2, 3, 4, 5)

    def loss(x):
        return call(functional, x, precision=PRECISION).sum()

    actual = torch.func.vmap(torch.func.grad(loss))(x)
    for row, gradient in zip(x, actual, strict=True):
        assert_bit_equal(gradient, torch.func.grad(loss)(row))


@ignore_dynamo
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(backend):
    x = leaf(3, 4)

    def run(x):
        y = functional.var(x, 1, precision=PRECISION)
        return functional.sum(y, precision=PRECISION)

    torch._dynamo.reset()
    y = torch.compile(run, fullgraph=True, backend=backend)(x)
    assert_bit_equal(y.detach(), run(x).detach())
    (ours,) = torch.autograd.grad(y, x)
    assert_bit_equal(ours, torch.autograd.grad(run(x), x)[0])


def test_dtypes_integers_and_small_shapes():
    x = torch.ones(3, requires_grad=True)
    y = functional.sum(x, dtype=torch.float64, precision=PRECISION)
    assert y.dtype == torch.float64
    assert torch.autograd.grad(y, x)[0].dtype == torch.float32
    assert functional.sum(torch.arange(300), precision=PRECISION).item() == 44850
    scalar = torch.tensor(1.3)
    assert functional.sum(scalar, precision=PRECISION).item() == 1.25
    assert functional.cumsum(scalar, 0, precision=PRECISION).item() == 1.25
    assert functional.sum(torch.ones(0, 2), 0, precision=PRECISION).tolist() == [0, 0]
    assert functional.mean(torch.ones(0), precision=PRECISION).isnan()
    with pytest.raises(TypeError, match="half carrier"):
        functional.sum(x.half(), precision=PRECISION)
