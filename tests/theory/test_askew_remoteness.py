"""Remoteness functions and feasible sets against tables, rationals and bisection."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from lowprec.theory.askew import Remoteness

KINDS = ("quadratic", "quartic", "quartic_ext")
LEVELS = {
    "binary": (-1, 1),
    "integers": (-2, -1, 0, 1),
    "uneven": (1, 3, 7, 8, 11),
    "thirds": (-1, -1 / 3, 1 / 3, 1),
}
CASES = [(kind, levels) for kind in KINDS for levels in LEVELS.values()]
UNEVEN = LEVELS["uneven"]
WEIGHTS = (0.5, 0.9, 1.05, 1.5, 2, 2.9, 3.3, 7.1, 7.5, 7.75, 9, 11.1, 12)


def slacks(kind, levels):
    """Slacks below the largest one that keeps the intervals apart."""
    unit = Remoteness(levels, 1.0, kind).epsilon_max
    return [share * unit for share in (1e-6, 0.01, 0.3, 0.9, 0.999999)]


def rational_psi(w, levels, epsilon, kind):
    """The definition, word for word, in rationals."""
    w, epsilon = Fraction(w), Fraction(epsilon)
    levels = [Fraction(level) for level in levels]
    if levels[0] <= w < levels[-1]:
        j = max(j for j, level in enumerate(levels) if level <= w)
        s = (w - levels[j]) * (levels[j + 1] - w)
        return epsilon - (s if kind == "quadratic" else s * s)
    near, following = levels[:2] if w < levels[0] else levels[:-3:-1]
    if kind == "quadratic":
        return epsilon - abs(w - near)
    if kind == "quartic":
        return epsilon - (w - near) ** 2
    return epsilon - (w - near) ** 2 * (w - following) ** 2


def grid(levels, count=400):
    span = levels[-1] - levels[0]
    return torch.linspace(
        levels[0] - span, levels[-1] + span, count, dtype=torch.float64
    )


# ---- the tables of the specification


def test_quadratic_table():
    psi = Remoteness(UNEVEN, 0.2)
    values = (-0.3, 0.1, 0.1025, -0.55, -0.8, 0.01, -0.91)
    values += (0.11, -0.05, 0.0125, -1.8, 0.1, -0.8)
    slopes = (1, 1, -1.9, -1, 0, 1.8, -3.4, -0.8, 0, 0.5, -1, -1, -1)
    # The interval [8, 11] has the mid-point 9.5, so psi'(9) = 2*9 - 8 - 11 = -1.
    w = torch.tensor(WEIGHTS, dtype=torch.float64)
    assert psi(w).tolist() == pytest.approx(values, abs=1e-12)
    assert psi.derivative(w).tolist() == pytest.approx(slopes, abs=1e-12)


def test_quartic_table():
    psi = Remoteness(UNEVEN, 0.05, "quartic")
    values = (-0.2, 0.04, 0.04049375, -0.5125, -0.95, 0.0139, -1.1821)
    values += (0.0419, -0.0125, 0.01484375, -3.95, 0.04, -0.95)
    w = torch.tensor(WEIGHTS, dtype=torch.float64)
    assert psi(w).tolist() == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize(
    ("levels", "kind", "epsilon", "piece", "ends"),
    [
        ((-1, 1), "quadratic", 0.2, 0, (-1.2, -0.89442719)),
        ((-1, 1), "quadratic", 0.2, 1, (0.89442719, 1.2)),
        ((-1, 1), "quartic", 0.05, 0, (-1.22360680, -0.88113177)),
        ((-2, -1, 0, 1), "quadratic", 0.2, 1, (-1.2763932, -0.7236068)),
    ],
)
def test_feasible_set_table(levels, kind, epsilon, piece, ends):
    pieces = Remoteness(levels, epsilon, kind).pieces
    assert pieces[piece] == pytest.approx(ends, abs=5e-8)


# ---- psi is its definition


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_values_are_those_of_the_definition(kind, levels):
    psi = Remoteness(levels, 0.125, kind)
    points = torch.cat([grid(levels), torch.tensor(levels, dtype=torch.float64)])
    for w, value in zip(points.tolist(), psi(points).tolist(), strict=True):
        exact = float(rational_psi(w, psi.levels, 0.125, kind))
        assert value == pytest.approx(exact, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_derivative_is_the_right_difference_quotient(kind, levels):
    psi = Remoteness(levels, 0.125, kind)
    step = Fraction(1, 2**40)
    points = torch.cat([grid(levels, 100), torch.tensor(levels, dtype=torch.float64)])
    for w, slope in zip(points.tolist(), psi.derivative(points).tolist(), strict=True):
        if any(w < level <= w + step for level in psi.levels):
            continue  # the kink lies within the quotient
        ends = [
            rational_psi(x, psi.levels, 0.125, kind) for x in (w, Fraction(w) + step)
        ]
        quotient = float((ends[1] - ends[0]) / step)
        assert slope == pytest.approx(quotient, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_slope_points_to_the_nearest_level(kind, levels):
    psi = Remoteness(levels, 0.125, kind)
    w = grid(levels)
    nearest = min_by_distance(w, torch.tensor(psi.levels, dtype=torch.float64))
    middles = [(a + b) / 2 for a, b in pairwise(levels)]
    special = torch.tensor([*levels, *middles], dtype=torch.float64)
    regular = (w[:, None] - special).abs().min(1).values > 1e-9
    signs = torch.sign(psi.derivative(w)), torch.sign(nearest - w)
    assert torch.equal(signs[0][regular], signs[1][regular])


def min_by_distance(w, levels):
    return levels[(w[:, None] - levels).abs().argmin(1)]


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_psi_is_epsilon_at_levels(kind, levels):
    psi = Remoteness(levels, 0.125, kind)
    assert psi(torch.tensor(levels, dtype=torch.float64)).tolist() == [0.125] * len(
        levels
    )


# ---- the feasible set is where psi >= 0


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_pieces_end_where_psi_changes_sign(kind, levels):
    for epsilon in slacks(kind, levels):
        psi = Remoteness(levels, epsilon, kind)
        assert len(psi.pieces) == len(levels)
        for (low, high), level in zip(psi.pieces, psi.levels, strict=True):
            assert low < level < high
            for end in (low, high):
                outward = math.copysign(1e-7 * abs(end - level), end - level)
                outside = rational_psi(end + outward, psi.levels, epsilon, kind)
                inside = rational_psi(end - outward, psi.levels, epsilon, kind)
                assert outside < 0 < inside


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_pieces_touch_exactly_at_the_largest_slack(kind, levels):
    """Erratum E4: the condition is strict, at equality the mid-point is feasible."""
    largest = Remoteness(levels, 1.0, kind).epsilon_max
    gap = min(b - a for a, b in pairwise(levels))
    assert largest == pytest.approx(gap**2 / 4 if kind == "quadratic" else gap**4 / 16)
    touching = Remoteness(levels, largest, kind)
    assert 0.0 in touching.infeasible_widths
    assert len(touching.pieces) < len(levels)
    below = Remoteness(levels, largest * (1 - 1e-12), kind)
    assert len(below.pieces) == len(levels)
    if len(levels) == 2:
        assert len(touching.pieces) == 1


@pytest.mark.parametrize("levels", [LEVELS["binary"], LEVELS["integers"]])
def test_all_pieces_join_where_all_gaps_are_equal(levels):
    largest = Remoteness(levels, 0.01).epsilon_max
    assert len(Remoteness(levels, largest).pieces) == 1


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_set_shrinks_to_the_levels(kind, levels):
    psi = Remoteness(levels, 1e-24, kind)
    for (low, high), level in zip(psi.pieces, psi.levels, strict=True):
        assert max(level - low, high - level) < 1e-11


def test_half_widths_lose_no_digits():
    """(gap - D)/2 cancels; the stable form agrees with rationals to the last bits."""
    (half_width,) = Remoteness((0, 1024), 2.0**-20).inner_half_widths
    residual = Fraction(half_width) * (1024 - Fraction(half_width)) * 2**20
    assert abs(residual - 1) < Fraction(1, 2**51)


def test_extended_half_width_of_binary_levels():
    psi = Remoteness((-1, 1), 0.09, "quartic_ext")
    assert psi.outer_half_widths == pytest.approx([math.sqrt(1.3) - 1] * 2, rel=1e-14)


# ---- distance and projection


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_projection_is_the_nearest_point(kind, levels):
    generator = torch.Generator().manual_seed(1)
    for epsilon in slacks(kind, levels):
        psi = Remoteness(levels, epsilon, kind)
        w = torch.rand(200, generator=generator, dtype=torch.float64) * 20 - 6
        ends = torch.tensor(psi.pieces, dtype=torch.float64)
        clamped = w[:, None].clamp(ends[:, 0], ends[:, 1])
        distance = (w[:, None] - clamped).abs().min(1).values
        assert torch.equal(psi.distance(w), distance)
        projected = psi.project(w)
        assert torch.equal((projected - w).abs(), distance)
        assert psi.distance(projected).abs().max() == 0


def test_projection_of_a_mid_point_is_the_upper_one():
    psi = Remoteness((-1, 1), 0.75)
    assert psi.project(0.0).item() == 0.5
    assert psi.project([-3.0, 3.0]).tolist() == [-1.75, 1.75]


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_derivative_of_distance_is_the_difference_quotient(kind, levels):
    psi = Remoteness(levels, slacks(kind, levels)[2], kind)
    middles = [(a + b) / 2 for a, b in pairwise(levels)]
    ends = [end for piece in psi.pieces for end in piece]
    special = torch.tensor([*middles, *ends], dtype=torch.float64)
    w = torch.cat([grid(levels, 60), special])
    for direction in (1.0, -1.0):
        move = torch.full_like(w, direction)
        step = 2.0**-30
        quotient = (psi.distance(w + step * move) - psi.distance(w)) / step
        slope = psi.distance_derivative(w, move)
        # float mid-points need not be at equal distance of rounded ends
        assert (slope - quotient).abs()[:60].max() < 1e-5
        assert (slope - quotient).abs()[-len(ends) :].max() < 1e-5
    middle = psi.distance_derivative(w[60 : 60 + len(middles)], move[0])
    assert middle.abs().tolist() == [1.0] * len(middles)


def test_both_directions_approach_from_the_mid_point():
    psi = Remoteness((-1, 1), 0.75)
    assert psi.distance_derivative([0.0, 0.0], [2.0, -3.0]).tolist() == [-2.0, -3.0]


# ---- refusals


@pytest.mark.parametrize(
    ("levels", "epsilon", "kind", "text"),
    [
        ((1, -1), 0.1, "quadratic", "strictly increasing"),
        ((1, 1), 0.1, "quadratic", "strictly increasing"),
        ((), 0.1, "quadratic", "nonempty"),
        ((0, math.inf), 0.1, "quadratic", "finite"),
        ((0, math.nan), 0.1, "quadratic", "finite"),
        ([[0, 1]], 0.1, "quadratic", "shape"),
        ((0, 1), 0.0, "quadratic", "epsilon must be positive"),
        ((0, 1), -1.0, "quadratic", "epsilon must be positive"),
        ((0, 1), math.nan, "quadratic", "epsilon must be finite"),
        ((0, 1), 0.1, "cubic", "kind must be one of"),
        ((0,), 0.1, "quartic_ext", "two levels"),
    ],
)
def test_bad_input_is_refused(levels, epsilon, kind, text):
    with pytest.raises(ValueError, match=text):
        Remoteness(levels, epsilon, kind)


@pytest.mark.parametrize("w", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(w):
    psi = Remoteness((-1, 1), 0.2)
    for function in (psi, psi.derivative, psi.distance, psi.project):
        with pytest.raises(ValueError, match="w must be finite"):
            function(w)


def test_single_level():
    psi = Remoteness((0.5,), 0.25)
    assert psi.pieces == ((0.25, 0.75),)
    assert psi.epsilon_max == math.inf
    assert psi.derivative([0.0, 1.0]).tolist() == [1.0, -1.0]


def test_shapes_and_empty_tensors():
    psi = Remoteness((-1, 1), 0.2)
    for shape in ((), (0,), (2, 3), (2, 0, 3)):
        w = torch.zeros(shape)
        for function in (psi, psi.derivative, psi.distance, psi.project):
            result = function(w)
            assert result.shape == w.shape
            assert result.dtype == torch.float64
