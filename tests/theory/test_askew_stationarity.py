"""Stationary points, Lyapunov functions and the randomized index."""

import math

import pytest
import torch

from lowprec.theory import askew
from lowprec.theory.askew import Remoteness

KINDS = ("quadratic", "quartic", "quartic_ext")
LEVELS = ((-1, 1), (-2, -1, 0, 1), (1, 3, 7, 8, 11))
CASES = [(kind, levels) for kind in KINDS for levels in LEVELS]


def remoteness(kind, levels, share):
    return Remoteness(levels, share * Remoteness(levels, 1, kind).epsilon_max, kind)


def random_points(levels, count, seed):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    span = levels[-1] - levels[0]
    return levels[0] - span / 2 + 2 * span * uniform, normal


# ---- stationarity


@pytest.mark.parametrize("share", [0.05, 0.8])
@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_residual_is_zero_exactly_where_the_direction_vanishes(kind, levels, share):
    psi = remoteness(kind, levels, share)
    ends = torch.tensor(psi.pieces, dtype=torch.float64).flatten()
    w = torch.cat([ends, torch.tensor(psi.levels), random_points(levels, 200, 1)[0]])
    found = 0
    for gradient in (-0.5, 0.0, 0.5):
        g = torch.full_like(w, gradient)
        # psi is not exactly zero at a rounded end of C: u stands for 0 below 1e-12
        v = askew.velocity(w, g, psi, alpha=0.7, clip=2.0)
        still = v.abs() < 1e-12
        for one, slope, zero in zip(w, g, still.tolist(), strict=True):
            residual = askew.kkt_residual(one, slope, psi)
            at_end = (one - ends).abs().min() < 1e-9
            if slope == 0 or not at_end:
                assert (residual < 1e-9) == zero
            found += residual == 0
    assert found > len(ends)


def test_residual_by_hand():
    psi = Remoteness((-1, 1), 0.2)
    low, high = psi.pieces[0]
    for w, gradient, expected in [
        (low, 0.7, 0.0),  # wants to leave to the left
        (low, -0.7, 0.7),
        (high, -0.7, 0.0),  # wants to leave to the right
        (high, 0.7, 0.7),
        (low, 0.0, 0.0),  # the report excludes this one (erratum E3)
        (-1.0, 0.7, 0.7),
        (-1.0, 0.0, 0.0),
        (low - 0.25, 0.7, 0.25),
        (low - 0.25, -0.7, 0.7),
        (0.0, -9.0, 9.0),  # projected up, where -g points into C
        (0.0, 0.0, -high),
    ]:
        residual = askew.kkt_residual(w, gradient, psi)
        assert residual == pytest.approx(expected, abs=1e-15), (w, gradient)


def test_residual_of_a_vector_is_the_largest():
    psi = Remoteness((-1, 1), 0.2)
    assert askew.kkt_residual([[-1.0, 1.0]], [[0.25, -0.5]], psi) == 0.5
    assert askew.kkt_residual([], [], psi) == 0.0
    with pytest.raises(ValueError, match="tolerance must be nonnegative"):
        askew.kkt_residual(0.0, 0.0, psi, tolerance=-1.0)


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_small_steps_reach_a_stationary_point(kind, levels):
    psi = remoteness(kind, levels, 0.3)
    w, target = random_points(levels, 12, 4)[0], random_points(levels, 12, 5)[0]
    for _ in range(600):
        v = askew.velocity(w, w - target, psi, alpha=1.0, clip=2.0)
        w = w + 0.04 * v
    assert askew.kkt_residual(w, w - target, psi, tolerance=1e-4) < 1e-4


# ---- Lyapunov functions


@pytest.mark.parametrize("share", [0.05, 0.8])
@pytest.mark.parametrize(("kind", "levels"), CASES)
@pytest.mark.parametrize("clip", [0.5, 5.0])
def test_exact_penalty_decreases_along_every_direction(kind, levels, share, clip):
    """Correction of E20, in every index set and with an active clip."""
    psi = remoteness(kind, levels, share)
    ends = torch.tensor(psi.pieces, dtype=torch.float64).flatten()
    w, normal = random_points(levels, 500, 6)
    # psi at a rounded end has any sign, so beside the ends
    w = torch.cat([w, ends - 1e-9, ends + 1e-9])
    g = normal.repeat(2)[: len(w)].clamp(-2, 2)
    b = askew.distance_lyapunov_rate(mu=2.5, G=2.0, clip=clip)
    v = askew.velocity(w, g, psi, alpha=0.7, clip=clip)
    for i in range(len(w)):
        point = g[i], w[i], v[i]
        slope = askew.distance_lyapunov_slope(*point, psi, mu=2.5)
        assert slope <= -b * v[i].item() ** 2 + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("midpoint", ["report", "gradient"])
