"""What the optimizers around a base share: groups and checkpoints of both."""

import copy
import math

import pytest
import torch

import lowprec as lp
from lowprec.optim import ASkewSGD, BinaryConnect, PerChannel, ProxQuant, Skewed

BINARY, INT2 = lp.Levels.binary(), lp.Levels.int_bits(2)
WRAPPERS = {
    "binary_connect": lambda base: BinaryConnect(base, BINARY),
    "prox_quant": lambda base: ProxQuant(base, BINARY, lam=0.125),
    "skewed": lambda base: Skewed(base, BINARY, epsilon=0.25),
}
every = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def stepped(wrap, start=0.375):
    p = torch.nn.Parameter(torch.tensor([start, -start]))
    optimizer = wrap(torch.optim.SGD([p], lr=0.125, momentum=0.5))
    p.grad = torch.ones(2)
    optimizer.step()
    return p, optimizer


@every
def test_a_group_may_be_added_after_loading(wrap):
    p, optimizer = stepped(wrap)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    q = torch.nn.Parameter(torch.tensor([0.5]))
    optimizer.add_param_group({"params": [q], "lr": 0.25})
    for ours, its in zip(
        optimizer.param_groups, optimizer.base.param_groups, strict=True
    ):
        assert ours is its
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.25]
    p.grad, q.grad = torch.ones(2), -torch.ones(1)
    before = optimizer._unquantized(q).item()
    optimizer.step()
    assert optimizer._unquantized(q).item() > before


def more_groups(state):
    state["param_groups"] *= 2


def more_groups_of_the_base(state):
    state["base"]["param_groups"] *= 2


def more_params(state):
    state["param_groups"][0]["params"] = [0, 1]


def more_params_of_the_base(state):
    state["base"]["param_groups"][0]["params"] = [0, 1]


@every
@pytest.mark.parametrize(
    "spoil",
    [more_groups, more_groups_of_the_base, more_params, more_params_of_the_base],
)
def test_a_state_that_does_not_fit_changes_nothing(wrap, spoil):
    p, optimizer = stepped(wrap)
    twin_p, twin = copy.deepcopy((p, optimizer))
    _, other = stepped(wrap, start=0.75)
    other.param_groups[0]["lr"] = 0.5
    state = copy.deepcopy(other.state_dict())
    spoil(state)
    with pytest.raises(ValueError, match="loaded state dict"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0] is optimizer.base.param_groups[0]
    for weights, trained in ((p, optimizer), (twin_p, twin)):
        weights.grad = -torch.ones(2)
        trained.step()
    assert torch.equal(p, twin_p)
    assert torch.equal(optimizer._unquantized(p), twin._unquantized(twin_p))
    states = [x.base.state[w] for x, w in ((optimizer, p), (twin, twin_p))]
    assert torch.equal(*(state["momentum_buffer"] for state in states))


def sparse_gradient(bad=1.0):
    return torch.tensor([0.0, bad]).to_sparse()


@every
def test_sparse_gradients_of_quantized_weights_change_nothing(wrap):
    p, q = (torch.nn.Parameter(torch.tensor([0.375, -0.375])) for _ in range(2))
    optimizer = wrap(torch.optim.Adam([p, q]))
    before = [x.detach().clone() for x in (p, q)]
    p.grad, q.grad = torch.ones(2), sparse_gradient()
    with pytest.raises(RuntimeError, match="does not support sparse gradients: use"):
        optimizer.step()
    assert all(torch.equal(x, y) for x, y in zip(before, (p, q), strict=True))
    assert not optimizer.base.state


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_sparse_gradients_are_looked_into(wrap, bad):
    p, q = (torch.nn.Parameter(torch.tensor([0.375, -0.375])) for _ in range(2))
    groups = [{"params": [p]}, {"params": [q], "levels": None}]
    optimizer = wrap(torch.optim.SGD(groups, 0.125))
    p.grad, q.grad = torch.ones(2), sparse_gradient(bad)
    before = [x.detach().clone() for x in (p, q)]
    with pytest.raises(RuntimeError, match="has 1 elements that are NaN or infinite"):
        optimizer.step()
    assert all(torch.equal(x, y) for x, y in zip(before, (p, q), strict=True))
    q.grad = sparse_gradient()
    optimizer.step()
    assert q.tolist() == [0.375, -0.5]


@every
def test_groups_that_only_the_base_has_are_refused(wrap):
    p, optimizer = stepped(wrap)
    state = copy.deepcopy(optimizer.state_dict())
    q = torch.nn.Parameter(torch.tensor([0.5]))
    optimizer.base.add_param_group({"params": [q]})
    p.grad, q.grad = torch.ones(2), torch.full((1,), math.nan)
    before = p.detach().clone()
    for call in (
        optimizer.step,
        optimizer.state_dict,
        lambda: optimizer.load_state_dict(state),
    ):
        with pytest.raises(RuntimeError, match="use add_param_group and load_state"):
            call()
    assert torch.equal(p, before)
    assert q.item() == 0.5
    assert len(optimizer.base.param_groups) == 2


@every
def test_a_state_that_only_the_base_has_is_refused(wrap):
    p, optimizer = stepped(wrap)
    optimizer.base.load_state_dict(copy.deepcopy(optimizer.base.state_dict()))
    p.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="use add_param_group and load_state"):
        optimizer.step()


