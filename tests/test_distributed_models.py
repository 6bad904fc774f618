"""Two gloo processes: ranks stay bit-equal, gradients are the mean of the ranks'."""

import math
import os

import pytest
import torch
import torch.multiprocessing as multiprocessing
from model_zoo import CASES
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import lowprec as lp

RANKS = 2
LOW = lp.Precision(
    input="e4m3fn", weight="e4m3fn", grad_output="e5m2", output="bfloat16",
    accumulator="e8m9",
)  # fmt: skip
STOCHASTIC = lp.Rounding("bfloat16", "stochastic")


def on_ranks(work, folder, *arguments):
    """Return what ``work(rank, *arguments)`` returns in forked processes."""
    multiprocessing.start_processes(
        _enter, (work, str(folder), arguments), nprocs=RANKS, start_method="fork"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def _enter(rank, work, folder, arguments):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(os.path.join(folder, "store"), RANKS),
        rank=rank,
        world_size=RANKS,
    )
    torch.save(work(rank, *arguments), os.path.join(folder, f"{rank}.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def backward(case, model, rank, front_end):
    """One backward pass over the rank's own batch."""
    if front_end == "emulate":
        with lp.emulate(LOW):
            loss = case.loss(model, case.batch(rank))
    else:
        loss = case.loss(model, case.batch(rank))
    loss.backward()


def prepared(case, front_end):
    model = case.build(3)
    return lp.nn.convert_(model, LOW) if front_end == "convert" else model


def _one_pass(rank, case, front_end):
    torch.manual_seed(9)
    model = prepared(case, front_end)
    ddp = DistributedDataParallel(model)
    backward(case, ddp, rank, front_end)
    return gradients(model)


@pytest.mark.parametrize("front_end", ["convert", "emulate"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_are_the_mean_of_the_ranks(case, front_end, tmp_path):
    first, second = on_ranks(_one_pass, tmp_path, case, front_end)
    alone = []
    for rank in range(RANKS):
        torch.manual_seed(9)
        model = prepared(case, front_end)
        backward(case, model, rank, front_end)
        alone.append(gradients(model))
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name])
        # DDP halves each, which is exact, and adds.
        assert torch.equal(gradient, alone[0][name] / 2 + alone[1][name] / 2)
    assert any(not torch.equal(alone[0][name], alone[1][name]) for name in first)


def _training(rank, case):
    torch.manual_seed(4)
    model = lp.nn.convert_(case.build(rank), LOW)  # DDP sends rank 0's weights
    ddp = DistributedDataParallel(model)
    optimizer = lp.optim.AdamW(
        model.parameters(), lr=0.01, param_format=STOCHASTIC, exp_avg_format="bfloat16"
    )
    for step in range(4):
        optimizer.zero_grad()
        case.loss(ddp, case.batch(10 * step + rank)).backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_with_stochastic_weights_keeps_ranks_bit_equal(case, tmp_path):
    first, second = on_ranks(_training, tmp_path, case)
    parameters = dict(case.build(0).named_parameters())
    for name in parameters:
        value = first["model"][name]
        assert torch.equal(value, second["model"][name])
        assert torch.equal(value, lp.round(value, "bfloat16"))
        assert not torch.equal(value, parameters[name])
    assert first["optimizer"]["param_groups"] == second["optimizer"]["param_groups"]
    for index, state in first["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, second["optimizer"]["state"][index][key])


def _overflow(rank):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ddp = DistributedDataParallel(model)
    optimizer = lp.optim.SGD(model.parameters(), lr=0.1)
    scaler = lp.optim.LossScaler(16.0, growth_interval=2)
    stepped, scales = [], []
    for step in range(4):
        optimizer.zero_grad()
        x = torch.ones(2, 3) * (math.inf if rank == 1 and step == 1 else 1.0)
        scaler.scale(ddp(x).sum()).backward()
        stepped.append(scaler.step(optimizer))
        scaler.update()
        scales.append(scaler.get_scale())
    return {"stepped": stepped, "scales": scales, "weight": model.weight.detach()}


def test_an_overflow_on_one_rank_skips_the_step_on_all(tmp_path):
    first, second = on_ranks(_overflow, tmp_path)
    assert first["stepped"] == second["stepped"] == [True, False, True, True]
    assert first["scales"] == second["scales"] == [16.0, 8.0, 8.0, 16.0]
    assert torch.equal(first["weight"], second["weight"])
