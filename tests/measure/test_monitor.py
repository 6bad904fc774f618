"""RoundoffMonitor: what it measures, and that the run does not notice it."""

import pytest
import torch
from measure.small_training import PRECISION, STOCHASTIC, batches, loss_of, network

import lowprec as lp
from lowprec.measure import Ledger, RoundoffMonitor

OPTIMIZERS = {
    "torch SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "torch Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "torch AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "torch Adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "torch RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "torch Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "SGD": lambda p: lp.optim.SGD(p, lr=0.1, momentum=0.9, param_format=STOCHASTIC,
                                  momentum_format="bfloat16"),
    "NormalizedSGD": lambda p: lp.optim.NormalizedSGD(
        p, lr=0.1, param_format=STOCHASTIC, projection=lp.optim.Ball(9.0)),
}  # fmt: skip


def train(make, *, monitored, converted=False, every=1, steps=6):
    model = network(converted=converted)
    torch.manual_seed(77)
    optimizer = make(model.parameters())
    monitor = RoundoffMonitor(model, optimizer, every=every) if monitored else None
    for x, y in batches(steps):
        optimizer.zero_grad()
        closure = loss_of(x, y)
        if monitor is not None:
            monitor.backward(closure)
        else:
            closure(model, lambda value: value).backward()
        optimizer.step()
    return model, optimizer, monitor, torch.get_rng_state()


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_the_run_is_the_same_with_and_without_a_monitor(name, converted, every):
    make = OPTIMIZERS[name]
    bare = train(make, monitored=False, converted=converted)
    watched = train(make, monitored=True, converted=converted, every=every)
    assert equal(bare[0].state_dict(), watched[0].state_dict())
    assert equal(bare[1].state_dict(), watched[1].state_dict())
    for p, q in zip(bare[0].parameters(), watched[0].parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert torch.equal(bare[3], watched[3])
    assert len(watched[2].ledger) == 6 // every


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n.startswith("torch")])
def test_float32_training_has_errors_of_float32(name):
    """Dropout masks agree, else r would be of the size of the gradient."""
    _, _, monitor, _ = train(OPTIMIZERS[name], monitored=True)
    assert monitor.ledger["relative_gradient_error"].max() < 1e-5
    assert monitor.ledger["relative_update_error"].max() < 1e-4
    assert (monitor.ledger["r_norm"] > 0).all()
    assert (monitor.ledger["s_norm"] > 0).all()
    assert monitor.ledger["nonfinite"].sum() == 0


def test_dropout_masks_agree_although_emulated_layers_draw_seeds():
    _, _, monitor, _ = train(OPTIMIZERS["torch SGD"], monitored=True, converted=True)
    relative = monitor.ledger["relative_gradient_error"]
    assert (relative > 1e-3).all()
    assert (relative < 0.5).all()


def test_float64_training_has_no_errors():
    model = network().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    monitor = RoundoffMonitor(model, optimizer)
    for x, y in batches(4, torch.float64):
        optimizer.zero_grad()
        monitor.backward(loss_of(x, y))
        optimizer.step()
    assert monitor.ledger["r_norm"].max() == 0.0
    assert monitor.ledger["s_norm"].max() == 0.0


def test_gradients_that_were_set_to_zero_are_not_counted_twice():
    model = network().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    for x, y in batches(3, torch.float64):
        optimizer.zero_grad(set_to_none=False)
        monitor.backward(loss_of(x, y))
        optimizer.step()
    assert monitor.ledger["r_norm"].max() == 0.0


def test_modes_and_buffers_follow_the_model():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer, every=4)
    for k, (x, y) in enumerate(batches(5)):
        model.train(k < 4)
        optimizer.zero_grad()
        monitor.backward(loss_of(x, y))
        optimizer.step()
    assert len(monitor.ledger) == 2
    assert monitor.ledger["relative_gradient_error"].max() < 1e-5


