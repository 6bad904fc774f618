"""Bounds, step sizes and the worst-case lemma, judged by mpmath and by search."""

import math

import mpmath
import numpy as np
import pytest
import torch

from lowprec.theory import sgd

mpmath.mp.dps = 40
INFORMATIVE = [(0.4, 0.05, 2.0), (0.1, 0.01, 1.0), (0.5, 0.3, 10.0), (0.0, 0.1, 1.0)]


def close(value, reference, tolerance=1e-14):
    return abs(mpmath.mpf(value) - reference) <= tolerance * abs(reference)


def judge_gamma(eta, R, S, c):
    eta, R, S, c = map(mpmath.mpf, (eta, R, S, c))
    total = R + S / eta
    return max(eta / 2 * (1 + total**2), eta / 2 * (1 - total**2) + c * total)


def judge_best_step(R, S, c):
    R, S, c = map(mpmath.mpf, (R, S, c))
    return mpmath.sqrt(S * (2 * c - S) / (1 - R * R))


def random_parameters(count, seed, informative=True):
    """R, S, c with S < c (1 - R) if informative, over several decades."""
    generator = np.random.default_rng(seed)
    c = 10 ** generator.uniform(-2, 2, count)
    R = generator.uniform(0, 0.999 if informative else 1.5, count)
    share = generator.uniform(1e-3, 0.999, count)
    S = share * c * (1 - R) if informative else share * 2 * c
    return list(zip(R.tolist(), S.tolist(), c.tolist(), strict=True))


# ---- Theorem 4.1


@pytest.mark.parametrize("seed", range(5))
def test_gamma_agrees_with_mpmath(seed):
    generator = np.random.default_rng(seed)
    for R, S, c in random_parameters(100, seed, informative=False):
        eta = 10 ** generator.uniform(-3, 2)
        reference = judge_gamma(eta, R, S, c)
        assert close(sgd.gamma_deterministic(eta, R, S, c), reference, 1e-13)
        total = mpmath.mpf(R) + mpmath.mpf(S) / mpmath.mpf(eta)
        earlier = c * total + mpmath.mpf(eta) / 2 * (1 + total) ** 2
        assert close(sgd.gamma_hu2015(eta, R, S, c), earlier)


@pytest.mark.parametrize(
    ("parameters", "printed", "corrected", "radius", "lower", "upper"),
    [
        (
            INFORMATIVE[0],
            0.336296354567275,
            0.484890758438483,
            1.18730823708833,
            0.0833333333333333,
            2.82142857142857,
        ),
        (
            INFORMATIVE[1],
            0.0994936676326182,
            0.141778031094419,
            0.239360250783475,
            0.0111111111111111,
            1.80909090909091,
        ),
        (
            INFORMATIVE[2],
            1.93907194296653,
            2.80713376952364,
            6.95535032714273,
            0.6,
            13.1333333333333,
        ),
        (
            INFORMATIVE[3],
            0.282842712474619,
            0.435889894354067,
            0.435889894354067,
            0.1,
            1.9,
        ),
    ],
)
def test_table_of_step_sizes(parameters, printed, corrected, radius, lower, upper):
    best = sgd.optimal_step_deterministic(*parameters)
    interval = sgd.informative_interval(*parameters)
    old = sgd.optimal_step_deterministic(*parameters, form="as_printed")
    assert best.eta == pytest.approx(corrected, rel=1e-12)
    assert best.gamma == pytest.approx(radius, rel=1e-12)
    assert old.candidates[1] == pytest.approx(printed, rel=1e-12)
    assert interval.lower == pytest.approx(lower, rel=1e-12)
    assert interval.upper == pytest.approx(upper, rel=1e-12)
    assert not interval.empty
    assert not best.vacuous
    assert best.attained


def test_vacuous_row_of_the_table():
    best = sgd.optimal_step_deterministic(0.9, 0.2, 1.0)
    assert best.vacuous
    assert best.eta == pytest.approx(0.8888888888888889, rel=1e-12)
    assert best.gamma == pytest.approx(1.006944444444444, rel=1e-12)
    assert sgd.informative_interval(0.9, 0.2, 1.0).empty
    assert "vacuous" in str(best)


