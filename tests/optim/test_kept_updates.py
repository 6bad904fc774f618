"""Updates that keep something: compensation in the format, or master weights."""

import copy
import io
from fractions import Fraction

import pytest
import torch

import lowprec as lp
from lowprec.optim._adam import adam_direction
from lowprec.optim._base import step_seeds
from lowprec.optim._update import Purpose
from lowprec.testing import exact_round, random_word

KINDS = [lp.optim.SGD, lp.optim.Adam, lp.optim.AdamW]
every = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
kept = pytest.mark.parametrize("update", ["kahan", "master"])


def train(params, optimizer, steps, scale=1.0):
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        for p in params:
            p.grad = scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


def rounded(values, fl, draws):
    return [
        Fraction(float(exact_round(x, fl, w)))
        for x, w in zip(values, draws, strict=True)
    ]


@every
@pytest.mark.parametrize("mode", ["nearest_even", "toward_zero", "stochastic"])
def test_every_line_of_kahan_is_rounded_once(kind, mode):
    fl, count = lp.Rounding("bfloat16", mode, random_bits=12), 40
    p = torch.nn.Parameter(lp.round(torch.randn(count), "bfloat16"))
    optimizer = kind([p], lr=0.01, param_format=fl, update="kahan")
    group, eta = optimizer.param_groups[0], Fraction(optimizer.effective_lr[0])
    decay = group["weight_decay"] if kind is lp.optim.AdamW else 0.0
    shrink = Fraction(torch.tensor(float(eta) * decay).item())
    w, c = [Fraction(x) for x in p.tolist()], [Fraction(0)] * count
    for k in range(4):
        p.grad = torch.randn(count)
        draws = [[0] * count] * 2
        if fl.stochastic:
            seeds = step_seeds(group["rounding_seed"], k)
            draws = [
                [random_word(int(seeds[purpose]), i) for i in range(count)]
                for purpose in (Purpose.PRODUCT, Purpose.PARAMETER)
            ]
        optimizer.step()
        state = optimizer.state[p]
        direction = p.grad
        if kind is not lp.optim.SGD:
            moments = state["exp_avg"], state["exp_avg_sq"]
            direction = adam_direction(*moments, k + 1.0, group)
        d = [Fraction(x) for x in direction.tolist()]
        exact = [-shrink * a - eta * b - x for a, b, x in zip(w, d, c, strict=True)]
        y = rounded(exact, fl, draws[0])
        moved = rounded([a + b for a, b in zip(w, y, strict=True)], fl, draws[1])
        nearest, zeros = lp.Rounding("bfloat16"), [0] * count
        e = rounded([a - b for a, b in zip(moved, w, strict=True)], nearest, zeros)
        c = rounded([a - b for a, b in zip(e, y, strict=True)], nearest, zeros)
        w = moved
        assert [Fraction(x) for x in p.tolist()] == w
        assert [Fraction(x) for x in state["compensation"].tolist()] == c
    assert any(c)


@every
def test_weights_are_the_rounded_copy_of_torchs_own_on_the_master(kind):
    fl = lp.Rounding("bfloat16")
    theirs = torch.nn.Parameter(torch.randn(50))
    p = torch.nn.Parameter(theirs.detach().clone())
    optimizer = kind([p], lr=0.1, weight_decay=0.1, param_format=fl, update="master")
    base = getattr(torch.optim, kind.__name__)
    reference = base([theirs], lr=0.1, weight_decay=0.1, foreach=False)
    train([p], optimizer, 6)
    train([theirs], reference, 6)
    assert torch.equal(optimizer.state[p]["master"], theirs)
    assert torch.equal(p, lp.round(theirs.detach(), fl))
    assert not torch.equal(p, theirs)
    assert optimizer.effective_lr == [0.1]


@every
def test_a_master_is_copied_by_stochastic_rounding_if_asked(kind):
    fl = lp.Rounding("e4m3fn", "stochastic")
    p = torch.nn.Parameter(torch.randn(400))
    optimizer = kind([p], lr=0.1, param_format=fl, update="master")
    seed = optimizer.param_groups[0]["rounding_seed"]
    train([p], optimizer, 1)
    key = int(step_seeds(seed, 0)[Purpose.PARAMETER])
    expected = lp.round(optimizer.state[p]["master"], fl, seed=key)
    assert torch.equal(p, expected)


@every
@kept
def test_small_steps_are_not_lost(kind, update):
    """Steps of a quarter of half a unit in the last place: nearest stands still."""
    results = {}
    for choice in ("fused", update):
        p = torch.nn.Parameter(torch.full((3,), 1.5))
        optimizer = kind(
            [p], lr=2.0**-11, weight_decay=0.0, param_format="bfloat16", update=choice
        )
        for _ in range(100):
            p.grad = torch.ones(3)
            optimizer.step()
        results[choice] = p.tolist()
    assert results["fused"] == [1.5] * 3
    assert results[update] == pytest.approx([1.5 - 100 * 2.0**-11] * 3, abs=2.0**-8)


@every
@kept
def test_resuming_is_bit_exact_and_copies_are_not_shared(kind, update):
    fl = lp.Rounding("bfloat16", "stochastic")
    p = torch.nn.Parameter(torch.randn(30))
    optimizer = kind([p], lr=0.01, param_format=fl, update=update)
    train([p], optimizer, 3)
    file = io.BytesIO()
    torch.save({"p": p.detach(), "optimizer": optimizer.state_dict()}, file)
    twin, twin_optimizer = copy.deepcopy((p, optimizer))
    train([p], optimizer, 3)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    q = torch.nn.Parameter(saved["p"])
    resumed = kind([q], lr=1.0, param_format=fl)
    resumed.load_state_dict(saved["optimizer"])
    train([q], resumed, 3)
    train([twin], twin_optimizer, 3)
    assert torch.equal(p, q)
    assert torch.equal(p, twin)


@every
@kept
def test_without_a_format_nothing_is_kept_and_every_bit_is_torchs(kind, update):
    theirs = torch.nn.Parameter(torch.randn(50))
    p = torch.nn.Parameter(theirs.detach().clone())
    optimizer = kind([p], lr=0.1, update=update)
    train([p], optimizer, 3)
    train([theirs], getattr(torch.optim, kind.__name__)([theirs], lr=0.1), 3)
    assert torch.equal(p, theirs)
    assert not {"compensation", "master"} & optimizer.state[p].keys()


@every
@kept
def test_a_monitor_measures_them(kind, update):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = kind(model.parameters(), lr=0.1, param_format="bfloat16", update=update)
    with lp.measure.RoundoffMonitor(model, optimizer) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            monitor.backward(lambda m, cast: m(cast(torch.ones(3, 4))).square().sum())
            optimizer.step()
    errors = monitor.ledger["s_norm"]
    assert (errors > 0).all()
    assert (errors < 0.05).all()


@kept
def test_normalized_descent_refuses_them(update):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"'fused' \(.*or 'two_step' \(.*got '"):
        lp.optim.NormalizedSGD([p], lr=0.1, param_format="bfloat16", update=update)
