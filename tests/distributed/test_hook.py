"""The hook of DDP equals the simulation bit for bit, on gloo processes."""

import math

import pytest
import torch
from gloo_ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from workers import flat, loss_of, model, server_of, server_step

import lowprec as lp
from lowprec.distributed import (
    Cast,
    CompressionState,
    RandomK,
    Sign,
    Threshold,
    TopK,
    TopKState,
    compression_hook,
    topk_hook,
)

STEPS = 5
OPTIONS = {
    "topk": (TopK(density=0.05), {}),
    "topk without feedback": (TopK(k=3), {"error_feedback": False}),
    "topk in bfloat16": (TopK(k=3, values="bfloat16"), {"indices": "int32"}),
    "randomk": (RandomK(k=4), {"seed": 5}),
    "threshold": (Threshold(relative=0.6), {"error_format": "bfloat16"}),
    "sign": (Sign(), {}),
    "cast": (Cast(lp.Rounding("e5m2", "stochastic")), {"seed": 6}),
}  # fmt: skip


def hooked(net, state):
    # Small enough for several buckets.
    ddp = DistributedDataParallel(net, bucket_cap_mb=0.004)
    ddp.register_comm_hook(state, compression_hook)
    return ddp


def trained(rank, compressor, options):
    """Weights and errors after some steps of DDP with the hook."""
    net = model()
    state = CompressionState(compressor, parameters=net.parameters(), **options)
    ddp = hooked(net, state)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(ddp, step, rank).backward()
        optimizer.step()
    return {
        "weights": flat(net.parameters()),
        "error": flat(state.error(p) for p in net.parameters()),
        "stats": vars(state.exchange.stats),
    }


def simulated(workers, compressor, options):
    """The same in one process, by the server."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    server = server_of(net, compressor, workers, **options)
    for step in range(STEPS):
        server_step(server, net, [step])
        optimizer.step()
    return flat(net.parameters()), server


def _check_of(compressor, options):
    return lambda rank: trained(rank, compressor, options)


def _buckets(rank):
    """Numbers of parameters in the buckets that the hook sees, step by step."""
    net = model()
    state = TopKState(k=2)
    seen = []

    def hook(state, bucket):
        if bucket.index() == 0:
            seen.append([])
        seen[-1].append(len(bucket.parameters()))
        return topk_hook(state, bucket)

    ddp = DistributedDataParallel(net, bucket_cap_mb=0.004)
    ddp.register_comm_hook(state, hook)
    for step in range(3):
        loss_of(ddp, step, rank).backward()
    return seen


def _accumulated(rank):
    net = model()
    state = TopKState(k=2)
    ddp = hooked(net, state)
    with ddp.no_sync():
        loss_of(ddp, 0, rank).backward()
    calls = 0 if state._exchange is None else state.exchange.stats.steps
    loss_of(ddp, 1, rank).backward()
    return {
        "calls": calls,
        "gradient": flat(p.grad for p in net.parameters()),
        "error": flat(state.error(p) for p in net.parameters()),
    }


def _skipped(rank, scaler_class):
    """An infinity on rank 1 at step 1, under a gradient scaler."""
    net = model()
    scaler = scaler_class()
    state = TopKState(k=2, loss_scale=scaler.get_scale)
    ddp = hooked(net, state)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    record = []
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(ddp, step, rank)
        if step == 1 and rank == 1:
            loss = loss * math.inf
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        error = flat(state.error(p) for p in net.parameters())
        record.append((scaler.get_scale(), flat(net.parameters()), error, state.step))
    return record


def _torch_scaler():
    return torch.amp.GradScaler("cpu", init_scale=16.0)


def _own_scaler():
    return lp.optim.LossScaler(16.0)


class Branching(nn.Module):
    """Two layers, of which the second is not always used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, both):
        return self.first(x) + (self.second(x) if both else 0)


def _unused(rank, scope):
    """Sums of what was sent and of this rank's gradients, and the error left."""
    net = Branching()
    state = TopKState(k=2, scope=scope, unused_parameters=True)
    ddp = DistributedDataParallel(net, find_unused_parameters=True)
    ddp.register_comm_hook(state, topk_hook)
    alone, sent, gradients = Branching(), 0, 0
    for step in range(4):
        x = torch.full((1, 4), float(step + rank + 1))
        for called in (ddp, alone):
            called.zero_grad()
            called(x, step % 2 == 0).sum().backward()
        weights = net.second.weight, alone.second.weight
        arrived, own = (
            torch.zeros(4, 4) if w.grad is None else w.grad for w in weights
        )
        sent, gradients = sent + arrived, gradients + own
    return sent, gradients, state.error(net.second.weight).clone()


