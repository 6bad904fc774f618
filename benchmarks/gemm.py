"""How fast are matrix products in which every addition rounds, on one thread?

    python benchmarks/gemm.py [--sizes 256 512 1024] [--isa 4 3] [--peers] [--threads]

Square products in float32 under each kind of accumulator, beside float32
``torch.matmul``. ``GMAC/s`` and the share of the fastest unrounded product say what a
ratio cannot: how near to its peak this machine's BLAS runs differs by a factor of two
between machines. ``own float32`` is this library's product whose blocks of 512 terms
are plain float32 sums. Peers are timed at 256 from a few of their steps. Times are CPU
times of the calling thread, but for those of ``--threads``.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import compare, require_equal, row, save, show

import lowprec as lp
from lowprec.kernels import native, using

SEED = 5
FLOAT32 = "torch.matmul"


def _promoted(size: int, outer: str = "e8m10") -> lp.Accumulator:
    return lp.Accumulator(
        outer, order="blocked", block_size=size, within=lp.Rounding("binary32")
    )


_STOCHASTIC = lp.Rounding("bfloat16", "stochastic")
_FP8 = lp.Rounding("e4m3fn", saturation="finite")
_SATURATING = lp.Accumulator(lp.Rounding("binary16", saturation="finite"))
# Operands whose sums may reach the largest number of the accumulator.
_LARGE = "fp8 operands, saturating"
# Name: format of the operands, accumulator, most times torch.matmul asked for.
CASES: dict[str, tuple[Any, lp.Accumulator, float | None]] = {
    "own float32": (None, _promoted(512, "e8m21"), None),
    "exact products, 8 bits": (None, lp.Accumulator("bfloat16"), 2.7),
    "exact products, 22 bits": (None, lp.Accumulator("e8m21"), 2.7),
    "fp8 operands": (_FP8, lp.Accumulator("bfloat16"), 1.3),
    _LARGE: (_FP8, _SATURATING, 2.0),
    "rounded products, 8 bits": (None, lp.Accumulator("bfloat16", "accumulator"), 6.8),
    "rounded products, 16 bits": (None, lp.Accumulator("e8m15", "accumulator"), 6.8),
    "bfloat16 operands, rounded products": (
        "bfloat16",
        lp.Accumulator("bfloat16", "bfloat16"),
        2.8,
    ),
    "stochastic": (_FP8, lp.Accumulator(_STOCHASTIC), 6.0),
    "stochastic, rounded products": (
        "bfloat16",
        lp.Accumulator(_STOCHASTIC, "bfloat16"),
        7.5,
    ),
    "chunks of 16": (None, _promoted(16), 0.75),
    "chunks of 32": (None, _promoted(32), 0.75),
}


def _operands(
    size: int, rounding: Any, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(size)
    pair = [scale * torch.randn((size, size), generator=source) for _ in range(2)]
    if rounding is not None:
        pair = [lp.round(x, rounding) for x in pair]
    return pair[0], pair[1]


def _ours(size: int, name: str) -> Callable[[], Any]:
    rounding, accumulator, _ = CASES[name]
    a, b = _operands(size, rounding, 32.0 if name == _LARGE else 1.0)
    seed = SEED if accumulator.stochastic else None
    return lambda: lp.matmul(a, b, accumulator=accumulator, seed=seed)


def _check(name: str, isa: int) -> None:
    call = _ours(67, name)
    with using("portable"):
        expected = call()
    require_equal(f"{name}, instruction set {isa}", call(), expected)


def ours(size: int, isa: int, seconds: float) -> list[dict[str, Any]]:
    """Time every case at one size with one instruction set."""
    a, b = _operands(size, None)
    contenders: dict[str, Callable[[], Any]] = {FLOAT32: lambda: torch.matmul(a, b)}
    for name in CASES:
        contenders[name] = _ours(size, name)
    timings = compare(contenders, seconds=seconds, clock=time.thread_time)
    fastest = min(timings[FLOAT32].median, timings["own float32"].median)
    rows = row(timings, FLOAT32, size=size, isa=isa)
    for one in rows:
        one["GMAC/s"] = round(size**3 / one["median"] / 1e9, 2)
        one["share"] = round(fastest / one["median"], 3)
        one["wanted"] = CASES.get(one["contender"], (None, None, None))[2]
    return rows


def _half_loop(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The shortest loop in plain torch: binary16 products and sums."""
    total = a.new_zeros(a.shape[0], b.shape[1])
    for k in range(a.shape[1]):
        total = (total + (a[:, k : k + 1] * b[k]).half().float()).half().float()
    return total


