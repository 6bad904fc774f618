"""Losses: float64 terms, the oracle's sums, one rounding; explicit gradients."""

import pytest
import torch
import torch.nn.functional as F
from fused_operations import (
    PRECISION,
    assert_identity,
    check_representable,
    oracle_round,
    oracle_sum,
)
from layer_roundings import ignore_dynamo, leaf

import lowprec as lp
from lowprec import Precision, functional
from lowprec.testing import assert_bit_equal

CARRIERS = [torch.float32, torch.float64]
REDUCTIONS = ["none", "sum", "mean"]


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def inputs(name, dtype):
    shape = (3, 7)
    x, t = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    if name == "binary_cross_entropy":
        x = torch.rand(shape, dtype=dtype) * 0.9 + 0.05
    if name in ("kl_div", "binary_cross_entropy", "binary_cross_entropy_with_logits"):
        t = torch.rand(shape, dtype=dtype)
    return x.requires_grad_(), t.requires_grad_()


# Keywords, terms, and the derivatives by input and target.
LOSSES = {
    "mse_loss": (
        {},
        lambda x, t: (x - t) ** 2,
        lambda x, t: 2 * (x - t),
        lambda x, t: -2 * (x - t),
    ),
    "l1_loss": (
        {},
        lambda x, t: (x - t).abs(),
        lambda x, t: (x - t).sign(),
        lambda x, t: (t - x).sign(),
    ),
    "smooth_l1_loss": (
        {"beta": 0.5},
        lambda x, t: torch.where(
            (x - t).abs() < 0.5, (x - t) ** 2, (x - t).abs() - 0.25
        ),
        lambda x, t: (2 * (x - t)).clamp(-1, 1),
        lambda x, t: (2 * (t - x)).clamp(-1, 1),
    ),
    "huber_loss": (
        {"delta": 0.5},
        lambda x, t: torch.where(
            (x - t).abs() < 0.5, (x - t) ** 2 / 2, 0.5 * ((x - t).abs() - 0.25)
        ),
        lambda x, t: (x - t).clamp(-0.5, 0.5),
        lambda x, t: (t - x).clamp(-0.5, 0.5),
    ),
    "binary_cross_entropy": (
        {},
        lambda x, t: -(t * x.log() + (1 - t) * (1 - x).log()),
        lambda x, t: (x - t) / (x * (1 - x)),
        lambda x, t: (1 - x).log() - x.log(),
    ),
    "binary_cross_entropy_with_logits": (
        {},
        lambda x, t: (1 - t) * x + (1 + (-x).exp()).log(),
        lambda x, t: sigmoid(x) - t,
        lambda x, t: -x,
    ),
    "kl_div": (
        {},
        lambda x, t: t * (t.log() - x),
        lambda x, t: -t,
        lambda x, t: t.log() + 1 - x,
    ),
}


def reduced(terms, reduction, count=None):
    if reduction == "none":
        return terms
    total = oracle_sum(terms.reshape(1, -1)).squeeze(0)
    return total / (count or terms.numel()) if reduction == "mean" else total


def factor(reduction, count):
    return 1 / count if reduction == "mean" else 1.0


@pytest.mark.parametrize("dtype", CARRIERS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_of_two_tensors(name, reduction, dtype):
    options, terms, by_input, by_target = LOSSES[name]
    x, t = inputs(name, dtype)
    loss = getattr(functional, name)
    y = loss(x, t, reduction=reduction, precision=PRECISION, **options)
    wide = x.detach().double(), t.detach().double()
    value = reduced(terms(*wide), reduction)
    assert_bit_equal(y.detach(), oracle_round(value, "e5m2").to(dtype))
    g = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (x, t), g)
    arrived = oracle_round(g, "e5m2").double() * factor(reduction, x.numel())
    for actual, slope in zip(gradients, (by_input, by_target), strict=True):
        wanted = oracle_round(arrived * slope(*wide), "e5m2")
        assert_bit_equal(actual, wanted.to(dtype))


@pytest.mark.filterwarnings("ignore:.*divides the total loss")
@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_identity_is_torch(name, reduction):
    options, *_ = LOSSES[name]
    assert_identity(
        lambda x, t, **p: getattr(functional, name)(
            x, t, reduction=reduction, **options, **p
        ),
        lambda x, t: getattr(F, name)(x, t, reduction=reduction, **options),
        *inputs(name, torch.float32),
    )


