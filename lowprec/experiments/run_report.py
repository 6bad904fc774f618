"""A page about the results of ``lowprec run``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..measure import Ledger, write_report

__all__ = ["write"]


def write(
    directory: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> Path:
    """Write a report of a directory of results, complete or not.

    Args:
        directory: what ``lowprec run`` has written, also if it was killed.
        out: path of the page; None means ``report.html`` in the directory.

    Returns:
        The path of the page.

    Raises:
        OSError: if there are no results, or the page cannot be written.
        ValueError: if the results are damaged.
    """
    source = Path(directory)
    metrics = source / "metrics.jsonl"
    if not metrics.is_file():
        raise FileNotFoundError(
            f"{str(source)!r} has no metrics.jsonl: give the directory that "
            "`lowprec run ... --out` wrote to"
        )
    ledger, result = Ledger(), _json(source / "result.json")
    for record in Ledger.load(metrics):
        record.pop("gradient_norm", None)  # r is the error of a direction of length 1
        ledger.append(record)
    configuration = _json(source / "config.json")
    if result:
        lines = (f"{name}: {value}\n" for name, value in result.items())
        configuration["results"] = "".join(lines)
    return write_report(
        source / "report.html" if out is None else out,
        ledger,
        title=f"Run {source.resolve().name}",
        configuration=configuration,
        bounds=_bounds(ledger, result),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text())
    return {name: value for name, value in content.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)  # None says nothing, lists too much


def _bounds(ledger: Ledger, result: dict[str, Any]) -> dict[str, dict[str, float]]:
    bounds: dict[str, dict[str, float]] = {}
    if "f_star" in result and "loss" in ledger.names:
        bounds["loss"] = {"minimum f*": result["f_star"]}
        if "stochastic_bound_gap" in result:
            level = result["f_star"] + result["stochastic_bound_gap"]
            bounds["loss"]["Theorem 4.3"] = level
    if "r_norm" in ledger.names:
        bounds["r_norm"] = {"length of the exact direction": 1.0}
    if "step_size" in result and "s_norm" in ledger.names:
        bounds["s_norm"] = {"step size η": result["step_size"]}
    return bounds
