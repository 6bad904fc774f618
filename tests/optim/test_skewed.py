"""Skewed around torch's optimizers, against ASkewSGD and the constraint itself."""

import copy
import io
import math
import warnings

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import lowprec as lp
from lowprec.optim import ASkewSGD, Skewed, remoteness

BINARY, INT2 = lp.Levels.binary(), lp.Levels.int_bits(2)
MODES = ["gradient", "bypass", "displacement"]
every = pytest.mark.parametrize("mode", MODES)


def problem():
    torch.manual_seed(5)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    ).double()
    return model, torch.randn(16, 4).double(), torch.randn(16, 1).double()


def run(model, x, y, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@every
@pytest.mark.parametrize("levels", [None, BINARY])
def test_it_is_the_base_where_nothing_is_skewed(levels, mode):
    ours, x, y = problem()
    theirs, _, _ = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lp.NumericalWarning)
        base = torch.optim.Adam(ours.parameters(), 0.02)
        optimizer = Skewed(base, levels, mode, epsilon=1e9)
    run(ours, x, y, optimizer, 4)
    run(theirs, x, y, torch.optim.Adam(theirs.parameters(), 0.02), 4)
    assert torch.equal(weights(ours), weights(theirs))


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("mode", "momentum", "coupling"),
    [
        ("gradient", 0.9, "gradient"),
        ("bypass", 0.0, "velocity"),
        ("displacement", 0.9, "velocity"),
    ],
)
def test_around_sgd_it_is_askew_sgd(mode, momentum, coupling, maximize):
    ours, x, y = problem()
    theirs, _, _ = problem()
    options = {"momentum": momentum, "maximize": maximize}
    skew = {"epsilon": 0.05, "alpha": 0.7}
    base = torch.optim.SGD(ours.parameters(), 0.05, foreach=False, **options)
    run(ours, x, y, Skewed(base, BINARY, mode, **skew), 4)
    other = ASkewSGD(
        theirs.parameters(), 0.05, BINARY, coupling=coupling, **options, **skew
    )
    run(theirs, x, y, other, 4)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_displacement_of_adam_keeps_the_constraint(scale):
    torch.manual_seed(0)
    p = torch.nn.Parameter(2 * torch.randn(1000, dtype=torch.float64))
    lr, s = 0.01, scale or 1.0
    optimizer = Skewed(
        torch.optim.Adam([p], lr), INT2, "displacement", epsilon=0.05, alpha=0.7,
        clip=math.inf, midpoint="gradient", scale=scale,
    )  # fmt: skip
    moved = 0
    for _ in range(5):
        p.grad = torch.randn(1000, dtype=torch.float64)
        psi, slope = remoteness(p / s, INT2, 0.05)
        before = p.detach().clone()
        optimizer.step()
        velocity = (p.detach() - before) / lr / s
        outside = psi <= 0
        margin = (velocity * slope + 0.7 * psi)[outside]
        assert margin.min() > -1e-9
        moved += int((margin.abs() < 1e-9).sum())
    assert moved > 100


@every
def test_gradients_come_back(mode):
    model, x, y = problem()
    base = torch.optim.Adam(model.parameters(), 0.02)
    optimizer = Skewed(base, BINARY, mode, epsilon=0.1)
    run(model, x, y, optimizer, 1)
    torch.nn.functional.mse_loss(model(x), y).backward()
    tensors = [p.grad for p in model.parameters()]
    values = [g.clone() for g in tensors]
    optimizer.step()
    for p, tensor, value in zip(model.parameters(), tensors, values, strict=True):
        assert p.grad is tensor
        assert torch.equal(tensor, value)


@every
def test_resuming_from_a_weights_only_checkpoint_is_bit_exact(mode):
    def make(model):
        base = torch.optim.Adam(model.parameters(), 0.02)
        return Skewed(base, INT2, mode, epsilon=0.1, scale="absmax")

    model, x, y = problem()
    optimizer = make(model)
    run(model, x, y, optimizer, 3)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    run(model, x, y, optimizer, 3)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, _, _ = problem()
    twin = make(other)
    other.load_state_dict(saved[0])
    twin.load_state_dict(saved[1])
    run(other, x, y, twin, 3)
    assert torch.equal(weights(model), weights(other))


