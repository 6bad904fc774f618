"""ProxQuant: proximal maps against brute force, steps against their definition."""

import io
import math

import pytest
import torch

import lowprec as lp
from lowprec.optim import Annealing, LinearLambda, ProxQuant, nearest, proximal_map

BINARY, INT2 = lp.Levels.binary(), lp.Levels.int_bits(2)
PROXES = ["l1", "sq", "l2"]


def regularizer(x, levels, prox):
    rest = x - nearest(x, levels)
    return {
        "l1": rest.abs(),
        "sq": rest.square() / 2,
        "l2": rest.abs(),  # of one coordinate
    }[prox]


@pytest.mark.parametrize("prox", PROXES)
@pytest.mark.parametrize("lam", [0.0, 0.1, 0.7, 3.0])
@pytest.mark.parametrize("levels", [BINARY, INT2, lp.Levels([0.1, 2.0])], ids=str)
def test_it_minimizes_over_a_grid(levels, lam, prox):
    grid = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    grid = torch.cat([grid, torch.tensor(levels.values, dtype=torch.float64)])
    for w in torch.linspace(-3, 3, 61, dtype=torch.float64):

        def objective(x, w=w):
            return (x - w).square() / 2 + lam * regularizer(x, levels, prox)

        x = proximal_map(w.reshape(1), levels, lam, prox)
        assert objective(x).item() <= objective(grid).min().item() + 1e-6


def test_the_norm_of_l2_runs_over_the_tensor():
    w = torch.tensor([1.3, -1.4], dtype=torch.float64)
    x = proximal_map(w, BINARY, 0.25, "l2")
    # The residual (0.3, -0.4) has length 0.5, half of which is left.
    torch.testing.assert_close(x, torch.tensor([1.15, -1.2], dtype=torch.float64))
    assert torch.equal(proximal_map(w, BINARY, 0.6, "l2"), nearest(w, BINARY))


@pytest.mark.parametrize("prox", PROXES)
def test_zero_strength_gives_weights_back(prox):
    w = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(proximal_map(w, INT2, 0.0, prox), w)


@pytest.mark.parametrize("lam", [-0.1, math.nan, math.inf])
def test_negative_strengths_are_refused(lam):
    with pytest.raises(ValueError, match="lam"):
        proximal_map(torch.ones(1), BINARY, lam)
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="lam"):
        ProxQuant(torch.optim.SGD([p], 0.1), BINARY, lam=lam)
    optimizer = ProxQuant(torch.optim.SGD([p], 0.1), BINARY)
    with pytest.raises(ValueError, match="schedule"):
        Annealing(optimizer, "lam", lambda t: lam)
    optimizer.param_groups[0]["lam"] = lam
    p.grad = torch.ones(1)
    with pytest.raises(ValueError, match="lam"):
        optimizer.step()
    assert p.item() == 1.0


def problem():
    torch.manual_seed(5)
    model = torch.nn.Linear(4, 3)
    return model, torch.randn(16, 4), torch.randn(16, 3)


def run(model, x, y, optimizer, steps, annealing=None):
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        if annealing:
            annealing.step()


def groups(model):
    return [{"params": [model.weight]}, {"params": [model.bias], "levels": None}]


@pytest.mark.parametrize("prox", PROXES)
@pytest.mark.parametrize("scale_by_lr", [False, True])
def test_a_step_is_the_base_and_the_map(prox, scale_by_lr):
    model, x, y = problem()
    other, _, _ = problem()
    optimizer = ProxQuant(
        torch.optim.SGD(groups(model), 0.5), INT2, prox, 0.1,
        scale=0.25, scale_by_lr=scale_by_lr,
    )  # fmt: skip
    run(model, x, y, optimizer, 1)
    run(other, x, y, torch.optim.SGD(other.parameters(), 0.5), 1)
    lam = 0.05 if scale_by_lr else 0.1
    expected = proximal_map(other.weight / 0.25, INT2, lam, prox) * 0.25
    assert torch.equal(model.weight, expected)
    assert torch.equal(model.bias, other.bias)


def test_it_is_the_base_before_the_start():
    model, x, y = problem()
    other, _, _ = problem()
    optimizer = ProxQuant(torch.optim.Adam(groups(model), 0.05), BINARY)
    annealing = Annealing(optimizer, "lam", LinearLambda(0.1, start=3))
    run(model, x, y, optimizer, 4, annealing)
    base = torch.optim.Adam(other.parameters(), 0.05)
    run(other, x, y, base, 4)
    assert torch.equal(model.weight, other.weight)
    run(model, x, y, optimizer, 1, annealing)
    run(other, x, y, base, 1)
    assert not torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_it_ends_at_the_levels_and_resumes():
    def make(model):
        base = lp.optim.SGD(
            groups(model), 0.05, momentum=0.5,
            param_format=lp.Rounding("bfloat16", "stochastic"),
        )  # fmt: skip
        optimizer = ProxQuant(base, BINARY, clip=True)
        return optimizer, Annealing(optimizer, "lam", LinearLambda(0.01))

    model, x, y = problem()
    optimizer, annealing = make(model)
    run(model, x, y, optimizer, 5, annealing)
    file = io.BytesIO()
    parts = (model, optimizer, annealing)
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, _, _ = problem()
    twins = (other, *make(other))
    for part, state in zip(twins, saved, strict=True):
        part.load_state_dict(state)
    assert torch.equal(model.weight, lp.round(model.weight, "bfloat16"))
    run(model, x, y, optimizer, 5, annealing)
    run(other, x, y, twins[1], 5, twins[2])
    assert torch.equal(model.weight, other.weight)
    run(model, x, y, optimizer, 100, annealing)
    assert optimizer.distance() == (0.0, 0.0)
    assert model.weight.abs().max() == 1


