"""Normalization: against one formula in float64 whose sums are lowprec.matmul's."""

import pytest
import torch
from gradients import assert_all_close, assert_all_equal, incoming, sums
from layer_roundings import ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.precision import Precision
from lowprec.testing import assert_bit_equal

torch_functional = torch.nn.functional
LOW = Precision(
    elementwise="e6m4",
    weight="e5m2",
    grad_weight="e8m3",
    accumulator=Accumulator("e6m6", product="e3m1"),
    grad_accumulator=Accumulator("e6m7", order="blocked", block_size=3),
)
WIDE = Precision(elementwise="e11m50", accumulator="e11m50")
LAYER, GROUP, CHANNELS = (2, 3, 4), (2, 6, 3), (3, 4, 2, 2)


# Name: function name, input, shape of the parameters, their dimensions in the input,
# what makes rows of elements that share statistics.
CASES = {
    "layer": ("layer_norm", LAYER, (4,), (4,), lambda x: x.reshape(6, 4)),
    "layer 2d": ("layer_norm", LAYER, (3, 4), (3, 4), lambda x: x.reshape(2, 12)),
    "rms": ("rms_norm", LAYER, (4,), (4,), lambda x: x.reshape(6, 4)),
    "group": ("group_norm", GROUP, (6,), (6, 1), lambda x: x.reshape(4, 9)),
    "batch": (
        "batch_norm",
        CHANNELS,
        (4,),
        (4, 1, 1),
        lambda x: x.movedim(1, 0).reshape(4, 12),
    ),
    "batch of vectors": ("batch_norm", (5, 3), (3,), (3,), lambda x: x.mT),
    "instance": (
        "instance_norm",
        CHANNELS,
        (4,),
        (4, 1, 1),
        lambda x: x.reshape(12, 4),
    ),
}


def run(case, functions, x, weight, bias, **options):
    """Call ours or torch's function on the parameters that it has."""
    name, _, shape, *_ = CASES[case]
    function = getattr(functions, name)
    if name == "layer_norm":
        return function(x, shape, weight, bias, 1e-3, **options)
    if name == "rms_norm":
        return function(x, shape, weight, 1e-3, **options)
    if name == "group_norm":
        return function(x, 2, weight, bias, 1e-3, **options)
    return function(x, None, None, weight, bias, True, 0.1, 1e-3, **options)


def leaves_of(case, dtype=torch.float32):
    name, shape, parameter, *_ = CASES[case]
    leaves = [leaf(*shape, dtype=dtype), leaf(*parameter, dtype=dtype)]
    return leaves if name == "rms_norm" else [*leaves, leaf(*parameter, dtype=dtype)]


def everything(case, functions, leaves, **options):
    x, weight, *bias = leaves
    y = run(case, functions, x, weight, *bias or [None], **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, incoming([y]))]