def test_best_step_beats_every_other_step():
    grid = np.logspace(-1, 1, 2000)
    for R, S, c in random_parameters(1000, seed=1):
        best = sgd.optimal_step_deterministic(R, S, c)
        interval = sgd.informative_interval(R, S, c)
        assert close(best.eta, judge_best_step(R, S, c))
        assert close(best.gamma, judge_gamma(best.eta, R, S, c), 1e-13)
        assert interval.lower < best.eta < interval.upper
        assert best.eta == pytest.approx(
            math.sqrt(interval.lower * interval.upper), rel=1e-12
        )
        steps = torch.from_numpy(best.eta * grid)
        radii = sgd.gamma_deterministic(steps, R, S, c)
        assert radii.min() >= best.gamma * (1 - 1e-12)


def test_hopeless_parameters_have_no_informative_step():
    grid = torch.logspace(-4, 4, 2000, dtype=torch.float64)
    found = 0
    for R, S, c in random_parameters(300, seed=2, informative=False):
        if c * (1 - R) > S:
            continue
        found += 1
        best = sgd.optimal_step_deterministic(R, S, c)
        radii = sgd.gamma_deterministic(grid * c, R, S, c)
        assert best.vacuous
        assert best.gamma >= c * (1 - 1e-12)
        assert radii.min() >= best.gamma * (1 - 1e-12)
    assert found > 100


def test_informative_interval_is_exact():
    for R, S, c in random_parameters(1000, seed=3):
        interval = sgd.informative_interval(R, S, c)
        for end, inside in ((interval.lower, 1 + 1e-9), (interval.upper, 1 - 1e-9)):
            assert judge_gamma(end * inside, R, S, c) < c
            assert judge_gamma(end / inside, R, S, c) > c


def test_radius_is_at_least_c_where_total_error_reaches_one():
    generator = np.random.default_rng(4)
    for _ in range(1000):
        c, eta = 10 ** generator.uniform(-2, 2, 2)
        total = 1 + generator.exponential()
        R = generator.uniform(0, total)
        S = (total - R) * eta
        radius = sgd.gamma_deterministic(eta, R, S, c)
        bound = sgd.bound_liminf(eta, R, S * (1 + 1e-12), c, L=1.0, p=1.0)
        assert radius >= c * (1 - 1e-12)
        assert bound.vacuous or radius < c * (1 + 1e-12)


def test_earlier_radius_exceeds_by_a_known_amount():
    for R, S, c in random_parameters(200, seed=5):
        eta = sgd.optimal_step_deterministic(R, S, c).eta
        total = R + S / eta
        excess = sgd.gamma_hu2015(eta, R, S, c) - sgd.gamma_deterministic(eta, R, S, c)
        assert excess == pytest.approx(eta * total * (1 + total), rel=1e-9)


# ---- Theorem 4.2


@pytest.mark.parametrize(
    ("C_0", "eta", "R", "S", "K", "p", "L", "radius", "bound"),
    [
        (10.0, 0.1, 0.0, 0.0, 50, 1.0, 1.0, 0.05, 10.05),
        (10.0, 0.1, 0.2, 0.01, 50, 1.0, 1.0, 3.0455, 13.0455),
        (1.0, 0.343, 0.1, 0.01, 200, 0.2, 3.0, 0.297793746356, 2.36594518622),
    ],
)
def test_table_of_finite_runs(C_0, eta, R, S, K, p, L, radius, bound):
    finite = sgd.bound_running_min(eta, R, S, C_0, K=K, L=L, p=p)
    limit = sgd.bound_running_min(eta, R, S, C_0, L=L, p=p)
    reference = judge_gamma(eta, R, S, C_0)
    full = reference + mpmath.mpf(C_0) ** 2 / (2 * mpmath.mpf(eta) * K)
    assert finite.value == pytest.approx(bound, rel=1e-11)
    assert limit.gamma == pytest.approx(radius, rel=1e-11)
    assert close(finite.value, L * full ** mpmath.mpf(p))
    assert close(finite.gamma, full)


def test_many_horizons_at_once():
    horizons = torch.tensor([1, 10, 100, 10_000])
    bound = sgd.bound_running_min(
        0.1, 0.1, 0.01, 2.0, K=horizons, L=3.0, p=0.5, f_star=-1.0
    )
    single = [
        sgd.bound_running_min(0.1, 0.1, 0.01, 2.0, K=int(K), L=3.0, p=0.5, f_star=-1.0)
        for K in horizons
    ]
    assert bound.value.tolist() == [one.value for one in single]
    assert bound.vacuous.tolist() == [one.vacuous for one in single]
    assert bound.vacuous.tolist() == [True, True, False, False]
    assert "vacuous in part" in str(bound)


