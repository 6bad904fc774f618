"""Rounding in the covariance of SGD: D11 to D13, biases, floors, and resuming."""

import json
import math

import pytest
import torch

import lowprec as lp
from lowprec.cli import main
from lowprec.experiments import clt_rounding
from lowprec.experiments.clt_rounding import CaseResult, CurveResult, RoundingConfig
from lowprec.experiments.clt_rounding_cases import CASES, CURVES, grid, setting
from lowprec.measure import ReplicaRunner
from lowprec.schedules import Iteration, PowerSchedule
from lowprec.theory import stationary

LINEAR = [case for case in CASES if case.linear]
QUICK = [case for case in LINEAR if case.places[-1] < 2000]


@pytest.mark.parametrize("spacing", [4.0, 1.0, 0.5, 2**-7])
def test_grids_have_their_spacing(spacing):
    values = lp.round(torch.tensor([0.3, 1.7, -2.6]).double() * spacing, grid(spacing))
    assert values.tolist() == [0.0, 2 * spacing, -3 * spacing]
    assert grid(spacing).ulp(spacing) == spacing


def test_linear_problems_have_exactly_their_noise():
    for name in ("one parameter", "three parameters"):
        problem = setting(name)
        gradients = torch.func.vmap(torch.func.grad(problem.loss), in_dims=(None, 0))(
            problem.model.minimiser, *problem.data
        )
        assert gradients.mean(0).abs().max() < 1e-12
        found = gradients.T @ gradients / len(gradients)
        assert (found - problem.model.noise).abs().max() < 1e-12
        assert (gradients - problem.model.gradients).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["one parameter", "three parameters", "logistic"])
def test_gradients_are_those_of_the_losses(name):
    problem = setting(name)
    generator = torch.Generator().manual_seed(0)
    samples = tuple(one[:50] for one in problem.data)
    shape = (50, len(problem.model.minimiser))
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    derived = torch.func.vmap(torch.func.grad(problem.loss))(x, *samples)
    assert (problem.gradient(x, *samples) - derived).abs().max() < 1e-14


def measured(case):
    config = RoundingConfig(parts=("cases",))
    seed = torch.tensor(11)
    return clt_rounding._case(case, config, seed, None, lambda: None)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_covariances_of_linear_problems_are_predicted(case):
    """D11: traces within 2 %, and rounding matters."""
    result = measured(case)
    assert result.ratios.tolist() == pytest.approx([1.0], abs=0.02)
    last = case.places[-1]
    assert result.predicted(last) > 1.02 * result.predicted(last, rounded=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [one for one in LINEAR if one not in QUICK], ids=lambda case: case.name
)
def test_long_runs_of_linear_problems_are_predicted(case):
    """D11 and D12: momentum with rounded x and v, and the floor of one parameter."""
    result = measured(case)
    ones = [1.0] * result.traces.shape[1]
    assert result.ratios.tolist() == pytest.approx(ones, abs=0.02)


def test_the_floor_is_that_of_the_specification():
    """D12's predictions: 0.05113, 0.01254, 0.00427 for spacings 2^-3, 2^-5, 2^-7."""
    scalar = [case for case in CASES if case.problem == "one parameter"]
    for case, expected in zip(scalar, (0.05113, 0.01254, 0.00427), strict=True):
        result = CaseResult(case, torch.ones(len(case.places), 1).double())
        predicted = result.predicted(20_000)
        assert predicted.item() == pytest.approx(expected, rel=2e-3)


def test_parameters_rounded_to_nearest_freeze():
    """D13: none moves after (2 K gmax / delta)^(1/a) steps."""
    problem, spacing = setting("logistic"), 2**-2
    schedule = PowerSchedule(1.0, 0.5)
    largest = 0.0

    def gradient(*arguments):
        nonlocal largest
        g = problem.gradient(*arguments)
        largest = max(largest, g.abs().max().item())
        return g

    runner = ReplicaRunner(
        problem.loss,
        problem.data,
        torch.zeros(10, dtype=torch.float64),
        Iteration("sgd", schedule),
        replicas=200,
        param_format=grid(spacing),
        gradient=gradient,
        seed=1,
    )
    bound = stationary.freeze_step(schedule, 4.5, spacing)
    runner.run(int(bound) + 1)
    frozen = runner.x
    runner.run(int(bound) + 500)
    assert largest < 4.5
    assert torch.equal(runner.x, frozen)
    assert (frozen != 0).any()


def curve(format, where, mode):
    return next(
        one
        for one in CURVES
        if (one.format, one.where, one.mode) == (format, where, mode)
    )


