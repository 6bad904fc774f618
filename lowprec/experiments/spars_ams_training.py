"""One training run of the SPARS-AMS experiment, simulated or on a process group."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from ..distributed import Exchange, Traffic, WorkerSimulation
from ..optim import AMSGrad, SparsAMS
from ..random import draw_seed
from .resumable import Part
from .spars_ams_methods import Method
from .spars_ams_workers import Perceptron, Shards

__all__ = ["Curve", "RunOptions", "train"]

# Between checkpoints of a run, which costs more than many steps.
_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run depends on beside its data and method.

    Args:
        steps: T.
        batch: samples of each worker and step.
        step_size: eta.
        hidden: width of the network.
        seed: of initial weights, batches and random numbers.
        evaluate_every: steps between evaluations.
        compensated: whether eta is multiplied by sqrt(d/k).
        indices: how indices are sent, ``"packed"`` or ``"int32"``.
    """

    steps: int
    batch: int
    step_size: float
    hidden: int
    seed: int
    evaluate_every: int
    compensated: bool
    indices: str


@dataclass
class Curve:
    """What is measured every so often.

    Args:
        step: steps done.
        accuracy: of the test samples.
        loss: mean cross-entropy of all training samples.
        sent: bytes that a worker has sent, on average.
    """

    step: list[int]
    accuracy: list[float]
    loss: list[float]
    sent: list[float]

    def append(self, step: int, accuracy: float, loss: float, sent: float) -> None:
        """Add one point."""
        self.step.append(step)
        self.accuracy.append(accuracy)
        self.loss.append(loss)
        self.sent.append(sent)


class _Simulated:
    """All workers in this process."""

    def __init__(self, w: Tensor, method: Method, workers: int, options: RunOptions):
        self.rows = slice(None)
        self._weights, self._workers = w, workers
        self.optimizer: AMSGrad | SparsAMS = AMSGrad(
            [w], lr=_step_size(w, method, options)
        )
        self.server = WorkerSimulation(
            method.compressor(w.numel()),
            workers,
            error_feedback=method.error_feedback,
            error_format=method.error_format,
            indices=options.indices,
            seed=draw_seed(_generator(options)),  # as SparsAMS
        )

    def step(self, gradients: Tensor) -> None:
        self._weights.grad = self.server.mean(gradients)
        self.optimizer.step()

    @property
    def sent_bytes(self) -> float:
        return self.server.stats.sent_bits / 8 / self._workers

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "server": self.server.state_dict(),
            "stats": vars(self.server.stats),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.server.load_state_dict(state["server"])
        self.server.stats = Traffic(**state["stats"])


class _OnRanks:
    """One worker in each process."""

    def __init__(self, w: Tensor, method: Method, options: RunOptions):
        self.exchange = Exchange(distributed.group.WORLD, indices=options.indices)
        self.rows = slice(self.exchange.rank, self.exchange.rank + 1)
        self._weights = w
        self.optimizer = SparsAMS(
            [w],
            lr=_step_size(w, method, options),
            compressor=method.compressor(w.numel()),
            error_feedback=method.error_feedback,
            error_format=method.error_format,
            generator=_generator(options),
            process_group=self.exchange,
        )

    def step(self, gradients: Tensor) -> None:
        self._weights.grad = gradients[0]
        self.optimizer.step()

    @property
    def sent_bytes(self) -> float:
        return self.exchange.stats.sent_bits / 8


def _generator(options: RunOptions) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed)


def _step_size(w: Tensor, method: Method, options: RunOptions) -> float:
    factor = method.step_factor(w.numel()) if options.compensated else 1.0
    return options.step_size * factor


def train(
    method: Method,
    data: Shards,
    options: RunOptions,
    *,
    on_ranks: bool = False,
    part: Part | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Curve:
    """Train a perceptron on the shards of n workers.

    Contract:
        The same arguments give the same bits, also if a simulated run was killed and
        continues from ``part``.

    Args:
        method: how gradients are compressed.
        data: of the workers.
        options: of the run.
        on_ranks: whether each rank of the default process group is one worker;
            otherwise all are simulated in this process.
        part: keeps the state of a simulated run; None keeps nothing.
        advance: called after every step.

    Returns:
        The curve, from the initial weights on.
    """
    net = Perceptron(data.features.shape[2], options.hidden)
    generator = _generator(options)
    w = torch.nn.Parameter(net.initial(generator))
    workers = len(data.features)
    if on_ranks:
        training: _Simulated | _OnRanks = _OnRanks(w, method, options)
    else:
        training = _Simulated(w, method, workers, options)
    curve, start = Curve([], [], [], []), 0
    saved = None if part is None or on_ranks else part.state()
    if saved is not None and isinstance(training, _Simulated):
        start, curve = saved["step"], Curve(**saved["curve"])
        with torch.no_grad():
            w.copy_(saved["weights"])
        training.load_state_dict(saved["training"])
        generator.set_state(saved["generator"])
    else:
        _evaluate(curve, 0, net, w, data, 0.0)
    last = time.monotonic()
    for step in range(start, options.steps):
        x, labels = data.batch(options.batch, generator)
        rows = training.rows
        training.step(net.gradients(w, x[rows], labels[rows]))
        advance()
        if (step + 1) % options.evaluate_every == 0 or step + 1 == options.steps:
            _evaluate(curve, step + 1, net, w, data, training.sent_bytes)
        if (
            part is not None
            and isinstance(training, _Simulated)
            and time.monotonic() - last > _SECONDS
        ):
            last = time.monotonic()
            part.save(
                {
                    "step": step + 1,
                    "curve": vars(curve),
                    "weights": w.detach().clone(),
                    "training": training.state_dict(),
                    "generator": generator.get_state(),
                }
            )
    return curve


def _evaluate(
    curve: Curve, step: int, net: Perceptron, w: Tensor, data: Shards, sent: float
) -> None:
    weights = w.detach()
    features, labels = data.features.flatten(0, 1), data.labels.flatten()
    curve.append(
        step,
        net.accuracy(weights, data.test_features, data.test_labels),
        net.loss(weights, features, labels),
        sent,
    )
