"""What the tests of layers share: a different rounding for every tensor role."""

import pytest
import torch

import lowprec as lp
from lowprec import Rounding

ROUNDINGS = {
    "input": Rounding("e4m3fn", saturation="finite"),
    "weight": "e5m2",
    "output": "e6m8",
    "grad_output": "e5m2",
    "grad_input": "e6m4",
    "grad_weight": "e8m3",
}
STOCHASTIC = {
    name: Rounding(lp.rounding.as_rounding(value).format, "stochastic")
    for name, value in ROUNDINGS.items()
}
# Dynamo itself instantiates autograd functions while it traces them.
ignore_dynamo = pytest.mark.filterwarnings("ignore:.*should not be instantiated")


def leaf(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype).requires_grad_()
