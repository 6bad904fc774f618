"""Directions of ASkewSGD against the table, exact projections and SLSQP."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize, nnls

from lowprec.theory import askew
from lowprec.theory.askew import Remoteness

KINDS = ("quadratic", "quartic", "quartic_ext")
LEVELS = ((-1, 1), (-2, -1, 0, 1), (1, 3, 7, 8, 11))
CASES = [(kind, levels) for kind in KINDS for levels in LEVELS]


def random_points(levels, count, seed):
    """Weights in and around the hull, gradients of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    uniform, normal, size = (
        draw(count, generator=generator, dtype=torch.float64)
        for draw in (torch.rand, torch.randn, torch.randn)
    )
    span = levels[-1] - levels[0]
    w = levels[0] - span + 3 * span * uniform
    return w, normal * 10**size


# ---- the table of the specification


def test_velocity_table():
    w = [0.5, 0.9, 1.05, 1.5, 2, 2.9, 3.3, 7.1, 7.5, 7.75, 9, 11.1, 12]
    down = [0.15, -0.3, -0.3, -0.3, 2, -0.3, -0.3, -0.3, 2, -0.3, -0.9, -0.3, -0.4]
    up = [0.3, 0.3, 0.3, -0.275, 2, 0.3, -0.133823529, 0.3, 2, 0.3, -0.9, 0.3, -0.4]
    psi = Remoteness((1, 3, 7, 8, 11), 0.2)
    for gradient, expected in ((0.3, down), (-0.3, up)):
        v = askew.velocity(w, [gradient] * 13, psi, alpha=0.5, clip=2.0)
        assert v.tolist() == pytest.approx(expected, abs=1e-8)


# ---- the closed form is the projection


def exact_projection(w, g, psi, alpha):
    """Project -g on {v psi' >= -alpha psi} in rationals: a half-line."""
    value, slope = Fraction(psi(w).item()), Fraction(psi.derivative(w).item())
    target = -Fraction(g)
    if value > 0:
        return target
    end = -Fraction(alpha) * value / slope
    return max(target, end) if slope > 0 else min(target, end)


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_unclipped_velocity_is_the_exact_projection(kind, levels):
    psi = Remoteness(levels, 0.2 * Remoteness(levels, 1, kind).epsilon_max, kind)
    w, g = random_points(levels, 1200, seed=2)
    v = askew.velocity(w, g, psi, alpha=0.7)
    sets = askew.index_sets(w, g, psi, alpha=0.7)
    assert min(mask.sum() for mask in vars(sets).values()) > 30
    for one, slope, got in zip(w.tolist(), g.tolist(), v.tolist(), strict=True):
        expected = float(exact_projection(one, slope, psi, 0.7))
        assert got == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_velocity_is_that_of_the_general_algorithm(kind, levels):
    psi = Remoteness(levels, 0.1 * Remoteness(levels, 1, kind).epsilon_max, kind)
    w, g = random_points(levels, 240, seed=3)
    for chunk, slope in zip(w.split(6), g.split(6), strict=True):
        general = askew.project_velocity(
            slope, psi(chunk), torch.diag(psi.derivative(chunk)), alpha=0.7
        )
        closed = askew.velocity(chunk, slope, psi, alpha=0.7)
        assert general.tolist() == pytest.approx(closed.tolist(), rel=1e-11, abs=1e-11)


# ---- clipping and mid-points


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_skewing_force_points_to_the_nearest_level_and_is_clipped(kind, levels):
    psi = Remoteness(levels, 0.2 * Remoteness(levels, 1, kind).epsilon_max, kind)
    w, _ = random_points(levels, 1000, seed=4)
    infeasible = psi(w) < 0
    free = askew.skewing_force(w, psi, alpha=0.7)
    clipped = askew.skewing_force(w, psi, alpha=0.7, clip=0.3)
    target = torch.tensor(psi.levels, dtype=torch.float64)
    nearest = target[(w[:, None] - target).abs().argmin(1)]
    assert bool(((free * (nearest - w))[infeasible] > 0).all())
    assert torch.equal(clipped, free.clamp(-0.3, 0.3))
    assert bool((clipped != free).any())


def test_clipping_leaves_the_velocity_set_and_is_discontinuous():
    """Erratum E9: the example of the specification."""
    psi = Remoteness((-1, 1), 0.3)
    v = askew.velocity([-0.05, -0.05], [6.9, 7.0], psi, alpha=1.0, clip=0.5)
    assert v.tolist() == [-0.5, -7.0]
    demand = -psi(-0.05)
    assert -0.5 * psi.derivative(-0.05) < demand


