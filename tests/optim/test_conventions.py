"""What every optimizer owes torch: checkpoints, closures, hooks, schedulers, copies."""

import copy
import io
import pickle

import pytest
import torch

import lowprec as lp

STOCHASTIC = lp.Rounding("bfloat16", "stochastic", random_bits=10, variant="C")


def sgd(params):
    return lp.optim.SGD(
        params, lr=0.05, momentum=0.9, weight_decay=0.01,
        param_format=STOCHASTIC, momentum_format="e5m2",
    )  # fmt: skip


def normalized(params):
    return lp.optim.NormalizedSGD(
        params, lr=0.05, param_format=STOCHASTIC, update="two_step",
        direction_format=lp.Rounding("bfloat16", "stochastic"),
        projection=lp.optim.Ball(3.0),
    )  # fmt: skip


def adam(params):
    return lp.optim.Adam(
        params, lr=0.05, weight_decay=0.01, amsgrad=True, param_format=STOCHASTIC,
        exp_avg_format="e5m2", exp_avg_sq_format=STOCHASTIC,
    )  # fmt: skip


def adamw(params):
    return lp.optim.AdamW(params, lr=0.05, param_format=STOCHASTIC, update="kahan")


def askew(params):
    return lp.optim.ASkewSGD(
        params, lr=0.05, levels=lp.Levels.int_bits(2), momentum=0.9, epsilon=0.1,
        scale="absmax", param_format=STOCHASTIC, update="kahan",
    )  # fmt: skip


def amsgrad(params):
    return lp.optim.AMSGrad(
        params, lr=0.05, weight_decay=0.01, param_format=STOCHASTIC,
        exp_avg_format="e5m2", exp_avg_sq_format=STOCHASTIC, update="kahan",
    )  # fmt: skip


def spars_ams(params):
    return lp.optim.SparsAMS(
        params, lr=0.05, k=9, weight_decay=0.01, param_format=STOCHASTIC,
        error_format=STOCHASTIC, exp_avg_sq_format=STOCHASTIC,
    )  # fmt: skip


def spars_ams_of_random_entries(params):
    compressor = lp.distributed.RandomK(density=0.3)
    return lp.optim.SparsAMS(
        params, lr=0.05, compressor=compressor, scope="tensor",
        decoupled_weight_decay=True, weight_decay=0.01, param_format=STOCHASTIC,
    )  # fmt: skip


OPTIMIZERS = [
    sgd, normalized, adam, adamw, askew,
    amsgrad, spars_ams, spars_ams_of_random_entries,
]  # fmt: skip
every = pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda f: f.__name__)


def problem():
    torch.manual_seed(5)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )
    return model, torch.randn(16, 4), torch.randn(16, 1)


def run(model, x, y, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@every
def test_resuming_from_a_weights_only_checkpoint_is_bit_exact(make):
    model, x, y = problem()
    optimizer = make(model.parameters())
    run(model, x, y, optimizer, 4)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    run(model, x, y, optimizer, 5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(999)
    resumed, _, _ = problem()
    resumed.load_state_dict(saved["model"])
    torch.manual_seed(1234)
    other = make(resumed.parameters())
    other.load_state_dict(saved["optimizer"])
    assert other.param_groups[0]["param_format"] == STOCHASTIC
    run(resumed, x, y, other, 5)
    assert torch.equal(weights(model), weights(resumed))


@every
def test_manual_seed_reproduces_a_run_and_other_seeds_differ(make):
    results = []
    for seed in (1, 1, 2):
        model, x, y = problem()
        torch.manual_seed(seed)
        run(model, x, y, make(model.parameters()), 3)
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@every
def test_copies_and_pickles_continue_alike(make):
    model, x, y = problem()
    optimizer = make(model.parameters())
    run(model, x, y, optimizer, 2)
    twins = [
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ]
    run(model, x, y, optimizer, 3)
    for other_model, other in twins:
        run(other_model, x, y, other, 3)
        assert torch.equal(weights(model), weights(other_model))


@every
def test_closures_hooks_and_schedulers(make):
    model, x, y = problem()
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    events = []
    optimizer.register_step_pre_hook(lambda *_: events.append("pre"))
    optimizer.register_step_post_hook(lambda *_: events.append("post"))

    def closure():
        events.append("closure")
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    start = weights(model)
    loss = optimizer.step(closure)
    scheduler.step()
    assert loss.requires_grad
    assert events == ["pre", "closure", "post"]
    assert optimizer.effective_lr == [lp.optim.rounded_step_size(0.025, STOCHASTIC)]
    assert not torch.equal(start, weights(model))


@every
def test_stored_values_are_values_of_the_format(make):
    model, x, y = problem()
    run(model, x, y, make(model.parameters()), 3)
    assert torch.equal(weights(model), lp.round(weights(model), "bfloat16"))


@every
def test_groups_added_later_share_the_seed_and_step(make):
    model, x, y = problem()
    optimizer = make(model[0].parameters())
    run(model, x, y, optimizer, 2)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.5})
    run(model, x, y, optimizer, 1)
    first, second = optimizer.param_groups
    assert first["rounding_seed"] == second["rounding_seed"] is not None
    assert first["rounding_step"] == second["rounding_step"] == 3


def test_a_checkpoint_of_torch_sgd_loads():
    model, x, y = problem()
    theirs = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run(model, x, y, theirs, 2)
    ours = lp.optim.SGD(model.parameters(), lr=0.3, param_format="bfloat16")
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 0.1
    assert ours.param_groups[0]["param_format"] == lp.Rounding("bfloat16")
    run(model, x, y, ours, 2)
    assert torch.equal(weights(model), lp.round(weights(model), "bfloat16"))


def test_nothing_but_the_step_moves_parameters():
    model, _, _ = problem()
    before = weights(model)
    for make in OPTIMIZERS:
        make(model.parameters())
    assert torch.equal(before, weights(model))