def followed(one, steps=1000, replicas=300):
    config = RoundingConfig(replicas=replicas, steps=steps, parts=("curves",))
    return clt_rounding._curve(one, config, torch.tensor(4), None, lambda: None)


def test_stochastic_rounding_of_parameters_leaves_a_floor():
    """Without rounding tr V is a sixth of the floor of the grid 1/16 by then."""
    coarse = curve(grid(2**-4), "s", "stochastic")
    result, plain = followed(coarse), followed(CURVES[0])
    assert plain.traces[-1] < 0.35 * result.floor
    assert 0.8 < result.traces[-1] / result.predicted[-1] < 1.25
    assert result.predicted[-1] > result.floor
    assert plain.floor is None


@pytest.mark.parametrize("where", ["s", "both"])
@pytest.mark.parametrize("spacing", [0.5, 2**-4, 2**-7])
def test_predictions_end_at_the_floor(spacing, where):
    """The floor is what the dashed line goes to, also on the coarse grid 1/2."""
    one = curve(grid(spacing), where, "stochastic")
    steps = torch.tensor([10**7, 10**8])
    result = CurveResult(one, steps, torch.ones(2).double())
    assert result.predicted[1] == pytest.approx(result.floor, rel=1e-3)
    assert result.predicted[1] < 1.001 * result.predicted[0]
    assert result.crossover == pytest.approx(
        (2 / math.pi) ** 0.5
        * spacing
        / setting("logistic").model.noise.diagonal().mean().sqrt().item(),
        rel=1e-12,
    )


def test_replicas_away_from_the_minimum_move_beyond_its_freeze_step():
    """Gradients there are larger: the mark in the figure is no bound for them."""
    one = curve(grid(2**-4), "s", "nearest")
    frozen = CurveResult(one, torch.tensor([1]), torch.ones(1).double()).freezing
    problem, alpha = setting("logistic"), 0.9 * frozen
    runner = ReplicaRunner(
        problem.loss,
        problem.data,
        problem.model.minimiser.mul(16).round() / 16 + 32,
        Iteration("sgd", alpha),
        replicas=50,
        param_format=one.rounding("s"),
        gradient=problem.gradient,
        seed=1,
    )
    start = runner.x.clone()
    runner.run(20)
    assert not torch.equal(runner.x, start)


def test_rounding_of_gradients_keeps_the_scaling():
    result = followed(curve(grid(0.5), "r", "stochastic"))
    assert result.floor is None
    assert 0.8 < result.traces[-1] / result.predicted[-1] < 1.25


def test_rounding_parameters_to_nearest_predicts_freezing_alone():
    steps = torch.tensor([10, 100])
    one = curve(grid(2**-4), "s", "nearest")
    result = CurveResult(one, steps, torch.ones(2).double())
    assert result.predicted is None
    assert result.floor is None
    assert result.freezing == pytest.approx(2**-4 / (2 * 3.3184), rel=1e-4)
    summary = result.summary()
    assert summary["predicted"] is None
    assert summary["freezing_at_minimum"] == result.freezing


TINY = ["run", "clt-rounding", "--steps", "12", "--replicas", "12"]


def test_the_command_writes_everything(capsys, tmp_path):
    arguments = [*TINY, "--parts", "curves", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert str(tmp_path) in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "result.json", "clt-rounding.png", "parts"}
    curves = json.loads((tmp_path / "result.json").read_text())["curves"]
    assert list(curves) == [one.name for one in CURVES]
    again = json.dumps(curves)
    assert main(arguments) == 0  # from the parts
    assert json.dumps(json.loads((tmp_path / "result.json").read_text())["curves"]) == (
        again
    )


class Killed(Exception):
    """Stands for a kill."""


def test_a_killed_case_continues_bit_for_bit(tmp_path):
    case = CASES[0]
    config = RoundingConfig(parts=("cases",), scale=0.01)
    seed, calls = torch.tensor(5), iter(range(333))

    def advance():
        if next(calls, None) is None:
            raise Killed

    whole = clt_rounding._case(case, config, seed, None, lambda: None)
    parts = clt_rounding.Parts(tmp_path)
    with pytest.raises(Killed):
        clt_rounding._case(case, config, seed, parts, advance)
    resumed = clt_rounding._case(case, config, seed, parts, lambda: None)
    assert torch.equal(resumed.traces, whole.traces)


BAD = [
    ({"replicas": 0}, "replicas must be 1 or more, got 0"),
    ({"steps": -1}, "steps must be 1 or more, got -1"),
    ({"scale": 0.0}, r"scale must be in \(0, 1\], got 0.0"),
    ({"parts": ("all",)}, "parts must be some of curves and cases"),
    ({"parts": ()}, "parts must be some of curves and cases"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RoundingConfig(**changes)