def test_mid_point_rules():
    """Errata E1, E2: no velocity is admissible at psi < 0, any is at psi >= 0."""
    psi = Remoteness((-1, 1), 0.5)
    go = {"alpha": 1.0, "clip": 2.0}
    assert askew.velocity(0.0, 3.0, psi, **go).item() == 2.0
    assert askew.velocity(0.0, 3.0, psi, **go, midpoint="gradient").item() == -3.0
    with pytest.raises(ValueError, match="mid-point"):
        askew.velocity(0.0, 3.0, psi, alpha=1.0)
    with pytest.raises(ValueError, match="no velocity satisfies"):
        askew.project_velocity([3.0], [-0.5], [[0.0]], alpha=1.0)
    for slack in (1.0, 1.5):
        feasible = Remoteness((-1, 1), slack)
        assert askew.velocity(0.0, 3.0, feasible, alpha=1.0).item() == -3.0


# ---- index sets


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_index_sets_are_a_partition_with_the_right_signs(kind, levels):
    """Erratum E18: the skewing force helps on S+ and hurts on S-."""
    psi = Remoteness(levels, 0.2 * Remoteness(levels, 1, kind).epsilon_max, kind)
    w, g = random_points(levels, 10_000, seed=5)
    g[::10] = 0.0
    sets = askew.index_sets(w, g, psi, alpha=0.7)
    total = sum(mask.int() for mask in vars(sets).values())
    assert torch.equal(total, torch.ones_like(total))
    value, slope = psi(w), psi.derivative(w)
    # Definition 4, word for word.
    plus = (value <= 0) & (-0.7 * value > -g * slope) & (-g * slope >= 0)
    minus = (value <= 0) & (-0.7 * value >= 0) & (-g * slope < 0)
    assert torch.equal(sets.skew_helps, plus)
    assert torch.equal(sets.skew_hurts, minus)
    u = askew.skewing_force(w, psi, alpha=0.7)
    assert bool((u * g <= 0)[plus].all())
    assert bool((u * g >= 0)[minus].all())
    assert bool((u * g > 0)[minus].any())


def test_proof_of_theorem_4_fails_on_the_set_it_names():
    """Erratum E18: |u| >= |g| on S-, as the proof needs, is mostly violated."""
    psi = Remoteness((-1, 1), 0.2)
    w, g = random_points((-1, 1), 10_000, seed=6)
    hurts = askew.index_sets(w, g, psi, alpha=0.2).skew_hurts
    violated = (askew.skewing_force(w, psi, alpha=0.2).abs() < g.abs())[hurts]
    assert violated.double().mean() > 0.5


def test_stochastic_index_sets_say_which_update_was_taken():
    psi = Remoteness((-2, -1, 0, 1), 0.05)
    w, g = random_points((-2, 1), 5000, seed=7)
    estimate = g + torch.randn(5000, generator=torch.Generator().manual_seed(8))
    masks = askew.stochastic_index_sets(w, estimate, g, psi, alpha=0.5)
    total = sum(mask.int() for mask in masks)
    assert torch.equal(total, torch.ones_like(total))
    assert min(mask.sum() for mask in masks) > 20
    u = askew.skewing_force(w, psi, alpha=0.5)
    taken = askew.velocity(w, estimate, psi, alpha=0.5)
    wanted = askew.velocity(w, g, psi, alpha=0.5)
    by_definition = [(-estimate, -g), (-estimate, u), (u, u), (u, -g)]
    for mask, (first, second) in zip(masks, by_definition, strict=True):
        assert torch.equal(taken[mask], first[mask])
        assert torch.equal(wanted[mask], second[mask])


# ---- the general algorithm