@every
def test_what_cannot_be_wrapped_is_refused(wrap):
    p = torch.nn.Parameter(torch.tensor([0.375, -0.375]))
    with pytest.raises(TypeError, match="LBFGS needs a closure"):
        wrap(torch.optim.LBFGS([p]))
    for other in (*WRAPPERS.values(), lambda base: ASkewSGD(base.param_groups)):
        with pytest.raises(TypeError, match="would quantize twice"):
            wrap(other(torch.optim.SGD([p], 0.125)))


QUANTIZERS = [*WRAPPERS, "askew"]


def quantizer(name, params, scale):
    if name == "askew":
        return ASkewSGD(params, 0.125, INT2, epsilon=0.25, scale=scale)
    kind = {"binary_connect": BinaryConnect, "prox_quant": ProxQuant, "skewed": Skewed}
    options = {"epsilon": 0.25} if name == "skewed" else {}
    return kind[name](torch.optim.SGD(params, 0.125), INT2, scale=scale, **options)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("scale", ["mean_abs", PerChannel("range"), 0.25, None])
def test_projecting_again_moves_nothing(name, scale):
    w = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))
    p = torch.nn.Parameter(w)
    optimizer = quantizer(name, [p], scale)
    with optimizer.quantized():
        inside = p.detach().clone()
        assert name == "binary_connect" or optimizer.distance()[0] < 1e-6
        with optimizer.quantized():
            assert torch.equal(p, inside)
        assert torch.equal(p, inside)
    for _ in range(3):
        optimizer.project_()
        assert torch.equal(p, inside)
    assert all(len(row.unique()) <= 4 for row in p)


@pytest.mark.parametrize("name", ["prox_quant", "skewed", "askew"])
def test_an_evaluation_keeps_no_scale(name):
    p = torch.nn.Parameter(torch.tensor([0.5, -1.0, 0.75]))
    optimizer = quantizer(name, [p], "mean_abs")
    with optimizer.quantized():
        pass
    assert not optimizer.state
    optimizer.project_()
    assert optimizer.state[p]["scale"] == 0.75


@pytest.mark.parametrize("name", QUANTIZERS)
def test_some_parameters_are_projected(name):
    p, q, r = (torch.nn.Parameter(torch.tensor([0.625])) for _ in range(3))
    groups = [{"params": [p, q]}, {"params": [r], "levels": None}]
    optimizer = quantizer(name, groups, None)
    if name == "binary_connect":
        p.grad = q.grad = -torch.ones(1)
        optimizer.step()
        # The latent weights are 3/4 now.
        optimizer.param_groups[0]["levels"] = lp.Levels([-1.0, 0.75, 1.0])
        before, level = 1.0, 0.75
    else:
        before, level = 0.625, 1.0
    optimizer.project_(params=[q])
    assert (p.item(), r.item()) == (before, 0.625)
    assert q.item() == level
    optimizer.project_(x for x in (p,))
    assert p.item() == q.item()
    for stranger in (r, [q, r], [torch.nn.Parameter(torch.ones(1))]):
        with pytest.raises(
            ValueError, match=r"1 of \d given parameters have no levels"
        ):
            optimizer.project_(stranger)
    assert r.item() == 0.625


def rounded(p):
    return lp.optim.SGD([p], 0.01, param_format="bfloat16", update="kahan")


@pytest.mark.parametrize("name", ["prox_quant", "skewed"])
def test_what_a_step_lost_does_not_outlive_a_projection(name):
    p = torch.nn.Parameter(torch.tensor([0.3, -0.7]).bfloat16().float())
    optimizer = WRAPPERS[name](rounded(p))
    p.grad = torch.tensor([0.1, 0.3])
    if name == "prox_quant":
        optimizer.param_groups[0]["lam"] = 0.0
    else:
        optimizer.param_groups[0].update(epsilon=1e3)
    optimizer.step()
    lost = optimizer.base.state[p]["compensation"]
    assert lost.all()
    optimizer.project_()
    assert not lost.any()


def test_a_projection_leaves_what_latent_weights_lost():
    p = torch.nn.Parameter(torch.tensor([0.3, -0.7]).bfloat16().float())
    optimizer = BinaryConnect(rounded(p), BINARY)
    p.grad = torch.tensor([0.1, 0.3])
    optimizer.step()
    before = optimizer.base.state[p]["compensation"].clone()
    optimizer.project_()
    assert before.all()
    assert torch.equal(optimizer.base.state[p]["compensation"], before)


def test_freezing_leaves_no_compensation():
    p = torch.nn.Parameter(torch.tensor([0.3, -0.7]).bfloat16().float())
    optimizer = ProxQuant(rounded(p), BINARY, freeze_at=2)
    p.grad = torch.tensor([0.1, 0.3])
    optimizer.step()
    assert optimizer.base.state[p]["compensation"].all()
    optimizer.step()
    assert not optimizer.base.state[p]["compensation"].any()
    assert p.tolist() == [1.0, -1.0]


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("value", ["x", True])
@pytest.mark.parametrize("key", ["scale", "scale_until"])
def test_scales_that_are_no_numbers_are_refused(name, value, key):
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = quantizer(name, [p], None)
    q = torch.nn.Parameter(torch.ones(1))
    with pytest.raises((TypeError, ValueError), match="scale"):
        optimizer.add_param_group({"params": [q], key: value})
    assert len(optimizer.param_groups) == 1
