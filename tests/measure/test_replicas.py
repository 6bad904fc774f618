"""Replicas: the methods as the paper writes them, roundings, randomness, resuming."""

import copy
import io
import math
import operator
from fractions import Fraction

import pytest
import scipy.stats
import torch
from torch.func import grad, vmap

import lowprec as lp
from lowprec.measure import ReplicaRunner, dithered, module_loss, royston_test
from lowprec.measure._batched_gradient import trace_gradient
from lowprec.schedules import Iteration, PowerSchedule
from lowprec.testing import exact_round

STEPS = PowerSchedule(0.4, 0.5)
ITERATIONS = {
    "sgd": Iteration("sgd", STEPS),
    "heavy ball": Iteration("heavy_ball", STEPS, momentum=0.6),
    "momentum": Iteration("momentum", STEPS, damping=0.7),
    "nesterov, momentum": Iteration("nesterov", STEPS, momentum=0.6),
    "nesterov, damping": Iteration("nesterov", STEPS, damping=0.7),
    "nasgd": Iteration("nasgd", STEPS, damping=0.7),
    "vanishing": Iteration("momentum", STEPS, damping=PowerSchedule(0.9, 0.2)),
}
STOCHASTIC = lp.Rounding("bfloat16", "stochastic")


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


DATA = normal(1, 40, 3), normal(2, 40)


def loss(x, features, target):
    return torch.log(torch.cosh((features * x).sum() - target)) + x.square().sum() / 8


def runner(iteration, replicas=4, seed=5, **options):
    start = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    return ReplicaRunner(
        loss, DATA, start, iteration, replicas=replicas, seed=seed, **options
    )


def as_the_paper_writes(name, one, steps):
    """Follow every replica by itself, with the samples that it drew."""
    finals = []
    for m in range(one.replicas):
        x = y = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
        v = torch.zeros_like(x)
        for k in range(1, steps + 1):
            alpha, before = STEPS(k), STEPS(max(k - 1, 1))
            mu = PowerSchedule(0.9, 0.2)(k) if name == "vanishing" else 0.7
            sample = [data[one.samples(k)[m]] for data in DATA]

            def slope(at, sample=sample):
                return grad(loss)(at, *sample)

            if name == "sgd":  # (3)
                x = x - alpha * slope(x)
            elif name == "heavy ball":  # (4)
                v = 0.6 * v - alpha * slope(x)
                x = x + v
            elif name in ("momentum", "vanishing"):  # (7)
                v = (1 - mu * alpha) * v - alpha * slope(x)
                x = x + alpha * v
            elif name == "nesterov, momentum":  # (5)
                x, previous = y - alpha * slope(y), x
                y = x + 0.6 * (x - previous)
            elif name == "nesterov, damping":  # (5) with step alpha^2
                after = STEPS(k + 1)
                x, previous = y - alpha**2 * slope(y), x
                y = x + (1 - 0.7 * after) * after / alpha * (x - previous)
            else:  # (49)
                c = (1 - mu * alpha) * alpha / before
                v = (1 - mu * alpha) * v - alpha * slope(x + c * v)
                x = x + alpha * v
        finals.append(x)
    return torch.stack(finals)


@pytest.mark.parametrize("name", ITERATIONS)
def test_methods_are_those_of_the_paper(name):
    one = runner(ITERATIONS[name])
    one.run(30)
    expected = as_the_paper_writes(name, one, 30)
    assert (one.x - expected).abs().max() < 1e-12
    assert (one.x[0] - one.x[1]).norm() > 0.01  # they drew different samples


GRADIENT, WEIGHT, VELOCITY = "e5m2", "bfloat16", "e8m10"


def formats_for(name, velocity, **others):
    """Give the velocity a format where there is one."""
    if ITERATIONS[name].has_velocity:
        others["velocity_format"] = velocity
    return others


