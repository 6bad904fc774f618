"""The loop of the quantization experiments: schedules, kills, losses that are lost."""

import json
import math

import pytest
import torch
from torch import nn

from lowprec import Levels
from lowprec.experiments import qat_results
from lowprec.experiments.qat_methods import (
    Askew,
    Binary,
    FullPrecision,
    Proximal,
    Schedule,
    Setting,
)
from lowprec.experiments.qat_training import Task, train
from lowprec.experiments.resumable import Parts
from lowprec.optim import ASkewSGD, LinearLambda, Skewed

METHODS = {
    "full-precision": FullPrecision(lr=0.1),
    "binary-connect": Binary(lr=0.1),
    "proxquant": Proximal(lr=0.1, strength=LinearLambda(0.05, start=2)),
    "askew": Askew(lr=0.1, remoteness="quartic_ext", start=2, clip=1.0),
}
STEPS = 5


def lines(poison=None):
    """Return a task of two linear fits; ``poison`` is a step with a loss of NaN."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Module()
    model.weight = nn.Parameter(0.5 * torch.randn(2, 3, generator=generator))
    model.shift = nn.Parameter(torch.zeros(2, 1))
    x = torch.randn(STEPS, 4, 3, generator=generator)
    y = x @ torch.tensor([1.0, -1.0, 1.0])
    calls = iter(range(1000))

    def losses(model, x, y):
        each = (x @ model.weight.unsqueeze(2)).squeeze(2) + model.shift - y
        factor = math.nan if next(calls) == poison else 1.0
        return each.square().mean(dim=1) * torch.tensor([1.0, factor])

    def evaluate(model):
        each = (x.flatten(0, 1) @ model.weight.T + model.shift.T).T - y.flatten()
        return {"loss": each.square().mean(dim=1), "accuracy": model.shift[:, 0] * 0}

    return Task(
        models=2,
        model=model,
        weights=[model.weight],
        others=[model.shift],
        batches=lambda epoch: zip(x.roll(epoch, 0), y.roll(epoch, 0), strict=True),
        losses=losses,
        evaluate=evaluate,
        probe=lambda model: {"weight": model.weight.clone()},
    )


def scheduled(epochs, steps=STEPS, **options):
    options.setdefault("published_steps_per_epoch", steps)
    return Schedule(epochs=epochs, steps_per_epoch=steps, **options)


def trained(part, method, *, base="sgd", poison=None, advance=lambda: None, epochs=4):
    schedule = scheduled(epochs, published_epochs=4, halvings=(1, 3))
    setting = Setting(
        levels=Levels.binary(),
        base=base,
        scale="mean_abs" if base == "sgd" else None,
        schedule=schedule,
    )
    return train(lambda: lines(poison), method, setting, part, advance=advance)


def flat(result):
    """Return all tensors and numbers of a result, in order."""
    if isinstance(result, dict):
        return [leaf for key in sorted(result) for leaf in flat(result[key])]
    if isinstance(result, list):
        return [leaf for item in result for leaf in flat(item)]
    return [torch.as_tensor(result)]


@pytest.mark.parametrize("base", ["sgd", "adam"])
@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, name, base):
    whole = trained(Parts(tmp_path / "a").part("x", {}), METHODS[name], base=base)
    part, calls = Parts(tmp_path / "b").part("x", {}), []

    def killed():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(part, METHODS[name], base=base, advance=killed)
    assert part.state()["epoch"] == 2
    again = trained(part, METHODS[name], base=base, advance=lambda: calls.append(1))
    assert len(calls) == 2 + 4
    for first, second in zip(flat(whole), flat(again), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(
        again["probe"]["quantized"]["weight"].abs().amax(),
        again["probe"]["quantized"]["weight"].abs().amin(),
    )


def test_a_loss_that_is_lost_is_reported_and_stops_only_its_model(tmp_path):
    parts = Parts(tmp_path)
    method = METHODS["full-precision"]
    sound = trained(parts.part("sound", {}), method, base="adam")
    result = trained(parts.part("lost", {}), method, base="adam", poison=7)
    assert result["diverged"].tolist() == [-1, 7]
    for metric, values in result["curves"].items():
        assert torch.equal(values[:, 0], sound["curves"][metric][:, 0])
        assert torch.equal(values[0], sound["curves"][metric][0])
        assert values[1:, 1].isnan().all()
    row = qat_results.Row({"method": "fp"}, result)
    assert "diverged: fp, seed 1: the loss is not finite at step 7" in (
        qat_results.table([row])
    )
    assert "nan" in qat_results.table([row])
    [plain] = json.loads(json.dumps(qat_results.summary([row]), allow_nan=False))[
        "rows"
    ]
    assert plain["loss"]["mean"] is None
    assert plain["loss"]["values"][0] is not None
    assert plain["diverged_at_step"] == {"1": 7}


def test_a_run_of_lost_models_ends(tmp_path):
    method = FullPrecision(lr=1e30)
    result = trained(Parts(tmp_path).part("x", {}), method)
    assert (result["diverged"] >= 0).all()
    assert all(v[-1].isnan().all() for v in result["curves"].values())


def test_a_shorter_run_passes_through_the_same_schedule():
    long, short = (
        scheduled(epochs, published_epochs=50, halvings=(7, 15)) for epochs in (50, 10)
    )
    for time in (0, 6.9, 7, 14.5, 15, 49):
        assert long.factor(time) == short.factor(time / 5)
    assert [long.factor(time) for time in (6.9, 7, 15)] == [1, 0.5, 0.25]


def pulls(epochs, method, key):
    """Return what a method's annealed value was at the end of each epoch."""
    schedule = scheduled(epochs, 10, published_epochs=20)
    setting = Setting(levels=Levels.int_bits(2), schedule=schedule)
    optimizer, annealing = method.build([nn.Parameter(torch.ones(2))], [], setting)
    values = []
    for _ in range(epochs):
        for _ in range(10):
            annealing.step()
        values.append(optimizer.param_groups[0][key])
    return optimizer, values


