"""exp, log, tanh, sigmoid, softmax: the exact value, by mpmath, rounded once."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_roundings import ignore_dynamo, leaf
from tables import CARRIERS, DETERMINISTIC, MODES

import lowprec as lp
from lowprec import Format, Rounding
from lowprec.kernels import basic, transcendental
from lowprec.testing import (
    assert_bit_equal,
    exact_operation,
    exact_round,
    exact_softmax,
    exact_value,
)
from lowprec.testing import random_word as word
from lowprec.testing import strategies as lps

FUNCTIONS = {
    "exp": (lp.exp, torch.exp, basic.EXP),
    "log": (lp.log, torch.log, basic.LOG),
    "tanh": (lp.tanh, torch.tanh, basic.TANH),
    "sigmoid": (lp.sigmoid, torch.sigmoid, basic.SIGMOID),
}
# To these every element is computed in integers, or lies beyond what enclosures tell.
DEEP = [
    "e11m50",
    Format(precision=51, emax=900, emin=-1024),
    Format(precision=3, emax=-900, emin=-1060),
    Format(precision=9, emax=1023, subnormals=False),
]
EDGES = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 5e-324, -5e-324]
EDGES += [sign * x for sign in (1, -1) for x in (1e308, 1e4, 745.2, 709.8, 2.0**-60)]
EDGES += [1 + 2**-52, 1 - 2**-53, 1 + 2**-23, 1 - 2**-24, 88.7, -103.9, -87.3]


def expected(name, x, rounding, seed=0):
    words = [word(seed, i) if rounding.stochastic else 0 for i in range(x.numel())]
    results = [
        exact_operation(name, (value,), rounding, one)
        for value, one in zip(x.flatten().tolist(), words, strict=True)
    ]
    return torch.tensor(results, dtype=x.dtype).reshape(x.shape)


def check(name, x, rounding):
    seed = 5 if rounding.stochastic else None
    actual = FUNCTIONS[name][0](x, rounding, seed=seed)
    assert_bit_equal(actual, expected(name, x, rounding, 5))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("target", ["e4m3fn", "e5m2"])
def test_all_inputs_of_two_8_bit_formats(name, target, mode):
    x = lp.format(target).decode(torch.arange(256))
    check(name, x.to(torch.float32), Rounding(target, mode))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("target", ["binary16", "bfloat16"])
def test_all_inputs_of_two_16_bit_formats(name, target):
    x = lp.format(target).decode(torch.arange(2**16)).to(torch.float32)
    exact = [exact_value(name, (value,)) for value in x.tolist()]
    for mode in DETERMINISTIC:
        rounding = Rounding(target, mode)
        wanted = torch.tensor([exact_round(value, rounding) for value in exact])
        assert_bit_equal(FUNCTIONS[name][0](x, rounding), wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_any_operands(name, mode):
    edges = torch.tensor(EDGES, dtype=torch.float64)
    scale = 2.0 ** torch.randint(-30, 8, (30,))
    near_one = 1 + torch.randn(10) * 2.0 ** -torch.randint(3, 50, (10,))
    x = torch.cat([edges, torch.randn(30).double() * scale, near_one])
    for target in ["bfloat16", "e4m3", "binary32", "e11m5", *DEEP]:
        check(name, x, Rounding(target, mode))
    check(name, x.to(torch.float32), Rounding("e8m22", mode))


@pytest.mark.parametrize("name", list(FUNCTIONS))
@given(data=st.data())
@settings(max_examples=50)
def test_any_rounding(name, data):
    dtype = data.draw(st.sampled_from(CARRIERS))
    widest = (24, 8) if dtype == torch.float32 else (51, 11)
    formats = lps.formats(
        max_precision=widest[0], max_exponent_bits=widest[1], carrier=dtype
    )
    rounding = data.draw(lps.roundings(formats))
    check(name, data.draw(lps.tensors((6,), dtype, near=rounding.format)), rounding)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_float64_values_deserve_the_trust_in_them(name):
    # Sixteen units in the last place are trusted; two are what libraries promise.
    x = torch.cat([torch.randn(300).double() * 2.0**k for k in (-40, -8, 0, 3, 6)])
    x = x.clamp(-700, 700).abs() if name == "log" else x.clamp(-700, 700)
    function = FUNCTIONS[name][1]
    with mpmath.workprec(200):
        exactly = {"sigmoid": lambda y: 1 / (1 + mpmath.exp(-y))}.get(name)
        exactly = exactly or getattr(mpmath, name)
        for argument, value in zip(x.tolist(), function(x).tolist(), strict=True):
            exact = exactly(mpmath.mpf(argument))
            assert abs(value - exact) <= 4 * 2.0**-52 * abs(exact)


def test_a_wrong_library_would_be_noticed_by_the_exact_values(monkeypatch):
    # If float64 is wrong within the trusted range, integers still decide.
    x = torch.linspace(-5, 5, 200, dtype=torch.float64)
    right = lp.exp(x, "e8m40")
    theirs = torch.Tensor.exp
    monkeypatch.setattr(torch.Tensor, "exp", lambda x: theirs(x) * (1 + 2.0**-49.5))
    assert_bit_equal(lp.exp(x, "e8m40"), right)


def test_integers_give_what_mpmath_gives():
    with mpmath.workprec(400):
        exact = mpmath.log(mpmath.mpf(3.0))
    got = transcendental.logarithm(3.0)
    with mpmath.workprec(400):
        distance = abs(mpmath.mpf(got.significand) * 2.0**got.exponent - exact)
        assert 0 < distance < mpmath.mpf(2) ** -52


def test_values_lie_strictly_inside_their_range():
    x = torch.tensor([40.0, 1e30, 2.0**-60, 1e-30])
    down, up = "toward_zero", "toward_positive"
    below = lp.format("bfloat16").ulp(0.75)
    assert lp.tanh(x[:2], "bfloat16", down).tolist() == [1 - below] * 2
    assert lp.sigmoid(x[:2], "bfloat16", down).tolist() == [1 - below] * 2
    assert lp.sigmoid(-x[:2], "e4m3", up).tolist() == [2.0**-9] * 2
    assert lp.exp(x[2:], "bfloat16", up).tolist() == [1 + 2.0**-7] * 2
    assert lp.exp(-x[2:], "bfloat16", down).tolist() == [1 - below] * 2
    assert lp.tanh(x[2:3], "bfloat16").item() == 2.0**-60
    assert lp.tanh(x[2:3], "bfloat16", down).item() == 2.0**-60 * (1 - 2.0**-8)


ROWS = [
    [0.0, 0.0, 0.0],
    [1.0, -2.5, 0.75],
    [0.0, 0.0, -1e9],
    [5.0, -1000.0, -1e30],
    [math.inf, 0.0, 1.0],
    [-math.inf, 0.0, -math.inf],
    [-math.inf] * 3,
    [math.nan, 1.0, 2.0],
    [1e30, 1e30, -1e30],
    [1e-30, 0.0, -1e-30],
    [0.0, 2.0**-40, -(2.0**-40)],
    [3e38, 3e38, 3.3e38],
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", ["bfloat16", "e4m3fn", "e8m40", DEEP[0]])
def test_softmax(target, mode):
    rows = torch.tensor([*ROWS, *torch.randn(8, 3).tolist()], dtype=torch.float64)
    rounding = Rounding(target, mode)
    seed = 7 if rounding.stochastic else None
    for dim, x in ((1, rows), (0, rows.T), (-2, rows.T)):
        index = torch.arange(x.numel()).reshape(x.shape)
        moved, places = x.movedim(dim, -1), index.movedim(dim, -1)
        wanted = [
            exact_softmax(row, rounding, [word(7, i) for i in numbers])
            for row, numbers in zip(moved.tolist(), places.tolist(), strict=True)
        ]
        result = lp.softmax(x, dim, rounding, seed=seed)
        values = torch.tensor(wanted, dtype=x.dtype).movedim(-1, dim)
        assert_bit_equal(result, values.contiguous())


def test_softmax_of_many_and_of_float32():
    x = torch.randn(3, 500) * 4
    result = lp.softmax(x, 1, "e8m15", "toward_positive")
    wanted = [
        exact_softmax(row, Rounding("e8m15", "toward_positive")) for row in x.tolist()
    ]
    assert_bit_equal(result, torch.tensor(wanted))
    # As many equal shares as there are elements; 1/3 is no binary number.
    assert lp.softmax(torch.zeros(3), 0, "e8m22", "to_odd").unique().numel() == 1
    assert lp.softmax(torch.tensor(3.0), 0, "bfloat16").item() == 1.0
    assert lp.softmax(torch.empty(0, 4), 0, "bfloat16").shape == (0, 4)
    with pytest.raises(IndexError, match="dim=2 is none of the 2 dimensions"):
        lp.softmax(x, 2, "bfloat16")
    with pytest.raises(ValueError, match="not both"):
        lp.softmax(x, 1, "bfloat16", seed=1, generator=torch.Generator())


@pytest.mark.parametrize("dim", [None, True, 1.0, "0"])
def test_the_dimension_of_softmax_is_an_int(dim):
    with pytest.raises(TypeError, match="dim must be an int, got"):
        lp.softmax(torch.ones(2, 2), dim, "bfloat16")


@pytest.mark.parametrize("name", [*FUNCTIONS, "softmax"])
@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_gradients_and_torch_func(name, mode):
    seed = None if mode == "nearest_even" else 3
    twin = FUNCTIONS[name][1] if name in FUNCTIONS else torch.softmax

    def ours(x):
        if name == "softmax":
            return lp.softmax(x, -1, "bfloat16", mode, seed=seed)
        return FUNCTIONS[name][0](x, "bfloat16", mode, seed=seed)

    x = torch.rand(4, 3).requires_grad_()
    g = torch.randn(4, 3)
    theirs = twin(x, -1) if name == "softmax" else twin(x)
    y = ours(x)
    assert_bit_equal(y.detach(), ours(x.detach()))
    (gradient,) = torch.autograd.grad(y, x, g)
    assert_bit_equal(gradient, torch.autograd.grad(theirs, x, g)[0])

    def loss(x):
        return (ours(x) ** 2).sum()

    x = x.detach()
    rows = torch.func.vmap(ours)(x)
    gradients = torch.func.vmap(torch.func.grad(loss))(x)
    for row, result, gradient in zip(x, rows, gradients, strict=True):
        assert_bit_equal(result, ours(row))
        assert_bit_equal(gradient, torch.func.grad(loss)(row))


@ignore_dynamo
def test_compiles_without_graph_breaks():
    x = leaf(4, 3)

    def run(x):
        y = lp.exp(lp.tanh(x, "bfloat16"), "e5m2")
        return lp.softmax(lp.sigmoid(lp.log(y, "e8m3"), "e8m3"), 1, "bfloat16")

    torch._dynamo.reset()
    y = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert_bit_equal(y, run(x))
    (ours,) = torch.autograd.grad(y.sum(), x)
    assert_bit_equal(ours, torch.autograd.grad(run(x).sum(), x)[0])


def test_opcheck():
    for mode in ("nearest_even", "stochastic"):
        code = list(Rounding("bfloat16", mode).code)
        seed = torch.tensor(3) if mode == "stochastic" else None
        x = torch.rand(3, 2).mT
        torch.library.opcheck(torch.ops.lowprec.softmax.default, (x, 0, code, seed, 7))
        for _, _, operation in FUNCTIONS.values():
            arguments = (operation, x, x, x, code, seed, 7)
            torch.library.opcheck(torch.ops.lowprec.basic.default, arguments)


def test_refusals():
    with pytest.raises(TypeError, match="half carrier"):
        lp.exp(torch.ones(2).half(), "e5m2")
    with pytest.raises(NotImplementedError, match="51 significant bits"):
        lp.log(torch.ones(2).double(), "binary64")
    with pytest.raises(ValueError, match="use float64 operands"):
        lp.softmax(torch.ones(2), 0, "e8m24")
    with pytest.raises(ValueError, match="operation must be one of round, add"):
        exact_operation("cbrt", (1.0,), "e5m2")
    with pytest.raises(ValueError, match="fma takes 3 operands, got 1"):
        exact_operation("fma", (1.0,), "e5m2")
