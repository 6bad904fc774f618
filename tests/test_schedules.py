"""Power-law schedules: their constants, their sums and what limit theorems ask."""

import math

import mpmath
import pytest
import torch

from lowprec.schedules import InverseTimeDamping, Iteration, PowerSchedule

EXPONENTS = [0.1, 0.25, 0.5, 0.75, 0.999999, 1.0]


@pytest.mark.parametrize("a", EXPONENTS)
@pytest.mark.parametrize("offset", [0, 0.5, 100])
def test_partial_sums_equal_the_zeta_function(a, offset):
    schedule = PowerSchedule(0.3, a, offset)
    with mpmath.workdps(40):
        for power in (1, 2):
            s = mpmath.mpf(a) * power
            for n in (1, 2, 23, 24, 25, 1000, 10**9):
                if s == 1:
                    total = mpmath.digamma(n + 1 + offset) - mpmath.digamma(1 + offset)
                else:
                    total = mpmath.zeta(s, 1 + offset) - mpmath.zeta(s, n + 1 + offset)
                exact = mpmath.mpf(0.3) ** power * total
                error = schedule.partial_sum(n, power) / exact - 1
                assert abs(error) < 4e-15, (n, power)


@pytest.mark.parametrize("a", EXPONENTS)
def test_tensors_and_integers_agree(a):
    schedule = PowerSchedule(2, a, offset=3)
    damping = InverseTimeDamping(0.5, schedule)
    steps = torch.tensor([[1, 7], [30, 10**6]])
    for function in (schedule, schedule.decay_rate, schedule.partial_sum, damping):
        values = function(steps)
        assert values.dtype == torch.float64
        assert values.shape == steps.shape
        single = [[function(int(k)) for k in row] for row in steps]
        torch.testing.assert_close(values, torch.tensor(single, dtype=torch.float64))


@pytest.mark.parametrize("a", EXPONENTS)
def test_decay_rate_is_the_difference_of_steps_and_tends_to_d0(a):
    schedule = PowerSchedule(0.7, a)
    with mpmath.workdps(50):
        for k in (1, 10, 10**6):
            exponent = mpmath.mpf(a)
            now, after = (mpmath.mpf(0.7) * j**-exponent for j in (k, k + 1))
            assert abs(schedule.decay_rate(k) / ((now - after) / now**2) - 1) < 1e-14
    if a != 0.999999:
        assert abs(schedule.decay_rate(10**12) - schedule.d0) < 2e-3


def test_sgd_needs_a_decay_slower_than_twice_the_curvature():
    # C2: at mu = 1 the variance over alpha diverges for K <= 1/2.
    verdicts = [
        PowerSchedule(K, 1.0).check(mu=1.0).holds for K in (0.25, 0.5, 0.51, 3.0)
    ]
    assert verdicts == [False, False, True, True]
    assert PowerSchedule(0.001, 0.99).check(mu=1e-9).holds
    assert not PowerSchedule(1.0, 1.0).check(lambda_D=0.5).holds
    text = str(PowerSchedule(0.25, 1.0).check(mu=1.0))
    assert "is NOT admissible" in text
    assert "FAILS  d0 = 4 < 2 mu = 2" in text


@pytest.mark.parametrize(
    ("a", "diverges"), [(0.25, True), (0.5, True), (0.51, False), (1.0, False)]
)
def test_time_averages_need_half_or_less(a, diverges):
    report = PowerSchedule(10.0, a).check(mu=1.0)
    assert report.time_average is report.sum_of_squares_diverges is diverges


@pytest.mark.parametrize(
    ("a", "b", "failing"),
    [(0.75, 0.15, None), (0.75, 0.25, None), (0.3, 0.3, "b = 0.3 < a = 0.3"),
     (0.9, 0.2, "a + b = 1.1 <= 1"), (1.0, 0.1, "a + b = 1.1 <= 1")],
)  # fmt: skip
def test_vanishing_damping_has_its_own_conditions(a, b, failing):
    report = PowerSchedule(1.0, a).check(damping=PowerSchedule(1.0, b))
    if failing is None:
        assert report.holds
    else:
        assert any(failing in condition.statement for condition in report.failed)


@pytest.mark.parametrize(
    "damping",
    [PowerSchedule(4.0, 0.25), InverseTimeDamping(8.0, PowerSchedule(0.5, 0.75))],
    ids=str,
)
def test_the_inflation_on_the_boundary_is_the_limit_of_its_definition(damping):
    steps = PowerSchedule(0.5, 0.75)
    k = 10**13  # the sum of step sizes approaches its integral like k^-1/4
    beta, after = steps(k) / damping(k), steps(k + 1) / damping(k + 1)
    with mpmath.workdps(30):
        ratio = (1 - mpmath.mpf(after) / beta) / (steps(k) * damping(k))
    inflation = steps.check(damping=damping).inflation
    assert inflation == pytest.approx(1 / (1 - float(ratio)), rel=3e-3)


