"""Second moments at a finite step: exact, quasi-static, and their limits."""

import pytest
import torch
from stationary_cases import spd

from lowprec.schedules import InverseTimeDamping, Iteration, PowerSchedule
from lowprec.theory import stationary

STEPS = PowerSchedule(0.3, 0.5)
ITERATIONS = [
    Iteration("sgd", STEPS),
    Iteration("heavy_ball", STEPS, momentum=0.5),
    Iteration("momentum", STEPS, damping=0.8),
    Iteration("momentum", STEPS, damping=InverseTimeDamping(2.0, STEPS)),
    Iteration("nesterov", lambda k: 0.2 / k**0.3, momentum=0.4),
    Iteration("nesterov", STEPS, damping=PowerSchedule(1.0, 0.2)),
    Iteration("nasgd", STEPS, damping=0.8),
]
every = pytest.mark.parametrize("iteration", ITERATIONS, ids=lambda x: x.method)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def step_matrices(iteration, A, k):
    """M_k and N_k of Z_k = M_k Z_{k-1} + N_k xi_k, from the definition."""
    eye = torch.eye(len(A), dtype=torch.float64)
    if iteration.method == "sgd":
        alpha = iteration.schedule(k)
        return eye - alpha * A, alpha * eye
    alpha, retained, advance, ahead = iteration.coefficients(k)
    velocity = torch.cat([-alpha * A, retained * eye - alpha * ahead * A], 1)
    position = torch.cat([eye, 0 * eye], 1) + advance * velocity
    return torch.cat([position, velocity]), torch.cat(
        [advance * alpha * eye, alpha * eye]
    )


@every
@pytest.mark.parametrize("n", [1, 2, 3, 57])
def test_the_recursion_is_that_of_its_matrices(iteration, n):
    A, Sigma = spd(3, 0), spd(3, 1)  # they do not commute
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    V = torch.zeros(6, 6, dtype=torch.float64)
    V[:3, :3] = start.outer(start)
    if iteration.method == "sgd":
        V = V[:3, :3]
    for k in range(1, n + 1):
        M, N = step_matrices(iteration, A, k)
        V = M @ V @ M.T + N @ Sigma @ N.T
    found = stationary.linear_covariance(iteration, A, Sigma, n, start)
    assert relative(found.matrix, V) < 1e-13


def test_many_counts_at_once_are_those_one_by_one():
    A, Sigma = spd(2, 0), spd(2, 1)
    counts = [1, 10, 11, 500]
    together = stationary.linear_covariance(ITERATIONS[2], A, Sigma, counts, 1.0)
    assert together.matrix.shape == (4, 4, 4)
    alpha = torch.tensor([STEPS(n) for n in counts])
    for i, n in enumerate(counts):
        one = stationary.linear_covariance(ITERATIONS[2], A, Sigma, n, 1.0)
        torch.testing.assert_close(together.matrix[i], one.matrix)
        torch.testing.assert_close(
            (together / alpha).matrix[i], (one / alpha[i]).matrix
        )


def test_steps_of_one_over_k_reach_the_limit_with_d0():
    # C1: lambda_i + lambda_j - d0, not 2 d0.
    A = torch.diag(torch.tensor([0.4, 1.0, 2.5], dtype=torch.float64))
    Sigma, steps = spd(3, 5), PowerSchedule(1 / 0.3, 1.0)
    V = stationary.linear_covariance(Iteration("sgd", steps), A, Sigma, 1_000_000)
    limit = stationary.limit_covariance("sgd", A, Sigma, d0=steps.d0).position
    assert relative(V.position / steps(1_000_000), limit) < 1e-5
    wrong = Sigma / (A.diagonal()[:, None] + A.diagonal() - 2 * steps.d0)
    assert relative(V.position / steps(1_000_000), wrong) > 0.2


@pytest.mark.parametrize(("a", "bias"), [(0.25, 0.0143), (0.5, 0.0024), (0.75, 0.0448)])
def test_the_quasi_static_bias_of_a_scalar(a, bias):
    curvature, k, steps = 0.5, 100_000, PowerSchedule(1.0, a)
    iteration = Iteration("sgd", steps)
    limit = 1 / (2 * curvature)
    exact = stationary.linear_covariance(iteration, [[curvature]], [[1.0]], k)
    found = exact.position.item() / steps(k) / limit - 1
    formula = (
        1 / (1 - steps.decay_rate(k) / (2 * curvature) - steps(k) * curvature / 2) - 1
    )
    assert found == pytest.approx(bias, abs=6e-5)
    assert formula == pytest.approx(found, rel=0.02)
    slow = stationary.predicted_covariance(iteration, [[curvature]], [[1.0]], k)
    assert slow.position.item() / steps(k) / limit - 1 == pytest.approx(
        formula, rel=1e-9
    )


@pytest.mark.parametrize(
    "iteration",
    # With vanishing damping they relax too slowly.
    [x for x in ITERATIONS if not callable(x.damping)],
    ids=lambda x: x.method,
)
def test_the_quasi_static_covariance_follows_the_exact_one(iteration):
    A, Sigma = spd(3, 0), spd(3, 1)
    exact = stationary.linear_covariance(iteration, A, Sigma, 20_000).position
    slow = stationary.predicted_covariance(iteration, A, Sigma, 20_000).position
    fixed = iteration.decay(20_000)
    assert relative(slow, exact) < 2e-3
    assert fixed > 0


