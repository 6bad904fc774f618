"""Train one model in four arithmetics: what `gpt_text.py` and `resnet_cifar.py` share.

Everything but the arithmetic is the same in the four runs: initial weights, batches,
step sizes, dropout. `RoundoffMonitor` measures r_k and s_k in some of the steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowprec

LAST = 20  # the final training loss is the mean over so many steps


@dataclass(frozen=True)
class Arithmetic:
    """How a model is trained; None stands for float32.

    Args:
        precision: of all modules.
        stored: rounding of the parameters between steps.
        loss_scale: first scale of the loss.
        growth_interval: of the scale; None keeps it.
    """

    precision: lowprec.Precision | None = None
    stored: lowprec.Rounding | None = None
    loss_scale: float = 1.0
    growth_interval: int | None = None


_STORED = lowprec.Rounding("bfloat16", "stochastic")
_BF16 = dict.fromkeys(
    ("input", "weight", "output", "grad_output", "grad_input", "grad_weight"),
    "bfloat16",
)
# Activations and weights saturate; gradients overflow to infinity, which the loss
# scaler sees.
_FP8 = _BF16 | {
    "input": lowprec.Rounding("e4m3fn", saturation="finite"),
    "weight": lowprec.Rounding("e4m3fn", saturation="finite"),
    "grad_output": lowprec.Rounding("e5m2"),
}


def _fp8(accumulator: str) -> Arithmetic:
    precision = lowprec.Precision(
        **_FP8, accumulator=accumulator, elementwise="bfloat16"
    )
    return Arithmetic(precision, _STORED, 2.0**10, 100)


ARITHMETICS = {
    "fp32": Arithmetic(),
    "bf16+SR": Arithmetic(lowprec.Precision(**_BF16, elementwise="bfloat16"), _STORED),
    "fp8, 15-bit accumulator": _fp8("e8m15"),
    "fp8, 10-bit accumulator": _fp8("e8m10"),
}


@dataclass(frozen=True)
class Problem:
    """What is trained, and how.

    Args:
        name: first part of the names of result files.
        build: makes the model, from torch's random state.
        batches: yields inputs and targets for ever, the same for every arithmetic.
        loss: of outputs and targets.
        optimizer: makes the optimizer from a model and the rounding of its parameters.
        evaluate: returns numbers by name for a trained model.
    """

    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[nn.Module, lowprec.Rounding | None], torch.optim.Optimizer]
    evaluate: Callable[[nn.Module], dict[str, float]]


def train(
    problem: Problem,
    name: str,
    *,
    steps: int,
    every: int,
    layers: bool,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Train in one arithmetic; write and return the results."""
    arithmetic = ARITHMETICS[name]
    torch.manual_seed(seed)
    model = problem.build()
    if arithmetic.precision is not None:
        lowprec.nn.convert_(model, arithmetic.precision)
    optimizer = problem.optimizer(model, arithmetic.stored)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, optimizer.param_groups[0]["lr"], total_steps=steps + 1
    )
    scaler = lowprec.optim.LossScaler(
        arithmetic.loss_scale, growth_interval=arithmetic.growth_interval
    )
    monitor = lowprec.measure.RoundoffMonitor(
        model, optimizer, every=every, layers=layers
    )
    losses, skipped = [], 0
    start = time.perf_counter()
    for step, batch in zip(range(steps), problem.batches(), strict=False):
        optimizer.zero_grad()
        closure = partial(_loss, problem.loss, batch)
        losses.append(monitor.backward(closure, scale=scaler.get_scale()).item())
        skipped += not scaler.step(optimizer)
        scaler.update()
        schedule.step()
        if step % 10 == 0 or step == steps - 1:
            rate = (time.perf_counter() - start) / (step + 1)
            print(
                f"{problem.name} | {name} | step {step + 1}/{steps} | loss "
                f"{losses[-1]:.4f} | {rate:.2f} s a step",
                flush=True,
            )
    seconds = time.perf_counter() - start
    monitor.close()
    result = {
        "problem": problem.name,
        "arithmetic": name,
        "precision": repr(arithmetic.precision),
        "stored": repr(arithmetic.stored),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seed": seed,
        "seconds": round(seconds, 1),
        "final_training_loss": sum(losses[-LAST:]) / len(losses[-LAST:]),
        **problem.evaluate(model),
        "skipped_steps": skipped,
        "last_loss_scale": scaler.get_scale(),
        "relative_gradient_error": _median(monitor, "relative_gradient_error"),
        "relative_update_error": _median(monitor, "relative_update_error"),
        "stagnation": _median(monitor, "stagnation"),
        "losses": losses,
        "torch": torch.__version__,
        "lowprec": lowprec.__version__,
        "machine": platform.machine(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{problem.name}-{list(ARITHMETICS).index(name)}"
    monitor.report(folder / f"{stem}.html", title=f"{problem.name}: {name}")
    (folder / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    model: nn.Module,
    cast: Callable[[Any], Any],
) -> Tensor:
    inputs, targets = batch
    return loss(model(cast(inputs)), targets)


def _median(monitor: lowprec.measure.RoundoffMonitor, column: str) -> float:
    return float(torch.tensor(monitor.ledger[column]).median())


def table(problem: str, folder: Path) -> str:
    """Return a Markdown table of the results in a folder."""
    paths = sorted(folder.glob(f"{problem}-*.json"))
    results = [json.loads(path.read_text()) for path in paths]
    shown = {
        "final_training_loss": "training loss",
        "validation_loss": "validation loss",
        "accuracy": "accuracy",
        "relative_gradient_error": "r/g, median",
        "relative_update_error": "s/step, median",
        "skipped_steps": "skipped steps",
        "seconds": "seconds",
    }
    columns = [key for key in shown if all(key in result for result in results)]
    lines = [
        "| arithmetic | " + " | ".join(shown[key] for key in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for result in results:
        cells = [f"{result[key]:.4g}" for key in columns]
        lines.append(f"| {result['arithmetic']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments(description: str, steps: int) -> argparse.ArgumentParser:
    """Return the options that both scripts have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--every", type=int, default=20, help="measure so often")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights")
    parser.add_argument("--layers", action="store_true", help="measure each layer")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=list(ARITHMETICS), action="append")
    return parser


def main(problem: Problem, options: argparse.Namespace) -> None:
    """Train in all arithmetics that were asked for and print the table."""
    torch.set_num_threads(options.threads)
    for name in options.only or ARITHMETICS:
        train(
            problem,
            name,
            steps=options.steps,
            every=options.every,
            layers=options.layers,
            seed=options.seed,
            folder=options.out,
        )
    print(table(problem.name, options.out))
