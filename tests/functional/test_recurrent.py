"""Recurrent networks: torch judges the meaning, compositions judge the roundings."""

import pytest
import torch
from gradients import assert_all_close, assert_all_equal, incoming
from layer_roundings import ROUNDINGS, STOCHASTIC, ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.functional._wide import wide_for
from lowprec.precision import Precision
from lowprec.testing import assert_bit_equal

LOW = Precision(
    elementwise="e7m5",
    accumulator=Accumulator("e7m6", product="e6m4"),
    grad_accumulator=Accumulator("e7m7", order="blocked", block_size=2),
    **ROUNDINGS,
)
RANDOM = Precision(
    elementwise=Rounding("e7m5", "stochastic"),
    accumulator=Rounding("e7m6", "stochastic"),
    **STOCHASTIC,
)
WIDE = Precision(elementwise="e11m50", accumulator="e11m50")
NETWORKS = {
    "lstm": (functional.lstm, torch._VF.lstm, 4),
    "gru": (functional.gru, torch._VF.gru, 3),
    "rnn_tanh": (functional.rnn_tanh, torch._VF.rnn_tanh, 1),
    "rnn_relu": (functional.rnn_relu, torch._VF.rnn_relu, 1),
}
T, N, WIDTH, H = 4, 3, 2, 3


def weights_of(name, layers=1, directions=1, biases=True, projected=0, **options):
    """Weights of every layer and direction, in torch's order."""
    gates, out = NETWORKS[name][2], projected or H
    result = []
    for layer in range(layers):
        inputs = WIDTH if layer == 0 else directions * out
        for _ in range(directions):
            result += [
                leaf(gates * H, inputs, **options),
                leaf(gates * H, out, **options),
            ]
            if biases:
                result += [leaf(gates * H, **options) for _ in range(2)]
            if projected:
                result.append(leaf(projected, H, **options))
    return result


def states_of(name, layers=1, directions=1, projected=0, **options):
    hidden = leaf(layers * directions, N, projected or H, **options)
    if name != "lstm":
        return [hidden]
    return [hidden, leaf(layers * directions, N, H, **options)]


def hx(states):
    return tuple(states) if len(states) == 2 else states[0]


def everything(function, arguments, leaves, **keywords):
    results = function(*arguments, **keywords)
    gs = incoming(results)
    return [*(x.detach() for x in results), *torch.autograd.grad(results, leaves, gs)]


OPTIONS = {
    "one layer": {},
    "no biases": {"biases": False},
    "two layers": {"layers": 2},
    "both directions": {"directions": 2},
    "everything": {"layers": 2, "directions": 2},
}
LSTM_OPTIONS = {
    "projected": {"projected": 2},
    "projected both ways": {"projected": 2, "layers": 2, "directions": 2},
}
CASES = [
    (name, options)
    for name in NETWORKS
    for options in (OPTIONS | LSTM_OPTIONS if name == "lstm" else OPTIONS).values()
]


def call(name, options, form, dtype):
    """The arguments of a call, and its leaves."""
    states_options = {a: b for a, b in options.items() if a != "biases"}
    weights = weights_of(name, dtype=dtype, **options)
    states = states_of(name, dtype=dtype, **states_options)
    x = torch.randn(T, N, WIDTH, dtype=dtype)
    rest = [
        hx(states),
        weights,
        options.get("biases", True),
        options.get("layers", 1),
        0.0,
        True,
        options.get("directions", 1) == 2,
    ]
    if form == "packed":
        pack = torch.nn.utils.rnn.pack_padded_sequence(x, [4, 3, 1])
        data = pack.data.requires_grad_()
        return [data, pack.batch_sizes, *rest], [data, *states, *weights]
    x = x.transpose(0, 1).contiguous() if form == "batch first" else x
    x.requires_grad_()
    return [x, *rest, form == "batch first"], [x, *states, *weights]


