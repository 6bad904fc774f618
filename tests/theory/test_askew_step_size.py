"""Lemma 2, confinement and counts in simulation; the cycle of large step sizes."""

import math
from itertools import pairwise

import pytest
import torch

from lowprec.theory import askew
from lowprec.theory.askew import Remoteness

KINDS = ("quadratic", "quartic", "quartic_ext")
LEVELS = ((-1, 1), (-2, -1, 0, 1), (1, 3, 7, 8, 11))
CASES = [(kind, levels) for kind in KINDS for levels in LEVELS]
SHARES = (0.01, 0.3, 0.9)


def remoteness(kind, levels, share):
    return Remoteness(levels, share * Remoteness(levels, 1, kind).epsilon_max, kind)


# ---- Lemma 2


def distances(psi, cell, largest):
    """Points of one cell beside a piece of C, with their distances to it."""
    delta = torch.linspace(0, 1, 41, dtype=torch.float64)[1:] * largest
    ends = [end for piece in psi.pieces for end in piece]
    if cell == 0:
        return ends[0] - delta, delta
    if cell == len(psi.levels):
        return ends[-1] + delta, delta
    return ends[2 * cell - 1] + delta, delta


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_ratio_is_that_of_the_skewing_force(kind, levels, share):
    psi = remoteness(kind, levels, share)
    for cell in range(len(levels) + 1):
        inner = 0 < cell < len(levels)
        largest = 0.49 * psi.infeasible_widths[cell - 1] if inner else 3.0
        w, delta = distances(psi, cell, largest)
        measured = askew.skewing_force(w, psi, alpha=0.7).abs() / (0.7 * delta)
        ratio = askew.skew_ratio(delta, psi, cell)
        assert ratio.tolist() == pytest.approx(measured.tolist(), rel=1e-9)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_lemma_2(kind, levels, share):
    psi = remoteness(kind, levels, share)
    lower, upper = askew.skew_ratio_bounds(psi)
    for cell in range(len(levels) + 1):
        inner = 0 < cell < len(levels)
        largest = psi.infeasible_widths[cell - 1] / 3 if inner else 1e6
        delta = torch.linspace(0, 1, 101, dtype=torch.float64) * largest
        ratio = askew.skew_ratio(delta, psi, cell)
        assert lower <= ratio.min()
        assert ratio.max() <= upper * (1 + 1e-15)
        if inner:
            assert bool(((ratio * delta).diff() > 0).all())  # the force itself
            beyond = askew.skew_ratio(1.2 * largest, psi, cell)
            assert kind != "quadratic" or beyond > 2.0
            middle = psi.infeasible_widths[cell - 1] / 2
            assert askew.skew_ratio(middle, psi, cell) == math.inf


def test_lemma_2_is_tight():
    psi = Remoteness((-1, 1), 0.75)  # D = 1
    ratios = [askew.skew_ratio(delta, psi, 1) for delta in (1 / 3, 0.4, 0.45)]
    assert ratios == pytest.approx([2.0, 3.0, 5.5], rel=1e-12)
    nearly = remoteness("quartic", (-1, 1), 0.99999)
    assert askew.skew_ratio(nearly.infeasible_widths[0] / 3, nearly, 1) > 1.99


@pytest.mark.parametrize(("kind", "lowest"), [("quartic", 0.5), ("quartic_ext", 0.25)])
def test_lower_bounds_of_the_quartics_are_approached(kind, lowest):
    psi = Remoteness((-1, 1), 1e-8, kind)
    assert askew.skew_ratio(1e6, psi, 0) == pytest.approx(lowest, rel=1e-3)


def test_bound_on_the_skew_needs_a_third_of_the_width():
    psi = Remoteness((-1, 1), 0.75)
    w = psi.pieces[0][1] + 0.45
    force = abs(askew.skewing_force(w, psi, alpha=0.5).item())
    printed = askew.skew_bound(0.45, psi, alpha=0.5, form="as_printed")
    assert force > printed
    assert askew.skew_bound(0.45, psi, alpha=0.5) == math.inf


