"""A rank dies or hangs: the others say so, and a restart continues bit for bit."""

import os
import signal
import tempfile
import time
from datetime import timedelta

import pytest
import torch
import torch.multiprocessing as multiprocessing
from gloo_ranks import on_ranks
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from workers import flat, loss_of, model, server_of, server_step

from lowprec.distributed import Checkpoints, CompressionState, RandomK, compression_hook
from lowprec.optim import AMSGrad, SparsAMS

RANKS = 3
STEPS, SAVED_EVERY, DEATH = 7, 2, 5
SEED = 4
PATIENCE = 60  # seconds until a test is given up


class Gathering:
    """Training by SparsAMS with a process group."""

    def __init__(self):
        self.net = self.called = model()
        self.optimizer = SparsAMS(
            self.net.parameters(),
            lr=0.01,
            compressor=RandomK(k=4),
            scope="tensor",
            process_group=distributed.group.WORLD,
        )
        self.optimizer.param_groups[0]["rounding_seed"] = SEED
        self.parts = {"model": self.net, "optimizer": self.optimizer}


class Hooked:
    """Training by AMSGrad behind the hook of DDP."""

    def __init__(self):
        self.net = model()
        state = CompressionState(
            RandomK(k=4), parameters=self.net.parameters(), seed=SEED
        )
        self.called = DistributedDataParallel(self.net, bucket_cap_mb=0.004)
        self.called.register_comm_hook(state, compression_hook)
        self.optimizer = AMSGrad(self.net.parameters(), lr=0.01)
        self.parts = {"model": self.net, "optimizer": self.optimizer, "hook": state}


def _train(rank, folder, attempt, form, failure, timeout):
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / f"store-{attempt}"), RANKS)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=RANKS, timeout=timeout
    )
    text = None
    try:
        training = form()
        checkpoints = Checkpoints(folder / "checkpoints")
        start, saved = checkpoints.last() or (0, {})
        for name, state in saved.items():
            training.parts[name].load_state_dict(state)
        for step in range(start, STEPS):
            training.optimizer.zero_grad()
            loss = loss_of(training.called, step, rank)
            if failure is not None and step == DEATH and rank == 1:
                failure()
            loss.backward()
            training.optimizer.step()
            if (step + 1) % SAVED_EVERY == 0:
                states = {name: x.state_dict() for name, x in training.parts.items()}
                checkpoints.save(step + 1, states)
        result = {"start": start, "weights": flat(training.net.parameters())}
    except RuntimeError as error:
        text = str(error)
        result = {"error": text}
    torch.save(result, folder / f"{attempt}-{rank}.pt")
    if text is None:
        distributed.barrier()
    os._exit(0)  # a group with a dead rank cannot be destroyed


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def hangs():
    time.sleep(PATIENCE)


def started(folder, attempt, form, failure=None, timeout=timedelta(seconds=30)):
    """Results of the ranks that have one."""
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(
            target=_train, args=(rank, folder, attempt, form, failure, timeout)
        )
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    for rank in (0, 2, 1):
        if failure is hangs and rank == 1:
            processes[rank].kill()
        processes[rank].join(PATIENCE)
        assert processes[rank].exitcode is not None
    paths = [folder / f"{attempt}-{rank}.pt" for rank in range(RANKS)]
    return [torch.load(path) if path.exists() else None for path in paths]


def _kept(rank):
    """What a folder holds and answers; what is said of a step before its last."""
    with tempfile.TemporaryDirectory() as own:
        shared = [own]
        distributed.broadcast_object_list(shared)
        checkpoints = Checkpoints(shared[0])
        for step in (100, 200, 300):
            checkpoints.save(step, {"step": step, "rank": rank})
        with pytest.raises(ValueError, match=r"steps \[300\], later than step 210"):
            checkpoints.save(210, {})
        found = sorted(path.name for path in checkpoints.folder.iterdir())
        distributed.barrier()
        # As a kill in the middle of writing the mark leaves a step.
        if rank == 0:
            step = checkpoints.folder / "step-400"
            step.mkdir()
            (step / "complete.part").touch()
        distributed.barrier()
        answer = found, checkpoints.last()
        distributed.barrier()
    return answer


def test_a_folder_keeps_its_last_steps_and_refuses_earlier_ones(tmp_path):
    for rank, (found, last) in enumerate(
        on_ranks(2, {"kept": _kept}, tmp_path)["kept"]
    ):
        assert found == ["step-200", "step-300"]
        assert last == (300, {"step": 300, "rank": rank})


def undisturbed():
    net = model()
    optimizer = AMSGrad(net.parameters(), lr=0.01)
    server = server_of(net, RandomK(k=4), RANKS, seed=SEED)
    for step in range(STEPS):
        server_step(server, net, [step])
        optimizer.step()
    return flat(net.parameters())


@pytest.mark.parametrize(
    "form", [Gathering, pytest.param(Hooked, marks=pytest.mark.slow)]
)
def test_a_killed_rank_ends_the_others_and_a_restart_continues(form, tmp_path):
    first, killed, third = started(tmp_path, 1, form, dies)
    assert killed is None
    for rank, result in ((0, first), (2, third)):
        assert f"rank {rank} of 3: the exchange of gradients failed" in result["error"]
        assert "start again from the last checkpoint" in result["error"]
    for result in started(tmp_path, 2, form):
        assert result["start"] == DEATH // SAVED_EVERY * SAVED_EVERY
        assert torch.equal(result["weights"], undisturbed())


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_after_the_time_out(tmp_path):
    timeout = timedelta(seconds=4)
    first, hung, third = started(tmp_path, 1, Gathering, hangs, timeout)
    assert hung is None
    for result in (first, third):
        assert "Another rank died or hangs" in result["error"]
