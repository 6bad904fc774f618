"""Random words in Triton, addressed as `lowprec.random` says.

Element i takes word i mod 4 of the block with counter (low 32 bits of i div 4, high 32
bits, step, purpose), so four consecutive elements share one evaluation of Philox.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_words(block, seed, step, PURPOSE: tl.constexpr):
    """The four words of each block number (int64), as uint32."""
    low = block.to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    zero = tl.zeros(block.shape, tl.uint32)
    return tl.philox(seed, low, high, zero + step.to(tl.uint32), zero + PURPOSE)


@triton.jit
def grouped_words(block, seed, step, PURPOSE: tl.constexpr):
    """The words of four consecutive elements per block number.

    ``block`` has shape [G] or [M, G], the result [4 G] or [M, 4 G].
    """
    w0, w1, w2, w3 = block_words(block, seed, step, PURPOSE)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    if len(block.shape) == 1:
        return words.reshape(4 * block.shape[0])
    else:
        return words.reshape(block.shape[0], 4 * block.shape[1])


@triton.jit
def element_words(element, seed, step, PURPOSE: tl.constexpr):
    """The word of each element index (int64)."""
    w0, w1, w2, w3 = block_words(element >> 2, seed, step, PURPOSE)
    word = element & 3
    low = tl.where(word == 0, w0, w1)
    high = tl.where(word == 2, w2, w3)
    return tl.where(word < 2, low, high)
