"""How much longer does a layer take in emulated arithmetic, forward and backward?

Layers of a small transformer and of a small ResNet against torch's own in float32. The
accumulators are a deterministic one on fp8 operands, one on bfloat16 operands, rounded
products, and a stochastic one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import torch
from torch import Tensor

import lowprec as lp
from lowprec import functional

_FP8 = {"input": "e4m3fn", "weight": "e4m3fn", "grad_output": "e5m2"}
_BFLOAT16 = dict.fromkeys(
    ("input", "weight", "output", "grad_output", "grad_input", "grad_weight"),
    "bfloat16",
)
PRECISIONS = {
    "nothing rounded": lp.Precision(),
    "operands fp8, sums float32": lp.Precision(**_FP8),
    "fp8, sums e8m10": lp.Precision(**_FP8, accumulator="e8m10"),
    "bfloat16, sums e8m15": lp.Precision(**_BFLOAT16, accumulator="e8m15"),
    "fp8, products e6m9, sums e6m9": lp.Precision(
        **_FP8, accumulator=lp.Accumulator("e6m9", product="e6m9")
    ),
    "fp8, sums e8m10 stochastic": lp.Precision(
        **_FP8, accumulator=lp.Rounding("e8m10", "stochastic")
    ),
}
# input, weight, arguments of the convolution
LINEAR = {
    "attention projection": ((512, 256), (256, 256)),
    "feed-forward": ((512, 256), (1024, 256)),
}
CONVOLUTIONS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "3x3, 64 channels, 16x16": ((8, 64, 16, 16), (64, 64, 3, 3), {"padding": 1}),
    "3x3, stride 2": ((8, 64, 16, 16), (128, 64, 3, 3), {"padding": 1, "stride": 2}),
    "1x1": ((8, 64, 16, 16), (128, 64, 1, 1), {}),
    "depthwise 3x3": ((8, 64, 16, 16), (64, 1, 3, 3), {"padding": 1, "groups": 64}),
    "7x7, stride 2, 64x64": (
        (2, 3, 64, 64),
        (64, 3, 7, 7),
        {"padding": 3, "stride": 2},
    ),
}


def step(function: Callable[..., Tensor], x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward, as in training."""
    y = function(x, w)
    return y, *torch.autograd.grad(y, (x, w), torch.ones_like(y))


def contenders(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], x: Tensor, w: Tensor
) -> dict[str, Callable[[], object]]:
    """Return the calls to compare, torch first."""
    calls: dict[str, Callable[[], object]] = {
        "torch float32": partial(step, theirs, x, w)
    }
    for name, precision in PRECISIONS.items():
        emulated = partial(ours, precision=precision, seed=1)
        if precision != lp.Precision():
            check(name, emulated, x, w)
        calls[name] = partial(step, emulated, x, w)
    return calls


def check(name: str, function: Callable[..., Tensor], x: Tensor, w: Tensor) -> None:
    """Stop unless the portable kernels agree; a small batch, because they are slow."""
    few = x[:1].detach().requires_grad_()
    with lp.kernels.using("portable"):
        expected = step(function, few, w)
    for ours, theirs in zip(step(function, few, w), expected, strict=True):
        harness.require_equal(name, ours.detach(), theirs.detach())


def main(quick: bool) -> None:
    """Measure all layers with one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    cases: list[tuple[str, Any, Any, Any, Any]] = [
        (f"linear: {name}", functional.linear, torch.nn.functional.linear, *shapes)
        for name, shapes in LINEAR.items()
    ]
    cases += [
        (
            f"conv: {name}",
            partial(functional.conv2d, **arguments),
            partial(torch.nn.functional.conv2d, **arguments),
            x,
            w,
        )
        for name, (x, w, arguments) in CONVOLUTIONS.items()
    ]
    for name, ours, theirs, shape_x, shape_w in cases:
        x = torch.randn(shape_x).requires_grad_()
        w = (torch.randn(shape_w) / shape_w[1] ** 0.5).requires_grad_()
        timings = harness.compare(
            contenders(ours, theirs, x, w),
            rounds=5 if quick else 25,
            seconds=2 if quick else 30,
        )
        new = harness.row(timings, "torch float32", layer=name, threads=1)
        harness.show(new, "layer")
        rows += new
    print(harness.save("layer", rows))


if __name__ == "__main__":
    main("--quick" in sys.argv)
