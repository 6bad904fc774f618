"""How many roundings an inner product has, by order of summation."""

from __future__ import annotations


def roundings_per_term(
    n: int,
    *,
    order: str = "sequential",
    block_size: int | None = None,
    product: str = "exact",
) -> int:
    r"""Return the most roundings that one term of an inner product goes through.

    =============  ==========================  =====================================
    order          products representable      products exact or rounded
    =============  ==========================  =====================================
    sequential     n - 1                       n
    blocked, b     b + ceil(n/b) - 2           b + ceil(n/b) - 1
    pairwise       ceil(log2 n)                ceil(log2 n) + 1
    =============  ==========================  =====================================

    Contract:
        Orders are those of `lowprec.Accumulator`: sums start from +0. An exact product
        (a chain of fused multiply-adds) is rounded when it is first added: for the
        first term that is its own rounding, so a chain of n fused multiply-adds costs
        n roundings, not n - 1. A product already rounded to the accumulator is added
        to +0 without error: again n in all. ``"representable"`` means products that
        the accumulator holds exactly, such as bfloat16 operands (p = 8) in an
        accumulator with p >= 16.

    Args:
        n: number of terms, 0 or more.
        order: ``"sequential"``, ``"blocked"`` or ``"pairwise"``.
        block_size: terms per block, for ``"blocked"`` only.
        product: ``"exact"``, ``"accumulator"`` or ``"representable"``.

    Returns:
        Number of roundings.

    Raises:
        TypeError: if ``n`` or ``block_size`` is not an integer.
        ValueError: if a name is unknown, ``n`` < 0, or ``block_size`` does not fit.

    Example:
        >>> roundings_per_term(1000, order="blocked", block_size=32)
        63

    References:
        Higham, Accuracy and Stability (2002), sections 3.1 and 4.2; Blanchard, Higham
        and Mary, SIAM J. Sci. Comput. 42 (2020), for blocked sums.
    """
    if product not in ("exact", "accumulator", "representable"):
        raise ValueError(
            "product must be 'exact', 'accumulator' or 'representable', "
            f"got {product!r}"
        )
    additions = _additions(whole("n", n, 0), _name(order), block_size)
    return additions if n == 0 or product == "representable" else additions + 1


def _additions(n: int, order: str, block_size: int | None) -> int:
    if order != "blocked":
        if block_size is not None:
            raise ValueError(f"block_size needs order='blocked', got order={order!r}")
        return max(n - 1, 0) if order == "sequential" else max(n - 1, 0).bit_length()
    if block_size is None:
        raise ValueError("order='blocked' needs block_size, a whole number >= 1")
    block = min(whole("block_size", block_size, 1), n)
    return block + -(-n // block) - 2 if n else 0


def _name(order: str) -> str:
    name = str(getattr(order, "value", order))
    if name == "kahan":
        raise ValueError(
            "order='kahan' is no sum of independent roundings: its errors are bounded "
            "by (2 u + O(n u^2)) sum |x_i| whatever n (Higham 2002, equation 4.8); "
            "order must be 'sequential', 'blocked' or 'pairwise'"
        )
    if name not in ("sequential", "blocked", "pairwise"):
        raise ValueError(
            f"order must be 'sequential', 'blocked' or 'pairwise', got {name!r}"
        )
    return name


def whole(name: str, value: int, least: int) -> int:
    """Return an int after checking that it is at least ``least``.

    Raises:
        TypeError: if it is not an int.
        ValueError: if it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")
    return value
