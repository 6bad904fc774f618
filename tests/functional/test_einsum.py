"""einsum: torch judges the meaning, compositions of matmul the roundings."""

import pytest
import torch
from gradients import assert_all_close, assert_all_equal, everything
from layer_roundings import ROUNDINGS, leaf
from product_precisions import LOW, RANDOM, WIDE, later_seed, leaves_of

import lowprec as lp
from lowprec import Accumulator, functional
from lowprec.precision import Precision
from lowprec.testing import assert_bit_equal

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
