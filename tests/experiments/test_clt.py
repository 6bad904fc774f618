"""Central limit theorems on the reference problem P0: D4, D7, D8, D10, and resuming."""

import dataclasses
import json
import math

import pytest
import torch

from lowprec.cli import main
from lowprec.experiments import clt, replica_runs
from lowprec.experiments.clt_problem import logistic
from lowprec.experiments.clt_report import RowResult
from lowprec.measure import ReplicaRunner, scaled_covariance
from lowprec.schedules import InverseTimeDamping, Iteration, PowerSchedule
from lowprec.theory import stationary

P0 = logistic()


def test_the_problem_is_that_of_the_specification():
    model = P0.model
    assert model.minimiser.norm().item() == pytest.approx(1.3725, abs=5e-5)
    first = torch.tensor([-0.04308, 0.547433, 0.549621], dtype=torch.float64)
    assert (model.minimiser[:3] - first).abs().max() < 1e-5
    assert model.hessian.trace().item() == pytest.approx(2.221593, abs=1e-6)
    assert model.noise.trace().item() == pytest.approx(1.335007, abs=1e-6)
    result = RowResult(Iteration("sgd", PowerSchedule(1.0, 0.5)), None, P0)
    assert result.limit.trace().item() == pytest.approx(2.959600, abs=1e-6)
    assert result.limit.norm().item() == pytest.approx(0.952358, abs=1e-6)
    for method, trace, norm in (
        ("momentum", 14.7980 + 3.33752, 4.88284),
        ("nasgd", 6.97980 + 1.56364, 2.29292),
    ):
        joint = RowResult(clt.ROWS[f"{method} 0.1 k^-0.5"], None, P0).limit
        assert joint.trace().item() == pytest.approx(trace, rel=1e-5)
        assert joint.norm().item() == pytest.approx(norm, rel=1e-5)


def mean_loss(x):
    return torch.func.vmap(P0.loss, in_dims=(None, 0, 0))(x, *P0.data).mean()