def test_random_numbers_that_the_closure_draws_agree():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    for x, y in batches(3):
        optimizer.zero_grad()
        monitor.backward(
            lambda m, cast, x=x, y=y: loss_of(x + torch.randn(x.shape), y)(m, cast)
        )
        optimizer.step()
    assert monitor.ledger["relative_gradient_error"].max() < 1e-5


def test_update_errors_equal_their_definition():
    w = torch.nn.Parameter(torch.tensor([1.5, 3.0, 100.0], dtype=torch.float64))
    model = torch.nn.ParameterList([w])
    optimizer = lp.optim.SGD(model.parameters(), lr=0.1, param_format="bfloat16")
    monitor = RoundoffMonitor(model, optimizer, per_parameter=True)
    before = w.detach().clone()
    monitor.backward(
        lambda m, cast: (m[0] * cast(torch.tensor([0.5, 1.0, 0.01]))).sum()
    )
    optimizer.step()
    exact = before - 0.10009765625 * w.grad
    record = monitor.ledger[0]
    assert record["s_norm"] == pytest.approx(
        (w.detach() - exact).norm().item(), rel=1e-14
    )
    assert record["s_norm/0"] == record["s_norm"]
    assert record["eta"] == 0.10009765625
    assert record["stagnation"] == 1 / 3
    assert record["update_norm"] == pytest.approx((exact - before).norm().item())


def test_gradient_errors_equal_their_definition():
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    x = torch.randn(5, 3)

    def closure(m, cast):
        y = m(cast(x))
        # The low-precision path rounds its output; the reference does not.
        return (lp.round(y, "e4m3fn") if y.dtype == torch.float32 else y).square().sum()

    monitor.backward(closure)
    weight, wide = model.weight.detach().double(), x.double()
    exact = 2 * (weight @ wide.T) @ wide
    optimizer.step()
    record = monitor.ledger[0]
    error = (model.weight.grad.double() - exact).norm()
    assert record["r_norm"] == pytest.approx(error.item(), rel=1e-12)
    assert record["gradient_norm"] == pytest.approx(exact.norm().item(), rel=1e-12)
    assert record["reference_loss"] != record["loss"]


def test_gradients_accumulated_over_micro_batches_are_compared_as_accumulated():
    model = network(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    for set_to_none in (True, False):
        optimizer.zero_grad(set_to_none=set_to_none)
        for x, y in batches(3):
            monitor.backward(loss_of(x, y))
        optimizer.step()
    assert len(monitor.ledger) == 2
    assert monitor.ledger["relative_gradient_error"].max() < 1e-5


def test_micro_batches_whose_gradients_underflow_are_not_forgotten():
    """All zeros are not a sign of `zero_grad`."""
    w = torch.nn.Parameter(torch.ones(3))
    model = torch.nn.ParameterList([w])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)

    def tiny(m, cast):
        x = m[0]
        if x.dtype == torch.float32:
            x = lp.round(x, "binary32", backward="binary16")
        return 1e-9 * x.sum()

    for set_to_none in (True, False):
        optimizer.zero_grad(set_to_none=set_to_none)
        monitor.backward(tiny)
        monitor.backward(tiny)
        optimizer.step()
        record = monitor.ledger[-1]
        assert record["gradient_norm"] == pytest.approx(2e-9 * 3**0.5)
        assert record["relative_gradient_error"] == 1.0
        assert record["loss"] == pytest.approx(6e-9)


def test_an_abandoned_step_leaves_no_trace():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    (x, y), (u, v) = batches(2)
    monitor.backward(loss_of(x, y))
    optimizer.zero_grad()
    monitor.backward(loss_of(u, v))
    optimizer.step()
    assert len(monitor.ledger) == 1
    assert monitor.ledger["relative_gradient_error"][0] < 1e-5