@pytest.mark.parametrize("formats", [None, "nearest_even", "stochastic"])
@pytest.mark.parametrize("name", ITERATIONS)
def test_updates_are_those_of_the_optimizer(name, formats):
    """Bit for bit, for one parameter that holds all replicas and their gradients."""
    options = {}
    if formats is not None:
        velocity = lp.Rounding("e8m10", formats)
        param = lp.Rounding("bfloat16", formats)
        options = formats_for(name, velocity, param_format=param)
    one = runner(ITERATIONS[name], replicas=6, **options)
    parameter = torch.nn.Parameter(one.x.clone())
    iteration = ITERATIONS[name]
    optimizer = lp.optim.ScheduledSGD(
        [parameter],
        iteration.schedule,
        iteration.method,
        damping=iteration.damping,
        momentum=iteration.momentum,
        **options,
    )
    for group in optimizer.param_groups:
        group["rounding_seed"] = int(one.rounding_seed)
    gradient = trace_gradient(loss, one.x, tuple(x[:6] for x in DATA))
    for k in range(1, 151):
        samples = [data[one.samples(k)] for data in DATA]
        parameter.grad = gradient(parameter.detach(), *samples)
        optimizer.step()
        one.run(k)
    with optimizer.x():
        assert torch.equal(one.x, parameter.detach())


def exactly_rounded(one, name, steps):
    """Follow one replica in rational arithmetic, from gradients in float64."""
    x = [Fraction(v) for v in (0.5, -1.0, 2.0)]
    v = [Fraction(0)] * 3
    for k in range(1, steps + 1):
        c = ITERATIONS[name].coefficients(k)
        at = torch.tensor([float(one) for one in x], dtype=torch.float64)
        if c.look_ahead:
            at = [a + Fraction(c.look_ahead) * b for a, b in zip(x, v, strict=True)]
            at = [float(exact_round(a, WEIGHT)) for a in at]
            at = torch.tensor(at, dtype=torch.float64)
        sample = [data[one.samples(k)] for data in DATA]
        slopes = vmap(grad(loss))(at.unsqueeze(0), *sample)[0].tolist()
        g = [Fraction(exact_round(slope, GRADIENT)) for slope in slopes]
        alpha = Fraction(c.step)
        if name == "sgd":
            x = [a - alpha * b for a, b in zip(x, g, strict=True)]
        else:
            v = [
                Fraction(c.retained) * a - alpha * b for a, b in zip(v, g, strict=True)
            ]
            v = [Fraction(exact_round(a, VELOCITY)) for a in v]
            x = [a + Fraction(c.advance) * b for a, b in zip(x, v, strict=True)]
        x = [Fraction(exact_round(a, WEIGHT)) for a in x]
    return [float(a) for a in x]


@pytest.mark.parametrize("name", ITERATIONS)
def test_roundings_are_of_exact_values(name):
    formats = formats_for(name, VELOCITY, gradient_format=GRADIENT, param_format=WEIGHT)
    one = runner(ITERATIONS[name], replicas=1, **formats)
    one.run(40)
    assert one.x[0].tolist() == exactly_rounded(one, name, 40)


def emulated(x, w):
    with lp.emulate(lp.Precision(input="bfloat16", weight="e5m2", grad_output="e4m3")):
        return (w @ x).tanh()


