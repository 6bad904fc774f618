"""Elementwise functions: float64 formulas, rounded by the oracle."""

import operator

import pytest
import torch
import torch.nn.functional as F
from fused_operations import (
    PRECISION,
    assert_identity,
    check_representable,
    oracle_round,
    part,
)
from layer_roundings import ignore_dynamo, leaf
from torch.overrides import TorchFunctionMode

import lowprec as lp
from lowprec import Accumulator, Precision, Rounding, functional
from lowprec.testing import assert_bit_equal, exact_matmul

CARRIERS = [torch.float32, torch.float64]


def sigmoid(x):
    return 1 / (1 + (-x).exp())


# A function of torch, its keywords, f and f' in float64.
UNARY = {
    "exp": (torch.exp, {}, torch.exp, torch.exp),
    "log": (torch.log, {}, lambda x: x.log(), lambda x: 1 / x),
    "sin": (torch.sin, {}, torch.sin, torch.cos),
    "sqrt": (torch.sqrt, {}, torch.sqrt, lambda x: 0.5 / x.sqrt()),
    "rsqrt": (torch.rsqrt, {}, lambda x: 1 / x.sqrt(), lambda x: -0.5 * x**-1.5),
    "reciprocal": (torch.reciprocal, {}, lambda x: 1 / x, lambda x: -1 / x**2),
    "square": (torch.square, {}, lambda x: x * x, lambda x: 2 * x),
    "sigmoid": (torch.sigmoid, {}, sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "tanh": (torch.tanh, {}, torch.tanh, lambda x: 1 - torch.tanh(x) ** 2),
    "silu": (
        F.silu,
        {},
        lambda x: x * sigmoid(x),
        lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))),
    ),
    "leaky_relu": (
        F.leaky_relu,
        {"negative_slope": 0.1},
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: torch.where(x > 0, 1.0, 0.1),
    ),
    "softplus": (F.softplus, {}, lambda x: (1 + x.exp()).log(), sigmoid),
}


@pytest.mark.parametrize("dtype", CARRIERS)
@pytest.mark.parametrize("name", list(UNARY))
def test_unary_functions_are_their_formulas(name, dtype):
    function, options, value, slope = UNARY[name]
    x = (torch.rand(200, dtype=dtype) * 3 + 0.1).requires_grad_()
    if name in ("leaky_relu", "silu", "tanh"):
        x = leaf(200, dtype=dtype)
    g = torch.randn(200, dtype=dtype)
    y = functional.pointwise(function, x, precision=PRECISION, **options)
    (dx,) = torch.autograd.grad(y, x, g)
    wide = x.detach().double()
    assert_bit_equal(y.detach(), oracle_round(value(wide), "e5m2").to(dtype))
    arrived = oracle_round(g, "e5m2").double()
    assert_bit_equal(dx, oracle_round(arrived * slope(wide), "e5m2").to(dtype))


# A call, its exact value by Fractions' float64 twins, and derivatives by operand.
BINARY = {
    "add": (torch.add, {}, lambda a, b: a + b, (1.0, 1.0)),
    "operator add": (operator.add, {}, lambda a, b: a + b, (1.0, 1.0)),
    "sub": (torch.sub, {}, lambda a, b: a - b, (1.0, -1.0)),
    "rsub": (torch.rsub, {}, lambda a, b: b - a, (-1.0, 1.0)),
    "add alpha": (torch.add, {"alpha": 3}, lambda a, b: a + 3 * b, (1.0, 3.0)),
    "sub alpha": (torch.sub, {"alpha": 0.5}, lambda a, b: a - 0.5 * b, (1.0, -0.5)),
    "mul": (torch.mul, {}, lambda a, b: a * b, (lambda a, b: b, lambda a, b: a)),
    "div": (
        torch.div,
        {},
        lambda a, b: a / b,
        (lambda a, b: 1 / b, lambda a, b: -(a / b) / b),
    ),
    "hypot": (
        torch.hypot,
        {},
        torch.hypot,
        (lambda a, b: a / torch.hypot(a, b), lambda a, b: b / torch.hypot(a, b)),
    ),
}


@pytest.mark.parametrize("dtype", CARRIERS)
@pytest.mark.parametrize("name", list(BINARY))
@pytest.mark.parametrize("shapes", [((4, 5), (4, 5)), ((4, 5), (5,)), ((4, 1), (1, 5))])
def test_binary_functions_and_the_sums_of_their_gradients(name, dtype, shapes):
    function, options, value, slopes = BINARY[name]
    a, b = (leaf(*shape, dtype=dtype) for shape in shapes)
    y = functional.pointwise(function, a, b, precision=PRECISION, **options)
    wide = [x.detach().double().expand(y.shape) for x in (a, b)]
    assert_bit_equal(y.detach(), oracle_round(value(*wide), "e5m2").to(dtype))
    g = torch.randn(y.shape, dtype=dtype)
    arrived = oracle_round(g, "e5m2").double()
    gradients = torch.autograd.grad(y, (a, b), g)
    for x, slope, actual in zip((a, b), slopes, gradients, strict=True):
        terms = arrived * (slope if isinstance(slope, float) else slope(*wide))
        assert_bit_equal(actual, summed(terms, x, "e6m4", "e5m2"))


