"""The training loop of the quantization experiments: one method, one or more seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..optim import BinaryConnect, nearest, scale_of
from .qat_methods import AbstractMethod, QuantizedOptimizer, Schedule, Setting, Trainer
from .resumable import Part

__all__ = ["METRICS", "RANGE_METRICS", "Task", "epoch_generator", "train"]

Metrics: TypeAlias = dict[str, Tensor]

METRICS = ("loss", "accuracy", "quantized_loss", "quantized_accuracy")
RANGE_METRICS = ("range_loss", "range_accuracy")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: S models of the same shape, independent of each other.

    Args:
        models: S.
        model: all S models.
        weights: the parameters to quantize.
        others: the other ones.
        batches: the batches of an epoch, a function of its number alone, so that a run
            resumes without the state of a generator.
        losses: mean loss of a batch, [S].
        evaluate: ``loss`` and ``accuracy`` of the test set, [S] each.
        probe: anything to keep of the trained model, before and after quantization.
    """

    models: int = 1
    model: nn.Module
    weights: list[nn.Parameter]
    others: list[nn.Parameter]
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]]
    losses: Callable[[nn.Module, Tensor, Tensor], Tensor]
    evaluate: Callable[[nn.Module], Metrics]
    probe: Callable[[nn.Module], Metrics] = field(default=lambda _: {})


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the source of an epoch's randomness, a function of both numbers.

    Args:
        seed: of the run.
        epoch: from 0, below a million.

    Returns:
        Generator on the CPU.
    """
    # It is seeded by the low 32 bits alone: the epoch must not push the seed out.
    return torch.Generator().manual_seed(1_000_003 * seed + epoch)


def train(
    make_task: Callable[[], Task],
    method: AbstractMethod,
    setting: Setting,
    part: Part,
    *,
    range_scale: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train, evaluate now and then, and continue where a killed run was.

    Contract:
        A resumed run gives the bits of an uninterrupted one. A model whose loss is no
        longer finite stops there: its metrics are NaN from then on, and ``diverged``
        says at which step; the other models of the task go on.

    Args:
        make_task: makes the task with its initial weights.
        method: how the weights are trained.
        setting: levels, scale, base optimizer and schedule.
        part: where the state after every epoch, and the result, are kept.
        range_scale: whether to quantize with the scale ``"range"`` too, for metrics
            ``range_loss`` and ``range_accuracy``.
        advance: called after every epoch.

    Returns:
        ``epochs``: those evaluated, E; ``curves``: metrics by name, [E, S];
        ``diverged``: step by model, -1 for those that did not; ``distance``: largest
        and mean distance of the weights to the levels at the end; ``probe``: by
        ``"unquantized"`` and ``"quantized"``.

    Raises:
        RuntimeError: for gradients that are not finite though the loss is.
    """
    schedule = setting.schedule
    if part.done:
        for _ in range(schedule.epochs):
            advance()
        return dict(part.result())
    task = make_task()
    trainer = method.build(task.weights, task.others, setting)
    start, curves, diverged = 0, [], torch.full((task.models,), -1)
    state = part.state()
    if state is not None:
        start, curves, diverged = state["epoch"], state["curves"], state["diverged"]
        _restore(task.model, trainer, state)
        for _ in range(start):
            advance()
    for epoch in range(start, schedule.epochs):
        mean, diverged = _epoch(epoch, task, trainer, method.lr, schedule, diverged)
        lost = diverged >= 0
        if not bool(lost.all()):
            trainer.optimizer.update_scales_(schedule.stretch * (epoch + 1))
        if epoch + 1 in schedule.evaluations:
            metrics = _evaluated(task, trainer, lost, range_scale)
            metrics["training_loss"] = mean
            curves.append(
                {k: v.cpu().masked_fill(lost, torch.nan) for k, v in metrics.items()}
            )
        part.save(
            {
                "epoch": epoch + 1,
                "curves": curves,
                "diverged": diverged,
                "model": task.model.state_dict(),
                "optimizer": trainer.optimizer.state_dict(),
            }
        )
        advance()
    result = {
        "epochs": schedule.evaluations,
        "curves": {k: torch.stack([row[k] for row in curves]) for k in curves[0]},
        "diverged": diverged,
        "distance": list(trainer.optimizer.distance()),
        "probe": _in_both(task.probe, task.model, trainer.optimizer),
    }
    part.finish(result)
    return result


def _restore(model: nn.Module, trainer: Trainer, state: dict[str, Any]) -> None:
    model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.annealing is not None:
        trainer.annealing.set_epoch(state["epoch"])


def _epoch(
    epoch: int,
    task: Task,
    trainer: Trainer,
    lr: float,
    schedule: Schedule,
    diverged: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run one epoch; return the mean loss of each model, and where they diverged."""
    optimizer, annealing = trainer
    total, count = torch.zeros(task.models), 0
    for step, (x, y) in enumerate(
        task.batches(epoch), epoch * schedule.steps_per_epoch
    ):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule.factor(step / schedule.steps_per_epoch)
        losses = task.losses(task.model, x, y)
        new = ~losses.detach().isfinite().cpu() & (diverged < 0)
        diverged = torch.where(new, step, diverged)
        lost = diverged >= 0
        if bool(lost.all()):
            break
        optimizer.zero_grad()
        losses[~lost].sum().backward()
        if bool(lost.any()):
            _forget(task, lost)
        optimizer.step()
        if annealing is not None:
            annealing.step()
        total, count = total + losses.detach().cpu(), count + 1
    return total / max(count, 1), diverged


def _forget(task: Task, lost: Tensor) -> None:
    """Remove what is not finite of models that diverged, for the optimizer's sake."""
    for p in (*task.weights, *task.others):
        if p.grad is not None:
            p.grad[lost] = 0.0


def _latent(optimizer: QuantizedOptimizer) -> AbstractContextManager[None]:
    """Evaluate with the weights that the quantization starts from."""
    if isinstance(optimizer, BinaryConnect):
        return optimizer.latent()
    return nullcontext()


@torch.no_grad()
def _in_both(
    function: Callable[[nn.Module], Metrics],
    model: nn.Module,
    optimizer: QuantizedOptimizer,
) -> dict[str, Metrics]:
    with _latent(optimizer):
        before = function(model)
    with optimizer.quantized():
        return {"unquantized": before, "quantized": function(model)}


@torch.no_grad()
def _evaluated(
    task: Task, trainer: Trainer, lost: Tensor, range_scale: bool
) -> Metrics:
    if bool(lost.all()):  # weights that are not finite have no scale
        names = [*METRICS, *(RANGE_METRICS if range_scale else ())]
        return {name: torch.full(lost.shape, torch.nan) for name in names}
    both = _in_both(task.evaluate, task.model, trainer.optimizer)
    metrics = dict(both["unquantized"])
    metrics |= {f"quantized_{k}": v for k, v in both["quantized"].items()}
    if range_scale:
        metrics |= {f"range_{k}": v for k, v in _in_range(task, trainer).items()}
    return metrics


def _in_range(task: Task, trainer: Trainer) -> Metrics:
    """Evaluate weights that are quantized with the scale ``"range"``."""
    levels = trainer.optimizer.param_groups[0]["levels"]
    with _latent(trainer.optimizer):
        kept = [p.detach().clone() for p in task.weights]
        for p in task.weights:
            scale = scale_of(p, levels, "range")
            p.copy_(nearest(p / scale, levels) * scale)
        metrics = task.evaluate(task.model)
        for p, w in zip(task.weights, kept, strict=True):
            p.copy_(w)
    return metrics
