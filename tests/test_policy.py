"""Policies: operations, JSON, presets, and what they warn about and refuse."""

import json

import pytest
import torch
import torch.nn.functional as F

import lowprec as lp
import lowprec.nn
from lowprec import Accumulator, NumericalWarning, Policy, Precision, functional
from lowprec.testing import assert_bit_equal

LOW = Precision(input="e4m3fn", weight="e5m2", elementwise="bfloat16")
OTHER = Precision(weight="e8m1")
NAMES = [row.name for row in lp.presets()]


def network():
    return torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.ReLU()
    )


def test_an_operation_has_its_precision_in_every_module():
    policy = Policy(
        {"*": LOW, "head": None}, operations={"softmax": OTHER, "add": None}
    )
    assert policy.precision_for("head") is None
    assert policy.precision_for("head", "softmax") == OTHER
    assert policy.precision_for("body", "linear") == LOW
    assert policy.precision_for("body", "add") is None
    assert policy.operations == {"softmax": OTHER, "add": None}


def test_operations_have_the_names_of_functions_for_methods_and_operators_too():
    x, w = torch.randn(2, 3), torch.randn(3, 3)
    policy = Policy({"*": None}, operations={"matmul": LOW, "add": OTHER})
    with lp.emulate(policy, strict=True) as context:
        results = [x @ w, x.matmul(w), torch.matmul(x, w), x + x, x.add(x)]
    for product in results[:3]:
        assert_bit_equal(product, functional.matmul(x, w, precision=LOW))
    assert context.coverage().to_dict()["emulated"] == {"matmul": 3}
    assert context.coverage().to_dict()["carrier by policy"] == {"add": 2}


def test_json_holds_modules_and_operations_in_order():
    policy = Policy({"*": LOW, "b": None, "a": OTHER}, operations={"softmax": None})
    data = policy.to_json()
    assert list(data) == ["modules", "operations"]
    assert list(data["modules"]) == ["*", "b", "a"]
    back = Policy.from_json(json.loads(json.dumps(data)))
    assert back == policy
    assert hash(back) == hash(policy)
    names = {"Policy": Policy, "Precision": Precision}
    assert eval(repr(policy), names) == policy
    assert Policy({"*": LOW}) != Policy({"*": LOW}, operations={"add": None})


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"rules": {}}, ValueError, "unknown key 'rules' in the JSON form of a Policy"),
        ({"modules": 3}, TypeError, "the modules of a Policy must be a mapping, got 3"),
        ({"operations": {"add": {"p": 1}}}, ValueError, "unknown key 'p'.*Precision"),
    ],
)
def test_wrong_json_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        Policy.from_json(data)


def test_wrong_operations_are_refused():
    with pytest.raises(TypeError, match="mapping from name of an operation"):
        Policy({}, operations=[("add", LOW)])
    with pytest.raises(TypeError, match="a name of an operation must be a str"):
        Policy({}, operations={torch.add: LOW})


@pytest.mark.parametrize(
    "use",
    [
        lambda policy, model: lp.emulate(policy, model),
        lambda policy, model: lp.nn.convert_(model, policy),
    ],
)
def test_names_that_match_nothing_warn(use):
    with pytest.warns(NumericalWarning, match=r"match no module: 'layers\.\*'.*'0'"):
        use(Policy({"*": LOW, "layers.*": None}), network())
    with pytest.warns(NumericalWarning, match="match no operation: 'sofmax'"):
        use(Policy({"*": LOW}, operations={"sofmax": None}), network())


def test_half_precision_parameters_are_refused():
    model = network().bfloat16()
    for use in (lp.emulate, lambda policy, m: lp.nn.convert_(m, policy)):
        with pytest.raises(
            TypeError, match=r"0\.weight is a torch\.bfloat16.*float\(\)"
        ):
            use(Policy({"*": LOW}), model)
    lp.nn.convert_(model, {"*": None})


def test_lazy_modules_must_have_run():
    model = torch.nn.Sequential(torch.nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'0' is a lazy module.*run the model"):
        lp.nn.convert_(model, LOW)
    model(torch.ones(2, 4))
    assert lp.nn.convert_(model, LOW, strict=True)(torch.ones(2, 4)).shape == (2, 3)


def test_a_dtype_that_holds_too_little_is_refused():
    wide = Precision(weight="e8m50")
    with pytest.raises(ValueError, match=r"0\.weight.*weight=e8m50.*model\.double\(\)"):
        lp.nn.convert_(network(), wide)
    model = lp.nn.convert_(network().double(), wide)
    assert model(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64
    x = torch.ones(2, 2)
    refused = pytest.raises(ValueError, match=r"float32 carrier.*use a float64 carrier")
    with lp.emulate(wide), refused:
        x @ x


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_policies_of_every_model(name):
    policy = lp.preset(name)
    assert isinstance(policy, Policy)
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    model, x = network(), torch.randn(3, 4)
    plain = model(x)
    with lp.emulate(policy, strict=True):
        emulated = model(x)
        F.cross_entropy(emulated, torch.tensor([0, 1, 2])).backward()
    assert not torch.equal(emulated, plain)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_accumulators_of_presets_have_the_bits_of_their_names():
    for name in NAMES:
        precision = lp.preset(name).precision_for("any")
        if "-acc" in name:
            stored = int(name.partition("-acc")[2])
            assert precision.accumulator == Accumulator(f"e8m{stored}")
        elif name not in ("mxfp8", "nvfp4"):
            assert precision.accumulator is None


def test_presets_print_and_unknown_ones_are_refused():
    text = str(lp.presets())
    assert text.splitlines()[0].split() == ["name", "summary", "source"]
    assert len(text.splitlines()) == len(lp.presets()) + 1
    with pytest.raises(ValueError, match=r"unknown preset 'fp3'.*'bf16'"):
        lp.preset("fp3")
