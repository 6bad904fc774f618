"""RoundoffMonitor at its limits: killed runs, odd gradients, algorithms, refusals."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from measure.small_training import batches, loss_of, network

from lowprec.measure import Ledger, RoundoffMonitor

ENDLESS = """
import itertools, sys, torch
from lowprec.measure import Ledger, RoundoffMonitor
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.Adam(model.parameters())
monitor = RoundoffMonitor(model, optimizer, ledger=Ledger(sys.argv[1]))
for step in itertools.count():
    optimizer.zero_grad()
    monitor.backward(lambda m, cast: m(cast(torch.ones(4, 3))).square().sum())
    optimizer.step()
    print(step, flush=True)
"""


def test_a_killed_run_leaves_every_step_it_finished(tmp_path):
    path = tmp_path / "run.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, os.fspath(path)], stdout=subprocess.PIPE
    )
    finished = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = Ledger.load(path)["step"]
    assert steps.tolist() == list(range(len(steps)))
    assert len(steps) > finished[-1]


def test_a_step_whose_record_cannot_be_written_is_counted(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer, ledger=Ledger(tmp_path))
    ((x, y),) = batches(1)
    for _ in range(2):
        optimizer.zero_grad()
        monitor.backward(loss_of(x, y))
        with pytest.raises(IsADirectoryError):
            optimizer.step()
    monitor.ledger = Ledger()
    optimizer.zero_grad()
    monitor.backward(loss_of(x, y))
    optimizer.step()
    assert monitor.ledger[0]["step"] == 2
    assert monitor.ledger[0]["relative_gradient_error"] < 1e-5


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.SparseAdam])
def test_sparse_gradients_are_compared_with_their_zeros(kind):
    model = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = kind(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    rows = torch.tensor([1, 1, 2])
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(2):
            monitor.backward(lambda m, cast: m(rows).pow(3).sum())
        optimizer.step()
    assert 0 < monitor.ledger["relative_gradient_error"].max() < 1e-6
    assert monitor.ledger["relative_update_error"].max() < 1e-5
    assert monitor.ledger["underflow"].max() == 0


def test_errors_of_a_small_float32_reference_do_not_vanish():
    model = torch.nn.Linear(6, 3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer, reference=torch.float32)
    x = torch.randn(4, 6)
    monitor.backward(lambda m, cast: m(cast(x)).sum() * 1e-25)
    optimizer.step()
    expected = model.weight.grad.double().norm().item()
    assert monitor.ledger[0]["gradient_norm"] == pytest.approx(expected, 1e-6, abs=0)


def test_the_exact_step_of_adafactor_has_the_epsilon_of_the_dtype():
    """Gradients near eps: that of float64 would make the step another one."""
    p = torch.nn.Parameter(torch.randn(4, 4))
    model = torch.nn.ParameterList([p])
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    monitor = RoundoffMonitor(model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        monitor.backward(lambda m, cast: 1e-8 * m[0].square().sum())
        optimizer.step()
    assert monitor.ledger["relative_update_error"].max() < 1e-4


def test_algorithms_that_check_shapes_are_monitored():
    model = torch.nn.Linear(6, 3, bias=False)
    optimizer = torch.optim.Muon(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    ((x, y),) = batches(1)
    monitor.backward(loss_of(x, y))
    optimizer.step()
    assert monitor.ledger["relative_update_error"].max() < 1e-4


def test_closures_of_the_optimizer_may_call_the_monitor():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    for x, y in batches(3):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            return monitor.backward(loss_of(x, y))

        optimizer.step(closure)
    assert len(monitor.ledger) == 3
    assert monitor.ledger["relative_gradient_error"].max() < 1e-5
    assert monitor.ledger["relative_update_error"].max() < 1e-4


def test_a_model_without_trainable_parameters_has_no_errors():
    model = network().requires_grad_(False)
    prompt = torch.nn.Parameter(torch.zeros(6))
    optimizer = torch.optim.SGD([prompt], lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    ((x, y),) = batches(1)
    monitor.backward(lambda m, cast: loss_of(cast(prompt) + cast(x), y)(m, cast))
    optimizer.step()
    assert monitor.ledger[0]["r_norm"] == 0.0
    assert monitor.ledger[0]["update_norm"] > 0.0


def test_what_cannot_be_monitored_is_refused():
    weights = [torch.nn.Parameter(torch.ones(2))]
    with pytest.raises(TypeError, match="LBFGS evaluates its closure several times"):
        RoundoffMonitor(torch.nn.ParameterList(weights), torch.optim.LBFGS(weights))

    class Odd(torch.optim.SGD):
        def __init__(self, params, secret):
            super().__init__(params, lr=0.1)

    model = network()
    with pytest.raises(TypeError, match="cannot make a second Odd from its defaults"):
        RoundoffMonitor(model, Odd(model.parameters(), 1))
    for every in (0, 1.5):
        with pytest.raises(ValueError, match=f"a whole number >= 1, got {every}"):
            RoundoffMonitor(model, torch.optim.SGD(model.parameters()), every=every)
