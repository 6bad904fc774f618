"""Server simulation, all-gather and DDP hook train alike, bit for bit (check D8)."""

from functools import partial

import pytest
import torch
from gloo_ranks import on_ranks
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from workers import flat, loss_of, model, server_of, server_step

import lowprec as lp
from lowprec.distributed import (
    Cast,
    CompressionState,
    Exchange,
    RandomK,
    Sign,
    Threshold,
    TopK,
    compression_hook,
)
from lowprec.optim import AMSGrad, SparsAMS

STEPS = 4
STOCHASTIC = lp.Rounding("bfloat16", "stochastic")
# Compressor; options of the compression; options of AMSGrad.
CASES = {
    "topk": (TopK(density=0.02), {}, {"weight_decay": 0.01}),
    "topk without feedback": (TopK(k=3), {"error_feedback": False}, {}),
    "topk in e5m2": (TopK(k=3, values="e5m2"), {"error_format": "bfloat16"}, {}),
    "randomk, low": (RandomK(k=4), {}, {"param_format": STOCHASTIC}),
    "threshold": (Threshold(relative=0.6), {}, {"exp_avg_sq_format": "bfloat16"}),
    "sign": (Sign(), {}, {"betas": (0.8, 0.99)}),
    "cast": (Cast(lp.Rounding("e4m3fn", "stochastic"), scaled=True), {}, {}),
}


SEED = 11


def seeded(optimizer, seed):
    """The optimizer, with this seed if it needs one."""
    for group in optimizer.param_groups:
        if group["rounding_seed"] is not None:
            group["rounding_seed"] = seed
    return optimizer


def by_server(workers, compressor, options, amsgrad, scope):
    net = model()
    rest = {key: value for key, value in amsgrad.items() if key != "weight_decay"}
    decay = amsgrad.get("weight_decay", 0)
    optimizer = seeded(AMSGrad(net.parameters(), lr=0.01, **rest), SEED)
    server = server_of(net, compressor, workers, seed=SEED, **options)
    if scope == "global":
        server.sizes = [sum(server.sizes)]
    for step in range(STEPS):
        server_step(server, net, [step], decay)
        optimizer.step()
    return flat(net.parameters()), server


def by_gathering(rank, compressor, options, amsgrad, scope):
    net = model()
    exchange = Exchange(distributed.group.WORLD)
    optimizer = SparsAMS(
        net.parameters(),
        lr=0.01,
        compressor=compressor,
        scope=scope,
        process_group=exchange,
        **options,
        **amsgrad,
    )
    seeded(optimizer, SEED + rank)  # the seed of rank 0 counts
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(net, step, rank).backward()
        optimizer.step()
    states = [optimizer.state[p] for p in net.parameters()]
    errors = flat(state["error"] for state in states) if "error" in states[0] else None
    return flat(net.parameters()), errors, vars(exchange.stats)


def by_hook(rank, compressor, options, amsgrad):
    net = model()
    state = CompressionState(
        compressor, parameters=net.parameters(), seed=SEED + rank, **options
    )
    ddp = DistributedDataParallel(net, bucket_cap_mb=0.004)
    ddp.register_comm_hook(state, compression_hook)
    optimizer = seeded(AMSGrad(net.parameters(), lr=0.01, **amsgrad), SEED)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(ddp, step, rank).backward()
        optimizer.step()
    errors = flat(state.error(p) for p in net.parameters())
    return flat(net.parameters()), errors, vars(state.exchange.stats)


