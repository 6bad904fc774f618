"""LayerMonitor: what it measures, and that the run does not notice it."""

import gc
import math
import weakref

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import lowprec as lp
from lowprec.measure import LayerMonitor, RoundoffMonitor, TensorStatistics

PRECISION = lp.Precision(
    input="e4m3fn",
    weight=lp.Rounding("bfloat16", "stochastic"),
    grad_output="e5m2",
    accumulator="e8m7",
)
EVERYTHING = lp.Precision(
    input="e4m3fn",
    weight="e4m3fn",
    grad_output=lp.Rounding("e5m2", "stochastic"),
    accumulator=lp.Rounding("e8m7", "stochastic"),
    elementwise=lp.Rounding("bfloat16", "stochastic"),
)
COMPARED = ("signal", "noise", "ulps", "max_ulps", "underflow", "zeros", "elements")


class Residual(torch.nn.Module):
    """A convolutional classifier with all that makes observing hard."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.act = torch.nn.ReLU(inplace=True)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Dropout(0.4)
        )
        self.head = torch.nn.Linear(4 * 16, 3)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = x + self.body(x)
        x += 1
        return self.head(functional.relu_(x).flatten(1))


class Attention(torch.nn.Module):
    """An encoder layer and a recurrent one: several arguments, tuples, one weight."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 8)
        self.encoder = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.recurrent = torch.nn.LSTM(8, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        y, _ = self.recurrent(self.encoder(self.embedding(x)))
        return self.head(y)[:, -1, :3]


def make(kind, converted=True):
    torch.manual_seed(4)
    model = kind()
    if converted == "all":
        lp.nn.convert_(model, EVERYTHING)
    elif converted:
        names = [n for n, m in model.named_modules() if type(m) in CONVERTED]
        lp.nn.convert_(model, lp.Policy(dict.fromkeys(names, PRECISION)))
    return model


CONVERTED = (torch.nn.Linear, torch.nn.Conv2d)
INPUTS = {
    Residual: lambda g: torch.randn(5, 2, 4, 4, generator=g),
    Attention: lambda g: torch.randint(11, (5, 4), generator=g),
}


def train(kind, *, converted, observed, steps=3):
    model = make(kind, converted)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    layers = LayerMonitor(model, sums=4) if observed else None
    data = torch.Generator().manual_seed(6)
    for _ in range(steps):
        x = INPUTS[kind](data)
        y = torch.randint(3, (5,), generator=data)
        optimizer.zero_grad()
        if layers is None:
            functional.cross_entropy(model(x), y).backward()
        else:
            with layers.observe():
                functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, layers, torch.get_rng_state()


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("converted", [False, True, "all"])
@pytest.mark.filterwarnings("ignore::lowprec.NumericalWarning")
def test_the_run_is_the_same_with_and_without_a_monitor(kind, converted):
    bare, _, state = train(kind, converted=converted, observed=False)
    watched, layers, state_after = train(kind, converted=converted, observed=True)
    for (name, a), b in zip(
        bare.state_dict().items(), watched.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    for p, q in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert torch.equal(state, state_after)
    assert layers.layers


@pytest.mark.parametrize("kind", INPUTS)
def test_float32_layers_err_by_float32(kind):
    """Dropout masks, statistics of the batch, in-place changes and shares agree."""
    _, layers, _ = train(kind, converted=False, observed=True)
    errors = layers.ledger["relative_error"]
    assert errors.max() < 2e-6
    roles = {(r["module"], r["role"]) for r in layers.ledger}
    if kind is Residual:
        names = {"stem", "norm", "body.0", "body.1", "head"}
        assert set(layers.layers) == names  # not the containers, not in-place ReLU
        for name in names - {"body.1"}:
            assert {(name, "grad_weight"), (name, "grad_output")} <= roles
        assert ("stem", "grad_input") not in roles  # data needs no gradient
        assert ("body.0", "grad_input") in roles
    else:
        assert "encoder.self_attn" in layers.layers
        assert ("recurrent", "grad_weight") in roles
        assert ("embedding", "grad_weight") in roles  # of both its uses
        assert ("head", "grad_weight") not in roles


def by_hand(actual, exact, format):
    statistics = TensorStatistics()
    statistics.update(actual.detach(), exact.detach(), format)
    return statistics


def test_roles_of_a_linear_layer_against_matrices_in_float64():
    torch.manual_seed(0)
    layer = lp.nn.Linear(
        7,
        4,
        precision=lp.Precision(
            input="e4m3fn",
            weight="e3m4",
            grad_output="e5m2",
            output="bfloat16",
            accumulator="e8m9",
            grad_accumulator="e8m6",
            grad_weight="e5m10",
        ),
    )
    x = torch.randn(6, 7, requires_grad=True)
    layers = LayerMonitor(layer)
    with layers.observe():
        y = layer(x)
        y.square().sum().backward()
    dy = 2 * y.detach()
    w = layer.weight.detach()
    exact = x.detach().double() @ w.double().T + layer.bias.detach().double()
    expected = {
        "input": by_hand(lp.round(x.detach(), "e4m3fn"), x, lp.format("e4m3fn")),
        "weight": by_hand(lp.round(w, "e3m4"), w, lp.format("e3m4")),
        "output": by_hand(y, exact, lp.format("bfloat16")),
        "grad_output": by_hand(lp.round(dy, "e5m2"), dy, lp.format("e5m2")),
        "grad_input": by_hand(x.grad, dy.double() @ w.double(), lp.format("e8m6")),
        "grad_weight": by_hand(
            layer.weight.grad, dy.double().T @ x.detach().double(), lp.format("e5m10")
        ),
    }
    expected["grad_weight"].merge(
        by_hand(layer.bias.grad, dy.double().sum(0), lp.format("e5m10"))
    )
    for role, wanted in expected.items():
        found = layers.statistics("", role)
        for name in COMPARED:
            assert getattr(found, name) == pytest.approx(getattr(wanted, name)), role
        assert found.exponents == wanted.exponents
    formats = [layers.format("", role) for role in expected]
    assert formats == ["e4m3fn", "e3m4", "bfloat16", "e5m2", "e8m6", "e5m10"]
    terms = (lp.round(x.detach(), "e4m3fn") != 0).double() @ (
        lp.round(w, "e3m4") != 0
    ).double().T
    assert layers.statistics("", "output").additions == terms.sum()
    assert layers.statistics("", "grad_input").additions <= 32 * 4  # a sample of 42


def test_gradients_are_those_of_a_call_and_not_of_all_uses_of_its_input():
    """x also goes around the layer, so its own gradient is another one."""
    layer = torch.nn.Linear(3, 3, bias=False)
    x = torch.randn(4, 3, requires_grad=True)
    layers = LayerMonitor(layer)
    with layers.observe():
        (layer(x) + 100 * x).sum().backward()
    found = layers.statistics("", "grad_input")
    assert found.relative_error < 1e-6
    exact = layer.weight.detach().double().sum(0).square().sum() * 4
    assert found.signal == pytest.approx(float(exact))


def test_calls_of_one_layer_add_up():
    layer = torch.nn.Linear(3, 3)
    layers = LayerMonitor(layer)
    x = torch.randn(5, 3)
    with layers.observe():
        layer(layer(layer(x))).sum().backward()
    assert layers.statistics("", "output").elements == 45
    assert layers.statistics("", "grad_input").elements == 30
    assert layers.statistics("", "grad_weight").elements == 12
    assert layers.statistics("", "grad_weight").relative_error < 1e-6


def test_emulation_by_a_context_is_measured_with_its_policy():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2))
    precision = lp.Precision(input="e4m3fn", weight="e4m3fn", accumulator="e8m7")
    policy, x = lp.Policy({"0": precision}), torch.randn(4, 6)
    around = LayerMonitor(model, precision=policy)
    context = lp.emulate(policy, model, strict=True)
    with around.observe(), context:
        model(x).sum().backward()
    calls = {row.operation: row.calls for row in context.coverage()}
    assert calls["linear"] in (1, 2)  # the shadow's are not met
    lp.nn.convert_(model, policy)
    inside = LayerMonitor(model)
    with inside.observe():
        model(x).sum().backward()
    for a, b in zip(around.ledger, inside.ledger, strict=True):
        del a["kind"], b["kind"]  # Linear of torch and of lowprec
        assert a == b
    assert around.statistics("0", "weight").noise > 0
    assert around.statistics("1", "weight").noise == 0


