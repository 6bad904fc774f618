"""The softmax family: against formulas in float64 whose sums are lowprec.matmul's."""

import pytest
import torch
from gradients import assert_all_close, assert_all_equal, everything, incoming, sums
from layer_roundings import ignore_dynamo

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.precision import Precision
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal

PAIRS = {
    "softmax": (functional.softmax, torch.softmax),
    "log_softmax": (functional.log_softmax, torch.log_softmax),
    "softmin": (functional.softmin, torch.nn.functional.softmin),
}
LOW = Precision(
    elementwise="e6m4",
    accumulator=Accumulator("e6m5", product="e3m1"),
    grad_accumulator=Accumulator("e6m6", order="pairwise"),
)
WIDE = Precision(elementwise="e11m50", accumulator="e11m50")


def expected(name, x, precision, seeds=(None,) * 8):
    """The formulas of the docstrings along the last dimension."""
    z = x.double() * (-1 if name == "softmin" else 1)
    z = z - z.amax(-1, keepdim=True)
    e = z.exp()
    s = sums(e, precision.accumulator, seeds[2])
    y = z - s.log() if name == "log_softmax" else e / s
    y = lp.round(y, precision.elementwise, seed=seeds[6]).to(x.dtype)
    (g,) = incoming([y])
    g = lp.round(g, precision.elementwise, seed=seeds[7]).double()
    backward = precision.backward_accumulator
    if name == "log_softmax":
        dx = g - sums(g, backward, seeds[5]) / s * e
    else:
        dx = (g / s + sums(-g * (e / s) / s, backward, seeds[5])) * e
    dx = dx * (-1 if name == "softmin" else 1)
    return [y, lp.round(dx, precision.elementwise, seed=seeds[1]).to(x.dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_it_is_its_formula(name, dtype):
    x = torch.randn(3, 4, 17, dtype=dtype, requires_grad=True)
    ours = everything(lambda x: PAIRS[name][0](x, -1, precision=LOW), [x])
    assert_all_equal(ours, expected(name, x.detach(), LOW))


@pytest.mark.parametrize("name", PAIRS)
def test_stochastic_roundings_take_seeds_in_order(name):
    stochastic = Rounding("e6m4", "stochastic")
    precision = Precision(elementwise=stochastic, accumulator=stochastic)
    x = torch.randn(5, 7, requires_grad=True)
    ours = everything(lambda x: PAIRS[name][0](x, -1, precision=precision, seed=3), [x])
    seeds = split_seed(torch.tensor(3), 8)
    assert_all_equal(ours, expected(name, x.detach(), precision, seeds))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_wide_formats_are_nearly_float64(name, dim):
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    ours = everything(lambda x: PAIRS[name][0](x, dim, precision=WIDE), [x])
    theirs = everything(lambda x: PAIRS[name][1](x, dim), [x])
    assert_all_close(ours, theirs)


@pytest.mark.parametrize("name", PAIRS)
def test_without_elementwise_it_is_torchs(name):
    x = torch.randn(3, 4, requires_grad=True)
    precision = Precision(accumulator="e6m4", output="e5m2")
    for dtype in (None, torch.float64):
        ours = everything(
            lambda x, dtype=dtype: PAIRS[name][0](x, 0, dtype, precision=precision),
            [x],
        )
        theirs = everything(
            lambda x, dtype=dtype: PAIRS[name][1](x, 0, dtype=dtype), [x]
        )
        assert_all_equal(ours, theirs)


@pytest.mark.parametrize("name", PAIRS)
def test_dtype_converts_first(name):
    x = torch.randn(3, 4)
    actual = PAIRS[name][0](x, 0, torch.float64, precision=LOW)
    assert_bit_equal(actual, PAIRS[name][0](x.double(), 0, precision=LOW))


@pytest.mark.parametrize("name", PAIRS)
def test_infinities(name):
    # A masked element takes no part; a row without any is NaN, as torch's.
    sign = -1 if name == "softmin" else 1
    x = sign * torch.tensor(
        [[0.0, -torch.inf, 1.0], [-torch.inf] * 3, [0, torch.inf, 0]]
    )
    x.requires_grad_()
    ours = everything(lambda x: PAIRS[name][0](x, -1, precision=WIDE), [x.double()])
    theirs = everything(lambda x: PAIRS[name][1](x, -1), [x.double()])
    for actual, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual[0], wanted[0], rtol=1e-12, atol=0)
        assert bool(actual[1:].isnan().all()) == bool(wanted[1:].isnan().all())


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0)])
def test_shapes_at_the_edge(shape):
    x = torch.randn(shape, requires_grad=True)
    y = functional.softmax(x, 0, precision=LOW)
    assert y.shape == shape
    assert_bit_equal(y.detach(), torch.ones(shape))
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert gradient.shape == shape


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_torchs_choice_of_a_dimension():
    x = torch.randn(3, 4)
    actual = functional.softmax(x, precision=LOW)
    assert_bit_equal(actual, functional.softmax(x, 1, precision=LOW))


def test_refusals():
    with pytest.raises(TypeError, match="half carrier"):
        functional.softmax(torch.ones(2).half(), 0, precision=LOW)
    with pytest.raises(IndexError, match=r"dim 2 is out of range for shape \(2, 2\)"):
        functional.softmax(torch.ones(2, 2), 2, precision=LOW)
    with pytest.raises(TypeError, match="expected a Precision"):
        functional.softmax(torch.ones(2, 2), 1, precision="e5m2")


@ignore_dynamo
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_compiles_without_graph_breaks(name):
    x = torch.randn(3, 4, requires_grad=True)

    def run(x):
        return PAIRS[name][0](x, -1, precision=LOW)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_all_equal(everything(compiled, [x]), everything(run, [x]))


@pytest.mark.parametrize("name", PAIRS)
def test_per_sample_gradients_by_torch_func(name):
    x, weights = torch.randn(3, 2, 4), torch.randn(2, 4)

    def loss(x):
        return (PAIRS[name][0](x, -1, precision=LOW) * weights).sum()

    actual = torch.func.vmap(torch.func.grad(loss))(x)
    for row, gradient in zip(x, actual, strict=True):
        assert_bit_equal(gradient, torch.func.grad(loss)(row))
