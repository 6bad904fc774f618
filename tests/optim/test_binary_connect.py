"""BinaryConnect against its definition, torch's optimizers, and checkpoints."""

import copy
import io
import math
import pickle

import pytest
import torch

import lowprec as lp
from lowprec.optim import BinaryConnect, nearest

BINARY, INT2 = lp.Levels.binary(), lp.Levels.int_bits(2)


def problem():
    torch.manual_seed(5)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )
    return model, torch.randn(16, 4), torch.randn(16, 1)


def groups(model):
    return [
        {"params": [model[0].weight, model[2].weight]},
        {"params": [model[0].bias, model[2].bias], "levels": None},
    ]


def run(model, x, y, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


BASES = {
    "sgd": lambda g: torch.optim.SGD(g, 0.05, momentum=0.9),
    "adam": lambda g: torch.optim.Adam(g, 0.02),
    "rounded": lambda g: lp.optim.SGD(
        g, 0.05, param_format=lp.Rounding("bfloat16", "stochastic")
    ),
}
every = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
modes = pytest.mark.parametrize("mode", ["deterministic", "stochastic"])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_it_is_the_base_on_latent_weights(name):
    model, x, y = problem()
    optimizer = BinaryConnect(BASES[name](groups(model)), BINARY)
    reference, _, _ = problem()
    base = BASES[name](groups(reference))
    quantized = [reference[0].weight, reference[2].weight]
    for _ in range(4):
        latents = [p.detach().clone() for p in quantized]
        with torch.no_grad():
            for p in quantized:
                p.copy_(torch.where(p >= 0, 1.0, -1.0))
        base.zero_grad()
        torch.nn.functional.mse_loss(reference(x), y).backward()
        with torch.no_grad():
            for p, latent in zip(quantized, latents, strict=True):
                p.copy_(latent)
        base.step()
        with torch.no_grad():
            for p in quantized:
                p.clamp_(-1, 1)
    run(model, x, y, optimizer, 4)
    with optimizer.latent():
        assert torch.equal(weights(model), weights(reference))
    assert set(model[0].weight.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(model[0].bias, reference[0].bias)


def test_the_clip_lets_weights_come_back():
    flips = {}
    for clip in (True, False):
        p = torch.nn.Parameter(torch.zeros(1))
        base = torch.optim.SGD([p], lr=0.125)
        optimizer = BinaryConnect(base, BINARY, clip=clip)
        p.grad = -torch.ones(1)
        for _ in range(1000):
            optimizer.step()
        p.grad = torch.ones(1)
        count = 0
        while p.item() > 0:
            optimizer.step()
            count += 1
        flips[clip] = count
    # Eight steps from 1 to 0, which is still +1, and one more.
    assert flips == {True: 9, False: 1001}


def test_stochastic_weights_are_right_on_average():
    w = torch.linspace(-2.5, 1.5, 9).repeat(4000, 1)
    p = torch.nn.Parameter(w.clone())
    BinaryConnect(
        torch.optim.SGD([p], 0.1), INT2, "stochastic",
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    z = w.clamp(-2, 1)
    assert ((p - z).abs() < 1).all()
    assert torch.equal(p.detach(), nearest(p, INT2))
    spread = 0.5 / math.sqrt(4000)
    assert ((p - z).mean(0).abs() < 5 * spread).all()


def test_samples_change_with_the_step_only():
    p = torch.nn.Parameter(torch.zeros(64))
    optimizer = BinaryConnect(torch.optim.SGD([p], 0.1), BINARY, "stochastic")
    p.grad = torch.zeros(64)
    samples = []
    for _ in range(3):
        samples.append(p.detach().clone())
        optimizer.step()
    assert not torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[1], samples[2])
    assert optimizer.state[p]["latent"].tolist() == [0.0] * 64


@every
@modes
def test_resuming_from_a_weights_only_checkpoint_is_bit_exact(base, mode):
    model, x, y = problem()
    optimizer = BinaryConnect(base(groups(model)), INT2, mode, scale="absmax")
    run(model, x, y, optimizer, 3)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    run(model, x, y, optimizer, 3)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, _, _ = problem()
    twin = BinaryConnect(base(groups(other)), INT2, mode, scale="absmax")
    twin.load_state_dict(saved[1])
    # The state knows the quantized weights too; the biases are in the model only.
    assert torch.equal(other[0].weight, saved[0]["0.weight"])
    other.load_state_dict(saved[0])
    assert twin.base.param_groups[0] is twin.param_groups[0]
    run(other, x, y, twin, 3)
    assert torch.equal(weights(model), weights(other))


@every
@modes
def test_copies_and_pickles_continue_alike(base, mode):
    model, x, y = problem()
    optimizer = BinaryConnect(base(groups(model)), BINARY, mode)
    run(model, x, y, optimizer, 2)
    twins = [
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ]
    run(model, x, y, optimizer, 3)
    for other, twin in twins:
        run(other, x, y, twin, 3)
        assert torch.equal(weights(model), weights(other))


def test_contexts_and_projection():
    model, x, y = problem()
    optimizer = BinaryConnect(BASES["sgd"](groups(model)), BINARY, "stochastic")
    run(model, x, y, optimizer, 2)
    before = weights(model)
    p = model[0].weight
    with optimizer.latent():
        latent = p.detach().clone()
        assert latent.abs().max() < 1
    assert torch.equal(before, weights(model))
    with optimizer.quantized():
        assert torch.equal(p, nearest(latent, BINARY))
    assert torch.equal(before, weights(model))
    optimizer.project_()
    assert torch.equal(p, nearest(latent, BINARY))
    assert optimizer.distance()[0] > 0


def test_schedulers_closures_and_hooks():
    model, x, y = problem()
    optimizer = BinaryConnect(BASES["sgd"](groups(model)), BINARY)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    events = []
    optimizer.register_step_pre_hook(lambda *_: events.append("pre"))
    optimizer.register_step_post_hook(lambda *_: events.append("post"))

    def closure():
        events.append("closure")
        # The gradient is taken at quantized weights.
        assert set(model[0].weight.flatten().tolist()) == {-1.0, 1.0}
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad
    scheduler.step()
    assert events == ["pre", "closure", "post"]
    assert [group["lr"] for group in optimizer.base.param_groups] == [0.025] * 2


def test_groups_added_later_are_quantized():
    model, x, y = problem()
    for kind in ("sgd", "rounded"):
        optimizer = BinaryConnect(BASES[kind](model[0].parameters()), BINARY)
        run(model, x, y, optimizer, 1)
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.5})
        assert set(weights(model).tolist()) == {-1.0, 1.0}
        assert optimizer.base.param_groups[1] is optimizer.param_groups[1]
        with pytest.raises(ValueError, match="scale"):
            optimizer.add_param_group(
                {"params": [torch.nn.Parameter(torch.zeros(2))], "scale": "absmax"}
            )
        assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 2


