"""Outputs with their gradients, and the sums of which they are made."""

import torch

import lowprec as lp
from lowprec.testing import assert_bit_equal


def incoming(results):
    """The gradients that `everything` sends back, always the same."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in results]


def everything(function, leaves):
    """The outputs of a function and the gradients of all its operands."""
    y = function(*leaves)
    results = list(y) if isinstance(y, tuple) else [y]
    gradients = torch.autograd.grad(results, leaves, incoming(results))
    return [*(x.detach() for x in results), *gradients]


def assert_all_equal(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        assert_bit_equal(left.detach(), right.detach())


def assert_all_close(ours, theirs, rtol=1e-11, atol=1e-12):
    """For formats and sums so wide that only a real mistake is seen."""
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left.detach(), right.detach(), rtol=rtol, atol=atol)


def sums(terms, accumulator, seed=None):
    """Sums over the last dimension, which stays; terms are no products."""
    plain = accumulator.replace(product="exact")
    ones = torch.ones(terms.shape[-1], 1, dtype=terms.dtype)
    return lp.matmul(terms, ones, accumulator=plain, seed=seed)