def nearly(ours, theirs, *leaves):
    """Compare with torch by formats that are nearly exact."""
    fine = Precision(elementwise="e11m50", accumulator="e11m50")
    actual, wanted = ours(*leaves, precision=fine), theirs(*leaves)
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(wanted)
    pairs = zip(
        torch.autograd.grad(actual, leaves, g),
        torch.autograd.grad(wanted, leaves, g),
        strict=True,
    )
    for left, right in pairs:
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


WEIGHTED = {
    "binary": lambda f, x, t, w, **p: f.binary_cross_entropy(
        sigmoid(x), sigmoid(t), w.detach(), **p
    ),
    "logits": lambda f, x, t, w, **p: f.binary_cross_entropy_with_logits(
        x, sigmoid(t), w.detach(), pos_weight=w.detach()[0], **p
    ),
    "kl batchmean": lambda f, x, t, w, **p: f.kl_div(
        x, t, reduction="batchmean", log_target=True, **p
    ),
}


@pytest.mark.parametrize("name", list(WEIGHTED))
def test_other_forms_are_nearly_those_of_torch(name):
    x, t = inputs("mse_loss", torch.float64)
    w = torch.rand(3, 7, dtype=torch.float64)
    nearly(
        lambda x, t, **p: WEIGHTED[name](functional, x, t, w, **p),
        lambda x, t: WEIGHTED[name](F, x, t, w),
        x,
        t,
    )


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss"])
def test_weights_of_terms(name):
    x, t = inputs(name, torch.float32)
    w = torch.rand(3, 7)
    _, terms, by_input, _ = LOSSES[name]
    y = getattr(functional, name)(x, t, weight=w, precision=PRECISION)
    wide, weights = (x.detach().double(), t.detach().double()), w.double()
    total = oracle_sum(weights.reshape(1, -1))
    value = oracle_sum((terms(*wide) * weights).reshape(1, -1)) / total
    assert_bit_equal(y.detach(), oracle_round(value.squeeze(), "e5m2").float())
    (dx,) = torch.autograd.grad(y, x)
    slope = by_input(*wide) * weights / total
    assert_bit_equal(dx, oracle_round(slope, "e5m2").float())


def test_broadcast_targets_add_their_gradients():
    x, t = leaf(4, 5), leaf(5)
    y = functional.mse_loss(x, t, reduction="sum", precision=PRECISION)
    (dt,) = torch.autograd.grad(y, t)
    slopes = 2 * (t.detach().double() - x.detach().double())
    wanted = oracle_round(oracle_sum(slopes.mT, "e6m4"), "e5m2")
    assert_bit_equal(dt, wanted.float())


def softmax_parts(x):
    """Return e, its oracle sums and the logarithms over the classes, [N, C]."""
    wide = x.detach().double()
    shifted = wide - wide.amax(1, True)
    total = oracle_sum(shifted.exp()).unsqueeze(1)
    return shifted.exp(), total, shifted - total.log()