def by_gathering_beyond(rank, compression, gradient, scale, nonfinite):
    """Weights, errors and what is raised, if rank 1 cannot take its gradient once."""
    w = torch.nn.Parameter(torch.zeros(2))
    optimizer = SparsAMS(
        [w], nonfinite=nonfinite, process_group=distributed.group.WORLD, **compression
    )
    texts = []
    for step in range(4):
        w.grad = scale * torch.tensor([1.0 + step, 0.5])
        if (step, rank) == (1, 1):
            w.grad = torch.tensor(gradient)
        try:
            optimizer.step()
        except ValueError as error:
            texts.append(str(error))
    if nonfinite == "skip":  # ranks compare groups again
        v = torch.nn.Parameter(torch.full((1,), float(rank)))
        optimizer.add_param_group({"params": [v]})
        try:
            optimizer.step()
        except ValueError as error:
            texts.append(str(error))
    state = optimizer.state[w]
    return w.detach().clone(), state["error"], state["step"].item(), texts


# What rank 1 cannot take: options, its gradient, and the scale of all other gradients.
BEYOND = {
    "the wire": ({"compressor": TopK(k=1, values="e4m3fn")}, [1e4, 0.0], 1.0),
    "the errors": ({"k": 1, "error_format": "e4m3fn"}, [1e4, 1e3], 1.0),
    "the carrier": ({"k": 1}, [0.0, 3.4e38], 3e37),
}


def checks_beyond():
    """Functions of the rank by (format, nonfinite)."""
    return {
        (name, nonfinite): partial(
            by_gathering_beyond,
            compression=options,
            gradient=gradient,
            scale=scale,
            nonfinite=nonfinite,
        )
        for name, (options, gradient, scale) in BEYOND.items()
        for nonfinite in ("raise", "skip")
    }


def checks():
    """Functions of the rank by (form, case)."""
    found = {}
    for name, case in CASES.items():
        for scope in ("tensor", "global"):
            found[scope, name] = partial(by_gathering, **named(case), scope=scope)
        if "weight_decay" not in case[2]:  # which the hook knows nothing of
            found["hook", name] = partial(by_hook, **named(case))
    return found


def named(case):
    return dict(zip(("compressor", "options", "amsgrad"), case, strict=True))


def check_against_the_server(form, name, ranks):
    scope = "global" if form == "global" else "tensor"
    weights, server = by_server(len(ranks), *CASES[name], scope)
    for rank, (found, errors, stats) in enumerate(ranks):
        assert torch.equal(found, weights)
        if server.error is not None:
            assert torch.equal(errors, server.error[rank])
        assert stats["steps"] == STEPS
        assert len(ranks) * stats["dense_bits"] == server.stats.dense_bits
        if "threshold" not in name:
            assert len(ranks) * stats["sent_bits"] == server.stats.sent_bits
        assert stats["recv_bits"] == (len(ranks) - 1) * stats["sent_bits"]
    assert not torch.equal(weights, flat(model().parameters()))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    both = {**checks(), **checks_beyond()}
    return on_ranks(2, both, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize(("form", "name"), checks())
def test_forms_equal_the_server_on_two_ranks(form, name, two):
    check_against_the_server(form, name, two[form, name])


@pytest.mark.parametrize(("name", "nonfinite"), checks_beyond())
def test_all_ranks_leave_out_a_step_that_one_cannot_take(name, nonfinite, two):
    options, _, scale = BEYOND[name]
    w = torch.nn.Parameter(torch.zeros(2))
    alone = SparsAMS([w], **options)  # all ranks have its gradients
    for step in (0, 2, 3):
        w.grad = scale * torch.tensor([1.0 + step, 0.5])
        alone.step()
    for rank, (weights, error, steps, texts) in enumerate(two[name, nonfinite]):
        assert steps == 3
        assert torch.equal(weights, w)
        assert torch.equal(error, alone.state[w]["error"])
        if nonfinite == "skip":
            assert "differ in shapes of parameters" not in texts[-1]
            assert "differ in initial weights" in texts.pop()
        raises = nonfinite == "raise" or (rank == 1 and name != "the carrier")
        assert len(texts) == raises


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 8])
def test_forms_equal_the_server_on_more_ranks(count, tmp_path):
    for (form, name), ranks in on_ranks(count, checks(), tmp_path).items():
        check_against_the_server(form, name, ranks)
