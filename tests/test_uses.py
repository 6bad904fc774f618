"""Sums of gradients that autograd does in the carrier are rows of the coverage."""

import pytest
import torch

import lowprec as lp

LOW = lp.Precision(elementwise="bfloat16", grad_weight="bfloat16")


def sums(coverage):
    return {r.module: r.calls for r in coverage if r.operation == "sum of gradients"}


class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.scale = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        for _ in range(3):
            x = self.layer(x) * self.scale
        return x


@pytest.mark.parametrize("front", ["emulate", "convert_"])
def test_module_and_parameter_used_three_times(front):
    model, x = Twice(), torch.ones(2, 3)
    if front == "emulate":
        with lp.emulate(lp.Policy({"*": LOW}), model) as context:
            model(x)
        coverage = context.coverage()
    else:
        lp.nn.convert_(model, LOW)(x)
        coverage = lp.nn.coverage(model)
    # Weight and bias of the layer; scale.
    assert sums(coverage) == {"layer": 4, "": 2}


def test_steps_of_training_are_no_repeated_uses():
    model, x = torch.nn.Linear(3, 3), torch.ones(2, 3)
    with lp.emulate(LOW) as context:
        for _ in range(3):
            loss = model(x).sum()  # the last step's graph is still alive
            loss.backward()
    assert sums(context.coverage()) == {}


def test_inputs_without_gradients_and_access_are_no_uses():
    weight = torch.ones(3, 3, requires_grad=True)
    with lp.emulate(LOW) as context:
        y = weight @ torch.ones(3)
        assert weight.dim() == weight.detach().dim() == 2
        with torch.no_grad():
            weight * 2
        assert weight.contiguous() is weight
    assert y.requires_grad
    assert sums(context.coverage()) == {}
