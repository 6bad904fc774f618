"""Contractions and products with a tensor added, against compositions of matmul."""

import pytest
import torch
from layer_roundings import ROUNDINGS, STOCHASTIC, ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.functional import Seeds
from lowprec.precision import Precision
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal

SUMS = Accumulator("e6m5", product="e5m2")
LOW = Precision(accumulator=SUMS, grad_accumulator="e8m6", **ROUNDINGS)
RANDOM_SUMS = Accumulator(
    Rounding("e6m4", "stochastic"), product=Rounding("e5m2", "stochastic")
)
RANDOM = Precision(accumulator=RANDOM_SUMS, **STOCHASTIC)
# An accumulator of 51 bits differs from float64 by less than any real mistake.
WIDE = Precision(accumulator="e8m50")


def everything(function, leaves):
    """Output and all gradients."""
    y = function(*leaves)
    g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(5))
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


def assert_all_equal(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        assert_bit_equal(left, right)


def assert_all_close(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def later_seed(seed, number):
    """The seed of product ``number`` > 0 of a call."""
    part = len(Seeds._fields) + number - 1
    return split_seed(torch.tensor(seed), part + 1)[part]


def leaves_of(shapes, dtype=torch.float32):
    return [leaf(*shape, dtype=dtype) for shape in shapes]


EQUATIONS = {
    "ij,jk->ik": [(2, 3), (3, 4)],
    "ij,kj": [(2, 3), (4, 3)],
    "bhqd,bhkd->bhqk": [(2, 3, 4, 2), (2, 3, 5, 2)],
    "abc,cad->bd": [(2, 3, 4), (4, 2, 5)],
    "i,j->ij": [(3,), (2,)],
    "i,i->": [(4,), (4,)],
    "ij,ij->ij": [(2, 3), (2, 3)],
    "...ij,...jk->...ik": [(2, 1, 2, 3), (3, 3, 2)],
    "i...,ji->j...": [(3, 2, 2), (4, 3)],
    "bij,bjk": [(2, 3, 2), (2, 2, 3)],
    "aib,ja->ij": [(2, 3, 4), (2, 2)],
    "ij,kl->i": [(2, 3), (2, 2)],
    "ii,ij->j": [(3, 3), (3, 2)],
    "iji,jj->ij": [(2, 3, 2), (3, 3)],
    "ij,jk,kl->il": [(2, 3), (3, 4), (4, 2)],
    "bn,anm,bm->ba": [(2, 3), (4, 3, 2), (2, 2)],
    "ij,ik,il->jkl": [(2, 2), (2, 3), (2, 1)],
    "ij,j,k->": [(2, 3), (3,), (2,)],
    "ij,ij,ij->i": [(2, 3), (1, 3), (2, 1)],
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_means_what_torchs_does(equation):
    leaves = leaves_of(EQUATIONS[equation], torch.float64)
    assert_all_close(
        everything(lambda *x: functional.einsum(equation, *x, precision=WIDE), leaves),
        everything(lambda *x: torch.einsum(equation, *x), leaves),
    )


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_with_identity_precision_is_torchs(equation):
    leaves = leaves_of(EQUATIONS[equation])
    assert_all_equal(
        everything(
            lambda *x: functional.einsum(equation, *x, precision=Precision()), leaves
        ),
        everything(lambda *x: torch.einsum(equation, *x), leaves),
    )


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_lands_on_the_grids(equation):
    leaves = leaves_of(EQUATIONS[equation])
    y, first, *others = everything(
        lambda *x: functional.einsum(equation, *x, precision=LOW), leaves
    )
    for x, rounding in [(y, "output"), (first, "grad_input")]:
        assert_bit_equal(lp.round(x, getattr(LOW, rounding)), x)
    # The second operand of the last product is its weight; diagonals only move.
    assert_bit_equal(lp.round(others[-1], LOW.grad_weight), others[-1])


# Equation, shapes, and the same product as one of matrices.
AS_MATMUL = {
    "ij,jk->ik": ([(2, 3), (3, 4)], lambda f, a, b: f(a, b)),
    "ij,kj": ([(2, 3), (4, 3)], lambda f, a, b: f(a, b.mT)),
    "abc,cad->bd": (
        [(2, 3, 4), (4, 2, 5)],
        lambda f, a, b: f(
            a.permute(1, 0, 2).reshape(3, 8), b.permute(1, 0, 2).reshape(8, 5)
        ),
    ),
    "bhqd,bhkd->bhqk": (
        [(2, 2, 3, 2), (2, 2, 4, 2)],
        lambda f, a, b: f(a, b.mT),
    ),
    "kab,kb->a": (
        [(2, 3, 4), (2, 4)],
        lambda f, a, b: f(a.permute(1, 0, 2).reshape(3, 8), b.reshape(8)),
    ),
    "ij,ij->ij": (
        [(2, 3), (2, 3)],
        lambda f, a, b: f(a[..., None, None], b[..., None, None])[..., 0, 0],
    ),
}


@pytest.mark.parametrize("precision", [LOW, RANDOM], ids=["rne", "sr"])
@pytest.mark.parametrize("equation", AS_MATMUL)
def test_two_operands_are_one_matmul(equation, precision):
    shapes, composed = AS_MATMUL[equation]
    leaves = leaves_of(shapes)

    def matmul(a, b):
        return functional.matmul(a, b, precision=precision, seed=7)

    assert_all_equal(
        everything(
            lambda *x: functional.einsum(equation, *x, precision=precision, seed=7),
            leaves,
        ),
        everything(lambda *x: composed(matmul, *x), leaves),
    )


@pytest.mark.parametrize("precision", [LOW, RANDOM], ids=["rne", "sr"])
def test_more_operands_are_contracted_from_the_left(precision):
    leaves = leaves_of([(2, 3), (3, 4), (4, 2), (2, 3)])

    def steps(a, b, c, d):
        for number, factor in enumerate((b, c, d)):
            seed = later_seed(7, number) if number else 7
            a = functional.matmul(a, factor, precision=precision, seed=seed)
        return a

    assert_all_equal(
        everything(
            lambda *x: functional.einsum(
                "ij,jk,kl,lm->im", *x, precision=precision, seed=7
            ),
            leaves,
        ),
        everything(steps, leaves),
    )


def test_indices_of_one_operand_are_summed_before():
    # 256 + 1 + 1 is 256 in bfloat16.
    a, b = torch.tensor([[256.0, 1.0, 1.0]]), torch.tensor([2.0])
    low = Precision(accumulator="bfloat16")
    assert functional.einsum("ij,i->", a, b, precision=low).item() == 512.0
    assert functional.einsum("i,ij->", b, a, precision=low).item() == 512.0
    # That sum has no products: 6 times 1.125 is 6.75, and 7 as a product in e5m2.
    a, b = torch.full((1, 6), 1.125), torch.ones(1)
    low = Precision(accumulator=Accumulator("bfloat16", product="e5m2"))
    assert functional.einsum("ij,i->", a, b, precision=low).item() == 7.0


@pytest.mark.parametrize("equation", ["ij->ji", "ii->i", "i->i", "ab...->...b"])
def test_one_operand_is_rounded_only_where_it_is_summed(equation):
    x = leaf(3, 3) if "..." not in equation else leaf(2, 3, 2)
    x = x if equation != "i->i" else leaf(3)
    precision = Precision(elementwise="e5m2", accumulator="e6m5", **ROUNDINGS)
    y = functional.einsum(equation, x, precision=precision)
    expected = torch.einsum(equation, x)
    assert y.shape == expected.shape
    if equation != "ab...->...b":
        assert_bit_equal(y.detach(), expected.detach())
        return
    terms = x.detach().double().permute(2, 1, 0)  # [..., b, a]
    total = lp.matmul(
        terms, torch.ones(2, dtype=torch.float64), accumulator="e6m5", output="e5m2"
    )
    assert_bit_equal(y.detach(), total.float())
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, 1.1))
    assert_bit_equal(gradient, torch.ones_like(x))


@pytest.mark.parametrize(
    "operands",
    [
        lambda a, b: (a, [0, 1], b, [1, 2], [0, 2]),
        lambda a, b: (a, [3, 1], b, [1, 4]),
        lambda a, b: (a, [..., 1], b, [1, 4], [..., 4]),
        lambda a, b: ("ij,jk->ik", [a, b]),
        lambda a, b: (" ij, jk -> ik ", a, b),
    ],
)
def test_other_spellings(operands):
    a, b = torch.randn(2, 3), torch.randn(3, 4)
    actual = functional.einsum(*operands(a, b), precision=LOW)
    assert_bit_equal(actual, functional.matmul(a, b, precision=LOW))
    identity = functional.einsum(*operands(a, b), precision=Precision())
    assert_bit_equal(identity, torch.einsum(*operands(a, b)))


A, B = torch.ones(2, 3), torch.ones(3, 4)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("ij,jk", A), ValueError, "has 2 terms for 1 operands"),
        (("i,jk", A, B), ValueError, "the term 'i' of equation 'i,jk' does not"),
        (("i1,jk", A, B), ValueError, "one letter per dimension"),
        (("ij,jk->ii", A, B), ValueError, "must occur once"),
        (("ij,jk->il", A, B), ValueError, "must occur once"),
        (("ij,ik->jk", A, B), ValueError, "index 'i' has sizes 3 and 2"),
        (("ij,jk", A, B.double()), TypeError, "must have the same dtype"),
        (("ij,jk", A.half(), B.half()), TypeError, "half carrier"),
        ((A, [0, 1], B, [1, 99]), ValueError, "ints from 0 to 51"),
    ],
)
def test_einsum_refusals(arguments, kind, message):
    with pytest.raises(kind, match=message):
        functional.einsum(*arguments, precision=LOW)


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
        g = torch.randn(2, 4, generator=torch.Generator().manual_seed(5))
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
