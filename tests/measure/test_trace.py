"""NormalizedTrace: the identity of every run, stagnation, moments and biases."""

import math

import pytest
import torch

import lowprec as lp
from lowprec.measure import Ledger, NormalizedTrace
from lowprec.optim import Ball, Box, normalized_direction, normalized_sgd_step
from lowprec.theory import sgd


def quadratic_run(update_format, direction_format, eta, steps=300, seed=0, noise=0.0):
    """f = ||w - w*||^2 / 2 in ten dimensions, from one corner."""
    generator = torch.Generator().manual_seed(seed)
    optimum = torch.randn(10, generator=generator, dtype=torch.float64)
    w = lp.round(torch.randn(10, generator=generator, dtype=torch.float64), "bfloat16")
    trace = NormalizedTrace(optimum, steps=steps)
    eta = lp.optim.rounded_step_size(eta, update_format)
    for k in range(steps):
        exact = w - optimum
        low = exact + noise * torch.randn(10, generator=generator, dtype=torch.float64)
        used = normalized_direction(low, direction_format, generator=generator)
        fl = lp.rounding.as_rounding(update_format) if update_format else None
        following = normalized_sgd_step(
            w,
            used,
            eta,
            fl,
            generator=(generator if fl is not None and fl.stochastic else None),
        )
        loss = 0.5 * exact.square().sum().item()
        trace.record(k, w, used, exact, following, eta, gradient=low, loss=loss)
        w = following
    return trace


RUNS = {
    "exact": (None, None, 2**-6, 0.0),
    "nearest": ("bfloat16", "bfloat16", 2**-4, 0.0),
    "stochastic": (lp.Rounding("bfloat16", "stochastic"), "bfloat16", 2**-6, 0.0),
    "both stochastic": (lp.Rounding("e6m8", "stochastic"),
                        lp.Rounding("e4m3fn", "stochastic"), 2**-5, 0.0),
    "noisy": ("bfloat16", None, 0.1, 0.5),
    "directed": (lp.Rounding("bfloat16", "toward_positive"), "e5m2", 2**-5, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("window", ["all", "second_half", slice(17, 211)])
def test_the_identity_holds_in_every_run(name, window):
    """T5: identity 1.11 to 1e-9, and the certificate, on every window."""
    update, direction, eta, noise = RUNS[name]
    trace = quadratic_run(update, direction, eta, noise=noise)
    proof = trace.certificate(window, L=0.5, p=2.0)
    assert abs(proof.residual) <= 1e-9 * max(
        abs(proof.mean_phi), proof.gamma_stochastic
    )
    assert proof.holds
    assert proof.growth_violations == 0


def test_the_identity_holds_on_plain_numbers():
    """The identity once more, written out, without the theory's code."""
    trace = quadratic_run(*RUNS["noisy"][:3], noise=0.5)
    rows = list(trace.ledger)
    eta = rows[0]["eta"]
    cross = [
        2 * eta**2 * row["cross_direction_gradient"]
        - 2 * eta * row["cross_direction_update"]
        - 2 * eta * row["cross_gradient_update"]
        - 2 * eta * row["cross_gradient_offset"]
        + 2 * row["cross_update_offset"]
        for row in rows
    ]
    K = len(rows)
    moments = trace.moments()
    right = (
        (rows[0]["D"] ** 2 - rows[-1]["D_next"] ** 2) / (2 * eta * K)
        + eta / 2 * (1 + moments.V_r)
        + moments.V_s / (2 * eta)
        + math.fsum(cross) / K / (2 * eta)
    )
    assert math.fsum(row["phi"] for row in rows) / K == pytest.approx(right, rel=1e-9)


def test_stagnation_violates_the_stochastic_bound_and_not_the_deterministic_one():
    """T6: d = 1, f = |w|, w_0 = 1.5, eta = 2^-9, bfloat16 to nearest."""
    eta, w = 2**-9, torch.tensor([1.5])
    trace = NormalizedTrace(torch.zeros(1), steps=2000)
    for k in range(2000):
        g = w.sign()
        following = normalized_sgd_step(w, g, eta, "bfloat16")
        trace.record(k, w, g, g, following, eta, loss=abs(w.item()))
        w = following
    assert w.item() == 1.5
    moments = trace.moments()
    assert (moments.stagnation, moments.s_bias, moments.V_r) == (1.0, 1.0, 0.0)
    gamma = sgd.gamma_stochastic(eta, d_sigma_r2=moments.V_r, d_sigma_s2=moments.V_s)
    assert 0.0019 <= gamma <= 0.0020
    assert sgd.gamma_deterministic(eta, moments.R, moments.S, 1.5) == 1.5
    proof = trace.certificate()
    assert not proof.stochastic_bound_applies
    assert proof.holds
    assert proof.bound == pytest.approx(1.5, rel=1e-12)


def test_stochastic_rounding_does_not_stagnate():
    """T6: 20000 steps in the specification, here until the minimum is reached."""
    eta, w = 2**-9, torch.tensor([1.5])
    generator = torch.Generator().manual_seed(0)
    fl = lp.Rounding("bfloat16", "stochastic")
    trace = NormalizedTrace(torch.zeros(1), steps=1500)
    lowest = 1.5
    for k in range(1500):
        g = w.sign()
        following = normalized_sgd_step(w, g, eta, fl, generator=generator)
        trace.record(k, w, g, g, following, eta, loss=abs(w.item()))
        w = following
        lowest = min(lowest, abs(w.item()))
    assert lowest < 0.005
    assert trace.moments().s_bias < 0.3
    assert trace.certificate().holds


def test_moments_are_about_zero_and_biases_tell_mean_from_noise():
    trace = NormalizedTrace(steps=4)
    w, u = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 0.0]).double()
    errors = [[3.0, 4.0], [-3.0, -4.0], [6.0, 8.0], [6.0, 8.0]]
    for k, s in enumerate(errors):
        s = torch.tensor(s, dtype=torch.float64)
        trace.record(k, w, u, 7 * u, w - 0.5 * u + s, 0.5)
    everything, half = trace.moments(), trace.moments("second_half")
    assert (everything.V_s, everything.S) == (62.5, 10.0)
    assert everything.s_bias == pytest.approx(5 / math.sqrt(62.5))
    assert (half.V_s, half.s_bias) == (100.0, 1.0)
    assert math.isnan(trace.moments(slice(1, 3)).s_bias)
    assert math.isnan(trace.moments(slice(1, 3)).r_bias)
    assert trace.moments(slice(1, 3)).V_s == 62.5


