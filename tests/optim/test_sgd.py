"""SGD: torch's bits without formats, correct roundings with them."""

import itertools
from fractions import Fraction

import pytest
import torch

import lowprec as lp
from lowprec.optim._base import step_seeds
from lowprec.optim._update import Purpose
from lowprec.testing import assert_bit_equal, exact_round, random_word

FLAGS = [
    {"momentum": m, "dampening": t, "weight_decay": d, "nesterov": n, "maximize": x}
    for m, t, d, n, x in itertools.product(
        (0, 0.9), (0, 0.3), (0, 0.01), (False, True), (False, True)
    )
    if not (n and (m == 0 or t != 0))
]


def parameters(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (), (13,), (0,), (33,)]
    return [
        torch.nn.Parameter(torch.randn(s, generator=generator, dtype=dtype))
        for s in shapes
    ]


def set_gradients(params, k):
    generator = torch.Generator().manual_seed(100 + k)
    for i, p in enumerate(params):
        if i == 2 and k % 3 == 1:
            p.grad = None
        else:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.grad.mul_(-1.0 if i else (p.grad > 0).to(p.dtype))  # zeros of both signs


def assert_same(a, b):
    """Compare values and signs of zeros in every dtype; nothing here is NaN."""
    assert torch.equal(a, b)
    assert torch.equal(a.signbit(), b.signbit())


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_equals_torch_bit_for_bit_without_formats(flags, dtype):
    ours, theirs = parameters(dtype), parameters(dtype)
    first = lp.optim.SGD(ours, lr=0.1, **flags)
    second = torch.optim.SGD(theirs, lr=0.1, foreach=False, **flags)
    schedulers = [
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
        for optimizer in (first, second)
    ]
    for k in range(25):
        set_gradients(ours, k)
        set_gradients(theirs, k)
        first.step()
        second.step()
        for scheduler in schedulers:
            scheduler.step()
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
        buffers = [
            o.state.get(p, {}).get("momentum_buffer")
            for o, p in ((first, a), (second, b))
        ]
        assert (buffers[0] is None) == (buffers[1] is None)
        if buffers[0] is not None:
            assert_same(*buffers)


def test_tensor_learning_rates_equal_torch():
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    first = lp.optim.SGD(ours, lr=torch.tensor(0.1), weight_decay=torch.tensor(0.2))
    second = torch.optim.SGD(
        theirs, lr=torch.tensor(0.1), weight_decay=torch.tensor(0.2), foreach=False
    )
    for k in range(5):
        set_gradients(ours, k)
        set_gradients(theirs, k)
        first.step()
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def as_carrier(value, dtype):
    return Fraction(torch.tensor(value, dtype=dtype).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["nearest_even", "toward_zero", "stochastic"])
@pytest.mark.parametrize("dampening", [0, 0.3])
def test_buffer_and_parameters_are_exact_values_rounded_once(dtype, mode, dampening):
    fl = lp.Rounding("e6m8", mode, random_bits=12)
    p = torch.nn.Parameter(torch.randn(64, dtype=dtype))
    optimizer = lp.optim.SGD(
        [p], lr=0.1, momentum=0.9, dampening=dampening,
        param_format=fl, momentum_format=fl,
    )  # fmt: skip
    seed = optimizer.param_groups[0]["rounding_seed"]
    mu, weight = as_carrier(0.9, dtype), as_carrier(1 - dampening, dtype)
    eta = Fraction(optimizer.effective_lr[0])
    w = [Fraction(value) for value in p.tolist()]
    b = None
    for k in range(4):
        p.grad = torch.randn(64, dtype=dtype)
        g = [Fraction(value) for value in p.grad.tolist()]
        words = {}
        for purpose in (Purpose.PARAMETER, Purpose.MOMENTUM):
            key = int(step_seeds(seed, k)[purpose]) if fl.stochastic else 0
            words[purpose] = [random_word(key, i) for i in range(64)]
        exact = (
            g if b is None else [mu * x + weight * y for x, y in zip(b, g, strict=True)]
        )
        b = [
            Fraction(exact_round(x, fl, word))
            for x, word in zip(exact, words[Purpose.MOMENTUM], strict=True)
        ]
        w = [
            Fraction(exact_round(x - eta * y, fl, word))
            for x, y, word in zip(w, b, words[Purpose.PARAMETER], strict=True)
        ]
        optimizer.step()
        assert optimizer.state[p]["momentum_buffer"].tolist() == [float(x) for x in b]
        assert p.tolist() == [float(x) for x in w]


def test_formats_given_per_group_by_name():
    first, second = (torch.nn.Parameter(torch.full((2,), 1.5)) for _ in range(2))
    optimizer = lp.optim.SGD(
        [{"params": [first], "param_format": torch.bfloat16}, {"params": second}],
        lr=2**-9,
    )
    assert optimizer.param_groups[0]["param_format"] == lp.Rounding("bfloat16")
    for p in (first, second):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert first.tolist() == [1.5, 1.5]
    assert second.tolist() == [1.5 - 2**-9] * 2
    assert "Rounding('bfloat16')" in repr(optimizer)


