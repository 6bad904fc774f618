"""Gradients and weights rounded together, against simulations and exact cases."""

import math

import pytest
import torch
from stationary_cases import grid, simulate, spd

import lowprec as lp
from lowprec.schedules import Iteration
from lowprec.theory import stationary
from lowprec.theory.stationary._twice_rounded import twice_rounded_variance

GAUSSIAN = math.sqrt(2 / math.pi)  # E|g| of a standard normal


def test_a_gradient_on_a_lattice_leaves_what_its_law_says():
    # Without deviations an expectation over two neighbours, in exact numbers.
    zero = torch.zeros(1, dtype=torch.float64)
    for g, lattice, alpha, delta in (
        (0.3, 1.0, 0.25, 1.0), (-1.7, 0.5, 0.75, 0.5), (2.6, 4.0, 0.5, 1.0)
    ):  # fmt: skip
        n = math.floor(g / lattice)
        share = g / lattice - n
        fractions = [math.modf(alpha * m * lattice / delta)[0] for m in (n, n + 1)]
        below, above = (delta**2 * abs(f) * (1 - abs(f)) for f in fractions)
        found = twice_rounded_variance(
            zero, zero + g, zero + lattice, alpha, zero, zero + delta
        )
        assert found.item() == pytest.approx(
            (1 - share) * below + share * above, rel=1e-12, abs=1e-15
        )
    # Below the grid f (1 - f) is linear in |g| but for what R takes away.
    sd, delta = torch.tensor([0.4, 30.0], dtype=torch.float64), torch.ones(2)
    lattice = torch.tensor([1.0, 0.5], dtype=torch.float64)
    R = stationary.gaussian_rounding_variance(sd, lattice)
    alpha = 1e-3
    found = twice_rounded_variance(sd, 0 * sd, lattice, alpha, 0 * sd, delta)
    expected = alpha * GAUSSIAN * sd - alpha**2 * (sd**2 + R)
    # Wide deviations are taken as dense, without R.
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=0)


@pytest.mark.parametrize("alpha", [0.011, 0.37])
@pytest.mark.parametrize("ratio", [0.9, 1.1])
def test_points_and_densities_meet(alpha, ratio):
    # On both sides of the deviation from which points are no longer summed.
    sd = torch.tensor([ratio * 32 * 2**-5], dtype=torch.float64)
    zero, lattice = 0 * sd, torch.full_like(sd, 2**-5)
    for rest in (zero, 0.001 + zero):
        found = twice_rounded_variance(sd, zero, lattice, alpha, rest, 1 + zero)
        total = (alpha**2 * sd**2 + rest**2).sqrt()
        dense = stationary.gaussian_rounding_variance(total, 1.0)
        torch.testing.assert_close(found, dense, rtol=0.004, atol=0)


@pytest.mark.parametrize(
    ("lattice", "delta", "alpha", "measured"),
    [
        (2.0, 2**-3, 0.01, 0.0512), (1.0, 2**-3, 0.01, 0.0511),
        (4.0, 2**-3, 0.02, 0.0511), (2.0, 2**-4, 0.3, 0.2947),
    ],
)  # fmt: skip
def test_rounded_gradients_and_weights_agree_with_long_simulations(
    lattice, delta, alpha, measured
):
    # 20000 replicas, of a simulation apart from this one.
    V = stationary.predicted_covariance(
        Iteration("sgd", alpha), [[1.0]], [[1.0]], delta=delta, gradient_delta=lattice
    )
    assert V.position.item() == pytest.approx(measured, rel=0.004)


@pytest.mark.parametrize(
    ("iteration", "delta", "velocity_delta", "gradient_delta"),
    [
        (Iteration("sgd", 0.2), 2**-3, None, 2.0),
        (Iteration("momentum", 0.1, damping=1.0), 2**-4, 2**-3, 2.0),
        (Iteration("nasgd", 0.15, damping=1.0), None, 2**-4, 1.0),
        (Iteration("heavy_ball", 0.05, momentum=0.8), 2**-4, 2**-4, 1.0),
    ],
)
def test_all_three_roundings_have_the_predicted_covariance(
    iteration, delta, velocity_delta, gradient_delta
):
    A, Sigma = spd(2, 4), spd(2, 5) / 4
    options = {
        "delta": delta,
        "velocity_delta": velocity_delta,
        "gradient_delta": gradient_delta,
    }
    V = simulate(iteration, A, Sigma, 300, M=8000, burn=150, **options)
    found = stationary.predicted_covariance(iteration, A, Sigma, **options)
    blocks = [(V[:2, :2], found.position)]
    if found.velocity is not None:
        blocks.append((V[2:, 2:], found.velocity))
    for block, expected in blocks:
        # Some 3 independent times of 8000 replicas: a deviation of 0.7 %.
        assert block.trace().item() == pytest.approx(expected.trace().item(), rel=0.025)


def test_samples_on_a_lattice_count_with_the_spread_of_the_iterates():
    generator = torch.Generator().manual_seed(14)
    samples = torch.randn(400, 1, generator=generator, dtype=torch.float64).exp()
    samples = samples - samples.mean()
    lattice = stationary.grid_spacing(lp.Format(precision=1, emax=8, emin=-1), samples)
    alpha, delta, M, steps = 0.05, 0.25, 8000, 300
    fl = lp.Rounding(lp.Format(precision=1, emax=8, emin=-1), "stochastic")
    x = torch.zeros(M, 1, dtype=torch.float64)
    variance = 0.0
    for k in range(steps):
        noise = samples[torch.randint(400, (M,), generator=generator)]
        g = lp.round(x + noise, fl, generator=generator)
        x = lp.round(x - alpha * g, grid(delta), generator=generator)
        if k >= steps // 3:
            variance += x.square().mean().item() / (steps - steps // 3)
    Sigma, sgd = [[samples.square().mean().item()]], Iteration("sgd", alpha)
    found = stationary.predicted_covariance(
        sgd, [[1.0]], Sigma, delta=delta, gradient_delta=lattice, samples=samples
    ).position.item()
    # 8000 replicas at some 10 independent times: a deviation of 0.5 %; the spacing is
    # that of the sample, not of the gradient at the iterate, for 2 % more.
    assert variance == pytest.approx(found, rel=0.04)


def test_a_fixed_covariance_does_not_go_with_a_grid():
    sgd, momentum = Iteration("sgd", 0.1), Iteration("momentum", 0.1, damping=1.0)
    for iteration, spacing in (
        (sgd, {"delta": 0.1}),
        (momentum, {"velocity_delta": 0.1}),
        (sgd, {"gradient_delta": 0.1}),
    ):
        with pytest.raises(TypeError, match="give gradient_delta"):
            stationary.predicted_covariance(
                iteration, [[1.0]], [[1.0]], r_cov=[[0.1]], **spacing
            )
    with pytest.raises(ValueError, match="gradient_delta must be a number or have 1"):
        stationary.predicted_covariance(
            sgd, [[1.0]], [[1.0]], gradient_delta=[[0.1], [0.2]]
        )