LOSSES = {
    "logistic": lambda x, w, y: torch.nn.functional.softplus(w @ x) - y * (w @ x),
    "in place": lambda x, w, y: x.clone().mul_(w).exp_().sum() * y,
    "constants": lambda x, w, y: (torch.ones(3).double().cumsum(0) * x * w).sum() ** 2,
    "elementwise": loss,
    "rounded": lambda x, w, y: (lp.round((w * x).sum(), "e5m2") - y).square(),
    "emulated": lambda x, w, y: emulated(x, w) * y,
    "entropy": lambda x, w, y: torch.nn.functional.binary_cross_entropy_with_logits(
        x @ w, y.sigmoid()
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_traced_gradient_has_the_bits_of_torch_func(name):
    """On other samples than it was traced with, more than once."""
    x, data = normal(3, 40, 3), DATA
    traced = trace_gradient(LOSSES[name], x, data)
    for seed in (4, 5, 4):
        other = normal(seed, 40, 3), normal(seed + 10, 40)
        expected = vmap(grad(LOSSES[name]))(x * seed, *other)
        assert torch.equal(traced(x * seed, *other), expected)


def test_losses_that_draw_random_numbers_are_refused():
    """A graph would repeat them in every step."""
    with pytest.raises(RuntimeError, match="random"):
        trace_gradient(
            lambda x, w, y: lp.round((w * x).sum(), STOCHASTIC), normal(3, 40, 3), DATA
        )


def test_the_traced_gradient_computes_no_loss():
    traced = trace_gradient(loss, normal(3, 40, 3), DATA)
    targets = [str(node.target) for node in traced.graph.nodes]
    assert "aten.sinh.default" in targets
    assert not {"aten.log.default", "aten.ones_like.default"} & set(targets)


def test_a_module_is_run_by_its_parameters():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh()).double()
    module.append(torch.nn.Linear(4, 1).double())
    before = copy.deepcopy(module.state_dict())
    sample_loss, start = module_loss(module, lambda out, y: (out - y).square().sum())
    one = ReplicaRunner(
        sample_loss, DATA, start, ITERATIONS["momentum"], replicas=3, seed=1
    )
    one.run(20)
    reference = [p.detach().clone().requires_grad_() for p in module.parameters()]
    velocity = [torch.zeros_like(p) for p in reference]
    names = [name for name, _ in module.named_parameters()]
    for k in range(1, 21):
        index = one.samples(k)[2]
        given = dict(zip(names, reference, strict=True))
        out = torch.func.functional_call(module, given, (DATA[0][index],))
        slopes = torch.autograd.grad((out - DATA[1][index]).square().sum(), reference)
        alpha = STEPS(k)
        for p, v, g in zip(reference, velocity, slopes, strict=True):
            v.mul_(1 - 0.7 * alpha).sub_(alpha * g)
            p.data.add_(alpha * v)
    expected = torch.cat([p.detach().reshape(-1) for p in reference])
    assert (one.x[2] - expected).abs().max() < 1e-12
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_gradient_of_ones_own_is_used():
    def gradient(x, features, target):
        z = (features * x).sum(1) - target
        return z.tanh().unsqueeze(1) * features + x / 4

    derived, own = (
        runner(ITERATIONS["nasgd"], gradient=one) for one in (None, gradient)
    )
    derived.run(50)
    own.run(50)
    assert (derived.x - own.x).abs().max() < 1e-12


def test_samples_are_uniform_and_independent():
    """Chi-square tests at 1 %, of single samples and of neighbouring pairs."""
    one = runner(ITERATIONS["sgd"], replicas=1000)
    draws = torch.stack([one.samples(k) for k in range(1, 301)])
    counts = torch.bincount(draws.flatten(), minlength=40)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.01
    for first, second in ((draws[:-1], draws[1:]), (draws[:, :-1], draws[:, 1:])):
        pairs = torch.bincount((40 * first + second).flatten(), minlength=1600)
        assert scipy.stats.chisquare(pairs.numpy()).pvalue > 0.01


def test_everything_is_a_function_of_the_seed():
    options = {"param_format": STOCHASTIC, "gradient_format": STOCHASTIC}
    start = torch.zeros(3, dtype=torch.float64)

    def final(seed):
        one = ReplicaRunner(
            loss, DATA, start, ITERATIONS["sgd"], replicas=5, seed=seed, **options
        )
        one.run(150)
        return one.x

    assert torch.equal(final(3), final(3))
    assert not torch.equal(final(3), final(4))
    torch.manual_seed(9)
    first = final(None)
    torch.manual_seed(9)
    assert torch.equal(first, final(None))


@pytest.mark.parametrize("name", ["sgd", "nesterov, momentum", "nasgd"])
@pytest.mark.parametrize("place", [1, 127, 128, 129])
def test_a_resumed_run_continues_bit_for_bit(name, place):
    options = formats_for(name, STOCHASTIC, param_format=STOCHASTIC)
    whole = runner(ITERATIONS[name], **options)
    whole.run(200)
    begun = runner(ITERATIONS[name], **options)
    begun.run(place)
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    begun.run(place + 3)  # a state is not changed by what follows
    file.seek(0)
    resumed = runner(ITERATIONS[name], seed=77, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.step == place
    resumed.run(200)
    assert torch.equal(resumed.x, whole.x)


def test_progress_is_told_step_by_step():
    one, calls = runner(ITERATIONS["sgd"]), []
    one.run(10, lambda: calls.append(one.step))
    one.run(10, lambda: calls.append(one.step))
    assert calls == list(range(1, 11))


def test_stochastic_rounding_of_weights_is_unbiased_and_independent():
    """From one point with one sample: all that differs is the rounding."""
    data = torch.zeros(1, dtype=torch.float64)
    grid = lp.Rounding(lp.Format(precision=20, emax=18, emin=18), "stochastic")  # 1/2
    one = ReplicaRunner(
        lambda x, sample: (x - sample).sum(),
        (data,),
        torch.zeros(3, dtype=torch.float64),
        Iteration("sgd", 0.1),
        replicas=20_000,
        param_format=grid,
        seed=3,
    )
    one.run(1)
    assert sorted(one.x.unique().tolist()) == [-0.5, 0.0]
    share = (one.x == -0.5).double()
    assert share.mean().item() == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 60_000))
    assert torch.corrcoef(share.T).triu(1).abs().max() < 4 / math.sqrt(20_000)


