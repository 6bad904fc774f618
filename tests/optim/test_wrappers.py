"""What the optimizers around a base share: groups and checkpoints of both."""

import copy

import pytest
import torch

import lowprec as lp
from lowprec.optim import BinaryConnect, ProxQuant, Skewed

BINARY = lp.Levels.binary()
WRAPPERS = {
    "binary_connect": lambda base: BinaryConnect(base, BINARY),
    "prox_quant": lambda base: ProxQuant(base, BINARY, lam=0.125),
    "skewed": lambda base: Skewed(base, BINARY, epsilon=0.25),
}
every = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def stepped(wrap, start=0.375):
    p = torch.nn.Parameter(torch.tensor([start, -start]))
    optimizer = wrap(torch.optim.SGD([p], lr=0.125, momentum=0.5))
    p.grad = torch.ones(2)
    optimizer.step()
    return p, optimizer


@every
def test_a_group_may_be_added_after_loading(wrap):
    p, optimizer = stepped(wrap)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    q = torch.nn.Parameter(torch.tensor([0.5]))
    optimizer.add_param_group({"params": [q], "lr": 0.25})
    for ours, its in zip(
        optimizer.param_groups, optimizer.base.param_groups, strict=True
    ):
        assert ours is its
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.25]
    p.grad, q.grad = torch.ones(2), -torch.ones(1)
    before = optimizer._unquantized(q).item()
    optimizer.step()
    assert optimizer._unquantized(q).item() > before


def more_groups(state):
    state["param_groups"] *= 2


def more_groups_of_the_base(state):
    state["base"]["param_groups"] *= 2


def more_params(state):
    state["param_groups"][0]["params"] = [0, 1]


def more_params_of_the_base(state):
    state["base"]["param_groups"][0]["params"] = [0, 1]


@every
@pytest.mark.parametrize(
    "spoil",
    [more_groups, more_groups_of_the_base, more_params, more_params_of_the_base],
)
def test_a_state_that_does_not_fit_changes_nothing(wrap, spoil):
    p, optimizer = stepped(wrap)
    twin_p, twin = copy.deepcopy((p, optimizer))
    _, other = stepped(wrap, start=0.75)
    other.param_groups[0]["lr"] = 0.5
    state = copy.deepcopy(other.state_dict())
    spoil(state)
    with pytest.raises(ValueError, match="loaded state dict"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0] is optimizer.base.param_groups[0]
    for weights, trained in ((p, optimizer), (twin_p, twin)):
        weights.grad = -torch.ones(2)
        trained.step()
    assert torch.equal(p, twin_p)
    assert torch.equal(optimizer._unquantized(p), twin._unquantized(twin_p))
    states = [x.base.state[w] for x, w in ((optimizer, p), (twin, twin_p))]
    assert torch.equal(*(state["momentum_buffer"] for state in states))
