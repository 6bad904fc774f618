"""Statistics of batch normalization, estimated again for quantized weights."""

import pytest
import torch

import lowprec as lp
from lowprec.optim import ASkewSGD, reestimate_batch_norm, reestimated_batch_norm


def problem():
    torch.manual_seed(2)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(),
        torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2, track_running_stats=False),
    )  # fmt: skip
    batches = [torch.randn(8, 3) for _ in range(5)]
    model(batches[0])
    model[2].eval()
    return model, batches


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_statistics_are_those_of_the_weights_as_they_are():
    model, batches = problem()
    before, modes = state(model), [m.training for m in model.modules()]
    reestimate_batch_norm(model, [(x, None) for x in batches])
    inputs = [model[0](x) for x in batches]
    mean = torch.stack([x.mean(0) for x in inputs]).mean(0)
    var = torch.stack([x.var(0) for x in inputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, var)
    assert model[1].momentum == 0.1
    assert [m.training for m in model.modules()] == modes
    unchanged = {k: v for k, v in before.items() if "running" not in k}
    unchanged.pop("1.num_batches_tracked")
    assert equal(unchanged, state(model))


def test_they_come_back_bit_for_bit():
    model, batches = problem()
    optimizer = ASkewSGD(model[0].parameters(), 0.1, lp.Levels.binary(), epsilon=0.1)
    before = state(model)
    with optimizer.quantized(), reestimated_batch_norm(model, batches):
        inside = model[1].running_mean.clone()
        expected = torch.stack([model[0](x).mean(0) for x in batches]).mean(0)
        torch.testing.assert_close(inside, expected)
    assert not torch.equal(inside, before["1.running_mean"])
    assert equal(before, state(model))


@pytest.mark.parametrize("batches", [[], [torch.zeros(8, 3), torch.zeros(8, 7)]])
def test_a_failure_changes_nothing(batches):
    model, _ = problem()
    before = state(model)
    with pytest.raises((ValueError, RuntimeError)):
        reestimate_batch_norm(model, batches)
    assert equal(before, state(model))
    assert model[1].momentum == 0.1
    assert model.training