def test_results_do_not_depend_on_how_weights_are_cut_into_parameters():
    fl = lp.Rounding("bfloat16", "stochastic")
    values, gradient = torch.randn(30), torch.randn(30)
    whole = torch.nn.Parameter(values.clone())
    parts = [torch.nn.Parameter(piece.clone()) for piece in values.split([7, 3, 20])]
    whole.grad = gradient
    for part, piece in zip(parts, gradient.split([7, 3, 20]), strict=True):
        part.grad = piece.clone()
    for params in ([whole], parts):
        generator = torch.Generator().manual_seed(3)
        lp.optim.SGD(params, lr=0.1, param_format=fl, generator=generator).step()
    assert_bit_equal(torch.cat([p.detach() for p in parts]), whole.detach())


def test_stagnation_of_nearest_rounding_and_progress_of_stochastic_rounding():
    """T6: f = |w|, w_0 = 1.5, eta = 2^-9 in bfloat16."""
    w = torch.nn.Parameter(torch.tensor([1.5]))
    optimizer = lp.optim.SGD([w], lr=2**-9, param_format="bfloat16")
    for _ in range(2000):
        w.grad = w.detach().sign()
        optimizer.step()
    assert w.item() == 1.5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"momentum": -1.0}, "Invalid momentum value: -1.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        (
            {"nesterov": True},
            "Nesterov momentum requires a momentum and zero dampening",
        ),
        (
            {"update": "both"},
            "update must be 'fused'.*'two_step'.*or 'master'.*got 'both'",
        ),
        ({"param_format": "binary64"}, "float32 parameters cannot hold|53 significant"),
        ({"param_format": "e11m5"}, "cannot hold every value.*use model.double"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(arguments, text):
    with pytest.raises((ValueError, NotImplementedError), match=text):
        lp.optim.SGD([torch.nn.Parameter(torch.ones(2))], **arguments)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("lr", float("nan"), "Invalid learning rate: nan"),
        ("momentum", -1.0, "Invalid momentum value: -1.0"),
        ("weight_decay", -1.0, "Invalid weight_decay value: -1.0"),
        ("nesterov", True, "Nesterov momentum requires a momentum"),
        ("update", "both", "update must be 'fused'"),
    ],
)
def test_invalid_groups_are_refused_when_added_and_before_a_step(key, value, text):
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = lp.optim.SGD([p], lr=0.1)
    with pytest.raises(ValueError, match=text):
        lp.optim.SGD([{"params": [q], key: value}], lr=0.1)
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": [q], key: value})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [q]})
    optimizer.param_groups[1][key] = value
    p.grad = q.grad = torch.ones(2)
    with pytest.raises(ValueError, match=text):
        optimizer.step()
    assert p.tolist() == q.tolist() == [1.0, 1.0]


def test_half_parameters_are_refused_with_a_format():
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"float32 or float64.*got bfloat16.*float\(\)"):
        lp.optim.SGD([p], param_format="bfloat16")


def snapshot(optimizer):
    return [p.detach().clone() for g in optimizer.param_groups for p in g["params"]], (
        optimizer.state_dict()
    )


@pytest.mark.parametrize("failure", ["sparse", "learning rate", "format", "small"])
def test_a_failing_step_changes_nothing(failure):
    fl = lp.Rounding("bfloat16", "stochastic")
    p, q = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    optimizer = lp.optim.SGD(
        [{"params": [p]}, {"params": [q]}], lr=0.5, momentum=0.9, param_format=fl
    )
    for parameter in (p, q):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    values, before = snapshot(optimizer)
    group = optimizer.param_groups[1]
    if failure == "sparse":
        q.grad = torch.ones(3, dtype=torch.float64).to_sparse()
    elif failure == "learning rate":
        group["lr"] = float("nan")
    elif failure == "format":
        group["param_format"] = "no such format"
    else:
        group["param_format"], q.grad = "e11m5", q.grad * 2.0**-1000
        group["momentum"] = 0.0
    changed = group["lr"], group["param_format"], group["momentum"]
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.step()
    after_values, after = snapshot(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(values, after_values, strict=True))
    assert (group["lr"], group["param_format"], group["momentum"]) == changed or (
        failure == "learning rate"
    )
    assert before["param_groups"][0] == after["param_groups"][0]
    for key in before["state"]:
        assert torch.equal(
            before["state"][key]["momentum_buffer"],
            after["state"][key]["momentum_buffer"],
        )


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = lp.optim.SGD(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"sparse gradients.*p\.grad\.to_dense"):
        optimizer.step()


def test_nothing_is_drawn_unless_something_is_stochastic():
    p = torch.nn.Parameter(torch.ones(2))
    generator = torch.Generator().manual_seed(0)
    before = torch.get_rng_state(), generator.get_state()
    p.grad = torch.ones(2)
    lp.optim.SGD([p], lr=0.1, param_format="bfloat16").step()
    lp.optim.SGD([p], lr=0.1, param_format="bfloat16", generator=generator).step()
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], generator.get_state())
