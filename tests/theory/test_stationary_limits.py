"""Limit covariances: closed forms against Lyapunov solvers, rates, and refusals."""

import numpy as np
import pytest
import scipy.linalg
import torch
from stationary_cases import logistic_regression, spd

from lowprec.schedules import InverseTimeDamping, Iteration, PowerSchedule
from lowprec.theory import stationary

METHODS = ["momentum", "nesterov", "nasgd"]


def kronecker(D, S, d0):
    """Solve (D - d0/2) W + W (D - d0/2)^T = S as linear equations."""
    n = len(D)
    eye = torch.eye(n, dtype=torch.float64)
    shifted = D - d0 / 2 * eye
    matrix = torch.kron(shifted, eye) + torch.kron(eye, shifted)
    return torch.linalg.solve(matrix, S.flatten()).view(n, n)


def noise_of(D, Sigma):
    """Sigma in the corner of v."""
    S = torch.zeros_like(D)
    S[-len(Sigma) :, -len(Sigma) :] = Sigma
    return S


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("d0", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(
    ("method", "damping"),
    [("sgd", None), *((m, mu) for m in METHODS for mu in (0.2, 1.0, 3.0))],
)
def test_closed_forms_solve_the_lyapunov_equation(method, damping, d0):
    for seed in range(5):
        A, Sigma = spd(4, seed), spd(4, seed + 50)
        D = stationary.drift_matrix(method, A, damping)
        S = noise_of(D, Sigma)
        if 2 * stationary.drift_rate(method, A, damping) <= d0:
            for refused in (
                lambda A=A, Sigma=Sigma: stationary.limit_covariance(
                    method, A, Sigma, damping=damping, d0=d0
                ),
                lambda D=D, S=S: stationary.lyapunov(D, S, d0),
            ):
                with pytest.raises(ValueError, match=r"d0 < 2 \w+ fails: d0 = 0\."):
                    refused()
            continue
        closed = stationary.limit_covariance(method, A, Sigma, damping=damping, d0=d0)
        assert relative(closed.matrix, kronecker(D, S, d0)) < 1e-10
        assert relative(stationary.lyapunov(D, S, d0), closed.matrix) < 1e-10
        assert torch.linalg.eigvalsh(closed.matrix).min() > 0


@pytest.mark.parametrize("n", [1, 2, 30, 100])
def test_lyapunov_agrees_with_scipy(n):
    generator = torch.Generator().manual_seed(n)
    D = torch.randn(n, n, generator=generator, dtype=torch.float64) / n**0.5
    D = D + 1.2 * torch.eye(n, dtype=torch.float64)  # eigenvalues fill the unit disk
    S = spd(n, 1)
    rate = torch.linalg.eigvals(D).real.min().item()
    for d0 in (0.0, rate):
        W = stationary.lyapunov(D, S, d0)
        shifted = D - d0 / 2 * torch.eye(n, dtype=torch.float64)
        theirs = scipy.linalg.solve_continuous_lyapunov(shifted.numpy(), S.numpy())
        assert relative(W, torch.from_numpy(theirs)) < 1e-10
        assert relative(shifted @ W + W @ shifted.T, S) < 1e-12


def test_lyapunov_solves_where_eigenvectors_are_missing():
    # Critical damping: D has one eigenvector.
    D = stationary.drift_matrix("momentum", [[1.0]], 2.0)
    S = torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))
    W = stationary.lyapunov(D, S)
    torch.testing.assert_close(W, torch.eye(2, dtype=torch.float64) / 4)


