"""One rounding and one inner product in exact rationals, independent of the library."""

import math
from fractions import Fraction


def exponent(size):
    """Return e with 2^e <= size < 2^(e+1)."""
    e = size.numerator.bit_length() - size.denominator.bit_length()
    return e if Fraction(2) ** e <= size else e - 1


def fl(x, p, mode="nearest_even", emin=None, rng=None):
    """Round to precision p; emin=None leaves the exponent unbounded below."""
    if x == 0:
        return x
    e = exponent(abs(x))
    quantum = Fraction(2) ** ((e if emin is None else max(e, emin)) - p + 1)
    scaled = x / quantum
    down = math.floor(scaled)
    nu = scaled - down
    if mode == "nearest_even":
        up = nu > Fraction(1, 2) or (nu == Fraction(1, 2) and down % 2 == 1)
    elif mode == "stochastic":
        up = rng.random() < nu
    else:
        up = {
            "toward_positive": nu > 0,
            "toward_negative": False,
            "toward_zero": nu > 0 and x < 0,
        }[mode]
    return (down + up) * quantum


def dot(a, b, p, *, order="sequential", block=None, product="exact", **how):
    """Return the inner product, every sum rounded to precision p."""
    terms = [x * y for x, y in zip(a, b, strict=True)]
    if product == "accumulator":
        terms = [fl(term, p, **how) for term in terms]
    elif isinstance(product, int):
        terms = [fl(term, product, **how) for term in terms]
    if order == "sequential":
        return chain(terms, p, **how)
    if order == "blocked":
        starts = range(0, len(terms), block)
        return chain([chain(terms[i : i + block], p, **how) for i in starts], p, **how)
    level = [fl(term, p, **how) for term in terms]
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        odd = level[-1:] if len(level) % 2 else []
        level = [fl(x + y, p, **how) for x, y in pairs] + odd
    return level[0]


def chain(terms, p, **how):
    """Return the sum of terms added one by one to zero."""
    total = Fraction(0)
    for term in terms:
        total = fl(total + term, p, **how)
    return total
