"""Sums of products with a rounded accumulator, in plain torch.

Every addition rounds the exact sum once. The carrier is float64: its sum and the error
of that sum (TwoSum) are exact, and moving the sum to the neighbour with an odd last bit
when the error is not zero (round to odd) keeps all that a second rounding to at most 51
bits needs. Loops run over the terms of a block and are vectorised over blocks and
outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import codes
from .addition import PlainAddition, Rounder
from .codes import RoundingCode
from .exact import Products, exact_product, is_wide, to_odd
from .levels import check_decidable, prepared
from .portable import CARRIERS, linear_index

WIDEST_ACCUMULATOR = 51
_LARGEST_OPERAND = 2.0**990
_LARGEST_PRODUCT = 2.0**990
_SMALLEST_PRODUCT = 2.0**-960
_WORKSPACE = 1 << 22  # float64 products held at a time


def check_product_range(a: Tensor, b: Tensor) -> None:
    """Refuse float64 operands whose exact products may leave the float64 range.

    Raises:
        ValueError: with the offending magnitudes.
    """
    extremes = []
    for operand in (a, b):
        size = operand.abs()
        size = size[size.isfinite() & (size > 0)]
        if size.numel() == 0:
            return
        extremes.append((float(size.min()), float(size.max())))
    (a_small, a_large), (b_small, b_large) = extremes
    # Dekker's split multiplies an operand by 2^27.
    splittable = max(a_large, b_large) < _LARGEST_OPERAND
    if (
        not splittable
        or a_large * b_large > _LARGEST_PRODUCT
        or a_small * b_small < _SMALLEST_PRODUCT
    ):
        raise ValueError(
            f"the operands' magnitudes [{a_small:g}, {a_large:g}] and "
            f"[{b_small:g}, {b_large:g}] have products outside [2^-960, 2^990], where "
            "float64 cannot hold them exactly: scale the operands by powers of two"
        )


def check_accumulator(code: RoundingCode) -> None:
    """Refuse roundings inside sums that a float64 carrier cannot do correctly.

    Raises:
        NotImplementedError: for more than 51 significant bits.
    """
    if code.precision > WIDEST_ACCUMULATOR:
        raise NotImplementedError(
            f"sums and products rounded to {code.precision} significant bits cannot be "
            f"emulated in float64: at most {WIDEST_ACCUMULATOR} are correctly rounded; "
            "accumulator=None computes in the carrier without emulation"
        )


def check_result_dtype(code: RoundingCode, dtype: torch.dtype) -> None:
    """Refuse accumulators whose values the operands' dtype cannot hold.

    Raises:
        ValueError: naming the remedy.
    """
    carrier = CARRIERS[dtype]
    lowest_quantum = 2 - carrier.bias - carrier.precision
    fits = (
        codes.significant_bits(code) <= carrier.precision
        and code.emax <= carrier.bias
        and code.emin - code.precision + 1 >= lowest_quantum
    )
    if not fits:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"an accumulator with precision {code.precision}, emin {code.emin}, emax "
            f"{code.emax} has values that {name} operands' dtype cannot return: "
            "use float64 operands"
        )


def matmul(
    a: Tensor,
    b: Tensor,
    accumulate: Sequence[int],
    product: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: Tensor,
    offset: int,
) -> Tensor:
    """Multiply [..., M, K] by [..., K, N], rounding after every addition.

    Args:
        a: left operand, float32 or float64.
        b: right operand of the same dtype and batch shape.
        accumulate: code of the accumulator's rounding.
        product: code of the products' rounding, empty for exact products.
        within: code of the rounding inside blocks, empty for ``accumulate``; BLOCKED
            only.
        order: SEQUENTIAL, BLOCKED, PAIRWISE or KAHAN.
        block_size: terms per block, BLOCKED only.
        seed: 0-d int64.
        offset: linear index of the first output element.

    Returns:
        Tensor [..., M, N] of the operands' dtype.
    """
    for code in (accumulate, product, within):
        if code:
            check_accumulator(codes.decode(code))
            check_decidable(code)
    if numbers := codes.numbers_of(accumulate):
        prepared(numbers, accumulate[5], a.dtype, a.device)
    else:
        check_result_dtype(codes.decode(accumulate), a.dtype)
    if a.dtype == torch.float64:
        check_product_range(a, b)
    zero = torch.zeros(
        (*a.shape[:-1], b.shape[-1]), dtype=torch.float64, device=a.device
    )
    terms = a.shape[-1]
    if terms == 0 or zero.numel() == 0:
        return zero.to(a.dtype)
    index = linear_index(zero, offset)
    products = _Products(
        a.to(torch.float64).movedim(-1, 0).unsqueeze(-1),
        b.to(torch.float64).movedim(-2, 0).unsqueeze(-2),
        a.dtype == torch.float64 and (is_wide(a) or is_wide(b)),
        Rounder.of(product, index, seed) if product else None,
    )
    adder = Rounder.of(accumulate, index, seed)
    inner = Rounder.of(within, index, seed) if within else adder
    total = add_up(adder, inner, products, terms, order, block_size, zero)
    return total.to(a.dtype)  # exact: check_result_dtype


class Adder(Protocol):
    """A rounding inside a sum, as `Rounder` is one."""

    @property
    def code(self) -> RoundingCode:
        """Which rounding it is."""

    def __call__(self, x: Tensor, step: int | Tensor, purpose: int) -> Tensor:
        """Return fl(x) with the random words of this step and purpose."""

    def add(
        self, total: Tensor, term: Products, step: int | Tensor, purpose: int
    ) -> Tensor:
        """Return fl(total + term)."""


class Terms(Protocol):
    """What is added, computed many at a time."""

    def at(self, numbers: Tensor) -> Products:
        """Return the terms with these numbers, shape [*numbers.shape, *]."""


def add_up(
    adder: Adder,
    inner: Adder,
    products: Terms,
    terms: int,
    order: int,
    block_size: int,
    zero: Tensor,
) -> Tensor:
    """Return sums, rounding after every addition.

    Args:
        adder: the accumulator's rounding.
        inner: rounding inside blocks, BLOCKED only.
        products: the terms of every sum.
        terms: how many there are, at least one.
        order: SEQUENTIAL, BLOCKED, PAIRWISE or KAHAN.
        block_size: terms per block, BLOCKED only.
        zero: +0 for every sum.

    Returns:
        float64 tensor of ``zero``'s shape.
    """
    if order == codes.PAIRWISE:
        return _pairwise(adder, products, terms, zero)
    if order == codes.KAHAN:
        return _kahan(adder, products, terms, zero)
    if order == codes.BLOCKED:
        blocks = _blocked(inner, products, terms, min(block_size, terms), zero)
        return _sequence(adder, zero, blocks, codes.PURPOSE_COMBINE)
    return _blocked(adder, products, terms, terms, zero)[0]


class _Products(NamedTuple):
    """The terms pi(a_k b_k), computed many at a time."""

    left: Tensor  # [K, ..., M, 1]
    right: Tensor  # [K, ..., 1, N]
    wide: bool
    rounder: Rounder | None

    def at(self, numbers: Tensor) -> Products:
        """Return the terms with these numbers, shape [*numbers.shape, ..., M, N]."""
        flat = numbers.flatten()
        term = exact_product(self.left[flat], self.right[flat], self.wide)
        if self.rounder is not None:
            head = term.head if term.error is None else to_odd(term.head, term.error)
            steps = flat.view(-1, *[1] * (head.dim() - 1))
            head = self.rounder(head, steps, codes.PURPOSE_PRODUCT)
            term = Products(head, None)
        shape = (*numbers.shape, *term.head.shape[1:])
        error = None if term.error is None else term.error.view(shape)
        return Products(term.head.view(shape), error)


def _blocked(
    adder: Adder, products: Terms, terms: int, size: int, zero: Tensor
) -> Tensor:
    """Return the sums of all blocks, [blocks, ..., M, N], each from +0."""
    blocks = -(-terms // size)
    starts = torch.arange(0, terms, size, device=zero.device)
    total = zero.expand(blocks, *zero.shape)
    # Adding this zero changes no total, whatever its sign (IEEE 754 section 6.3).
    neutral = 0.0 if adder.code.mode == codes.TOWARD_NEGATIVE else -0.0
    rows = max(1, _WORKSPACE // total.numel())
    for first in range(0, size, rows):
        offsets = torch.arange(first, min(first + rows, size), device=zero.device)
        numbers = offsets.unsqueeze(1) + starts  # [rows, blocks]
        head, error = products.at(numbers.clamp(max=terms - 1))
        missing = (numbers >= terms).view(*numbers.shape, *[1] * zero.dim())
        if bool(missing.any()):
            head = torch.where(missing, neutral, head)
            error = None if error is None else torch.where(missing, 0.0, error)
        total = _sequence(adder, total, head, codes.PURPOSE_ADD, error, numbers)
    return total


def _sequence(
    adder: Adder,
    total: Tensor,
    head: Tensor,
    purpose: int,
    error: Tensor | None = None,
    numbers: Tensor | None = None,
) -> Tensor:
    """Add head[0], head[1], ... to ``total``, one rounding each."""
    plain = None
    if error is None:
        plain = PlainAddition.proved(adder.code, total, head)
    if plain is not None:
        for term in head.unbind():
            total = plain.add(total, term)
        return total
    for step, term in enumerate(head.unbind()):
        number: int | Tensor = step
        if numbers is not None:
            number = numbers[step].view(-1, *[1] * (total.dim() - 1))
        pair = Products(term, None if error is None else error[step])
        total = adder.add(total, pair, number, purpose)
    return total


def _pairwise(adder: Adder, products: Terms, terms: int, zero: Tensor) -> Tensor:
    numbers = torch.arange(terms, device=zero.device)
    term = products.at(numbers)
    leaves = term.head if term.error is None else to_odd(term.head, term.error)
    steps = numbers.view(-1, *[1] * (leaves.dim() - 1))
    level = adder(leaves, steps, codes.PURPOSE_ADD)
    done = 0
    while level.shape[0] > 1:
        pairs = level.shape[0] // 2
        pair = Products(level[1 : 2 * pairs : 2], None)
        running = steps[:pairs] + done
        sums = adder.add(level[: 2 * pairs : 2], pair, running, codes.PURPOSE_COMBINE)
        done += pairs
        level = torch.cat([sums, level[2 * pairs :]])
    return level[0]


def _kahan(adder: Adder, products: Terms, terms: int, zero: Tensor) -> Tensor:
    """Add with the error of each addition carried into the next (Higham 2002, 4.3)."""
    total = correction = zero
    for step in range(terms):
        term = products.at(torch.tensor([step], device=zero.device))
        error = None if term.error is None else term.error[0]
        term = Products(term.head[0], error)
        y = adder.add(-correction, term, step, codes.PURPOSE_KAHAN_TERM)
        after = adder.add(total, Products(y, None), step, codes.PURPOSE_ADD)
        less = Products(-total, None)
        gained = adder.add(after, less, step, codes.PURPOSE_KAHAN_DIFFERENCE)
        less = Products(-y, None)
        correction = adder.add(gained, less, step, codes.PURPOSE_KAHAN_CORRECTION)
        total = after
    return total
