"""Second derivatives of emulated operations are refused, never silently zero."""

import pytest
import torch

import lowprec.functional as F
from lowprec import Precision

BF16 = Precision(elementwise="bfloat16", input="bfloat16")
WEIGHT = torch.linspace(-1, 1, 9).reshape(3, 3)

LOSSES = {
    "exp": lambda x: F.pointwise(torch.exp, x, precision=BF16).sum(),
    "mul": lambda x: F.pointwise(torch.mul, x, x, precision=BF16).sum(),
    "softmax": lambda x: F.softmax(x, 0, precision=BF16).square().sum(),
    "linear": lambda x: F.linear(x, WEIGHT * x, precision=BF16).sum(),
    "matmul": lambda x: F.matmul(x, x, precision=BF16),
    "layer_norm": lambda x: F.layer_norm(x, (3,), precision=BF16).square().sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_that_is_one_term_of_many(name):
    x = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(LOSSES[name](x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.autograd.grad((gradient * x).sum(), x)


@pytest.mark.parametrize("name", LOSSES)
def test_nested_transforms(name):
    def slope(x):
        return torch.func.grad(LOSSES[name])(x).sum()

    x = torch.tensor([0.5, -1.0, 2.0])
    assert slope(x).isfinite()
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.func.grad(slope)(x)


def test_weight_of_a_gradient_penalty():
    w = WEIGHT.clone().requires_grad_()
    x = torch.ones(3, requires_grad=True)
    loss = F.linear(x, w, precision=BF16).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        (loss + gradient.square().sum()).backward()


def test_gradients_without_second_derivatives_are_unlinked():
    x = torch.ones(3, requires_grad=True)
    total = F.sum(x, precision=BF16)
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    assert not gradient.requires_grad