def summed(terms, x, accumulator, rounding):
    """Sum terms over what x was broadcast to, by the oracle; then round."""
    shape = (1,) * (terms.dim() - x.dim()) + tuple(x.shape)
    dims = [d for d, n in enumerate(shape) if n != terms.shape[d]]
    if dims:
        kept = [d for d in range(terms.dim()) if d not in dims]
        rows = terms.permute(*kept, *dims).flatten(len(kept))
        rows = rows.reshape(-1, rows.shape[-1])
        ones = torch.ones(rows.shape[1], 1, dtype=torch.float64)
        terms = exact_matmul(rows, ones, accumulator).reshape(x.shape)
    return oracle_round(terms.reshape(x.shape), rounding).to(x.dtype)


@pytest.mark.parametrize("mode", ["nearest_even", "toward_negative", "stochastic"])
@pytest.mark.parametrize("dtype", CARRIERS)
def test_basic_operations_are_correctly_rounded(mode, dtype):
    # The exact sum of 1 and a tiny number is no float64 number.
    precision = Precision(elementwise=Rounding("bfloat16", mode))
    tiny = 2.0**-100 if dtype == torch.float32 else 2.0**-1000
    a = torch.tensor([1.0, 1.0, 3.0, 2.0], dtype=dtype)
    b = torch.tensor([tiny, -tiny, 7.0, 1e-3], dtype=dtype)
    # Operands enter as borders 0 and 1, the result leaves as border 2.
    seed = None if mode != "stochastic" else part(9, 4)
    given = None if seed is None else 9
    for function, correct in (
        (torch.add, lp.add),
        (torch.sub, lp.sub),
        (torch.mul, lp.mul),
        (torch.div, lp.div),
    ):
        y = functional.pointwise(function, a, b, precision=precision, seed=given)
        assert_bit_equal(y, correct(a, b, precision.elementwise, seed=seed))
    seed = None if mode != "stochastic" else part(9, 6)
    y = functional.pointwise(torch.addcmul, a, b, b, precision=precision, seed=given)
    assert_bit_equal(y, lp.fma(b, b, a, precision.elementwise, seed=seed))


def test_wide_formats_round_float64_values():
    a, b = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    y = functional.pointwise(
        torch.mul, a, b, precision=Precision(elementwise="binary64")
    )
    assert_bit_equal(y, a * b)


def test_numbers_integers_and_masks():
    x = leaf(6)
    y = functional.pointwise(torch.mul, 0.1, x, precision=PRECISION)
    assert_bit_equal(y.detach(), lp.mul(0.1, x.detach(), "e5m2"))
    steps = torch.arange(6)
    y = functional.pointwise(torch.mul, x, steps, precision=PRECISION)
    assert_bit_equal(y.detach(), lp.mul(x.detach(), steps.float(), "e5m2"))
    y = functional.pointwise(torch.div, steps, 7, precision=PRECISION)
    assert_bit_equal(y, lp.div(steps.float(), 7, "e5m2"))
    assert functional.pointwise(torch.add, steps, 1, precision=PRECISION).sum() == 21
    y = functional.pointwise(torch.where, x > 0, x, 0.1, precision=PRECISION)
    expected = torch.where(x > 0, x, torch.tensor(0.1, dtype=torch.float64))
    assert_bit_equal(y.detach(), oracle_round(expected.detach(), "e5m2").float())


def test_zero_dimensional_tensors_do_not_promote():
    scale = torch.tensor(0.1, dtype=torch.float64)
    y = functional.pointwise(torch.mul, torch.randn(3), scale, precision=PRECISION)
    assert y.dtype == torch.float32


def test_prelu_rounds_its_weight():
    x, w, g = leaf(3, 2, 4), leaf(2), torch.randn(3, 2, 4)
    precision = Precision(
        elementwise="e5m2", weight="e4m3fn", grad_weight="e3m4", accumulator="e6m4"
    )
    y = functional.prelu(x, w, precision=precision)
    dx, dw = torch.autograd.grad(y, (x, w), g)
    slope = oracle_round(w, "e4m3fn").double().view(1, 2, 1).expand(x.shape)
    wide = x.detach().double()
    arrived = oracle_round(g, "e5m2").double()
    below = wide < 0
    value = torch.where(below, slope * wide, wide)
    assert_bit_equal(y.detach(), oracle_round(value, "e5m2").float())
    factor = torch.where(below, slope, 1.0)
    assert_bit_equal(dx, oracle_round(arrived * factor, "e5m2").float())
    terms = torch.where(below, arrived * wide, 0.0)
    assert_bit_equal(dw, summed(terms, w.view(1, 2, 1), "e6m4", "e3m4").flatten())
    assert_identity(lambda x, w, **p: functional.prelu(x, w, **p), F.prelu, x, w)
    assert functional.prelu(x, leaf(1), precision=precision).shape == x.shape


