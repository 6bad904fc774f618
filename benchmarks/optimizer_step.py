"""What does a step of `lowprec.optim.SGD` cost, with and without formats?

10^6 parameters, in one tensor and in 50, against ``torch.optim.SGD``.
"""

from __future__ import annotations

import sys
from typing import Any

import harness
import torch

import lowprec as lp

SIZES = {"one tensor": [1_000_000], "50 tensors": [20_000] * 50}
FORMATS: dict[str, dict[str, Any]] = {
    "no formats": {},
    "bfloat16": {"param_format": "bfloat16"},
    "bfloat16, two_step": {"param_format": "bfloat16", "update": "two_step"},
    "bfloat16 stochastic": {"param_format": lp.Rounding("bfloat16", "stochastic")},
    "bfloat16, momentum e8m10": {
        "param_format": "bfloat16",
        "momentum_format": "e8m10",
        "momentum": 0.9,
    },
}


def parameters(sizes: list[int]) -> list[torch.nn.Parameter]:
    """Return parameters with gradients."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for size in sizes:
        p = torch.nn.Parameter(torch.randn(size, generator=generator))
        p.grad = 1e-3 * torch.randn(size, generator=generator)
        result.append(p)
    return result


def check(options: dict[str, Any]) -> None:
    """Stop unless the portable kernels agree."""
    weights = []
    for backend in ("native", "portable"):
        small = parameters([1000, 37])
        with lp.kernels.using(backend):
            optimizer = lp.optim.SGD(
                small, lr=0.1, generator=torch.Generator().manual_seed(1), **options
            )
            for _ in range(3):
                optimizer.step()
        weights.append(torch.cat([p.detach() for p in small]))
    harness.require_equal(str(options), *weights)


def main(quick: bool) -> None:
    """Measure with one thread."""
    torch.set_num_threads(1)
    rows = []
    for name, sizes in SIZES.items():
        for kind, options in FORMATS.items():
            check(options)
            momentum = options.get("momentum", 0)
            ours = lp.optim.SGD(parameters(sizes), lr=0.1, **options)
            calls: dict[str, Any] = {
                "torch.optim.SGD": torch.optim.SGD(
                    parameters(sizes), lr=0.1, momentum=momentum
                ).step,
                "torch.optim.SGD(foreach=False)": torch.optim.SGD(
                    parameters(sizes), lr=0.1, momentum=momentum, foreach=False
                ).step,
                "lowprec.optim.SGD": ours.step,
            }
            timings = harness.compare(
                calls, rounds=10 if quick else 50, seconds=2 if quick else 20
            )
            new = harness.row(
                timings, "torch.optim.SGD", parameters=name, format=kind, threads=1
            )
            harness.show(new, "parameters", "format")
            rows += new
    print(harness.save("optimizer_step", rows))


if __name__ == "__main__":
    main("--quick" in sys.argv)
