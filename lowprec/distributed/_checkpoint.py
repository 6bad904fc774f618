"""Checkpoints of ranks: each has its own errors, and all are of one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ._communicator import Communicator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_COMPLETE = "complete"
_KEPT = 2
_ERROR = "error"
_RULES = ("mean", "drop")


class Checkpoints:
    """A folder with one file for each rank and step, seen by all ranks.

    Contract:
        A step counts once every rank has written its file: a kill at any moment leaves
        the step before. Files are written under another name and renamed. The last
        two complete steps stay. A folder belongs to one run, whose steps grow.

    Args:
        folder: on a file system that all ranks share; made if missing.
        group: a process group, None for the default one.

    Raises:
        RuntimeError: if there is no process group.

    Example:
        >>> # checkpoints = Checkpoints("runs/checkpoints")
        >>> # start, state = checkpoints.last() or (0, None)
        >>> # checkpoints.save(step, {"model": ..., "optimizer": ...})
    """

    def __init__(
        self, folder: str | os.PathLike[str], group: ProcessGroup | None = None
    ) -> None:
        """Keep the path; nothing is written yet."""
        self.folder = Path(folder)
        self._ranks = Communicator(group)

    def save(self, step: int, state: Any) -> None:
        """Write this rank's state; return when the states of all ranks are written.

        Args:
            step: number of steps done, the same on all ranks.
            state: what ``torch.load(weights_only=True)`` reads, such as results of
                ``state_dict``; the errors are this rank's own.

        Raises:
            ValueError: if ranks save different steps, or the folder has a later one,
                which a restart would take for the last.
            RuntimeError: if another rank fails or the group's time-out passes.
            OSError: if the file cannot be written.
        """
        ranks = self._ranks
        later = [one for one in self._complete() if one > step]
        self._ranks.agree(
            {"step to save": str(step), "later steps in the folder": repr(later)}
        )
        if later:
            raise ValueError(
                f"{self.folder} has steps {later}, later than step {step}: use another "
                "folder, or remove them"
            )
        place = self._place(step)
        place.mkdir(parents=True, exist_ok=True)
        path = place / _name(ranks.rank, ranks.size)
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(path)
        ranks.agree({"step that is written": str(step)})
        if ranks.rank == 0:
            written = place / f"{_COMPLETE}.part"
            written.write_text(f"{ranks.size}\n")
            written.replace(place / _COMPLETE)
            for old in self._complete()[:-_KEPT]:
                (self._place(old) / _COMPLETE).unlink()
                shutil.rmtree(self._place(old))
        ranks.agree({"step that is complete": str(step)})

    def last(self, rule: Literal["mean", "drop"] = "mean") -> tuple[int, Any] | None:
        """Return the last complete step and this rank's state of it.

        If there are more or fewer ranks than those that saved, the states are
        `redistributed`.

        Args:
            rule: what becomes of the errors then.

        Returns:
            Step and state; None if no step is complete.

        Raises:
            ValueError: if ranks see different files.
            RuntimeError: as `save`.
        """
        steps = self._complete()
        self._ranks.agree({f"complete steps in {self.folder}": repr(steps)})
        if not steps:
            return None
        place = self._place(steps[-1])
        size = int((place / _COMPLETE).read_text())
        if size == self._ranks.size:
            return steps[-1], _loaded(place / _name(self._ranks.rank, size))
        states = [_loaded(place / _name(rank, size)) for rank in range(size)]
        return steps[-1], redistributed(states, rule)

    def _complete(self) -> list[int]:
        return sorted(
            int(path.parent.name.removeprefix("step-"))
            for path in self.folder.glob(f"step-*/{_COMPLETE}")
        )

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step}"


def redistributed(states: Sequence[Any], rule: Literal["mean", "drop"] = "mean") -> Any:
    r"""Return the state that each of another number of ranks starts from.

    .. math::
        e'_j = \frac1n \sum_{i=1}^n e_i \quad\text{for each new rank } j

    Contract:
        What training still owes the weights is the mean of the errors, as the weights
        move along the mean of what is sent. The mean of the new errors is the mean of
        the old ones, for any number of new ranks, so that the sum of all means sent and
        the mean error stays the sum of all mean gradients. (Dividing the sum of the
        errors by the new number of ranks would change the debt by n/n'.) The sum runs
        in rank order in the carrier and is divided once, as everywhere.

    Args:
        states: of all old ranks, in their order: nested dictionaries. Whatever lies
            under a key ``"error"`` is redistributed, the rest is the first rank's.
        rule: ``"mean"``, or ``"drop"``, which starts without errors: what was not sent
            is lost.

    Returns:
        A new state, the same for every new rank.

    Raises:
        ValueError: if the rule is unknown or there are no states.

    Example:
        >>> redistributed([{"error": torch.tensor([4.0])}, {"error": torch.zeros(1)}])
        {'error': tensor([2.])}

    References:
        Identity I1 of `lowprec.theory.spars_ams`.
    """
    if rule not in _RULES:
        raise ValueError(
            f"rule must be 'mean', which keeps the errors, or 'drop', got {rule!r}"
        )
    if not states:
        raise ValueError("there are no states to redistribute: give one or more")
    return _redistributed(list(states), rule, False)


def _redistributed(states: list[Any], rule: str, is_error: bool) -> Any:
    first = states[0]
    if isinstance(first, Mapping):
        return {
            key: _redistributed(
                [state[key] for state in states], rule, is_error or key == _ERROR
            )
            for key in first
        }
    if not is_error or not isinstance(first, Tensor):
        return first
    total = torch.zeros_like(first)
    if rule == "drop":
        return total
    for error in states:
        total += error
    return total.div_(len(states))


def _name(rank: int, size: int) -> str:
    return f"rank-{rank}-of-{size}.pt"


def _loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)
