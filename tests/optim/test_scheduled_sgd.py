"""ScheduledSGD: the iterations of the paper, torch's where it has them, roundings."""

import copy
import io
import pickle
from fractions import Fraction

import pytest
import torch
from stationary_cases import spd

import lowprec as lp
from lowprec.optim._base import step_seeds
from lowprec.optim._update import Purpose
from lowprec.schedules import InverseTimeDamping, Iteration, PowerSchedule
from lowprec.testing import assert_bit_equal, exact_round, random_word

STEPS = PowerSchedule(0.4, 0.5)
STOCHASTIC = lp.Rounding("bfloat16", "stochastic")

METHODS = {
    "sgd": {},
    "heavy_ball": {"momentum": PowerSchedule(0.9, 0.1)},
    "momentum": {"damping": 0.7},
    "momentum, vanishing damping": {"damping": PowerSchedule(1.0, 0.2)},
    "nesterov": {"momentum": 0.6},
    "nesterov, damped": {"damping": InverseTimeDamping(3.0, STEPS)},
    "nasgd": {"damping": 0.7},
}
every = pytest.mark.parametrize("name", METHODS)


def make(params, name, schedule=STEPS, **options):
    if name == "sgd":
        options.pop("velocity_format", None)
    return lp.optim.ScheduledSGD(
        params, schedule, name.split(",")[0], **METHODS[name], **options
    )


class Quadratic:
    """Gradients A x - xi_k with recorded noise, in float64."""

    def __init__(self):
        self.A = spd(4, 0)
        generator = torch.Generator().manual_seed(1)
        self.noise = torch.randn(100, 4, generator=generator, dtype=torch.float64)
        self.start = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)

    def gradient(self, x, k):
        return self.A @ x - self.noise[k]

    def run(self, make_optimizer, before=lambda optimizer, k: None, at_x=False):
        """The parameters (or the iterates x) after each of 60 steps."""
        p = torch.nn.Parameter(self.start.clone())
        optimizer = make_optimizer([p])
        path = []
        for k in range(1, 61):
            before(optimizer, k)
            p.grad = self.gradient(p.detach(), k)
            optimizer.step()
            if at_x:
                with optimizer.x():
                    path.append(p.detach().clone())
            else:
                path.append(p.detach().clone())
        return torch.stack(path)


def definition(iteration, problem):
    """The iterates by the equations of the paper, as printed there."""
    A, mu, beta = problem.A, iteration.damping, iteration.momentum
    damping = mu if callable(mu) else lambda k: mu
    momentum = beta if callable(beta) else lambda k: beta
    x, v = problem.start.clone(), torch.zeros(4, dtype=torch.float64)
    y, path = x, []
    for k in range(1, 61):
        a, before = STEPS(k), STEPS(max(k - 1, 1))

        def F(z, k=k):
            return A @ z - problem.noise[k]

        if iteration.method == "sgd":  # (3)
            x = x - a * F(x)
        elif iteration.method == "heavy_ball":  # (4)
            v = momentum(k) * v - a * F(x)
            x = x + v
        elif iteration.method == "momentum":  # (7)
            v = (1 - damping(k) * a) * v - a * F(x)
            x = x + a * v
        elif iteration.method == "nasgd":  # (49)
            keep = 1 - damping(k) * a
            v = keep * v - a * F(x + keep * a / before * v)
            x = x + a * v
        else:  # (5), with steps alpha_k^2 if there is damping
            if mu is None:
                size, extrapolation = a, momentum(k)
            else:
                size, after = a * a, STEPS(k + 1)
                extrapolation = (1 - damping(k + 1) * after) * after / a
            new = y - size * F(y)
            y = new + extrapolation * (new - x)
            x = new
        path.append(x)
    return torch.stack(path)


@every
def test_iterates_are_those_of_the_equations(name):
    problem = Quadratic()
    ours = problem.run(lambda params: make(params, name), at_x=True)
    iteration = Iteration(name.split(",")[0], STEPS, **METHODS[name])
    expected = definition(iteration, problem)
    assert (ours - expected).abs().max() < 1e-12
    assert expected.abs().max() > 1


