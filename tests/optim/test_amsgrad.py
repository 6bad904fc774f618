"""AMSGrad: torch's own trajectory, the size of steps, formats by the oracle."""

import math
from fractions import Fraction

import pytest
import torch

import lowprec as lp
from lowprec.testing import exact_round

BETAS = (0.9, 0.999)


def parameter(values, dtype=torch.float64):
    return torch.nn.Parameter(torch.as_tensor(values, dtype=dtype).clone())


def test_without_eps_it_is_torch_adam_at_another_step_size():
    w = torch.randn(30, dtype=torch.float64)
    ours, theirs = parameter(w), parameter(w)
    optimizer = lp.optim.AMSGrad([ours], lr=1e-2, betas=BETAS, eps=0.0)
    judge = torch.optim.Adam([theirs], betas=BETAS, eps=0.0, amsgrad=True)
    for t in range(1, 301):
        eta = 1e-2 / (1 + t / 100)
        optimizer.param_groups[0]["lr"] = eta
        scale = (1 - BETAS[0] ** t) / math.sqrt(1 - BETAS[1] ** t)
        judge.param_groups[0]["lr"] = eta * scale
        noise = torch.randn(30, dtype=torch.float64)
        for p in (ours, theirs):
            p.grad = p.detach() + noise
        optimizer.step()
        judge.step()
    assert (ours - theirs).abs().max() < 1e-12
    assert (ours - w).abs().min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_step_is_longer_than_the_step_size(dtype):
    g = torch.tensor([1e-2, -0.3, 5.0, 2e3], dtype=dtype)
    w = parameter(torch.zeros(4), dtype)
    optimizer = lp.optim.AMSGrad([w], lr=0.5)
    w.grad = g
    optimizer.step()
    limit = 0.5 * (1 - 0.9) / math.sqrt(1 - 0.999) * -g.sign()
    # eps / (2 (1 - beta2) g^2) is below 1e-4 from |g| = 0.23 on.
    assert torch.allclose(w.detach()[1:], limit[1:], rtol=1e-4, atol=0)
    exact = 0.5 * 0.1 / torch.sqrt(0.001 + 1e-8 / g.double() ** 2)
    assert torch.allclose(w.detach().abs().double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_it_is_the_recurrence_of_the_paper(decoupled, maximize):
    w = parameter(torch.randn(5))
    optimizer = lp.optim.AMSGrad(
        [w], lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2,
        maximize=maximize, decoupled_weight_decay=decoupled,
    )  # fmt: skip
    m = v = largest = torch.zeros(5, dtype=torch.float64)
    theta = w.detach().clone()
    for _ in range(30):
        g = torch.randn(5, dtype=torch.float64)
        w.grad = g.clone()
        optimizer.step()
        g = -g if maximize else g
        g = g if decoupled else g + 0.2 * theta
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        largest = torch.maximum(largest, v)
        theta = theta * (1 - 0.1 * 0.2) if decoupled else theta
        theta = theta - 0.1 * m / torch.sqrt(largest + 1e-3)
        assert torch.allclose(w.detach(), theta, rtol=1e-13, atol=1e-14)
    state = optimizer.state[w]
    assert torch.allclose(state["exp_avg"], m, rtol=1e-13)
    assert torch.allclose(state["max_exp_avg_sq"], largest, rtol=1e-13)
    assert state["step"].item() == 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stored_numbers_are_rounded_once(dtype):
    formats = {
        "param_format": lp.Rounding("bfloat16"),
        "exp_avg_format": lp.Rounding("e5m2"),
        "exp_avg_sq_format": lp.Rounding("bfloat16", "toward_zero"),
    }
    w = parameter(lp.round(torch.randn(6), "bfloat16"), dtype)
    optimizer = lp.optim.AMSGrad([w], lr=2.0**-6, betas=(0.75, 0.875), **formats)
    m = v = largest = [Fraction(0)] * 6
    theta = [Fraction(x) for x in w.tolist()]
    for _ in range(12):
        g = torch.randn(6, dtype=dtype)
        w.grad = g
        optimizer.step()
        exact = [Fraction(x) for x in g.tolist()]
        m = [
            Fraction(exact_round((3 * a + b) / 4, formats["exp_avg_format"]))
            for a, b in zip(m, exact, strict=True)
        ]
        v = [
            Fraction(exact_round((7 * a + b * b) / 8, formats["exp_avg_sq_format"]))
            for a, b in zip(v, exact, strict=True)
        ]
        largest = list(map(max, largest, v))
        direction = [
            float(a) / math.sqrt(float(b) + 1e-8)
            for a, b in zip(m, largest, strict=True)
        ]
        theta = [
            Fraction(exact_round(a - Fraction(u) / 64, formats["param_format"]))
            for a, u in zip(theta, direction, strict=True)
        ]
        state = optimizer.state[w]
        assert [Fraction(x) for x in state["exp_avg"].tolist()] == m
        assert [Fraction(x) for x in state["exp_avg_sq"].tolist()] == v
        assert [Fraction(x) for x in state["max_exp_avg_sq"].tolist()] == largest
        assert [Fraction(x) for x in w.tolist()] == theta


def constant_gradient(name, beta2, steps, dtype=torch.float64):
    w = parameter([0.0], dtype)
    optimizer = lp.optim.AMSGrad([w], betas=(0.9, beta2), exp_avg_sq_format=name)
    w.grad = torch.ones(1, dtype=dtype)
    for _ in range(steps):
        optimizer.step()
    return optimizer.state[w]["exp_avg_sq"].item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "beta2", "steps", "stall"),
    [
        ("bfloat16", 0.999, 600, 0.25),
        ("bfloat16", 1 - 2.0**-7, 300, None),
        ("binary16", 1 - 2.0**-7, 600, None),
        pytest.param("binary16", 0.999, 2500, 0.755859375, marks=pytest.mark.slow),
    ],
)
def test_second_moments_stall_where_the_formula_says(name, beta2, steps, stall, dtype):
    precision = lp.format(name).precision
    expected = lp.theory.spars_ams.second_moment_stall(precision, beta2)
    assert stall in (None, expected)
    reached = constant_gradient(name, beta2, steps, dtype)
    # 0.999 is no binary number: with binary16 its rounding decides a tie.
    ulp = 2.0 ** (math.floor(math.log2(expected)) - precision + 1)
    tolerance = ulp if (name, beta2) == ("binary16", 0.999) else 0
    assert abs(reached - expected) <= tolerance


