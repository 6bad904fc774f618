"""s_k of the optimizers whose weights have levels: zero exactly without a format."""

import pytest
import torch

import lowprec as lp
from lowprec.optim import SGD, ASkewSGD, BinaryConnect, ProxQuant, Skewed

LEVELS = lp.Levels.binary()


def groups(model):
    return [{"params": [model.weight]}, {"params": [model.bias], "levels": None}]


OPTIMIZERS = {
    "askew": lambda g, f: ASkewSGD(g, 0.05, LEVELS, epsilon=0.1, param_format=f),
    "prox": lambda g, f: ProxQuant(SGD(g, 0.05, param_format=f), LEVELS, lam=0.01),
    "skewed": lambda g, f: Skewed(
        SGD(g, 0.05, param_format=f), LEVELS, "displacement", epsilon=0.1
    ),
    "binary": lambda g, f: BinaryConnect(
        SGD(g, 0.05, param_format=f), LEVELS, "stochastic"
    ),
}


def measured(name, fmt):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).double()
    x, y = torch.randn(16, 4).double(), torch.randn(16, 3).double()
    optimizer = OPTIMIZERS[name](groups(model), fmt)
    monitor = lp.measure.RoundoffMonitor(model, optimizer, reference=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        monitor.backward(
            lambda m, cast: torch.nn.functional.mse_loss(m(cast(x)), cast(y))
        )
        optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return [record["s_norm"] for record in monitor.ledger], weights


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rounding_of_the_update_is_measured(name):
    exact, _ = measured(name, None)
    assert exact == [0.0] * 3
    rounded, weights = measured(name, "bfloat16")
    assert torch.equal(weights, lp.round(weights, "bfloat16"))
    # Half a unit in the last place of weights below 1, and of the rounded ones before.
    assert all(0 < s < 0.05 for s in rounded)


def test_measuring_leaves_the_run_as_it_is():
    _, watched = measured("binary", "bfloat16")
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).double()
    x, y = torch.randn(16, 4).double(), torch.randn(16, 3).double()
    optimizer = OPTIMIZERS["binary"](groups(model), "bfloat16")
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    alone = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(watched, alone)