def test_nesterov_and_the_paper_s_look_ahead_differ():
    # C7: (49) does not follow from (5).
    problem = Quadratic()
    first, second = (
        definition(Iteration(method, STEPS, damping=0.7), problem)
        for method in ("nesterov", "nasgd")
    )
    assert (first - second).abs().max() > 0.1


def test_momentum_of_torch_maps_to_each_method_that_it_can_express():
    problem = Quadratic()
    beta, mu = METHODS["heavy_ball"]["momentum"], 0.7

    def sgd(optimizer, k):
        optimizer.param_groups[0]["lr"] = STEPS(k)

    def heavy_ball(optimizer, k):
        ratio = STEPS(max(k - 1, 1)) / STEPS(k)
        optimizer.param_groups[0].update(lr=STEPS(k), momentum=beta(k) * ratio)

    def damped(optimizer, k):
        group = optimizer.param_groups[0]
        group.update(lr=STEPS(k), momentum=1 - mu * STEPS(k), dampening=1 - STEPS(k))
        if k == 1:  # torch's first step would ignore the dampening
            (p,) = group["params"]
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)

    for name, before in (
        ("sgd", sgd),
        ("heavy_ball", heavy_ball),
        ("momentum", damped),
    ):
        ours = problem.run(lambda params, name=name: make(params, name))
        theirs = problem.run(lambda params: torch.optim.SGD(params, lr=1.0), before)
        assert (ours - theirs).abs().max() < 1e-12

    def plain_momentum(optimizer, k):
        optimizer.param_groups[0].update(lr=STEPS(k), momentum=beta(k))

    ours = problem.run(lambda params: make(params, "heavy_ball"))
    theirs = problem.run(lambda params: torch.optim.SGD(params, lr=1), plain_momentum)
    assert (ours - theirs).abs().max() > 0.1  # wrong for steps that vary


def test_constant_steps_are_momentum_and_nesterov_of_torch():
    problem, alpha, mu = Quadratic(), 0.2, 0.7
    ours = problem.run(lambda params: make(params, "momentum", alpha))
    theirs = problem.run(
        lambda params: torch.optim.SGD(params, lr=alpha**2, momentum=1 - mu * alpha)
    )
    assert (ours - theirs).abs().max() < 1e-12
    # The parameter is the point ahead in both.
    ours = problem.run(lambda params: make(params, "nesterov", alpha))
    theirs = problem.run(
        lambda params: torch.optim.SGD(params, lr=alpha, momentum=0.6, nesterov=True)
    )
    assert (ours - theirs).abs().max() < 1e-12


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_stored_numbers_are_exact_values_rounded_once(name, dtype, mode):
    fl_x = lp.Rounding("e6m8", mode)
    fl_v = lp.Rounding("e5m4", mode)
    p = torch.nn.Parameter(torch.randn(48, dtype=dtype))
    other = torch.nn.Parameter(torch.zeros(7, dtype=dtype))  # moves the random words
    optimizer = make([other, p], name, param_format=fl_x, velocity_format=fl_v)
    group = optimizer.param_groups[0]
    iteration = Iteration(group["method"], STEPS, **METHODS[name])
    x, v = [Fraction(value) for value in p.tolist()], [Fraction(0)] * 48
    for k in range(1, 5):
        p.grad = torch.randn(48, dtype=dtype)
        seeds = step_seeds(group["rounding_seed"], k - 1) if fl_x.stochastic else None

        def fl(exact, rounding, purpose, seeds=seeds):
            key = 0 if seeds is None else int(seeds[purpose])
            return [
                Fraction(exact_round(value, rounding, random_word(key, 7 + i)))
                for i, value in enumerate(exact)
            ]

        step, retained, advance, _ = map(Fraction, iteration.coefficients(k))
        ahead = Fraction(iteration.coefficients(k + 1).look_ahead)
        g = [Fraction(value) for value in p.grad.tolist()]
        if iteration.has_velocity:
            moved = [retained * a - step * b for a, b in zip(v, g, strict=True)]
            v = fl(moved, fl_v, Purpose.MOMENTUM)
            change = [advance * a for a in v]
        else:
            change = [-step * b for b in g]
        x = fl([a + b for a, b in zip(x, change, strict=True)], fl_x, Purpose.PARAMETER)
        y = x
        if iteration.looks_ahead:
            there = [a + ahead * b for a, b in zip(x, v, strict=True)]
            y = fl(there, fl_x, Purpose.DIRECTION)
        optimizer.step()
        assert p.tolist() == [float(value) for value in y]
        if iteration.has_velocity:
            assert optimizer.state[p]["velocity"].tolist() == [float(a) for a in v]
        with optimizer.x():
            assert p.tolist() == [float(value) for value in x]
        assert p.tolist() == [float(value) for value in y]


