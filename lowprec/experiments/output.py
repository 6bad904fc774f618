"""Directories of results: nothing half-written, a readable ledger even after a kill."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..measure import Ledger
from ..measure import environment as environment

__all__ = ["RunDirectory", "environment"]


class RunDirectory:
    """A directory that receives one run's configuration, ledger, results and figures.

    Contract:
        The directory is made, and shown to be writable, before anything is computed.
        Files are written under a temporary name and renamed, so that each is whole or
        absent; the ledger grows line by line. As a context manager it removes what it
        made again if an error comes before the first file.

    Args:
        path: the directory; existing results in it are replaced.

    Raises:
        OSError: if it cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make the directory and try to write to it."""
        self.path = Path(path)
        missing = [self.path, *self.path.parents]
        self._made = [one for one in missing if not one.exists()]  # deepest first
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(
                f"cannot write results to {str(self.path)!r}: "
                f"{error.strerror or error}; choose another --out"
            ) from error

    def __enter__(self) -> RunDirectory:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After an error, remove the directories that were made and are still empty."""
        if kind is not None:
            with suppress(OSError):  # not empty: something was written
                for path in self._made:
                    path.rmdir()

    def ledger(self) -> Ledger:
        """Start ``metrics.jsonl`` anew and return its ledger.

        A ``result.json`` of an earlier run is removed: should this one fail, it would
        lie beside a configuration that it does not belong to.
        """
        for name in ("metrics.jsonl", "result.json"):
            (self.path / name).unlink(missing_ok=True)
        return Ledger(self.path / "metrics.jsonl")

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a JSON file and return its path."""
        text = json.dumps(content, indent=2) + "\n"
        return self._replace(name, lambda path: path.write_text(text))

    def write_figure(self, name: str, figure: Any) -> Path:
        """Write a matplotlib figure as PNG and return its path."""
        return self._replace(
            name, lambda path: figure.savefig(path, format="png", dpi=150)
        )

    def _replace(self, name: str, write: Callable[[Path], object]) -> Path:
        target = self.path / name
        temporary = self.path / f".{name}.part"
        try:
            write(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return target
