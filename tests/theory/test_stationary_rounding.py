"""What rounding does to covariances, against simulations with lowprec's roundings."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from stationary_cases import grid, logistic_regression, simulate, spd

import lowprec as lp
from lowprec.schedules import Iteration, PowerSchedule
from lowprec.theory import stationary

GAUSSIAN = math.sqrt(2 / math.pi)  # E|g| of a standard normal


@pytest.mark.parametrize("mean", [0.0, 0.11, -0.24, 0.5, 7.001])
def test_the_variance_of_stochastic_rounding_is_a_theta_function(mean):
    delta = 0.5
    for sd in (1e-9, 0.003, 0.04166, 0.041668, 0.1, 0.4):
        with mpmath.workdps(25):
            center = mpmath.mpf(mean)

            def bernoulli(z, sd=sd, center=center):
                u = (center + sd * z) / delta
                f = u - mpmath.floor(u)
                return delta**2 * f * (1 - f) * mpmath.npdf(z)

            kinks = [(delta * j - center) / sd for j in range(-12, 30)]
            ends = sorted(
                {-10, -4, -1, 0, 1, 4, 10, *(z for z in kinks if -10 < z < 10)}
            )
            exact = float(mpmath.quad(bernoulli, ends))
        found = stationary.gaussian_rounding_variance(sd, delta, mean=mean).item()
        assert found == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(
    ("sd", "lattice"),
    [(0.3, 0.1), (1.3, 0.9), (0.7, 0.5), (50.0, 0.25), (3000.0, 0.75), (7.0, 0.001)],
)
def test_increments_on_a_lattice_have_few_fractions(sd, lattice):
    u = lattice * np.arange(-int(9 * sd / lattice), int(9 * sd / lattice) + 1)
    weights = np.exp(-((u / sd) ** 2) / 2)
    fraction = u - np.floor(u)
    exact = (weights * fraction * (1 - fraction)).sum() / weights.sum()
    found = stationary.gaussian_rounding_variance(sd, 1.0, lattice=lattice).item()
    assert found == pytest.approx(exact, rel=1e-5)
    dense = stationary.gaussian_rounding_variance(sd, 1.0).item()
    assert (abs(dense / exact - 1) > 5e-3) == (lattice > 0.05)


@pytest.mark.parametrize("mode", ["stochastic", "nearest"])
def test_what_rounding_adds_to_samples_is_what_lp_round_adds(mode):
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(500, 2, generator=generator, dtype=torch.float64) @ spd(2, 0)
    repeats = 400 if mode == "stochastic" else 1
    alpha, delta = 0.5, 0.25
    rounding = grid(delta, "nearest_even" if mode == "nearest" else mode)
    steps = (alpha * g).repeat(repeats, 1)
    rounded = lp.round(steps, rounding, generator=generator)

    def cov(x):
        return torch.cov(x.T, correction=0)

    added = cov(rounded) - cov(alpha * g)
    found = stationary.rounding_covariance(g, delta, alpha, mode=mode)
    if mode == "nearest":
        torch.testing.assert_close(found, added, rtol=1e-9, atol=1e-12)
        return
    # Cross terms with the samples have a deviation of about sd(x) delta/2 / sqrt(2e5):
    # 3e-4 times sd(x) = 2; 6 deviations, 2e-9 for each of three elements.
    torch.testing.assert_close(found, added, rtol=0, atol=0.004)
    assert found[0, 0] > 0.008


def test_spacings_are_those_of_the_format():
    generator = torch.Generator().manual_seed(2)
    for name in ("bfloat16", "e4m3fn", "e2m1fn"):
        form = lp.format(name)
        x = torch.randn(200, generator=generator, dtype=torch.float64)
        x = torch.cat([x * torch.exp(6 * x), torch.tensor([0.0, 1.0, -2.0, 0.5])])
        expected = [float(form.ulp(value)) for value in x.tolist()]
        assert stationary.grid_spacing(name, x).tolist() == expected
    flushed = lp.Format(precision=4, emax=7, subnormals=False)
    x = [0.0, 1e-4, 2.0**-6, 0.3]
    expected = [float(flushed.ulp(value)) for value in x]
    assert stationary.grid_spacing(flushed, x).tolist() == expected


LINEAR = [  # step size, spacing, replicas, steps of which the last 2/3 count
    (0.3, 2**-2, 20_000, 60),
    (0.05, 2**-2, 8_000, 450),
    (0.05, 2**-5, 8_000, 450),
    pytest.param(0.02, 2**-3, 6_000, 1200, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("alpha", "delta", "M", "steps"), LINEAR)
def test_linear_sgd_with_rounded_weights_has_the_predicted_covariance(
    alpha, delta, M, steps
):
    A, Sigma = spd(3, 4), spd(3, 5) / 4
    iteration = Iteration("sgd", alpha)
    V = simulate(iteration, A, Sigma, steps, M=M, delta=delta, burn=steps // 3)[:3, :3]
    predicted = stationary.predicted_covariance(
        iteration, A, Sigma, delta=delta
    ).position
    # The trace has a relative deviation of at most sqrt(2 / (M T)) with T independent
    # times, T > 3 for the slowest direction: below 0.6 %. 2 % are 3.3 deviations, 1e-3.
    assert V.trace().item() == pytest.approx(predicted.trace().item(), rel=0.02)
    assert ((V - predicted).norm() / predicted.norm()).item() < 0.02
    plain = stationary.predicted_covariance(iteration, A, Sigma).position
    if alpha / delta < 1:
        assert predicted.trace() > 1.1 * plain.trace()


@pytest.mark.parametrize(
    ("method", "delta", "velocity_delta"),
    [
        ("momentum", 2**-5, 2**-3), ("momentum", 2**-4, None),
        pytest.param("momentum", None, 2**-3, marks=pytest.mark.slow),
        pytest.param("nesterov", 2**-3, 2**-4, marks=pytest.mark.slow),
        ("nasgd", 2**-3, 2**-3), ("heavy_ball", 2**-4, 2**-5),
    ],
)  # fmt: skip
def test_rounded_weights_and_velocities_have_the_predicted_covariance(
    method, delta, velocity_delta
):
    A, Sigma = spd(3, 4), spd(3, 5) / 4
    if method == "heavy_ball":
        iteration = Iteration(method, 0.02, momentum=0.8)
    else:
        iteration = Iteration(method, 0.1, damping=1.0)
    options = {"delta": delta, "velocity_delta": velocity_delta}
    V = simulate(iteration, A, Sigma, 350, M=8000, burn=150, **options)
    predicted = stationary.predicted_covariance(iteration, A, Sigma, **options)
    for block, expected in (
        (V[:3, :3], predicted.position), (V[3:, 3:], predicted.velocity)
    ):  # fmt: skip
        # Some 4 independent times: a deviation of 0.6 %, as above.
        assert block.trace().item() == pytest.approx(expected.trace().item(), rel=0.02)
    joint = predicted.matrix
    assert ((V - joint).norm() / joint.norm()).item() < 0.025


def test_the_optimizer_has_the_predicted_covariance():
    A, Sigma = spd(3, 4), spd(3, 5) / 4
    delta, M, steps = 2**-3, 2500, 140
    generator = torch.Generator().manual_seed(11)
    root = torch.linalg.cholesky(Sigma)
    p = torch.nn.Parameter(torch.zeros(M, 3, dtype=torch.float64))  # replicas
    optimizer = lp.optim.ScheduledSGD(
        [p], 0.15, "nasgd", damping=1.0, param_format=grid(delta),
        velocity_format=grid(delta), generator=generator,
    )  # fmt: skip
    V = torch.zeros(6, 6, dtype=torch.float64)
    for k in range(steps):
        noise = torch.randn(M, 3, generator=generator, dtype=torch.float64) @ root.T
        p.grad = p.detach() @ A + noise
        optimizer.step()
        if k >= steps // 2:
            z = torch.cat(
                [optimizer.state[p][name] for name in ("position", "velocity")], 1
            )
            V += z.T @ z / M / (steps - steps // 2)
    iteration = Iteration("nasgd", 0.15, damping=1.0)
    predicted = stationary.predicted_covariance(
        iteration, A, Sigma, delta=delta, velocity_delta=delta
    ).matrix
    # 2500 replicas at some 3 independent times: a deviation of 1.6 % of the trace.
    assert V.trace().item() == pytest.approx(predicted.trace().item(), rel=0.05)
    plain = stationary.predicted_covariance(iteration, A, Sigma).matrix
    assert predicted.trace() > 1.2 * plain.trace()


@pytest.mark.parametrize(("delta", "value"), [(2**-3, 0.0511), (2**-5, 0.01254)])
def test_decreasing_steps_end_on_the_floor(delta, value):
    iteration = Iteration("sgd", PowerSchedule(1.0, 0.5))
    one = torch.ones(1, 1, dtype=torch.float64)
    # From rest at k = 15000: a relaxation takes 1/(2 alpha) = 60 steps.
    V = simulate(
        iteration, one, one, 5000, M=2000, delta=delta, start=15_000, burn=2000
    )
    predicted = stationary.predicted_covariance(
        iteration, one, one, 18_500, delta=delta
    )
    # 2000 replicas at some 20 independent times: a deviation of 0.7 %.
    assert V[0, 0].item() == pytest.approx(predicted.position.item(), rel=0.03)
    last = stationary.predicted_covariance(iteration, one, one, 20_000, delta=delta)
    assert last.position.item() == pytest.approx(value, rel=0.05)
    plain = stationary.predicted_covariance(iteration, one, one, 20_000)
    assert last.position.item() > 3 * plain.position.item()


def test_noise_that_is_not_gaussian_counts_by_its_samples():
    # Cubes of a normal variable: E|g| is half of that of a Gaussian of equal variance.
    generator = torch.Generator().manual_seed(12)
    quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    normal = torch.distributions.Normal(0.0, 1.0).icdf(quantiles)
    samples = 0.3 * normal[:, None] ** 3
    alpha, delta, M, steps = 0.05, 0.25, 10_000, 300
    x = torch.zeros(M, 1, dtype=torch.float64)
    variance = 0.0
    for k in range(steps):
        noise = samples[torch.randint(1000, (M,), generator=generator)]
        x = lp.round(x - alpha * (x + noise), grid(delta), generator=generator)
        if k >= steps // 3:
            variance += x.square().mean().item() / (steps - steps // 3)
    Sigma = [[samples.square().mean().item()]]
    sgd = Iteration("sgd", alpha)
    predicted, gaussian = (
        stationary.predicted_covariance(
            sgd, [[1.0]], Sigma, delta=delta, samples=given
        ).position.item()
        for given in (samples, None)
    )
    # 10000 replicas at some 10 independent times: a deviation of 0.5 %.
    assert variance == pytest.approx(predicted, rel=0.04)
    assert gaussian > 1.15 * variance


def test_the_floor_is_the_limit_of_small_steps_and_grows_with_the_spacing():
    A, Sigma = spd(3, 0), spd(3, 1)
    absgrad = GAUSSIAN * Sigma.diagonal().sqrt()
    delta = torch.tensor([0.25, 0.5, 0.125], dtype=torch.float64)
    floor = stationary.covariance_floor(A, absgrad, delta)
    tiny = Iteration("sgd", 1e-7)
    small = stationary.predicted_covariance(tiny, A, Sigma, delta=delta / 1000).position
    torch.testing.assert_close(small, floor / 1000, rtol=2e-3, atol=1e-7)
    # On a coarse grid the iterates' own spread adds to the gradients.
    V = stationary.predicted_covariance(tiny, A, Sigma, delta=delta).position
    absgrad_there = GAUSSIAN * (Sigma + A @ V @ A).diagonal().sqrt()
    floor_there = stationary.covariance_floor(A, absgrad_there, delta)
    torch.testing.assert_close(V, floor_there, rtol=1e-4, atol=1e-6)
    assert V.trace() > 1.02 * floor.trace()
    doubled = stationary.covariance_floor(A, absgrad, 2 * delta)
    torch.testing.assert_close(doubled, 2 * floor)
    scalar = stationary.covariance_floor([[2.0]], [GAUSSIAN * 3.0], 0.1).item()
    assert scalar == pytest.approx(0.3989 * 0.1 * 3.0 / 2.0, rel=2e-4)


def test_independent_errors_are_another_model_with_an_optimal_step():
    # On the grid the covariance falls with the step size and saturates; errors of
    # variance delta^2/6 in every step make it blow up below delta / (sigma sqrt 6).
    delta = 1 / 16
    s_cov = [[delta**2 / 6]]
    alphas = [2.0**-j for j in range(1, 11)]

    def variances(**options):
        return [
            stationary.predicted_covariance(
                Iteration("sgd", alpha), [[1.0]], [[1.0]], **options
            ).position.item()
            for alpha in alphas
        ]

    on_grid, independent = variances(delta=delta), variances(s_cov=s_cov)
    pairs = itertools.pairwise(on_grid)
    assert all(after < before * (1 + 1e-9) for before, after in pairs)
    best = alphas[min(range(len(alphas)), key=independent.__getitem__)]
    assert best / 2 < delta / math.sqrt(6) < 2 * best
    assert independent[-1] > 10 * on_grid[-1]
    small = Iteration("sgd", 0.001)
    independent, on_grid = (
        stationary.predicted_covariance(small, [[1.0]], [[1.0]], **options)
        for options in ({"s_cov": s_cov}, {"delta": delta})
    )
    assert independent.position.item() == pytest.approx(0.326, abs=5e-4)
    assert on_grid.position.item() == pytest.approx(0.02525, abs=5e-5)


def test_coarse_grids_have_a_covariance_and_silence_has_none():
    A, Sigma = spd(2, 0), spd(2, 1)
    for iteration in (
        Iteration("sgd", 0.3),
        Iteration("momentum", 0.01, damping=0.3),
        Iteration("nasgd", 0.3, damping=2.0),
    ):
        velocity = {"velocity_delta": 1.0} if iteration.has_velocity else {}
        V = stationary.predicted_covariance(iteration, A, Sigma, delta=64.0, **velocity)
        assert torch.linalg.eigvalsh(V.position).min() > 0
        silent = stationary.predicted_covariance(
            iteration, A, 0 * Sigma, delta=1.0, **velocity
        )
        assert silent.matrix.abs().max() == 0


def test_the_crossover_is_where_floor_and_noise_are_equal():
    steps, sd, delta = PowerSchedule(0.7, 0.6, offset=5), 1.5, 2**-6
    k = stationary.crossover_step(steps, sd, delta)
    noise = steps(torch.tensor(k)).item() * sd**2 / 2
    floor = stationary.covariance_floor([[1.0]], [GAUSSIAN * sd], delta).item()
    assert noise == pytest.approx(floor)


def test_weights_rounded_to_nearest_freeze():
    steps, delta, largest = PowerSchedule(1.0, 0.5), 2**-3, 2.0
    frozen = stationary.freeze_step(steps, largest, delta)
    assert frozen == pytest.approx(1024)
    generator = torch.Generator().manual_seed(4)
    nearest = grid(delta, "nearest_even")
    x = torch.ones(300, dtype=torch.float64)
    moved = []
    for k in range(1, 1200):
        # Gradients of |g| <= 2, of which many are close to it.
        noise = (
            torch.rand(300, generator=generator, dtype=torch.float64).round() * 4 - 2
        )
        gradient = (0.3 * x + noise).clamp(-largest, largest)
        after = lp.round(x - steps(k) * gradient, nearest)
        if not torch.equal(x, after):
            moved.append(k)
        x = after
    # The bound is sharp: at half a spacing, ties may go to the even neighbour.
    assert 900 < max(moved) <= 1024
    later = PowerSchedule(1.0, 0.5, offset=100)
    assert stationary.freeze_step(later, largest, delta) == pytest.approx(924)
    worst = stationary.freeze_step(steps, [2.0, 1.0], [0.125, 0.03125])
    assert worst == pytest.approx(4096)
    assert stationary.freeze_step(PowerSchedule(1.0, 0.001), 2.0, 0.01) == math.inf


def test_rounding_gradients_shifts_to_nearest_and_not_stochastically():
    # Noise that is spread over the grid but lopsided: two Gaussians, by quantiles.
    generator = torch.Generator().manual_seed(5)
    quantiles = (torch.arange(2048, dtype=torch.float64) + 0.5) / 2048
    normal = 0.4 * torch.distributions.Normal(0.0, 1.0).icdf(quantiles)
    samples = torch.cat([normal + 0.3, normal + 0.3, normal + 0.3, normal - 0.9])
    curvature, alpha, M, steps = 0.5, 0.05, 6000, 800
    shift = stationary.rounding_shift([[curvature]], samples[:, None], 1.0).item()
    assert abs(shift) > 0.02
    for mode, expected in (("nearest_even", shift), ("stochastic", 0.0)):
        x = torch.zeros(M, dtype=torch.float64)
        mean = 0.0
        for k in range(steps):
            noise = samples[torch.randint(len(samples), (M,), generator=generator)]
            g = lp.round(curvature * x + noise, grid(1.0, mode), generator=generator)
            x = x - alpha * g
            if k >= steps // 2:
                mean += x.mean().item() / (steps // 2)
        # The mean has a deviation of 0.7 / (0.5 sqrt(6000 400)) = 0.001, the second
        # order is some 10 % of the shift.
        assert mean == pytest.approx(expected, abs=0.3 * abs(shift))


def test_numbers_of_the_specification_s_logistic_regression():
    A, Sigma, gradients, minimum = logistic_regression()

    def trace(alpha, k=1, **options):
        V = stationary.predicted_covariance(
            Iteration("sgd", alpha), A, Sigma, k, **options
        )
        return V.position.trace().item()

    for delta, expected in ((1.0, 5.95), (0.25, 3.20), (4.0, 22.6)):
        R = stationary.rounding_covariance(gradients, delta)
        assert trace(0.02, r_cov=R) / 0.02 == pytest.approx(expected, rel=3e-3)
    shift = stationary.rounding_shift(A, gradients, 1.0)
    assert shift.norm().item() == pytest.approx(0.288, abs=6e-4)
    ulps = stationary.grid_spacing("bfloat16", minimum)
    for alpha, delta, expected, measured in (
        (0.02, 2**-4, 0.3535, 0.3783), (0.02, 2**-6, 0.0988, 0.1016),
        (PowerSchedule(1.0, 0.5), 2**-6, 0.0881, 0.0892),
        (0.004, ulps, 0.01717, 0.01681),
    ):  # fmt: skip
        step = Iteration("sgd", alpha).step_size(20_000)
        s_cov = stationary.rounding_covariance(gradients, delta, step)
        assert trace(alpha, 20_000, s_cov=s_cov) == pytest.approx(expected, rel=3e-3)
        # Samples and the iterates' own spread: closer to what was measured (with a
        # nonlinear gradient) than a Gaussian, whose E|g| is too large.
        found = trace(alpha, 20_000, delta=delta, samples=gradients)
        assert found == pytest.approx(measured, rel=0.06)
        gaussian = trace(alpha, 20_000, delta=delta)
        assert abs(gaussian / measured - 1) > abs(found / measured - 1)
    largest = np.abs(gradients).max(0)
    frozen = stationary.freeze_step(PowerSchedule(1.0, 0.5), largest, 2**-4)
    assert frozen == pytest.approx(11276, abs=1)


def test_rounded_gradients_keep_the_limit_theorem_with_more_noise():
    generator = torch.Generator().manual_seed(6)
    g = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    R = stationary.rounding_covariance(g, 0.5)
    A, Sigma = spd(2, 0), torch.eye(2, dtype=torch.float64)
    sgd = Iteration("sgd", PowerSchedule(0.5, 0.5))
    with_noise = stationary.predicted_covariance(sgd, A, Sigma, 100_000, r_cov=R)
    limit = stationary.limit_covariance("sgd", A, Sigma + R).position
    W = (with_noise / sgd.step_size(100_000)).position
    assert ((W - limit).norm() / limit.norm()).item() < 0.01


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: stationary.predicted_covariance(
            Iteration("sgd", 0.1), [[1.0]], [[1.0]], delta=0.1, s_cov=[[1.0]]),
         TypeError, "give delta, .* or s_cov"),
        (lambda: stationary.predicted_covariance(
            Iteration("sgd", 0.1), [[1.0]], [[1.0]], velocity_delta=0.1),
         TypeError, "no velocity to round"),
        (lambda: stationary.predicted_covariance(
            Iteration("sgd", 0.1), [[1.0]], [[1.0]], delta=0.0),
         ValueError, "delta must be positive"),
        (lambda: stationary.predicted_covariance(
            Iteration("sgd", 0.1), [[1.0]], [[1.0]], r_cov=[[-2.0]]),
         ValueError, r"Sigma \+ r_cov must be a covariance"),
        (lambda: stationary.predicted_covariance(
            Iteration("sgd", 0.1), [[1.0]], [[1.0]], delta=[0.1, 0.2]),
         ValueError, "delta must be a number or have 1 elements"),
        (lambda: stationary.predicted_covariance(
            Iteration("sgd", 0.1), [[1.0]], [[1.0]], delta=0.1, samples=[1.0]),
         ValueError, r"samples must have the shape \[N, 1\]"),
        (lambda: stationary.gaussian_rounding_variance(1.0, 1.0, mean=1.0, lattice=1.0),
         TypeError, "omit mean or lattice"),
        (lambda: stationary.rounding_covariance([[1.0]], 0.1, mode="up"),
         ValueError, "mode must be"),
        (lambda: stationary.rounding_covariance([1.0], 0.1),
         ValueError, r"samples must have the shape \[N, d\]"),
        (lambda: stationary.rounding_covariance([[1.0]], [0.1, 0.2]),
         ValueError, "delta must be a number, have 1 elements"),
        (lambda: stationary.rounding_shift([[1.0]], [[1.0, 2.0]], 0.1),
         ValueError, "samples must have 1 columns"),
        (lambda: stationary.gaussian_rounding_variance(-1.0, 0.1),
         ValueError, "sd must be nonnegative"),
        (lambda: stationary.covariance_floor([[0.0]], 1.0, 0.1),
         ValueError, "A must be positive definite"),
        (lambda: stationary.freeze_step(PowerSchedule(1.0, 0.5), 0.0, 0.1),
         ValueError, "gmax must be positive"),
    ],
)  # fmt: skip
def test_bad_roundings_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_floating_point_weights_have_the_spacing_of_their_minimum():
    # x* lies between powers of two, several deviations away from both.
    generator = torch.Generator().manual_seed(10)
    minimum = torch.tensor([6.0, -0.75, 24.0], dtype=torch.float64)
    delta = stationary.grid_spacing("bfloat16", minimum)
    assert delta.tolist() == [2**-5, 2**-8, 2**-3]
    bfloat16 = lp.Rounding("bfloat16", "stochastic")
    alpha, M, steps = 0.02, 6000, 500
    noise_sd = torch.tensor([0.5, 0.1, 1.0], dtype=torch.float64)
    x = minimum.expand(M, 3)
    second = torch.zeros(3, dtype=torch.float64)
    for k in range(steps):
        noise = torch.randn(M, 3, generator=generator, dtype=torch.float64) * noise_sd
        x = lp.round(x - alpha * (x - minimum + noise), bfloat16, generator=generator)
        if k >= steps // 2:
            second += (x - minimum).square().mean(0) / (steps // 2)
    iteration, one = Iteration("sgd", alpha), torch.eye(3)
    V = stationary.predicted_covariance(
        iteration, one, torch.diag(noise_sd**2), delta=delta
    ).position
    plain = stationary.predicted_covariance(iteration, one, torch.diag(noise_sd**2))
    # 6000 replicas at some 5 independent times: a deviation of 0.8 % each.
    torch.testing.assert_close(second, V.diagonal(), rtol=0.04, atol=0)
    assert (V.diagonal() > 1.2 * plain.position.diagonal()).all()
