"""Time averages: exact for linear gradients, biased for others, above the floor."""

import pytest
import torch
from stationary_cases import spd

import lowprec as lp
from lowprec.schedules import PowerSchedule
from lowprec.theory import stationary


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_the_finite_second_moment_is_that_of_its_definition():
    A, Sigma, steps, n = spd(2, 0), spd(2, 1), PowerSchedule(0.4, 0.4), 40
    start = torch.tensor([1.0, -3.0], dtype=torch.float64)
    # Each noise xi_k and the start move the average by a matrix.
    eye = torch.eye(2, dtype=torch.float64)
    influences = [torch.zeros(2, 2, dtype=torch.float64) for _ in range(n)]
    now = [eye, *(torch.zeros(2, 2, dtype=torch.float64) for _ in range(n))]
    first = torch.zeros(2, 2, dtype=torch.float64)
    for k in range(1, n + 1):
        alpha = steps(k)
        first = first + alpha * now[0]
        influences = [x + alpha * y for x, y in zip(influences, now[1:], strict=True)]
        now = [(eye - alpha * A) @ x for x in now]
        now[k] = alpha * eye
    total = sum(x @ Sigma @ x.T for x in influences)
    total = total + (first @ start).outer(first @ start)
    found = stationary.time_average_covariance(A, Sigma, steps, n, x0=start)
    assert relative(found, total / steps.partial_sum(n, 2)) < 1e-12