def test_float32_parameters_stay_float32():
    data = tuple(one.float() for one in DATA)
    one = ReplicaRunner(
        loss, data, torch.zeros(3), ITERATIONS["nasgd"], replicas=2, seed=0
    )
    one.run(5)
    assert one.x.dtype == torch.float32


def test_replicas_may_start_at_different_points():
    one = ReplicaRunner(
        loss, DATA, normal(0, 4, 3), ITERATIONS["sgd"], replicas=4, seed=0
    )
    assert torch.equal(one.x, normal(0, 4, 3))


START = torch.zeros(3, dtype=torch.float64)
BAD = [
    ({"replicas": 0}, ValueError, "replicas must be a whole number >= 1, got 0"),
    ({"replicas": True}, ValueError, "whole number >= 1, got True"),
    ({"data": (DATA[0], DATA[1][:3])}, ValueError, "the same N >= 1 samples"),
    ({"data": ()}, ValueError, "the same N >= 1 samples"),
    ({"data": (torch.zeros(0, 3),)}, ValueError, "the same N >= 1 samples"),
    ({"start": torch.zeros(2, 3)}, ValueError, r"per replica \[4, d\], got .*\(2, 3\)"),
    (
        {"start": torch.zeros(3).long()},
        TypeError,
        "float32 or float64, got torch.int64",
    ),
    ({"start": START.bfloat16()}, TypeError, "float64, got torch.bfloat16"),
    ({"start": START / 0}, ValueError, "start must be finite"),
    ({"param_format": "e9000"}, ValueError, "e9000"),
    (
        {"param_format": "bfloat16", "start": START + 0.1},
        ValueError,
        "start must be in",
    ),
    ({"param_format": "e11m52"}, NotImplementedError, "at most 51"),
    ({"velocity_format": "e11m52"}, NotImplementedError, "at most 51"),
    (
        {"iteration": ITERATIONS["sgd"], "velocity_format": "bfloat16"},
        TypeError,
        "method 'sgd' has no velocity to round",
    ),
    ({"start": START.float(), "gradient_format": "e8m30"}, ValueError, "hold every"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_arguments_are_refused(changes, error, message):
    arguments = {"data": DATA, "start": START, "replicas": 4, "seed": 0, **changes}
    data, start = arguments.pop("data"), arguments.pop("start")
    iteration = arguments.pop("iteration", ITERATIONS["momentum"])
    with pytest.raises(error, match=message):
        ReplicaRunner(loss, data, start, iteration, **arguments)


def test_gradients_of_another_shape_are_refused():
    one = runner(ITERATIONS["sgd"], gradient=lambda x, w, y: x.mean(0))
    with pytest.raises(ValueError, match=r"return \(4, 3\) values .* got \(3,\)"):
        one.run(1)
    assert one.step == 0


def test_schedules_that_are_functions_resume_too():
    def made():
        return runner(Iteration("sgd", lambda k: 0.3 / k))

    one, whole = made(), made()
    one.run(3)
    other = made()
    other.load_state_dict(one.state_dict())
    other.run(9)
    whole.run(9)
    assert torch.equal(other.x, whole.x)


def test_steps_in_the_past_are_refused():
    one = runner(ITERATIONS["sgd"])
    one.run(5)
    with pytest.raises(ValueError, match="step 4 is past: the replicas have made 5"):
        one.run(4)


def test_divergence_is_reported():
    one = runner(Iteration("sgd", 1e200))
    with pytest.raises(ValueError, match="4 of 4 replicas are not finite after 40"):
        one.run(40)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"iteration": ITERATIONS["momentum"]}, "make a runner with the same method"),
        ({"replicas": 5}, r"the state has \(5, 3\) values"),
        ({"param_format": "bfloat16"}, "make a runner with the same method"),
    ],
)
def test_states_of_other_runs_are_refused(other, message):
    one = runner(ITERATIONS["sgd"])
    one.run(3)
    before = one.x
    state = runner(**{"iteration": ITERATIONS["sgd"], **other}).state_dict()
    with pytest.raises(ValueError, match=message):
        one.load_state_dict(state)
    assert one.step == 3
    assert torch.equal(one.x, before)


