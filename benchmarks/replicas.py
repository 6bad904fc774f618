"""What does a step of `lowprec.measure.ReplicaRunner` cost, and how does it grow?

SGD on the logistic problem of the central limit theorems (d = 10), one thread, CPU time
of the thread. The target: 1000 replicas make 2 10^5 steps in a minute, 300 us a step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import harness
import torch
from torch.func import grad, vmap

import lowprec as lp
from lowprec.experiments.clt_problem import logistic
from lowprec.measure import ReplicaRunner
from lowprec.schedules import Iteration, PowerSchedule

REPLICAS = (125, 250, 500, 1000, 2000, 4000)
STEPS = PowerSchedule(1.0, 0.5)
AT_ONCE = 64
PROBLEM = logistic()
STOCHASTIC = lp.Rounding("bfloat16", "stochastic")


def runner(replicas: int, method: str = "sgd", **options: Any) -> ReplicaRunner:
    """Return replicas that start at 0."""
    damping = None if method == "sgd" else 0.2
    return ReplicaRunner(
        PROBLEM.loss,
        PROBLEM.data,
        PROBLEM.start,
        Iteration(method, STEPS, damping=damping),  # type: ignore[arg-type]
        replicas=replicas,
        seed=0,
        **options,
    )


def check() -> None:
    """Stop unless the gradients are those of ``torch.func``, bit for bit."""
    fast, plain = (
        runner(50, gradient=gradient) for gradient in (None, vmap(grad(PROBLEM.loss)))
    )
    for one in (fast, plain):
        one.run(20)
    harness.require_equal("traced gradient", fast.x, plain.x)


def some_steps(one: ReplicaRunner) -> Callable[[], None]:
    """Return a call that makes `AT_ONCE` more steps."""
    return lambda: one.run(one.step + AT_ONCE)


def main(quick: bool) -> None:
    """Measure with one thread."""
    torch.set_num_threads(1)
    check()
    rows = []
    for replicas in REPLICAS:
        calls = {
            "torch.func": some_steps(runner(replicas)),
            "gradient=": some_steps(runner(replicas, gradient=PROBLEM.gradient)),
            "momentum": some_steps(runner(replicas, "momentum")),
            "bfloat16 stochastic parameters": some_steps(
                runner(replicas, param_format=STOCHASTIC)
            ),
        }
        timings = harness.compare(
            calls,
            rounds=5 if quick else 25,
            seconds=2 if quick else 10,
            clock=time.thread_time,
        )
        new = harness.row(timings, "torch.func", replicas=replicas, steps=AT_ONCE)
        for one in new:
            one["us_per_step"] = one["median"] / AT_ONCE * 1e6
        harness.show(new, "replicas", "us_per_step")
        rows += new
    print(harness.save("replicas", rows))


if __name__ == "__main__":
    main("--quick" in sys.argv)
