"""Sums of terms that are no products, under any accumulator.

Most are products with ones, which have the fastest kernels. Those hold exact products
in float64 and round them to odd to 53 bits, so that accumulators of more than 51 bits,
or terms and accumulators at the ends of float64's range, are not for them: there every
addition is that of `basic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import codes
from ._library import matmul
from .addition import Rounder
from .basic import ADD, WIDEST_TO_ODD, Round, correctly_rounded, rounder
from .codes import RoundingCode
from .exact import Products
from .levels import check_decidable
from .portable import linear_index, round_with_words
from .sums import add_up

# To a format whose values lie well inside the range of the kernels' exact products, a
# term outside of it is only huge or only a sign.
_SMALLEST_QUANTUM, _LARGEST_EXPONENT = -900, 900
_BINARY64 = (53, -1022, 1023, (1 << 53) - 1)
_IEEE = (
    codes.SUBNORMALS | codes.INFINITIES | codes.NANS | codes.SIGNED | codes.SIGNED_ZERO
)

_LIBRARY = torch.library.Library("lowprec", "FRAGMENT")
_LIBRARY.define(
    "term_sums(Tensor terms, int[] accumulate, int[] within, int order, "
    "int block_size, Tensor? seed, SymInt offset) -> Tensor"
)


def _is_narrow(code: Sequence[int]) -> bool:
    """Whether the format's values lie well inside the range of exact products."""
    precision, emin, emax = code[:3]
    return emin - precision >= _SMALLEST_QUANTUM and emax <= _LARGEST_EXPONENT


def summable(terms: Tensor, accumulate: Sequence[int], within: Sequence[int]) -> Tensor:
    """Return terms with the same sums, in the range of exact products if one may.

    Args:
        terms: float64 tensor.
        accumulate: code of the accumulator's rounding.
        within: code of the rounding inside blocks, or empty.
    """
    if not all(_is_narrow(code) for code in (accumulate, within) if code):
        return terms
    # Literals: Dynamo takes global floats for variables where shapes are dynamic.
    size = terms.abs().clamp(2.0**-960, 2.0**989)
    ordinary = terms.isfinite() & (terms != 0)
    return torch.where(ordinary, size.copysign(terms), terms)


class _Addition(NamedTuple):
    """A rounding inside a sum, like `Rounder`, for operands and formats of any range.

    It takes the same random words.
    """

    rounder: Rounder
    is_float64: bool

    @classmethod
    def of(cls, code: Sequence[int], elements: Tensor, seed: Tensor) -> _Addition:
        """Return the rounding of a code."""
        nearest = (_IEEE, codes.NEAREST_EVEN, codes.SATURATE_NONE)
        is_float64 = tuple(code[:7]) == (*_BINARY64, *nearest)
        return cls(Rounder.of(code, elements, seed), is_float64)

    @property
    def code(self) -> RoundingCode:
        """Which rounding it is."""
        return self.rounder.code

    def __call__(self, x: Tensor, step: int | Tensor, purpose: int) -> Tensor:
        """Return fl(x) with the random words of this step and purpose."""
        return self.rounder(x, step, purpose)

    def add(
        self, total: Tensor, term: Products, step: int | Tensor, purpose: int
    ) -> Tensor:
        """Return fl(total + term), the exact sum rounded once; terms have no error."""
        if self.is_float64:  # the addition of every processor
            return total + term.head
        round = self._round(step, purpose)
        return correctly_rounded(ADD, (total, term.head), self.code, round)

    def _round(self, step: int | Tensor, purpose: int) -> Round:
        numbers = self.rounder.numbers
        if not self.code.stochastic:
            return rounder(None, 0, numbers)
        words = self.rounder.words(step, purpose)
        return lambda x, code: round_with_words(x, (*code, *numbers), words)


class _Terms(NamedTuple):
    """The terms of all sums, many at a time."""

    values: Tensor  # [K, N]

    def at(self, numbers: Tensor) -> Products:
        """Return the terms with these numbers, [*numbers.shape, N]."""
        return Products(self.values[numbers], None)


def _are_products(terms: Tensor, given: Sequence[Sequence[int]]) -> bool:
    """Whether kernels of products serve these terms under these roundings."""
    if any(code[0] > WIDEST_TO_ODD for code in given):
        return False
    size = terms.abs()
    outside = (size < 2.0**-960) | (size >= 2.0**990)
    return not bool((outside & (size != 0) & size.isfinite()).any())


def _products(
    terms: Tensor,
    accumulate: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    ones = terms.new_ones(1, terms.shape[0])
    key = torch.tensor(0) if seed is None else seed
    sums: Tensor = matmul(
        ones, terms, accumulate, [], within, order, block_size, key, offset
    )
    return sums.squeeze(0)


def _term_sums(
    terms: Tensor,
    accumulate: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    given = [code for code in (accumulate, within) if code]
    if _are_products(terms, given):
        return _products(terms, accumulate, within, order, block_size, seed, offset)
    for code in given:
        check_decidable(code)
    count = terms.shape[0]
    zero = terms.new_zeros(terms.shape[1])
    if terms.numel() == 0:
        return zero
    index = linear_index(zero, offset)
    key = torch.tensor(0) if seed is None else seed
    adder, *inner = [_Addition.of(code, index, key) for code in given]
    return add_up(
        adder, [*inner, adder][0], _Terms(terms), count, order, block_size, zero
    )


def _term_sums_fake(terms: Tensor, *_: Any) -> Tensor:
    return terms.new_empty(terms.shape[1])


_LIBRARY.impl("term_sums", _term_sums, "CompositeExplicitAutograd")
_LIBRARY.impl("term_sums", _term_sums_fake, "Meta")


@torch.library.register_vmap("lowprec::term_sums", lib=_LIBRARY)
def _term_sums_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    terms: Tensor,
    accumulate: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: Tensor | None,
    offset: int,
) -> tuple[Tensor, int]:
    def rows(value: Any, dim: int | None) -> list[Any]:
        return [value] * info.batch_size if dim is None else list(value.unbind(dim))

    results = [
        term_sums(x, accumulate, within, order, block_size, one, offset)
        for x, one in zip(rows(terms, in_dims[0]), rows(seed, in_dims[5]), strict=True)
    ]
    return torch.stack(results), 0


def term_sums(
    terms: Tensor,
    accumulate: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: Tensor | None,
    offset: int = 0,
) -> Tensor:
    """Return the sums of columns, rounding after every addition.

    Args:
        terms: what to add, float64 [K, N], as `summable` returns it.
        accumulate: code of the accumulator's rounding, whose values float64 holds: to
            at most 51 bits, or to 53 in a deterministic mode, which does not wrap and
            is not that of two's complement.
        within: code of the rounding inside blocks, empty for ``accumulate``; BLOCKED
            only.
        order: SEQUENTIAL, BLOCKED, PAIRWISE or KAHAN.
        block_size: terms per block, BLOCKED only.
        seed: 0-d int64, of stochastic roundings only.
        offset: linear index of the first sum.

    Returns:
        float64 tensor [N].
    """
    settings = (accumulate, within, order, block_size, seed, offset)
    given = [code for code in (accumulate, within) if code]
    if all(_is_narrow(code) and code[0] <= WIDEST_TO_ODD for code in given):
        return _products(terms, *settings)
    result: Tensor = torch.ops.lowprec.term_sums.default(terms, *settings)
    return result