def test_damping_that_vanishes_too_fast_on_the_boundary_fails():
    report = PowerSchedule(0.5, 0.75).check(damping=PowerSchedule(1.0, 0.25))
    assert report.failed[0].statement == "beta_k decays slowly: c0 = 1 < 1"
    assert report.inflation == math.inf
    steps = PowerSchedule(0.5, 0.5)
    report = steps.check(damping=InverseTimeDamping(8.0, steps))
    assert "a = 0.5 > 1/2" in report.failed[0].statement


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.0), r"a must be in \(0, 1\], got 0.0: .* alpha_k -> 0 of \(A1\)"),
        ((1.0, -0.5), "alpha_k -> 0"),
        ((1.0, math.nan), r"a must be in \(0, 1\]"),
        ((1.0, 1.01), r"the sum of step sizes is finite, which fails sum alpha_k"),
        ((0.0, 0.5), "K must be positive and finite, got 0.0"),
        ((math.inf, 0.5), "K must be positive and finite"),
        ((1.0, 0.5, -1), "offset must be finite and >= 0, got -1"),
    ],
)
def test_bad_constants_are_refused_with_the_condition_that_fails(arguments, message):
    with pytest.raises(ValueError, match=message):
        PowerSchedule(*arguments)


def test_bad_calls_are_refused():
    schedule = PowerSchedule(1.0, 0.5)
    for function in (schedule, schedule.decay_rate, schedule.partial_sum):
        with pytest.raises(ValueError, match="steps are counted from 1, got 0"):
            function(0)
        with pytest.raises(ValueError, match="steps are counted from 1"):
            function(torch.tensor([1, 0]))
    with pytest.raises(TypeError, match=r"exactly one of mu .* got none"):
        schedule.check()
    with pytest.raises(TypeError, match="got mu, lambda_D"):
        schedule.check(mu=1.0, lambda_D=1.0)
    with pytest.raises(ValueError, match="mu must be positive and finite, got 0"):
        schedule.check(mu=0)
    with pytest.raises(TypeError, match="K must be a number, got str"):
        PowerSchedule("1", 0.5)
    with pytest.raises(TypeError, match="must be a PowerSchedule, got float"):
        InverseTimeDamping(1.0, 0.1)
    with pytest.raises(ValueError, match="they must be the same"):
        schedule.check(damping=InverseTimeDamping(1.0, PowerSchedule(1.0, 0.6)))


ITERATIONS = [
    Iteration("sgd", PowerSchedule(0.5, 0.5)),
    Iteration("heavy_ball", PowerSchedule(0.5, 0.5), momentum=lambda k: 1 - 1 / k),
    Iteration("nesterov", 0.1, momentum=PowerSchedule(0.5, 0.5)),
    Iteration("momentum", PowerSchedule(0.5, 0.75), damping=PowerSchedule(1.0, 0.1)),
    Iteration("nesterov", lambda k: 0.5 / k, damping=0.3),
    Iteration("nasgd", PowerSchedule(0.5, 0.5), damping=0.3),
    Iteration(
        "nasgd", PowerSchedule(0.5, 0.75),
        damping=InverseTimeDamping(3.0, PowerSchedule(0.5, 0.75)),
    ),
]  # fmt: skip


@pytest.mark.parametrize("iteration", ITERATIONS, ids=lambda x: x.method)
def test_coefficients_of_many_steps_are_those_of_each(iteration):
    steps = torch.tensor([1, 2, 3, 50])
    together = iteration.coefficients(steps)
    for i, k in enumerate(steps.tolist()):
        single = iteration.coefficients(k)
        assert all(isinstance(x, float) for x in single)
        torch.testing.assert_close(
            torch.stack([x[i] for x in together]),
            torch.tensor(single, dtype=torch.float64),
        )


def test_methods_refuse_what_they_do_not_take():
    steps = PowerSchedule(0.5, 0.5)
    with pytest.raises(ValueError, match=r"method must be one of 'sgd', .* got 'adam'"):
        Iteration("adam", steps)
    with pytest.raises(TypeError, match="'momentum' takes damping, got neither"):
        Iteration("momentum", steps)
    with pytest.raises(TypeError, match=r"'sgd' takes neither .*, got damping"):
        Iteration("sgd", steps, damping=0.1)
    with pytest.raises(TypeError, match="takes damping or momentum, got damping and"):
        Iteration("nesterov", steps, damping=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1.0"):
        Iteration("heavy_ball", steps, momentum=1.0)
    with pytest.raises(ValueError, match="damping must be positive and finite, got 0"):
        Iteration("nasgd", steps, damping=0.0)
    falling = Iteration("sgd", lambda k: 2.0 - k)
    for k in (2, torch.arange(1, 4)):
        with pytest.raises(ValueError, match=r"schedule must be .*, got 0.0 at step 2"):
            falling.coefficients(k)
