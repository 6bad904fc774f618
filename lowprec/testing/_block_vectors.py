"""Test vectors of block formats: codes of numbers, of elements and of the scale."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..block_rounding import BlockRounding, BlockRoundingLike
from ..formats import Format
from ..formats import format as as_format
from ..rounding import Rounding, Saturation
from ._block_oracle import exact_block_round, exact_tensor_scale
from ._boundaries import boundary_blocks
from ._oracle import Real, exact_round
from ._philox import random_word
from .block_suites import scale_code

__all__ = ["BlockVector", "block_vectors"]

_COUNT = 1000
_SPECIALS = (math.nan, math.inf, -math.inf)
_FEW = 0.05  # of the random blocks have NaN or infinity, and as many zeros only


class BlockVector(NamedTuple):
    """One line of test vectors: a tensor of one block.

    Args:
        operands: codes of the numbers.
        words: one 32-bit random word per number, None for deterministic modes.
        elements: codes of the elements; of zero where the scale is NaN.
        scale: code of the scale.
        tensor_scale: code of the scale of the tensor, None if the format has none.
    """

    operands: tuple[int, ...]
    words: tuple[int, ...] | None
    elements: tuple[int, ...]
    scale: int
    tensor_scale: int | None


def block_vectors(
    rounding: BlockRoundingLike,
    *,
    source: Format | str | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Iterator[BlockVector]:
    """Generate test vectors of the conversion of blocks to a block format.

    Contract:
        Results are the oracle's. The same arguments give the same vectors. First come
        blocks at which scales and elements are decided, rounded to the source, then
        random ones, some with NaN or infinity. Every vector is a tensor of its own.
        Word j of block i is that of element i block_size + j under the seed.

    Args:
        rounding: a `BlockRounding`, a `BlockFormat` or its name.
        source: format of the numbers; binary32 if None.
        count: number of blocks; 1000 if None.
        seed: of the choice of numbers, and key of the random words.

    Returns:
        Iterator of vectors.

    Raises:
        ValueError: for a negative ``count``, or elements that have no codes.

    Example:
        >>> first = next(block_vectors("mxfp4"))
        >>> len(first.operands), len(first.elements), first.scale
        (32, 32, 0)

    References:
        OCP Microscaling Formats 1.0, sections 5 and 6.3.
    """
    if count is not None and count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    chosen = (
        rounding if isinstance(rounding, BlockRounding) else BlockRounding(rounding)
    )
    given = as_format("binary32" if source is None else source)
    chosen.format.element.encode(0)  # refuses elements without codes
    return _computed(chosen, given, _COUNT if count is None else count, seed)


def _blocks(
    rounding: BlockRounding, source: Format, count: int, seed: int
) -> Iterator[list[Real]]:
    """Yield blocks of numbers of the source."""
    mixed = random.Random(seed)
    dtype = torch.float32 if source.bits <= 32 else torch.float64
    decisive = boundary_blocks(rounding.format, dtype).tolist()
    if len(decisive) > count // 2:
        decisive = mixed.sample(decisive, count // 2)
    size = rounding.format.block_size
    for number in range(count):
        if number < len(decisive):
            block = decisive[number]
        else:
            exponent = mixed.randint(-30, 30)
            block = [math.ldexp(mixed.gauss(0, 1), exponent) for _ in range(size)]
            if mixed.random() < _FEW:
                block[mixed.randrange(size)] = mixed.choice(_SPECIALS)
            elif mixed.random() < _FEW:
                block = [mixed.choice((0.0, -0.0)) for _ in range(size)]
        narrowed = Rounding(source, saturation=Saturation.PROPAGATE)
        numbers = [exact_round(x, narrowed) for x in block]
        yield [x if source.is_representable(x) else 0.0 for x in numbers]


def _computed(
    rounding: BlockRounding, source: Format, count: int, seed: int
) -> Iterator[BlockVector]:
    target = rounding.format
    size = target.block_size
    for number, block in enumerate(_blocks(rounding, source, count, seed)):
        words = None
        if rounding.stochastic:
            words = tuple(random_word(seed, number * size + j) for j in range(size))
        finite = block if all(map(math.isfinite, block)) else []
        second = exact_tensor_scale(finite, target)
        exact = exact_block_round(block, rounding, words, second)
        yield BlockVector(
            tuple(source.encode(x) for x in block),
            words,
            tuple(target.element.encode(q) for q in exact.elements),
            scale_code(exact.scale, target),
            None if target.tensor_scale is None else target.tensor_scale.encode(second),
        )
