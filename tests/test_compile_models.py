"""torch.compile: converted models, and contexts around and inside of compiled code."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from layer_roundings import ignore_dynamo
from model_zoo import CASES

import lowprec as lp
import lowprec.nn
from lowprec import Policy, Precision, Rounding
from lowprec.testing import assert_bit_equal

LOW = Precision(
    input="e4m3fn",
    weight="e5m2",
    output="e6m8",
    grad_output="e5m2",
    grad_input="e6m4",
    grad_weight="e8m3",
    accumulator="e8m7",
    elementwise="bfloat16",
)
RANDOM = Precision(
    weight=Rounding("e4m3fn", "stochastic"),
    grad_weight=Rounding("e4m3fn", "stochastic"),
    elementwise=Rounding("bfloat16", "stochastic"),
    accumulator=Rounding("e8m7", "stochastic"),
)
OTHER = Precision(elementwise="e8m1")
pytestmark = [
    ignore_dynamo,
    # Dynamo looks at .grad of every tensor it meets.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(torch.nn.Module):
    """Methods, operators, functions in place, a container and a norm."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.inner = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())

    def forward(self, x):
        y = F.softmax(self.norm(self.first(x)), dim=-1)
        y = self.inner(y).transpose(0, 1).contiguous()
        return y @ x


class Small(torch.nn.Module):
    """A layer, a fused operation and a method in place: quick to trace."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.norm = torch.nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.layer(x)).transpose(0, 1).exp_()


def step(call, model, x):
    model.zero_grad()
    torch.manual_seed(3)
    y = call(x)
    y.backward(torch.ones_like(y))
    return [y.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def assert_same(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        assert_bit_equal(left, right)


@pytest.mark.parametrize(
    ("precision", "kind"),
    [
        (LOW, Small),
        (RANDOM, Small),
        (None, Block),
        pytest.param(LOW, Block, marks=pytest.mark.slow),
        pytest.param(RANDOM, Block, marks=pytest.mark.slow),
    ],
)
def test_converted_models_compile(precision, kind):
    model, x = lp.nn.convert_(kind(), Policy({"*": precision})), torch.randn(4, 4)
    expected = step(model, model, x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(step(compiled, model, x), expected)
    assert torch.overrides._get_current_function_mode_stack() == []


def test_precisions_of_modules_reach_compiled_code():
    policy = Policy({"*": LOW, "norm": None}, operations={"exp": OTHER})
    model, x = lp.nn.convert_(Small(), policy), torch.randn(4, 4)
    expected = step(model, model, x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(step(compiled, model, x), expected)


@pytest.mark.parametrize("precision", [LOW, RANDOM], ids=["low", "random"])
@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)]
)
def test_compiled_models_are_emulated_inside_a_context(backend, precision):
    model, x = Small(), torch.randn(4, 4)
    plain = step(model, model, x)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for context in (
        lp.emulate(precision, strict=True),
        lp.emulate(Policy({"*": precision, "norm": None}), model, strict=True),
    ):
        with context:
            expected = step(model, model, x)
            assert_same(step(compiled, model, x), expected)
            assert_same(step(compiled, model, x), expected)
        assert not torch.equal(expected[0], plain[0])
        assert_same(step(compiled, model, x), plain)


def test_sizes_may_change():
    model = lp.nn.convert_(Small(), LOW)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for rows in (3, 5, 7):
        x = torch.randn(rows, 4)
        assert_same(step(compiled, model, x), step(model, model, x))


def test_compiled_code_enters_a_context():
    model, x = Small(), torch.randn(4, 4)
    context = lp.emulate(LOW, strict=True)

    def inside(x):
        with context:
            y = model(x)
        return y + 1

    expected = step(inside, model, x)
    compiled = torch.compile(inside, backend="eager", fullgraph=True)
    assert_same(step(compiled, model, x), expected)
    with lp.emulate(OTHER):
        again = step(inside, model, x)
        assert_same(step(compiled, model, x), again)
    assert not torch.equal(again[0], expected[0])


def test_compiled_code_cannot_enter_a_context_with_a_model():
    model, x = Small(), torch.randn(4, 4)
    context = lp.emulate(Policy({"*": LOW}), model)

    @torch.compile(backend="eager", fullgraph=True)
    def inside(x):
        with context:
            return model(x)

    with pytest.raises(Exception, match="compiled code cannot enter"):
        inside(x)


def test_graph_breaks_keep_the_context():
    layer, x = torch.nn.Linear(4, 4), torch.randn(3, 4)

    def broken(x):
        y = layer(x)
        torch._dynamo.graph_break()
        return layer(y)

    compiled = torch.compile(broken, backend="aot_eager")
    for context in (lp.emulate(LOW), contextlib.nullcontext()):
        with context:
            expected = broken(x).detach()
            assert_bit_equal(compiled(x).detach(), expected)


class Recurrent(torch.nn.Module):
    """Dynamo breaks its graph at the LSTM."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.lstm = torch.nn.LSTM(4, 3)

    def forward(self, x):
        return self.lstm(torch.tanh(self.first(x)))[0]


@pytest.mark.parametrize("kind", ["convert", "emulate", "model"])
def test_modules_that_dynamo_does_not_trace_run_eagerly(kind):
    model, x = Recurrent(), torch.randn(5, 4)
    contexts = {"emulate": lp.emulate(LOW), "model": lp.emulate({"*": LOW}, model)}
    if kind == "convert":
        lp.nn.convert_(model, LOW)
    compiled = torch.compile(model, backend="aot_eager")
    with contexts.get(kind, contextlib.nullcontext()):
        expected = step(model, model, x)
        for _ in range(2):
            assert_same(step(compiled, model, x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch._dynamo.config.patch(allow_rnn=True)
def test_the_six_models_compile(case):
    model = lp.nn.convert_(case.build(0), LOW)
    for module in model.modules():  # masks come from another stream when compiled
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    start, (x, _) = copy.deepcopy(model.state_dict()), case.batch(1)
    expected = step(model, model, x)
    model.load_state_dict(start)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(step(compiled, model, x), expected)


@pytest.mark.slow
def test_converted_models_compile_with_inductor():
    model, x = lp.nn.convert_(Block(), LOW), torch.randn(4, 4)
    expected = step(model, model, x)
    compiled = torch.compile(model, fullgraph=True)
    assert_same(step(compiled, model, x), expected)
    lp.nn.unconvert_(model)
    with lp.emulate(LOW):
        assert_same(step(compiled, model, x), expected)
