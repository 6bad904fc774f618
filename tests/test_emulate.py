"""The emulate context: what it replaces, lets pass, reports and refuses."""

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F

import lowprec.nn
from lowprec import Rounding, functional
from lowprec._emulate import Coverage, emulate
from lowprec.errors import NumericalWarning
from lowprec.precision import Policy, Precision
from lowprec.testing import assert_bit_equal

LOW = Precision(
    input="e4m3fn",
    weight="e5m2",
    output="e6m8",
    grad_output="e5m2",
    grad_input="e6m4",
    grad_weight="e8m3",
    accumulator="e8m7",
)
OTHER = Precision(weight="e8m1")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 5)
        self.second = torch.nn.Linear(5, 2)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def run(model, x, context, backward_inside):
    model.zero_grad()
    with context:
        y = model(x)
        if backward_inside:
            y.backward(torch.ones_like(y))
    if not backward_inside:
        y.backward(torch.ones_like(y))
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_all_equal(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        assert_bit_equal(left, right)


@pytest.mark.parametrize("backward_inside", [True, False])
@pytest.mark.parametrize("accumulator", [None, "e8m7", Rounding("e8m4", "stochastic")])
def test_emulate_and_convert_agree(accumulator, backward_inside):
    precision = Precision(
        accumulator=accumulator, input="e4m3fn", weight=Rounding("e5m2", "stochastic")
    )
    model, x = Net(), torch.randn(3, 4)
    torch.manual_seed(5)
    context = emulate(precision, strict=True)
    emulated = run(model, x, context, backward_inside)
    torch.manual_seed(5)
    lowprec.nn.convert_(model, precision, strict=True)
    assert_all_equal(run(model, x, torch.enable_grad(), False), emulated)


def test_generator_serves_the_context():
    precision = Precision(weight=Rounding("e5m2", "stochastic"))
    model, x = Net(), torch.randn(3, 4)
    results = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        with emulate(precision, generator=generator):
            results.append(model(x).detach())
    assert_bit_equal(*results)


A, B, V = torch.randn(2, 3), torch.randn(3, 2), torch.randn(3)
BATCH_A, BATCH_B = torch.randn(2, 2, 3), torch.randn(2, 3, 2)
PRODUCTS = [
    ("matmul", lambda: torch.matmul(A, B), A, B),
    ("matmul", lambda: A @ B, A, B),
    ("matmul", lambda: A.matmul(B), A, B),
    ("matmul", lambda: A.__matmul__(B), A, B),
    ("matmul", lambda: B.__rmatmul__(A), A, B),
    ("matmul", lambda: BATCH_A @ B, BATCH_A, B),
    ("mm", lambda: torch.mm(A, B), A, B),
    ("mm", lambda: A.mm(mat2=B), A, B),
    ("bmm", lambda: torch.bmm(BATCH_A, BATCH_B), BATCH_A, BATCH_B),
    ("mv", lambda: torch.mv(A, V), A, V),
    ("dot", lambda: V.dot(V), V, V),
    ("mm", lambda: torch.ops.aten.mm(A, B), A, B),
    ("mm", lambda: torch.ops.aten.mm.default(A, B), A, B),
]


@pytest.mark.parametrize(("name", "call", "a", "b"), PRODUCTS)
def test_products_are_emulated(name, call, a, b):
    with emulate(LOW, strict=True) as context:
        actual = call()
    assert_bit_equal(actual, functional.matmul(a, b, precision=LOW))
    assert [tuple(row) for row in context.coverage()] == [(name, 1, "emulated", "")]


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, b: F.linear(x, w, b),
        lambda x, w, b: F.linear(x, weight=w, bias=b),
        lambda x, w, b: torch.addmm(b, x, w.T),
        lambda x, w, b: b.addmm(x, w.T),
    ],
)
def test_linear_layers_are_emulated(call):
    x, w, b = torch.randn(2, 3), torch.randn(4, 3), torch.randn(4)
    with emulate(LOW) as context:
        actual = call(x, w, b)
    assert_bit_equal(actual, functional.linear(x, w, b, precision=LOW))
    assert sum(context.coverage().to_dict()["emulated"].values()) == 1


IMAGE, KERNEL, BIAS = torch.randn(2, 2, 4, 4), torch.randn(4, 1, 2, 2), torch.randn(4)
CONVOLUTIONS = [
    ("conv2d", lambda: F.conv2d(IMAGE, KERNEL, BIAS, (2, 1), 1, 2, 2)),
    ("conv2d", lambda: torch.conv2d(IMAGE, KERNEL, BIAS, (2, 1), 1, 2, groups=2)),
    (
        "conv2d",
        lambda: torch.ops.aten.conv2d(IMAGE, KERNEL, BIAS, [2, 1], [1], [2], 2),
    ),
]