def test_golden_point_on_the_disc():
    w, target = torch.zeros(2, dtype=torch.float64), torch.tensor([2.0, 1.0])
    for _ in range(2000):
        w = askew.constrained_step(
            w, w - target, (1 - w @ w)[None], -2 * w[None], alpha=1.0, gamma=0.05
        )
    assert w.tolist() == pytest.approx([0.894427191, 0.447213595], abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_general_projection_against_slsqp(seed):
    generator = np.random.default_rng(seed)
    d, m = int(generator.integers(2, 6)), int(generator.integers(1, 5))
    rows, g = generator.normal(size=(m, d)), generator.normal(size=d)
    inner = generator.normal(size=d)  # makes the constraints consistent
    values = -np.maximum(rows @ inner * 0.5, 0.0) + (generator.random(m) < 0.2)
    active = values <= 0
    demand = -0.8 * values
    demand[active] = np.minimum(demand[active], (rows @ inner)[active])
    values = np.where(active, -demand / 0.8, values)
    values[active & (values > 0)] = 0.5
    active = values <= 0
    v = askew.project_velocity(g, values, rows, alpha=0.8).numpy()
    constraint = {
        "type": "ineq",
        "fun": lambda v: (rows @ v + 0.8 * values)[active],
        "jac": lambda v: rows[active],
    }
    judge = minimize(
        lambda v: 0.5 * ((v + g) ** 2).sum(),
        inner,
        jac=lambda v: v + g,
        method="SLSQP",
        constraints=[constraint] if active.any() else [],
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert v == pytest.approx(judge.x, abs=1e-7)
    assert ((rows @ v + 0.8 * values)[active] >= -1e-12).all()


@pytest.mark.parametrize("seed", range(4))
def test_general_projection_meets_its_optimality_conditions(seed):
    """Dependent, badly scaled constraints; refusals agree with linear programming."""
    generator = np.random.default_rng(seed)
    refused = 0
    for trial in range(60):
        d, m = int(generator.integers(1, 7)), int(generator.integers(2, 9))
        rows = generator.normal(size=(m, d)) * 10 ** generator.normal(size=(m, 1))
        if trial % 3 == 0:
            rows[m // 2 :] = rows[: m - m // 2] * generator.random((m - m // 2, 1))
        demand = generator.random(m) * np.maximum(rows @ generator.normal(size=d), 0)
        g = generator.normal(size=d) * 10 ** generator.normal()
        length = np.linalg.norm(rows, axis=1)
        unit, level = rows / length[:, None], demand / length
        program = linprog(np.zeros(d), -unit, -level, bounds=[(None, None)] * d)
        if program.status == 2:
            refused += 1
            with pytest.raises(ValueError, match="no velocity satisfies"):
                askew.project_velocity(g, -demand, rows, alpha=1.0)
            continue
        v = askew.project_velocity(g, -demand, rows, alpha=1.0).numpy()
        scale = 1 + np.linalg.norm(g) + level.max()
        slack = unit @ v - level
        assert slack.min() >= -1e-11 * scale
        binding = slack < 1e-9 * scale
        shift = v + g
        residual = nnls(unit[binding].T, shift)[1] if binding.any() else shift
        assert np.linalg.norm(residual) <= 1e-11 * scale
    assert 0 < refused < 60


def test_dependent_constraints_are_no_obstacle():
    rows = [[1.0, 0.0], [2.0, 0.0], [1.0, 1e-3], [0.0, 1.0]]
    v = askew.project_velocity([0.0, 0.0], [-1.0, -2.0, -1.0, 5.0], rows, alpha=1.0)
    assert v.tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


def test_zero_gradient_of_a_satisfied_boundary_constraint_is_no_obstacle():
    assert askew.project_velocity([2.0], [0.0], [[0.0]], alpha=1.0).tolist() == [-2.0]


def test_contradicting_constraints_are_refused():
    with pytest.raises(ValueError, match="no velocity satisfies"):
        askew.project_velocity([0.0], [-1.0, -1.0], [[1.0], [-1.0]], alpha=1.0)


def test_only_violated_constraints_act():
    """The report's display of V forgets the restriction to g_i <= 0."""
    v = askew.project_velocity([5.0], [0.1], [[1.0]], alpha=1.0)
    assert v.tolist() == [-5.0]
    assert -5.0 < -0.1  # what the display would have forbidden


# ---- refusals


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"alpha": math.nan}, "alpha must be positive"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"clip": math.nan}, "clip must be positive"),
        ({"midpoint": "both"}, "midpoint must be"),
        ({"gradient": [math.nan]}, "gradient must be finite"),
        ({"w": [math.inf]}, "w must be finite"),
    ],
)
def test_bad_input_is_refused(change, text):
    given = {"w": [0.3], "gradient": [1.0], "alpha": 1.0} | change
    with pytest.raises(ValueError, match=text):
        askew.velocity(psi=Remoteness((-1, 1), 0.2), **given)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[d\], \[m\] and \[m, d\]"):
        askew.project_velocity([1.0, 2.0], [0.0], [[1.0]], alpha=1.0)
