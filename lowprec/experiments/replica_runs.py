"""Runs of replicas that are measured at chosen steps and continue after a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..measure import ReplicaRunner
from .output import environment
from .resumable import Part

__all__ = ["deviations", "follow", "origin"]

Record = dict[str, Any]


def origin(*problem: Tensor) -> dict[str, str]:
    """Return what a `Part` of replicas depends on beside its method and its seed.

    Args:
        problem: tensors that say which problem it is, on the CPU.

    Returns:
        The versions that may change a bit of a trajectory, and a digest of the problem.
    """
    digest = hashlib.sha256()
    for one in problem:
        digest.update(f"{one.dtype} {tuple(one.shape)} ".encode())
        digest.update(one.contiguous().numpy().tobytes())
    found = environment()
    versions = {name: found[name] for name in ("lowprec", "torch")}
    return {**versions, "problem": digest.hexdigest()}


def follow(
    runner: ReplicaRunner,
    places: Sequence[int],
    measure: Callable[[ReplicaRunner], Record],
    part: Part | None,
    advance: Callable[[], object],
) -> list[Record]:
    """Run replicas and measure them at increasing numbers of steps.

    Contract:
        Bit for bit the same whether it is interrupted or not.

    Args:
        runner: at its start.
        places: after how many steps to measure.
        measure: what is measured, of values that a `Part` can hold.
        part: where measurements and checkpoints are kept; None keeps nothing.
        advance: called once per step, for steps that were made earlier too.

    Returns:
        A record for every place.
    """
    records: list[Record] = []
    if part is not None and part.done:
        records = part.result()
        _repeat(advance, places[-1])
        return records
    state = None if part is None else part.state()
    if state is not None:
        runner.load_state_dict(state["runner"])
        records = state["records"]
    _repeat(advance, runner.step)
    for place in places[len(records) :]:
        runner.run(place, advance)
        records.append(measure(runner))
        if part is not None:
            part.save({"runner": runner.state_dict(), "records": records})
    if part is not None:
        part.finish(records)
    return records


def deviations(runner: ReplicaRunner, centre: Tensor) -> Tensor:
    """Return Z = x - x*, [M, d], or (x - x*, v), [M, 2d], if there are velocities."""
    x = runner.x - centre
    return x if runner.velocity is None else torch.cat([x, runner.velocity], 1)


def _repeat(advance: Callable[[], object], times: int) -> None:
    for _ in range(times):
        advance()