def test_a_context_is_measured_without_being_told_its_policy():
    """Backward runs outside of the context, where modules have no precision."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh())
    layers = LayerMonitor(model)
    with layers.observe():
        with lp.emulate(lp.Policy({"0": PRECISION}), model):
            loss = model(torch.randn(4, 6)).sum()
        loss.backward()
    assert layers.format("0", "grad_output") == "e5m2"
    assert layers.format("0", "grad_weight") == "e8m7"
    assert layers.statistics("0", "grad_weight").additions > 0


def test_block_formats_are_measured_along_the_sums():
    torch.manual_seed(0)
    precision = lp.Precision(
        input="mxfp8_e4m3",
        weight="mxfp4",
        grad_output="mxfp8_e5m2",
        accumulator="e8m7",
    )
    linear = torch.nn.Linear(64, 40, bias=False)
    conv = torch.nn.Conv2d(8, 4, 3, groups=2)
    model = lp.nn.convert_(torch.nn.ModuleList([linear, conv]), precision)
    layers = LayerMonitor(model)
    x, image = torch.randn(6, 64), torch.randn(2, 8, 5, 5)
    with layers.observe():
        (linear(x).square().sum() + conv(image).sum()).backward()
    w = linear.weight.detach()
    rounded = image.clone()
    for part in (slice(0, 4), slice(4, 8)):
        rounded[:, part] = lp.round(image[:, part], "mxfp8_e4m3", axis=1)
    for name, role, actual, exact in (
        ("0", "input", lp.round(x, "mxfp8_e4m3"), x),
        ("0", "weight", lp.round(w, "mxfp4"), w),
        ("1", "input", rounded, image),
    ):
        wanted, found = by_hand(actual, exact, None), layers.statistics(name, role)
        assert found.noise == wanted.noise > 0
        assert found.underflow == wanted.underflow
        assert math.isnan(found.max_ulps)  # a value has no unit of its own
    assert layers.format("0", "input") == "mxfp8_e4m3"
    assert layers.statistics("0", "output").additions > 0
    assert layers.statistics("1", "output").additions == 0


def test_a_layer_without_products_rounds_its_results_to_elementwise():
    model = torch.nn.Sequential(torch.nn.LayerNorm(8))
    precision = lp.Precision(elementwise="bfloat16", weight="e4m3fn", input="e5m2")
    layers = LayerMonitor(model, precision=precision)
    with layers.observe():
        model(torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert layers.format("0", "output") == "bfloat16"
    assert layers.format("0", "grad_input") == "bfloat16"
    assert layers.format("0", "weight") == "e4m3fn"
    assert layers.format("0", "input") == "binary32"
    assert layers.statistics("0", "grad_output").relative_error == 0


def test_records_say_step_layer_kind_role_and_format():
    layer = make(Residual)
    layers = LayerMonitor(layer, modules=["stem", "he*"])
    for _ in range(2):
        with layers.observe():
            layer(torch.randn(2, 2, 4, 4))
    with layers.observe(7):
        layer(torch.randn(2, 2, 4, 4))
    assert sorted(set(layers.ledger["step"])) == [0, 1, 7]
    record = layers.ledger[0]
    assert list(record)[:5] == ["step", "module", "kind", "role", "format"]
    assert (record["module"], record["role"]) == ("stem", "input")
    assert set(layers.ledger["module"]) == {"stem", "head"}
    assert set(layers.ledger["role"]) == {"input", "weight", "output"}
    total = layers.statistics("stem", "output")
    mine = [r for r in layers.ledger if (r["module"], r["role"]) == ("stem", "output")]
    assert total.swamped == sum(r["swamped"] for r in mine)
    assert total.elements == sum(r["elements"] for r in mine)


def test_nothing_of_a_step_is_kept_alive():
    model = make(Residual)
    layers = LayerMonitor(model)
    x = torch.randn(2, 2, 4, 4)
    seen = []
    hook = model.head.register_forward_hook(
        lambda _, args, y: seen.append((weakref.ref(args[0]), weakref.ref(y)))
    )
    with layers.observe():
        loss = model(x).sum()
        loss.backward()
    hook.remove()
    del loss
    gc.collect()
    assert [one() for pair in seen for one in pair] == [None, None]
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())


def test_what_is_kept_does_not_grow_with_steps():
    model = make(Residual)
    layers = LayerMonitor(model)
    counts = []
    for _ in range(6):
        with layers.observe():
            model(torch.randn(2, 2, 4, 4)).sum().backward()
        gc.collect()
        kinds = map(type, gc.get_objects())
        counts.append(sum(issubclass(kind, torch.Tensor) for kind in kinds))
    assert counts[-1] <= counts[1]
    histogram = layers.statistics("stem", "grad_output").exponents
    assert len(histogram) < 60
    assert histogram.total() <= 6 * 2 * 4 * 16


def test_compiled_and_checkpointed_models_are_measured_like_others():
    x = torch.randn(4, 6, requires_grad=True)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2))
    compiled = torch.compile(model, backend="eager")
    variants = {
        "plain": model,
        "compiled": compiled,
        "checkpointed": lambda x: checkpoint(model, x, use_reentrant=False),
    }
    found = {}
    for name, function in variants.items():
        layers = LayerMonitor(model)
        with layers.observe():
            function(x).square().sum().backward()
        found[name] = {key: layers.statistics(*key) for key in layers.measured}
    assert found["compiled"] == found["plain"]
    assert found["checkpointed"].keys() == found["plain"].keys()
    for key, plain in found["plain"].items():
        again = found["checkpointed"][key]
        # The last layer's second forward is cut short.
        times = 2 if key[1] in ("input", "weight", "output") and key[0] == "0" else 1
        assert again.elements == times * plain.elements
        assert again.relative_error == pytest.approx(plain.relative_error)


def test_a_failed_step_leaves_no_record_and_the_next_one_is_right():
    model = make(Residual)
    layers = LayerMonitor(model)
    with pytest.raises(ValueError, match="cannot convolve"), layers.observe():
        model(torch.randn(2, 9, 4, 4))
    assert len(layers.ledger) == 0
    with layers.observe():
        model(torch.randn(2, 2, 4, 4)).sum().backward()
    assert layers.statistics("head", "grad_weight").elements == 3 * 64 + 3


def test_a_backward_pass_belongs_to_the_step_of_its_forward_pass():
    model = make(Residual)
    layers = LayerMonitor(model)
    with layers.observe():
        late = model(torch.randn(2, 2, 4, 4))
    records = len(layers.ledger)
    with layers.observe():
        late.sum().backward()
    assert len(layers.ledger) == records
    outside = model(torch.randn(2, 2, 4, 4))
    with layers.observe():
        outside.sum().backward()
    assert len(layers.ledger) == records


def test_half_precision_models_are_measured_in_their_own_format():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.GELU()).bfloat16()
    layers = LayerMonitor(model)
    with layers.observe():
        model(torch.randn(4, 6, dtype=torch.bfloat16)).sum().backward()
    assert layers.format("0", "output") == "bfloat16"
    assert 0 < layers.statistics("1", "output").max_ulps < 1.5


def test_arguments_are_checked():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="sample must be a whole number >= 1, got 0"):
        LayerMonitor(layer, sample=0)
    with pytest.raises(ValueError, match=r"sums must be a whole number >= 0, got 1\.5"):
        LayerMonitor(layer, sums=1.5)
    layers = LayerMonitor(layer)
    with pytest.raises(KeyError, match="nothing was measured for 'output' of ''"):
        layers.statistics("", "output")
    with (
        layers.observe(),
        pytest.raises(RuntimeError, match="observes a step already"),
        layers.observe(),
    ):
        pass


def stepped(layers, steps=3):
    """Train with a RoundoffMonitor, with or without its layers."""
    model = make(Residual)
    optimizer = lp.optim.SGD(model.parameters(), lr=0.1, param_format="bfloat16")
    monitor = RoundoffMonitor(model, optimizer, layers=layers)
    data = torch.Generator().manual_seed(6)
    for _ in range(steps):
        x = INPUTS[Residual](data)
        optimizer.zero_grad()
        y = torch.randint(3, (5,), generator=data)
        monitor.backward(
            lambda m, cast, x=x, y=y: functional.cross_entropy(m(cast(x)), y)
        )
        optimizer.step()
    return model, monitor


def test_a_roundoff_monitor_measures_layers_and_their_updates():
    bare, without = stepped(False)
    watched, monitor = stepped(True)
    assert without.layers is None
    for a, b in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
    assert list(without.ledger) == list(monitor.ledger)

    layers = monitor.layers
    assert sorted(set(layers.ledger["step"])) == [0, 1, 2]
    updates = [r for r in layers.ledger if r["role"] == "update"]
    assert {r["module"] for r in updates} == {"stem", "norm", "body.0", "head"}
    count = sum(p.numel() for p in watched.parameters())
    for step, record in enumerate(monitor.ledger):
        lost = sum(r["underflow"] for r in updates if r["step"] == step)
        # A weight whose exact move is zero stands still, too, and loses nothing.
        assert lost <= record["stagnation"] * count
    noise = sum(layers.statistics(n, "update").noise for n, r in layers.measured
                if r == "update")  # fmt: skip
    signal = sum(layers.statistics(n, "update").signal for n, r in layers.measured
                 if r == "update")  # fmt: skip
    assert noise == pytest.approx((monitor.ledger["s_norm"] ** 2).sum())
    assert signal == pytest.approx((monitor.ledger["update_norm"] ** 2).sum())


def test_layers_of_a_roundoff_monitor_may_be_chosen():
    model = make(Residual)
    layers = LayerMonitor(model, modules="head", sums=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = RoundoffMonitor(model, optimizer, layers=layers, every=2)
    assert monitor.layers is layers
    for _ in range(3):
        x = torch.randn(2, 2, 4, 4)
        monitor.backward(lambda m, cast, x=x: m(cast(x)).sum())
        optimizer.step()
    assert set(layers.ledger["step"]) == {0, 2}
    products = {r["module"] for r in layers.ledger if r["role"] != "update"}
    assert products == {"head"}
    assert layers.ledger["additions"].sum() == 0
