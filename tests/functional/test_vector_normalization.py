"""Functions that divide by norms: float64 formulas with lowprec's sums, and torch."""

import pytest
import torch
from gradients import assert_all_close, assert_all_equal, incoming, sums
from layer_roundings import ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, functional
from lowprec.precision import Precision
from lowprec.testing import assert_bit_equal

torch_functional = torch.nn.functional
LOW = Precision(
    elementwise="e6m4",
    accumulator=Accumulator("e6m6", product="e3m1"),
    grad_accumulator="e6m7",
)
WIDE = Precision(elementwise="e11m50", accumulator="e11m50")
# Name, shapes, further arguments.
CASES = {
    "normalize": ("normalize", [(3, 4)], {}),
    "normalize by sums": ("normalize", [(3, 4, 2)], {"p": 1.0, "dim": -1}),
    "normalize by cubes": ("normalize", [(3, 4)], {"p": 3.0, "dim": 0}),
    "normalize by the largest": ("normalize", [(3, 4)], {"p": float("inf")}),
    "cosine": ("cosine_similarity", [(3, 4), (3, 4)], {}),
    "cosine of several": ("cosine_similarity", [(3, 1, 4), (2, 4)], {"dim": 2}),
    "distance": ("pairwise_distance", [(3, 4), (3, 4)], {}),
    "distance to one": ("pairwise_distance", [(3, 4), (4,)], {"p": 1, "keepdim": True}),
    "response": ("local_response_norm", [(2, 5, 3)], {"size": 3, "alpha": 0.3}),
    "even response": ("local_response_norm", [(2, 3, 2, 2)], {"size": 4, "k": 2.0}),
}


def everything(case, functions, leaves, **keywords):
    name, _, options = CASES[case]
    y = getattr(functions, name)(*leaves, **options, **keywords)
    return [y.detach(), *torch.autograd.grad(y, leaves, incoming([y]))]


@pytest.mark.parametrize("case", CASES)
def test_wide_formats_are_nearly_float64(case):
    leaves = [leaf(*shape, dtype=torch.float64) for shape in CASES[case][1]]
    ours = everything(case, functional, leaves, precision=WIDE)
    theirs = everything(case, torch_functional, leaves)
    assert_all_close(ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_without_elementwise_it_is_torchs(case):
    leaves = [leaf(*shape) for shape in CASES[case][1]]
    precision = Precision(accumulator="e6m4")
    assert_all_equal(
        everything(case, functional, leaves, precision=precision),
        everything(case, torch_functional, leaves),
    )


@pytest.mark.parametrize("case", CASES)
def test_everything_lands_on_the_grid(case):
    leaves = [leaf(*shape) for shape in CASES[case][1]]
    for x in everything(case, functional, leaves, precision=LOW):
        assert_bit_equal(lp.round(x, LOW.elementwise), x)


def test_normalize_is_its_formula():
    x = leaf(3, 7)
    y, dx = everything("normalize", functional, [x], precision=LOW)
    z = x.detach().double()
    length = sums(z * z, LOW.accumulator).sqrt()
    assert_bit_equal(y, lp.round(z / length, LOW.elementwise).float())
    (g,) = incoming([y])
    g = lp.round(g, LOW.elementwise).double()
    inner = sums(-g * (z / length / length), LOW.grad_accumulator)
    wanted = g / length + inner / (2 * length) * 2 * z
    assert_bit_equal(dx, lp.round(wanted, LOW.elementwise).float())


def test_cosine_and_distance_are_their_formulas():
    a, b = torch.randn(3, 7), torch.randn(3, 7)
    x, y = a.double(), b.double()
    units = [z / sums(z * z, LOW.accumulator).sqrt() for z in (x, y)]
    cosine = sums(units[0] * units[1], LOW.accumulator)[:, 0]
    actual = functional.cosine_similarity(a, b, precision=LOW)
    assert_bit_equal(actual, lp.round(cosine, LOW.elementwise).float())
    difference = x - y + 1e-6
    distance = sums(difference**2, LOW.accumulator).sqrt()[:, 0]
    actual = functional.pairwise_distance(a, b, precision=LOW)
    assert_bit_equal(actual, lp.round(distance, LOW.elementwise).float())


def test_response_is_its_formula():
    x = torch.randn(2, 5, 3)
    z = x.double()
    padded = torch.nn.functional.pad(z * z, (0, 0, 1, 1))
    windows = padded.unfold(1, 3, 1)  # [2, 5, 3, size]
    total = sums(windows, LOW.accumulator)[..., 0]
    wanted = z / (total / 3 * 0.3 + 1.0) ** 0.75
    actual = functional.local_response_norm(x, 3, 0.3, precision=LOW)
    assert_bit_equal(actual, lp.round(wanted, LOW.elementwise).float())


def test_zeros_have_no_direction():
    x = torch.zeros(1, 3, requires_grad=True)
    y = functional.normalize(x, precision=Precision(elementwise="bfloat16"))
    assert_bit_equal(y.detach(), torch.zeros(1, 3))
    (gradient,) = torch.autograd.grad(y, x, torch.ones(1, 3))
    assert_bit_equal(gradient, lp.round(torch.full((1, 3), 1e12), "bfloat16"))


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda p: functional.normalize(ONES.half(), precision=p), TypeError, "half"),
        (
            lambda p: functional.cosine_similarity(ONES, ONES.double(), precision=p),
            TypeError,
            "x2 and x1 must have the same dtype",
        ),
        (
            lambda p: functional.pairwise_distance(ONES, ONES[:, :2], precision=p),
            ValueError,
            r"x1 \(2, 3\) and x2 \(2, 2\) do not broadcast",
        ),
        (
            lambda p: functional.local_response_norm(ONES, 2, precision=p),
            ValueError,
            "at least one",
        ),
    ],
)
def test_refusals(call, kind, message):
    with pytest.raises(kind, match=message):
        call(LOW)


@ignore_dynamo
def test_compiles_without_graph_breaks():
    leaves = [leaf(3, 4), leaf(3, 4)]

    def run(a, b):
        return functional.cosine_similarity(a, b, precision=LOW)

    torch._dynamo.reset()
    y = torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves)
    wanted = run(*leaves)
    assert_bit_equal(y.detach(), wanted.detach())
    assert_all_equal(
        torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(wanted.sum(), leaves)
    )


@pytest.mark.parametrize("case", ["normalize", "response"])
def test_per_sample_gradients_by_torch_func(case):
    name, shapes, options = CASES[case]
    x = torch.randn(3, *shapes[0])
    weights = torch.randn(shapes[0])

    def loss(x):
        y = getattr(functional, name)(x, **options, precision=LOW)
        return (y * weights).sum()

    actual = torch.func.vmap(torch.func.grad(loss))(x)
    for one, gradient in zip(x, actual, strict=True):
        assert_bit_equal(gradient, torch.func.grad(loss)(one))