def test_weights_of_few_bits_stop_unless_what_rounding_dropped_is_kept():
    # ulp(1) / 2 is 2^-9 downwards; the steps are at most 7.27e-4.
    moved = {}
    for update in ("fused", "kahan"):
        w = parameter([1.0, 1.5], torch.float32)
        optimizer = lp.optim.AMSGrad(
            [w], lr=1e-4, param_format="bfloat16", update=update
        )
        w.grad = torch.ones(2)
        for _ in range(200):
            optimizer.step()
        moved[update] = (torch.tensor([1.0, 1.5]) - w.detach()).abs()
    assert moved["fused"].tolist() == [0.0, 0.0]
    exact = parameter([1.0, 1.5])
    optimizer = lp.optim.AMSGrad([exact], lr=1e-4)
    exact.grad = torch.ones(2, dtype=torch.float64)
    for _ in range(200):
        optimizer.step()
    distance = (torch.tensor([1.0, 1.5]) - exact.detach()).abs()
    assert bool(((moved["kahan"] - distance).abs() <= 2.0**-8).all())


def test_master_weights_are_those_of_the_carrier():
    start = torch.randn(4)
    plain, rounded = parameter(start, torch.float32), parameter(start, torch.float32)
    one = lp.optim.AMSGrad([plain], lr=0.01)
    other = lp.optim.AMSGrad(
        [rounded], lr=0.01, param_format="bfloat16", update="master"
    )
    for _ in range(5):
        for p in (plain, rounded):
            p.grad = torch.ones(4)
        one.step()
        other.step()
    assert torch.equal(other.state[rounded]["master"], plain.detach())
    assert torch.equal(rounded.detach(), lp.round(plain.detach(), "bfloat16"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "Invalid epsilon"),
        ({"betas": (1.0, 0.9)}, "beta parameter at index 0"),
        ({"betas": (0.9, -0.1)}, "beta parameter at index 1"),
        ({"weight_decay": -0.1}, "Invalid weight_decay"),
        ({"lr": -0.1}, "Invalid learning rate"),
        ({"update": "none"}, "update must be"),
        ({"nonfinite": "ignore"}, "nonfinite must be one of"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lp.optim.AMSGrad([parameter([1.0])], **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_change_nothing_if_asked(value):
    for answer in ("raise", "skip", "propagate"):
        params = [parameter([1.0, 2.0]), parameter([3.0])]
        optimizer = lp.optim.AMSGrad(params, lr=0.25, nonfinite=answer)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        before = [torch.cat([p, optimizer.state[p]["exp_avg"]]) for p in params]
        params[1].grad.fill_(value)
        if answer == "raise":
            with pytest.raises(ValueError, match="nothing was changed"):
                optimizer.step()
        else:
            optimizer.step()
        after = [torch.cat([p, optimizer.state[p]["exp_avg"]]) for p in params]
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert same == [answer != "propagate"] * 2
        assert optimizer.state[params[0]]["step"] == 1 + (answer == "propagate")