# ---- Theorem 4.3


@pytest.mark.parametrize(
    ("B_s", "eta", "radius"),
    [(0.1, 0.342997170285, 0.388730126323), (0.01, 0.0342997170285, 0.0388730126323)],
)
def test_table_of_stochastic_steps(B_s, eta, radius):
    V_r, V_s = 40 * 0.1**2 / 3, 40 * B_s**2 / 3
    best = sgd.optimal_step_stochastic(d_sigma_r2=V_r, d_sigma_s2=V_s)
    assert best.eta == pytest.approx(eta, rel=1e-11)
    assert best.gamma == pytest.approx(radius, rel=1e-11)
    floor = sgd.stochastic_floor(best.eta, d_sigma_r2=V_r, d_sigma_s2=V_s, L=3.0, p=0.2)
    high = mpmath.sqrt(mpmath.mpf(V_s) * (1 + mpmath.mpf(V_r)))
    assert close(best.gamma, high)
    assert close(floor.gamma, high)
    assert close(floor.value, 3 * high ** mpmath.mpf(0.2))


@pytest.mark.parametrize(
    ("eta", "B_s", "radius", "bound"),
    [
        (0.01, 0.1, 6.67233, 4.38507),
        (0.0348, 0.1, 1.93543, 3.42355),
        (0.343, 0.1, 0.388730, 2.48342),
        (0.1, 0.01, 0.0633333, 1.72762),
    ],
)
def test_table_of_stochastic_floors(eta, B_s, radius, bound):
    floor = sgd.stochastic_floor(
        eta, d_sigma_r2=0.4 / 3, d_sigma_s2=40 * B_s**2 / 3, L=3.0, p=0.2
    )
    assert floor.gamma == pytest.approx(radius, rel=2e-6)
    assert floor.value == pytest.approx(bound, rel=2e-6)


def test_best_stochastic_step_beats_a_grid():
    grid = torch.logspace(-1, 1, 2001, dtype=torch.float64)
    generator = np.random.default_rng(6)
    for V_r, V_s in 10 ** generator.uniform(-4, 2, (200, 2)):
        best = sgd.optimal_step_stochastic(d_sigma_r2=V_r, d_sigma_s2=V_s)
        radii = sgd.gamma_stochastic(best.eta * grid, d_sigma_r2=V_r, d_sigma_s2=V_s)
        assert radii.min() >= best.gamma * (1 - 1e-14)


def test_finite_stochastic_bounds():
    moments = {"d_sigma_r2": 0.5, "d_sigma_s2": 0.25}
    mean = sgd.stochastic_floor_finite(0.5, K=100, C_0=2.0, p=0.5, **moments)
    assert mean.gamma == pytest.approx(0.625 + 0.04)
    assert mean.value == pytest.approx(math.sqrt(0.665))
    smooth = sgd.stochastic_floor_finite(0.5, K=100, C_0=2.0, p=2.0, **moments)
    assert smooth.gamma == mean.gamma
    assert smooth.value == math.inf
    assert smooth.vacuous
    likely = sgd.stochastic_floor_finite(
        0.5, K=100, C_0=10.0, p=2.0, failure_probability=0.25, **moments
    )
    assert likely.value == pytest.approx((4 * 1.625) ** 2)
    assert not likely.vacuous
    assert "probability 0.75" in str(likely)


@pytest.mark.parametrize("V_s", [0.04, 0.06, 0.08])
def test_balance_says_which_error_matters(V_s):
    eta, V_r = 0.5, 0.25
    balance = sgd.error_balance(eta, d_sigma_r2=V_r, d_sigma_s2=V_s)
    total = balance.step + balance.gradient + balance.update
    whole = sgd.gamma_stochastic(eta, d_sigma_r2=V_r, d_sigma_s2=V_s)
    assert total == pytest.approx(whole, rel=1e-15)
    assert balance.update_dominates == (V_s > eta**2 * V_r)
    assert balance.update_dominates == (balance.update > balance.gradient)


# ---- Lemma 7.1


