"""Dimensions and shapes that torch refuses, and tensors without elements."""

import pytest
import torch
import torch.nn.functional as F

import lowprec as lp
from lowprec import Precision

LOW = Precision(elementwise="bfloat16", accumulator="e8m15")
X = torch.linspace(-1, 1, 24).reshape(4, 6)
ALONG = {
    "sum": lambda x, dim: x.sum(dim),
    "mean": lambda x, dim: x.mean(dim),
    "var": lambda x, dim: x.var(dim),
    "norm": lambda x, dim: x.norm(dim=dim),
    "prod": lambda x, dim: x.prod(dim),
    "cumsum": lambda x, dim: x.cumsum(dim),
    "logsumexp": lambda x, dim: x.logsumexp(dim),
    "softmax": lambda x, dim: x.softmax(dim),
    "normalize": lambda x, dim: F.normalize(x, dim=dim),
    "cosine_similarity": lambda x, dim: F.cosine_similarity(x, x, dim=dim),
}


@pytest.mark.parametrize("dim", [2, -3, 7])
@pytest.mark.parametrize("name", ALONG)
def test_dimensions_out_of_range(name, dim):
    with pytest.raises(IndexError):
        ALONG[name](X, dim)
    with lp.emulate(LOW, strict=True), pytest.raises(IndexError):
        ALONG[name](X, dim)


@pytest.mark.parametrize("name", sorted(set(ALONG) - {"var", "cosine_similarity"}))
@pytest.mark.parametrize("shape", [(0, 6), (6, 0), ()])
def test_empty_tensors_and_numbers(name, shape):
    x = torch.ones(shape)
    expected = ALONG[name](x, 0)
    with lp.emulate(LOW, strict=True):
        y = ALONG[name](x, 0)
    torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("target", "weight"),
    [
        (torch.tensor([0, 1]), None),
        (torch.tensor([[0], [1], [2], [3]]), None),
        (torch.ones(1, 6), None),
        (torch.zeros(4, dtype=torch.int64), torch.ones(1)),
        (torch.zeros(4, dtype=torch.int64), torch.ones(7)),
    ],
)
def test_targets_do_not_broadcast(target, weight):
    with pytest.raises((ValueError, RuntimeError)):
        F.cross_entropy(X, target, weight)
    with lp.emulate(LOW, strict=True), pytest.raises(ValueError, match="must have"):
        F.cross_entropy(X, target, weight)
