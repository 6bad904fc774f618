"""How much longer does a model take inside `emulate`, or converted?

A small transformer encoder and a small convolutional network, forward and backward,
with one thread. Where nothing is rounded all is torch's own, and what is measured is
how calls are intercepted; the goal is 1.5 times torch on the encoder.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import harness
import torch
from torch import Tensor, nn

import lowprec as lp
import lowprec.nn

GOAL = 1.5
PRESETS = ("tf32", "bf16", "fp8-acc15")


def encoder() -> tuple[nn.Module, Tensor]:
    """Two layers of width 32 on 4 sequences of 8."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return model, torch.randn(4, 8, 32)


def network() -> tuple[nn.Module, Tensor]:
    """Two convolutions with batch norm, pooling and a linear head."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return model, torch.randn(8, 3, 16, 16)


MODELS = {"transformer encoder": encoder, "convolutional network": network}


def step(
    model: nn.Module, x: Tensor, context: AbstractContextManager[object]
) -> list[Tensor]:
    """Forward and backward, as in training."""
    model.zero_grad()
    with context:
        y = model(x)
    y.sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def contenders(model: nn.Module, x: Tensor) -> dict[str, Callable[[], list[Tensor]]]:
    """Return the calls to compare, torch first."""

    def converted(policy: lp.Policy) -> nn.Module:
        return lp.nn.convert_(copy.deepcopy(model), policy)

    nothing = lp.Policy({"*": lp.Precision()})
    calls = {
        "torch float32": partial(step, model, x, nullcontext()),
        "emulate, nothing rounded": partial(
            step, copy.deepcopy(model), x, lp.emulate(nothing)
        ),
        "converted, nothing rounded": partial(
            step, converted(nothing), x, nullcontext()
        ),
    }
    twin = copy.deepcopy(model)
    context = lp.emulate(nothing, twin)
    calls["emulate with model, nothing rounded"] = partial(step, twin, x, context)
    for name in PRESETS:
        policy = lp.preset(name)
        calls[name] = partial(step, converted(policy), x, nullcontext())
        check(name, calls[name](), step(copy.deepcopy(model), x, lp.emulate(policy)))
    for name, call in calls.items():
        if "nothing" in name:
            check(name, call(), calls["torch float32"]())
    return calls


def check(name: str, ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Stop unless the bits agree."""
    for left, right in zip(ours, theirs, strict=True):
        harness.require_equal(name, left, right)


def main(quick: bool) -> None:
    """Measure all models with one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name, make in MODELS.items():
        timings = harness.compare(
            contenders(*make()),
            rounds=5 if quick else 40,
            seconds=2 if quick else 40,
            # The calling thread's time, which other processes do not lengthen.
            clock=time.thread_time,
        )
        new = harness.row(timings, "torch float32", model=name, threads=1, goal=GOAL)
        harness.show(new, "model")
        rows += new
    print(harness.save("models", rows))


if __name__ == "__main__":
    main("--quick" in sys.argv)