@modes
def test_gradients_that_are_not_finite_change_nothing(mode):
    model, x, y = problem()
    optimizer = BinaryConnect(BASES["adam"](groups(model)), BINARY, mode)
    run(model, x, y, optimizer, 2)
    before = weights(model), copy.deepcopy(optimizer.state_dict())
    model[2].bias.grad.fill_(math.nan)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        optimizer.step()
    assert torch.equal(before[0], weights(model))
    after = optimizer.state_dict()
    torch.testing.assert_close(before[1]["state"], after["state"], rtol=0, atol=0)
    torch.testing.assert_close(
        before[1]["base"]["state"], after["base"]["state"], rtol=0, atol=0
    )
    assert after["param_groups"] == before[1]["param_groups"]


def test_a_failing_base_leaves_quantized_weights():
    model, x, y = problem()
    optimizer = BinaryConnect(BASES["rounded"](groups(model)), BINARY)
    run(model, x, y, optimizer, 1)
    before = weights(model)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="learning rate"):
        optimizer.step()
    assert torch.equal(before, weights(model))


def test_bad_arguments_are_refused():
    p = torch.nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([p], 0.1)
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        BinaryConnect([p], BINARY)
    with pytest.raises(ValueError, match="mode"):
        BinaryConnect(sgd, BINARY, "random")
    with pytest.raises(ValueError, match="scale"):
        BinaryConnect(sgd, BINARY, scale=0.0)
    master = lp.optim.SGD([p], 0.1, param_format="bfloat16", update="master")
    with pytest.raises(ValueError, match="master"):
        BinaryConnect(master, BINARY)
    with pytest.raises(ValueError, match="base"):
        BinaryConnect(sgd, BINARY).load_state_dict(sgd.state_dict())