@every
def test_stored_values_are_values_of_the_format(mode):
    model, x, y = problem()
    base = lp.optim.SGD(model.parameters(), 0.05, param_format="bfloat16")
    run(model, x, y, Skewed(base, BINARY, mode, epsilon=0.1, alpha=1.0), 3)
    assert torch.equal(weights(model), lp.round(weights(model), "bfloat16"))


@every
def test_gradients_that_are_not_finite_change_nothing(mode):
    model, x, y = problem()
    base = torch.optim.Adam(model.parameters(), 0.02)
    optimizer = Skewed(base, BINARY, mode, epsilon=0.1)
    run(model, x, y, optimizer, 2)
    before = weights(model), copy.deepcopy(base.state_dict()["state"])
    model[2].bias.grad.fill_(math.nan)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        optimizer.step()
    assert torch.equal(before[0], weights(model))
    torch.testing.assert_close(before[1], base.state_dict()["state"], rtol=0, atol=0)


def test_bad_arguments_are_refused():
    p = torch.nn.Parameter(torch.ones(2))
    base = torch.optim.Adam([p], 0.1)
    with pytest.raises(ValueError, match="mode"):
        Skewed(base, BINARY, "velocity", epsilon=0.1)
    with pytest.raises(ValueError, match="epsilon"):
        Skewed(base, BINARY, epsilon=-0.1)
    with pytest.raises(ValueError, match="alpha"):
        Skewed(base, BINARY, epsilon=0.1, alpha=0.0)
    assert "levels" not in base.param_groups[0]
    with pytest.warns(lp.NumericalWarning, match="free until"):
        Skewed(base, INT2)


@every
def test_weights_in_channels_last_move_as_contiguous_ones(mode):
    def moved(layout):
        generator = torch.Generator().manual_seed(3)
        w, g = torch.randn(2, 4, 3, 5, 5, generator=generator).unbind()
        p = torch.nn.Parameter(w.contiguous(memory_format=layout))
        base = torch.optim.Adam([p], lr=0.05, fused=True)
        optimizer = Skewed(base, BINARY, mode, epsilon=0.5)
        for _ in range(3):
            p.grad = g.contiguous(memory_format=layout)
            optimizer.step()
        return p.detach()

    plain, last = moved(torch.contiguous_format), moved(torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


@pytest.mark.parametrize("mode", ["bypass", "displacement"])
def test_a_compensation_goes_with_the_step_that_is_undone(mode):
    generator = torch.Generator().manual_seed(4)
    p = torch.nn.Parameter(torch.randn(64, generator=generator).bfloat16().float())
    base = lp.optim.SGD(
        [p], 0.01, momentum=0.9, param_format="bfloat16", update="kahan"
    )
    optimizer = Skewed(base, BINARY, mode, epsilon=0.5)
    counts = set()
    for _ in range(4):
        p.grad = torch.randn(64, generator=generator)
        twin_p, twin = copy.deepcopy((p, base))
        twin_p.grad = p.grad.clone()
        twin.step()
        optimizer.step()
        # In gradient steps both moved alike, so that these are not skewed.
        lost, alike = base.state[p]["compensation"], p == twin_p
        kept = twin.state[twin_p]["compensation"]
        assert not lost[~alike].any()
        assert ((lost == kept) | (lost == 0)).all()
        counts.add((bool((~alike & (kept != 0)).any()), bool(lost.any())))
    assert counts == {(True, True)}


def allocated(step):
    """Return the most bytes that tensors of a step hold at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    events = trace.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@every
@pytest.mark.parametrize("backend", ["native", "portable"])
def test_a_step_needs_two_buffers_at_most(mode, backend):
    generator = torch.Generator().manual_seed(6)
    params = [
        torch.nn.Parameter(torch.randn(2**21, generator=generator)) for _ in range(2)
    ]
    for p in params:
        p.grad = torch.randn(2**21, generator=generator)
    optimizer = Skewed(
        torch.optim.SGD(params, 0.01, foreach=False), BINARY, mode, epsilon=0.5
    )
    with lp.kernels.using(backend):
        peak = allocated(optimizer.step)
    # Beside them, temporaries of 2^16 elements.
    own = 4 * 2**21 * len(params)
    assert own < peak < 2.2 * own if mode == "bypass" else 0 < peak < 1.2 * own
