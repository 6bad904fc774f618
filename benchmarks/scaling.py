"""Does time grow linearly in elements and in M N K, and do two threads help?

Rounding from 10^4 to 10^8 elements and products from 64^3 to 1024^3, with one thread
and with two; beside each time that of torch's ``copy_`` or ``matmul`` of the same size
and threads.
Two-thread times mean something on a quiet machine only: see ``load`` in the results.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import harness
import torch

import lowprec as lp

_STOCHASTIC = lp.Rounding("bfloat16", "stochastic")
ROUNDINGS: dict[str, Any] = {"nearest even": "bfloat16", "stochastic": _STOCHASTIC}
ACCUMULATORS: dict[str, Any] = {
    "sums e8m10": "e8m10",
    "products e6m9, sums e6m9": lp.Accumulator("e6m9", product="e6m9"),
    "sums e8m10 stochastic": lp.Rounding("e8m10", "stochastic"),
}


def elements(size: int) -> tuple[str, dict[str, Any]]:
    """Return the reference and all calls on ``size`` elements."""
    x = torch.randn(size)
    out = torch.empty_like(x)
    calls: dict[str, Any] = {"copy_": partial(out.copy_, x)}
    for name, rounding in ROUNDINGS.items():
        seed = 1 if rounding is _STOCHASTIC else None
        calls[name] = partial(lp.round, x, rounding, seed=seed, out=out)
    return "copy_", calls


def products(size: int) -> tuple[str, dict[str, Any]]:
    """Return the reference and all calls on square matrices."""
    a = lp.round(torch.randn(size, size), "e4m3fn")
    b = lp.round(torch.randn(size, size), "e4m3fn")
    calls: dict[str, Any] = {"torch.matmul": partial(torch.matmul, a, b)}
    for name, accumulator in ACCUMULATORS.items():
        calls[name] = partial(lp.matmul, a, b, accumulator=accumulator)
    return "torch.matmul", calls


def with_growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say how the time per work compares with the next smaller size and one thread.

    ``growth`` is 1 where time is linear in the work; ``speedup`` is that over one
    thread.
    """
    power = {"elements": 1, "M=N=K": 3}
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    result = [dict(row) for row in rows]
    for row in result:
        what, threads, name = row["what"], row["threads"], row["contender"]
        smaller = known.get((what, threads, name))
        if smaller is not None:
            work = (row["size"] / smaller["size"]) ** power[what]
            row["growth"] = round(row["median"] / smaller["median"] / work, 3)
        alone = known.get((what, row["size"], 1, name))
        if alone is not None:
            row["speedup"] = round(alone["median"] / row["median"], 3)
        known[what, threads, name] = known[what, row["size"], threads, name] = row
    return result


def main(quick: bool) -> None:
    """Measure all sizes with one thread and with two."""
    rounds, seconds = (5, 1.0) if quick else (25, 10.0)
    rows = []
    cases: list[tuple[str, Any, list[int]]] = [
        ("elements", elements, [10**4, 10**5, 10**6, 10**7, 10**8]),
        ("M=N=K", products, [64, 128, 256, 512, 1024]),
    ]
    for what, make, sizes in cases:
        for size in sizes[:-1] if quick else sizes:
            reference, calls = make(size)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                timings = harness.compare(calls, rounds=rounds, seconds=seconds)
                rows += harness.row(
                    timings, reference, what=what, size=size, threads=threads
                )
    print(harness.save("scaling", rows))
    harness.show(with_growth(rows), "what", "size", "threads", "growth", "speedup")


if __name__ == "__main__":
    main("--quick" in sys.argv)