def test_worst_step_attains_the_maximum_and_nothing_exceeds_it():
    generator = np.random.default_rng(7)
    for _ in range(1000):
        eta, C = 10 ** generator.uniform(-2, 1, 2)
        R, B = generator.uniform(0, 1), C * generator.uniform(1e-3, 1)
        dimension = int(generator.integers(2, 5))
        direction = torch.from_numpy(generator.standard_normal(dimension))
        worst = sgd.worst_case_step(eta, R, B, C, direction=direction)
        value = sgd.worst_case_increase(eta, R, B, C)
        scale = eta * (1 + R) ** 2 + 2 * C * (1 + R)
        assert abs(worst.value - value) <= 1e-12 * scale
        g = (direction / direction.norm()).numpy()
        assert worst.offset.norm().item() == pytest.approx(C, rel=1e-12)
        assert worst.error.norm().item() == pytest.approx(R, rel=1e-12, abs=1e-12)
        assert worst.offset.numpy() @ g == pytest.approx(B, rel=1e-9)
        for w, r in feasible_points(generator, g, R, B, C, 20):
            moved = g + r
            assert eta * moved @ moved - 2 * w @ moved <= value + 1e-12 * scale


def feasible_points(generator, g, R, B, C, count):
    for _ in range(count):
        x = generator.uniform(B, C)
        across = generator.standard_normal(len(g))
        across -= (across @ g) * g
        across /= np.linalg.norm(across)
        w = x * g + generator.uniform(0, 1) * math.sqrt(C * C - x * x) * across
        r = generator.standard_normal(len(g))
        yield w, generator.uniform(0, 1) * R * r / np.linalg.norm(r)


def test_worst_step_where_every_error_is_worst():
    worst = sgd.worst_case_step(1.0, 0.5, 1.0, 1.0)
    assert worst.value == pytest.approx(sgd.worst_case_increase(1.0, 0.5, 1.0, 1.0))
    assert worst.error.norm().item() == pytest.approx(0.5)


# ---- Errata: what the paper prints fails


def test_e1_printed_step_size_is_not_optimal():
    printed = sgd.optimal_step_deterministic(0.4, 0.05, 2.0, form="as_printed")
    best = sgd.optimal_step_deterministic(0.4, 0.05, 2.0)
    assert printed.gamma == pytest.approx(1.21488428587989, rel=1e-12)
    assert best.gamma == pytest.approx(1.18730823708833, rel=1e-12)
    missed = 0
    for R, S, c in random_parameters(500, seed=8):
        old = sgd.optimal_step_deterministic(R, S, c, form="as_printed")
        missed += old.gamma > sgd.optimal_step_deterministic(R, S, c).gamma * (1 + 1e-9)
    assert missed > 400


def test_e2_printed_finite_bound_is_false():
    reached = min(abs(10 - 0.1 * k) for k in range(50))
    arguments = {"K": 50, "L": 1.0, "p": 1.0}
    printed = sgd.bound_running_min(0.1, 0.0, 0.0, 10.0, form="as_printed", **arguments)
    corrected = sgd.bound_running_min(0.1, 0.0, 0.0, 10.0, **arguments)
    assert reached == pytest.approx(5.1, rel=1e-9)
    assert printed.value == pytest.approx(1.05, rel=1e-12)
    assert corrected.value == pytest.approx(10.05, rel=1e-12)
    assert printed.value < reached <= corrected.value
    assert "as printed, which is false" in str(printed)


def test_e5_printed_step_belongs_to_a_tenth_of_the_update_error():
    printed = 0.0348
    V_r = V_s = 40 * 0.1**2 / 3
    stated = sgd.optimal_step_stochastic(d_sigma_r2=V_r, d_sigma_s2=V_s)
    likely = sgd.optimal_step_stochastic(d_sigma_r2=V_r, d_sigma_s2=V_s / 100)
    assert stated.eta > 9 * printed
    assert likely.eta == pytest.approx(0.0343, abs=5e-5)


def test_e13_printed_lemma_is_not_attained():
    generator = np.random.default_rng(9)
    exceeded = 0
    for _ in range(1000):
        eta, C = generator.uniform(0.01, 2, 2)
        R, B = generator.uniform(0, 1), C * generator.uniform(0, 1)
        value = sgd.worst_case_increase(eta, R, B, C)
        printed = sgd.worst_case_increase(eta, R, B, C, form="as_printed")
        assert printed >= value
        if printed > value:
            exceeded += 1
            assert eta < B
    assert exceeded > 50
