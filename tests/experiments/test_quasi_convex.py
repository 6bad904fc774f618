"""T4: the level that L ||w||^p with uniform errors reaches, against the theorems.

Statistical tests: the seed is fixed, so that they pass or fail for ever. Over 12 other
seeds the means below had standard deviations that put every limit five or more of them
away (specification 6.1): a wrong failure has probability below 1e-5 in all.
"""

import argparse
from dataclasses import replace

import pytest
import torch

from lowprec.experiments import quasi_convex, quasi_convex_figures

# Every step size of specification 6.1 for both update errors.
STEPS = (0.01, 0.0343, 0.0348, 0.1, 0.343, 0.5)
LARGE = quasi_convex.QuasiConvexConfig(step_sizes=STEPS, seed=1)
SMALL = replace(LARGE, update_error=0.01)


@pytest.fixture(scope="module")
def results():
    return {config.update_error: quasi_convex.run(config) for config in (LARGE, SMALL)}


def row_of(results, update_error, step_size):
    rows = results[update_error].rows()
    return rows[STEPS.index(step_size)]


# Specification 6.1: Gamma_s, bound, tail mean f with its standard deviation, tail mean
# of the largest f. Not in equilibrium after 1500 epochs: (.01, .1).
TABLE = [
    (0.01, 0.1, 6.67233, 4.38507, 4.304, 0.037, 4.503),
    (0.0343, 0.1, 1.96307, 3.43327, 3.424, 0.013, 3.596),
    (0.0348, 0.1, 1.93543, 3.42355, 3.4145, 0.0124, 3.586),
    (0.1, 0.1, 0.723333, 2.81183, 2.8068, 0.0034, 2.927),
    (0.343, 0.1, 0.388730, 2.48342, 2.4824, 0.0007, 2.5434),
    (0.5, 0.1, 0.416667, 2.51813, 2.5168, 0.0004, 2.5846),
    (0.01, 0.01, 0.072333, 1.77414, 1.7710, 0.0021, 1.847),
    (0.0343, 0.01, 0.0388730, 1.56693, 1.5663, 0.0004, 1.6048),
    (0.1, 0.01, 0.0633333, 1.72762, 1.7258, 0.0002, 1.787),
    (0.343, 0.01, 0.196310, 2.16626, 2.1634, 0.0003, 2.245),
    (0.5, 0.01, 0.284667, 2.33340, 2.3303, 0.0003, 2.418),
]


@pytest.mark.parametrize("expected", TABLE)
def test_reference_table(results, expected):
    step_size, update_error, gamma, bound, mean, deviation, largest = expected
    row = row_of(results, update_error, step_size)
    assert row.gamma_stochastic == pytest.approx(gamma, rel=1e-5)
    assert row.stochastic_bound == pytest.approx(bound, rel=1e-5)
    assert row.tail_mean == pytest.approx(mean, abs=5 * deviation + 1e-3)
    assert row.tail_mean_of_maximum == pytest.approx(largest, abs=8 * deviation + 4e-3)


@pytest.mark.parametrize(
    ("update_error", "step_size", "tolerance"),
    [
        *((error, eta, 0.03) for error in (0.1, 0.01) for eta in (0.1, 0.343, 0.5)),
        (0.01, 0.0343, 0.03),
        (0.01, 0.01, 0.03),
        (0.1, 0.0343, 0.10),
    ],
)
def test_mean_distance_is_gamma(results, update_error, step_size, tolerance):
    row = row_of(results, update_error, step_size)
    assert row.tail_distance_ratio == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize(
    ("update_error", "order"),
    [
        (0.1, [0.343, 0.5, 0.1, 0.0348, 0.01]),
        (0.01, [0.0343, 0.1, 0.01, 0.343, 0.5]),
    ],
)
def test_best_step_size(results, update_error, order):
    means = [row_of(results, update_error, eta).tail_mean for eta in order]
    assert means == sorted(means)
    # 0.0343 and 0.0348 differ by less than their standard deviation.
    best = results[update_error].summary()["best_step_size"]
    assert best == pytest.approx(order[0], abs=6e-4)


def test_tail_means_of_the_best_steps(results):
    assert 2.475 <= row_of(results, 0.1, 0.343).tail_mean <= 2.490
    assert 1.563 <= row_of(results, 0.01, 0.0343).tail_mean <= 1.570


@pytest.mark.parametrize("update_error", [0.1, 0.01])
@pytest.mark.parametrize("step_size", [0.1, 0.343, 0.5])
def test_running_minimum_obeys_the_stochastic_bound(results, update_error, step_size):
    """And the largest of ten runs does not (erratum E12)."""
    row = row_of(results, update_error, step_size)
    assert row.running_minimum_holds
    assert row.tail_share_above >= 0.95


def test_deterministic_bound_of_c0(results):
    """Specification 6.1: informative for three of the eleven pairs only."""
    for row in results[0.1].rows():
        assert row.deterministic_vacuous
    informative = {
        row.step_size: row.deterministic_bound
        for row in results[0.01].rows()
        if not row.deterministic_vacuous
    }
    assert informative == pytest.approx({0.343: 2.9202, 0.5: 2.9142}, abs=5e-5)