def _pychop_loop(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    pychop = importlib.import_module("pychop")
    pychop.backend("torch")
    chop = pychop.Chop(exp_bits=5, sig_bits=10, rmode=1)
    total = a.new_zeros(a.shape[0], b.shape[1])
    for k in range(a.shape[1]):
        total = chop(total + chop(a[:, k : k + 1] * b[k]))
    return total


def _gfloat_loop(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    gfloat = importlib.import_module("gfloat")
    half = importlib.import_module("gfloat.formats").format_info_binary16
    total = a.new_zeros(a.shape[0], b.shape[1]).numpy()
    left, right = a.numpy(), b.numpy()
    for k in range(a.shape[1]):
        term = gfloat.round_ndarray(half, left[:, k : k + 1] * right[k])
        total = gfloat.round_ndarray(half, total + term)
    return torch.from_numpy(total)


def peers(size: int, steps: int, seconds: float) -> list[dict[str, Any]]:
    """Time loops over k with other libraries, ``steps`` of them, scaled to all."""
    a, b = _operands(size, "binary16")
    accumulator = lp.Accumulator("binary16", "accumulator")
    left, right = a[:, :steps].contiguous(), b[:steps].contiguous()
    contenders: dict[str, Callable[[], Any]] = {
        "lowprec": lambda: lp.matmul(a, b, accumulator=accumulator)
    }
    loops = {
        "torch half casts": _half_loop,
        "pychop": _pychop_loop,
        "gfloat": _gfloat_loop,
    }
    expected = lp.matmul(left, right, accumulator=accumulator)
    for name, loop in loops.items():
        try:
            require_equal(name, loop(left, right).float(), expected)
        except ImportError:
            print(f"{name} is not installed")
            continue
        contenders[name] = lambda loop=loop: loop(left, right)
    timings = compare(contenders, seconds=seconds, clock=time.thread_time)
    rows = row(timings, "lowprec", size=size, isa=native.instruction_sets()[-1])
    for one in rows:
        if one["contender"] != "lowprec":
            one["steps"] = steps
            one["ratio"] *= size / steps
    return rows


def threads(size: int, seconds: float) -> list[dict[str, Any]]:
    """Time one and two threads; says little unless the machine is quiet."""

    def with_threads(count: int, call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            torch.set_num_threads(count)
            call()

        return run

    rows: list[dict[str, Any]] = []
    for name in ("fp8 operands", "exact products, 8 bits", "chunks of 32"):
        call = _ours(size, name)
        contenders = {f"{name}, 1 thread": with_threads(1, call)}
        contenders[f"{name}, 2 threads"] = with_threads(2, call)
        timings = compare(contenders, seconds=seconds)
        rows += row(timings, f"{name}, 1 thread", size=size)
    torch.set_num_threads(1)
    return rows


def main() -> None:
    """Check, time, write and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--isa", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--threads", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for isa in arguments.isa:
        if isa not in native.instruction_sets():
            print(f"this machine has no instruction set {isa}")
            continue
        native.set_instruction_set(isa)
        for name in CASES:
            _check(name, isa)
        for size in arguments.sizes:
            rows += ours(size, isa, arguments.seconds)
    native.set_instruction_set()
    show(rows, "isa", "size", "GMAC/s", "share", "wanted")
    if arguments.threads:
        scaling = threads(1024, arguments.seconds)
        show(scaling, "size")
        rows += scaling
    if arguments.peers:
        others = peers(256, 8, arguments.seconds)
        show(others, "size", "steps")
        rows += others
    print(save("gemm", rows))


if __name__ == "__main__":
    main()