# ---- conditions on the step size

CONSTANTS = {"alpha": 0.8, "clip": 1.5, "G": 2.0, "beta": 3.0}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_conditions_are_those_of_the_definition(kind, levels, share):
    psi = remoteness(kind, levels, share)
    conditions = askew.step_size_conditions(psi, **CONSTANTS)
    q = psi.levels
    middles = [(a + b) / 2 for a, b in pairwise(q)]
    borders = [-math.inf, *middles, math.inf]
    room = min(
        room
        for (low, high), left, right in zip(
            psi.pieces, borders, borders[1:], strict=False
        )
        for room in (high - low, low - left, right - high)
    )
    starts = [low for low, _ in psi.pieces][1:]
    widths = [b - a for (_, a), b in zip(psi.pieces, starts, strict=False)]
    assert conditions.confinement == pytest.approx(room / 2.0, rel=1e-9)
    assert conditions.skew == pytest.approx(min(widths) / 6.0, rel=1e-9)
    assert conditions.smoothness == 1 / 3
    assert conditions.monotone == 1.25
    largest = askew.max_stepsize(psi, **CONSTANTS)
    assert conditions.allows(largest)
    assert not conditions.allows(math.nextafter(largest, math.inf))
    assert not conditions.allows(0.0)


def test_printed_condition_allows_too_large_a_step():
    """Erratum E15: the distance the printed step leads to exceeds D/3."""
    psi = Remoteness((-1, 1), 0.9)
    constants = {"alpha": 0.2, "clip": 1.0, "G": 50.0, "beta": 1.0}
    printed = askew.max_stepsize(psi, **constants, form="as_printed")
    assert printed * 50 == pytest.approx(0.316, abs=1e-3)
    third = psi.infeasible_widths[0] / 3
    assert third == pytest.approx(0.211, abs=1e-3)
    assert printed * 50 > third
    assert askew.max_stepsize(psi, **constants) * 50 <= third


@pytest.mark.parametrize("levels", LEVELS[1:])
def test_printed_condition_cannot_be_met_at_inner_levels(levels):
    psi = remoteness("quadratic", levels, 0.3)
    printed = askew.step_size_conditions(psi, **CONSTANTS, form="as_printed")
    assert printed.confinement < 0
    with pytest.raises(ValueError, match="no step size meets the printed"):
        askew.max_stepsize(psi, **CONSTANTS, form="as_printed")


def test_touching_pieces_are_refused():
    psi = Remoteness((-1, 1), 1.0)
    with pytest.raises(ValueError, match="must be below"):
        askew.step_size_conditions(psi, **CONSTANTS)


# ---- confinement and Lemma 5 in adversarial runs