@pytest.mark.parametrize("name", list(UNARY))
def test_identity_is_torch(name):
    function, options, _, _ = UNARY[name]
    x = torch.rand(50).requires_grad_()
    assert_identity(
        lambda x, **p: functional.pointwise(function, x, **options, **p),
        lambda x: function(x, **options),
        x,
    )


GELU = [
    F.gelu,
    F.mish,
    F.elu,
    F.selu,
    F.hardswish,
    F.logsigmoid,
    torch.erf,
    torch.expm1,
]


@pytest.mark.parametrize("function", GELU)
def test_results_and_gradients_are_representable(function):
    x = leaf(300)
    y = functional.pointwise(function, x, precision=PRECISION)
    check_representable(y, [x], "e5m2")


def test_seeds_are_numbered_as_operands_come():
    rounding = Rounding("e5m2", "stochastic")
    precision = Precision(elementwise=rounding, accumulator=Accumulator(rounding))
    a, b, g = leaf(30), leaf(4, 30), torch.randn(4, 30)
    y = functional.pointwise(torch.mul, a, b, precision=precision, seed=3)
    # Borders: a enters (0), is broadcast (1), b enters (2), the product leaves (3).
    assert_bit_equal(
        y.detach(), lp.mul(a.detach(), b.detach(), rounding, seed=part(3, 6))
    )
    da, db = torch.autograd.grad(y, (a, b), g)
    arrived = lp.round(g, rounding, seed=part(3, 7)).double()
    db_wide = arrived * a.detach().double()
    assert_bit_equal(db, lp.round(db_wide, rounding, seed=part(3, 5)).float())
    ones = torch.ones(4, 1, dtype=torch.float64)
    terms = (arrived * b.detach().double()).mT
    total = exact_matmul(terms, ones, precision.accumulator, seed=int(part(3, 3)))
    assert_bit_equal(da, lp.round(total.squeeze(1), rounding, seed=part(3, 1)).float())


@pytest.mark.parametrize("function", [torch.mul, torch.add, torch.hypot])
def test_torch_func(function):
    a, b = torch.randn(3, 5), torch.rand(5)

    def loss(a, b):
        return functional.pointwise(function, a, b, precision=PRECISION).sum()

    both = torch.func.grad(loss, (0, 1))
    actual = torch.func.vmap(both, in_dims=(0, None))(a, b)
    for row, *gradients in zip(a, *actual, strict=True):
        for ours, wanted in zip(gradients, both(row, b), strict=True):
            assert_bit_equal(ours, wanted)


@ignore_dynamo
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(backend):
    a, b = leaf(4, 5), leaf(5)

    def run(a, b):
        y = functional.pointwise(torch.mul, a, b, precision=PRECISION)
        y = functional.pointwise(torch.add, y, 0.5, precision=PRECISION)
        return functional.pointwise(F.gelu, y, precision=PRECISION, approximate="tanh")

    torch._dynamo.reset()
    y = torch.compile(run, fullgraph=True, backend=backend)(a, b)
    assert_bit_equal(y.detach(), run(a, b).detach())
    ours = torch.autograd.grad(y.sum(), (a, b))
    theirs = torch.autograd.grad(run(a, b).sum(), (a, b))
    for left, right in zip(ours, theirs, strict=True):
        assert_bit_equal(left, right)


def test_modes_see_one_operation():
    class Names(TorchFunctionMode):
        seen = ()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen += (func,)
            return func(*args, **(kwargs or {}))

    with Names() as names:
        functional.pointwise(torch.exp, torch.ones(2), precision=PRECISION)
    assert functional.pointwise in names.seen
    assert torch.exp not in names.seen


def test_refusals():
    with pytest.raises(TypeError, match="half carrier"):
        functional.pointwise(torch.exp, torch.ones(2).half(), precision=PRECISION)
    with pytest.raises(TypeError, match="view_as_real"):
        functional.pointwise(torch.exp, torch.ones(2) * 1j, precision=PRECISION)
    with pytest.raises(TypeError, match="expected a Precision"):
        functional.pointwise(torch.exp, torch.ones(2), precision="e5m2")
    with pytest.raises(ValueError, match="use float64 tensors"):
        functional.pointwise(
            torch.exp, torch.ones(2), precision=Precision(elementwise="e8m24")
        )
