"""What a call costs before its first element, and what the package costs to have.

64 elements through ``lowprec.round`` beside ``x * 2``; the time that importing lowprec
adds to importing torch; the size of the C++ library and of its compressed form, which
is nearly all of the wheel. Results go to ``results/overhead.json``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from harness import compare, row, save, show

import lowprec as lp
from lowprec.kernels import native


def calls() -> list[dict[str, Any]]:
    """Time small tensors."""
    x = torch.randn(64)
    leaf = torch.randn(64, requires_grad=True)
    out = torch.empty_like(x)
    rounding = lp.Rounding("e4m3fn")
    timings = compare(
        {
            "x * 2": lambda: x * 2,
            "x.clone()": lambda: x.clone(),
            "x * 2 with gradient": lambda: leaf * 2,
            "round(x, name)": lambda: lp.round(x, "e4m3fn"),
            "round(x, name, mode)": lambda: lp.round(x, "e4m3fn", "toward_zero"),
            "round(x, Rounding)": lambda: lp.round(x, rounding),
            "round(x, Rounding, out=)": lambda: lp.round(x, rounding, out=out),
            "round with gradient": lambda: lp.round(leaf, rounding),
            "round stochastically": lambda: lp.round(x, "e4m3fn", "stochastic", seed=1),
            "operation alone": lambda: torch.ops.lowprec.round(x, rounding.code),
            "C++ kernel alone": lambda: native.round(x, rounding.code),
        },
        rounds=101,
    )
    return row(timings, "x * 2", size=64)


_IMPORT = """
import time, torch
start = time.process_time()
import lowprec
print(time.process_time() - start)
"""


def imports() -> list[dict[str, Any]]:
    """Measure processor time of the import in fresh processes."""
    command = [sys.executable, "-c", _IMPORT]
    with tempfile.TemporaryDirectory() as cache:  # compiled once, as installed
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        added = [
            float(
                subprocess.run(
                    command, capture_output=True, check=True, env=environment
                ).stdout
            )
            for _ in range(10)
        ]
    return [
        {
            "what": "import lowprec after torch",
            "seconds": statistics.median(added[1:]),
        }
    ]


def sizes() -> list[dict[str, Any]]:
    """Measure the C++ library."""
    path = Path(native.loaded()._name)
    content = path.read_bytes()
    return [
        {"what": "C++ library", "bytes": len(content)},
        {"what": "C++ library, deflated", "bytes": len(zlib.compress(content, 9))},
    ]


def main() -> None:
    """Measure everything and save it."""
    torch.set_num_threads(1)
    timed = calls()
    show(timed, "size")
    other = imports() + sizes()
    for one in other:
        print(one)
    print(save("overhead", timed + other))


if __name__ == "__main__":
    main()
