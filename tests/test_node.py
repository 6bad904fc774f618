"""The cheap way to apply an autograd function gives what the usual way gives."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from lowprec.arithmetic import applied


class Scale(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, other, factor):
        return x * factor + (0 if other is None else other)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, ctx.factor = inputs
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (output,) = ctx.saved_tensors
        assert ctx.needs_input_grad == (True, False, False)
        return gradient * ctx.factor + 0 * output, None, None


def test_gradients_and_saved_tensors():
    x = torch.randn(3, requires_grad=True)
    y = applied(Scale, x, None, 2.0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [2, 2, 2]
    assert type(y.grad_fn).__name__ == "ScaleBackward"


def test_no_node_without_gradients():
    x = torch.randn(3)
    assert applied(Scale, x, x, 2.0).grad_fn is None
    with torch.no_grad():
        assert applied(Scale, x.requires_grad_(), None, 2.0).grad_fn is None


def test_transforms_see_the_node():
    x = torch.randn(4, 3)

    def loss(x):
        return applied(Scale, x, None, 2.0).sum()

    gradients = torch.func.vmap(torch.func.grad(loss))(x)
    assert torch.equal(gradients, torch.full((4, 3), 2.0))


def test_dual_numbers_are_refused_with_advice():
    x = torch.randn(3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match=r"forward-mode.*jacrev"):
            applied(Scale, dual, None, 2.0)
        assert torch.equal(applied(Scale, x, None, 2.0), x * 2)
    with pytest.raises(NotImplementedError, match=r"forward-mode.*jacrev"):
        torch.func.jvp(lambda x: applied(Scale, x, None, 2.0), (x,), (x,))


def test_one_derivative_only():
    x = torch.randn(3, requires_grad=True)
    y = applied(Scale, x, None, 2.0)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
