"""Rounding to posits in integer operations: every device, traceable, bit-exact.

A carrier number is the integer of its exponent and fraction. Behind the regime a posit
has the same bits, as many as have room, so rounding drops low bits of that integer,
the more the longer the regime is: the tie of neighbours is half of what is dropped,
even where exponent bits are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import codes
from .codes import RoundingCode
from .deciding import bit_length, power_of_two, round_up, up_between

if TYPE_CHECKING:
    from .portable import Carrier


def round_tapered(
    bits: Tensor,
    code: RoundingCode,
    carrier: Carrier,
    largest: int,
    words: Tensor | None,
) -> Tensor:
    """Return the bits of carrier numbers, as int64, rounded to posits.

    Args:
        bits: int64 with the bits of the numbers, whose sign is its own.
        code: a rounding code with the flag TAPERED.
        carrier: what the bits are of.
        largest: bits of the largest posit.
        words: random 32-bit words; stochastic modes only.

    Returns:
        int64 tensor; +0 for zeros and the quiet NaN for what is not finite.
    """
    negative = bits < 0
    magnitude = bits & ((1 << (carrier.width - 1)) - 1)
    fraction_bits = carrier.precision - 1
    hidden = 1 << fraction_bits
    smallest = (code.emin + carrier.bias) << fraction_bits
    exponent_bits = codes.exponent_bits(code)

    inside = magnitude.clamp(smallest, largest)
    exponent = (inside >> fraction_bits) - carrier.bias
    regime = exponent >> exponent_bits
    room = (code.precision - 3 - torch.where(regime < 0, ~regime, regime)).clamp(min=0)
    shift = fraction_bits + exponent_bits - room
    unit = power_of_two(shift)
    # One more than the bias is a multiple of 2^es, so exponent bits are in their place.
    aligned = inside + hidden
    dropped = aligned & (unit - 1)
    # Without room the code ends with the regime's last bit, which tells its sign.
    odd = torch.where(room > 0, (aligned & unit) != 0, exponent < 0)
    kept = aligned - dropped - hidden

    # Between 0 and the smallest posit the significand is what would be dropped.
    tiny = magnitude < smallest
    field = magnitude >> fraction_bits
    significand = torch.where(
        field == 0, magnitude, (magnitude & (hidden - 1)) + hidden
    )
    distance = (smallest >> fraction_bits) - field.clamp(min=1) + fraction_bits
    significand = torch.where(tiny, significand, dropped + torch.where(odd, unit, 0))
    shift = torch.where(tiny, distance, shift)
    up = round_up(code, significand, exponent, shift, negative, words)
    if code.mode <= codes.NEAREST_ZERO:  # nothing but zero becomes zero
        up = torch.where(tiny, magnitude != 0, up)
    if code.mode == codes.STOCHASTIC and words is not None:
        # Between powers of two that are not neighbours exponent bits are dropped.
        wide = ~tiny & (shift > fraction_bits)
        x, low, high = (_number(y, carrier) for y in (inside, kept, kept + unit))
        up = torch.where(wide, up_between(x, low, high, code, words) & (x != low), up)
    low = torch.where(tiny, 0, kept)
    result = low + torch.where(up, torch.where(tiny, smallest, unit), 0)
    sign = -(1 << (carrier.width - 1))
    result = torch.where(negative & (result != 0), result + sign, result)
    return torch.where(magnitude >= carrier.infinity, carrier.nan, result)


def _number(bits: Tensor, carrier: Carrier) -> Tensor:
    """Return the float64 numbers with these bits of the carrier."""
    return bits.to(carrier.integer).view(carrier.dtype).to(torch.float64)


def encode_tapered(x: Tensor, width: int, es: int, carrier: Carrier) -> Tensor:
    """Return the codes of posits as int64; those of NaN are that of NaR."""
    bits = x.view(carrier.integer).to(torch.int64)
    magnitude = bits & ((1 << (carrier.width - 1)) - 1)
    fraction_bits = carrier.precision - 1
    aligned = magnitude + (1 << fraction_bits)
    regime = ((magnitude >> fraction_bits) - carrier.bias) >> es
    room = (width - 3 - torch.where(regime < 0, ~regime, regime)).clamp(-1, width)
    behind = aligned & ((1 << (fraction_bits + es)) - 1)
    ones = (1 << (width - 1)) - power_of_two(room + 1)
    code = torch.where(regime < 0, power_of_two(room.clamp(min=0)), ones)
    code = code + (behind >> (fraction_bits + es - room))
    code = torch.where(bits < 0, (1 << width) - code, code)
    code = torch.where(magnitude == 0, 0, code)
    return torch.where(magnitude > carrier.infinity, 1 << (width - 1), code)


def decode_tapered(codes: Tensor, width: int, es: int, carrier: Carrier) -> Tensor:
    """Return the carrier's bits of the values of codes as int64; NaR is NaN."""
    nar = 1 << (width - 1)
    negative = codes >= nar
    size = torch.where(negative, 2 * nar - codes, codes)
    ones = (size & (nar >> 1)) != 0
    # The highest bit that is not one of the regime's, or none behind the longest one.
    end = bit_length(torch.where(ones, ~size, size) & (nar - 1)) - 1
    regime = torch.where(ones, width - 3 - end, end - width + 2)
    room = end.clamp(min=0)
    fraction_bits = carrier.precision - 1
    behind = (size & (power_of_two(room) - 1)) << (fraction_bits + es - room)
    bits = (((regime << es) + carrier.bias) << fraction_bits) + behind
    bits = torch.where(size == 0, 0, bits)
    bits = torch.where(negative, bits - (1 << (carrier.width - 1)), bits)
    return torch.where(codes == nar, carrier.nan, bits)