@every
def test_a_constant_step_has_the_stationary_covariance_of_its_matrices(iteration):
    if iteration.damping is not None:
        constant = Iteration(iteration.method, 0.1, damping=0.7)
    else:
        beta = None if iteration.method == "sgd" else 0.6
        constant = Iteration(iteration.method, 0.1, momentum=beta)
    A, Sigma = spd(3, 0), spd(3, 1)
    V = stationary.predicted_covariance(constant, A, Sigma).matrix
    M, N = step_matrices(
        constant if constant.method != "sgd" else Iteration("sgd", lambda k: 0.1), A, 1
    )
    assert relative(M @ V @ M.T + N @ Sigma @ N.T, V) < 1e-12
    later = stationary.linear_covariance(constant, A, Sigma, 3000).matrix
    assert relative(later, V) < 1e-9


@pytest.mark.parametrize("seed", [0, 1])
def test_the_paper_and_nesterov_have_their_own_limits(seed):
    A, Sigma, steps = spd(3, seed), spd(3, seed + 9), PowerSchedule(0.5, 0.5)
    limits = {
        method: stationary.limit_covariance(method, A, Sigma, damping=0.8).matrix
        for method in ("nesterov", "nasgd")
    }
    for method in limits:
        V = stationary.linear_covariance(
            Iteration(method, steps, damping=0.8), A, Sigma, 40_000
        )
        W = (V / steps(40_000)).matrix
        for other, limit in limits.items():
            if other == method:
                assert relative(W, limit) < 0.02
            else:
                assert relative(W, limit) > 0.3


def test_a_damped_nesterov_is_the_classical_one_with_squared_steps():
    # (5) with steps alpha_k^2 and beta_k = (1 - mu alpha_{k+1}) alpha_{k+1} / alpha_k
    steps, mu = PowerSchedule(0.5, 0.6), 0.7
    classical = Iteration(
        "nesterov",
        lambda k: steps(k) ** 2,
        momentum=lambda k: (1 - mu * steps(k + 1)) * steps(k + 1) / steps(k),
    )
    damped = Iteration("nesterov", steps, damping=mu)
    A, Sigma = spd(3, 0), spd(3, 1)
    first, second = (
        stationary.linear_covariance(x, A, Sigma, 300, 2.0).position
        for x in (classical, damped)
    )
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)


def test_sampling_floors_are_the_errors_of_gaussian_samples():
    W = spd(4, 2)
    floor = stationary.sampling_floor(W, 50)
    generator = torch.Generator().manual_seed(3)
    root = torch.linalg.cholesky(W)
    samples = (
        torch.randn(4000, 50, 4, generator=generator, dtype=torch.float64) @ root.T
    )
    estimates = samples.mT @ samples / 50
    errors = (estimates - W).norm(dim=(1, 2)) / W.norm()
    # The mean square has a relative deviation of about 1.5/sqrt(4000) = 2.4 %, its root
    # half of that: 6 deviations, 2e-9.
    assert errors.square().mean().sqrt().item() == pytest.approx(floor, rel=0.072)
    assert stationary.effective_dimension(torch.diag(torch.tensor([1.0, 0.0]))) == 1
    ratio = stationary.sampling_floor(W, 5, known_mean=False) / floor
    assert ratio == pytest.approx((50 / 4) ** 0.5)


def test_bad_requests_are_refused():
    sgd = Iteration("sgd", 0.5)
    with pytest.raises(ValueError, match=r"n must increase, got \[5, 5\]"):
        stationary.linear_covariance(sgd, [[1.0]], [[1.0]], [5, 5])
    with pytest.raises(ValueError, match="n counts steps"):
        stationary.linear_covariance(sgd, [[1.0]], [[1.0]], 0)
    with pytest.raises(ValueError, match="x0 must be a number or have 1 elements"):
        stationary.linear_covariance(sgd, [[1.0]], [[1.0]], 5, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"radius .*SGD needs alpha < 2/lam"):
        stationary.predicted_covariance(sgd, [[4.0]], [[1.0]])
    fast = Iteration("sgd", PowerSchedule(0.1, 1.0))
    with pytest.raises(ValueError, match="shrinks too fast"):
        stationary.predicted_covariance(fast, [[1.0]], [[1.0]], 1000)
    with pytest.raises(ValueError, match="M counts steps"):
        stationary.sampling_floor([[1.0]], 0)
    with pytest.raises(ValueError, match="at least 2 if the mean is estimated"):
        stationary.sampling_floor([[1.0]], 1, known_mean=False)
    with pytest.raises(ValueError, match="W must not be zero"):
        stationary.effective_dimension([[0.0]])


def test_divergence_and_nothing_to_do_are_refused():
    with pytest.raises(ValueError, match="overflow within 2000 steps"):
        stationary.linear_covariance(Iteration("sgd", 3.0), [[1.0]], [[1.0]], 2000)
    with pytest.raises(ValueError, match="one or more numbers of steps, got none"):
        stationary.linear_covariance(Iteration("sgd", 0.1), [[1.0]], [[1.0]], [])
