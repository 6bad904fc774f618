"""What the tests of fused operations share."""

import torch

import lowprec as lp
from lowprec import Precision
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal, exact_matmul, exact_round

# Different formats, so that no rounding hides another.
PRECISION = Precision(elementwise="e5m2", accumulator="e6m5", grad_accumulator="e6m4")


def part(seed, number):
    """Return a numbered part of a call's seed."""
    return split_seed(torch.tensor(seed), number + 1)[number]


def oracle_round(x, rounding):
    """Round element by element in exact rationals."""
    values = [exact_round(value, rounding) for value in x.flatten().tolist()]
    return torch.tensor(values, dtype=x.dtype).reshape(x.shape)


def oracle_sum(rows, accumulator="e6m5", seed=0):
    """Sum the rows of a matrix in exact rationals."""
    ones = torch.ones(rows.shape[1], 1, dtype=torch.float64)
    return exact_matmul(rows.double(), ones, accumulator, seed=seed).squeeze(1)


def assert_identity(ours, theirs, *leaves):
    """Require torch's bits, forward and backward, where nothing is rounded."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    state = torch.get_rng_state()
    actual = ours(*leaves, precision=Precision(input="e5m2", accumulator="e5m2"))
    torch.set_rng_state(state)
    expected = theirs(*leaves)
    assert_bit_equal(actual.detach(), expected.detach())
    g = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(actual, leaves, g),
        torch.autograd.grad(expected, leaves, g),
        strict=True,
    )
    for left, right in pairs:
        assert_bit_equal(left, right)


def check_representable(y, leaves, target):
    """Require that a result and all its gradients are values of a format."""
    gradients = torch.autograd.grad(y, leaves, torch.randn_like(y))
    for x in (y.detach(), *gradients):
        assert_bit_equal(x, lp.round(x, target))
