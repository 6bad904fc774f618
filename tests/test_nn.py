"""Linear, convert_, unconvert_ and report."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from layer_roundings import ignore_dynamo

import lowprec.nn
from lowprec import Rounding, functional
from lowprec.errors import NumericalWarning
from lowprec.nn import convert_, report, unconvert_
from lowprec.precision import Policy, Precision
from lowprec.testing import assert_bit_equal

LOW = Precision(
    input="e4m3fn",
    weight="e4m3fn",
    output="bfloat16",
    grad_output="e5m2",
    accumulator="e8m15",
)
RANDOM = Precision(weight=Rounding("e4m3fn", "stochastic"))


def mlp():
    return torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)
    )


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_linear_is_the_functional():
    layer = lowprec.nn.Linear(4, 3, precision=LOW)
    x = torch.randn(2, 4)
    expected = functional.linear(x, layer.weight, layer.bias, precision=LOW)
    assert_bit_equal(layer(x).detach(), expected.detach())


def test_linear_initialises_as_torch_does():
    torch.manual_seed(1)
    ours = lowprec.nn.Linear(4, 3, False, None, torch.float64, precision=LOW)
    torch.manual_seed(1)
    theirs = torch.nn.Linear(4, 3, False, None, torch.float64)
    assert_bit_equal(ours.weight.detach(), theirs.weight.detach())
    assert ours.bias is None
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_linear_shows_its_precision_and_needs_one():
    layer = lowprec.nn.Linear(4, 3, precision=Precision(weight="bfloat16"))
    text = "in_features=4, out_features=3, bias=True, "
    assert layer.extra_repr() == f"{text}precision=Precision(weight='bfloat16')"
    with pytest.raises(TypeError, match="precision"):
        lowprec.nn.Linear(4, 3)
    with pytest.raises(TypeError, match="expected a Precision"):
        lowprec.nn.Linear(4, 3, precision="bfloat16")


def test_generator_reproduces():
    layer = lowprec.nn.Linear(
        4, 3, precision=RANDOM, generator=torch.Generator().manual_seed(1)
    )
    x = torch.randn(2, 4)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.generator.manual_seed(1)
    assert_bit_equal(layer(x).detach(), first.detach())


def test_from_float_shares_parameters():
    plain = torch.nn.Linear(4, 3).eval()
    layer = lowprec.nn.Linear.from_float(plain, precision=LOW)
    assert type(layer) is lowprec.nn.Linear
    assert type(plain) is torch.nn.Linear
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert not layer.training
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Linear, got"):
        lowprec.nn.Linear.from_float(torch.nn.ReLU(), precision=LOW)


def test_convert_changes_the_class_and_nothing_else():
    model = mlp()
    parameters = dict(model.named_parameters())
    keys = list(model.state_dict())
    assert convert_(model, LOW) is model
    assert [type(model[i]) for i in (0, 2)] == [lowprec.nn.Linear] * 2
    assert list(model.state_dict()) == keys
    assert all(parameters[n] is p for n, p in model.named_parameters())
    assert not list(model.buffers())


def test_unconvert_restores_exactly():
    model = mlp()
    attributes = [set(vars(module)) for module in model.modules()]
    text, x = repr(model), torch.randn(3, 4)
    expected = model(x)
    unconvert_(convert_(model, LOW))
    assert repr(model) == text
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert_bit_equal(model(x).detach(), expected.detach())


def test_converted_model_is_its_composition():
    model, x = mlp(), torch.randn(3, 4)
    hidden = functional.linear(x, *model[0].parameters(), precision=LOW).relu()
    expected = functional.linear(hidden, *model[2].parameters(), precision=LOW)
    expected.square().sum().backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    convert_(model, LOW)
    assert_bit_equal(model(x).detach(), expected.detach())
    for ours, theirs in zip(gradients(model, x), wanted, strict=True):
        assert_bit_equal(ours, theirs)


def test_policy_decides_by_name():
    model = mlp()
    convert_(model, Policy({"*": LOW, "2": None}))
    assert type(model[0]) is lowprec.nn.Linear
    assert type(model[2]) is torch.nn.Linear


def test_the_root_may_be_a_layer():
    layer = convert_(torch.nn.Linear(2, 2), LOW)
    assert layer.precision == LOW


def test_converting_again_replaces():
    model = convert_(mlp(), LOW)
    other = Precision(weight="bfloat16")
    convert_(model, {"0": other})
    assert model[0].precision == other
    assert type(model[2]) is torch.nn.Linear


def test_native_modules_keep_their_own():
    native = lowprec.nn.Linear(2, 2, precision=RANDOM)
    model = torch.nn.Sequential(native, torch.nn.Linear(2, 2))
    convert_(model, LOW, strict=True)
    assert native.precision == RANDOM
    unconvert_(model)
    assert type(native) is lowprec.nn.Linear
    assert native.precision == RANDOM


def test_tied_weights_and_shared_modules_stay_tied():
    first = torch.nn.Linear(4, 4)
    second = torch.nn.Linear(4, 4)
    second.weight = first.weight
    tied = torch.nn.Sequential(first, second, first)
    convert_(tied, LOW)
    assert tied[0] is tied[2]
    assert tied[0].weight is tied[1].weight
    assert len(list(tied.parameters())) == 3
    x = torch.randn(2, 4)
    y = x
    for layer in tied:
        y = functional.linear(y, layer.weight, layer.bias, precision=LOW)
    assert_bit_equal(tied(x).detach(), y.detach())
    wanted = torch.autograd.grad(y.sum(), tied.parameters())
    ours = torch.autograd.grad(tied(x).sum(), tied.parameters())
    for left, right in zip(ours, wanted, strict=True):
        assert_bit_equal(left, right)


class Scaled(torch.nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def patched():
    layer = torch.nn.Linear(2, 2)
    layer.forward = lambda x: x
    return layer


def parametrized():
    layer = torch.nn.Linear(2, 2)
    return torch.nn.utils.parametrizations.weight_norm(layer)


UNKNOWN = [
    lambda: Scaled(2, 2),
    patched,
    parametrized,
    torch.nn.Tanh,
    lambda: torch.nn.LayerNorm(2),
    lambda: torch.nn.Dropout(0.5),
    lambda: torch.nn.MultiheadAttention(2, 1),
]


@pytest.mark.parametrize("make", UNKNOWN)
def test_unknown_modules_are_reported_and_strict_refuses(make):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), make())
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(NotImplementedError, match="give them None in the policy"):
        convert_(model, LOW, strict=True)
    assert [type(module) for module in model.modules()] == kinds
    with pytest.warns(NumericalWarning, match="stay in carrier arithmetic.*'1"):
        convert_(model, LOW)
    assert type(model[0]) is lowprec.nn.Linear
    assert [type(module) for module in model[1].modules()] == kinds[2:]
    assert any(row.name.startswith("1") for row in report(model).of("not emulated"))


def test_none_in_the_policy_accepts_the_carrier():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_(model, {"*": LOW, "1": None}, strict=True)


def test_report_lists_every_computing_module():
    model = torch.nn.Sequential(
        mlp(), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.BatchNorm1d(2)
    )
    with pytest.warns(NumericalWarning, match=r"Tanh \(1\), BatchNorm1d \(1\)"):
        convert_(model, {"*": LOW, "0.2": None})
    rows = report(model)
    assert [(row.name, row.module, row.treatment) for row in rows] == [
        ("0.0", "Linear", "emulated"),
        ("0.1", "ReLU", "exact by nature"),
        ("0.2", "Linear", "not emulated"),
        ("1", "Tanh", "not emulated"),
        ("2", "Flatten", "exact by nature"),
        ("3", "BatchNorm1d", "not emulated"),
    ]
    assert rows.rows[0].precision == LOW
    assert len(rows) == 6
    assert str(rows).splitlines()[0].split() == [
        "name",
        "module",
        "treatment",
        "precision",
    ]


def test_encoder_layers_call_their_layers_without_gradients_too():
    # Their fused kernel reads the weights and calls no module.
    layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    torch.nn.init.zeros_(layer.self_attn.out_proj.weight)  # has a kernel of its own
    policy, x = Policy({"linear*": LOW}), torch.randn(2, 3, 4)
    attributes = dict(vars(layer))
    convert_(layer, policy, strict=True)
    expected = layer(x)
    with torch.no_grad():
        assert_bit_equal(layer(x), expected.detach())
    convert_(layer, policy, strict=True)
    unconvert_(layer)
    assert vars(layer) == attributes
    assert not torch.equal(layer(x), expected)


def test_layers_parametrized_after_conversion_stay_emulated_and_converted():
    layer, x = convert_(torch.nn.Linear(4, 2), LOW), torch.randn(3, 4)
    torch.nn.utils.parametrizations.orthogonal(layer)
    expected = functional.linear(x, layer.weight, layer.bias, precision=LOW)
    assert_bit_equal(layer(x).detach(), expected.detach())
    assert report(layer).rows[0].treatment == "emulated"
    for change in (unconvert_, lambda model: convert_(model, {"*": None})):
        with pytest.raises(RuntimeError, match=r"became a Parametrized.*remove_param"):
            change(layer)
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert type(unconvert_(layer)) is torch.nn.Linear


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got list"):
        convert_([], LOW)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got list"):
        unconvert_([])
    with pytest.raises(TypeError, match="expected a Precision"):
        convert_(mlp(), "bfloat16")


def test_copies_and_checkpoints():
    model, x = convert_(mlp(), LOW), torch.randn(3, 4)
    expected = model(x).detach()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_bit_equal(twin(x).detach(), expected)
        unconvert_(twin)
        assert type(twin[0]) is torch.nn.Linear
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = mlp()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert_bit_equal(convert_(fresh, LOW)(x).detach(), expected)


def test_hooks_and_optimizer_state_survive():
    model, x = mlp(), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    convert_(model, LOW)
    before = model[0].weight.detach().clone()
    gradients(model, x)
    optimizer.step()
    assert seen
    assert not torch.equal(model[0].weight, before)


@ignore_dynamo
def test_converted_model_compiles():
    model, x = convert_(mlp(), LOW), torch.randn(3, 4)
    expected, wanted = model(x).detach(), gradients(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_bit_equal(compiled(x).detach(), expected)
    for ours, theirs in zip(gradients(compiled, x), wanted, strict=True):
        assert_bit_equal(ours, theirs)
