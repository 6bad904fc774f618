"""Loss scaling: torch's rule, exact scaling, steps that are skipped."""

import copy
import math
import pickle

import pytest
import torch

import lowprec as lp


def sum_problem(values):
    """A parameter whose gradient is ``values`` times what the loss is scaled by."""
    p = torch.nn.Parameter(torch.ones(len(values)))
    return p, lambda: (p * torch.tensor(values)).sum()


def run(scaler, overflows):
    """Step with and without infinite gradients; return the scales."""
    p, loss = sum_problem([1.0])
    optimizer = torch.optim.SGD([p], lr=0.5)
    scales = []
    for overflow in overflows:
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
        if overflow:
            p.grad[0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return p.item(), scales


def test_scale_and_steps_follow_torch():
    generator = torch.Generator().manual_seed(0)
    overflows = (torch.rand(200, generator=generator) < 0.2).tolist()
    options = {"init_scale": 2.0**4, "growth_interval": 3}
    theirs = torch.amp.GradScaler("cpu", **options)
    ours = lp.optim.LossScaler(**options)
    assert run(ours, overflows) == run(theirs, overflows)
    assert ours.state_dict() == theirs.state_dict()


def test_states_travel_between_torch_and_here():
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=5)
    run(theirs, [False] * 3)
    ours = lp.optim.LossScaler()
    ours.load_state_dict(theirs.state_dict())
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert run(twin, [False] * 2)[1] == [16.0, 32.0]
    theirs.load_state_dict(ours.state_dict())
    assert theirs.get_scale() == 32.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_do_not_depend_on_the_scale(dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    ).to(dtype)
    lp.nn.convert_(
        model, {"?": lp.Precision(input="e8m3", grad_output="e8m3"), "1": None}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    results = []
    for exponent in (0, -20, 30):
        scaler = lp.optim.LossScaler(2.0**exponent)
        optimizer.zero_grad()
        loss = model(torch.ones(4, 6, dtype=dtype)).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        results.append([p.grad.clone() for p in model.parameters()])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_scaling_keeps_binary16_gradients_from_underflow():
    """A gradient of 2^-30 is zero in binary16, whose smallest number is 2^-24."""
    x, gradients = torch.full((1, 1), 2.0**-15), {}
    for exponent in (0, 16):
        layer = torch.nn.Linear(1, 1, bias=False)
        lp.nn.convert_(layer, lp.Precision(grad_weight="binary16"))
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        scaler = lp.optim.LossScaler(2.0**exponent)
        scaler.scale((layer(x) * 2.0**-15).sum()).backward()
        scaler.unscale_(optimizer)
        gradients[exponent] = layer.weight.grad.item()
    assert gradients == {0: 0.0, 16: 2.0**-30}


def test_overflow_skips_the_step_and_leaves_weights_and_state_alone():
    layer = torch.nn.Linear(1, 1, bias=False)
    lp.nn.convert_(layer, lp.Precision(grad_output="binary16"))
    fl = lp.Rounding("bfloat16", "stochastic")
    optimizer = lp.optim.Adam(layer.parameters(), param_format=fl)
    scaler = lp.optim.LossScaler(2.0**17, growth_interval=1)
    before = layer.weight.detach().clone()
    stepped = []
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(layer(torch.ones(1, 1)).sum()).backward()
        stepped.append(scaler.step(optimizer))
        scaler.update()
        if len(stepped) < 3:
            assert torch.equal(layer.weight, before)
            assert not optimizer.state
            assert optimizer.param_groups[0]["rounding_step"] == 0
    # 2^17 and 2^16 exceed 65504; 2^15 does not, and grows again.
    assert stepped == [False, False, True]
    assert scaler.get_scale() == 2.0**16
    assert not torch.equal(layer.weight, before)


def test_a_static_scale_stays_and_still_skips():
    scaler = lp.optim.LossScaler(8.0, growth_interval=None)
    value, scales = run(scaler, [False, True, False])
    assert scales == [8.0] * 3
    assert value == 1.0 - 2 * 0.5


def test_the_scale_stays_a_normal_number_of_float32():
    scaler = lp.optim.LossScaler(2.0**-125)
    assert run(scaler, [True] * 3)[1] == [2.0**-126] * 3
    scaler = lp.optim.LossScaler(2.0**125, growth_interval=1)
    assert run(scaler, [False] * 3)[1] == [2.0**126] * 3


def test_scaling_is_not_emulated():
    loss = torch.tensor(1 + 2.0**-20, requires_grad=True)
    low = lp.Precision(elementwise="e5m2", input="e5m2")
    scaler = lp.optim.LossScaler(4.0)
    with lp.emulate(low, strict=True):
        scaled = scaler.scale(loss)
    assert scaled.item() == 4 + 2.0**-18
    scaled.backward()
    assert loss.grad.item() == 4.0


def test_two_optimizers_share_a_scale():
    (p, first), (q, second) = sum_problem([1.0]), sum_problem([1.0])
    optimizers = [torch.optim.SGD([x], lr=1.0) for x in (p, q)]
    scaler = lp.optim.LossScaler(4.0)
    scaler.scale(first() + second()).backward()
    q.grad[0] = math.nan
    assert [scaler.step(optimizer) for optimizer in optimizers] == [True, False]
    scaler.update()
    assert (p.item(), q.item(), scaler.get_scale()) == (0.0, 1.0, 2.0)


def test_unscaled_gradients_may_be_clipped():
    p, loss = sum_problem([3.0, 4.0])
    optimizer = torch.optim.SGD([p], lr=1.0)
    scaler = lp.optim.LossScaler(1024.0)
    scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    assert p.grad.tolist() == [3.0, 4.0]
    torch.nn.utils.clip_grad_norm_([p], 2.5)
    scaler.step(optimizer)
    assert p.tolist() == pytest.approx([-0.5, -1.0])


def monitored(scaler, accumulate=1):
    torch.manual_seed(0)
    model = lp.nn.convert_(torch.nn.Linear(4, 2), lp.Precision(input="e4m3fn"))
    optimizer = lp.optim.SGD(model.parameters(), lr=0.1, param_format="bfloat16")
    x = torch.randn(3, 4)
    losses = []
    with lp.measure.RoundoffMonitor(model, optimizer) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(accumulate):
                loss = monitor.backward(
                    lambda m, cast: m(cast(x)).square().sum(), scale=scaler.get_scale()
                )
                losses.append(loss.item())
            scaler.step(optimizer)
            scaler.update()
    return monitor.ledger, losses


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_monitor_measures_the_loss_itself(accumulate):
    plain, scaled = (
        monitored(lp.optim.LossScaler(scale, growth_interval=None), accumulate)
        for scale in (1.0, 2.0**12)
    )
    assert plain[1] == scaled[1]
    assert (plain[0]["r_norm"] > 0).all()
    for name in plain[0].names:
        assert (plain[0][name] == scaled[0][name]).all()


def test_misuse_is_refused():
    p, loss = sum_problem([1.0])
    optimizer = torch.optim.SGD([p], lr=1.0)
    scaler = lp.optim.LossScaler()
    with pytest.raises(RuntimeError, match=r"call step\(optimizer\)"):
        scaler.update()
    scaler.scale(loss()).backward()
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="unscaled already"):
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="since the last update"):
        scaler.step(optimizer)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"init_scale": 1000.0}, "power of two from 2.-126.*exact, got 1000.0"),
        ({"init_scale": 0.0}, "power of two"),
        ({"init_scale": math.inf}, "power of two"),
        ({"init_scale": 2.0**127}, "to 2.126"),
        ({"growth_factor": 1.5}, "growth_factor must be a power of two above 1"),
        ({"growth_factor": 1.0}, "growth_factor must be a power of two above 1"),
        ({"backoff_factor": 0.9}, "backoff_factor must be a power of two below 1"),
        ({"backoff_factor": -0.5}, "backoff_factor must be a power of two below 1"),
        ({"growth_interval": 0}, "whole number of steps >= 1, or None.*got 0"),
        ({"growth_interval": True}, "whole number of steps"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        lp.optim.LossScaler(**arguments)
    scaler = lp.optim.LossScaler()
    names = {"init_scale": "scale"}
    changed = {names.get(name, name): value for name, value in arguments.items()}
    before = scaler.state_dict()
    with pytest.raises(ValueError, match=text):
        scaler.load_state_dict({**before, **changed})
    assert scaler.state_dict() == before


def test_half_and_sparse_tensors_are_refused_before_anything_changes():
    scaler = lp.optim.LossScaler()
    with pytest.raises(TypeError, match=r"the loss must be.*got float16.*float\(\)"):
        scaler.scale(torch.ones((), dtype=torch.float16))
    p = torch.nn.Parameter(torch.ones(2))
    q = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([p, q])
    p.grad, q.grad = torch.ones(2), torch.ones(2, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"a gradient must be.*got bfloat16"):
        scaler.step(optimizer)
    assert p.grad.tolist() == [1.0, 1.0]
    p.grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        scaler.step(optimizer)
