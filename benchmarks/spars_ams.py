"""What do compression with error feedback and a step of SPARS-AMS cost?

10^6 and 10^7 float32 elements at a density of 1 %, one thread: against ``torch.topk``
of the magnitudes alone, which breaks ties arbitrarily, and against ``torch.optim.Adam``
with amsgrad. Two passes over the data are an addition and a subtraction.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import harness
import torch

import lowprec as lp
from lowprec.distributed import Cast, ErrorFeedback, RandomK, Sign, Threshold, TopK

DENSITY = 0.01
SIZES = [1_000_000, 10_000_000]


def vectors(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a gradient and an error."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(size, generator=generator),
        torch.randn(size, generator=generator),
    )


def check(size: int) -> None:
    """Stop unless the entries sent are the first of a stable sort."""
    g, error = vectors(size)
    payload, kept = ErrorFeedback(TopK(density=DENSITY)).step(g, error)
    p = g + error
    order = p.abs().sort(descending=True, stable=True).indices
    expected = torch.zeros_like(p)
    chosen = order[: payload.values.numel()]
    expected[chosen] = p[chosen]
    harness.require_equal("payload", payload.dense(), expected)
    harness.require_equal("error", kept, p - expected)


def compression(size: int) -> dict[str, Any]:
    """Return calls that compress one vector."""
    g, error = vectors(size)
    magnitudes, k = g.abs(), int(DENSITY * size)
    topk = TopK(k=k)

    def two_passes() -> None:
        torch.sub(torch.add(g, error), error)

    calls: dict[str, Any] = {
        "torch.topk": lambda: torch.topk(magnitudes, k),
        "two passes": two_passes,
        "TopK": lambda: topk.compress(g),
        "TopK, error feedback": lambda: ErrorFeedback(topk).step(g, error),
        "the same, bfloat16 errors": lambda: ErrorFeedback(topk, "bfloat16").step(
            g, error
        ),
    }
    others = {
        "RandomK": RandomK(k=k),
        "Threshold": Threshold(relative=0.5),
        "Sign": Sign(),
        "Cast to e5m2": Cast("e5m2"),
    }
    for name, compressor in others.items():
        calls[f"{name}, error feedback"] = lambda chosen=compressor: ErrorFeedback(
            chosen
        ).step(g, error, seed=0)
    return calls


def steps(size: int) -> dict[str, Any]:
    """Return calls that take one step each, of parameters of their own."""
    g, start = vectors(size)

    def stepped(optimizer: Any, **options: Any) -> Any:
        p = torch.nn.Parameter(start.clone())
        p.grad = g.clone()
        return optimizer([p], **options).step

    return {
        "torch.optim.Adam(amsgrad=True)": stepped(torch.optim.Adam, amsgrad=True),
        "AMSGrad": stepped(lp.optim.AMSGrad),
        "SparsAMS": stepped(lp.optim.SparsAMS, density=DENSITY),
        "SparsAMS, no error feedback": stepped(
            lp.optim.SparsAMS, density=DENSITY, error_feedback=False
        ),
    }


def main(quick: bool) -> None:
    """Measure with one thread, by the time that the thread itself took."""
    torch.set_num_threads(1)
    rows = []
    for size in SIZES[: 1 if quick else None]:
        check(size)
        for reference, make in (
            ("torch.topk", compression),
            ("torch.optim.Adam(amsgrad=True)", steps),
        ):
            timings = harness.compare(
                make(size),
                rounds=5 if quick else 25,
                seconds=5 if quick else 60,
                clock=time.thread_time,
            )
            new = harness.row(timings, reference, elements=size, threads=1)
            harness.show(new, "elements")
            rows += new
    print(harness.save("spars_ams", rows))


if __name__ == "__main__":
    main("--quick" in sys.argv)
