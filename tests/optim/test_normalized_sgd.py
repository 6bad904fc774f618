"""NormalizedSGD: direction, step, projection and what a zero gradient means."""

import pytest
import torch

import lowprec as lp
from lowprec.optim import (
    Ball,
    Box,
    NormalizedSGD,
    normalized_direction,
    normalized_sgd_step,
)
from lowprec.testing import assert_bit_equal


def vector(*values, dtype=torch.float64):
    p = torch.nn.Parameter(torch.tensor(values, dtype=dtype))
    p.grad = torch.zeros_like(p)
    return p


def test_the_norm_runs_over_all_parameters_and_groups():
    p, q = vector(1.0), vector(2.0)
    p.grad[0], q.grad[0] = 3.0, 4.0
    NormalizedSGD([{"params": [p]}, {"params": [q], "lr": 2.0}], lr=1.0).step()
    assert (p.item(), q.item()) == (1 - 0.6, 2 - 2 * 0.8)


@pytest.mark.parametrize("scale", [2.0**-1000, 1.0, 2.0**1000])
def test_directions_neither_overflow_nor_underflow(scale):
    g = torch.tensor([3.0, 4.0], dtype=torch.float64) * scale
    assert normalized_direction(g).tolist() == [0.6, 0.8]


def test_subnormal_gradients_have_a_direction():
    g = torch.tensor([3.0, -4.0], dtype=torch.float64) * 2.0**-1074
    assert normalized_direction(g).tolist() == [0.6, -0.8]


def test_the_optimizer_and_the_function_agree():
    fl = lp.Rounding("bfloat16", "stochastic")
    p = vector(*torch.randn(40).tolist())
    start = p.detach().clone()
    p.grad = torch.randn(40, dtype=torch.float64)
    optimizer = NormalizedSGD(
        [p],
        0.1,
        param_format=fl,
        direction_format="bfloat16",
        projection=Box(-0.5, 0.5),
    )
    seed = optimizer.param_groups[0]["rounding_seed"]
    direction = normalized_direction(p.grad, "bfloat16")
    optimizer.step()
    expected = normalized_sgd_step(
        start, direction, 0.1, fl, projection=Box(-0.5, 0.5), seed=seed
    )
    assert_bit_equal(p.detach(), expected)


def test_step_sizes_are_members_of_the_format():
    w = torch.zeros(1)
    result = normalized_sgd_step(w, torch.ones(1), 0.1, lp.Rounding("binary32"))
    assert result.item() == -torch.tensor(0.1).item()
    assert NormalizedSGD([vector(1.0)], 0.1, param_format="bfloat16").effective_lr == [
        0.10009765625
    ]


def test_stop_ends_the_run():
    p = vector(1.0, 2.0)
    optimizer = NormalizedSGD([p], lr=0.1)
    assert not optimizer.converged
    optimizer.step()
    assert optimizer.converged
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert p.tolist() == [1.0, 2.0]
    restored = NormalizedSGD([p], lr=0.1)
    restored.load_state_dict(optimizer.state_dict())
    assert restored.converged


def test_skip_goes_on():
    p = vector(1.0, 2.0)
    optimizer = NormalizedSGD([p], lr=0.5, on_zero="skip")
    optimizer.step()
    assert p.tolist() == [1.0, 2.0]
    p.grad[0] = 7.0
    optimizer.step()
    assert p.tolist() == [0.5, 2.0]
    assert not optimizer.converged


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_gradient_without_direction_is_refused_and_changes_nothing(bad):
    p = vector(1.0, 2.0)
    p.grad[1] = bad
    optimizer = NormalizedSGD(
        [p], lr=0.5, param_format=lp.Rounding("bfloat16", "stochastic")
    )
    with pytest.raises(RuntimeError, match="NaN or infinite elements and no direction"):
        optimizer.step()
    assert p.tolist() == [1.0, 2.0]
    assert optimizer.param_groups[0]["rounding_step"] == 0


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        ({"lr": 1.0, "on_zero": "wait"}, ValueError, "'stop' or 'skip', got 'wait'"),
        ({"lr": 1.0, "projection": 3}, TypeError, "a Box, a Ball or None, got int"),
    ],
)
def test_invalid_arguments_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        NormalizedSGD([vector(1.0)], **arguments)


def test_half_parameters_are_refused():
    with pytest.raises(TypeError, match=r"got bfloat16: use model\.float\(\)"):
        NormalizedSGD([vector(1.0, dtype=torch.bfloat16)], lr=0.1)


