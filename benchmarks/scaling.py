"""Does time grow linearly in elements and in M N K, and do two threads help?

Rounding from 10^4 to 10^8 elements and products from 64^3 to 1024^3, with one thread
and with two; beside each time that of torch's ``copy_`` or ``matmul`` of the same size.
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


def elements(size: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time rounding of ``size`` elements."""
    x = torch.randn(size)
    calls: dict[str, Any] = {}
    out = torch.empty_like(x)
    for threads in (1, 2):
        calls[f"copy_, {threads}"] = partial(_with, threads, partial(out.copy_, x))
        for name, rounding in ROUNDINGS.items():
            seed = None if rounding == "bfloat16" else 1
            call = partial(lp.round, x, rounding, seed=seed, out=out)
            calls[f"{name}, {threads}"] = partial(_with, threads, call)
    timings = harness.compare(calls, rounds=rounds, seconds=seconds)
    return harness.row(timings, "copy_, 1", what="elements", size=size)


def products(size: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time products of square matrices."""
    a = lp.round(torch.randn(size, size), "e4m3fn")
    b = lp.round(torch.randn(size, size), "e4m3fn")
    calls: dict[str, Any] = {}
    for threads in (1, 2):
        call = partial(torch.matmul, a, b)
        calls[f"torch.matmul, {threads}"] = partial(_with, threads, call)
        for name, accumulator in ACCUMULATORS.items():
            call = partial(lp.matmul, a, b, accumulator=accumulator)
            calls[f"{name}, {threads}"] = partial(_with, threads, call)
    timings = harness.compare(calls, rounds=rounds, seconds=seconds)
    return harness.row(timings, "torch.matmul, 1", what="M=N=K", size=size)


def _with(threads: int, call: Any) -> None:
    torch.set_num_threads(threads)
    call()


def exponents(rows: list[dict[str, Any]]) -> None:
    """Add to each row the growth exponent since the next smaller size; 1 is linear."""
    power = {"elements": 1, "M=N=K": 3}
    before: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["what"], row["contender"]
        if key in before:
            work = (row["size"] / before[key]["size"]) ** power[row["what"]]
            row["growth per work"] = row["median"] / before[key]["median"] / work
        before[key] = row


def main(quick: bool) -> None:
    """Measure all sizes; the contenders' names end with the number of threads."""
    rounds, seconds = (5, 2.0) if quick else (25, 20.0)
    rows = []
    for size in [10**4, 10**5, 10**6, 10**7] + ([] if quick else [10**8]):
        rows += elements(size, rounds, seconds)
    for size in [64, 128, 256, 512] + ([] if quick else [1024]):
        rows += products(size, rounds, seconds)
    exponents(rows)
    harness.show(rows, "what", "size")
    print(harness.save("scaling", rows))


if __name__ == "__main__":
    main("--quick" in sys.argv)
