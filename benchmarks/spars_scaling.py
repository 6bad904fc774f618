"""Step time of compressed training against workers, bandwidth and density.

Measures the compute of one step on one core, and, on gloo processes of this machine,
how much sharing the cores stretches it and what a message costs; predicts steps of
2 to 8 processes by `lowprec.distributed.sparse_step_time`, measures them, and draws
what the model says of up to 1024 workers with a core and a network link each.
Writes results/spars_scaling.json and docs/figures/spars-scaling.png.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
import torch.multiprocessing as multiprocessing
from torch import distributed

from lowprec.distributed import (
    ErrorFeedback,
    Exchange,
    Machine,
    Payload,
    TopK,
    Wire,
    dense_step_time,
    mean_in_order,
    sparse_step_time,
)
from lowprec.optim import AMSGrad

SIZE = 2**18  # d of the runs on this machine
DENSITIES = (0.001, 0.01, 0.1)
RANKS = (2, 4, 8)
_PARTS = 8  # payloads that are decoded at a time
_LONG = 2**20  # bytes of the message that measures bandwidth
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "spars-scaling.png"
# Of links between workers: seconds and bytes per second.
NETWORKS = {
    "1 Gb/s Ethernet": (5e-5, 1.25e8),
    "10 Gb/s Ethernet": (2e-5, 1.25e9),
    "100 Gb/s": (5e-6, 1.25e10),
}
_FUTURE_SIZE = 10**7  # d of the extrapolation
_GRADIENT = 0.05  # seconds of forward and backward in the extrapolation


Row = dict[str, Any]
Times = dict[str, float]


def least(
    calls: dict[str, Callable[[], object]],
    repeats: int,
    before: Callable[[], object] = lambda: None,
) -> tuple[Times, Times]:
    """Return the least seconds of each call, in turn, as other processes only add.

    The first are by the clock on the wall, the second those of this process's threads.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    used: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            before()
            start, began = time.perf_counter(), time.process_time()
            call()
            used[name].append(time.process_time() - began)
            wall[name].append(time.perf_counter() - start)
    first, second = (
        {name: min(several[1:]) for name, several in kind.items()}
        for kind in (wall, used)
    )
    return first, second


def compute(repeats: int) -> Machine:
    """Return the constants of one core, without a network."""
    g, error = torch.randn(SIZE), torch.randn(SIZE)
    w = torch.nn.Parameter(torch.randn(SIZE))
    w.grad = g
    calls: dict[str, Callable[[], object]] = {"update": AMSGrad([w]).step}
    for density in DENSITIES:
        feedback = ErrorFeedback(TopK(density=density))
        calls[f"compress {density}"] = partial(_sent, feedback, g, error)
        calls[f"decode {density}"] = partial(_received, feedback.step(g).payload)
    _, times = least(calls, repeats)
    few, middle, many = DENSITIES
    decoding = {x: times[f"decode {x}"] / _PARTS for x in DENSITIES}
    slope = (decoding[many] - decoding[few]) / (SIZE * (many - few))
    return Machine(
        latency=0.0,
        bandwidth=float("inf"),
        compression=times[f"compress {middle}"] / SIZE,
        decoding=slope,
        message=max(0.0, decoding[few] - slope * SIZE * few),
        update=times["update"] / SIZE,
    )


def _sent(feedback: ErrorFeedback, g: torch.Tensor, error: torch.Tensor) -> None:
    payload, _ = feedback.step(g, error)
    Wire.of(payload).pack(payload)


def _received(payload: Payload) -> None:
    wire, entries = Wire.of(payload), payload.values.numel()
    packed = wire.pack(payload)
    unpacked = [wire.unpack(packed, entries) for _ in range(_PARTS)]
    mean_in_order([one for one in unpacked if one is not None])