@pytest.mark.parametrize(("name", "call"), CONVOLUTIONS)
def test_convolutions_are_emulated(name, call):
    with emulate(LOW, strict=True) as context:
        actual = call()
    expected = functional.conv2d(IMAGE, KERNEL, BIAS, (2, 1), 1, 2, 2, precision=LOW)
    assert_bit_equal(actual, expected)
    assert [tuple(row) for row in context.coverage()] == [(name, 1, "emulated", "")]


def test_sequences_and_volumes_are_emulated():
    x, w = torch.randn(2, 3, 4), torch.randn(3, 3, 2)
    with emulate(LOW, strict=True) as context:
        sequence = F.conv1d(x, w, padding="same")
        volume = F.conv3d(x[..., None, None], w[..., None, None])
    assert_bit_equal(sequence, functional.conv1d(x, w, padding="same", precision=LOW))
    again = functional.conv1d(x, w, precision=LOW)
    assert_bit_equal(volume[..., 0, 0], again)
    assert context.coverage().to_dict()["emulated"] == {"conv1d": 1, "conv3d": 1}


X = torch.tensor([[3.0, -1.0], [0.5, 2.0]])
INDEX = torch.eye(2).long()
MASK = INDEX > 0
EXACT = [
    lambda: X.T.reshape(4).view(2, 2)[0, :1],
    lambda: torch.cat([X, X]).permute(1, 0).flip(0).contiguous(),
    lambda: torch.stack([X, X]).unbind()[0].clone().detach(),
    lambda: F.relu(X) if (X > 0).any() else X,
    lambda: torch.where(X > 0, X, -X.abs()),
    lambda: X.masked_fill(MASK, 0.0).clamp(-1, 1).max(dim=1).values.argmax(),
    lambda: INDEX * 2 + INDEX.sum() - INDEX @ INDEX,
    lambda: (len(X), X.shape, X.dtype, X.numel(), X.is_contiguous()),
    lambda: (repr(X), X.tolist(), X.requires_grad, X.grad),
    lambda: torch.zeros(2).fill_(1.0).copy_(torch.randn(2)),
    lambda: X.double().to("cpu"),
    lambda: float(X[0, 0]),
    lambda: F.dropout(X, 0.5, training=False),
    lambda: F.pad(X, (1, 1)),
    lambda: torch.arange(3),
    lambda: X.expand(3, 2, 2),
    lambda: X[INDEX],
    lambda: F.embedding(INDEX, X),
    lambda: torch.cat([X, X.double(), MASK]),
    lambda: torch.where(MASK, X, torch.tensor(3)),
    lambda: torch.zeros(2, 2).copy_(X, non_blocking=True),
]


@pytest.mark.parametrize("call", EXACT)
def test_exact_operations_pass_strict(call):
    with emulate(LOW, strict=True) as context:
        call()
    assert all(row.treatment == "exact by nature" for row in context.coverage())


G = torch.ones(2, 2, requires_grad=True)
# Operations that `elementwise` is about, which LOW leaves to torch.
GOVERNED = [
    ("add", lambda: X + X),
    ("sub", lambda: 1 - X),
    ("div", lambda: 1 / X),
    ("mul_", lambda: X.clone().mul_(2)),
    ("sum", lambda: X.sum()),
    ("mean", lambda: X.mean()),
    ("softmax", lambda: F.softmax(X, -1)),
    ("layer_norm", lambda: F.layer_norm(X, (2,))),
    ("cross_entropy", lambda: F.cross_entropy(X, INDEX[0])),
    ("dropout", lambda: F.dropout(X, 0.5)),
    ("float", lambda: X.double().float()),
    ("to", lambda: X.to(torch.bfloat16)),
    ("div", lambda: INDEX / 3),
    ("mul", lambda: INDEX * 0.3),
    ("copy_", lambda: torch.empty(2, 2).copy_(X.double(), True)),
    ("copy_", lambda: torch.empty(2, 2).copy_(X.double(), non_blocking=True)),
    ("linspace", lambda: torch.linspace(0.0, 1.0, 3)),
    ("cat", lambda: torch.cat([X, INDEX])),
    ("where", lambda: torch.where(MASK, INDEX, X)),
    ("embedding", lambda: F.embedding(INDEX, X.clone(), max_norm=0.5)),
    # Exact values whose gradients add up in the carrier.
    ("expand", lambda: G.expand(3, 2, 2)),
    ("getitem", lambda: G[INDEX]),
    ("embedding", lambda: F.embedding(INDEX, G)),
    ("where", lambda: torch.where(MASK, G[0], X)),
    ("max", lambda: G.max()),
]


