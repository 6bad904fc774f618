"""Conv1d, Conv2d and Conv3d as layers, and their conversion."""

import copy
import pickle

import pytest
import torch
from layer_roundings import ignore_dynamo

import lowprec.nn
from lowprec import Rounding, functional
from lowprec.nn import convert_, report, unconvert_
from lowprec.precision import Precision
from lowprec.testing import assert_bit_equal

LOW = Precision(
    input="e4m3fn",
    weight="e4m3fn",
    output="bfloat16",
    grad_output="e5m2",
    accumulator="e8m15",
)
RANDOM = Precision(weight=Rounding("e4m3fn", "stochastic"))
DIMENSIONS = [1, 2, 3]
MODES = ["zeros", "reflect", "replicate", "circular"]


def ours(dims):
    return getattr(lowprec.nn, f"Conv{dims}d")


def theirs(dims):
    return getattr(torch.nn, f"Conv{dims}d")


def images(dims):
    return torch.randn(2, 4, *[5, 4, 3][:dims])


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_all_equal(left, right):
    for one, other in zip(left, right, strict=True):
        assert_bit_equal(one, other)


@pytest.mark.parametrize("dims", DIMENSIONS)
def test_layer_is_the_functional(dims):
    layer = ours(dims)(4, 6, 2, 2, 1, 1, 2, precision=LOW)
    x = images(dims)
    function = getattr(functional, f"conv{dims}d")
    expected = function(x, layer.weight, layer.bias, 2, 1, 1, 2, precision=LOW)
    assert_bit_equal(layer(x).detach(), expected.detach())
    assert_bit_equal(layer(x[0]).detach(), expected[0].detach())


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dims", DIMENSIONS)
def test_without_roundings_it_is_torch(dims, mode, padding):
    torch.manual_seed(1)
    layer = ours(dims)(
        4, 6, 3, padding=padding, padding_mode=mode, precision=Precision()
    )
    torch.manual_seed(1)
    plain = theirs(dims)(4, 6, 3, padding=padding, padding_mode=mode)
    x = images(dims)
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert_bit_equal(layer(x).detach(), plain(x).detach())
    assert_all_equal(gradients(layer, x), gradients(plain, x))


@pytest.mark.parametrize("mode", MODES[1:])
def test_padding_moves_values_before_they_are_rounded(mode):
    layer = lowprec.nn.Conv2d(4, 2, 3, padding=1, padding_mode=mode, precision=LOW)
    x = images(2)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode=mode)
    expected = functional.conv2d(padded, layer.weight, layer.bias, precision=LOW)
    assert_bit_equal(layer(x).detach(), expected.detach())


@pytest.mark.parametrize("dims", DIMENSIONS)
def test_conversion_and_back(dims):
    plain = theirs(dims)(4, 6, 3, stride=2, padding=1, groups=2)
    model = torch.nn.Sequential(plain, torch.nn.ReLU())
    attributes, text, x = set(vars(plain)), repr(model), images(dims)
    weight, before = plain.weight, model(x)
    twin = ours(dims).from_float(plain, precision=LOW)
    assert convert_(model, LOW, strict=True) is model
    assert model[0].weight is weight
    assert "precision=Precision(" in repr(model)
    assert {row.treatment for row in report(model)} == {"emulated"}
    assert_bit_equal(model(x).detach(), twin(x).relu().detach())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_bit_equal(copied(x).detach(), model(x).detach())
    unconvert_(model)
    assert type(plain) is theirs(dims)
    assert repr(model) == text
    assert set(vars(plain)) == attributes
    assert_bit_equal(model(x).detach(), before.detach())


def test_generator_reproduces():
    generator = torch.Generator().manual_seed(1)
    layer = lowprec.nn.Conv1d(4, 3, 2, precision=RANDOM, generator=generator)
    x = images(1)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    generator.manual_seed(1)
    assert_bit_equal(layer(x).detach(), first.detach())


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="expected a Precision"):
        lowprec.nn.Conv2d(1, 1, 1, precision="bfloat16")
    with pytest.raises(
        TypeError, match=r"takes a torch\.nn\.Conv2d, got torch.*Conv1d"
    ):
        lowprec.nn.Conv2d.from_float(torch.nn.Conv1d(1, 1, 1), precision=LOW)


def test_subclasses_keep_their_meaning():
    class Scaled(torch.nn.Conv1d):
        def forward(self, input):
            return 2 * super().forward(input)

    layer, x = Scaled(4, 3, 2), images(1)
    expected = functional.conv1d(x, layer.weight, layer.bias, precision=LOW)
    assert_bit_equal(convert_(layer, LOW)(x).detach(), 2 * expected.detach())


@ignore_dynamo
def test_converted_model_compiles():
    model = convert_(torch.nn.Sequential(torch.nn.Conv1d(4, 3, 2)), LOW)
    x = images(1)
    expected, wanted = model(x).detach(), gradients(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_bit_equal(compiled(x).detach(), expected)
    assert_all_equal(gradients(compiled, x), wanted)
