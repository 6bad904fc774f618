"""What does a step of quantization-aware training cost, and how much memory?

10^7 parameters in one tensor: `ASkewSGD` against ``torch.optim.SGD``, `BinaryConnect`
and `ProxQuant` against the optimizer that they wrap. Memory is what a step allocates
beyond what is there before it, in units of the parameter's.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import harness
import torch

import lowprec as lp
from lowprec.optim import ASkewSGD, BinaryConnect, ProxQuant

COUNT = 10_000_000
# The thread's own time is that of an idle machine even on a busy one.
CLOCKS = {1: time.thread_time, 2: time.perf_counter}
BINARY, TERNARY = lp.Levels.binary(), lp.Levels.ternary()
INT2, INT4 = lp.Levels.int_bits(2), lp.Levels.int_bits(4)
POWERS = lp.Levels(sorted(s * 2.0**-k for s in (-1, 1) for k in range(8)))

Params = list[torch.nn.Parameter]
Make = Callable[[Params], torch.optim.Optimizer]


def askew(levels: lp.Levels, **options: Any) -> Make:
    """Return a constructor of `ASkewSGD`."""
    return lambda params: ASkewSGD(params, 0.01, levels, epsilon=1e-5, **options)


def sgd(params: Params, **options: Any) -> torch.optim.SGD:
    """Return the optimizer to compare with and to wrap."""
    return torch.optim.SGD(params, 0.01, **options)


def momentum(params: Params) -> torch.optim.SGD:
    """Return the same with momentum."""
    return sgd(params, momentum=0.9)


CONTENDERS: dict[str, tuple[Make, Make]] = {
    "ASkewSGD, binary": (askew(BINARY), sgd),
    "ASkewSGD, binary, quartic": (askew(BINARY, remoteness="quartic"), sgd),
    "ASkewSGD, ternary": (askew(TERNARY), sgd),
    "ASkewSGD, 2 bits": (askew(INT2), sgd),
    "ASkewSGD, 2 bits, absmax": (askew(INT2, scale="absmax"), sgd),
    "ASkewSGD, 2 bits, hull": (askew(INT2, hull="levels"), sgd),
    "ASkewSGD, 4 bits": (askew(INT4), sgd),
    "ASkewSGD, 16 powers of two": (askew(POWERS), sgd),
    "ASkewSGD, 2 bits, momentum": (askew(INT2, momentum=0.9), momentum),
    "BinaryConnect, binary": (lambda p: BinaryConnect(sgd(p), BINARY), sgd),
    "BinaryConnect, 2 bits, absmax": (
        lambda p: BinaryConnect(sgd(p), INT2, scale="absmax"),
        sgd,
    ),
    "BinaryConnect, stochastic": (
        lambda p: BinaryConnect(sgd(p), BINARY, "stochastic"),
        sgd,
    ),
    "ProxQuant, l1": (lambda p: ProxQuant(sgd(p), BINARY, "l1", 1e-4), sgd),
    "ProxQuant, sq, 2 bits": (lambda p: ProxQuant(sgd(p), INT2, "sq", 1e-4), sgd),
    "ProxQuant, l2": (lambda p: ProxQuant(sgd(p), BINARY, "l2", 1e-4), sgd),
}


def parameters(count: int) -> Params:
    """Return one parameter with a gradient."""
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(count, generator=generator))
    p.grad = 0.1 * torch.randn(count, generator=generator)
    return [p]


def check(name: str, make: Make) -> None:
    """Stop unless the portable kernels agree."""
    weights = []
    for backend in ("native", "portable"):
        with lp.kernels.using(backend):
            params = parameters(100_003)
            torch.manual_seed(0)
            optimizer = make(params)
            for _ in range(3):
                optimizer.step()
        weights.append(params[0].detach())
    harness.require_equal(name, *weights)


def buffers(optimizer: torch.optim.Optimizer, count: int) -> float:
    """Return the peak memory that a step allocates, in float32 parameters.

    Tensors only, as torch's profiler sees them: the kernels allocate none.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        optimizer.step()
    total = peak = 0
    events = run.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return round(peak / (4 * count), 2)


def main(quick: bool) -> None:
    """Measure with two threads, and with one by the time that it computes."""
    warnings.simplefilter("ignore", lp.NumericalWarning)
    rows = []
    for name, (make, base) in CONTENDERS.items():
        check(name, make)
        optimizer, reference = make(parameters(COUNT)), base(parameters(COUNT))
        optimizer.step()
        used = buffers(optimizer, COUNT)
        calls = {"base": reference.step, "lowprec": optimizer.step}
        for threads, clock in CLOCKS.items():
            torch.set_num_threads(threads)
            timings = harness.compare(
                calls,
                rounds=15 if quick else 31,
                seconds=4 if quick else 15,
                clock=clock,
            )
            new = harness.row(
                timings, "base", optimizer=name, threads=threads, buffers=used
            )
            harness.show(new[1:], "optimizer", "threads", "buffers")
            rows += new
    print(harness.save("qat_step", rows))


if __name__ == "__main__":
    main("--quick" in sys.argv)
