"""Six models through both front ends: the same bits, on the grid, torch without."""

import contextlib

import pytest
import torch
from model_zoo import CASES
from torch.overrides import TorchFunctionMode

import lowprec as lp
import lowprec.nn
from lowprec import Policy, Precision, Rounding
from lowprec.testing import assert_bit_equal

E4M3 = Rounding("e4m3fn", saturation="finite")
UNIFORM = Precision(
    input="e6m5",
    weight="e6m5",
    output="e6m5",
    grad_output="e6m5",
    grad_input="e6m5",
    grad_weight="e6m5",
    accumulator="e8m10",
    elementwise="e6m5",
)
STOCHASTIC = Precision(
    input=Rounding("bfloat16", "stochastic"),
    weight=E4M3,
    output=Rounding("bfloat16", "stochastic"),
    grad_output="e5m2",
    grad_weight=Rounding("bfloat16", "stochastic"),
    accumulator=Rounding("e8m10", "stochastic"),
    elementwise=Rounding("bfloat16", "stochastic"),
)
PRODUCTS = Precision(
    input=E4M3, weight=E4M3, output="bfloat16", grad_output="e5m2", accumulator="e8m9"
)
POLICIES = {
    "uniform": Policy({"*": UNIFORM}),
    "stochastic": Policy(
        {"*": STOCHASTIC, "*norm*": None}, operations={"gelu": UNIFORM, "add": None}
    ),
    "products": Policy({"*": PRODUCTS, "head": Precision(weight="bfloat16")}),
}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
# Names that a policy has for some of the models only.
pytestmark = pytest.mark.filterwarnings("ignore:these names in the policy match no")


def train(case, model, context=None, seed=7):
    """Return output, loss, gradients and buffers of one step in training mode."""
    inputs, targets = case.batch(1)
    torch.manual_seed(seed)
    with contextlib.nullcontext() if context is None else context:
        output = model(inputs)
    loss = case.criterion(output, targets)
    loss.backward()
    return results(model, output, loss)


def results(model, *more):
    named = {f"result {number}": x.detach() for number, x in enumerate(more)}
    gradients = {
        f"gradient of {name}": parameter.grad
        for name, parameter in model.named_parameters()
    }
    return named | gradients | dict(model.named_buffers())


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, x in ours.items():
        if x.is_floating_point():
            assert_bit_equal(x, theirs[name])
        else:
            assert torch.equal(x, theirs[name])


@every_policy
@every_case
def test_emulate_and_convert_have_the_same_bits(case, policy):
    model = case.build(0)
    context = lp.emulate(policy, model, strict=True)
    emulated = train(case, model, context)
    converted_model = lp.nn.convert_(case.build(0), policy, strict=True)
    assert_same(train(case, converted_model), emulated)
    plain = train(case, case.build(0))
    assert not torch.equal(emulated["result 0"], plain["result 0"])
    ours, theirs = lp.nn.coverage(converted_model), context.coverage()
    assert set(ours) == {row for row in theirs if row in set(ours)}
    assert_same(inference(case, converted_model), inference(case, model, context))


def inference(case, model, context=None):
    torch.manual_seed(8)
    with torch.no_grad(), contextlib.nullcontext() if context is None else context:
        output = model.eval()(case.batch(2)[0])
    model.train()
    return {"output": output}


@every_case
def test_one_precision_for_all_is_that_of_a_policy(case):
    model = case.build(0)
    emulated = train(case, model, lp.emulate(UNIFORM, strict=True))
    again = case.build(0)
    assert_same(train(case, again, lp.emulate(UNIFORM, again, strict=True)), emulated)


@every_case
def test_without_formats_it_is_torch(case):
    plain = train(case, case.build(0))
    model = case.build(0)
    context = lp.emulate(Precision(), strict=True)
    assert_same(train(case, model, context), plain)
    assert set(context.coverage().to_dict()["emulated"]) == set()
    for policy in ({"*": Precision()}, {"*": None}):
        model = lp.nn.convert_(case.build(0), policy, strict=True)
        assert_same(train(case, model), plain)
        model = case.build(0)
        assert_same(train(case, model, lp.emulate(policy, model)), plain)


@every_case
def test_without_formats_inference_is_torch_up_to_its_fused_kernels(case):
    model = case.build(0).double()
    inputs = case.batch(2)[0]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    model.eval()
    with torch.no_grad():
        plain = model(inputs)
        with lp.emulate(Precision(), strict=True):
            emulated = model(inputs)
        converted = lp.nn.convert_(model, Precision())(inputs)
    assert_bit_equal(converted, emulated)
    if case.name == "encoder":  # torch fuses its layers
        torch.testing.assert_close(emulated, plain, rtol=1e-12, atol=1e-12)
    else:
        assert_bit_equal(emulated, plain)


def on_grid(x):
    return torch.equal(lp.round(x, "e6m5").nan_to_num(), x.nan_to_num())


class Audit(TorchFunctionMode):
    """Collects operations whose floating results are not on the grid."""

    def __init__(self):
        self.seen = 0
        self.off_grid = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple) else (result,):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.seen += 1
                if not on_grid(x):
                    self.off_grid.add(getattr(func, "__name__", str(func)))
        return result


def nodes(root):
    found, todo = set(), [root]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo.extend(parent for parent, _ in node.next_functions)
    return found


def audit_backward(output):
    """Check what emulated nodes hand back in the carrier; return what is off."""
    off_grid, seen = set(), []

    def check(node, gradients, _):
        for gradient in gradients:
            if gradient is not None and gradient.dtype == torch.float32:
                seen.append(node.name())
                if not on_grid(gradient):
                    off_grid.add(node.name())

    for node in nodes(output.grad_fn):
        # Torch's own nodes pass on sums of the engine, which the next ones round.
        if node.name().startswith("_"):
            node.register_hook(lambda given, grads, n=node: check(n, given, grads))
    return off_grid, seen


@every_case
def test_every_tensor_that_the_policy_names_is_on_the_grid(case):
    model = lp.nn.convert_(case.build(0), UNIFORM, strict=True)
    inputs, targets = case.batch(1)
    if inputs.is_floating_point():
        inputs = lp.round(inputs, "e6m5")
    with torch.no_grad():  # biases are used as they are
        for name, parameter in model.named_parameters():
            if "bias" in name or name == "positions":
                parameter.copy_(lp.round(parameter, "e6m5"))
    audit = Audit()
    with audit:
        output = model(inputs)
    assert audit.seen > 4
    properties = {"__get__"}  # parameters are rounded where they are used
    assert audit.off_grid <= properties
    off_grid, seen = audit_backward(output)
    case.criterion(output, targets).backward()
    assert len(seen) > 4
    assert not off_grid
    sums = {
        row.module
        for row in lp.nn.coverage(model)
        if row.operation == "sum of gradients"
    }
    added = {
        parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.rpartition(".")[0] in sums
    }
    for name, parameter in model.named_parameters():
        assert on_grid(parameter.grad) or parameter in added, name
    for buffer in model.buffers():
        assert not buffer.is_floating_point() or on_grid(buffer)
