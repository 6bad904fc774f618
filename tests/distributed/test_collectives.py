"""Ranks agree, exchange, refuse and share out errors; two gloo processes."""

import math

import pytest
import torch
from gloo_ranks import on_ranks
from torch import distributed, nn
from workers import flat, loss_of, model

import lowprec as lp
from lowprec.distributed import (
    Checkpoints,
    Communicator,
    Exchange,
    Sign,
    Threshold,
    TopK,
    Wire,
    WorkerSimulation,
    mean_in_order,
    redistributed,
)
from lowprec.optim import AMSGrad, SparsAMS


def _vector(rank, size=2410):
    return torch.randn(size, generator=torch.Generator().manual_seed(rank))


def _means(rank):
    """The mean and the accounts of one payload, for several compressors."""
    found = []
    for compressor, options in (
        (TopK(k=24), {"indices": "int32"}),
        (TopK(k=24, values="bfloat16"), {}),
        (Sign(), {}),
        (Threshold(relative=0.8), {"varying": True}),
        (Threshold(absolute=1e9), {"varying": True}),  # nothing at all
    ):
        exchange = Exchange(**options)
        mean = exchange.mean(compressor.compress(_vector(rank)))
        refused = exchange.mean(compressor.compress(_vector(rank)), finite=rank == 0)
        found.append((mean, refused, vars(exchange.stats)))
    return found


def _agreement(rank):
    communicator = Communicator()
    communicator.agree({"a": "1", "b": "2"})
    texts = []
    for facts in ({"a": "1", "b": str(rank)}, {"a": "1"} if rank else {"c": "1"}):
        with pytest.raises(ValueError, match="the ranks") as raised:
            communicator.agree(facts)
        texts.append(str(raised.value))
    return texts, vars(communicator.stats)


def _different_models(rank):
    """What SparsAMS says if ranks differ in shapes, weights, or options."""
    texts = []
    for sizes, seed, lr in (
        ((3, 3 + rank), 0, 0.1),
        ((3, 3), rank, 0.1),
        ((3, 3), 0, rank),
    ):
        torch.manual_seed(seed)
        net = nn.Linear(*sizes)
        optimizer = SparsAMS(
            net.parameters(), lr=lr, k=1, process_group=distributed.group.WORLD
        )
        before = flat(net.parameters())
        with pytest.raises(ValueError, match="must train one model") as raised:
            optimizer.step()
        assert torch.equal(before, flat(net.parameters()))
        texts.append(str(raised.value))
    return texts


def _nonfinite(rank, action):
    """An infinity on rank 1 at step 1: weights and states after each step."""
    net = model()
    optimizer = SparsAMS(
        net.parameters(),
        lr=0.01,
        density=0.02,
        nonfinite=action,
        process_group=distributed.group.WORLD,
    )
    record = []
    for step in range(3):
        optimizer.zero_grad()
        loss = loss_of(net, step, rank)
        (loss * math.inf if step == rank == 1 else loss).backward()
        try:
            optimizer.step()
        except ValueError as error:
            record.append(str(error))
            continue
        states = [optimizer.state[p] for p in net.parameters()]
        values = [value for state in states for value in state.values()]
        record.append(torch.cat([flat(net.parameters()), flat(values)]))
    return record


def _scaled(rank, scaler):
    """Training under a gradient scaler, with an infinity on rank 1 at step 1."""
    net = model()
    optimizer = SparsAMS(
        net.parameters(), lr=0.01, density=0.02, process_group=distributed.group.WORLD
    )
    scales = []
    for step in range(3):
        optimizer.zero_grad()
        loss = loss_of(net, step, rank)
        scaler.scale(loss * math.inf if step == rank == 1 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return flat(net.parameters()), scales


def _torch_scaler(rank):
    # GradScaler itself decides on each rank alone.
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return _scaled(rank, ShardedGradScaler("cpu", init_scale=16.0))


def _own_scaler(rank):
    return _scaled(rank, lp.optim.LossScaler(16.0))


def _clipped(rank):
    """Each rank clips its own gradient, before its error joins."""
    net = model()
    optimizer = SparsAMS(
        net.parameters(), lr=0.01, density=0.02, process_group=distributed.group.WORLD
    )
    for step in range(2):
        optimizer.zero_grad()
        for part in (0, 1):  # accumulated
            loss_of(net, 2 * step + part, rank).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        optimizer.step()
    return flat(net.parameters())


def _without_gradient(rank):
    """One parameter has a gradient on rank 1 only."""
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = SparsAMS(
        [first, second], lr=0.1, k=4, process_group=distributed.group.WORLD
    )
    loss = first.sum() + (second.sum() if rank == 1 else 0.0)
    loss.backward()
    optimizer.step()
    return first.detach(), second.detach(), optimizer.state[second]["exp_avg"]


def _saved(rank):
    """A checkpoint of two steps, and what the last one is."""
    folder = f"{_folder[0]}/checkpoints"
    checkpoints = Checkpoints(folder)
    assert checkpoints.last() is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"error": torch.tensor([float(step + rank)])})
    kept = checkpoints._complete()
    return kept, checkpoints.last()


