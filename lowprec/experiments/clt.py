"""Central limit theorems at work: replicas of SGD with and without momentum.

The paper's experiment: run many replicas of a method on one logistic regression, and
compare the covariance of the iterates, in units of the step size, with its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..measure import ReplicaRunner, royston_test, scaled_covariance
from ..random import split_seed
from ..schedules import Iteration, PowerSchedule
from .clt_problem import Problem, logistic
from .replica_runs import deviations, follow, origin
from .resumable import Parts

__all__ = [
    "BLOCKS",
    "ROWS",
    "TESTED",
    "VARIANTS",
    "CltConfig",
    "Trace",
    "checkpoints",
    "even_checkpoints",
    "run",
]

# How many replicas the rows of Table 1 have; one run is cut into blocks of each size.
BLOCKS = (100, 250, 500, 1000, 2000)
# Royston's test was fitted up to so many samples.
TESTED = 2000
VARIANTS: tuple[Literal["sw", "trujillo"], ...] = ("sw", "trujillo")
_LINEAR_CHECKPOINTS = 20
_DAMPING = 0.2


def _rows() -> dict[str, Iteration]:
    rows = {
        f"sgd {schedule}": Iteration("sgd", schedule)
        for factor in (0.1, 1.0)
        for exponent in (0.25, 0.5, 0.75)
        for schedule in (PowerSchedule(factor, exponent),)
    }
    slow = PowerSchedule(0.1, 0.5)
    for method in ("momentum", "nasgd", "nesterov"):
        rows[f"{method} {slow}"] = Iteration(method, slow, damping=_DAMPING)
    vanishing = PowerSchedule(0.5, 0.75)
    rows[f"vanishing damping {vanishing}"] = Iteration(
        "momentum", vanishing, damping=PowerSchedule(1.0, 0.15)
    )
    return rows


# The methods by name; damping is 0.2, or vanishes like k^-0.15.
ROWS: dict[str, Iteration] = _rows()


@dataclass(frozen=True, kw_only=True)
class CltConfig:
    """What is run.

    Args:
        rows: names of `ROWS`.
        replicas: M of each run.
        steps: number of steps.
        seed: of everything random.
    """

    rows: tuple[str, ...] = tuple(ROWS)
    replicas: int = 2000
    steps: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        unknown = [name for name in self.rows if name not in ROWS]
        if unknown or not self.rows:
            raise ValueError(
                f"unknown rows {unknown}: they must be some of {list(ROWS)}"
            )
        velocities = any(ROWS[name].has_velocity for name in self.rows)
        fewest = 20 if velocities else 10
        if self.replicas < fewest:
            raise ValueError(
                f"replicas must be {fewest} or more, the number of parameters and "
                f"velocities, for the test of normality, got {self.replicas}"
            )
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")


@dataclass(frozen=True)
class Trace:
    """What was measured of one method.

    Args:
        steps: numbers of the checkpoints, int64 [C].
        covariance: V_k = mean Z Z^T of Z = x - x*, with velocities Z = (x - x*, v),
            float64 [C, d, d] or [C, 2d, 2d].
        p_values: of Royston's test in both variants, [C] by name.
        final: Z of every replica after the last step, [M, d] or [M, 2d].
    """

    steps: Tensor
    covariance: Tensor
    p_values: Mapping[str, Tensor]
    final: Tensor


def even_checkpoints(steps: int) -> list[int]:
    """Return twenty steps evenly, the last among them; all of fewer than twenty."""
    shares = range(1, _LINEAR_CHECKPOINTS + 1)
    return sorted({steps * i // _LINEAR_CHECKPOINTS for i in shares} - {0})


def checkpoints(steps: int) -> list[int]:
    """Return where to measure: 1, 2, 5, 10, ..., and at the even checkpoints."""
    powers = {digit * 10**power for power in range(8) for digit in (1, 2, 5)}
    return sorted({k for k in powers if k <= steps}.union(even_checkpoints(steps)))


def run(
    config: CltConfig,
    *,
    directory: str | Path | None = None,
    advance: Callable[[], object] = lambda: None,
    problem: Problem | None = None,
) -> dict[str, Trace]:
    """Run the methods and measure them at the checkpoints.

    Contract:
        A run that was killed continues from its last checkpoint, bit for bit, if it has
        a directory.

    Args:
        config: what to run.
        directory: where unfinished and finished methods are kept; None keeps nothing.
        advance: called once per step, for steps that were made earlier too.
        problem: the problem, if it is known already.

    Returns:
        Measurements by the name of the row.
    """
    problem = logistic() if problem is None else problem
    seeds = split_seed(torch.tensor(config.seed), len(ROWS))
    parts = None if directory is None else Parts(directory)
    return {
        name: _row(name, config, problem, seed, parts, advance)
        for name, seed in zip(ROWS, seeds, strict=True)
        if name in config.rows
    }


def _row(
    name: str,
    config: CltConfig,
    problem: Problem,
    seed: Tensor,
    parts: Parts | None,
    advance: Callable[[], object],
) -> Trace:
    runner = ReplicaRunner(
        problem.loss,
        problem.data,
        problem.start,
        ROWS[name],
        replicas=config.replicas,
        seed=seed,
        gradient=problem.gradient,
    )
    places = checkpoints(config.steps)
    description = {
        "row": repr(ROWS[name]),
        "seed": int(seed),
        "replicas": config.replicas,
        "places": places,
        **origin(*problem.data, problem.start, torch.tensor(problem.penalty)),
    }
    part = None if parts is None else parts.part(name, description)
    measure = partial(_measured, problem, config.steps)
    return _trace(follow(runner, places, measure, part, advance))


def _measured(problem: Problem, last: int, runner: ReplicaRunner) -> dict[str, Any]:
    z = deviations(runner, problem.model.minimiser)
    p_values = {
        variant: royston_test(runner.x[:TESTED], variant).p_value
        for variant in VARIANTS
    }
    record = {
        "step": runner.step,
        "covariance": scaled_covariance(z, 1.0, centre=torch.zeros_like(z[0])),
        "p_values": p_values,
    }
    return record if runner.step < last else {**record, "final": z}


def _trace(records: list[dict[str, Any]]) -> Trace:
    return Trace(
        torch.tensor([one["step"] for one in records]),
        torch.stack([one["covariance"] for one in records]),
        {
            variant: torch.tensor(
                [one["p_values"][variant] for one in records], dtype=torch.float64
            )
            for variant in records[0]["p_values"]
        },
        records[-1]["final"],
    )