@pytest.mark.parametrize("dtype", CARRIERS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_classes(reduction, weighted, dtype):
    x, target = leaf(6, 4, dtype=dtype), torch.tensor([0, 3, -100, 1, 1, 2])
    w = torch.rand(4, dtype=dtype) + 0.5 if weighted else None
    y = functional.cross_entropy(x, target, w, reduction=reduction, precision=PRECISION)
    e, total, logs = softmax_parts(x)
    counted = target >= 0
    place = target.clamp(min=0)
    weights = torch.ones(6).double() if w is None else w.double()[place]
    weights = torch.where(counted, weights, 0.0)
    rows = torch.arange(6)
    terms = torch.where(counted, -logs[rows, place] * weights, 0.0)
    count = oracle_sum(weights.unsqueeze(0)).item() if weighted else 5
    value = reduced(terms, reduction, count)
    assert_bit_equal(y.detach(), oracle_round(value, "e5m2").to(dtype))
    g = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    # d logs = -w g / count at the target; log(total) has the negative sum of them.
    scale = oracle_round(g, "e5m2").double() * factor(reduction, count)
    dlogs = torch.zeros(6, 4).double()
    dlogs[rows, place] = torch.where(counted, -weights * scale, 0.0)
    back = -oracle_sum(dlogs, "e6m4").unsqueeze(1) / total
    wanted = oracle_round(dlogs + back * e, "e5m2")
    assert_bit_equal(dx, wanted.to(dtype))


def test_the_number_of_samples_is_not_rounded():
    # An accumulator of 8 bits would count to 256.
    precision = Precision(elementwise="bfloat16", accumulator="bfloat16")
    x = torch.full((1000, 2), 0.0)
    y = functional.cross_entropy(x, torch.zeros(1000).long(), precision=precision)
    # ln 2 is 0.693; the sum stops growing at 256, where the unit is 2.
    assert y.item() == lp.round(torch.tensor(256 / 1000), "bfloat16").item()


CLASSES = {
    "classes": lambda f, x, **p: f.cross_entropy(x, TARGET, **p),
    "images": lambda f, x, **p: f.cross_entropy(
        x.view(2, 4, 3, 2), TARGET.view(2, 3, 2)[:, :, :2], **p
    ),
    "sum": lambda f, x, **p: f.cross_entropy(x, TARGET, reduction="sum", **p),
    "none": lambda f, x, **p: f.cross_entropy(x, TARGET, reduction="none", **p),
    "ignored": lambda f, x, **p: f.cross_entropy(x, TARGET, ignore_index=1, **p),
    "weights": lambda f, x, **p: f.cross_entropy(x, TARGET, WEIGHT.to(x), **p),
    "smoothing": lambda f, x, **p: f.cross_entropy(
        x, TARGET, WEIGHT.to(x), label_smoothing=0.1, ignore_index=2, **p
    ),
    "probabilities": lambda f, x, **p: f.cross_entropy(
        x, PROBABILITIES.to(x), WEIGHT.to(x), label_smoothing=0.2, **p
    ),
    "one sample": lambda f, x, **p: f.cross_entropy(x[0], TARGET[0], **p),
    "nll": lambda f, x, **p: f.nll_loss(x, TARGET, WEIGHT.to(x), **p),
    "nll images": lambda f, x, **p: f.nll_loss(
        x.view(2, 4, 3, 2), TARGET.view(2, 3, 2), reduction="sum", **p
    ),
}
TARGET = torch.tensor([0, 3, 2, 1, 1, 2, 0, 0, 1, 2, 3, 3])
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.25])
PROBABILITIES = torch.softmax(torch.arange(48.0).view(12, 4).sin(), 1)


@pytest.mark.parametrize("name", list(CLASSES))
def test_forms_of_cross_entropy(name):
    call = CLASSES[name]
    x = leaf(12, 4, dtype=torch.float64)
    nearly(lambda x, **p: call(functional, x, **p), lambda x: call(F, x), x)
    x = leaf(12, 4)
    assert_identity(lambda x, **p: call(functional, x, **p), lambda x: call(F, x), x)
    check_representable(call(functional, x, precision=PRECISION), [x], "e5m2")


@pytest.mark.parametrize("name", ["classes", "weights", "probabilities"])
def test_torch_func(name):
    x = torch.randn(3, 12, 4)

    def loss(x):
        return CLASSES[name](functional, x, precision=PRECISION)

    actual = torch.func.vmap(torch.func.grad(loss))(x)
    for row, gradient in zip(x, actual, strict=True):
        assert_bit_equal(gradient, torch.func.grad(loss)(row))


@ignore_dynamo
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(backend):
    x, t = leaf(12, 4), torch.randn(12, 4)

    def run(x, t):
        y = functional.cross_entropy(x, TARGET, precision=PRECISION)
        return y + functional.mse_loss(x, t, precision=PRECISION)

    torch._dynamo.reset()
    y = torch.compile(run, fullgraph=True, backend=backend)(x, t)
    assert_bit_equal(y.detach(), run(x, t).detach())
    (ours,) = torch.autograd.grad(y, x)
    assert_bit_equal(ours, torch.autograd.grad(run(x, t), x)[0])


@pytest.mark.parametrize("name", ["mse_loss", "binary_cross_entropy"])
def test_autocast_changes_nothing(name):
    x, t = inputs(name, torch.float32)
    loss = getattr(functional, name)
    expected = loss(x, t, precision=PRECISION)
    gradients = torch.autograd.grad(expected, (x, t))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(x, t, precision=PRECISION)
        inside = torch.autograd.grad(actual, (x, t))
    assert_bit_equal(actual.detach(), expected.detach())
    for ours, theirs in zip(inside, gradients, strict=True):
        assert_bit_equal(ours, theirs)


def test_refusals():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="reduction must be 'none', 'sum' or 'mean'"):
        functional.mse_loss(x, x, reduction="max", precision=PRECISION)
    with pytest.raises(TypeError, match="half carrier"):
        functional.mse_loss(x.half(), x.half(), precision=PRECISION)
    with pytest.raises(TypeError, match="half carrier"):
        functional.cross_entropy(
            x.half().unsqueeze(0), torch.tensor([0]), precision=PRECISION
        )
