"""Linear, convert_, unconvert_ and report."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from layer_roundings import ignore_dynamo

import lowprec.nn
from lowprec import Rounding, functional
from lowprec.errors import NumericalWarning
from lowprec.nn import convert_, coverage, report, unconvert_
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


def precisions(model):
    return {row.name: row.precision for row in report(model)}


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
    assert all(isinstance(model[i], torch.nn.Linear) for i in (0, 2))
    assert type(model[0]) is not torch.nn.Linear
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
    model, x = mlp(), torch.randn(3, 4)
    hidden = functional.linear(x, *model[0].parameters(), precision=LOW).relu()
    expected = model[2](hidden)
    convert_(model, Policy({"*": LOW, "2": None}))
    assert_bit_equal(model(x).detach(), expected.detach())
    assert precisions(model) == {"": LOW, "0": LOW, "1": LOW, "2": None}


def test_operations_come_after_modules():
    model, x = mlp(), torch.randn(3, 4)
    expected = model(x)
    convert_(model, Policy({"*": LOW}, operations={"linear": None}))
    assert_bit_equal(model(x).detach(), expected.detach())
    convert_(model, Policy({"*": None}, operations={"linear": LOW}))
    converted = model(x)
    assert_bit_equal(converted.detach(), convert_(model, LOW)(x).detach())
    assert not torch.equal(converted, expected)


def test_the_root_may_be_a_layer():
    layer = convert_(torch.nn.Linear(2, 2), LOW)
    assert precisions(layer) == {"": LOW}


def test_converted_modules_show_their_precision_and_take_another():
    model, x = convert_(mlp(), LOW), torch.randn(3, 4)
    assert model[0].precision == LOW
    model[0].precision = RANDOM
    model[0].generator = torch.Generator().manual_seed(1)
    first = model(x)
    model[0].generator.manual_seed(1)
    assert_bit_equal(model(x).detach(), first.detach())
    assert precisions(model) == {"": LOW, "0": RANDOM, "1": LOW, "2": LOW}
    with pytest.raises(TypeError, match="expected a Precision"):
        model[0].precision = "bfloat16"


def test_an_attribute_named_precision_stays_the_modules_own():
    layer, x = torch.nn.Linear(4, 4), torch.randn(3, 4)
    layer.precision = "16-mixed"
    expected = functional.linear(x, layer.weight, layer.bias, precision=LOW)
    convert_(layer, LOW)
    assert layer.precision == "16-mixed"
    assert_bit_equal(layer(x).detach(), expected.detach())
    assert precisions(layer) == {"": LOW}


def test_converting_again_replaces():
    model = convert_(mlp(), LOW)
    other = Precision(weight="bfloat16")
    convert_(model, {"0": other})
    assert precisions(model) == {"": None, "0": other, "1": None, "2": None}


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
    layer = torch.nn.Linear(4, 4)
    layer.forward = lambda x: F.linear(x, layer.weight)
    return layer


def parametrized():
    layer = torch.nn.Linear(4, 4)
    return torch.nn.utils.parametrizations.weight_norm(layer)


@pytest.mark.parametrize("make", [lambda: Scaled(4, 4), patched, parametrized])
def test_any_module_is_converted_and_back(make):
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), make()), torch.randn(3, 4)
    kinds = [type(module) for module in model.modules()]
    before = model(x)
    with lowprec.emulate(LOW):
        expected = model(x)
    convert_(model, LOW)
    assert_bit_equal(model(x).detach(), expected.detach())
    assert not torch.equal(expected, before)
    unconvert_(model)
    assert [type(module) for module in model.modules()] == kinds
    assert_bit_equal(model(x).detach(), before.detach())


def test_strict_refuses_what_it_meets():
    class Distances(torch.nn.Module):
        def forward(self, x):
            return torch.cdist(x, x)

    model = convert_(Distances(), LOW, strict=True)
    with pytest.raises(NotImplementedError, match="cdist is not emulated"):
        model(torch.ones(2, 2))
    model = convert_(Distances(), {"": None}, strict=True)
    assert model(torch.ones(2, 2)).shape == (2, 2)
    row = coverage(model).rows[0]
    assert (row.operation, row.treatment) == ("cdist", "carrier by policy")


def test_scripted_modules_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(torch.nn.Linear(2, 2))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), scripted)
    with pytest.raises(NotImplementedError, match=r"TorchScript modules.*'1'"):
        convert_(model, LOW, strict=True)
    assert type(model[0]) is torch.nn.Linear
    with pytest.warns(NumericalWarning, match="stay in carrier arithmetic: '1'"):
        convert_(model, LOW)
    assert [row.name for row in report(model).of("not emulated")] == ["1"]
    convert_(model, {"*": LOW, "1": None}, strict=True)


def test_modules_that_yield_are_named():
    class Parts(torch.nn.Module):
        def forward(self, x):
            yield x * 0.3

    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), Parts()])
    with pytest.raises(NotImplementedError, match=r"generator.*'1'"):
        convert_(model, LOW, strict=True)
    assert type(model[0]) is torch.nn.Linear
    with pytest.warns(NumericalWarning, match=r"carrier arithmetic: '1'"):
        convert_(model, LOW)
    with pytest.warns(NumericalWarning, match=r"carrier arithmetic: '1'"):
        convert_(model, LOW)  # again
    convert_(model, {"*": LOW, "1": None}, strict=True)


def test_report_lists_every_module_and_coverage_what_it_did():
    model = torch.nn.Sequential(mlp(), torch.nn.Flatten())
    convert_(model, {"*": LOW, "0.2": None})
    assert [tuple(row) for row in report(model)] == [
        ("", "Sequential", "emulated", LOW),
        ("0", "Sequential", "emulated", LOW),
        ("0.0", "Linear", "emulated", LOW),
        ("0.1", "ReLU", "emulated", LOW),
        ("0.2", "Linear", "carrier by policy", None),
        ("1", "Flatten", "emulated", LOW),
    ]
    lines = str(report(model)).splitlines()
    assert lines[0].split() == ["name", "module", "treatment", "precision"]
    assert lines[3].split() == ["0.0", "Linear", "emulated", "(1)"]
    assert lines[-1] == f"(1) {LOW}"
    for _ in range(2):
        model(torch.randn(3, 4))
    assert [tuple(row) for row in coverage(model)] == [
        ("linear", 2, "emulated", "0.0"),
        ("flatten", 2, "exact by nature", "1"),
        ("relu", 2, "exact by nature", "0.1"),
        ("linear", 2, "carrier by policy", "0.2"),
    ]


def test_encoder_layers_call_their_layers_without_gradients_too():
    # Their fused kernel reads the weights and calls no module.
    layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    torch.nn.init.zeros_(layer.self_attn.out_proj.weight)  # has a kernel of its own
    policy, x = Policy({"linear*": LOW}), torch.randn(2, 3, 4)
    attributes = dict(vars(layer))
    convert_(layer, policy)
    expected = layer(x)
    with torch.no_grad():
        assert_bit_equal(layer(x), expected.detach())
    convert_(layer, policy)
    unconvert_(layer)
    assert vars(layer) == attributes
    assert not torch.equal(layer(x), expected)


def test_layers_parametrized_after_conversion_stay_emulated_and_converted():
    layer, x = convert_(torch.nn.Linear(4, 2), LOW), torch.randn(3, 4)
    torch.nn.utils.parametrizations.weight_norm(layer)
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