def test_what_draws_to_the_levels_sums_to_the_same_in_a_shorter_run():
    method = Proximal(lr=0.1, strength=LinearLambda(0.5, start=4))
    _, long = pulls(20, method, "lam")
    _, short = pulls(5, method, "lam")
    assert short == [4 * lam for lam in long[3::4]]
    method = Askew(lr=0.1, remoteness="quadratic", start=4, alpha=0.25)
    optimizer, long = pulls(20, method, "epsilon")
    assert isinstance(optimizer, ASkewSGD)
    assert long[2] == 1.01 * 0.25  # above the maximum for a gap of 1
    assert long[3] == 0.25
    assert long[-1] == pytest.approx(0.25 * 0.88**16)
    optimizer, short = pulls(5, method, "epsilon")
    assert short == pytest.approx(long[3::4])
    assert optimizer.param_groups[0]["alpha"] == 1.0
    few = scheduled(5, 10, published_epochs=20, published_steps_per_epoch=1000)
    assert (few.stretch, few.pull) == (4, 400)


def test_weights_change_sides_before_the_annealing():
    method = Askew(lr=0.5, remoteness="quartic_ext", start=2)
    setting = Setting(levels=Levels.binary(), schedule=scheduled(4, published_epochs=4))
    weight = nn.Parameter(torch.tensor([1e-4]))
    optimizer, annealing = method.build([weight], [], setting)
    weight.grad = torch.tensor([1e-3])
    optimizer.step()
    assert weight.item() == pytest.approx(-4e-4)
    for _ in range(2 * STEPS + 1):
        annealing.step()
    weight.grad = torch.tensor([-1e-3])
    optimizer.step()
    assert weight.item() < -4e-4


def test_adam_is_skewed_by_a_wrapper():
    schedule = scheduled(5, published_epochs=20)
    setting = Setting(levels=Levels.binary(), base="adam", schedule=schedule)
    method = Askew(lr=0.1, remoteness="quadratic", alpha=0.2, mode="displacement")
    optimizer, _ = method.build([nn.Parameter(torch.ones(2))], [], setting)
    assert optimizer.param_groups[0]["alpha"] == 0.2
    assert isinstance(optimizer, Skewed)
    assert optimizer.param_groups[0]["mode"] == "displacement"


def test_the_end_is_always_evaluated(tmp_path):
    def evaluated(epochs, every):
        schedule = scheduled(epochs, published_epochs=9, evaluate_every=every)
        return schedule.evaluations

    assert evaluated(3, 1) == [1, 2, 3]
    assert evaluated(10, 5) == [5, 10]
    assert evaluated(11, 5) == [5, 10, 11]
    assert evaluated(2, 5) == [2]
    result = trained(Parts(tmp_path).part("x", {}), METHODS["askew"], epochs=3)
    assert result["epochs"] == [1, 2, 3]
    assert result["curves"]["loss"].shape == (3, 2)


def test_a_schedule_has_an_epoch():
    with pytest.raises(ValueError, match="epochs must be 1 or more, got 0"):
        scheduled(0, published_epochs=5)
