"""The step-time model against a simulation of the ring, message by message."""

import math
from dataclasses import replace

import pytest

from lowprec.distributed import (
    Machine,
    Wire,
    dense_step_time,
    sparse_step_time,
)
from lowprec.theory import spars_ams

NETWORK = Machine(latency=3e-5, bandwidth=2e8)


def ring(workers, rounds, block):
    """Seconds until all have what they need: each forwards what came last.

    A worker sends its block of a round when it has that of the round before, and its
    link is free.
    """
    ready = [0.0] * workers
    for _ in range(rounds):
        sent = [time + NETWORK.latency + block / NETWORK.bandwidth for time in ready]
        ready = [max(ready[i], sent[i - 1]) for i in range(workers)]
    return max(ready)


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 100])
def test_communication_is_that_of_a_ring(workers):
    size, entries, block = 10**6, 10**4, 57_000
    sparse = sparse_step_time(NETWORK, workers, size, entries, block)
    assert sparse.total == sparse.communication
    assert sparse.communication == pytest.approx(ring(workers, workers - 1, block))
    # Reduce-scatter and all-gather, each of n - 1 rounds of d/n elements.
    dense = dense_step_time(NETWORK, workers, size)
    parts = ring(workers, 2 * (workers - 1), 4 * size / workers)
    assert dense.communication == pytest.approx(parts)


@pytest.mark.parametrize("workers", [3, 20, 1000])
def test_break_even_is_that_of_the_theory(workers):
    # Without latencies: k/d = 2 b / (n (b_val + b_idx)), 5 % for 20 workers.
    size = 10**6
    network = replace(NETWORK, latency=0.0)
    dense = dense_step_time(network, workers, size).total
    wire = Wire(kind="sparse", size=size, indices="int32")
    density = spars_ams.break_even_density(workers, value_bits=32, bits_of_index=32)
    for factor, cheaper in ((0.999, True), (1.001, False)):
        entries = round(factor * density * size)
        payload = wire.bytes(entries)
        sparse = sparse_step_time(network, workers, size, entries, payload).total
        assert (sparse < dense) is cheaper


def test_compute_counts_for_every_payload_and_shared_core():
    machine = Machine(
        latency=0, bandwidth=math.inf, gradient=1.0, compression=2e-6, decoding=3e-4,
        message=0.5, update=4e-6, cores=2,
    )  # fmt: skip
    for workers, stretch in ((1, 1), (2, 1), (8, 4)):
        found = sparse_step_time(machine, workers, 10**6, 10**4, 1e5)
        assert found.gradient == stretch
        assert found.compression == pytest.approx(2 * stretch)
        assert found.decoding == pytest.approx(stretch * workers * 3.5)
        assert found.update == pytest.approx(4 * stretch)
        assert found.communication == 0
        assert found.total == pytest.approx(sum(found))
        dense = dense_step_time(machine, workers, 10**6)
        assert (dense.compression, dense.decoding) == (0, 0)


def test_refusals():
    with pytest.raises(ValueError, match="latency must be a number of seconds"):
        Machine(latency=-1, bandwidth=1)
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        Machine(latency=0, bandwidth=0)
    with pytest.raises(ValueError, match="cores must be 1 or more or None"):
        Machine(latency=0, bandwidth=1, cores=0)
    with pytest.raises(ValueError, match="workers and size must be 1 or more"):
        dense_step_time(NETWORK, 0, 10)
    with pytest.raises(ValueError, match="entries must be from 0 to 10"):
        sparse_step_time(NETWORK, 2, 10, 11, 8)
