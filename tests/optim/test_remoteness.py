"""Remoteness, feasible set and skewed direction against tables and exact solutions."""

import math

import pytest
import torch

import lowprec as lp
from lowprec.optim import (
    feasible_set,
    largest_epsilon,
    nearest,
    remoteness,
    skewed_direction,
)

KINDS = ["quadratic", "quartic", "quartic_ext"]
Q = lp.Levels([1, 3, 7, 8, 11])
W = [0.5, 0.9, 1.05, 1.5, 2, 2.9, 3.3, 7.1, 7.5, 7.75, 9, 11.1, 12]
TABLES = {
    "quadratic": (
        0.2,
        [-0.3, 0.1, 0.1025, -0.55, -0.8, 0.01, -0.91, 0.11, -0.05, 0.0125, -1.8,
         0.1, -0.8],
        [1, 1, -1.9, -1, 0, 1.8, -3.4, -0.8, 0, 0.5, -1, -1, -1],
    ),
    "quartic": (
        0.05,
        [-0.2, 0.04, 0.04049375, -0.5125, -0.95, 0.0139, -1.1821, 0.0419, -0.0125,
         0.01484375, -3.95, 0.04, -0.95],
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("per_coordinate", [False, True])
def test_tables(kind, dtype, per_coordinate):
    epsilon, value, derivative = TABLES[kind]
    w = torch.tensor(W, dtype=dtype)
    levels = Q
    if per_coordinate:
        levels = torch.tensor(Q.values).expand(len(W), -1)
    psi = remoteness(w, levels, epsilon, kind)
    close = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-5}
    torch.testing.assert_close(psi.value, torch.tensor(value, dtype=dtype), **close)
    if derivative:
        expected = torch.tensor(derivative, dtype=dtype)
        torch.testing.assert_close(psi.derivative, expected, **close)


@pytest.mark.parametrize("levels", [Q, lp.Levels.binary(), lp.Levels([2.0])], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_is_that_of_the_value(kind, levels):
    if kind == "quartic_ext" and len(levels) == 1:
        with pytest.raises(ValueError, match="two levels"):
            remoteness(torch.zeros(1), levels, 0.1, kind)
        return
    w = torch.linspace(-0.97, 13.03, 331, dtype=torch.float64)
    w.requires_grad_()
    psi = remoteness(w, levels, 0.1, kind)
    h = 1e-6
    high = remoteness(w.detach() + h, levels, 0.1, kind).value
    low = remoteness(w.detach() - h, levels, 0.1, kind).value
    torch.testing.assert_close(
        psi.derivative, (high - low) / (2 * h), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_psi_rises_toward_the_nearest_level(kind):
    w = torch.linspace(-3.013, 14.1, 997, dtype=torch.float64)
    psi = remoteness(w, Q, 0.1, kind)
    assert torch.equal(psi.derivative.sign(), (nearest(w, Q) - w).sign())
    at_levels = remoteness(torch.tensor(Q.values), Q, 0.125, kind)
    assert at_levels.value.tolist() == [0.125] * 5


def test_quartic_ext_of_binary_is_the_published_polynomial():
    w = torch.linspace(-2, 2, 41, dtype=torch.float64)
    psi = remoteness(w, lp.Levels.binary(), 0.3, "quartic_ext")
    torch.testing.assert_close(psi.value, 0.3 - (w**2 - 1) ** 2)
    torch.testing.assert_close(psi.derivative, -4 * w * (w**2 - 1))


def test_feasible_sets_of_the_specification():
    def flat(pieces):
        return [bound for piece in pieces for bound in piece]

    binary, int2 = lp.Levels.binary(), lp.Levels.int_bits(2)
    root = math.sqrt(0.8)
    assert flat(feasible_set(binary, 0.2)) == pytest.approx([-1.2, -root, root, 1.2])
    assert feasible_set(binary, 0.05, "quartic")[0] == pytest.approx(
        (-1.22360680, -0.88113177), abs=1e-8
    )
    assert feasible_set(int2, 0.2)[1] == pytest.approx((-1.2763932, -0.7236068))
    outer = feasible_set(binary, 0.05, "quartic_ext")[-1][1]
    assert outer == pytest.approx(math.sqrt(1 + math.sqrt(0.05)))


@pytest.mark.parametrize("levels", [lp.Levels.binary(), lp.Levels.int_bits(3)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_meet_at_the_largest_epsilon(kind, levels):
    largest = largest_epsilon(levels, kind)
    assert len(feasible_set(levels, largest, kind)) == 1
    assert len(feasible_set(levels, math.nextafter(largest, 0), kind)) == len(levels)
    assert len(feasible_set(levels, 0.0, kind)) == len(levels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_feasible_set_is_where_psi_is_not_negative(kind):
    pieces = feasible_set(Q, 0.05, kind)
    w = torch.linspace(-1, 13, 9973, dtype=torch.float64)
    inside = torch.zeros(len(w), dtype=torch.bool)
    for low, high in pieces:
        inside |= (low <= w) & (w <= high)
    assert torch.equal(inside, remoteness(w, Q, 0.05, kind).value >= 0)
    ends = torch.tensor(pieces, dtype=torch.float64).flatten()
    assert remoteness(ends, Q, 0.05, kind).value.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("g", "velocity"),
    [
        (0.3, [0.15, -0.3, -0.3, -0.3, 2, -0.3, -0.3, -0.3, 2, -0.3, -0.9, -0.3, -0.4]),
        (
            -0.3,
            [0.3, 0.3, 0.3, -0.275, 2, 0.3, -0.133823529, 0.3, 2, 0.3, -0.9, 0.3, -0.4],
        ),
    ],
)
def test_velocities_of_the_specification(g, velocity):
    w = torch.tensor(W, dtype=torch.float64)
    direction = skewed_direction(
        torch.full_like(w, g), w, Q, 0.2, alpha=0.5, clip=2.0, midpoint="report"
    )
    expected = torch.tensor(velocity, dtype=torch.float64)
    torch.testing.assert_close(-direction, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unclipped_velocity_solves_the_projection(kind):
    generator = torch.Generator().manual_seed(3)
    w = 16 * torch.rand(10_000, dtype=torch.float64, generator=generator) - 2
    g = 4 * torch.randn(10_000, dtype=torch.float64, generator=generator)
    v = -skewed_direction(g, w, Q, 0.05, alpha=0.7, kind=kind)
    psi, slope = remoteness(w, Q, 0.05, kind)
    # One constraint v psi' >= -alpha psi on each line: a half line to project -g on.
    bound = -0.7 * psi / slope
    solution = torch.where(
        slope > 0, torch.maximum(-g, bound), torch.minimum(-g, bound)
    )
    solution = torch.where(psi > 0, -g, solution)
    torch.testing.assert_close(v, solution, rtol=1e-12, atol=0)


def test_skewing_helps_in_s_plus_and_hurts_in_s_minus():
    generator = torch.Generator().manual_seed(4)
    w = 16 * torch.rand(10_000, dtype=torch.float64, generator=generator) - 2
    g = 4 * torch.randn(10_000, dtype=torch.float64, generator=generator)
    v = -skewed_direction(g, w, Q, 0.05, alpha=0.7)
    psi, slope = remoteness(w, Q, 0.05)
    plus = (psi <= 0) & (-0.7 * psi > -g * slope) & (-g * slope >= 0)
    minus = (psi <= 0) & (-g * slope < 0)
    skewed = v != -g
    assert torch.equal(skewed, plus | minus)
    assert (v * g)[plus].max() <= 0
    assert (v * g)[minus].min() >= 0


def test_the_clip_jumps_unless_it_is_max():
    w = torch.tensor([-0.05, -0.05], dtype=torch.float64)
    g = torch.tensor([6.9, 7.0], dtype=torch.float64)
    options = {"alpha": 1.0, "clip": 0.5}
    report = -skewed_direction(g, w, lp.Levels.binary(), 0.3, **options)
    assert report.tolist() == [-0.5, -7.0]
    options["clip_mode"] = "max"
    steady = -skewed_direction(g, w, lp.Levels.binary(), 0.3, **options)
    assert steady.tolist() == [-6.9, -7.0]
    outward = -skewed_direction(-g, w, lp.Levels.binary(), 0.3, **options)
    assert outward.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 1.5])
def test_midpoints(epsilon):
    w, g = torch.zeros(1), torch.tensor([3.0])
    options = {"alpha": 1.0, "clip": 2.0}
    levels = lp.Levels.binary()
    report = skewed_direction(g, w, levels, epsilon, midpoint="report", **options)
    # Where the mid-point is feasible the gradient decides.
    assert report.item() == (-2.0 if epsilon < 1 else 3.0)
    free = skewed_direction(g, w, levels, epsilon, midpoint="gradient", **options)
    assert free.item() == 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [lp.Levels.binary(), Q, lp.Levels([-0.3, 0.4, 0.9])])
def test_weights_pass_mid_points_of_cells_that_are_all_feasible(levels, kind, dtype):
    """Where psi is x^2 + epsilon - h^2, which rounding makes 0 for small x."""
    eps = torch.finfo(dtype).eps
    offsets = torch.cat([torch.zeros(1), 2.0 ** torch.arange(-30, -8)]).to(dtype)
    offsets = torch.cat([-offsets, offsets])
    epsilon = largest_epsilon(levels, kind)
    options = {"alpha": 0.5, "clip": 2.0, "kind": kind, "midpoint": "report"}
    for a, b in zip(levels.values, levels.values[1:], strict=False):
        w = (a + b) / 2 + offsets
        g = 0.25 * (-1.0) ** torch.arange(len(w), dtype=dtype)
        passing = skewed_direction(g, w, levels, epsilon, **options)
        stopped = skewed_direction(g, w, levels, 0.99 * epsilon, **options)
        if b - a < 1.001 * levels.min_gap:
            assert torch.equal(passing, g)
            # A slack below the largest by less than rounding errors counts as it.
            near = skewed_direction(g, w, levels, epsilon * (1 - eps), **options)
            assert torch.equal(near, g)
        assert not torch.equal(stopped, g)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "cubic"}, "remoteness"),
        ({"clip_mode": "min"}, "clip_mode"),
        ({"midpoint": "up"}, "midpoint"),
        ({"midpoint": "report"}, "finite clip"),
        ({"clip": 0.0}, "clip"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
    ],
)
def test_bad_parameters_are_refused(options, text):
    options = {"alpha": 1.0, "epsilon": 0.5, **options}
    with pytest.raises(ValueError, match=text):
        skewed_direction(torch.ones(1), torch.ones(1), lp.Levels.binary(), **options)
