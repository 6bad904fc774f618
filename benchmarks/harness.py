"""Timing contenders side by side in one process, and writing what was measured.

Every round calls each contender untimed for some milliseconds and then once timed, in
turn, so that a machine that becomes slower becomes so for all of them, and what came
before does not matter. Samples during which another
process took the core (an involuntary context switch) are dropped while at least three
clean ones remain. What counts is the ratio of two medians.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import lowprec

RESULTS = Path(__file__).parent / "results"
_FEWEST_CLEAN = 3
_LONGEST_WARM_UP = 0.02  # seconds; longer calls are not repeated untimed
# Seconds of untimed calls: after a slow scalar contender the first calls of a vector
# loop take twice as long, a copy too.
_WARM_UP = 0.003


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender: median and quartiles of the samples that counted.

    Args:
        median: middle sample.
        lower: first quartile.
        upper: third quartile.
        samples: how many counted.
        dropped: how many were dropped because another process ran.
    """

    median: float
    lower: float
    upper: float
    samples: int
    dropped: int


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _once(
    call: Callable[[], object], repeats: int, clock: Callable[[], float]
) -> tuple[float, bool]:
    before = _switches()
    start = clock()
    for _ in range(repeats):
        call()
    elapsed = clock() - start
    return elapsed / repeats, _switches() == before


def _repeats(seconds: float) -> int:
    """Calls per sample: short ones are repeated until the clock resolves them."""
    return max(1, min(1000, int(100e-6 / max(seconds, 1e-7))))


def compare(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 25,
    seconds: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time all contenders interleaved.

    Args:
        contenders: calls by name.
        rounds: samples of each, at most.
        seconds: stop after so long, but not before three rounds.
        clock: what samples are read from. ``time.thread_time`` counts only the calling
            thread, so calls on one thread keep their times on a busy machine.

    Returns:
        A timing for each name.
    """
    first = {name: _once(call, 1, clock)[0] for name, call in contenders.items()}
    first = {
        name: min(first[name], _once(call, 1, clock)[0])
        for name, call in contenders.items()
    }
    kept: dict[str, list[tuple[float, bool]]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= _FEWEST_CLEAN and time.perf_counter() > end:
            break
        for name, call in contenders.items():
            if first[name] < _LONGEST_WARM_UP:
                for _ in range(max(1, min(1000, int(_WARM_UP / first[name])))):
                    call()
            kept[name].append(_once(call, _repeats(first[name]), clock))
    return {name: _summary(samples) for name, samples in kept.items()}


def _summary(samples: list[tuple[float, bool]]) -> Timing:
    clean = [seconds for seconds, undisturbed in samples if undisturbed]
    used = clean if len(clean) >= _FEWEST_CLEAN else [seconds for seconds, _ in samples]
    lower, _, upper = statistics.quantiles(used, n=4)
    return Timing(
        statistics.median(used), lower, upper, len(used), len(samples) - len(used)
    )


def ratio(timings: Mapping[str, Timing], name: str, reference: str) -> float:
    """Return how many times as long as the reference a contender takes."""
    return timings[name].median / timings[reference].median


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), ""
    )


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge the numbers."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lowprec": lowprec.__version__,
        "kernels": lowprec.kernels.native.status(),
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE"),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def row(
    timings: Mapping[str, Timing], reference: str, **what: Any
) -> list[dict[str, Any]]:
    """Return one record per contender: what was timed, its timing, its ratio."""
    return [
        {
            **what,
            "contender": name,
            "reference": reference,
            "ratio": ratio(timings, name, reference),
            **asdict(timing),
        }
        for name, timing in timings.items()
    ]


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write ``results/NAME.json`` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"machine": machine(), "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def show(rows: list[dict[str, Any]], *columns: str) -> None:
    """Print rows as an aligned table with microseconds and ratios."""
    titles = [*columns, "contender", "us", "ratio"]
    lines = [
        [
            *(str(one.get(column, "")) for column in columns),
            str(one["contender"]),
            f"{one['median'] * 1e6:.2f}",
            f"{one['ratio']:.2f}",
        ]
        for one in rows
    ]
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    for line in [titles, *lines]:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())
    sys.stdout.flush()


def require_equal(name: str, ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Stop unless two results are equal bit for bit, any NaN equal to any NaN.

    Raises:
        SystemExit: a wrong result has no speed.
    """
    integer = {torch.float32: torch.int32, torch.float64: torch.int64}[ours.dtype]
    same = (ours.view(integer) == expected.view(integer)) | (
        ours.isnan() & expected.isnan()
    )
    if not bool(same.all()):
        raise SystemExit(f"{name}: {int((~same).sum())} wrong results, not timed")
