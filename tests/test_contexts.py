"""What meets an emulation: threads, autocast, optimizers, checkpoints, other modes."""

import contextlib
import copy
import gc
import pickle
import threading
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F

import lowprec as lp
import lowprec.nn
from lowprec import NumericalWarning, Policy, Precision, Rounding, functional
from lowprec.testing import assert_bit_equal

LOW = Precision(
    input="e4m3fn",
    weight="e5m2",
    grad_output="e5m2",
    accumulator="e8m7",
    elementwise="bfloat16",
)
RANDOM = Precision(
    weight=Rounding("e4m3fn", "stochastic"),
    elementwise=Rounding("bfloat16", "stochastic"),
    grad_weight=Rounding("e4m3fn", "stochastic"),
)
OTHER = Precision(weight="e8m1", elementwise="e8m1")
_SOURCE = torch.Generator().manual_seed(0)
A = torch.randn(2, 3, generator=_SOURCE)
B = torch.randn(3, 2, generator=_SOURCE)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 5)
        self.drop = torch.nn.Dropout(0.5)
        self.second = torch.nn.Linear(5, 4)

    def forward(self, x):
        return self.second(self.drop(torch.tanh(self.first(x)))) + x


def gradients(model, loss):
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_all_equal(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        assert_bit_equal(left.detach(), right.detach())


def stack():
    return torch.overrides._get_current_function_mode_stack()


def in_thread(call):
    results = []

    def run():
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def test_a_context_belongs_to_its_thread():
    model, x = Net().eval(), torch.randn(3, 4)
    plain = model(x)
    for context in (lp.emulate(LOW), lp.emulate({"*": LOW}, model)):
        with context:
            inside = model(x)
            assert_all_equal([in_thread(lambda: model(x))], [plain])
        assert not torch.equal(inside, plain)


def test_threads_may_share_a_context_but_not_a_model():
    model, x = Net().eval(), torch.randn(3, 4)
    context, other = lp.emulate({"*": LOW}, model), lp.emulate({"*": OTHER}, model)

    def inside(context):
        with context:
            return model(x)

    expected = inside(context)
    with context:
        assert_all_equal([in_thread(lambda: inside(context))], [expected])
        assert_all_equal([model(x)], [expected])
        refused = in_thread(lambda: inside(other))
    assert isinstance(refused, RuntimeError)
    assert "another thread" in str(refused)
    assert type(model) is Net
    assert not torch.equal(inside(other), expected)


def test_converted_models_run_in_every_thread():
    model, x = lp.nn.convert_(Net().eval(), LOW), torch.randn(3, 4)
    assert_all_equal([in_thread(lambda: model(x))], [model(x)])


def test_nested_contexts_with_models():
    model, x = Net().eval(), torch.randn(3, 4)
    outer, inner = lp.emulate({"*": LOW}, model), lp.emulate({"*": OTHER}, model)
    with outer:
        expected_outer = model(x)
    with inner:
        expected_inner = model(x)
    with outer, outer:
        with inner:
            assert_all_equal([model(x)], [expected_inner])
            with lp.emulate(RANDOM):  # modules keep the precision that they are lent
                assert_all_equal([model(x)], [expected_inner])
        assert_all_equal([model(x)], [expected_outer])
    assert type(model) is Net
    assert not any(hasattr(module, "_lowprec") for module in model.modules())


def test_converted_modules_keep_their_precision_inside_contexts():
    model, x = Net().eval(), torch.randn(3, 4)
    lp.nn.convert_(model, LOW)
    expected = model(x)
    for context in (lp.emulate(OTHER), lp.emulate({"*": OTHER}, model)):
        with context:
            assert_all_equal([model(x)], [expected])
    assert lp.nn.report(model).rows[0].precision == LOW


def test_errors_leave_no_mode_and_no_conversion():
    model = Net()
    for context in (lp.emulate(LOW), lp.emulate({"*": LOW}, model)):
        with pytest.raises(ValueError, match="cannot apply weight"), context:
            model(torch.ones(2, 3))
        assert stack() == []
        with pytest.raises(KeyError), context:
            raise KeyError
        assert stack() == []
    assert type(model) is Net
    lp.nn.convert_(model, LOW)
    with pytest.raises(ValueError, match="cannot apply weight"):
        model(torch.ones(2, 3))
    assert stack() == []


def test_convert_refuses_a_model_that_is_lent():
    model = Net()
    with (
        lp.emulate({"*": LOW}, model),
        pytest.raises(RuntimeError, match=r"is inside a context.*leave it first"),
    ):
        lp.nn.convert_(model, OTHER)


def test_copies_and_pickles_of_a_lent_model():
    model, x = Net().eval(), torch.randn(3, 4)
    plain = model(x)
    with lp.emulate({"*": LOW}, model):
        twin, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert_all_equal([twin(x)], [model(x)])
    assert_all_equal([twin(x), loaded(x)], [plain, plain])
    assert type(lp.nn.unconvert_(twin)) is Net


def test_contexts_are_freed():
    model = Net()
    context = lp.emulate({"*": LOW}, model)
    with context:
        model(torch.ones(1, 4))
    reference = weakref.ref(context)
    del context
    gc.collect()
    assert reference() is None


AUTOCAST = [
    lambda: A @ B,
    lambda: torch.tanh(A),
    lambda: lp.nn.convert_(torch.nn.Linear(3, 2), LOW)(A),
]


@pytest.mark.parametrize("call", AUTOCAST)
def test_autocast_is_refused(call):
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    refused = pytest.raises(RuntimeError, match=r"autocast is on.*enabled=False")
    with lp.emulate(LOW), autocast, refused:
        call()
    with autocast, lp.emulate(LOW), refused:
        call()
    with autocast, torch.autocast("cpu", enabled=False), lp.emulate(LOW):
        call()


def test_autocast_is_torchs_business_where_the_policy_says_none():
    with torch.autocast("cpu", dtype=torch.bfloat16), lp.emulate(Precision()):
        assert (A @ B).dtype == torch.bfloat16
    a, b = A.bfloat16(), B.bfloat16()
    for call in (lambda: a @ b, lambda: a + a, lambda: F.layer_norm(a, (3,))):
        refused = pytest.raises(NotImplementedError, match=r"x\.float\(\)")
        with lp.emulate(LOW), refused:
            call()


def test_backward_under_autocast_has_the_same_bits():
    w = B.clone().requires_grad_()
    with lp.emulate(LOW):
        y = torch.tanh(A @ w)
    (expected,) = torch.autograd.grad(y, w, torch.ones(2, 2), retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (actual,) = torch.autograd.grad(y, w, torch.ones(2, 2))
    assert_bit_equal(actual, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False),
        lambda p: torch.optim.AdamW(p, foreach=False),
        lambda p: torch.optim.AdamW(p, foreach=True),
    ],
)
def test_optimizers_inside_compute_in_the_carrier_and_are_reported(make):
    def steps(context):
        torch.manual_seed(1)
        model = Net().eval()
        optimizer = make(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            with lp.emulate(LOW):
                loss = model(torch.ones(2, 4)).sum()
            loss.backward()
            with context:
                optimizer.step()
        return list(model.parameters())

    context = lp.emulate(LOW)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NumericalWarning)
        inside = steps(context)
    assert any("an optimizer computes" in str(item.message) for item in caught)
    assert context.coverage().to_dict()["not emulated"]
    assert not context.coverage().to_dict()["emulated"]
    assert_all_equal(inside, steps(contextlib.nullcontext()))