def test_a_refused_state_leaves_no_trace():
    one = runner(ITERATIONS["momentum"])
    one.run(3)
    kept, good = one.state_dict(), runner(ITERATIONS["momentum"], seed=6).state_dict()
    long = torch.cat([DATA[0], DATA[0]]), torch.cat([DATA[1], DATA[1]])
    other = ReplicaRunner(
        loss, long, START, ITERATIONS["momentum"], replicas=4, seed=6
    ).state_dict()
    lacking = {name: value for name, value in good.items() if name not in ("v", "y")}
    for state, message in (
        (lacking, "the state lacks v, y"),
        ({}, "lacks data, method, seed, step, v, x, y"),
        ({**good, "step": -3}, "step must be a number >= 0, got -3"),
        ({**good, "v": good["v"][:2]}, r"\(2, 3\) values of torch.float64 for v"),
        ({**good, "v": None}, "has None for v"),
        ({**good, "y": good["y"].float()}, "torch.float32 for y"),
        ({**good, "seed": torch.zeros(3)}, r"\(3,\) values of torch.float32 for seed"),
        (other, r"with data \['\(80, 3\) .* has \['\(40, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            one.load_state_dict(state)
        now = one.state_dict()
        assert now.keys() == kept.keys()
        for name, value in kept.items():
            same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
            assert same(now[name], value)


def test_dithered_replicas_on_a_coarse_grid_pass_for_normal():
    # 1000 replicas of Gaussian noise on a grid of a quarter: V is 0.15, some four
    # values hold most of them. Normal samples would be rejected once in 20 times at
    # this level; here with 1e-3.
    generator = torch.Generator().manual_seed(8)
    samples = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    samples = samples - samples.mean()
    coarse = lp.Rounding(lp.Format(precision=26, emin=23, emax=500), "stochastic")
    one = ReplicaRunner(
        lambda x, s: (x - s).square().sum() / 2, (samples,), START[:1],
        Iteration("sgd", 0.25), replicas=1000, param_format=coarse, seed=3,
    )  # fmt: skip
    one.run(60)
    assert torch.equal(one.x, (4 * one.x).round() / 4)
    assert royston_test(one.x).p_value < 1e-6
    assert royston_test(dithered(one.x, 0.25, seed=4)).p_value > 1e-3


def test_modules_without_parameters_are_refused():
    with pytest.raises(ValueError, match="one dtype, got none"):
        module_loss(torch.nn.ReLU(), torch.sub)
    mixed = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1).double())
    with pytest.raises(ValueError, match=r"torch.float32, torch.float64: use"):
        module_loss(mixed, torch.sub)
