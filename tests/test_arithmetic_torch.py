"""add, sub, mul, div, sqrt, fma among torch's mechanisms: autograd, func, compile."""

import pytest
import torch
from layer_roundings import ignore_dynamo, leaf
from tables import CARRIERS

import lowprec as lp
from lowprec import Rounding
from lowprec.testing import assert_bit_equal

# A function, torch's twin, the number of operands.
OPERATIONS = {
    "add": (lp.add, torch.add, 2),
    "sub": (lp.sub, torch.sub, 2),
    "mul": (lp.mul, torch.mul, 2),
    "div": (lp.div, torch.div, 2),
    "sqrt": (lp.sqrt, torch.sqrt, 1),
    "fma": (lp.fma, lambda a, b, c: a * b + c, 3),
}


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_gradients_are_those_of_torch(name):
    function, twin, arity = OPERATIONS[name]
    leaves = [torch.rand(4, 3).requires_grad_() for _ in range(arity - 1)]
    leaves.append(torch.rand(3).requires_grad_())
    g = torch.randn(torch.broadcast_shapes(*[x.shape for x in leaves]))
    y = function(*leaves, "bfloat16")
    assert_bit_equal(y.detach(), function(*[x.detach() for x in leaves], "bfloat16"))
    theirs = torch.autograd.grad(twin(*leaves), leaves, g)
    for ours, wanted in zip(torch.autograd.grad(y, leaves, g), theirs, strict=True):
        assert_bit_equal(ours, wanted)
    y.detach_().add_(1)  # a result of its own, not a view of anything


@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_torch_func(name, mode):
    function, _, arity = OPERATIONS[name]
    shared, *mapped = [torch.rand(5, 3) for _ in range(arity)]
    seed = None if mode == "nearest_even" else 3

    def value(*operands):
        return function(*operands, "bfloat16", mode, seed=seed)

    def loss(*operands):
        return (value(*operands) ** 2).sum()

    in_dims = (0, *(None for _ in mapped))
    mapped = [x[0] for x in mapped]
    values = torch.func.vmap(value, in_dims)(shared, *mapped)
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims)(shared, *mapped)
    for row, result, gradient in zip(shared, values, gradients, strict=True):
        assert_bit_equal(result, value(row, *mapped))
        assert_bit_equal(gradient, torch.func.grad(loss)(row, *mapped))


@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_opcheck(mode):
    rounding = Rounding("bfloat16", mode)
    seed = torch.tensor(3) if rounding.stochastic else None
    for dtype in CARRIERS:
        operands = [torch.rand(3, 2, dtype=dtype).mT for _ in range(3)]
        for operation in range(5):
            arguments = (operation, *operands, list(rounding.code), seed, 7)
            torch.library.opcheck(torch.ops.lowprec.basic.default, arguments)


def test_double_backward_is_that_of_torch():
    a, b = leaf(3), leaf(3)
    (da,) = torch.autograd.grad(lp.mul(a, b, "e5m2").sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(da.square().sum(), b)
    assert_bit_equal(second, 2 * b.detach())


@ignore_dynamo
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(backend):
    a, b, c = leaf(4, 3), leaf(3), leaf(4, 1)

    def run(a, b, c):
        y = lp.sub(lp.add(lp.mul(a, b, "bfloat16"), 0.1, "e5m2"), c, "e5m2")
        return lp.fma(lp.div(a, b, "bfloat16"), lp.sqrt(b.abs(), "e8m3"), y, "e8m3")

    torch._dynamo.reset()
    y = torch.compile(run, fullgraph=True, backend=backend)(a, b, c)
    assert_bit_equal(y, run(a, b, c))
    ours = torch.autograd.grad(y.sum(), (a, b, c))
    theirs = torch.autograd.grad(run(a, b, c).sum(), (a, b, c))
    for left, right in zip(ours, theirs, strict=True):
        assert_bit_equal(left, right)