def test_gradients_that_are_not_finite_change_nothing():
    model, x, y = problem()
    optimizer = ProxQuant(torch.optim.SGD(groups(model), 0.1), BINARY, lam=0.1)
    run(model, x, y, optimizer, 1)
    before = model.weight.detach().clone()
    model.bias.grad[0] = math.nan
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        optimizer.step()
    assert torch.equal(before, model.weight)


@pytest.mark.parametrize("fmt", [None, "bfloat16"])
def test_frozen_weights_stay_at_levels_while_others_go_on(fmt):
    model, x, y = problem()
    base = lp.optim.SGD(groups(model), 0.05, momentum=0.9, param_format=fmt)
    optimizer = ProxQuant(base, INT2, lam=0.01, scale=0.25, freeze_at=3)
    run(model, x, y, optimizer, 2)
    assert optimizer.distance()[0] > 0
    run(model, x, y, optimizer, 1)
    frozen, bias = model.weight.detach().clone(), model.bias.detach().clone()
    assert torch.equal(frozen, lp.optim.nearest(frozen / 0.25, INT2) * 0.25)
    run(model, x, y, optimizer, 3)
    assert model.weight.grad is not None
    assert torch.equal(model.weight, frozen)
    assert not torch.equal(model.bias, bias)
    with pytest.raises(ValueError, match="freeze_at"):
        ProxQuant(torch.optim.SGD(model.parameters(), 0.1), INT2, freeze_at=0)


def test_freezing_resumes():
    model, x, y = problem()
    optimizer = ProxQuant(torch.optim.SGD(groups(model), 0.05), BINARY, freeze_at=2)
    run(model, x, y, optimizer, 2)
    twin = ProxQuant(torch.optim.SGD(groups(model), 0.05), BINARY, freeze_at=2)
    twin.load_state_dict(optimizer.state_dict())
    before = model.weight.detach().clone()
    run(model, x, y, twin, 2)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("freeze_at", [1, 2])
def test_frozen_weights_keep_their_scale(freeze_at):
    model, x, y = problem()
    base = torch.optim.SGD(groups(model), 0.05)
    optimizer = ProxQuant(base, INT2, scale="mean_abs", freeze_at=freeze_at)
    run(model, x, y, optimizer, 1)
    optimizer.update_scales_()
    run(model, x, y, optimizer, 2)
    frozen = model.weight.detach().clone()
    assert optimizer.distance() == (0.0, 0.0)
    optimizer.update_scales_()
    assert optimizer.distance() == (0.0, 0.0)
    with optimizer.quantized():
        assert torch.equal(model.weight, frozen)


@pytest.mark.parametrize("freeze_at", [2.5, True, "3"])
def test_steps_are_counted_by_integers(freeze_at):
    model, x, y = problem()
    with pytest.raises(TypeError, match="freeze_at must be a number of steps"):
        ProxQuant(torch.optim.SGD(groups(model), 0.1), INT2, freeze_at=freeze_at)
    optimizer = ProxQuant(torch.optim.SGD(groups(model), 0.1), INT2)
    optimizer.param_groups[0]["freeze_at"] = freeze_at
    before = model.weight.detach().clone()
    with pytest.raises(TypeError, match="freeze_at must be a number of steps"):
        run(model, x, y, optimizer, 1)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("resumes", [False, True])
def test_a_group_that_freezes_late_freezes_at_its_levels(resumes):
    model, x, y = problem()
    optimizer = ProxQuant(torch.optim.SGD(groups(model), 0.05), INT2, scale=0.25)
    run(model, x, y, optimizer, 5)
    optimizer.param_groups[0]["freeze_at"] = 3
    if resumes:
        state = optimizer.state_dict()
        optimizer = ProxQuant(torch.optim.SGD(groups(model), 0.05), INT2, scale=0.25)
        optimizer.load_state_dict(state)
    latest = model.weight.detach().clone()
    for steps in (1, 3):
        run(model, x, y, optimizer, steps)
        assert torch.equal(model.weight, nearest(latest / 0.25, INT2) * 0.25)
    optimizer.param_groups[0]["freeze_at"] = None
    run(model, x, y, optimizer, 1)
    assert optimizer.distance()[0] > 0
    latest = model.weight.detach().clone()
    optimizer.param_groups[0]["freeze_at"] = 3
    run(model, x, y, optimizer, 1)
    assert torch.equal(model.weight, nearest(latest / 0.25, INT2) * 0.25)


def test_a_strength_that_is_no_number_is_refused():
    p = torch.nn.Parameter(torch.ones(1))
    for call in (
        lambda: proximal_map(torch.ones(1), BINARY, "x"),
        lambda: ProxQuant(torch.optim.SGD([p], 0.1), BINARY, lam="x"),
        lambda: LinearLambda("x"),
        lambda: LinearLambda(0.1, start="x"),
    ):
        with pytest.raises(TypeError, match="must be a number, got 'x'"):
            call()


@pytest.mark.parametrize("start", [-1.0, math.nan])
def test_starts_are_times_from_zero(start):
    with pytest.raises(ValueError, match="start must not be negative"):
        LinearLambda(0.1, start)
    assert math.isnan(LinearLambda(0.1)(math.nan))
