"""Several checks in one start of gloo processes, which costs seconds."""

import os
import traceback
from datetime import timedelta

import torch
import torch.multiprocessing as multiprocessing
from torch import distributed

TIMEOUT = timedelta(seconds=30)


def on_ranks(count, checks, folder):
    """Return what each check returns on each rank.

    Args:
        count: number of forked processes.
        checks: functions of the rank by name, run one after the other on all ranks.
        folder: for the results.

    Returns:
        By name, a list over the ranks. A check that fails on any rank raises here.
    """
    multiprocessing.start_processes(
        _enter, (count, checks, str(folder)), nprocs=count, start_method="fork"
    )
    results = [torch.load(folder / f"{rank}.pt") for rank in range(count)]
    for name in checks:
        for rank, result in enumerate(results):
            if f"{name} failed" in result:
                raise AssertionError(f"rank {rank}: {result[f'{name} failed']}")
    return {name: [result[name] for result in results] for name in checks}


def _enter(rank, count, checks, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(os.path.join(folder, "store"), count),
        rank=rank,
        world_size=count,
        timeout=TIMEOUT,
    )
    results = {}
    for name, check in checks.items():
        try:
            results[name] = check(rank)
        except Exception:
            results[f"{name} failed"] = traceback.format_exc()
        distributed.barrier()
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()
