"""Philox4x32-10 on Python integers, independent of `lowprec.random`."""

from __future__ import annotations

__all__ = ["philox4x32", "random_word"]

_MASK = 2**32 - 1
_MULTIPLIER_0, _MULTIPLIER_2 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85  # golden ratio, sqrt(3) - 1
_ROUNDS = 10

Block = tuple[int, int, int, int]


def philox4x32(counter: Block, key: tuple[int, int]) -> Block:
    """Return the four random 32-bit words of one counter and key.

    Contract:
        Ten rounds, as Random123; a bijection of the counter for each key.

    Args:
        counter: four 32-bit words.
        key: two 32-bit words.

    Returns:
        Four 32-bit words.

    Raises:
        ValueError: if a word is not in [0, 2^32).

    Example:
        >>> [f"{word:08x}" for word in philox4x32((0, 0, 0, 0), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']

    References:
        Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3,
        SC 2011.
    """
    if any(not 0 <= word <= _MASK for word in (*counter, *key)):
        raise ValueError(f"words must be in [0, 2^32), got {counter} and {key}")
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high_0, low_0 = divmod(_MULTIPLIER_0 * c0, 2**32)
        high_2, low_2 = divmod(_MULTIPLIER_2 * c2, 2**32)
        c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def random_word(seed: int, index: int, step: int = 0, purpose: int = 0) -> int:
    """Return the random word of one rounding, by lowprec's fixed layout.

    Word ``index mod 4`` of the counter (low and high 32 bits of ``index div 4``,
    ``step``, ``purpose``) under the key (low and high 32 bits of ``seed``).

    Contract:
        The layout is part of the numerical contract and never changes silently.

    Args:
        seed: 64-bit key, taken modulo 2^64, so that int64 seeds may be negative.
        index: row-major index of the output element.
        step: number of the term inside a sum.
        purpose: 0 elementwise, 1 product, 2 addition, 3 addition of partial sums.

    Returns:
        An integer in [0, 2^32).

    Example:
        >>> random_word(seed=0, index=0) == 0x6627E8D5
        True

    References:
        As `philox4x32`.
    """
    block, word = divmod(index, 4)
    counter = (block & _MASK, block >> 32, step, purpose)
    return philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))[word]