@pytest.mark.parametrize("name", ["bfloat16", "e4m3fn", None])
def test_boxes_keep_every_representable_point_inside_unchanged(name):
    z = torch.linspace(-3, 3, 1001)
    z = z if name is None else lp.round(z, name)
    (w,) = Box(-0.7, 1.3).project([z], [name])
    inside = (z.double() >= -0.7) & (z.double() <= 1.3)
    assert torch.equal(w[inside], z[inside])
    assert w.double().min() >= -0.7
    assert w.double().max() <= 1.3
    if name is not None:
        assert torch.equal(w, lp.round(w, name))
        values = torch.tensor(lp.format("bfloat16").values()).double()
        allowed = values[(values >= -0.7) & (values <= 1.3)]
        if name == "bfloat16":
            assert w.max() == allowed.max()
            assert w.min() == allowed.min()


def test_boxes_that_hold_no_value_are_refused():
    with pytest.raises(ValueError, match="contains no value"):
        Box(1.001, 1.002).project([torch.ones(1)], ["bfloat16"])
    with pytest.raises(ValueError, match="low <= high"):
        Box(1.0, 0.0)
    with pytest.raises(ValueError, match="low <= high"):
        Box(float("nan"), 0.0)


def test_boxes_move_infinities_and_keep_nan():
    z = torch.tensor([torch.inf, -torch.inf, torch.nan])
    (w,) = Box(0.0, float("inf")).project([z], ["bfloat16"])
    assert_bit_equal(w, torch.tensor([torch.inf, 0.0, torch.nan]))


@pytest.mark.parametrize("name", ["bfloat16", "e4m3fn", "binary32", None])
@pytest.mark.parametrize("center", [0.0, -1.5])
@pytest.mark.parametrize("radius", [0.3, 1.0, 2.0])
def test_balls_contain_their_projections(name, center, radius):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        z = [3 * torch.randn(n, generator=generator) for n in (9, 4)]
        z = z if name is None else [lp.round(x, name) for x in z]
        w = Ball(radius, center).project(z, [name, name])
        arm = torch.cat(w).double() - center
        assert arm.norm() <= radius
        exact = torch.cat(z).double() - center
        exact = exact * min(1.0, radius / exact.norm())
        assert (arm.abs() <= exact.abs() * (1 + 1e-14) + 1e-300).all()
        if name is not None:
            u = lp.format(name).unit_roundoff
            tiny = lp.format(name).smallest_subnormal
            scale = (exact + center).abs()
            assert ((arm - exact).abs() <= 2 * u * scale + tiny).all()
            assert all(torch.equal(x, lp.round(x, name)) for x in w)


def test_balls_in_float64_are_not_left_by_a_last_bit():
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        z = 3 * torch.randn(11, generator=generator, dtype=torch.float64)
        (w,) = Ball(1.0).project([z], [None])
        assert w.norm() <= 1.0
        assert w.norm() >= 1.0 - 2.0**-50


def test_balls_much_smaller_than_their_centre():
    # 1 + radius lies between two float64 numbers, nearer to the outer one.
    step = 2.0**-52
    z = torch.tensor([1.0, 1 + 4 * step, 1 - 4 * step], dtype=torch.float64)
    for point in z.split(1):
        (w,) = Ball(0.75 * step, center=1.0).project([point], [None])
        assert (w - 1).abs() <= 0.75 * step


def test_points_in_the_ball_stay():
    z = [torch.tensor([0.3, 0.4])]
    assert torch.equal(Ball(1.0).project(z, ["bfloat16"])[0], z[0])
    with pytest.raises(ValueError, match="choose a representable centre"):
        Ball(0.1, center=0.1).project([torch.ones(2)], ["bfloat16"])
    with pytest.raises(ValueError, match="radius must be positive"):
        Ball(0.0)


def test_projections_act_on_a_group_as_one_vector():
    p, q = vector(3.0), vector(4.0)
    p.grad[0] = 1e-30
    NormalizedSGD([p, q], lr=0.0, projection=Ball(1.0), param_format="binary32").step()
    assert torch.tensor([p.item(), q.item()]).norm() <= 1.0
    assert p.item() == pytest.approx(0.6, rel=1e-6)
    assert q.item() == pytest.approx(0.8, rel=1e-6)


def test_stochastic_rounding_passes_where_nearest_stagnates():
    """T6: f = |w|, w_0 = 1.5, eta = 2^-9, bfloat16."""
    lowest = 1.5
    p = vector(1.5)
    generator = torch.Generator().manual_seed(1)
    fl = lp.Rounding("bfloat16", "stochastic")
    optimizer = NormalizedSGD(
        [p], 2**-9, param_format=fl, on_zero="skip", generator=generator
    )
    for _ in range(4000):
        p.grad = p.detach().sign()
        optimizer.step()
        lowest = min(lowest, abs(p.item()))
    assert lowest < 0.005
