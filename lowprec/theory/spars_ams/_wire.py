"""Sizes of payloads in bits, and the density below which they pay."""

from __future__ import annotations

import math


def index_bits(d: int) -> int:
    r"""Return the bits of one packed index, ceil(log2 d).

    Args:
        d: number of entries of the vector.

    Returns:
        Bits; 0 if there is one entry.

    Raises:
        ValueError: if d is not positive.

    Example:
        >>> index_bits(2410)
        12
    """
    if d < 1:
        raise ValueError(f"d must be at least 1, got {d}")
    return (d - 1).bit_length()


def payload_bits(
    k: int, d: int, *, value_bits: int, bits_of_index: int | None = None
) -> int:
    r"""Return the bits of k values and their indices.

    .. math::
        k b_{\mathrm{val}} + \min(k b_{\mathrm{idx}}, d)
        \text{ if packed, as a bitmap may be smaller;}\quad
        k (b_{\mathrm{val}} + b_{\mathrm{idx}}) \text{ for a given } b_{\mathrm{idx}}

    Args:
        k: number of entries that are sent.
        d: number of entries of the vector.
        value_bits: bits of a value.
        bits_of_index: bits of an index, such as 32; None packs them.

    Returns:
        Bits, without a header.

    Raises:
        ValueError: if k is not from 0 to d.

    Example:
        >>> payload_bits(24, 2410, value_bits=32, bits_of_index=32) // 8
        192
        >>> payload_bits(24, 2410, value_bits=16) // 8
        84

    References:
        Section 1.3, bytes on the wire.
    """
    _check(k, d)
    if bits_of_index is None:
        return k * value_bits + min(k * index_bits(d), d)
    return k * (value_bits + bits_of_index)


def subset_bits(k: int, d: int) -> int:
    r"""Return the least number of bits that can tell which entries were sent.

    .. math::
        \lceil \log_2 \tbinom dk \rceil

    Args:
        k: number of entries that are sent.
        d: number of entries of the vector.

    Returns:
        Bits.

    Raises:
        ValueError: if k is not from 0 to d.

    Example:
        >>> subset_bits(24, 2410)
        191
    """
    _check(k, d)
    return (math.comb(d, k) - 1).bit_length()


def break_even_density(
    workers: int, *, value_bits: int, bits_of_index: int, dense_bits: int = 32
) -> float:
    r"""Return the density below which gathering payloads beats a dense all-reduce.

    .. math::
        \frac kd < \frac{2 b}{n (b_{\mathrm{val}} + b_{\mathrm{idx}})}

    Contract:
        Each rank receives (n - 1) k (b_val + b_idx) bits of payloads, or
        2 (n - 1)/n d b bits of a ring all-reduce.

    Args:
        workers: n.
        value_bits: bits of a value that is sent.
        bits_of_index: bits of an index.
        dense_bits: b, bits of an entry of a dense vector.

    Returns:
        k/d.

    Raises:
        ValueError: if a number is not positive.

    Example:
        >>> break_even_density(20, value_bits=32, bits_of_index=32)
        0.05

    References:
        Section 1.3.
    """
    given = {
        "workers": workers,
        "value_bits": value_bits,
        "bits_of_index": bits_of_index,
        "dense_bits": dense_bits,
    }
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    return 2 * dense_bits / (workers * (value_bits + bits_of_index))


def _check(k: int, d: int) -> None:
    if not 0 <= k <= d:
        raise ValueError(f"k must be from 0 to d = {d}, got {k}")
