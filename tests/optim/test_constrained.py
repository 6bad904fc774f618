"""The velocity of Muehlebach and Jordan against its optimality conditions."""

import math

import pytest
import torch

import lowprec as lp
from lowprec.optim import constrained_velocity, remoteness, skewed_direction


def test_the_disk_of_the_specification():
    target = torch.tensor([2.0, 1.0], dtype=torch.float64)
    w = torch.zeros(2, dtype=torch.float64)
    for _ in range(2000):
        g, jacobian = (1 - w @ w).reshape(1), -2 * w.reshape(1, 2)
        w = w + 0.05 * constrained_velocity(w - target, g, jacobian, 1.0)
    expected = torch.tensor([0.894427191, 0.447213595], dtype=torch.float64)
    torch.testing.assert_close(w, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(20))
def test_optimality_conditions(seed):
    generator = torch.Generator().manual_seed(seed)
    gradient, g, jacobian = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((8,), (5,), (5, 8))
    )
    v = constrained_velocity(gradient, g, jacobian, 0.7)
    active = jacobian[g <= 0]
    slack = active @ v + 0.7 * g[g <= 0]
    multipliers = torch.linalg.lstsq(active.T, (v + gradient)[:, None]).solution[:, 0]
    assert slack.min() > -1e-10
    assert multipliers.min() > -1e-10
    torch.testing.assert_close(active.T @ multipliers, v + gradient)
    assert (slack * multipliers).abs().max() < 1e-10


def test_separable_constraints_give_the_skewed_direction():
    generator = torch.Generator().manual_seed(0)
    levels = lp.Levels.int_bits(2)
    w = 5 * torch.rand(40, dtype=torch.float64, generator=generator) - 3
    gradient = torch.randn(40, dtype=torch.float64, generator=generator)
    psi, slope = remoteness(w, levels, 0.05)
    v = constrained_velocity(gradient, psi, slope.diag(), 0.3)
    expected = -skewed_direction(gradient, w, levels, 0.05, alpha=0.3)
    torch.testing.assert_close(v, expected)


def test_bad_arguments_are_refused():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="no velocity"):
        constrained_velocity(one, -one, torch.zeros(1, 1), 1.0)
    with pytest.raises(ValueError, match="jacobian of shape"):
        constrained_velocity(one, one, torch.ones(2, 1), 1.0)
    with pytest.raises(ValueError, match="alpha"):
        constrained_velocity(one, one, torch.ones(1, 1), 0.0)
    with pytest.raises(ValueError, match="finite"):
        constrained_velocity(one * math.nan, one, torch.ones(1, 1), 1.0)