def test_the_example_of_the_paper():
    # C9: A = cI gives diag(Sigma / (2 c mu), Sigma / (2 mu)).
    Sigma = spd(3, 0)
    W = stationary.limit_covariance(
        "momentum", 2 * torch.eye(3), Sigma, damping=0.7
    ).matrix
    expected = torch.block_diag(Sigma / (4 * 0.7), Sigma / (2 * 0.7))
    torch.testing.assert_close(W, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_rates_are_those_of_the_drift_matrix(method):
    for seed in range(100):
        generator = np.random.default_rng(seed)
        A = spd(3, seed) * 10 ** generator.uniform(-2, 2)
        damping = 10 ** generator.uniform(-2, 2)
        D = stationary.drift_matrix(method, A, damping).numpy()
        rate = stationary.drift_rate(method, A, damping)
        # Eigenvalues next to critical damping are known to sqrt(eps) only.
        assert rate == pytest.approx(np.linalg.eigvals(D).real.min(), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_corrected_bound_on_the_rate_holds_and_the_printed_one_does_not(method):
    generator = np.random.default_rng(7)
    false = 0
    for _ in range(1000):
        mu, L, damping = np.exp(generator.uniform(-4, 4, 3))
        mu, L = min(mu, L), max(mu, L)
        middle = np.exp(generator.uniform(np.log(mu), np.log(L)))
        A = torch.diag(torch.tensor([mu, middle, L], dtype=torch.float64))
        rate = stationary.drift_rate(method, A, damping)
        assert stationary.drift_rate_bound(method, mu, L, damping) <= 2 * rate
        printed = stationary.drift_rate_bound(method, mu, L, damping, form="as_printed")
        false += printed > rate
    assert false > 800  # of 1000; the paper says that none is


def test_numbers_of_the_specification_s_logistic_regression():
    A, Sigma = logistic_regression()[:2]
    assert np.trace(A) == pytest.approx(2.221593, abs=1e-6)
    W = stationary.limit_covariance("sgd", A, Sigma).position
    assert W.trace().item() == pytest.approx(2.959600, abs=1e-6)
    assert W.norm().item() == pytest.approx(0.952358, abs=1e-6)
    assert stationary.effective_dimension(W) == pytest.approx(9.6575, abs=1e-4)
    assert stationary.sampling_floor(W, 1) == pytest.approx(3.2646, abs=1e-4)
    for method, rate, of_x, of_v, norm in (
        ("momentum", 0.1, 14.7980, 3.33752, 4.88284),
        ("nasgd", 0.17810, 6.97980, 1.56364, 2.29292),
    ):
        found = stationary.limit_covariance(method, A, Sigma, damping=0.2)
        assert stationary.drift_rate(method, A, 0.2) == pytest.approx(rate, abs=1e-5)
        assert found.position.trace().item() == pytest.approx(of_x, abs=1e-4)
        assert found.velocity.trace().item() == pytest.approx(of_v, abs=1e-5)
        assert found.matrix.norm().item() == pytest.approx(norm, abs=1e-5)


def test_the_projection_commutes_and_keeps_what_commutes():
    A = torch.block_diag(2 * torch.eye(2), 3 * torch.eye(1)).to(torch.float64)
    rotation = torch.linalg.qr(spd(3, 3)).Q
    A, Sigma = rotation @ A @ rotation.T, spd(3, 4)
    projected = stationary.commutant_projection(A, Sigma)
    torch.testing.assert_close(A @ projected, projected @ A)
    again = stationary.commutant_projection(A, projected)
    torch.testing.assert_close(again, projected)
    # Of all that commutes it is the closest: the rest is orthogonal.
    rest = Sigma - projected
    for other in (A, A @ A, projected, torch.eye(3, dtype=torch.float64)):
        assert abs((rest * other).sum().item()) < 1e-12
    equal = stationary.commutant_projection(torch.eye(3), Sigma)
    torch.testing.assert_close(equal, Sigma)


def test_vanishing_damping_approaches_the_projected_limit_not_the_naive_one():
    steps, damping = PowerSchedule(0.5, 0.6), PowerSchedule(1.0, 0.2)
    iteration = Iteration("momentum", steps, damping=damping)
    A = torch.diag(torch.tensor([0.5, 2.0], dtype=torch.float64))
    Sigma = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    limit = stationary.vanishing_damping_covariance(A, Sigma, steps, damping).matrix
    naive = torch.block_diag(torch.linalg.solve(A, Sigma), Sigma) / 2
    counts = [10_000, 300_000]
    V = stationary.linear_covariance(iteration, A, Sigma, counts)
    beta = torch.tensor([steps(n) / damping(n) for n in counts], dtype=torch.float64)
    W = (V / beta).matrix
    errors = [relative(w, limit) for w in W]
    assert errors[1] < 0.7 * errors[0]
    assert errors[1] < 0.2
    assert relative(W[1], naive) > 0.5


def test_the_limit_is_inflated_on_the_boundary():
    # Remark 4.4 with K_mu = 8, a = 0.75: 1/(1 - c0) = 4/3 times 1/2, as the second
    # moment of the exact recursion confirms.
    steps = PowerSchedule(0.5, 0.75)
    damping = InverseTimeDamping(8.0, steps)
    limit = stationary.vanishing_damping_covariance([[1.0]], [[1.0]], steps, damping)
    assert limit.position.item() == pytest.approx(2 / 3)
    iteration = Iteration("momentum", steps, damping=damping)
    V = stationary.linear_covariance(iteration, [[1.0]], [[1.0]], 400_000)
    beta = steps(400_000) / damping(400_000)
    assert V.position.item() / beta == pytest.approx(0.6554, abs=2e-3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: stationary.limit_covariance("sgd", [[1.0, 0], [0, -0.5]], np.eye(2)),
         ValueError, "A must be positive definite, but its smallest eigenvalue"),
        (lambda: stationary.limit_covariance("sgd", np.zeros((2, 2)), np.eye(2)),
         ValueError, "A must be positive definite"),
        (lambda: stationary.limit_covariance("sgd", [[1.0, 0.5], [0, 1.0]], np.eye(2)),
         ValueError, "A must be symmetric"),
        (lambda: stationary.limit_covariance("sgd", [[1.0, 2.0]], np.eye(2)),
         ValueError, "A must be a square matrix"),
        (lambda: stationary.limit_covariance("sgd", [[1.0]], [[-1.0]]),
         ValueError, "Sigma must be a covariance"),
        (lambda: stationary.limit_covariance("sgd", [[1.0]], np.eye(2)),
         ValueError, "Sigma must be 1 x 1 as A is"),
        (lambda: stationary.limit_covariance("sgd", [[float("nan")]], [[1.0]]),
         ValueError, "A must be finite"),
        (lambda: stationary.limit_covariance("sgd", [[1.0]], [[1.0]], d0=2.0),
         ValueError, r"not positive stable.*d0 < 2 mu fails: d0 = 2, mu = 1"),
        (lambda: stationary.limit_covariance("momentum", [[1.0]], [[1.0]]),
         TypeError, "method 'momentum' takes a damping, got damping=None"),
        (lambda: stationary.limit_covariance("sgd", [[1.0]], [[1.0]], damping=1.0),
         TypeError, "method 'sgd' takes no damping"),
        (lambda: stationary.limit_covariance("heavy_ball", [[1.0]], [[1.0]]),
         ValueError, "heavy_ball has no drift of its own"),
        (lambda: stationary.limit_covariance("adam", [[1.0]], [[1.0]]),
         ValueError, "method must be"),
        (lambda: stationary.limit_covariance("nasgd", [[1.0]], [[1.0]], damping=-1.0),
         ValueError, "damping must be positive"),
        (lambda: stationary.lyapunov([[-1.0]], [[1.0]]),
         ValueError, "rate lambda_D = -1, which must be positive"),
        (lambda: stationary.lyapunov(np.eye(2), np.eye(3)),
         ValueError, "S must be as large as D"),
        (lambda: stationary.drift_rate_bound("momentum", 2.0, 1.0, 1.0),
         ValueError, "mu must not exceed L"),
        (lambda: stationary.drift_rate_bound("sgd", 1.0, 1.0, 1.0),
         ValueError, "which have damping"),
        (lambda: stationary.vanishing_damping_covariance(
            [[1.0]], [[1.0]], PowerSchedule(1.0, 0.9), PowerSchedule(1.0, 0.2)),
         ValueError, r"these conditions fail: sum of .* a \+ b = 1.1 <= 1"),
    ],
)  # fmt: skip
def test_what_has_no_limit_is_refused_with_the_reason(call, error, message):
    with pytest.raises(error, match=message):
        call()
