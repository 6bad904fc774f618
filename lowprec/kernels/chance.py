"""From random words to the fraction above which a stochastic rounding goes up."""

from __future__ import annotations

import torch
from torch import Tensor

from . import codes


def stochastic_threshold(
    r: int, variant: int, words: Tensor
) -> tuple[Tensor, int, Tensor]:
    """Return the fraction from which a stochastic rounding goes up.

    Args:
        r: number of random bits.
        variant: VARIANT_A, VARIANT_B or VARIANT_C.
        words: random 32-bit words.

    Returns:
        ``count``, ``bits`` and ``strict``: up iff nu >= count 2^-bits, or nu > it where
        ``strict``, which is what the variant says about floor(nu 2^r) or the like.
    """
    missing = (1 << r) - (words >> (32 - r))
    never = torch.zeros_like(missing, dtype=torch.bool)
    if variant == codes.VARIANT_A:
        return missing, r, never
    # Half a unit lower; the tie of C is rounded to even, up where `missing` is even.
    strict = (missing & 1) == 1 if variant == codes.VARIANT_C else never
    return 2 * missing - 1, r + 1, strict