def on_ranks(count: int, repeats: int) -> tuple[Times, Times]:
    """Return the least seconds of steps and messages on gloo processes, as `least`."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _rank, (count, repeats, folder), nprocs=count, start_method="fork"
        )
        return torch.load(os.path.join(folder, "times.pt"))


def _rank(rank: int, count: int, repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(os.path.join(folder, "store"), count)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    g = torch.randn(SIZE, generator=torch.Generator().manual_seed(rank))
    w = torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = AMSGrad([w])
    exchange = Exchange()
    error = torch.randn(SIZE)

    def step(density: float) -> None:
        payload, _ = ErrorFeedback(TopK(density=density)).step(g, error)
        w.grad = exchange.mean(payload)
        optimizer.step()

    def dense() -> None:
        w.grad = g.clone()
        distributed.all_reduce(w.grad)
        w.grad.div_(count)
        optimizer.step()

    short, long = (
        torch.zeros(8, dtype=torch.uint8),
        torch.zeros(_LONG, dtype=torch.uint8),
    )
    calls: dict[str, Callable[[], object]] = {
        "short message": lambda: exchange.gather(short),
        "long message": lambda: exchange.gather(long),
        "dense": dense,
        **{f"{x:g}": partial(step, x) for x in DENSITIES},
    }
    times = least(calls, repeats, distributed.barrier)
    if rank == 0:
        torch.save(times, os.path.join(folder, "times.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


def checked(core: Machine, count: int, times: tuple[Times, Times]) -> list[Row]:
    """Return predictions beside what was measured.

    On a busy machine only the seconds that a process itself uses mean something: they
    are those of the model where nothing waits.
    """
    wall, used = times
    rounds = count - 1
    latency = wall["short message"] / rounds
    per_byte = (wall["long message"] - wall["short message"]) / rounds / _LONG
    here = replace(
        core, latency=latency, bandwidth=1 / max(per_byte, 1e-12), cores=os.cpu_count()
    )
    handling = replace(
        core,
        latency=used["short message"] / rounds,
        bandwidth=rounds
        * _LONG
        / max(used["long message"] - used["short message"], 1e-9),
    )
    rows: list[Row] = []
    for name in ("dense", *(f"{x:g}" for x in DENSITIES)):
        expected, busy = (
            dense_step_time(machine, count, SIZE)
            if name == "dense"
            else sparse(machine, count, SIZE, float(name))
            for machine in (here, handling)
        )
        rows.append(
            {
                "workers": count,
                "density": name,
                "predicted": expected.total,
                "measured": wall[name],
                "ratio": wall[name] / expected.total,
                "predicted of process": busy.total,
                "measured of process": used[name],
                "ratio of process": used[name] / busy.total,
                "latency": latency,
                "bandwidth": here.bandwidth,
            }
        )
    return rows


def sparse(machine: Machine, workers: int, size: int, density: float) -> Any:
    """Return the time of a step with Top-k, packed indices and float32 values."""
    entries = TopK(density=density).count(size)
    payload = Wire(kind="sparse", size=size).bytes(entries)
    return sparse_step_time(machine, workers, size, entries, payload)


def extrapolated(core: Machine) -> list[Row]:
    """Return step times of up to 1024 workers that share nothing but the network."""
    rows = []
    for name, (latency, bandwidth) in NETWORKS.items():
        machine = replace(
            core, latency=latency, bandwidth=bandwidth, gradient=_GRADIENT
        )
        for workers in (2**power for power in range(1, 11)):
            row = {"network": name, "workers": workers}
            row["dense"] = dense_step_time(machine, workers, _FUTURE_SIZE).total
            for density in DENSITIES:
                row[f"{density:g}"] = sparse(
                    machine, workers, _FUTURE_SIZE, density
                ).total
            rows.append(row)
    return rows


def draw(rows: list[Row]) -> None:
    """Draw the extrapolation."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9.0, 3.2), layout="constrained")
    panels = picture.subplots(1, len(NETWORKS), sharey=True)
    for panel, name in zip(panels, NETWORKS, strict=True):
        of_one = [row for row in rows if row["network"] == name]
        workers = [row["workers"] for row in of_one]
        for series in ("dense", *(f"{x:g}" for x in DENSITIES)):
            label = "dense" if series == "dense" else f"k/d = {series}"
            line = "k--" if series == "dense" else "o-"
            panel.loglog(
                workers, [row[series] for row in of_one], line, ms=3, label=label
            )
        panel.set_title(name)
        panel.set_xlabel("workers")
    panels[0].set_ylabel("seconds of a step")
    panels[0].legend(fontsize="small")
    FIGURE.parent.mkdir(exist_ok=True)
    picture.savefig(FIGURE, dpi=120)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{x:.3g}") if isinstance(x, float) else x for key, x in row.items()
    }


def main(quick: bool) -> None:
    """Measure, predict, compare and extrapolate."""
    torch.set_num_threads(1)
    repeats = 5 if quick else 20
    core = compute(repeats)
    rows: list[Row] = []
    for count in RANKS[:2] if quick else RANKS:
        rows += checked(core, count, on_ranks(count, repeats))
    constants = {key: value for key, value in asdict(core).items() if value}
    constants.pop("bandwidth")
    future = extrapolated(core)
    for kind in ("ratio", "ratio of process"):
        print(kind, statistics.median(row[kind] for row in rows))
    print(_short(constants))
    for row in (*rows, *future):
        print(_short(row))
    table = [{"constants": constants}, *rows, *future]
    print(harness.save("spars_scaling", table))
    draw(future)


if __name__ == "__main__":
    main("--quick" in sys.argv)