@pytest.mark.parametrize(("name", "call"), GOVERNED)
def test_what_elementwise_is_about_is_left_to_torch_without_it(name, call):
    torch.manual_seed(1)
    expected = call()
    torch.manual_seed(1)
    with emulate(LOW, strict=True) as context:
        actual = call()
    assert torch.equal(actual, expected)
    assert context.coverage().to_dict()["carrier by policy"] == {name: 1}


UNKNOWN = [
    ("conv_tbc", lambda: torch.conv_tbc(X[None], X[None], X[0])),
    ("cdist", lambda: torch.cdist(X, X)),
    ("matmul", lambda: torch.view_as_complex(X) @ torch.view_as_complex(X)),
    ("matmul", lambda: X.to_sparse() @ X),
    ("_foreach_add_", lambda: torch._foreach_add_([X.clone()], 1.0)),
]


@pytest.mark.parametrize(("name", "call"), UNKNOWN)
def test_the_rest_is_reported(name, call):
    expected = call()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NumericalWarning)
        with emulate(LOW) as context:
            actual = call()
            if name != "_foreach_add_":
                assert torch.equal(actual, expected)
    assert name in context.coverage().to_dict()["not emulated"]
    assert any(str(item.message).startswith(f"{name} is not") for item in caught)
    refused = pytest.raises(NotImplementedError, match="is not emulated: ")
    with emulate(LOW, strict=True), refused:
        call()


def test_strict_refuses_before_computing():
    x, index, ones = torch.ones(2), torch.tensor([0]), torch.ones(1)
    context = emulate(LOW, strict=True)
    refused = pytest.raises(
        NotImplementedError, match=r"index_add_ is not emulated.*Policy"
    )
    with context, refused:
        x.index_add_(0, index, ones)
    assert x.tolist() == [1.0, 1.0]
    assert len(context.coverage()) == 0


def test_warning_comes_once_per_operation_and_context():
    for _ in range(2):
        context = emulate(LOW)
        with context, pytest.warns(NumericalWarning, match="cdist is not") as caught:
            torch.cdist(X, X)
        with context:
            torch.cdist(X, X)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert context.coverage().to_dict()["not emulated"] == {"cdist": 2}


def test_coverage_is_a_table():
    with emulate(LOW) as context:
        for _ in range(3):
            A @ B
        X.T.relu()
        X.tanh()
        with pytest.warns(NumericalWarning):
            torch.cdist(X, X)
    coverage = context.coverage()
    assert isinstance(coverage, Coverage)
    assert str(coverage) == (
        "operation  calls  treatment\n"
        "matmul         3  emulated\n"
        "relu           1  exact by nature\n"
        "cdist          1  not emulated\n"
        "tanh           1  carrier by policy"
    )
    assert coverage.to_dict() == {
        "emulated": {"matmul": 3},
        "exact by nature": {"relu": 1},
        "not emulated": {"cdist": 1},
        "carrier by policy": {"tanh": 1},
    }


def test_optimizer_inside_is_reported():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        with emulate(LOW) as context:
            model(X).backward(torch.ones(2, 2))
            optimizer.step()
            optimizer.zero_grad()
    rows = context.coverage().to_dict()
    assert "add_" in rows["not emulated"] or "_foreach_add_" in rows["not emulated"]
    assert rows["emulated"] == {"linear": 1}


def test_own_precision_wins_and_is_counted():
    layer, x = lowprec.nn.Linear(3, 2, precision=OTHER), torch.randn(2, 3)
    expected = layer(x)
    with emulate(LOW, strict=True) as context:
        actual = layer(x)
        rounded = lowprec.round(x, "e5m2")
    assert_bit_equal(actual.detach(), expected.detach())
    assert_bit_equal(rounded, lowprec.round(x, "e5m2"))
    assert context.coverage().to_dict()["emulated"] == {"linear": 1, "round": 1}