def test_the_gradient_is_the_corrected_one():
    """D4: (sigma(z) - y) w + beta x, and central differences; not the printed sign."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, dtype=torch.float64, generator=generator)
    w, y = P0.data
    growth = 1 / (1 + torch.exp(w @ x))
    corrected, printed = (
        (((1 - y) + sign * growth).unsqueeze(1) * w).mean(0) + 0.05 * x
        for sign in (-1, 1)
    )
    derived = torch.func.grad(mean_loss)(x)
    assert (derived - corrected).abs().max() < 1e-14
    assert (derived - printed).norm() > 0.3
    each = x.expand(1000, -1)
    assert (P0.gradient(each, w, y).mean(0) - corrected).abs().max() < 1e-14
    step = 1e-6 * torch.eye(10, dtype=torch.float64)
    differences = torch.stack(
        [(mean_loss(x + one) - mean_loss(x - one)) / 2e-6 for one in step]
    )
    assert (derived - differences).abs().max() < 1e-8


def short(**changes):
    rows = ("sgd 1 k^-0.5", "nasgd 0.1 k^-0.5")
    return clt.CltConfig(**{"rows": rows, "replicas": 40, "steps": 300, **changes})


class Killed(Exception):
    """Stands for a kill."""


def killed_after(count):
    calls = iter(range(count))

    def advance():
        if next(calls, None) is None:
            raise Killed

    return advance


@pytest.mark.parametrize("count", [0, 17, 299, 300, 451])
def test_a_killed_run_continues_bit_for_bit(tmp_path, count):
    whole = clt.run(short(), problem=P0)
    with pytest.raises(Killed):
        clt.run(short(), directory=tmp_path, advance=killed_after(count), problem=P0)
    calls = []
    resumed = clt.run(
        short(), directory=tmp_path, advance=lambda: calls.append(1), problem=P0
    )
    assert len(calls) == 600
    for name, trace in whole.items():
        assert torch.equal(resumed[name].final, trace.final)
        assert torch.equal(resumed[name].covariance, trace.covariance)
        assert torch.equal(resumed[name].p_values["sw"], trace.p_values["sw"])


@pytest.mark.parametrize("change", ["problem", "version"])
def test_parts_of_another_problem_or_version_begin_anew(tmp_path, change, monkeypatch):
    """A wrong problem under the name of a finished part was returned silently."""
    config = short(rows=("sgd 1 k^-0.5",), steps=3)
    ((_, first),) = clt.run(config, directory=tmp_path, problem=P0).items()
    problem = P0
    if change == "problem":
        problem = dataclasses.replace(P0, labels=1 - P0.labels)
    else:
        monkeypatch.setitem(replica_runs.environment.__globals__, "__version__", "9")
    ((_, second),) = clt.run(config, directory=tmp_path, problem=problem).items()
    assert torch.equal(first.final, second.final) == (change == "version")
    assert len(list((tmp_path / "parts").glob("*.result"))) == 2


@pytest.mark.parametrize("steps", [1, 7, 20, 300, 1999, 2000])
def test_shares_are_of_the_even_checkpoints(steps):
    """All twenty count, also when they do not divide the steps, as for 1999."""
    even = clt.even_checkpoints(steps)
    assert len(even) == min(steps, 20)
    assert even[-1] == steps
    assert max(b - a for a, b in zip([0, *even], even, strict=False)) <= -(-steps // 20)
    places = clt.checkpoints(steps)
    assert set(even) <= set(places)
    values = torch.tensor([0.9 if k in even[::2] else 0.0 for k in places])
    trace = clt.Trace(torch.tensor(places), None, {"sw": values}, None)
    result = RowResult(clt.ROWS["sgd 1 k^-0.5"], trace, P0)
    assert result.passes("sw") == pytest.approx(len(even[::2]) / len(even))


SLOWER = PowerSchedule(0.5, 0.75)


@pytest.mark.parametrize(
    "damping", [PowerSchedule(1.0, 0.15), InverseTimeDamping(1.0, SLOWER)]
)
def test_vanishing_damping_scales_the_covariance(damping):
    row = Iteration("momentum", SLOWER, damping=damping)
    steps = torch.tensor([1, 10, 100])
    scales = RowResult(row, clt.Trace(steps, None, {}, None), P0).scales
    expected = [row.schedule(k) / damping(k) for k in steps.tolist()]
    assert scales.tolist() == pytest.approx(expected, rel=1e-14)


def test_rows_do_not_depend_on_the_others(tmp_path):
    both = clt.run(short(), directory=tmp_path, problem=P0)
    alone = clt.run(short(rows=("nasgd 0.1 k^-0.5",)), problem=P0)
    (name,) = alone
    assert torch.equal(both[name].final, alone[name].final)
    assert not torch.equal(
        both[name].final[:, :10], clt.run(short(seed=1), problem=P0)[name].final[:, :10]
    )


def test_measurements_are_of_the_replicas():
    trace = clt.run(short(rows=("nasgd 0.1 k^-0.5",)), problem=P0)["nasgd 0.1 k^-0.5"]
    assert trace.steps.tolist() == clt.checkpoints(300)
    assert trace.steps[-1] == 300
    assert trace.final.shape == (40, 20)
    v = trace.final.T @ trace.final / 40
    assert (trace.covariance[-1] - v).abs().max() < 1e-14


@pytest.mark.parametrize("name", ["sgd 1 k^-0.5", "momentum 0.1 k^-0.5"])
def test_replicas_near_the_minimum_follow_the_linear_recursion(name):
    """From x*, with small steps, within twice the sampling floor."""
    row = Iteration(clt.ROWS[name].method, 0.02, damping=clt.ROWS[name].damping)
    runner = ReplicaRunner(
        P0.loss, P0.data, P0.model.minimiser, row, replicas=1000, seed=2
    )
    runner.run(400)
    x = scaled_covariance(runner.x, 1.0, centre=P0.model.minimiser)
    expected = stationary.linear_covariance(
        row, P0.model.hessian, P0.model.noise, 400
    ).position
    floor = stationary.sampling_floor(expected, 1000)
    assert (x - expected).norm() < 2 * floor * expected.norm()


def test_the_command_writes_everything(capsys, tmp_path):
    arguments = ["run", "clt", "--replicas", "100", "--steps", "200"]
    rows = ["sgd 1 k^-0.5", "vanishing damping 0.5 k^-0.75"]
    arguments += ["--rows", *rows, "--out", str(tmp_path)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "M=100" in out
    assert "sampling floor" in out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "result.json", "clt-1.png", "clt-2.png", "parts"}
    result = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert list(result) == rows
    floor = result["sgd 1 k^-0.5"]["sampling_floors"]["100"]
    assert floor == pytest.approx(0.32646, abs=1e-5)


BAD = {
    "unknown row": (["--rows", "adam"], "invalid choice: 'adam'"),
    "few replicas": (
        ["--replicas", "19"],
        "replicas must be 20 or more, the number of",
    ),
    "no steps": (["--steps", "0"], "steps must be 1 or more, got 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused(name, capsys, tmp_path):
    options, message = BAD[name]
    try:
        status = main(["run", "clt", *options, "--out", str(tmp_path / "new")])
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_configurations_without_rows_are_refused():
    with pytest.raises(ValueError, match="must be some of"):
        clt.CltConfig(rows=())


@pytest.fixture(scope="module")
def many():
    """8000 replicas of SGD with steps k^-0.5 after 2e4 steps."""
    config = clt.CltConfig(rows=("sgd 1 k^-0.5",), replicas=8000, steps=20_000)
    ((name, trace),) = clt.run(config, problem=P0).items()
    return RowResult(clt.ROWS[name], trace, P0)


@pytest.mark.slow
def test_errors_have_the_size_that_sampling_explains(many):
    """D7."""
    few, more = many.block_errors(500), many.block_errors(2000)
    assert bool(((few > 0.08) & (few < 0.22)).all())
    assert bool(((more > 0.045) & (more < 0.11)).all())
    assert 1.4 < few.mean() / more.mean() < 2.8


@pytest.mark.slow
def test_errors_fall_like_the_root_of_the_number_of_replicas(many):
    """D8."""
    for size in (100, 250, 500):
        floor = stationary.sampling_floor(many.limit, size)
        assert 0.9 < many.block_errors(size).mean() / floor < 1.1


@pytest.mark.slow
def test_the_time_average_of_the_counterexample_diverges():
    """D10: T_n E xbar / S_n and mean T_n xbar / sqrt(S_n) at n = 2e4."""
    f = stationary.SkewedQuadratic(0.3)
    schedule, n = PowerSchedule(0.5, 0.3), 20_000
    runner = ReplicaRunner(
        lambda x, b: (f(x) + b * x).sum(),
        (torch.tensor([-1.0, 1.0], dtype=torch.float64),),
        torch.zeros(1, dtype=torch.float64),
        Iteration("sgd", schedule),
        replicas=1000,
        seed=0,
    )
    weighted = torch.zeros(1000, dtype=torch.float64)
    for k in range(1, n + 1):
        weighted += schedule(k) * runner.x.squeeze(1)
        runner.run(k)
    squares = schedule.partial_sum(n, 2)
    mean = weighted.mean().item()
    assert mean / squares == pytest.approx(-0.505, abs=0.03)
    assert mean / math.sqrt(squares) < -2.5
