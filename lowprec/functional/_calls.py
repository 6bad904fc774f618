"""What functions of several products share: identity, and the seeds of their parts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import Precision
from ..random import as_seed, split_seed
from ._parts import Seeds, seed_for


def leaves_products(precision: Precision) -> bool:
    """Whether matrix products are torch's own, forward and backward."""
    return all(each is None for each in precision.products)


def leaves_everything(precision: Precision) -> bool:
    """Whether products and elementwise operations are torch's own."""
    return precision.elementwise is None and leaves_products(precision)


def seed_with_elementwise(
    precision: Precision,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> Tensor | None:
    """Draw only if a product or an elementwise operation rounds stochastically."""
    products = seed_for(precision, generator, seed)
    elementwise = precision.elementwise
    if products is None and elementwise is not None and elementwise.stochastic:
        return as_seed(seed, generator)
    return products


def seeds_of_parts(seed: Tensor | None, count: int) -> tuple[Tensor | None, ...]:
    """Return a seed for each operation that a function consists of."""
    return (None,) * count if seed is None else split_seed(seed, count)


class Steps:
    """The seeds of a function that consists of several products.

    The first takes the seed of the call as it is, so that a single product is that of
    `matmul` with this seed; the others take the parts of the seed behind those of
    `Seeds`, in the order in which they are computed. This order is part of the
    numerical contract.

    Args:
        precision: of the products.
        generator: source of the seed, from which is drawn only if a product rounds
            stochastically.
        seed: the seed itself instead.
    """

    def __init__(
        self,
        precision: Precision,
        generator: torch.Generator | None,
        seed: int | Tensor | None,
    ) -> None:
        """Draw the seed."""
        self._base = seed_for(precision, generator, seed)
        self._number = 0

    def next(self) -> Tensor | None:
        """Return the seed of the next step; None means that nothing is stochastic."""
        self._number += 1
        if self._base is None or self._number == 1:
            return self._base
        part = len(Seeds._fields) + self._number - 2
        return split_seed(self._base, part + 1)[part]
