"""The precisions of the tests of products, and the seeds of later products."""

import torch
from layer_roundings import ROUNDINGS, STOCHASTIC, leaf

from lowprec import Accumulator, Rounding
from lowprec.functional import Seeds
from lowprec.precision import Precision
from lowprec.random import split_seed

SUMS = Accumulator("e6m5", product="e5m2")
LOW = Precision(accumulator=SUMS, grad_accumulator="e8m6", **ROUNDINGS)
RANDOM_SUMS = Accumulator(
    Rounding("e6m4", "stochastic"), product=Rounding("e5m2", "stochastic")
)
RANDOM = Precision(accumulator=RANDOM_SUMS, **STOCHASTIC)
# An accumulator of 51 bits differs from float64 by less than any real mistake.
WIDE = Precision(accumulator="e8m50")


def later_seed(seed, number):
    """The seed of product ``number`` > 0 of a call."""
    part = len(Seeds._fields) + number - 1
    return split_seed(torch.tensor(seed), part + 1)[part]


def leaves_of(shapes, dtype=torch.float32):
    return [leaf(*shape, dtype=dtype) for shape in shapes]
