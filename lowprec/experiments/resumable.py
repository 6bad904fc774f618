"""Runs that continue after a kill: finished and half-finished parts, kept in files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["Part", "Parts"]

_DIGITS = 16


class Parts:
    """The parts of a run, each kept under a description of what determines it.

    Contract:
        A part is found again by an equal description, in whatever order and beside
        whatever others: options that add parts keep those that are done, options
        that change a part begin it anew. A kill at any moment leaves every file whole.

    Args:
        directory: of the run; the files lie in its ``parts``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     part = Parts(directory).part("square", {"of": 3})
        ...     part.finish(9)
        ...     again = Parts(directory).part("square", {"of": 3})
        ...     again.done, again.result()
        (True, 9)
    """

    def __init__(self, directory: str | Path) -> None:
        """Keep the path; the folder is made when something is saved."""
        self._folder = Path(directory) / "parts"

    def part(self, name: str, description: Mapping[str, Any]) -> Part:
        """Return the part of this description.

        Args:
            name: for people, part of the file name.
            description: everything that the result is a function of, as values that
                JSON knows; others count by their ``repr``.

        Returns:
            The part, finished, begun or new.
        """
        text = json.dumps([name, description], sort_keys=True, default=repr)
        key = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
        readable = "".join(c if c.isalnum() else "-" for c in name)
        return Part(self._folder / f"{readable}-{key}")

    def clear(self) -> None:
        """Remove all parts: their results are in the run's own files."""
        shutil.rmtree(self._folder, ignore_errors=True)


class Part:
    """One part: a checkpoint while it runs, and its result from then on.

    States and results hold what ``torch.load(weights_only=True)`` reads: tensors,
    numbers, text, ``state_dict`` results, lists and dictionaries of them.
    """

    def __init__(self, stem: Path) -> None:
        """Keep the paths."""
        self._checkpoint = stem.with_name(f"{stem.name}.checkpoint")
        self._result = stem.with_name(f"{stem.name}.result")

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self._result.exists()

    def result(self) -> Any:
        """Return what `finish` was given."""
        return torch.load(self._result, weights_only=True)

    def state(self) -> Any:
        """Return what `save` was given last, or None."""
        if not self._checkpoint.exists():
            return None
        return torch.load(self._checkpoint, weights_only=True)

    def save(self, state: Any) -> None:
        """Keep the state of a part that is not finished."""
        _write(self._checkpoint, state)

    def finish(self, result: Any) -> None:
        """Keep the result, and forget the state."""
        _write(self._result, result)
        self._checkpoint.unlink(missing_ok=True)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    torch.save(content, temporary)
    temporary.replace(path)