def expected(case, x, weight, bias, precision):
    name, _, shape, spread, to_rows = CASES[case]
    centre = name != "rms_norm"
    forward, backward = precision.accumulator, precision.backward_accumulator
    index = to_rows(torch.arange(x.numel()).reshape(x.shape))  # back from rows

    def from_rows(rows):
        result = torch.empty(x.numel(), dtype=torch.float64)
        result[index.reshape(-1)] = rows.reshape(-1)
        return result.reshape(x.shape)

    rows = to_rows(x.double())
    n = rows.shape[1]
    c = rows - sums(rows, forward) / n if centre else rows
    root = (sums(c * c, forward) / n + 1e-3).sqrt()
    z = from_rows(c * (1 / root))
    w = lp.round(weight, precision.weight).double().reshape(spread)
    y = z * w + (0 if bias is None else bias.double().reshape(spread))
    y = lp.round(y, precision.elementwise).to(x.dtype)

    (g,) = incoming([y])
    g = lp.round(g, precision.elementwise).double()
    dz = to_rows(g * w)
    dc = dz / root + sums(dz * c, backward) * (-1 / root**2) / (2 * root) / n * 2 * c
    dx = from_rows(dc + sums(-dc, backward) / n if centre else dc)

    owner = torch.arange(weight.numel()).reshape(spread).expand(x.shape).reshape(-1)

    def gradient(terms):
        columns = terms.reshape(-1)
        rows = torch.stack([columns[owner == i] for i in range(weight.numel())])
        total = sums(rows, backward).reshape(shape)
        return lp.round(total, precision.grad_weight).to(x.dtype)

    result = [y, lp.round(dx, precision.elementwise).to(x.dtype), gradient(g * z)]
    return result if bias is None else [*result, gradient(g)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_it_is_its_formula(case, dtype):
    leaves = leaves_of(case, dtype)
    ours = everything(case, functional, leaves, precision=LOW)
    x, weight, *bias = [x.detach() for x in leaves]
    assert_all_equal(ours, expected(case, x, weight, *bias or [None], LOW))


@pytest.mark.parametrize("case", CASES)
def test_wide_formats_are_nearly_float64(case):
    leaves = leaves_of(case, torch.float64)
    ours = everything(case, functional, leaves, precision=WIDE)
    theirs = everything(case, torch_functional, leaves)
    assert_all_close(ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_without_elementwise_it_is_torchs(case):
    leaves = leaves_of(case)
    precision = Precision(weight="e5m2", accumulator="e6m4", grad_weight="e5m2")
    ours = everything(case, functional, leaves, precision=precision)
    assert_all_equal(ours, everything(case, torch_functional, leaves))


@pytest.mark.parametrize("case", CASES)
def test_stochastic_results_are_on_the_grid_and_reproduce(case):
    stochastic = Rounding("e6m4", "stochastic")
    precision = Precision(
        elementwise=stochastic,
        weight=stochastic,
        grad_weight=stochastic,
        accumulator=stochastic,
    )
    leaves = leaves_of(case)
    first = everything(case, functional, leaves, precision=precision, seed=3)
    for x in first:
        assert_bit_equal(lp.round(x, "e6m4"), x)
    again = everything(case, functional, leaves, precision=precision, seed=3)
    assert_all_equal(first, again)
    other = everything(case, functional, leaves, precision=precision, seed=4)
    assert not torch.equal(first[0], other[0])


def test_parameters_are_optional():
    for case in CASES:
        x = leaves_of(case)[0]
        one, zero = torch.ones(CASES[case][2]), torch.zeros(CASES[case][2])
        ours = run(case, functional, x, None, None, precision=LOW)
        assert_bit_equal(
            ours.detach(), run(case, functional, x, one, zero, precision=LOW).detach()
        )


def statistics(rows, accumulator):
    """Mean and unbiased variance of rows."""
    n = rows.shape[1]
    mean = sums(rows, accumulator) / n
    c = rows - mean
    return mean[:, 0], (sums(c * c, accumulator) / n)[:, 0] * (n / (n - 1))


def test_running_statistics_of_batches():
    x, mean, variance = torch.randn(CHANNELS), torch.randn(4), torch.rand(4)
    wanted = []
    rows = x.double().movedim(1, 0).reshape(4, -1)
    for old, new in zip(
        (mean, variance), statistics(rows, LOW.accumulator), strict=True
    ):
        value = (1 - 0.3) * old.double() + 0.3 * new
        wanted.append(lp.round(value, "e6m4").float())
    functional.batch_norm(x, mean, variance, None, None, True, 0.3, precision=LOW)
    assert_all_equal([mean, variance], wanted)


def test_running_statistics_of_instances():
    x, mean, variance = torch.randn(CHANNELS), torch.randn(4), torch.rand(4)
    wanted = []
    rows = x.double().reshape(12, -1)
    for old, new in zip(
        (mean, variance), statistics(rows, LOW.accumulator), strict=True
    ):
        average = sums(new.reshape(3, 4).mT, LOW.accumulator)[:, 0] / 3
        value = (1 - 0.3) * old.double() + 0.3 * average
        wanted.append(lp.round(value, "e6m4").float())
    functional.instance_norm(x, mean, variance, momentum=0.3, precision=LOW)
    assert_all_equal([mean, variance], wanted)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_running_statistics_are_nearly_torchs(name):
    x = torch.randn(CHANNELS, dtype=torch.float64)
    ours = [torch.ones(4, dtype=torch.float64) for _ in range(2)]
    theirs = [torch.ones(4, dtype=torch.float64) for _ in range(2)]
    ours_is = getattr(functional, name)(x, *ours, None, None, True, 0.2, precision=WIDE)
    theirs_is = getattr(torch_functional, name)(x, *theirs, None, None, True, 0.2)
    for actual, wanted in zip((ours_is, *ours), (theirs_is, *theirs), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_running_statistics_are_used_in_evaluation(name):
    x, w, b = leaf(*CHANNELS), leaf(4), leaf(4)
    mean, variance = torch.randn(4), torch.rand(4)
    kept = mean.clone(), variance.clone()
    y = getattr(functional, name)(x, mean, variance, w, b, False, precision=LOW)
    assert_all_equal((mean, variance), kept)
    with torch.no_grad():
        spread = [p.double().reshape(4, 1, 1) for p in (mean, variance, b)]
        factor = lp.round(w, "e5m2").double().reshape(4, 1, 1)
        scale = 1 / (spread[1] + 1e-5).sqrt()
        value = (x.double() - spread[0]) * scale * factor + spread[2]
        assert_bit_equal(y, lp.round(value, "e6m4").float())
    g = torch.randn_like(y)
    dx, db = torch.autograd.grad(y, (x, b), g)
    g = lp.round(g, "e6m4").double()
    assert_bit_equal(dx, lp.round(g * factor * scale, "e6m4").float())
    total = sums(g.movedim(1, 0).reshape(4, -1), LOW.grad_accumulator)[:, 0]
    assert_bit_equal(db, lp.round(total, "e8m3").float())


X = torch.ones(2, 4, 3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda p: functional.layer_norm(X, [4], precision=p), ValueError, "last size"),
        (
            lambda p: functional.layer_norm(X, [3], torch.ones(4), precision=p),
            ValueError,
            r"weight must have shape \(3,\)",
        ),
        (
            lambda p: functional.layer_norm(
                X, [3], None, torch.ones(3).double(), precision=p
            ),
            TypeError,
            "bias and input must have the same dtype",
        ),
        (lambda p: functional.rms_norm(X.half(), [3], precision=p), TypeError, "half"),
        (lambda p: functional.group_norm(X, 3, precision=p), ValueError, "multiple of"),
        (
            lambda p: functional.batch_norm(X, None, None, precision=p),
            ValueError,
            "running_mean and running_var are needed",
        ),
        (
            lambda p: functional.batch_norm(
                X[:1, :, 0], None, None, training=True, precision=p
            ),
            ValueError,
            "more than one element per channel",
        ),
        (
            lambda p: functional.instance_norm(X[0, 0], precision=p),
            ValueError,
            r"must be \[N, C, \*\]",
        ),
    ],
)
def test_refusals(call, kind, message):
    with pytest.raises(kind, match=message):
        call(LOW)


@ignore_dynamo
@pytest.mark.parametrize("case", ["layer", "batch"])
def test_compiles_without_graph_breaks(case):
    leaves = leaves_of(case)

    def compiled(*leaves):
        return run(case, functional, *leaves, precision=LOW)

    torch._dynamo.reset()
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    y = graph(*leaves)
    expected = compiled(*leaves)
    assert_bit_equal(y.detach(), expected.detach())
    assert_all_equal(
        torch.autograd.grad(y.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
    )


@pytest.mark.parametrize("case", ["layer", "rms", "group", "instance"])
def test_per_sample_gradients_by_torch_func(case):
    x, *parameters = (x.detach() for x in leaves_of(case))
    weights = torch.randn(x.shape)

    def loss(x, *parameters):
        y = run(
            case,
            functional,
            x,
            *parameters,
            *[None][len(parameters) - 1 :],
            precision=LOW,
        )
        return (y * weights).sum()

    gradient = torch.func.grad(loss, argnums=tuple(range(1 + len(parameters))))
    several = torch.stack([x, 2 * x - 1])
    actual = torch.func.vmap(gradient, in_dims=(0, *[None] * len(parameters)))(
        several, *parameters
    )
    for i, one in enumerate(several):
        assert_all_equal([part[i] for part in actual], gradient(one, *parameters))
