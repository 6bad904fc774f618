"""Schedules of epsilon, and what an annealing of them says before it starts."""

import math
import re

import pytest
import torch

import lowprec as lp
from lowprec.optim import Annealing, ASkewSGD, ExponentialEpsilon, Skewed

BINARY, INT2 = lp.Levels.binary(), lp.Levels.int_bits(2)


def test_annealing_of_the_specification():
    schedule = ExponentialEpsilon(30)
    values = [schedule(t) for t in (0, 30, 31, 45.5, 60)]
    expected = [1, 1, 0.88, 0.137873696, 0.021601314]
    # The specification prints nine decimals.
    assert values == pytest.approx(expected, rel=1e-9, abs=5e-10)
    assert ExponentialEpsilon(0, floor=0.5)(100) == 0.5


@pytest.mark.parametrize("fractional", [True, False])
def test_annealing_counts_epochs(fractional):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ASkewSGD([{"params": [p], "levels": BINARY}], 0.1)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    schedule = ExponentialEpsilon(1, 0.5)
    annealing = Annealing(
        optimizer, "epsilon", schedule, steps_per_epoch=4, fractional=fractional
    )
    seen = []
    for _ in range(8):
        seen.append(optimizer.param_groups[0]["epsilon"])
        annealing.step()
    inside = [0.5 ** (i / 4) for i in range(4)] if fractional else [1] * 4
    assert seen == pytest.approx([1, 1, 1, 1, *inside])
    annealing.set_epoch(3)
    assert optimizer.param_groups[0]["epsilon"] == 0.25
    assert optimizer.param_groups[1]["epsilon"] == 1.0


def test_schedules_that_go_negative_are_refused():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ASkewSGD([p], 0.1, BINARY)
    annealing = Annealing(optimizer, "epsilon", lambda t: 1 - t)
    annealing.step()
    with pytest.raises(ValueError, match=r"-1\.0 at time 2"):
        annealing.step()
    assert optimizer.param_groups[0]["epsilon"] == 0.0
    assert annealing.state_dict() == {"count": 1}
    with pytest.raises(ValueError, match="lam"):
        Annealing(optimizer, "lam", lambda t: t)
    optimizer.param_groups[0]["epsilon"] = -1.0
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match="epsilon"):
        optimizer.step()
    assert p.tolist() == [1.0] * 3


@pytest.mark.parametrize(("kind", "step"), [("quadratic", 11), ("quartic", 22)])
def test_a_slack_above_its_maximum_warns(kind, step):
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.warns(lp.NumericalWarning, match="free until epsilon") as caught:
        optimizer = ASkewSGD([p], 0.1, INT2, remoteness=kind)
    assert caught[0].filename == __file__
    with pytest.warns(lp.NumericalWarning, match=f"from step {step} on,") as caught:
        Annealing(optimizer, "epsilon", ExponentialEpsilon(0))
    assert caught[0].filename == __file__
    ASkewSGD([torch.nn.Parameter(torch.ones(3))], 0.1, INT2, epsilon=None)


def test_warnings_point_at_the_caller():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = ASkewSGD([p], 0.1, INT2, epsilon=None)
    with pytest.warns(lp.NumericalWarning, match="free until") as caught:
        optimizer.add_param_group({"params": [q], "epsilon": 1.0})
    with pytest.warns(lp.NumericalWarning, match="free until") as more:
        Skewed(torch.optim.SGD([p], 0.1), INT2)
    assert {caught[0].filename, more[0].filename} == {__file__}


@pytest.mark.parametrize("start", [0, 3, 20_000])
@pytest.mark.parametrize("per_epoch", [None, 1, 100])
@pytest.mark.parametrize("fractional", [True, False])
def test_the_step_that_binds_is_found(start, per_epoch, fractional):
    optimizer = ASkewSGD([torch.nn.Parameter(torch.ones(3))], 0.1, INT2, epsilon=None)
    schedule = ExponentialEpsilon(start)
    with pytest.warns(lp.NumericalWarning) as caught:
        annealing = Annealing(
            optimizer, "epsilon", schedule, steps_per_epoch=per_epoch,
            fractional=fractional,
        )  # fmt: skip
    step = int(re.search(r"from step (\d+) on", str(caught[0].message))[1])
    values = []
    for count in (step - 1, step):
        annealing.load_state_dict({"count": count})
        values.append(optimizer.param_groups[0]["epsilon"])
    assert values[1] < 0.25 <= values[0]


def test_schedules_that_never_bind_or_end():
    optimizer = ASkewSGD([torch.nn.Parameter(torch.ones(3))], 0.1, INT2, epsilon=None)
    table = [1.0] * 5 + [0.125]
    for schedule, text in (
        (ExponentialEpsilon(0, floor=0.25), "at no step"),
        (lambda t: [1.0, 1.0][int(t)], "at no step"),
        (lambda t: table[int(t)], "from step 5 on"),
    ):
        with pytest.warns(lp.NumericalWarning, match=text):
            Annealing(optimizer, "epsilon", schedule)


@pytest.mark.parametrize("start", [-1.0, math.nan])
def test_annealing_starts_at_a_time_from_zero(start):
    with pytest.raises(ValueError, match="start must not be negative"):
        ExponentialEpsilon(start)
    assert math.isnan(ExponentialEpsilon(1.0)(math.nan))


@pytest.mark.parametrize("steps", [2.5, True, "4"])
def test_epochs_have_whole_steps(steps):
    optimizer = ASkewSGD([torch.nn.Parameter(torch.ones(3))], 0.1, INT2, epsilon=None)
    with pytest.raises(TypeError, match="steps_per_epoch must be an int"):
        Annealing(optimizer, "epsilon", lambda t: 0.1, steps_per_epoch=steps)