@pytest.mark.parametrize("update_error", [0.1, 0.01])
@pytest.mark.parametrize("window", [slice(None), slice(750, None)])
def test_certificate_of_every_run(results, update_error, window):
    result = results[update_error]
    for index in range(len(STEPS)):
        for repetition in range(result.config.repetitions):
            found = result.certificate(index, repetition, window)
            assert abs(found.residual) <= 1e-9 * found.mean_phi
            assert found.holds
            assert found.growth_violations == 0


def test_errors_have_the_stated_distribution(results):
    """Second moments within 2 %: twenty standard errors of 90000 norms."""
    config, result = SMALL, results[0.01]
    assert result.gradient_error.square().mean() == pytest.approx(config.V_r, rel=0.02)
    assert result.update_error.square().mean() == pytest.approx(config.V_s, rel=0.02)
    assert result.gradient_error.max() <= config.R
    assert result.update_error.max() <= config.S


def test_far_starts_need_c0_over_eta_epochs():
    """From C_0 = 10, 1500 epochs of eta = .01 hardly suffice (specification 6.1)."""
    config = replace(quasi_convex.SETTINGS["A2-far"], step_sizes=(0.01, 0.1), seed=1)
    slow, fast = quasi_convex.run(config).rows()
    assert slow.tail_distance_ratio > 2
    assert fast.tail_distance_ratio == pytest.approx(1, abs=0.03)
    assert slow.running_minimum_holds


def test_starting_points_and_reproducibility():
    config = quasi_convex.QuasiConvexConfig(epochs=5, initial_distance=10.0)
    first, again = quasi_convex.run(config), quasi_convex.run(config)
    assert torch.allclose(first.distance[..., 0], torch.tensor(10.0).double())
    assert torch.equal(first.distance, again.distance)
    other = quasi_convex.run(replace(config, seed=1))
    assert not torch.equal(first.distance, other.distance)


def test_without_errors_the_distance_falls_by_eta():
    config = quasi_convex.QuasiConvexConfig(
        step_sizes=(0.125,), gradient_error=0.0, update_error=0.0, epochs=4
    )
    result = quasi_convex.run(config)
    steps = result.distance[0, 0].diff()
    assert torch.allclose(steps, torch.full_like(steps, -0.125), rtol=1e-12)
    assert str(result).startswith("f(w) = 3 ||w||^0.2 in 40 dimensions")


def test_progress_and_ledger():
    from lowprec.measure import Ledger

    ledger, calls = Ledger(), []
    config = quasi_convex.QuasiConvexConfig(epochs=6, step_sizes=(0.1, 0.5))
    result = quasi_convex.run(config, ledger=ledger, advance=lambda: calls.append(1))
    assert len(calls) == config.epochs
    assert ledger.names == ["epoch", "max_f_eta_0.1", "max_f_eta_0.5"]
    largest = result.values[1].amax(dim=0)
    assert ledger["max_f_eta_0.5"].tolist() == largest.tolist()


def drawn_lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_traces_show_the_chosen_step_sizes(results):
    figure = quasi_convex_figures.traces(results[0.01], (0.1, 0.5))
    left, right, *_ = figure.axes
    assert r"\eta = 0.1" in left.get_title()
    assert r"\eta = 0.5" in right.get_title()
    lines = drawn_lines(right)
    bound = row_of(results, 0.01, 0.5).stochastic_bound
    assert set(lines["stochastic bound (mean level)"].get_ydata()) == {bound}
    assert r"deterministic bound on $\min f$" in lines
    assert r"deterministic bound on $\min f$, vacuous" in drawn_lines(left)
    largest = results[0.01].values[5].amax(dim=0)
    assert lines["largest of 10 runs"].get_ydata().tolist() == largest.tolist()
    figure.draw_without_rendering()


def test_surface_needs_two_dimensions():
    plane = replace(quasi_convex.SETTINGS["plane"], epochs=20)
    figure = quasi_convex_figures.surface_and_traces(quasi_convex.run(plane))
    figure.draw_without_rendering()
    assert len(figure.axes) == 5
    flat = quasi_convex.run(replace(plane, dimension=3))
    with pytest.raises(ValueError, match="a surface needs dimension 2, got 3"):
        quasi_convex_figures.surface_and_traces(flat)
    with pytest.raises(ValueError, match=r"step size 0\.25 was not run"):
        quasi_convex_figures.traces(flat, [0.25])


def test_command_line_options():
    parser = argparse.ArgumentParser()
    quasi_convex.add_arguments(parser)
    assert (
        quasi_convex.config_from_arguments(parser.parse_args(["--setting", "A1"]))
        == (quasi_convex.SETTINGS["A1"])
    )
    given = ["--step-sizes", "0.5", "0.25", "--epochs", "7", "--update-error", "0"]
    config = quasi_convex.config_from_arguments(parser.parse_args(given))
    assert config == quasi_convex.QuasiConvexConfig(
        step_sizes=(0.5, 0.25), epochs=7, update_error=0.0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_sizes": ()}, "step_sizes is empty"),
        (
            {"step_sizes": (0.1, -0.1)},
            r"step sizes must be positive and finite, got \(0.1",
        ),
        (
            {"initial_distance": float("inf")},
            "initial_distance must be positive and fin",
        ),
        (
            {"gradient_error": float("nan")},
            "gradient_error must be 0 or more and finite",
        ),
        ({"dimension": 1}, "dimension must be 2 or more, got 1"),
        ({"repetitions": 0}, "repetitions must be 1 or more, got 0"),
    ],
)
def test_wrong_configurations_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        quasi_convex.QuasiConvexConfig(**change)