def test_underflow_and_overflow_are_counted():
    w = torch.nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    model = torch.nn.ParameterList([w])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = RoundoffMonitor(model, optimizer)
    factors = torch.tensor([1.0, 1e-9, 1e6])
    monitor.backward(
        lambda m, cast: (
            lp.round(m[0], "binary32", backward="binary16") * cast(factors)
            if m[0].dtype == torch.float32
            else m[0] * cast(factors)
        ).sum()
    )
    optimizer.step()
    assert monitor.ledger[0]["underflow"] == 1
    assert monitor.ledger[0]["nonfinite"] == 1


def test_groups_schedulers_and_parameters_outside_the_model():
    model = network()
    extra = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam(
        [{"params": model.parameters()}, {"params": [extra], "lr": 0.5}], lr=0.01
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    monitor = RoundoffMonitor(model, optimizer, per_parameter=True)
    for x, y in batches(4):
        optimizer.zero_grad()
        monitor.backward(loss_of(x, y))
        extra.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    assert monitor.ledger["relative_update_error"].max() < 1e-4
    assert "s_norm/group1.0" in monitor.ledger.names


def test_closing_removes_every_hook():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with RoundoffMonitor(model, optimizer) as monitor:
        (x, y), (u, v) = batches(2)
        monitor.backward(loss_of(x, y))
        optimizer.step()
    monitor.backward(loss_of(u, v))
    optimizer.step()
    assert len(monitor.ledger) == 1
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_run_around_the_step_in_order():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(len(monitor.ledger)))
    ((x, y),) = batches(1)
    monitor.backward(loss_of(x, y))
    assert len(monitor.ledger) == 0
    optimizer.step()
    assert seen == [1]


def test_steps_without_backward_of_the_monitor_are_measured_in_part():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    ((x, y),) = batches(1)
    loss_of(x, y)(model, lambda value: value).backward()
    optimizer.step()
    assert "r_norm" not in monitor.ledger.names
    assert monitor.ledger[0]["relative_update_error"] < 1e-4


def test_records_stream_to_a_file(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ledger = Ledger(tmp_path / "run.jsonl")
    monitor = RoundoffMonitor(model, optimizer, ledger=ledger)
    for x, y in batches(3):
        optimizer.zero_grad()
        monitor.backward(loss_of(x, y))
        optimizer.step()
    ledger.close()
    assert list(Ledger.load(tmp_path / "run.jsonl")) == list(monitor.ledger)


def test_layers_built_as_emulated_ones_are_plain_in_the_reference():
    layer = lp.nn.Linear(6, 3, precision=lp.Precision(**PRECISION))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    monitor = RoundoffMonitor(layer, optimizer)
    ((x, y),) = batches(1)
    monitor.backward(loss_of(x, y))
    exact = torch.nn.functional.linear(x, layer.weight, layer.bias).double()
    loss = torch.nn.functional.cross_entropy(exact, y).item()
    optimizer.step()
    assert monitor.ledger[0]["reference_loss"] == pytest.approx(loss, rel=1e-6)
    assert monitor.ledger[0]["loss"] != pytest.approx(loss, rel=1e-4)
    assert layer.precision == lp.Precision(**PRECISION)


@pytest.mark.filterwarnings("ignore::lowprec.NumericalWarning")
@pytest.mark.parametrize("place", ["around", "inside"])
def test_emulation_is_off_in_the_reference(place):
    precision = lp.Precision(**PRECISION)
    model = network(dropout=0.0, norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer)
    ((x, y),) = batches(1)
    plain = loss_of(x, y)
    twin = network(dropout=0.0, norm=False).double()
    expected = plain(twin, lambda value: value.double()).item()

    def emulated(m, cast):
        with lp.emulate(precision):
            return plain(m, cast)

    if place == "inside":
        monitor.backward(emulated)
        optimizer.step()
    else:
        with lp.emulate(precision):
            monitor.backward(plain)
            optimizer.step()
    record = monitor.ledger[0]
    assert 1e-3 < record["relative_gradient_error"] < 0.5
    assert record["reference_loss"] == pytest.approx(expected, rel=1e-12)