CHANGES = {
    "filled": lambda p: torch.nn.init.constant_(p, 0.375),
    "loaded": lambda p: load(p, 0.375),
    "of other data": lambda p: setattr(p, "data", torch.full_like(p, 0.375)),
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


def load(p, value):
    module = torch.nn.Module()
    module.register_parameter("p", p)
    module.load_state_dict({"p": torch.full_like(p, value)})


def one(mode="deterministic", scale=None, base=BASES["sgd"]):
    p, q = (torch.nn.Parameter(torch.tensor([0.25, -0.5])) for _ in range(2))
    optimizer = BinaryConnect(base([p, q]), BINARY, mode, scale=scale)
    p.grad, q.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    return p, q, optimizer


@changes
@modes
def test_weights_that_others_write_are_not_discarded(change, mode):
    p, _, optimizer = one(mode)
    state = copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():
        change(p)

    def evaluate(context):
        with context():
            pass

    for call in (
        optimizer.step,
        optimizer.update_scales_,
        optimizer.project_,
        optimizer.distance,
        lambda: evaluate(optimizer.quantized),
        lambda: evaluate(optimizer.latent),
    ):
        with pytest.raises(RuntimeError, match=r"Call reset_latent_\(\) to train on"):
            call()
        assert p.tolist() == [0.375, 0.375]
        now = optimizer.state_dict()
        assert now["param_groups"] == state["param_groups"]
        for ours, its in ((now, state), (now["base"], state["base"])):
            torch.testing.assert_close(ours["state"], its["state"], rtol=0, atol=0)


@changes
@modes
def test_written_weights_become_latent(change, mode):
    p, q, optimizer = one(mode, scale="absmax")
    _, kept, twin = one(mode, scale="absmax")
    latents = optimizer.state[q]["latent"].clone()
    with torch.no_grad():
        change(p)
    optimizer.reset_latent_()
    assert set(p.tolist()) <= {-0.375, 0.375}
    assert optimizer.state[p]["scale"] == 0.375
    # The other parameter was not written.
    assert torch.equal(optimizer.state[q]["latent"], latents)
    with optimizer.latent():
        assert p.tolist() == [0.375, 0.375]
        assert torch.equal(q, latents)
    before = optimizer.base.state[p]["momentum_buffer"].clone()
    assert torch.equal(before, twin.base.state[kept]["momentum_buffer"])
    optimizer.step()
    # lr = 0.05, momentum = 0.9 and the second step along 1.
    expected = torch.full((2,), 0.375) - 0.05 * 1.9
    torch.testing.assert_close(optimizer.state[p]["latent"], expected)


def test_latent_weights_that_are_reset_lost_nothing():
    base = lambda g: lp.optim.SGD(g, 0.01, param_format="bfloat16", update="kahan")  # noqa: E731
    p, q, optimizer = one(base=base)
    lost = [optimizer.base.state[x]["compensation"] for x in (p, q)]
    before = lost[1].clone()
    assert all(x.all() for x in lost)
    load(p, 0.375)
    optimizer.reset_latent_()
    assert not lost[0].any()
    assert torch.equal(lost[1], before)


def test_a_reset_without_a_scale_changes_nothing():
    p, q, optimizer = one(scale="absmax")
    state = copy.deepcopy(optimizer.state_dict()["state"])
    load(p, 0.5)
    load(q, 0.0)
    with pytest.raises(ValueError, match="positive and finite"):
        optimizer.reset_latent_()
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)
    assert p.tolist() == [0.5, 0.5]


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("projects", [False, True])
def test_its_own_values_are_known_again(mode, dtype, projects):
    model, x, y = problem()
    levels = lp.Levels([-0.7, 0.1, 0.3])
    optimizer = BinaryConnect(BASES["sgd"](groups(model)), levels, mode, scale=0.3)
    run(model, x, y, optimizer, 2)
    if projects:
        optimizer.project_()
    again = copy.deepcopy(model.state_dict())
    twins = [
        (model, optimizer),
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ]
    for other, twin in twins:
        other.load_state_dict(again)
        other.to(dtype)
        with twin.latent(), twin.quantized():
            twin.distance()
        with pytest.raises(KeyError), twin.latent():
            raise KeyError
        run(other, x.to(dtype), y.to(dtype), twin, 2)


@every
@modes
def test_a_base_that_fails_wrote_nothing(base, mode):
    model, x, y = problem()
    optimizer = BinaryConnect(base(groups(model)), BINARY, mode)
    run(model, x, y, optimizer, 1)
    step = type(optimizer.base).step

    def failing(self, closure=None):
        step(self)
        raise KeyError

    optimizer.base.step = failing.__get__(optimizer.base)
    with pytest.raises(KeyError):
        optimizer.step()
    del optimizer.base.step
    run(model, x, y, optimizer, 1)


def test_a_projection_lasts_until_the_next_sample():
    p = torch.nn.Parameter(torch.full((64,), 0.25))
    optimizer = BinaryConnect(torch.optim.SGD([p], 0.1), BINARY, "stochastic")
    sample = p.detach().clone()
    assert set(sample.tolist()) == {-1.0, 1.0}
    state = copy.deepcopy(optimizer.state_dict())
    for sampled_again in (
        optimizer.update_scales_,
        lambda: optimizer.load_state_dict(state),
    ):
        optimizer.project_()
        assert p.tolist() == [1.0] * 64
        sampled_again()
        assert torch.equal(p, sample)


@pytest.mark.parametrize("resets", [False, True])
def test_a_group_may_get_levels_later(resets):
    p = torch.nn.Parameter(torch.tensor([0.25, -0.5]))
    optimizer = BinaryConnect(torch.optim.SGD([p], lr=0.125))
    p.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[0]["levels"] = BINARY
    if resets:
        optimizer.reset_latent_()
    optimizer.step()
    assert p.tolist() == [1.0, -1.0]
    assert optimizer.state[p]["latent"].tolist() == [0.0, -0.75]