def test_the_finite_second_moment_approaches_the_limit_slowly():
    A, Sigma, steps = spd(3, 0), spd(3, 1), PowerSchedule(1.0, 0.4)
    limit = stationary.time_average_covariance(A, Sigma)
    torch.testing.assert_close(A @ limit @ A, Sigma)
    errors = [
        relative(stationary.time_average_covariance(A, Sigma, steps, n), limit)
        for n in (1000, 30_000, 1_000_000)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02


@pytest.mark.parametrize(("delta", "value"), [(2**-4, 31.8), (2**-2, 106.6)])
def test_the_average_of_rounded_iterates_beats_the_floor(delta, value):
    one, n, steps = (
        torch.ones(1, 1, dtype=torch.float64),
        20_000,
        PowerSchedule(0.8, 0.4),
    )
    found = stationary.time_average_covariance(one, one, steps, n, delta=delta).item()
    squares, total = steps.partial_sum(n, 2), steps.partial_sum(n)
    # The specification's simulation of T_n^2 var: 4000 replicas, 2.2 % deviation.
    assert found * squares == pytest.approx(value, rel=0.05)
    floor = stationary.covariance_floor(one, (2 / torch.pi) ** 0.5, delta).item()
    assert found * squares / total**2 < 0.01 * floor


def test_the_average_of_rounded_iterates_has_the_predicted_variance():
    steps, n, M, delta = PowerSchedule(0.8, 0.4), 2000, 8000, 2**-3
    grid = lp.Rounding(lp.Format(precision=26, emin=22, emax=500), "stochastic")
    assert grid.format.smallest_subnormal == delta
    generator = torch.Generator().manual_seed(8)
    x = torch.zeros(M, dtype=torch.float64)
    average = torch.zeros(M, dtype=torch.float64)
    for k in range(1, n + 1):
        average += steps(k) * x
        noise = torch.randn(M, generator=generator, dtype=torch.float64)
        x = lp.round(x - steps(k) * (x + noise), grid, generator=generator)
    predicted = stationary.time_average_covariance(
        [[1.0]], [[1.0]], steps, n, delta=delta
    )
    # The variance of 8000 numbers has a relative deviation of 1.6 %: 5 of them, 6e-7.
    found = average.square().mean().item() / steps.partial_sum(n, 2)
    assert found == pytest.approx(predicted.item(), rel=0.08)


def test_early_steps_may_overshoot_if_weights_are_rounded():
    # alpha lambda is 4 in the first step and 2 in the sixth.
    steps, n, M, delta = PowerSchedule(1.0, 0.4), 200, 8000, 2**-1
    A = torch.diag(torch.tensor([4.0, 0.5], dtype=torch.float64))
    grid = lp.Rounding(lp.Format(precision=26, emin=24, emax=500), "stochastic")
    generator = torch.Generator().manual_seed(15)
    x = torch.zeros(M, 2, dtype=torch.float64)
    average = torch.zeros(M, 2, dtype=torch.float64)
    for k in range(1, n + 1):
        average += steps(k) * x
        noise = torch.randn(M, 2, generator=generator, dtype=torch.float64)
        x = lp.round(x - steps(k) * (x @ A + noise), grid, generator=generator)
    found = average.T @ average / M / steps.partial_sum(n, 2)
    one = torch.eye(2)
    predicted = stationary.time_average_covariance(A, one, steps, n, delta=delta)
    # The variance of 8000 numbers has a relative deviation of 1.6 %.
    torch.testing.assert_close(
        found.diagonal(), predicted.diagonal(), rtol=0.08, atol=0
    )
    unrounded = stationary.time_average_covariance(A, one, steps, n)
    assert (predicted.diagonal() > 1.5 * unrounded.diagonal()).all()
    few = stationary.time_average_covariance(A, one, steps, 3, delta=delta)
    assert few.isfinite().all()


def test_the_printed_counterexample_is_not_convex_and_the_corrected_one_is():
    x = torch.linspace(-2, 2, 8_001, dtype=torch.float64, requires_grad=True)
    for f in (
        stationary.SkewedQuadratic(1.0, form="as_printed"),
        stationary.SkewedQuadratic(0.3),
        stationary.SkewedQuadratic(0.5, curvature=2.0),
    ):
        (slope,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        torch.testing.assert_close(slope, f.gradient(x))
        (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        lowest = curvature.min().item()
        assert lowest == pytest.approx(f.smallest_curvature, abs=1e-6)
        zero = torch.zeros(1, dtype=torch.float64)
        third = torch.func.jacrev(torch.func.hessian(lambda t, f=f: f(t).sum()))(zero)
        W = stationary.limit_covariance("sgd", [[f.curvature]], [[2.0]]).position
        bias = stationary.time_average_bias([[f.curvature]], W, third)
        assert bias.item() == pytest.approx(f.bias(2.0))
    printed = stationary.SkewedQuadratic(1.0, form="as_printed")
    assert printed.smallest_curvature == pytest.approx(-1.7841, abs=1e-3)
    # C15: the minimum is elsewhere.
    assert printed(torch.tensor(-1.016447)).item() == pytest.approx(-0.2076, abs=1e-4)
    with pytest.raises(
        ValueError, match=r"epsilon must be below .* 0.359179, got 0.36"
    ):
        stationary.SkewedQuadratic(0.36)


def test_the_average_of_the_counterexample_drifts_away():
    f, steps, n, M = (
        stationary.SkewedQuadratic(0.3),
        PowerSchedule(0.5, 0.3),
        20_000,
        1000,
    )
    generator = torch.Generator().manual_seed(9)
    x = torch.zeros(M, dtype=torch.float64)
    average = torch.zeros(M, dtype=torch.float64)
    for k in range(1, n + 1):
        alpha = steps(k)
        average += alpha * x
        signs = torch.randint(2, (M,), generator=generator) * 2 - 1
        x = x - alpha * (f.gradient(x) + signs)
    squares = steps.partial_sum(n, 2)
    # T xbar / sqrt(S) has the deviation 1.14, hence T xbar / S one of 0.0064.
    assert average.mean().item() / squares == pytest.approx(-0.505, abs=0.03)
    assert average.mean().item() / squares**0.5 < -2.5


def test_bad_requests_are_refused():
    steps = PowerSchedule(0.5, 0.4)
    for arguments in ((steps,), (None, 10)):
        with pytest.raises(TypeError, match="schedule and n come together"):
            stationary.time_average_covariance([[1.0]], [[1.0]], *arguments)
    with pytest.raises(TypeError, match="delta has no limit"):
        stationary.time_average_covariance([[1.0]], [[1.0]], delta=0.1)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 1\), got \(1,\)"):
        stationary.time_average_bias([[1.0]], [[1.0]], [1.0])
    with pytest.raises(ValueError, match="variance must be finite"):
        stationary.SkewedQuadratic(0.3).bias(-1.0)