def test_exact_penalty_decreases_from_a_mid_point(kind, gradient, midpoint):
    psi = remoteness(kind, (-1, 1), 0.3)
    v = askew.velocity(0.0, gradient, psi, alpha=0.7, clip=0.5, midpoint=midpoint)
    b = askew.distance_lyapunov_rate(mu=2.5, G=2.0, clip=0.5)
    slope = askew.distance_lyapunov_slope(gradient, 0.0, v, psi, mu=2.5)
    assert slope <= -b * v.item() ** 2


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_slope_is_the_difference_quotient(kind, levels):
    psi = remoteness(kind, levels, 0.3)
    w, g = random_points(levels, 50, 7)
    v = askew.velocity(w, g, psi, alpha=0.7, clip=2.0)
    step = 1e-8

    def function(x):
        return askew.distance_lyapunov((g * x).sum(), x, psi, mu=3.0)

    quotient = (function(w + step * v) - function(w)) / step
    slope = askew.distance_lyapunov_slope(g, w, v, psi, mu=3.0)
    assert slope == pytest.approx(quotient, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_gradient_of_the_squared_penalty_against_differences(kind, levels):
    psi = remoteness(kind, levels, 0.3)
    w, g = random_points(levels, 40, 8)
    gradient = askew.penalty_lyapunov_gradient(g, w, psi, alpha=0.7)

    def function(x):
        return askew.penalty_lyapunov((g * x).sum(), x, psi, alpha=0.7)

    for i in range(len(w)):
        step = torch.zeros_like(w)
        step[i] = 1e-6
        quotient = (function(w + step) - function(w - step)) / 2e-6
        assert gradient[i].item() == pytest.approx(quotient, rel=1e-4, abs=2e-4)


def test_squared_penalty_increases_in_most_of_the_set_that_hurts():
    """Erratum E20: Theorem 6 claims a decrease of at least b ||v||^2."""
    psi = Remoteness((-1, 1), 0.2)
    w, g = random_points((-1, 1), 4000, 9)
    g = 3 * g
    hurts = askew.index_sets(w, g, psi, alpha=0.2).skew_hurts
    v = askew.velocity(w, g, psi, alpha=0.2)
    slope = v * askew.penalty_lyapunov_gradient(g, w, psi, alpha=0.2)
    assert (slope[hurts] > 0).double().mean() > 0.5


@pytest.mark.parametrize(
    ("mu", "G", "clip", "text"),
    [
        (1.0, 1.0, 1.0, "mu must exceed G"),
        (1.0, 0.5, 0.0, "clip"),
        (1.0, -1.0, 1.0, "G"),
    ],
)
def test_bad_rates_are_refused(mu, G, clip, text):
    with pytest.raises(ValueError, match=text):
        askew.distance_lyapunov_rate(mu=mu, G=G, clip=clip)


# ---- the randomized index


def test_law_of_the_specification():
    law = askew.index_law([1 / (k + 1) for k in range(3, 7)])
    expected = [0.329153605, 0.263322884, 0.219435737, 0.188087774]
    assert law.tolist() == pytest.approx(expected, rel=1e-8)


def test_law_of_the_notes_is_the_same():
    """P(t + N_0) = 1/(H_k (t + N_0 + 1)) for gamma_k = gamma_0/(k + 1), N_0 = k_0."""
    for start, k in ((0, 1), (3, 4), (17, 90)):
        H = sum(1 / (t + start + 1) for t in range(k))
        notes = [1 / (H * (t + start + 1)) for t in range(k)]
        law = askew.index_law([0.3 / (t + start + 1) for t in range(k)])
        assert law.tolist() == pytest.approx(notes, rel=1e-13)


def test_streaming_sampler_has_that_law():
    steps = [1 / (k + 1) for k in range(3, 11)]
    generator = torch.Generator().manual_seed(2)
    draws = 6000
    counts = torch.zeros(len(steps), dtype=torch.float64)
    for _ in range(draws):
        kept = askew.RandomIterate(generator)
        for k, step in enumerate(steps):
            if kept.offer(step):
                kept.keep(k)
        assert kept.value == kept.index
        counts[kept.index] += 1
    expected = draws * askew.index_law(steps)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 24.3  # 99.9 percent point for 7 degrees of freedom


def test_sampler_keeps_the_first_and_forgets_what_it_replaces():
    kept = askew.RandomIterate()
    assert (kept.index, kept.value) == (None, None)
    assert kept.offer(0.1)
    kept.keep("first")
    assert (kept.index, kept.value) == (0, "first")
    assert kept.offer(1e300)  # outweighs everything before
    assert (kept.index, kept.value) == (1, None)
    kept.keep("second")
    assert not kept.offer(1e-300)
    assert (kept.index, kept.value, kept.offered) == (1, "second", 3)


@pytest.mark.parametrize("step", [0.0, -1.0, math.inf, math.nan])
def test_bad_step_sizes_are_refused(step):
    kept = askew.RandomIterate()
    with pytest.raises(ValueError, match="step_size must be positive"):
        kept.offer(step)
    assert kept.offered == 0
    with pytest.raises(ValueError, match="step_sizes must be positive"):
        askew.index_law([0.1, step])


@pytest.mark.parametrize("steps", [[], [[0.1]], 0.1])
def test_law_needs_a_sequence(steps):
    with pytest.raises(ValueError, match="nonempty sequence"):
        askew.index_law(steps)