def test_a_failed_step_of_an_optimizer_is_over():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyError

    optimizer = Failing([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    expected = functional.pointwise(torch.exp, A, precision=LOW)
    with lp.emulate(LOW, strict=True) as context:
        with pytest.raises(KeyError):
            optimizer.step()
        assert_bit_equal(torch.exp(A), expected)
    assert context.coverage().to_dict()["emulated"] == {"exp": 1}


def test_optimizers_of_lowprec_inside_are_emulated_by_themselves():
    def step(context):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = lp.optim.SGD([p], lr=0.3, param_format="bfloat16")
        p.grad = torch.full((3,), 0.1)
        with context:
            optimizer.step()
        return p

    with contextlib.nullcontext():
        expected = step(contextlib.nullcontext())
    assert_all_equal([step(lp.emulate(LOW, strict=True))], [expected])


IN_PLACE = [
    (lambda x, y: x.add_(y), torch.add),
    (lambda x, y: x.mul_(y), torch.mul),
    (lambda x, y: x.__itruediv__(y), torch.div),
    (lambda x, y: torch.Tensor.sub_(x, y), torch.sub),
]


@pytest.mark.parametrize(("call", "function"), IN_PLACE)
def test_operations_in_place_write_what_they_round(call, function):
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    expected = functional.pointwise(function, x, y, precision=LOW)
    storage = x.data_ptr()
    with lp.emulate(LOW, strict=True):
        result = call(x, y)
    assert result is x
    assert x.data_ptr() == storage
    assert_bit_equal(x, expected)


def test_operations_in_place_have_the_gradients_of_their_twins():
    x = torch.randn(3, 4, requires_grad=True)

    def gradient(call):
        with lp.emulate(LOW, strict=True):
            y = call(x * 1.5)
        return torch.autograd.grad(y, x, torch.ones(3, 4))

    def in_place(y):
        y += 1
        y *= 0.3
        return F.elu(y, inplace=True)

    twins = gradient(lambda y: F.elu((y + 1) * 0.3))
    assert_all_equal(gradient(in_place), twins)


@pytest.mark.parametrize("precision", [LOW, RANDOM], ids=["low", "random"])
@pytest.mark.parametrize("kind", ["convert", "emulate", "model", "outside"])
def test_checkpointed_gradients_are_identical(kind, precision):
    model, x = Net(), torch.randn(3, 4)
    generator = torch.Generator()
    policy = Policy({"*": precision, "second": LOW})
    if kind == "convert":
        lp.nn.convert_(model, policy, generator=generator)
    context = {
        "emulate": lp.emulate(precision, generator=generator),
        "model": lp.emulate(policy, model, generator=generator),
        "outside": lp.emulate(precision),
    }.get(kind, contextlib.nullcontext())

    def step(call):
        torch.manual_seed(2)
        generator.manual_seed(3)
        with context:
            y = call(model, call(model, x))
            if kind != "outside":
                return [y, *gradients(model, y.sum())]
        return [y, *gradients(model, y.sum())]

    expected = step(lambda function, x: function(x))
    assert_all_equal(step(lp.checkpoint), expected)
    after = torch.rand(1)
    step(lambda function, x: function(x))
    assert torch.equal(torch.rand(1), after)
    assert stack() == []


def test_checkpoints_may_be_nested():
    model, x = lp.nn.convert_(Net(), RANDOM), torch.randn(3, 4)
    generator = torch.Generator()
    lp.nn.convert_(model, RANDOM, generator=generator)

    def step(call):
        torch.manual_seed(2)
        generator.manual_seed(3)
        y = call(lambda x: call(model, call(model, x)) + model(x), x)
        return [y, *gradients(model, y.sum())]

    assert_all_equal(step(lp.checkpoint), step(lambda function, x: function(x)))


def test_torchs_own_checkpoint_is_not_silent():
    model, x = Net(), torch.randn(3, 4, requires_grad=True)
    with lp.emulate(LOW):
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        y.sum().backward()


def test_functional_transforms_go_through_a_context():
    x, w = torch.randn(5, 3), torch.randn(3, 2)

    def loss(w, x):
        return torch.tanh(x @ w).sum()

    with lp.emulate(LOW):
        per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(w, x)
        expected = [torch.func.grad(loss)(w, row) for row in x]
    leaf = w.clone().requires_grad_()
    with lp.emulate(LOW):
        (again,) = torch.autograd.grad(loss(leaf, x[0]), leaf)
    assert_bit_equal(expected[0], again)
    assert_bit_equal(per_sample, torch.stack(expected))


def test_functions_of_lowprec_inside_keep_their_precision():
    x = torch.randn(4, 4)
    calls = [
        lambda: functional.softmax(x, -1, precision=OTHER),
        lambda: functional.pointwise(torch.tanh, x, precision=OTHER),
        lambda: functional.sum(x, precision=OTHER),
        lambda: functional.layer_norm(x, (4,), precision=OTHER),
        lambda: functional.scaled_dot_product_attention(x, x, x, precision=OTHER),
        lambda: lp.add(x, x, "e8m1"),
    ]
    for call in calls:
        expected = call()
        with lp.emulate(LOW, strict=True) as context:
            assert_bit_equal(call(), expected)
        assert set(context.coverage().to_dict()["emulated"].values()) == {1}
