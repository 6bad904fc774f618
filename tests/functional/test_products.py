"""Products of tensors, and with one added, against compositions of matmul."""

import pytest
import torch
from gradients import assert_all_close, assert_all_equal, everything, incoming
from layer_roundings import ROUNDINGS, ignore_dynamo, leaf
from product_precisions import LOW, RANDOM, WIDE, later_seed, leaves_of

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.functional import Seeds
from lowprec.precision import Precision
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal

A, B = torch.ones(2, 3), torch.ones(3, 4)


# Name, function of torch, shapes, further arguments.
OTHERS = {
    "tensordot": (functional.tensordot, torch.tensordot, [(2, 3, 4), (3, 4, 2)], {}),
    "tensordot of one": (
        functional.tensordot,
        torch.tensordot,
        [(2, 3), (3, 2)],
        {"dims": 1},
    ),
    "tensordot of lists": (
        functional.tensordot,
        torch.tensordot,
        [(2, 3, 4), (4, 5, 2)],
        {"dims": ([0, 2], [-1, 0])},
    ),
    "tensordot of none": (
        functional.tensordot,
        torch.tensordot,
        [(2,), (3,)],
        {"dims": 0},
    ),
    "inner": (functional.inner, torch.inner, [(2, 3), (4, 3)], {}),
    "inner of vectors": (functional.inner, torch.inner, [(3,), (3,)], {}),
    "inner with a scalar": (functional.inner, torch.inner, [(2, 3), ()], {}),
    "outer": (functional.outer, torch.outer, [(3,), (2,)], {}),
    "vecdot": (functional.vecdot, torch.linalg.vecdot, [(2, 3), (3,)], {}),
    "vecdot along": (
        functional.vecdot,
        torch.linalg.vecdot,
        [(2, 3, 1), (3, 2)],
        {"dim": 1},
    ),
    "bilinear": (
        functional.bilinear,
        torch.nn.functional.bilinear,
        [(2, 3), (2, 4), (5, 3, 4), (5,)],
        {},
    ),
    "bilinear of batches": (
        functional.bilinear,
        torch.nn.functional.bilinear,
        [(2, 2, 3), (2, 2, 4), (5, 3, 4)],
        {},
    ),
    "addmm": (functional.addmm, torch.addmm, [(4,), (2, 3), (3, 4)], {}),
    "addmm scaled": (
        functional.addmm,
        torch.addmm,
        [(2, 1), (2, 3), (3, 4)],
        {"beta": 0.3, "alpha": 1.7},
    ),
    "addmv": (functional.addmv, torch.addmv, [(2,), (2, 3), (3,)], {"alpha": 2}),
    "addr": (functional.addr, torch.addr, [(2, 3), (2,), (3,)], {"beta": -1}),
    "baddbmm": (
        functional.baddbmm,
        torch.baddbmm,
        [(2, 1, 4), (2, 2, 3), (2, 3, 4)],
        {"alpha": 0.5},
    ),
    "addbmm": (
        functional.addbmm,
        torch.addbmm,
        [(2, 4), (2, 2, 3), (2, 3, 4)],
        {"beta": 3},
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_products_mean_what_torchs_do(case):
    ours, torchs, shapes, options = OTHERS[case]
    leaves = leaves_of(shapes, torch.float64)
    assert_all_close(
        everything(lambda *x: ours(*x, precision=WIDE, **options), leaves),
        everything(lambda *x: torchs(*x, **options), leaves),
    )


@pytest.mark.parametrize("case", OTHERS)
def test_other_products_with_identity_precision_are_torchs(case):
    ours, torchs, shapes, options = OTHERS[case]
    leaves = leaves_of(shapes)
    assert_all_equal(
        everything(lambda *x: ours(*x, precision=Precision(), **options), leaves),
        everything(lambda *x: torchs(*x, **options), leaves),
    )


@pytest.mark.parametrize("case", OTHERS)
def test_other_products_land_on_the_grids(case):
    ours, _, shapes, options = OTHERS[case]
    leaves = leaves_of(shapes)
    y, *gradients = everything(lambda *x: ours(*x, precision=LOW, **options), leaves)
    assert_bit_equal(lp.round(y, LOW.output), y)
    weights = {"addmm": (0, 2), "bilinear": (2, 3), "baddbmm": (0, 2)}
    weights = weights.get(case.split()[0], (0, 2) if case.startswith("add") else (1,))
    for i, gradient in enumerate(gradients):
        rounding = LOW.grad_weight if i in weights else LOW.grad_input
        assert_bit_equal(lp.round(gradient, rounding), gradient)


def rounded(x, rounding, seed):
    return lp.round(x, rounding, seed=seed)


@pytest.mark.parametrize("elementwise", ["e5m3", Rounding("e5m3", "stochastic"), None])
@pytest.mark.parametrize("base", [LOW, RANDOM], ids=["rne", "sr"])
@pytest.mark.parametrize(("beta", "alpha"), [(1, 1), (0.5, 1.375), (0, 2), (-3, 1)])
def test_addmm_is_its_composition(beta, alpha, base, elementwise):
    fields = {name: getattr(base, name) for name in (*ROUNDINGS, "accumulator")}
    precision = Precision(
        elementwise=elementwise, grad_accumulator=base.grad_accumulator, **fields
    )
    leaves = c, a, b = leaves_of([(1, 4), (2, 3), (3, 4)])
    ours = (
        everything(
            lambda *x: functional.addmm(
                *x, beta=beta, alpha=alpha, precision=precision, seed=7
            ),
            leaves[1:] if beta == 0 else leaves,
        )
        if beta
        else everything(
            lambda a, b: functional.addmm(
                c, a, b, beta=beta, alpha=alpha, precision=precision, seed=7
            ),
            leaves[1:],
        )
    )
    parts = Seeds(*split_seed(torch.tensor(7), 11))
    extra = split_seed(torch.tensor(7), 15)[11:]

    def scaled(x, factor, seed):
        if factor == 1 or elementwise is None:
            return x * factor
        return rounded(x.double() * factor, elementwise, seed).float()

    def sums(x, y, seed):
        return lp.matmul(x, y, accumulator=precision.backward_accumulator, seed=seed)

    with torch.no_grad():
        a2 = rounded(a, precision.input, parts.input)
        b2 = rounded(b, precision.weight, parts.weight)
        y = lp.matmul(a2, b2, accumulator=precision.accumulator, seed=7)
        y = scaled(y, alpha, extra[0])
        if beta:
            term = scaled(c.expand(2, 4), beta, extra[1])
            pairs = torch.stack((y, term), -1).reshape(-1, 2)
            adder = Accumulator(precision.accumulator.rounding)
            y = lp.matmul(pairs, torch.ones(2, 1), accumulator=adder, seed=parts.bias)
        y = rounded(y.reshape(2, 4), precision.output, parts.output)
        (g,) = incoming([y])
        g = rounded(g, precision.grad_output, parts.grad_output)
        inner = scaled(g, alpha, extra[2])
        da = sums(inner, b2.mT, parts.grad_input_sum)
        db = sums(a2.mT, inner, parts.grad_weight_sum)
        expected = [
            y,
            rounded(da, precision.grad_input, parts.grad_input),
            rounded(db, precision.grad_weight, parts.grad_weight),
        ]
        if beta:
            plain = precision.backward_accumulator.replace(product="exact")
            ones = torch.ones(1, 2)
            dc = lp.matmul(ones, g, accumulator=plain, seed=parts.grad_bias_sum)
            dc = scaled(dc, beta, extra[3])
            dc = rounded(dc, precision.grad_weight, parts.grad_bias)
            expected.insert(1, dc)
    assert_all_equal(ours, expected)


def test_addmm_is_linear():
    x, w, b = leaf(3, 4), leaf(2, 4), leaf(2)
    assert_all_equal(
        everything(
            lambda x, w, b: functional.addmm(b, x, w.mT, precision=LOW),
            (x, w, b),
        ),
        everything(
            lambda x, w, b: functional.linear(x, w, b, precision=LOW),
            (x, w, b),
        ),
    )


def test_addmm_without_beta_ignores_what_is_added():
    c = torch.full((1,), float("nan"))
    y = functional.addmm(c, A, B, beta=0, precision=LOW)
    assert_bit_equal(y, functional.matmul(A, B, precision=LOW))


def test_addbmm_is_one_sum():
    c, a, b = torch.zeros(1), torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    flat = functional.matmul(
        torch.cat([*a], 1), torch.cat([*b], 0), precision=RANDOM, seed=3
    )
    actual = functional.addbmm(c, a, b, beta=0, precision=RANDOM, seed=3)
    assert_bit_equal(actual, flat)


@pytest.mark.parametrize("precision", [LOW, RANDOM], ids=["rne", "sr"])
def test_bilinear_is_two_layers(precision):
    leaves = leaves_of([(3, 2), (3, 4), (5, 2, 4)])

    def composed(x1, x2, w):
        columns = w.permute(1, 0, 2).reshape(2, 20)
        maps = functional.matmul(x1, columns, precision=precision, seed=7)
        return functional.matmul(
            x2[:, None],
            maps.reshape(3, 5, 4).mT,
            precision=precision,
            seed=later_seed(7, 1),
        )[:, 0]

    assert_all_equal(
        everything(
            lambda *x: functional.bilinear(*x, precision=precision, seed=7), leaves
        ),
        everything(composed, leaves),
    )


@pytest.mark.parametrize(
    "shapes", [[(2, 9), (9, 3), (3, 8), (8, 2)], [(9,), (9, 3), (3, 2)], [(2, 3), (3,)]]
)
def test_multi_dot(shapes):
    leaves = leaves_of(shapes, torch.float64)
    assert_all_close(
        everything(lambda *x: functional.multi_dot(x, precision=WIDE), leaves),
        everything(lambda *x: torch.linalg.multi_dot(x), leaves),
    )
    leaves = leaves_of(shapes)
    assert_all_equal(
        everything(lambda *x: functional.multi_dot(x, precision=Precision()), leaves),
        everything(lambda *x: torch.linalg.multi_dot(x), leaves),
    )


def test_multi_dot_takes_the_cheapest_order():
    a, b, c = torch.randn(2, 9), torch.randn(9, 2), torch.randn(2, 1)
    inner = functional.matmul(b, c, precision=RANDOM, seed=7)
    expected = functional.matmul(a, inner, precision=RANDOM, seed=later_seed(7, 1))
    actual = functional.multi_dot([a, b, c], precision=RANDOM, seed=7)
    assert_bit_equal(actual, expected)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: functional.addmm(A, A, A, precision=LOW),
            ValueError,
            r"cannot multiply mat1 \(2, 3\), mat2 \(2, 3\)",
        ),
        (
            lambda: functional.addmm(A, A, B, precision=LOW),
            ValueError,
            r"input \(2, 3\) does not broadcast to the shape \(2, 4\)",
        ),
        (
            lambda: functional.addmm(A[0].double(), A, B, precision=LOW),
            TypeError,
            "must have the same dtype",
        ),
        (
            lambda: functional.tensordot(A, B, 3, precision=LOW),
            ValueError,
            "dims must be",
        ),
        (
            lambda: functional.tensordot(A, B, 2, precision=LOW),
            ValueError,
            "has sizes",
        ),
        (lambda: functional.outer(A, B, precision=LOW), ValueError, "two vectors"),
        (
            lambda: functional.bilinear(A, A, B, precision=LOW),
            ValueError,
            r"weight \(3, 4\) to inputs \(2, 3\)",
        ),
        (
            lambda: functional.multi_dot([A, A], precision=LOW),
            ValueError,
            "inner sizes match",
        ),
        (
            lambda: functional.outer(A[0], A[0], precision="e5m2"),
            TypeError,
            "expected a Precision",
        ),
    ],
)
def test_refusals(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@ignore_dynamo
def test_compiles_without_graph_breaks():
    leaves = leaves_of([(2, 3, 4), (2, 4, 3), (5,), (2, 3, 5)])

    def run(a, b, c, d):
        x = functional.einsum("bij,bjk->bik", a, b, precision=LOW)
        return functional.baddbmm(c, x, d, alpha=0.5, precision=LOW)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_all_equal(everything(compiled, leaves), everything(run, leaves))


def test_per_sample_gradients_by_torch_func():
    x, w, b = torch.randn(3, 2, 4), torch.randn(4, 2), torch.randn(2)

    def loss(w, b, x):
        y = functional.addmm(b, x, w, beta=0.5, precision=LOW)
        return functional.einsum("ij,ij->", y, y, precision=LOW)

    gradient = torch.func.grad(loss, argnums=(0, 1))
    actual = torch.func.vmap(gradient, in_dims=(None, None, 0))(w, b, x)
    for i, row in enumerate(x):
        assert_all_equal([part[i] for part in actual], gradient(w, b, row))