def test_moments_of_nan_are_nan():
    trace = NormalizedTrace()
    w = torch.ones(2)
    trace.record(0, w, w * torch.nan, w, w, 0.5)
    moments = trace.moments()
    assert all(map(math.isnan, (moments.V_r, moments.r_bias, moments.s_bias)))


def test_underflow_of_the_direction_is_recorded():
    trace = NormalizedTrace()
    w, zero = torch.ones(2), torch.zeros(2)
    row = trace.record(0, w, zero, torch.ones(2), w, 0.5)
    assert row["zero_direction"]
    assert row["r_norm"] == pytest.approx(1.0)
    assert not trace.record(1, w, zero, zero, w, 0.5)["zero_direction"]
    assert trace.moments().zero_directions == 1


def test_projected_runs_satisfy_the_inequality():
    optimum = torch.tensor([0.9, 0.0], dtype=torch.float64)
    for projection in (Box(-0.5, 0.5), Ball(0.7)):
        w = torch.tensor([-0.5, 0.5], dtype=torch.float64)
        # The minimiser of the constrained problem.
        nearest = optimum.clamp(-0.5, 0.5)
        if isinstance(projection, Ball):
            nearest = optimum * 0.7 / 0.9
        trace = NormalizedTrace(nearest)
        for k in range(200):
            exact = w - optimum
            u = normalized_direction(exact, "bfloat16")
            z = normalized_sgd_step(w, u, 0.0625, "bfloat16")
            (following,) = projection.project([z], ["bfloat16"])
            (target,) = projection.project([z], ["binary64"])
            row = trace.record(
                k, w, u, exact, following, 0.0625, unprojected=z, projected=target
            )
            w = following
            if isinstance(projection, Box):
                assert row["projection_error"] == 0.0
        proof = trace.certificate()
        # Rounding toward the centre moves a point by less than the format's spacing.
        assert proof.residual <= 2**-8


def test_distance_may_ignore_directions_in_which_the_minimiser_is_not_unique():
    trace = NormalizedTrace(torch.zeros(4), distance_projection=lambda d: d - d.mean())
    w = torch.full((4,), 3.0)
    row = trace.record(0, w, w, w, w, 0.5)
    assert (row["D"], row["distance"]) == (6.0, 0.0)


def test_models_are_vectors_and_are_copied():
    parts = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    trace = NormalizedTrace([torch.zeros(1), torch.zeros(1, 1)], ledger=Ledger())
    row = trace.record(0, parts, parts, parts, parts, 0.5, epoch=7)
    assert row["D"] == 5.0
    assert trace.ledger[0]["epoch"] == 7


def test_what_cannot_be_measured_is_refused():
    trace = NormalizedTrace()
    w = torch.ones(2)
    with pytest.raises(
        ValueError, match=r"direction must have as many elements.*2, got 3"
    ):
        trace.record(0, w, torch.ones(3), w, w, 0.5)
    with pytest.raises(ValueError, match="exact_gradient must be finite"):
        trace.record(0, w, w, w * torch.nan, w, 0.5)
    with pytest.raises(ValueError, match="needs the distance to a minimiser"):
        trace.certificate()
    with pytest.raises(ValueError, match="no consecutive steps among the 0"):
        trace.moments()
    with pytest.raises(ValueError, match="r_norm: measured already, choose other"):
        trace.record(0, w, w, w, w, 0.5, r_norm=0.0)
    with pytest.raises(ValueError, match=r"optimum must have as many.*2, got 3"):
        NormalizedTrace(torch.zeros(3)).record(0, w, w, w, w, 0.5)
    trace = NormalizedTrace(torch.zeros(2))
    trace.record(0, w, w, w, 2 * w, 0.5)
    trace.record(5, w, w, w, w, 0.5)
    with pytest.raises(ValueError, match="step 5 does not start where step 0 ended"):
        trace.certificate()
    with pytest.raises(
        ValueError, match="'all', 'second_half' or a slice, got 'third'"
    ):
        trace.moments("third")