def _sharded(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    p = nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Shard(0)]))
    with pytest.raises(NotImplementedError, match="DTensor") as raised:
        SparsAMS([p], k=1)
    return str(raised.value)


_folder = []
CHECKS = {
    "means": _means,
    "agreement": _agreement,
    "different models": _different_models,
    "skip": lambda rank: _nonfinite(rank, "skip"),
    "raise": lambda rank: _nonfinite(rank, "raise"),
    "torch scaler": _torch_scaler,
    "own scaler": _own_scaler,
    "clipped": _clipped,
    "without gradient": _without_gradient,
    "saved": _saved,
    "sharded": _sharded,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    _folder[:] = [folder]
    return on_ranks(2, CHECKS, folder)


def test_means_are_those_in_rank_order(two):
    vectors = [_vector(rank) for rank in range(2)]
    compressors = (
        TopK(k=24), TopK(k=24, values="bfloat16"), Sign(), Threshold(relative=0.8),
        Threshold(absolute=1e9),
    )  # fmt: skip
    for index, compressor in enumerate(compressors):
        payloads = [compressor.compress(vector) for vector in vectors]
        dense = (payloads[0].dense() + payloads[1].dense()) / 2
        assert torch.equal(mean_in_order(payloads), dense)
        for found in two["means"]:
            assert torch.equal(found[index][0], dense)


def test_all_ranks_learn_that_one_is_not_finite(two):
    for found in two["means"]:
        assert [refused for _, refused, _ in found] == [None] * 5


def test_bytes_of_the_specification(two):
    # D9, two messages each; the dense uplink of 2410 float32 numbers is 9640 bytes.
    for found in two["means"]:
        stats = [stats for _, _, stats in found]
        for one, sent in zip(stats, (192, 84, math.ceil(2410 / 8) + 4), strict=False):
            assert one["sent_bits"] == one["recv_bits"] == 2 * 8 * sent
            assert one["dense_bits"] == 2 * 8 * 9640
            assert one["steps"] == 2
        assert stats[4]["sent_bits"] == 2 * 32  # of nothing, its number


def test_varying_payloads_are_padded_to_the_longest(two):
    payloads = [Threshold(relative=0.8).compress(_vector(rank)) for rank in range(2)]
    counts = [payload.values.numel() for payload in payloads]
    assert counts[0] != counts[1]
    longest = max(Wire.of(payloads[0]).bytes(count) for count in counts)
    for found in two["means"]:
        # A number of entries each time, and one message that was not refused.
        assert found[3][2]["sent_bits"] == 8 * longest + 2 * 32


def test_disagreement_is_named_on_all_ranks(two):
    for rank, (texts, stats) in enumerate(two["agreement"]):
        assert f"differ in b (rank {rank} has {rank}, rank {1 - rank}" in texts[0]
        assert "call different things" in texts[1]
        assert stats["sent_bits"] == 0  # the accounts are those of training


def test_ranks_with_different_models_are_refused(two):
    for texts in two["different models"]:
        for text, what in zip(
            texts, ("shapes of parameters", "initial weights", "options"), strict=True
        ):
            assert what in text


def test_a_gradient_that_is_not_finite_stops_all_ranks_alike(two):
    for record in two["skip"]:
        assert torch.equal(record[0], record[1])
        assert not torch.equal(record[1], record[2])
        assert record[2].isfinite().all()
    for skipped, raised in zip(two["skip"], two["raise"], strict=True):
        assert "nothing was changed" in raised[1]
        assert torch.equal(raised[2], skipped[2])


@pytest.mark.parametrize("name", ["torch scaler", "own scaler"])
def test_scalers_skip_on_all_ranks(name, two):
    for rank, (weights, scales) in enumerate(two[name]):
        assert scales == [16.0, 8.0, 8.0]
        # A power of two changes no bit.
        skipped = two["skip"][rank][2][: len(weights)]
        assert torch.equal(weights, skipped)


def test_accumulated_gradients_are_clipped_on_each_rank(two):
    net = model()
    optimizer = AMSGrad(net.parameters(), lr=0.01)
    server = WorkerSimulation(TopK(density=0.02), 2)
    for step in range(2):
        gradients = []
        for rank in range(2):
            net.zero_grad()
            for part in (0, 1):
                loss_of(net, 2 * step + part, rank).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            gradients.append(flat(p.grad for p in net.parameters()))
        mean = server.mean(torch.stack(gradients))
        parts = mean.split([p.numel() for p in net.parameters()])
        for p, part in zip(net.parameters(), parts, strict=True):
            p.grad = part.view_as(p)
        optimizer.step()
    for weights in two["clipped"]:
        assert torch.equal(weights, flat(net.parameters()))


def test_a_missing_gradient_counts_as_zeros(two):
    for first, second, moment in two["without gradient"]:
        assert (first < 0).all()
        assert torch.equal(moment, torch.full((2,), 0.1).mul(0.5))  # half of rank 1's
        assert (second < 0).all()


def test_checkpoints_keep_the_last_complete_steps(two):
    for rank, (kept, (step, state)) in enumerate(two["saved"]):
        assert kept == [2, 3]
        assert step == 3
        assert state["error"].item() == 3 + rank


def test_sharded_parameters_are_refused(two):
    for text in two["sharded"]:
        assert "keep whole replicas" in text


def test_checkpoints_of_another_number_of_ranks(two, tmp_path):
    results = on_ranks(
        1,
        {
            rule: lambda _, rule=rule: Checkpoints(f"{_folder[0]}/checkpoints").last(
                rule
            )
            for rule in ("mean", "drop")
        },
        tmp_path,
    )
    assert results["mean"] == [(3, {"error": torch.tensor([3.5])})]
    assert results["drop"] == [(3, {"error": torch.tensor([0.0])})]


@pytest.mark.parametrize("ranks", [2, 5])
def test_redistributed_errors_keep_the_sum_of_the_gradients(ranks):
    # I1 across a change from 3 workers to another number; exact in small integers.
    generator = torch.Generator().manual_seed(0)
    sent = owed = torch.zeros(8, dtype=torch.float64)
    server, saved = None, None
    for workers in (3, ranks):
        server = WorkerSimulation(TopK(k=2), workers)
        if saved is not None:
            errors = [{"error": row} for row in saved]
            row = redistributed(errors)["error"]
            server.error = row.expand(workers, -1).clone()
            assert (row == saved.mean(0)).all()
        for _ in range(5):
            g = torch.randint(-8, 9, (workers, 8), generator=generator) * 60.0
            owed = owed + g.double().mean(0)
            sent = sent + server.mean(g.double())
        saved = server.error
    torch.testing.assert_close(sent + saved.mean(0), owed, rtol=0, atol=1e-10)


def test_redistribution_reaches_all_errors_and_nothing_else():
    states = [
        {
            "optimizer": {"state": {0: {"error": torch.tensor([x]), "step": 4}}},
            "hook": {"error": {1: torch.tensor([3 * x])}, "seed": None},
        }
        for x in (1.0, 4.0)
    ]
    found = redistributed(states)
    assert found["optimizer"]["state"][0] == {"error": torch.tensor([2.5]), "step": 4}
    assert found["hook"] == {"error": {1: torch.tensor([7.5])}, "seed": None}
    assert redistributed(states, "drop")["hook"]["error"][1].item() == 0


def test_refusals_without_processes():
    with pytest.raises(RuntimeError, match="no process group"):
        Exchange()
    with pytest.raises(ValueError, match="rule must be 'mean'"):
        redistributed([{}], "sum")
    with pytest.raises(ValueError, match="no states"):
        redistributed([])
    with pytest.raises(ValueError, match="workers must be 1 or more"):
        WorkerSimulation(TopK(k=1), 0)
    server = WorkerSimulation(TopK(k=1), 2, sizes=[3])
    with pytest.raises(ValueError, match=r"n=2 workers, got shape \(3, 3\)"):
        server.mean(torch.ones(3, 3))
    with pytest.raises(ValueError, match="4 entries, sizes"):
        server.mean(torch.ones(2, 4))
    assert server.mean(torch.full((2, 3), math.nan)) is None
    assert server.step == 0
    error = torch.arange(9.0).view(3, 3)
    with pytest.raises(ValueError, match="errors of 3 workers, there are 2") as raised:
        server.load_state_dict({"error": error, "step": 1, "seed": None})
    advice = eval(str(raised.value).rpartition("errors, ")[2], {"error": error})
    server.load_state_dict({"error": advice, "step": 1, "seed": None})
    assert server.error.tolist() == [[3.0, 4.0, 5.0]] * 2


def test_a_simulation_continues_bit_for_bit():
    gradients = [torch.randn(3, 40) for _ in range(6)]
    rounding = lp.Rounding("e5m2", "stochastic")
    options = {"error_format": rounding, "seed": 3}
    whole, part = (WorkerSimulation(TopK(k=4), 3, **options) for _ in range(2))
    ends = [whole.mean(g) for g in gradients][3:]
    for g in gradients[:3]:
        part.mean(g)
    resumed = WorkerSimulation(TopK(k=4), 3, error_format=rounding)
    resumed.load_state_dict(part.state_dict())
    assert all(
        torch.equal(resumed.mean(g), end)
        for g, end in zip(gradients[3:], ends, strict=True)
    )