def test_own_convolutions_keep_their_precision():
    layer = lowprec.nn.Conv2d(2, 3, 2, precision=OTHER)
    expected = layer(IMAGE)
    with emulate(LOW, strict=True) as context:
        actual = layer(IMAGE)
    assert_bit_equal(actual.detach(), expected.detach())
    assert context.coverage().to_dict()["emulated"] == {"conv2d": 1}


def test_inner_context_decides_alone():
    with emulate(LOW, strict=True) as outer:
        with emulate(OTHER) as inner:
            actual = torch.tanh(A @ B)
        again = A @ B
    expected = functional.matmul(A, B, precision=OTHER)
    assert_bit_equal(actual, expected.tanh())
    assert_bit_equal(again, functional.matmul(A, B, precision=LOW))
    assert inner.coverage().to_dict()["emulated"] == {"matmul": 1}
    assert outer.coverage().to_dict()["emulated"] == {"matmul": 1}
    assert not outer.coverage().to_dict()["not emulated"]


def test_one_context_may_be_entered_again():
    context = emulate(LOW, strict=True)
    for _ in range(2):
        with context, context:
            actual = A @ B
        assert_bit_equal(actual, functional.matmul(A, B, precision=LOW))
    assert torch.overrides._get_current_function_mode() is None


def test_an_error_inside_leaves_no_mode():
    with pytest.raises(KeyError), emulate(LOW):
        raise KeyError
    assert_bit_equal(A @ B, torch.matmul(A, B))


def test_policy_follows_module_names():
    model, x = Net(), torch.randn(3, 4)
    policy = Policy({"*": LOW, "second": OTHER})
    context = emulate(policy, model, strict=True)
    emulated = run(model, x, context, False)
    assert not model.first._forward_hooks
    assert not model.first._forward_pre_hooks
    lowprec.nn.convert_(model, policy)
    assert_all_equal(run(model, x, torch.enable_grad(), False), emulated)


def test_policy_none_leaves_the_carrier_on_purpose():
    model, x = Net(), torch.randn(3, 4)
    with emulate({"first": LOW}, model, strict=True) as context:
        actual = model(x).tanh()
    hidden = functional.linear(x, *model.first.parameters(), precision=LOW)
    expected = model.second(hidden.relu()).tanh()
    assert_bit_equal(actual.detach(), expected.detach())
    assert context.coverage().to_dict() == {
        "emulated": {"linear": 1},
        "exact by nature": {"relu": 1},
        "not emulated": {},
        "carrier by policy": {"linear": 1, "tanh": 1},
    }


def test_module_names_survive_errors():
    model = Net()
    with emulate(Policy({"": LOW}), model, strict=True):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            model(torch.ones(2, 3))
        assert_bit_equal(A @ B, functional.matmul(A, B, precision=LOW))


def test_other_modes_still_work():
    with torch.device("meta"), emulate(LOW, strict=True), torch.device("cpu"):
        assert torch.zeros(2).device.type == "cpu"
    with torch.device("meta"), emulate(LOW, strict=True):
        assert torch.zeros(2).device.type == "meta"
        assert (torch.ones(2, 3) @ torch.ones(3, 2)).shape == (2, 2)


def test_a_policy_needs_a_model():
    with pytest.raises(TypeError, match=r"emulate\(policy, model\)"):
        emulate(Policy({"*": LOW, "head": None}))
    with pytest.raises(TypeError, match="expected a Precision"):
        emulate("bfloat16")


def test_half_operands_are_refused():
    a, b = A.half(), B.half()
    message = r"matmul cannot be emulated.*half carrier.*x\.float\(\)"
    with emulate(LOW), pytest.raises(NotImplementedError, match=message):
        a @ b


def test_torch_checks_shapes():
    reported = pytest.warns(NumericalWarning, match="mm is not emulated")
    with emulate(LOW), reported, pytest.raises(RuntimeError, match="must be a matrix"):
        torch.mm(V, B)


def test_other_threads_are_not_affected():
    results = []
    with emulate(LOW):
        thread = threading.Thread(target=lambda: results.append(A @ B))
        thread.start()
        thread.join()
    assert_bit_equal(results[0], torch.matmul(A, B))


def test_backward_of_carrier_products_is_not_emulated_twice():
    precision = Precision(grad_output="e5m2")
    w = B.clone().requires_grad_()
    with emulate(precision, strict=True):
        y = A @ w
        (inside,) = torch.autograd.grad(y, w, torch.ones(2, 2), retain_graph=True)
    (outside,) = torch.autograd.grad(y, w, torch.ones(2, 2))
    assert_bit_equal(inside, outside)
