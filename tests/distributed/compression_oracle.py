"""Compressors by the definitions, one entry at a time in rational arithmetic."""

from fractions import Fraction

import torch

import lowprec as lp
from lowprec.distributed import Cast, RandomK, Sign, Threshold, TopK
from lowprec.testing import exact_round, random_word

WORKER_PURPOSE = 2**32 - 2


def fractions(row):
    return [Fraction(value) for value in row.tolist()]


def worker_seed(seed, step, worker, offset=0):
    """Key of a worker, by the scalar Philox."""

    def pair(key, place, counter_step):
        words = [
            random_word(key, 2 * place + half, counter_step, WORKER_PURPOSE)
            for half in (0, 1)
        ]
        return words[0] << 32 | words[1]

    key = pair(seed, worker, step)
    return pair(key, offset, 0) if offset else key


def top(row, k):
    order = sorted(range(len(row)), key=lambda j: (-abs(row[j]), j))
    return set(order[:k])


def random_subset(size, count, key):
    """The first distinct draws; or all but those, for more than half."""
    if count > size // 2:
        return set(range(size)) - random_subset(size, size - count, key)
    chosen, j = set(), 0
    while len(chosen) < count:
        high, low = (random_word(key, 2 * j + half) >> 1 for half in (0, 1))
        chosen.add(((high << 31 | low) * size) >> 62)
        j += 1
    return chosen


def rounded(values, cast, key):
    """s fl(v / s), and s."""
    scale = Fraction(1)
    largest = max(abs(value) for value in values)
    if cast.scaled and largest:
        bound = Fraction(cast.rounding.format.max)
        while largest > bound * scale:
            scale *= 2
        while largest <= bound * scale / 2:
            scale /= 2
    words = [random_word(key, j) if cast.stochastic else 0 for j in range(len(values))]
    return [
        scale * Fraction(exact_round(value / scale, cast.rounding, word))
        for value, word in zip(values, words, strict=True)
    ]


def compressed(compressor, row, key=0):
    """Return Q(p) as fractions; for factors that the carrier holds exactly."""
    p, d = fractions(row), row.numel()
    match compressor:
        case TopK():
            kept = sorted(top(p, compressor.count(d)))
            values = [p[j] for j in kept]
            if compressor.values is not None:
                values = rounded(values, compressor.values, key)
            sent = dict(zip(kept, values, strict=True))
            return [sent.get(j, Fraction(0)) for j in range(d)]
        case RandomK():
            kept = random_subset(d, compressor.count(d), key)
            factor = Fraction(d, compressor.count(d)) if compressor.unbiased else 1
            return [factor * value if j in kept else 0 for j, value in enumerate(p)]
        case Threshold():
            bound = compressor.absolute
            if bound is None:
                bound = Fraction(compressor.relative) * max(map(abs, p))
            return [value if abs(value) >= Fraction(bound) else 0 for value in p]
        case Sign():
            mean = sum(map(abs, p)) / d
            return [-mean if value < 0 else mean for value in p]
        case Cast():
            return rounded(p, compressor, key)


EXACT = [
    TopK(k=1),
    TopK(k=5),
    TopK(density=0.25),
    TopK(density=1.0),
    TopK(k=5, values="bfloat16"),
    TopK(k=7, values=Cast("e4m3fn", scaled=True)),
    TopK(density=0.5, values=lp.Rounding("e5m2", "stochastic")),
    TopK(density=0.5, values=Cast(lp.Rounding("e4m3fn", "stochastic"), scaled=True)),
    RandomK(k=1),
    RandomK(density=0.25),
    RandomK(k=11),
    RandomK(k=8, unbiased=True),
    RandomK(k=16, unbiased=True),
    Threshold(relative=0.5),
    Threshold(relative=1.0),
    Threshold(absolute=0.75),
    Threshold(absolute=1e30),
    Sign(),
    Cast("bfloat16"),
    Cast("e5m2"),
    Cast("e4m3fn", scaled=True),
    Cast(lp.Rounding("bfloat16", "stochastic")),
    Cast(lp.Rounding("e2m1fn", "toward_zero"), scaled=True),
    Cast(lp.Rounding("e4m3fn", "stochastic", random_bits=7, variant="C"), scaled=True),
]


def exactly(values, dtype):
    """Fractions that the carrier holds, as a tensor."""
    result = torch.tensor([float(value) for value in values], dtype=dtype)
    assert fractions(result) == [Fraction(value) for value in values]
    return result