def adversary(generator, count, G):
    """Gradients of at most G: random, extreme, or zero."""
    g = (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1) * G
    which = torch.randint(3, (count,), generator=generator)
    return torch.where(which == 0, g, torch.where(which == 1, G * g.sign(), 0 * g))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_weights_stay_in_their_interval_and_come_close(kind, levels, share):
    """Lemmas 3, 4 and 5: no step crosses a mid-point, no count is exceeded."""
    psi = remoteness(kind, levels, share)
    gamma = 0.999 * askew.max_stepsize(psi, **CONSTANTS)
    rates = {"alpha": CONSTANTS["alpha"], "clip": CONSTANTS["clip"]}
    reach = gamma * CONSTANTS["G"]
    q = torch.tensor(psi.levels, dtype=torch.float64)
    middles = (q[1:] + q[:-1]) / 2
    ends = torch.tensor(psi.pieces, dtype=torch.float64).flatten()
    generator = torch.Generator().manual_seed(11)
    shift = torch.rand(8, 1, generator=generator, dtype=torch.float64)
    near = torch.cat([ends - 4 * reach * shift, ends + 4 * reach * shift]).flatten()
    anywhere = torch.rand(60, generator=generator, dtype=torch.float64)
    anywhere = q[0] - 0.2 + anywhere * (q[-1] - q[0] + 0.4)
    w = torch.cat([near, anywhere, middles + 1e-6, middles - 1e-6])
    home = torch.bucketize(w, middles)
    start = psi.distance(near).max().item()
    assert start > 1.4 * reach
    given = rates | {"G": CONSTANTS["G"], "gamma": gamma}
    loose = askew.lemma5_count(start, psi, **given, count="loose")
    tight = askew.lemma5_count(start, psi, **given)
    assert 0 < tight <= loose
    for k in range(tight + 20):
        if k >= tight:
            assert psi.distance(w[: len(near)]).max() <= reach * (1 + 1e-12)
        v = askew.velocity(
            w, adversary(generator, len(w), CONSTANTS["G"]), psi, **rates
        )
        w = w + gamma * v
        assert torch.equal(torch.bucketize(w, middles), home)


def test_tight_count_is_attained_up_to_rounding():
    """A pure decay from afar: full steps of the clip, then a geometric sequence."""
    psi = Remoteness((-1, 1), 0.2)
    go = {"alpha": 0.5, "clip": 1.0}
    w, steps = torch.tensor(5.2, dtype=torch.float64), 0
    while psi.distance(w) > 0.05:
        # a push outwards with all its force
        w = w + 0.05 * askew.velocity(w, -1.0, psi, **go)
        steps += 1
    given = go | {"G": 1.0, "gamma": 0.05}
    bound = askew.lemma5_count(4.0, psi, **given)
    assert bound - 1 <= steps <= bound
    assert askew.lemma5_count(4.0, psi, **given, count="loose") > 10 * bound


def test_counts_at_the_edges():
    psi = Remoteness((-1, 1), 0.2)
    go = {"alpha": 0.5, "clip": 1.0, "G": 1.0}
    for count in ("loose", "tight"):
        assert askew.lemma5_count(0.01, psi, **go, gamma=0.01, count=count) == 0
        assert askew.lemma5_count(0.0, psi, **go, gamma=0.01, count=count) == 0
    assert askew.lemma5_count(0.5, psi, **(go | {"G": 0.1}), gamma=2.0) == 1
    with pytest.raises(ValueError, match="count must be"):
        askew.lemma5_count(0.5, psi, **go, gamma=0.01, count="middle")
    with pytest.raises(ValueError, match="distance must be nonnegative"):
        askew.lemma5_count(-0.5, psi, **go, gamma=0.01)


def test_neighbourhood_is_by_coordinate():
    """Erratum E16: the printed factor sqrt(d) is loose, not wrong."""
    corrected = askew.neighbourhood(0.01, alpha=0.5, G=2.0, d=9)
    printed = askew.neighbourhood(0.01, alpha=0.5, G=2.0, d=9, form="as_printed")
    assert printed.skew == pytest.approx(3 * corrected.skew)
    assert printed.distance_norm == corrected.distance_norm
    assert corrected.skew == pytest.approx(2 * 0.5 * corrected.distance)


# ---- the cycle