def _clipped(rank):
    net = model()
    ddp = hooked(net, TopKState(density=0.1))
    loss_of(ddp, 0, rank).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.01)
    return flat(p.grad for p in net.parameters())


def _bucket_scope(rank):
    net = model()
    state = TopKState(k=7, scope="bucket")
    ddp = DistributedDataParallel(net)  # one bucket
    ddp.register_comm_hook(state, topk_hook)
    sent = []
    for step in range(2):
        ddp.zero_grad()
        loss_of(ddp, step, rank).backward()
        sent.append(flat(p.grad for p in net.parameters()))
    return {"sent": sent, "error": flat(state.error(p) for p in net.parameters())}


def _resumed(rank):
    """Weights after 4 steps, and after 2 steps, a checkpoint and 2 more."""
    ends = []
    for cuts in ([range(4)], [range(2), range(2, 4)]):
        net, saved = model(), None
        for steps in cuts:
            state = CompressionState(RandomK(k=3), parameters=net.parameters())
            if saved is not None:
                state.load_state_dict(saved)
            elif ends:
                state._seed = ends[0][1]
            ddp = hooked(net, state)
            for step in steps:
                ddp.zero_grad()
                loss_of(ddp, step, rank).backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.1 * p.grad
            saved = state.state_dict()
        ends.append((flat(net.parameters()), saved["seed"], saved["step"]))
    return ends


def _refused(rank):
    """What ranks with different options say."""
    net = model()
    ddp = hooked(net, TopKState(k=2 + rank))
    with pytest.raises((RuntimeError, ValueError)) as raised:
        loss_of(ddp, 0, rank).backward()
    return str(raised.value)


def _beyond_a_format(rank):
    """The gradient of rank 1 at step 1 is too large for the wire."""
    net = model()
    state = TopKState(k=2, values="e4m3fn")
    ddp = hooked(net, state)
    optimizer = lp.optim.AMSGrad(net.parameters(), lr=0.1, nonfinite="skip")
    texts = []
    for step in (0, 1, 3, 4):
        optimizer.zero_grad()
        loss = loss_of(ddp, step, rank)
        try:
            (1e9 * loss if (step, rank) == (1, 1) else loss).backward()
        except (RuntimeError, ValueError) as error:
            texts.append(str(error))
            continue
        optimizer.step()
    error = flat(state.error(p) for p in net.parameters())
    return flat(net.parameters()), error, texts


