"""Which cheap products equal the general ones, decided from facts about the operands.

The twin of ``csrc/proofs.h``, where the argument is written out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import codes
from ..codes import RoundingCode
from ..portable import CARRIERS, Carrier
from ._plan import Plan, plan_of


class Facts(NamedTuple):
    """Facts about the elements that are neither zero nor infinite nor NaN."""

    significant_bits: int  # at most so many
    smallest: float  # magnitude; infinity if there are none
    largest: float  # magnitude; 0 if there are none
    finite: bool  # no infinity or NaN

    @property
    def lowest_bit(self) -> int:
        """Every element is a multiple of 2 to this power."""
        return _exponent(self.smallest) - self.significant_bits + 1


class Proof(NamedTuple):
    """How a product may be computed, all else being proved away."""

    odd: bool  # sums may be inexact in a way that matters: round them to odd first
    guarded: bool  # sums may overflow or fall below the accumulator's quantum


def _exponent(x: float) -> int:
    return math.frexp(x)[1] - 1


def facts_of(operands: tuple[Tensor, ...]) -> list[Facts]:
    """Return the facts about every operand, waiting for the device once."""
    rows = [_extremes(x) for x in operands]
    found = torch.stack(rows).tolist()
    return [_named(row, x.dtype) for row, x in zip(found, operands, strict=True)]


def _extremes(x: Tensor) -> Tensor:
    """Smallest and largest number's bits, lowest fraction bit, whether all finite."""
    carrier = CARRIERS[x.dtype]
    magnitude = x.contiguous().view(carrier.integer) & _largest_integer(carrier)
    finite = magnitude < carrier.infinity
    number = torch.where(finite, magnitude, 0)
    fraction = number & ((1 << (carrier.precision - 1)) - 1)
    none = _largest_integer(carrier)
    lowest = torch.where(fraction != 0, fraction & -fraction, none).min()
    smallest = torch.where(number != 0, number, none).min()
    extremes = [smallest, number.max(), lowest, finite.all()]
    return torch.stack([value.to(torch.int64) for value in extremes])


def _largest_integer(carrier: Carrier) -> int:
    return (1 << (carrier.width - 1)) - 1


def _named(row: list[int], dtype: torch.dtype) -> Facts:
    smallest, largest, lowest, finite = row
    carrier = CARRIERS[dtype]
    if largest == 0:
        return Facts(0, math.inf, 0.0, bool(finite))
    bits = 1
    if lowest != _largest_integer(carrier):
        bits = carrier.precision - (lowest.bit_length() - 1)
    ends = torch.tensor([smallest, largest], dtype=carrier.integer).view(dtype)
    least, greatest = ends.tolist()
    return Facts(bits, least, greatest, bool(finite))


def _plain(code: RoundingCode, plan: Plan, carrier: Carrier) -> bool:
    """Nearest-even in a signed format with subnormals and signed zeros."""
    drop = carrier.precision - code.precision
    return (
        code.mode == codes.NEAREST_EVEN
        and not plan.rule.gap
        and not plan.rule.deep
        and drop >= 1
        and bool(code.flags & codes.SIGNED_ZERO)
        and plan.simple_overflow
        and code.emin + drop + 1 <= carrier.bias
    )


def prove(
    accumulate: tuple[int, ...],
    product: tuple[int, ...],
    blocked: bool,
    facts: list[Facts],
    dtype: torch.dtype,
) -> Proof | None:
    """Return how numbers of ``dtype`` compute the product as defined, or None.

    Args:
        accumulate: code of the accumulator's rounding.
        product: code of the products' rounding, empty for exact products.
        blocked: whether the terms of the last sum are block sums.
        facts: facts about the two operands.
        dtype: the numbers to compute with.

    Returns:
        The proof, if there is one.
    """
    try:
        plans = [plan_of(code, dtype) for code in (accumulate, product or accumulate)]
    except ValueError:  # the format does not fit
        return None
    carrier = CARRIERS[dtype]
    code, product_code = (
        codes.decode(integers) for integers in (accumulate, product or accumulate)
    )
    if not _plain(code, plans[0], carrier) or not _plain(
        product_code, plans[1], carrier
    ):
        return None
    finite_sum, finite_product = (
        plan.constants.over < carrier.infinity for plan in plans
    )

    a, b = facts
    zero = a.largest == 0 or b.largest == 0
    p = code.precision
    quantum = code.emin - p + 1
    bits = a.significant_bits + b.significant_bits
    # All terms are multiples of 2^lowest and at most 2^above.
    lowest = 0 if zero else a.lowest_bit + b.lowest_bit
    above = 0 if zero else _exponent(a.largest) + _exponent(b.largest) + 2
    if bits > carrier.precision or above >= carrier.bias or lowest < 2 - carrier.bias:
        return None

    # Infinite products come from infinite operands or from rounding. A finite number in
    # place of infinity may lie far above 2^top, so it must not enter a sum.
    in_range = a.finite and b.finite
    if not in_range and finite_product:
        return None
    if product:
        in_range = in_range and above <= product_code.emax
    if not in_range and not finite_product and finite_sum:
        return None

    term_bits = bits
    if product:
        term_bits = product_code.precision
        if above + carrier.precision - term_bits + 1 > carrier.bias:
            return None
        product_quantum = product_code.emin - term_bits + 1
        lowest = max(lowest, product_quantum)
        above = max(above, product_quantum)
        lowest = min(lowest, product_code.emax - term_bits + 1)
    tie = 1 if p == 1 else 0
    top = max(above, quantum) + p + tie
    if blocked:
        top += p + tie
    if top + carrier.precision - p + 2 > carrier.bias:
        return None

    in_range = in_range and top <= code.emax and lowest >= quantum
    if not in_range:
        lowest = min(lowest, code.emax - p + 1)
    innocuous = term_bits <= p and 2 * p + 1 <= carrier.precision
    odd = not innocuous and top + 1 - lowest > carrier.precision
    if odd and p + 2 > carrier.precision:
        return None
    return Proof(odd, not in_range)
