"""The tables of operations: every spelling finds its functional."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import lowprec as lp
from lowprec import NumericalWarning, Precision, functional
from lowprec._operations import _elementwise, _products, operation_of
from lowprec.testing import assert_bit_equal

LOW = Precision(
    input="e4m3fn",
    weight="e5m2",
    grad_output="e5m2",
    grad_weight="e8m3",
    accumulator="e8m7",
    grad_accumulator="e8m5",
    elementwise="e6m5",
)
_SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(3, 4, generator=_SOURCE)
Y = torch.rand(3, 4, generator=_SOURCE) + 0.5
ROW = torch.randn(4, generator=_SOURCE)
IMAGE = torch.randn(2, 3, 6, 6, generator=_SOURCE)
CLASSES = torch.tensor([1, 0, 3])
POSITIVE = torch.rand(3, 4, generator=_SOURCE) * 0.8 + 0.1


def pointwise(function, *operands, **options):
    return lambda x: functional.pointwise(
        function, *(x if o is X else o for o in operands), precision=LOW, **options
    )


def own(name, *args, **kwargs):
    return lambda x: getattr(functional, name)(x, *args, precision=LOW, **kwargs)


def selected(function, *args, **kwargs):
    return lambda x: functional.selection(function, x, *args, precision=LOW, **kwargs)


# What the user writes, and the functional that it stands for.
SPELLINGS = {
    "x + y": (lambda x: x + Y, pointwise(torch.add, X, Y)),
    "x + number": (lambda x: x + 0.3, pointwise(torch.add, X, 0.3)),
    "number - x": (lambda x: 0.3 - x, pointwise(torch.sub, 0.3, X)),
    "number / x": (lambda x: 0.3 / x, pointwise(torch.div, 0.3, X)),
    "number ** x": (lambda x: 3**x, pointwise(torch.pow, 3, X)),
    "x ** number": (lambda x: x**2, pointwise(torch.pow, X, 2)),
    "x * row": (lambda x: x * ROW, pointwise(torch.mul, X, ROW)),
    "row - x": (lambda x: ROW - x, pointwise(torch.sub, ROW, X)),
    "row % x": (lambda x: ROW % x, pointwise(torch.remainder, ROW, X)),
    "alpha": (lambda x: x.add(Y, alpha=3), pointwise(torch.add, X, Y, alpha=3)),
    "subtract": (lambda x: torch.subtract(x, Y), pointwise(torch.sub, X, Y)),
    "true_divide": (lambda x: x.true_divide(Y), pointwise(torch.div, X, Y)),
    "aten": (lambda x: torch.ops.aten.mul.Tensor(x, Y), pointwise(torch.mul, X, Y)),
    "addcmul": (
        lambda x: torch.addcmul(x, Y, Y, value=0.3),
        pointwise(torch.addcmul, X, Y, Y, value=0.3),
    ),
    "lerp": (lambda x: x.lerp(Y, 0.3), pointwise(torch.lerp, X, Y, 0.3)),
    "special": (lambda x: torch.special.expm1(x), pointwise(torch.special.expm1, X)),
    "gelu": (
        lambda x: F.gelu(x, approximate="tanh"),
        pointwise(F.gelu, X, approximate="tanh"),
    ),
    "GELU": (lambda x: torch.nn.GELU()(x), pointwise(F.gelu, X)),
    "SiLU": (lambda x: torch.nn.SiLU()(x), pointwise(F.silu, X)),
    "LeakyReLU": (
        lambda x: torch.nn.LeakyReLU(0.3)(x),
        pointwise(F.leaky_relu, X, 0.3),
    ),
    "LogSigmoid": (lambda x: torch.nn.LogSigmoid()(x), pointwise(F.logsigmoid, X)),
    "inplace": (lambda x: F.elu(x.clone(), 0.5, True), pointwise(F.elu, X, 0.5)),
    "glu": (
        lambda x: F.glu(x),
        lambda x: functional.pointwise(
            lambda a, b: a * b.sigmoid(), x[:, :2], x[:, 2:], precision=LOW
        ),
    ),
    "where": (
        lambda x: torch.where(Y[:, :1] > 1, Y, x[0]),
        lambda x: functional.pointwise(
            torch.where, Y[:, :1] > 1, Y, x[0], precision=LOW
        ),
    ),
    "where as a method": (
        lambda x: x[0].where(Y[:, :1] > 1, Y),
        lambda x: functional.pointwise(
            torch.where, Y[:, :1] > 1, x[0], Y, precision=LOW
        ),
    ),
    "softmax": (lambda x: x.softmax(-1), own("softmax", -1)),
    "Softmax": (lambda x: torch.nn.Softmax(0)(x), own("softmax", 0)),
    "log_softmax": (lambda x: torch.log_softmax(x, 1), own("log_softmax", 1)),
    "sum": (lambda x: x.sum(), own("sum")),
    "sum of axis": (lambda x: torch.sum(x, axis=0), own("sum", 0)),
    "mean": (lambda x: x.mean(-1, keepdim=True), own("mean", -1, True)),
    "var": (lambda x: x.var(0, unbiased=False), own("var", 0, correction=0)),
    "std": (lambda x: torch.std(x, dim=1), own("std", 1)),
    "var of all": (lambda x: torch.var(x, False), own("var", correction=0)),
    "norm": (lambda x: x.norm(), own("norm")),
    "linalg.norm": (lambda x: torch.linalg.norm(x), own("norm", 2)),
    "max": (
        lambda x: x.relu().max(),
        lambda x: functional.extremum(torch.max, x.relu(), precision=LOW),
    ),
    "max of two": (
        lambda x: torch.max(Y, x[0]),
        lambda x: functional.pointwise(torch.maximum, Y, x[0], precision=LOW),
    ),
    "amin of ties": (
        lambda x: torch.cat([x, x, x]).amin(0),
        lambda x: functional.extremum(
            torch.amin, torch.cat([x, x, x]), 0, precision=LOW
        ),
    ),
    "vector_norm": (lambda x: torch.linalg.vector_norm(x, 1, 0), own("norm", 1, 0)),
    "logsumexp": (lambda x: torch.logsumexp(x, 0), own("logsumexp", 0)),
    "cumsum": (lambda x: x.cumsum(0), own("cumsum", 0)),
    "expand": (lambda x: x.expand(2, 3, 4), selected(torch.Tensor.expand, 2, 3, 4)),
    "repeat": (lambda x: x.repeat(2, 1), selected(torch.Tensor.repeat, 2, 1)),
    "index": (
        lambda x: x[CLASSES[:2]],
        selected(torch.Tensor.__getitem__, CLASSES[:2]),
    ),
    "gather": (
        lambda x: x.gather(1, CLASSES[:, None]),
        selected(torch.gather, 1, CLASSES[:, None]),
    ),
    "Tensor.unfold": (
        lambda x: x.unfold(1, 3, 1),
        selected(torch.Tensor.unfold, 1, 3, 1),
    ),
    "layer_norm": (lambda x: F.layer_norm(x, (4,), ROW), own("layer_norm", (4,), ROW)),
    "LayerNorm": (
        lambda x: torch.nn.LayerNorm(4, bias=False)(x),
        own("layer_norm", (4,), torch.ones(4)),
    ),
    "rms_norm": (lambda x: F.rms_norm(x, (4,)), own("rms_norm", (4,))),
    "cross_entropy": (
        lambda x: F.cross_entropy(x, CLASSES, label_smoothing=0.1),
        own("cross_entropy", CLASSES, label_smoothing=0.1),
    ),
    "CrossEntropyLoss": (
        lambda x: torch.nn.CrossEntropyLoss(ROW.abs())(x, CLASSES),
        own("cross_entropy", CLASSES, ROW.abs()),
    ),
    "mse_loss": (
        lambda x: F.mse_loss(x, Y, reduction="sum"),
        own("mse_loss", Y, reduction="sum"),
    ),
    "HuberLoss": (lambda x: torch.nn.HuberLoss()(x, Y), own("huber_loss", Y)),
    "BCEWithLogitsLoss": (
        lambda x: torch.nn.BCEWithLogitsLoss()(x, POSITIVE),
        own("binary_cross_entropy_with_logits", POSITIVE),
    ),
    "embedding": (
        lambda x: F.embedding(CLASSES[:2], x),
        lambda x: functional.embedding(CLASSES[:2], x, precision=LOW),
    ),
    "embedding_bag": (
        lambda x: F.embedding_bag(CLASSES[None] % 3, x),
        lambda x: functional.embedding_bag(CLASSES[None] % 3, x, precision=LOW),
    ),
    "normalize": (lambda x: F.normalize(x), own("normalize")),
    "cosine_similarity": (
        lambda x: F.cosine_similarity(x, Y),
        own("cosine_similarity", Y),
    ),
    "einsum": (
        lambda x: torch.einsum("ij,kj->ik", x, Y),
        lambda x: functional.einsum("ij,kj->ik", x, Y, precision=LOW),
    ),
    "tensordot": (
        lambda x: torch.tensordot(x, Y.T, 1),
        own("tensordot", Y.T, 1),
    ),
    "outer": (
        lambda x: torch.outer(x[0], ROW),
        lambda x: functional.outer(x[0], ROW, precision=LOW),
    ),
    "linalg.matmul": (lambda x: torch.linalg.matmul(x, Y.T), own("matmul", Y.T)),
    "scaled_dot_product_attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        lambda x: functional.scaled_dot_product_attention(
            x, x, x, is_causal=True, precision=LOW
        ),
    ),
}


def run(call):
    leaf = X.clone().requires_grad_()
    torch.manual_seed(4)
    y = call(leaf)
    torch.manual_seed(5)
    (gradient,) = torch.autograd.grad(y, leaf, torch.rand(y.shape))
    return y.detach(), gradient


@pytest.mark.parametrize(("call", "expected"), SPELLINGS.values(), ids=list(SPELLINGS))
def test_spellings_find_their_functional(call, expected):
    with lp.emulate(LOW, strict=True):
        actual = run(call)
    for left, right in zip(actual, run(expected), strict=True):
        assert_bit_equal(left, right)
    value, gradient = run(call)
    assert not (torch.equal(value, actual[0]) and torch.equal(gradient, actual[1]))


LAYERS = {
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 1), own("max_pool2d", 3, 1)),
    "MaxPool2d with indices": (
        lambda x: torch.nn.MaxPool2d(3, 1, return_indices=True)(x)[0],
        own("max_pool2d", 3, 1),
    ),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), own("avg_pool2d", 2)),
    "AdaptiveAvgPool2d": (
        lambda x: torch.nn.AdaptiveAvgPool2d(2)(x),
        own("adaptive_avg_pool2d", 2),
    ),
    "pad": (
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        selected(F.pad, (1, 1, 1, 1), mode="reflect"),
    ),
    "F.unfold": (lambda x: F.unfold(x, 2), selected(F.unfold, 2)),
    "interpolate": (
        lambda x: F.interpolate(x, scale_factor=2),
        own("interpolate", scale_factor=2),
    ),
    "BatchNorm2d": (
        lambda x: torch.nn.BatchNorm2d(3, affine=False)(x),
        own("batch_norm", None, None, training=True),
    ),
    "group_norm": (lambda x: F.group_norm(x, 3), own("group_norm", 3)),
    "instance_norm": (lambda x: F.instance_norm(x), own("instance_norm")),
    "Dropout": (lambda x: torch.nn.Dropout(0.4)(x), own("dropout", 0.4)),
    "conv_transpose2d": (
        lambda x: F.conv_transpose2d(x, IMAGE[:, :, :2, :2].transpose(0, 1)),
        own("conv_transpose2d", IMAGE[:, :, :2, :2].transpose(0, 1)),
    ),
}


@pytest.mark.parametrize(("call", "expected"), LAYERS.values(), ids=list(LAYERS))
def test_layers_of_images_find_their_functional(call, expected):
    def images(call):
        leaf = IMAGE.clone().requires_grad_()
        torch.manual_seed(4)
        y = call(leaf)
        (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        return y.detach(), gradient

    with lp.emulate(LOW, strict=True):
        actual = images(call)
    for left, right in zip(actual, images(expected), strict=True):
        assert_bit_equal(left, right)


def test_padding_modes_of_built_layers_are_those_of_emulated_ones():
    plain = torch.nn.Conv2d(3, 2, 3, padding=1, padding_mode="replicate")
    layer = lp.nn.Conv2d.from_float(plain, precision=LOW)
    leaf, other = (IMAGE.clone().requires_grad_() for _ in range(2))
    with lp.emulate(LOW, strict=True):
        y = plain(leaf)
    assert_bit_equal(layer(other).detach(), y.detach())
    ones = torch.ones_like(y)
    (expected,) = torch.autograd.grad(y, leaf, ones)
    assert_bit_equal(torch.autograd.grad(layer(other), other, ones)[0], expected)


@pytest.mark.parametrize("name", sorted(_elementwise.POINTWISE))
def test_every_pointwise_name_is_a_function_of_torch(name):
    function = _elementwise._canonical(name)
    assert operation_of(function).base == name
    assert operation_of(function).elementwise


def test_no_operation_has_two_meanings():
    elementwise = set(_elementwise.BINDINGS)
    assert not elementwise & set(_products.PRODUCTS)
    assert not elementwise & _elementwise.SELECTIONS
    assert not elementwise & _elementwise._OTHERS


COMPOSITES = {
    "gaussian_nll_loss": (
        lambda x: F.gaussian_nll_loss(x, Y, POSITIVE, full=True),
        {"log", "sub", "pow", "div", "add", "mul", "mean"},
    ),
    "triplet_margin": (
        lambda x: F.triplet_margin_with_distance_loss(x, Y, POSITIVE),
        {"pairwise_distance", "sub", "add", "mean"},
    ),
    "gumbel_softmax": (lambda x: F.gumbel_softmax(x), {"log", "add", "softmax"}),
}


@pytest.mark.parametrize(("call", "inside"), COMPOSITES.values(), ids=list(COMPOSITES))
def test_functions_written_in_python_are_emulated_call_by_call(call, inside):
    with lp.emulate(LOW, strict=True) as context:
        value, _ = run(call)
    assert inside <= set(context.coverage().to_dict()["emulated"])
    assert_bit_equal(lp.round(value, "e6m5"), value)
    assert not torch.equal(value, run(call)[0])


UNSUPPORTED = [
    ("index_put", lambda: X.index_put((CLASSES % 3,), Y, accumulate=True)),
    ("scatter", lambda: X.scatter(0, CLASSES[None] % 3, Y, reduce="add")),
    ("mse_loss", lambda: F.mse_loss(X, Y, size_average=False)),
    ("exp", lambda: torch.view_as_complex(X.view(3, 2, 2)).exp()),
    ("to", lambda: X.to(torch.bfloat16)),
    ("cumprod", lambda: X.cumprod(0)),
]


@pytest.mark.parametrize(("name", "call"), UNSUPPORTED)
def test_forms_without_a_functional_are_reported(name, call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = call()
    with lp.emulate(LOW) as context, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = call()
    texts = [str(one.message) for one in caught if one.category is NumericalWarning]
    assert any(text.startswith(f"{name} is not emulated") for text in texts)
    assert torch.equal(actual, expected)
    assert name in context.coverage().to_dict()["not emulated"]


def test_results_are_written_to_out():
    with lp.emulate(LOW, strict=True):
        expected = torch.exp(X), X @ Y.T
        for size in ((0,), (3, 4)):
            out = torch.empty(size)
            assert torch.exp(X, out=out) is out
            assert_bit_equal(out, expected[0])
        out = torch.empty(3, 3)
        torch.mm(X, Y.T, out=out)
    assert_bit_equal(out, expected[1])


EXACT = [
    lambda x: x.expand(2, 3, 4),
    lambda x: x[CLASSES % 3],
    lambda x: torch.where(Y > 1, x, Y),
    lambda x: x.clamp(0, 1).relu(),
    lambda x: F.pad(x, (1, 1)),
    lambda x: torch.cat([x, Y]).max(0).values,
    lambda x: x.masked_fill(Y > 1, 0),
    lambda x: x.scatter(0, CLASSES[None] % 3, Y),
    lambda x: x.index_copy(0, CLASSES[:2], Y[:2]),
    lambda x: x.index_put((CLASSES[:2],), Y[:2]),
    lambda x: torch.nn.utils.rnn.pad_sequence([x, x[:1]]),
    lambda x: torch.nn.utils.rnn.pack_padded_sequence(IMAGE[0], torch.tensor([2] * 6)),
    lambda x: torch.view_as_real(torch.view_as_complex(x.view(3, 2, 2))),
]


@pytest.mark.parametrize("call", EXACT)
def test_what_is_exact_stays_exact_where_no_gradient_adds(call):
    with lp.emulate(LOW, strict=True) as context:
        call(X)
    assert {row.treatment for row in context.coverage()} == {"exact by nature"}