MORE = {
    "beyond a format": _beyond_a_format,
    "buckets": _buckets,
    "accumulated": _accumulated,
    "torch scaler": lambda rank: _skipped(rank, _torch_scaler),
    "own scaler": lambda rank: _skipped(rank, _own_scaler),
    "unused": lambda rank: _unused(rank, "tensor"),
    "unused in bucket": lambda rank: _unused(rank, "bucket"),
    "clipped": _clipped,
    "bucket scope": _bucket_scope,
    "resumed": _resumed,
    "refused": _refused,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Results of all checks on two ranks."""
    forms = {name: _check_of(*options) for name, options in OPTIONS.items()}
    return on_ranks(2, {**forms, **MORE}, tmp_path_factory.mktemp("two"))


def check_forms(name, results):
    weights, server = simulated(len(results), *OPTIONS[name])
    for rank, result in enumerate(results):
        assert torch.equal(result["weights"], weights)
        if server.error is not None:
            assert torch.equal(result["error"], server.error[rank])
    assert not torch.equal(weights, flat(model().parameters()))


@pytest.mark.parametrize("name", OPTIONS)
def test_hook_equals_simulation(name, two):
    check_forms(name, two[name])


@pytest.mark.parametrize("name", [n for n in OPTIONS if n != "threshold"])
def test_bytes_sent_are_those_of_the_accounts(name, two):
    _, server = simulated(2, *OPTIONS[name])
    for result in two[name]:
        stats = result["stats"]
        assert 2 * stats["sent_bits"] == server.stats.sent_bits
        assert stats["recv_bits"] == stats["sent_bits"]  # of one other rank
        assert 2 * stats["dense_bits"] == server.stats.dense_bits
        assert stats["steps"] == STEPS


def test_varying_payloads_cost_their_counts_and_padding(two):
    _, server = simulated(2, *OPTIONS["threshold"])
    for result in two["threshold"]:
        counts = STEPS * 6 * 32
        assert result["stats"]["sent_bits"] >= server.stats.sent_bits / 2 + counts


def test_errors_survive_when_buckets_are_rebuilt(two):
    for seen in two["buckets"]:
        assert len(seen) == 3
        assert seen[0] != seen[1]  # otherwise this test shows nothing
        assert all(sum(step) == 6 for step in seen)


def test_accumulated_gradients_are_sent_once(two):
    net = model()
    server = server_of(net, TopK(k=2), 2)
    server_step(server, net, range(2))
    mean = flat(p.grad for p in net.parameters())
    for rank, result in enumerate(two["accumulated"]):
        assert result["calls"] == 0
        assert torch.equal(result["gradient"], mean)
        assert torch.equal(result["error"], server.error[rank])


@pytest.mark.parametrize("name", ["torch scaler", "own scaler"])
def test_a_skipped_step_leaves_errors_on_all_ranks(name, two):
    ranks = two[name]
    for record in ranks:
        scales, weights, errors, steps = zip(*record, strict=True)
        assert scales[1] == scales[0] / 2
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(errors[0], errors[1])
        assert steps == (1, 1, 2, 3)
        assert not torch.equal(errors[1], errors[2])
        assert all(error.isfinite().all() for error in errors)
    for a, b in zip(*ranks, strict=True):
        assert torch.equal(a[1], b[1])


def test_errors_are_in_units_of_the_unscaled_gradient(two):
    # A power of two changes no bit: the scale 16, later 8, leaves no trace.
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    server = server_of(net, TopK(k=2), 2)
    for step in (0, 2, 3):
        server_step(server, net, [step])
        optimizer.step()
    for record in two["own scaler"]:
        assert torch.equal(record[-1][1], flat(net.parameters()))


def test_all_ranks_leave_out_a_step_that_one_cannot_send(two):
    net = model()
    optimizer = lp.optim.AMSGrad(net.parameters(), lr=0.1)
    server = server_of(net, TopK(k=2, values="e4m3fn"), 2)
    for step in (0, 3, 4):
        server_step(server, net, [step])
        optimizer.step()
    for rank, (weights, error, texts) in enumerate(two["beyond a format"]):
        assert torch.equal(weights, flat(net.parameters()))
        assert torch.equal(error, server.error[rank])
        assert len(texts) == rank
        assert all("float8_e4m3fn" in text or "e4m3fn" in text for text in texts)


@pytest.mark.parametrize("name", ["unused", "unused in bucket"])
def test_nothing_is_lost_where_ddp_drops_unused_parameters(name, two):
    # I1 in small integers, which are exact.
    ranks = two[name]
    owed = sum(gradients for _, gradients, _ in ranks) / 2
    left = sum(error for _, _, error in ranks) / 2
    assert left.count_nonzero() > 0
    for sent, _, _ in ranks:
        assert torch.equal(sent + left, owed)


def test_clipping_acts_on_the_mean_and_keeps_ranks_equal(two):
    first, second = two["clipped"]
    assert torch.equal(first, second)
    assert first.norm() == pytest.approx(0.01, rel=1e-4)


def test_scope_bucket_ranks_all_entries_of_the_bucket(two):
    for result in two["bucket scope"]:
        for sent in result["sent"]:
            assert 7 <= sent.count_nonzero() <= 14
        assert result["error"].count_nonzero() > 0


def test_a_checkpoint_continues_bit_for_bit(two):
    for whole, resumed in two["resumed"]:
        assert torch.equal(whole[0], resumed[0])
        assert whole[2] == resumed[2] == 4


def test_ranks_with_different_options_are_refused(two):
    for rank, text in enumerate(two["refused"]):
        assert "same options, but differ in compression" in text
        assert f"rank {rank} has TopK(k={2 + rank}) with error" in text


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [4, 8])
def test_hook_equals_simulation_on_more_ranks(ranks, tmp_path):
    forms = {name: _check_of(*options) for name, options in OPTIONS.items()}
    for name, results in on_ranks(ranks, forms, tmp_path).items():
        check_forms(name, results)


def test_refusals():
    with pytest.raises(ValueError, match="scope must be 'tensor' or 'bucket'"):
        TopKState(k=1, scope="global")
    with pytest.raises(ValueError, match="give parameters=model"):
        CompressionState(RandomK(k=1))
    with pytest.raises(ValueError, match="checkpoints go by positions"):
        TopKState(k=1).state_dict()
    with pytest.raises(ValueError, match="leave one of the two out"):
        TopKState(k=1, error_feedback=False, error_format="bfloat16")
    with pytest.raises(TypeError, match="which calls it with a GradBucket, got Tensor"):
        topk_hook(TopKState(k=1), torch.ones(3))
    with pytest.raises(ValueError, match="exactly one of k"):
        TopKState()
    state = TopKState(k=1, parameters=[torch.ones(2, requires_grad=True)])
    with pytest.raises(ValueError, match="error of 3 entries for parameter 0"):
        state.load_state_dict({"error": {0: torch.ones(3)}, "step": 1, "seed": None})