@pytest.mark.parametrize(
    ("kind", "start", "epsilon", "alpha"),
    [
        ("quadratic", -10.0, 0.5, 1.0),
        ("quadratic", -20.0, 0.9, 0.3),
        ("quartic", -10.0, 0.5, 1.0),
        ("quartic", 15.0, 0.9, 0.3),
        ("quartic_ext", -10.0, 0.5, 1.0),
    ],
)
def test_two_steps_of_the_cycle_return(kind, start, epsilon, alpha):
    psi = Remoteness((-1, 1), epsilon, kind)
    cycle = askew.cycle(start, psi, alpha=alpha)
    w = torch.tensor(start, dtype=torch.float64)
    visited = []
    for _ in range(2):
        outwards = -0.1 * w.sign()
        assert bool(askew.index_sets(w, outwards, psi, alpha=alpha).skew_hurts)
        w = w + cycle.gamma * askew.velocity(w, outwards, psi, alpha=alpha)
        visited.append(w.item())
    assert visited == pytest.approx([-start, start], abs=1e-12)
    assert alpha * cycle.gamma > 2
    # an error is multiplied as announced
    nudged = torch.tensor(start + 1e-6, dtype=torch.float64)
    after = nudged + cycle.gamma * askew.velocity(nudged, 0.0, psi, alpha=alpha)
    assert abs(after.item() + start) / 1e-6 == pytest.approx(cycle.multiplier, rel=1e-4)


def test_cycle_of_the_specification():
    cycle = askew.cycle(-10.0, Remoteness((-1, 1), 0.5), alpha=1.0)
    assert cycle.gamma == pytest.approx(2.352941176, abs=1e-9)
    assert cycle.multiplier == pytest.approx(1.35, abs=0.01)
    assert askew.cycle(-2.0, Remoteness((-1, 1), 0.9), alpha=1.0).multiplier == (
        pytest.approx(39.0)
    )


def test_cycle_of_definition_2_has_the_closed_form():
    e = 10.0 - 1
    cycle = askew.cycle(-10.0, Remoteness((-1, 1), 0.5, "quartic"), alpha=0.7)
    assert cycle.gamma == pytest.approx(4 * 10 * e / (0.7 * (e**2 - 0.5)), rel=1e-14)


def test_clipped_cycle_is_neutral():
    psi = Remoteness((-1, 1), 0.5)
    cycle = askew.cycle(-10.0, psi, alpha=1.0, clip=2.0)
    assert (cycle.gamma, cycle.skew, cycle.multiplier) == (10.0, 2.0, 1.0)


def test_allowed_step_sizes_exclude_the_cycle():
    psi = Remoteness((-1, 1), 0.5)
    conditions = askew.step_size_conditions(psi, alpha=1.0, clip=9.0, G=1e-3, beta=0.01)
    for start in (-10.0, -1e6):
        assert not conditions.allows(askew.cycle(start, psi, alpha=1.0).gamma)


@pytest.mark.parametrize(
    ("levels", "w", "text"),
    [
        ((-1, 2), -10.0, "symmetric"),
        ((-1, 1), -1.1, "outside"),
        ((-1, 1), 0.0, "outside"),
    ],
)
def test_no_cycle(levels, w, text):
    with pytest.raises(ValueError, match=text):
        askew.cycle(w, Remoteness(levels, 0.5), alpha=1.0)


@pytest.mark.parametrize(
    ("delta", "cell", "text"),
    [(-0.1, 1, "nonnegative"), (0.6, 1, "at most D/2"), (0.1, 3, "cell must be in")],
)
def test_bad_distances_are_refused(delta, cell, text):
    with pytest.raises(ValueError, match=text):
        askew.skew_ratio(delta, Remoteness((-1, 1), 0.75), cell)


def test_feasible_cell_has_no_ratio():
    with pytest.raises(ValueError, match="is feasible"):
        askew.skew_ratio(0.0, Remoteness((-1, 1), 1.0), 1)


def test_single_level_has_one_piece_and_no_mid_points():
    psi = Remoteness((0.5,), 0.25)
    conditions = askew.step_size_conditions(psi, **CONSTANTS)
    assert conditions.confinement == 0.5 / 2.0
    assert conditions.skew == math.inf
    assert askew.skew_ratio(7.0, psi, 0) == askew.skew_ratio(7.0, psi, 1) == 1.0
    count = askew.lemma5_count(
        0.5, psi, alpha=0.5, clip=1.0, G=1.0, gamma=0.01, count="loose"
    )
    assert count == 9800