def problem():
    torch.manual_seed(5)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )
    return model, torch.randn(16, 4), torch.randn(16, 1)


def run(model, x, y, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@every
def test_resuming_from_a_weights_only_checkpoint_is_bit_exact(name):
    model, x, y = problem()
    options = {"param_format": STOCHASTIC, "velocity_format": "e5m2"}
    optimizer = make(model.parameters(), name, **options)
    run(model, x, y, optimizer, 4)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    run(model, x, y, optimizer, 5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, _, _ = problem()
    resumed.load_state_dict(saved["model"])
    torch.manual_seed(1234)
    # Everything comes from the checkpoint, the schedule included.
    other = lp.optim.ScheduledSGD(resumed.parameters(), 1.0)
    other.load_state_dict(saved["optimizer"])
    assert other.param_groups[0]["schedule"] == STEPS
    assert other.effective_lr == [STEPS(5)]
    run(resumed, x, y, other, 5)
    assert torch.equal(weights(model), weights(resumed))
    assert torch.equal(weights(model), lp.round(weights(model), "bfloat16"))


@every
def test_copies_and_pickles_continue_alike(name):
    model, x, y = problem()
    optimizer = make(model.parameters(), name, param_format=STOCHASTIC)
    run(model, x, y, optimizer, 2)
    with optimizer.x():
        pass
    twins = [
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ]
    run(model, x, y, optimizer, 3)
    for other_model, other in twins:
        run(other_model, x, y, other, 3)
        assert torch.equal(weights(model), weights(other_model))


def test_closures_and_hooks():
    model, x, y = problem()
    optimizer = make(model.parameters(), "nesterov", param_format=STOCHASTIC)
    events = []
    optimizer.register_step_pre_hook(lambda *_: events.append("pre"))
    optimizer.register_step_post_hook(lambda *_: events.append("post"))

    def closure():
        events.append("closure")
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    start = weights(model)
    assert optimizer.step(closure).requires_grad
    assert events == ["pre", "closure", "post"]
    assert not torch.equal(start, weights(model))


def test_each_group_counts_its_own_steps():
    first, second = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = make([first], "sgd")
    for _ in range(3):
        first.grad = torch.ones(3)
        optimizer.step()
    optimizer.add_param_group({"params": [second], "schedule": 0.25})
    assert optimizer.effective_lr == [STEPS(4), 0.25]
    first.grad = second.grad = torch.ones(3)
    optimizer.step()
    assert [group["step"] for group in optimizer.param_groups] == [4, 1]
    assert second.tolist() == [-0.25] * 3


def test_parameters_without_gradients_stay():
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = make([first, second], "nasgd")
    first.grad = torch.ones(3)
    optimizer.step()
    assert second.tolist() == [1.0] * 3
    assert second not in optimizer.state
    with optimizer.x():
        assert second.tolist() == [1.0] * 3


def test_results_do_not_depend_on_how_weights_are_cut_into_parameters():
    values, gradient = torch.randn(30), torch.randn(30)
    whole = torch.nn.Parameter(values.clone())
    parts = [torch.nn.Parameter(piece.clone()) for piece in values.split([7, 3, 20])]
    whole.grad = gradient
    for part, piece in zip(parts, gradient.split([7, 3, 20]), strict=True):
        part.grad = piece.clone()
    for params in ([whole], parts):
        generator = torch.Generator().manual_seed(3)
        optimizer = make(
            params, "nasgd", param_format=STOCHASTIC, velocity_format=STOCHASTIC,
            generator=generator,
        )  # fmt: skip
        for _ in range(3):
            optimizer.step()
    assert_bit_equal(torch.cat([p.detach() for p in parts]), whole.detach())


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_change_nothing(name, bad):
    model, x, y = problem()
    optimizer = make(model.parameters(), name, param_format=STOCHASTIC)
    run(model, x, y, optimizer, 2)
    params = list(model.parameters())
    params[-1].grad[0] = bad
    before = copy.deepcopy((weights(model), optimizer.state_dict()))
    with pytest.raises(RuntimeError, match="1 elements that are NaN or infinite"):
        optimizer.step()
    assert torch.equal(before[0], weights(model))
    after = optimizer.state_dict()
    assert before[1]["param_groups"] == after["param_groups"]
    for index, state in before[1]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, after["state"][index][key])


def test_a_step_inside_x_is_refused_and_the_point_ahead_comes_back():
    model, x, y = problem()
    optimizer = make(model.parameters(), "nesterov")
    run(model, x, y, optimizer, 3)
    ahead = weights(model)
    with optimizer.x():
        inside = weights(model)
        with pytest.raises(
            RuntimeError, match=r"step\(\) inside x\(\) would be undone"
        ):
            optimizer.step()
        with optimizer.x():
            assert torch.equal(inside, weights(model))
        with pytest.raises(RuntimeError, match="would be undone"):
            optimizer.step()
    assert not torch.equal(inside, ahead)
    assert torch.equal(ahead, weights(model))
    with pytest.raises(KeyError), optimizer.x():
        raise KeyError
    assert torch.equal(ahead, weights(model))
    optimizer.step()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"method": "adam"}, ValueError, "method must be one of"),
        ({"method": "momentum"}, TypeError, "takes damping, got neither"),
        ({"damping": 0.1}, TypeError, "'sgd' takes neither damping nor momentum"),
        ({"schedule": 0.0}, ValueError, "schedule must be positive"),
        ({"schedule": float("nan")}, ValueError, "schedule must be positive"),
        ({"method": "heavy_ball", "momentum": 1.0}, ValueError, r"in \[0, 1\)"),
        ({"param_format": "binary64"}, (ValueError, NotImplementedError), "53|hold"),
        (
            {"method": "momentum", "damping": 0.1, "velocity_format": "e11m5"},
            ValueError,
            "velocity_format .* model.double",
        ),
        ({"velocity_format": "bfloat16"}, TypeError, "'sgd' has no velocity to round"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(options, error, text):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(error, match=text):
        lp.optim.ScheduledSGD([p], **{"schedule": 0.1, **options})
    optimizer = lp.optim.ScheduledSGD([p], 0.1)
    with pytest.raises(error, match=text):
        optimizer.add_param_group(
            {"params": [torch.nn.Parameter(torch.ones(2))], **options}
        )
    assert len(optimizer.param_groups) == 1


def test_a_schedule_that_leaves_its_range_changes_nothing():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = lp.optim.ScheduledSGD(
        [{"params": [first]}, {"params": [second], "schedule": lambda k: 2.0 - k}], 0.1
    )
    first.grad = second.grad = torch.ones(2)
    optimizer.step()
    values = first.tolist(), second.tolist()
    with pytest.raises(ValueError, match=r"schedule must be .* got 0.0 at step 2"):
        optimizer.step()
    assert (first.tolist(), second.tolist()) == values
    assert [group["step"] for group in optimizer.param_groups] == [1, 1]


def test_sparse_and_half_parameters():
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="float32 or float64"):
        lp.optim.ScheduledSGD([p], 0.1, param_format="bfloat16")
    q = torch.nn.Parameter(torch.ones(3, 3))
    q.grad = torch.eye(3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        lp.optim.ScheduledSGD([q], 0.1).step()


@every
def test_a_monitor_measures_rounding_errors_of_the_update(name):
    for options, smallest, largest in (
        ({}, 0.0, 1e-5),  # binary32 arithmetic
        ({"param_format": STOCHASTIC, "velocity_format": "e6m8"}, 1e-3, 1.0),
    ):
        model, x, y = problem()
        optimizer = make(model.parameters(), name, **options)
        monitor = lp.measure.RoundoffMonitor(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            monitor.backward(
                lambda m, cast, x=x, y=y: torch.nn.functional.mse_loss(
                    m(cast(x)), cast(y)
                )
            )
            optimizer.step()
        assert monitor.ledger["eta"].tolist() == [STEPS(k) for k in (1, 2, 3)]
        errors = monitor.ledger["relative_update_error"]
        assert errors.min() >= smallest
        assert errors.max() < largest