@pytest.mark.parametrize("form", ["plain", "batch first", "packed"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_wide_formats_are_nearly_float64(name, options, form):
    ours, torchs, _ = NETWORKS[name]
    arguments, leaves = call(name, options, form, torch.float64)
    actual = everything(ours, arguments, leaves, precision=WIDE)
    wanted = everything(torchs, arguments, leaves)
    assert_all_close(actual, wanted)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@pytest.mark.parametrize("form", ["plain", "packed"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_identity_precision_is_torchs(name, options, form):
    ours, torchs, _ = NETWORKS[name]
    arguments, leaves = call(name, options, form, torch.float32)
    assert_all_equal(
        everything(ours, arguments, leaves, precision=Precision()),
        everything(torchs, arguments, leaves),
    )


def cell(name, wide, own, recurrent, states):
    """The formulas of a step in float64, by torch's autograd."""
    a, u = wide.enter(own), wide.enter(recurrent)
    if name == "lstm":
        i, f, g, o = (a + u).chunk(4, -1)
        c = f.sigmoid() * wide.enter(states[1]) + i.sigmoid() * g.tanh()
        return wide.leave(o.sigmoid() * c.tanh()), wide.leave(c)
    if name == "gru":
        (ar, az, an), (ur, uz, un) = a.chunk(3, -1), u.chunk(3, -1)
        z = (az + uz).sigmoid()
        n = (an + (ar + ur).sigmoid() * un).tanh()
        return (wide.leave((1 - z) * n + z * wide.enter(states[0])),)
    return (wide.leave(getattr(a + u, name.removeprefix("rnn_"))()),)


def composed(name, x, states, weights, projection, precision):
    """A layer step by step; results, and what the gradients of weights sum."""
    own_weight, weight, own_bias, bias = weights
    states = [state[0] for state in states]
    own = functional.linear(x, own_weight, own_bias, precision=precision)
    results, collected = [], []
    for t in range(T):
        w = weight.detach()
        u = functional.linear(states[0], w, bias.detach(), precision=precision)
        u.retain_grad() if u.requires_grad else None
        before = states[0]
        wide = wide_for(precision, x.dtype, None, None)
        states = list(cell(name, wide, own[t], u, states))
        if projection is not None:
            full = states[0]
            states[0] = functional.linear(
                full, projection.detach(), precision=precision
            )
            states[0].retain_grad()
            collected.append((before, u, full, states[0]))
        else:
            collected.append((before, u))
        results.append(states[0])
    return torch.stack(results), states, collected


def weight_gradient(pairs, precision, biased):
    """One product over all steps."""
    g = torch.cat([lp.round(y.grad, precision.grad_output) for _, y in pairs])
    x = torch.cat([lp.round(x.detach(), precision.input) for x, _ in pairs])
    backward = precision.backward_accumulator
    dw = lp.matmul(g.mT, x, accumulator=backward, output=precision.grad_weight)
    if not biased:
        return [dw]
    plain = backward.replace(product="exact")
    ones = torch.ones(1, len(g))
    db = lp.matmul(ones, g, accumulator=plain, output=precision.grad_weight)[0]
    return [dw, db]


@pytest.mark.parametrize(
    ("name", "projected"), [*((n, 0) for n in NETWORKS), ("lstm", 2)]
)
def test_it_is_its_steps(name, projected):
    x = leaf(T, N, WIDTH)
    weights = weights_of(name, projected=projected)
    states = states_of(name, projected=projected)
    arguments = (x, hx(states), weights, True, 1, 0.0, True, False, False)
    y, *finals = NETWORKS[name][0](*arguments, precision=LOW)
    gs = incoming((y, *finals))
    leaves = [x, *states, *weights]
    gradients = torch.autograd.grad((y, *finals), leaves, gs)
    projection = weights[4] if projected else None
    wanted, after, collected = composed(name, x, states, weights[:4], projection, LOW)
    assert_all_equal([y, *(z[0] for z in finals)], [wanted, *after])
    torch.autograd.backward((wanted, *after), [gs[0], *(g[0] for g in gs[1:])])
    d_weight, d_bias = weight_gradient([c[:2] for c in collected], LOW, True)
    expected = [
        x.grad,
        *(lp.round(state.grad, LOW.elementwise) for state in states),
        weights[0].grad,
        d_weight,
        weights[2].grad,
        d_bias,
    ]
    if projected:
        expected += weight_gradient([c[2:] for c in collected], LOW, False)
    assert_all_equal(gradients, expected)


@pytest.mark.parametrize("precision", [LOW, RANDOM], ids=["rne", "sr"])
@pytest.mark.parametrize("name", NETWORKS)
def test_everything_lands_on_the_grids(name, precision):
    arguments, leaves = call(name, {"directions": 2}, "packed", torch.float32)
    results = everything(NETWORKS[name][0], arguments, leaves, precision=precision)
    fields = ["elementwise"] * (3 if name == "lstm" else 2)
    fields += ["grad_input", *["elementwise"] * (len(fields) - 1)]
    fields += ["grad_weight"] * 8
    for x, field in zip(results, fields, strict=True):
        if field == "grad_input":  # both directions use the input
            continue
        target = getattr(precision, field)
        assert_bit_equal(lp.round(x, target, seed=1), x)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sequence_is_the_same_alone_and_packed(name):
    weights, states = weights_of(name), states_of(name)
    x = torch.randn(T, N, WIDTH)
    lengths = [4, 3, 1]
    pack = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    rest = (weights, True, 1, 0.0, True, False)
    ours = NETWORKS[name][0]
    y, *finals = ours(pack.data, pack.batch_sizes, hx(states), *rest, precision=LOW)
    packed = torch.nn.utils.rnn.PackedSequence(y, pack.batch_sizes)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(packed)
    for i, length in enumerate(lengths):
        own = hx([state[:, i : i + 1] for state in states])
        alone, *alone_finals = ours(
            x[:length, i : i + 1], own, *rest, False, precision=LOW
        )
        assert_bit_equal(y[:length, i].detach(), alone[:, 0].detach())
        assert_all_equal([f[:, i] for f in finals], [f[:, 0] for f in alone_finals])


@pytest.mark.parametrize("name", NETWORKS)
def test_second_direction_is_the_sequence_backwards(name):
    weights, states = weights_of(name, directions=2), states_of(name, directions=2)
    x = torch.randn(T, N, WIDTH)
    ours = NETWORKS[name][0]
    y, *finals = ours(
        x, hx(states), weights, True, 1, 0.0, True, True, False, precision=LOW
    )
    back, *back_finals = ours(
        x.flip(0),
        hx([state[1:] for state in states]),
        weights[4:],
        True,
        1,
        0.0,
        True,
        False,
        False,
        precision=LOW,
    )
    assert_bit_equal(y[..., H:].detach(), back.flip(0).detach())
    assert_all_equal([f[1:] for f in finals], back_finals)


def test_seeds_reproduce_and_steps_differ():
    arguments, leaves = call("gru", {"layers": 2}, "plain", torch.float32)
    first = everything(functional.gru, arguments, leaves, precision=RANDOM, seed=3)
    again = everything(functional.gru, arguments, leaves, precision=RANDOM, seed=3)
    assert_all_equal(first, again)
    other = everything(functional.gru, arguments, leaves, precision=RANDOM, seed=4)
    assert not torch.equal(first[0], other[0])
    # The same numbers at every step: words that repeated would repeat the results.
    x, h = torch.full((64, 1, WIDTH), 0.3), torch.zeros(1, 1, H)
    weights = [torch.full((H, WIDTH), 0.1), torch.zeros(H, H)]
    y, _ = functional.rnn_tanh(
        x, h, weights, False, 1, 0.0, True, False, False, precision=RANDOM, seed=3
    )
    assert len(y.unique()) > 1


def test_dropout_between_layers_has_torchs_zeros():
    weights, states = weights_of("gru", layers=2), states_of("gru", layers=2)
    x = torch.randn(T, N, WIDTH)

    def run(train):
        arguments = (x, hx(states), weights, True, 2, 0.5, train, False, False)
        return functional.gru(*arguments, precision=LOW)[0]

    def one(x, i, w):
        arguments = (x, states[0][i : i + 1], w, True, 1, 0.0, True, False, False)
        return functional.gru(*arguments, precision=LOW)[0]

    first = one(x, 0, weights[:4])
    assert_bit_equal(run(False).detach(), one(first, 1, weights[4:]).detach())
    torch.manual_seed(3)
    actual = run(True)
    torch.manual_seed(3)
    kept = torch.dropout(torch.ones(T * N, H), 0.5, True).reshape(first.shape) != 0
    doubled = lp.round(torch.where(kept, 2 * first, 0.0), LOW.elementwise)
    assert_bit_equal(actual.detach(), one(doubled, 1, weights[4:]).detach())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("biases", [True, False])
def test_cells_are_single_steps(name, biases):
    step = getattr(functional, f"{name}_cell")
    torchs = getattr(torch._VF, f"{name}_cell")
    weights = weights_of(name, biases=biases)
    states = [state[0].detach().requires_grad_() for state in states_of(name)]
    x, leaves = leaf(N, WIDTH), [*states, *weights]

    def listed(result):
        return list(result) if name == "lstm" else [result]

    actual = listed(step(x, hx(states), *weights, precision=LOW))
    arguments = (x[None], hx([s[None] for s in states]), weights, biases)
    _, *wanted = NETWORKS[name][0](
        *arguments, 1, 0.0, True, False, False, precision=LOW
    )
    assert_all_equal(actual, [z[0] for z in wanted])
    gs = [torch.randn(z.shape) for z in actual]
    assert_all_equal(
        torch.autograd.grad(actual, [x, *leaves], gs),
        torch.autograd.grad(wanted, [x, *leaves], [g[None] for g in gs]),
    )
    alone = listed(step(x[0], hx([s[0] for s in states]), *weights, precision=LOW))
    assert_all_equal(alone, [z[0] for z in actual])
    assert_all_equal(
        listed(step(x, hx(states), *weights, precision=Precision())),
        listed(torchs(x, hx(states), *weights)),
    )


def test_without_elementwise_the_products_are_emulated():
    precision = Precision(accumulator="e7m6", grad_accumulator="e7m9", **ROUNDINGS)
    x, w, b = torch.randn(N, WIDTH), torch.randn(H, WIDTH), torch.randn(H)
    h, v, c = torch.randn(N, H), torch.randn(H, H), torch.randn(H)
    actual = functional.rnn_tanh_cell(x, h, w, v, b, c, precision=precision)
    own = functional.linear(x, w, b, precision=precision)
    recurrent = functional.linear(h, v, c, precision=precision)
    assert_bit_equal(actual, (own + recurrent).tanh())


@pytest.mark.slow
@ignore_dynamo
def test_compiles_without_graph_breaks():
    _, leaves = call("lstm", {}, "plain", torch.float32)

    def run(x, h, c, *weights):
        rest = (list(weights), True, 1, 0.0, True, False, False)
        return functional.lstm(x[:2], (h, c), *rest, precision=LOW)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_all_equal(
        everything(compiled, leaves, leaves), everything(run, leaves, leaves)
    )


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_per_sample_gradients_by_torch_func(name):
    weights = [w.detach() for w in weights_of(name)]
    states = [s.detach() for s in states_of(name)]
    several = torch.randn(2, T, N, WIDTH)
    scale = torch.randn(T, N, H)

    def loss(x, *weights):
        arguments = (x, hx(states), list(weights), True, 1, 0.0, True, False, False)
        return (NETWORKS[name][0](*arguments, precision=LOW)[0] * scale).sum()

    gradient = torch.func.grad(loss, argnums=tuple(range(5)))
    actual = torch.func.vmap(gradient, in_dims=(0, *[None] * 4))(several, *weights)
    for i, x in enumerate(several):
        assert_all_equal([part[i] for part in actual], gradient(x, *weights))


X, STATE = torch.ones(T, N, WIDTH), torch.zeros(1, N, H)
GRU_WEIGHTS = [torch.ones(9, WIDTH), torch.ones(9, H)]
REST = (False, 1, 0.0, True, False, False)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((X.half(), STATE, GRU_WEIGHTS, *REST), TypeError, "half carrier"),
        ((X, STATE.double(), GRU_WEIGHTS, *REST), TypeError, "state and weight"),
        ((X, STATE, GRU_WEIGHTS), TypeError, "8 more arguments"),
        ((X, STATE, GRU_WEIGHTS[:1], *REST), ValueError, "params must be 2 tensors"),
        ((X, STATE[0], GRU_WEIGHTS, *REST), ValueError, r"must be \[1, N, \*\]"),
        ((X[:0], STATE, GRU_WEIGHTS, *REST), ValueError, "at least one element"),
        ((X, STATE, GRU_WEIGHTS[::-1], *REST), ValueError, r"shapes \[\(9, 2\), \(9"),
    ],
)
def test_refusals(arguments, kind, message):
    with pytest.raises(kind, match=message):
        functional.gru(*arguments, precision=LOW)


def test_refusals_of_cells():
    with pytest.raises(ValueError, match="b_ih and b_hh must both"):
        functional.gru_cell(X[0], STATE[0], *GRU_WEIGHTS, torch.ones(9), precision=LOW)
    with pytest.raises(ValueError, match=r"must be \[N, \*\] or \[\*\]"):
        functional.gru_cell(X, STATE, *GRU_WEIGHTS, precision=LOW)


def test_formats_wider_than_the_carrier_are_refused():
    wide = Precision(elementwise="e11m50")
    with pytest.raises(ValueError, match="hold every value of elementwise"):
        functional.gru(X, STATE, GRU_WEIGHTS, *REST, precision=wide)
