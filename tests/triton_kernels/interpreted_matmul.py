"""Interpreted: emulated products have the bits of the other kernels."""

import random

import pytest
import torch
from native_checks import (
    BY_NAME,
    SEED,
    arguments,
    portable_product,
    same_bits,
    same_numbers,
)
from tables import CARRIERS, MODES, ORDERS, SATURATIONS, STOCHASTIC, fits, name_of
from test_native_sums import adversaries, random_format, random_matrix, spread

import lowprec as lp
from lowprec import kernels
from lowprec.kernels import triton
from lowprec.testing import exact_dot

pytestmark = [
    pytest.mark.skipif(not triton.interpreted(), reason="not interpreted"),
    # The interpreter is numpy, which warns of infinities and NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
BF16 = lp.Rounding("bfloat16")
NARROW = lp.Rounding("e4m3", "stochastic", random_bits=9)


def product(a, b, accumulator, offset=0):
    rest = (torch.tensor(SEED), offset)
    return triton.matmul(a, b, *arguments(accumulator), *rest)


def usual_product(a, b, accumulator, offset=0):
    rest = (torch.tensor(SEED), offset)
    return kernels.matmul(a, b, *arguments(accumulator), *rest)


def check(a, b, accumulator, offset=0):
    expected = usual_product(a, b, accumulator, offset)
    actual = product(a, b, accumulator, offset)
    assert actual.dtype == expected.dtype
    assert actual.is_contiguous()
    assert same_numbers(actual, expected), accumulator


def few_bits(shape, seed, carrier):
    """Numbers of few bits, whose float64 products are exact."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source).bfloat16().to(carrier)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_every_mode(mode, carrier):
    a, b = spread((5, 3), 2, 4).to(carrier), few_bits((3, 8), 3, carrier)
    names = ["e5m2", "bfloat16", "e8m15", "unsigned", "bf16_flush"]
    # The interpreter takes its time for random words.
    few = mode in STOCHASTIC or carrier == torch.float64
    for name in names[: 2 if few else None]:
        rounding = lp.Rounding(BY_NAME[name], mode, random_bits=11, variant="B")
        check(a, b, lp.Accumulator(rounding))
        check(a, b, lp.Accumulator(rounding, "accumulator", "blocked", 2), 3)
    check(a, b, lp.Accumulator(rounding, NARROW, "blocked", 2, within="e5m2"))


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (3, 4, 5), (1, 2, 40), (20, 2, 1), (17, 1, 20), (0, 3, 2), (2, 3, 0)],
    ids=str,
)
def test_every_shape_across_programs(shape, monkeypatch):
    from lowprec.kernels.triton import _matmul

    monkeypatch.setattr(_matmul, "_LARGEST_TILE", 16)
    m, k, n = shape
    a, b = spread((m, k), 1, 3), torch.randn((k, n))
    for mode in ("nearest_even", "stochastic"):
        rounding = lp.Rounding("e6m8", mode)
        for accumulator in (
            lp.Accumulator(rounding),
            lp.Accumulator(rounding, NARROW, "blocked", 3),
        ):
            check(a, b, accumulator, 2**33 + 5)
        check(a, b, accumulator, 2**33 + 8)


def test_no_terms_give_zeros():
    a, b = torch.ones(3, 0), torch.ones(0, 4)
    assert same_bits(product(a, b, lp.Accumulator("e5m2")), torch.zeros(3, 4))


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_adversarial_sums(mode, carrier):
    names = ["e8m15", "bfloat16", "binary32", "e4m3fnuz"]
    for name in names[: 1 if mode in STOCHASTIC else None]:
        target = BY_NAME[name]
        if not fits(target, carrier):
            continue
        values = adversaries(target.precision)
        a = torch.tensor(values, dtype=torch.float32).to(carrier)
        ones = torch.ones((4, 2), dtype=carrier)
        ones[:, 1] = -1.0
        # Saturation is the rounding's, which is tested elsewhere: two are enough.
        for saturation in SATURATIONS[: 2 if carrier == torch.float32 else 1]:
            rounding = lp.Rounding(target, mode, saturation)
            check(a, ones, lp.Accumulator(rounding))
        check(a, ones, lp.Accumulator(rounding, "accumulator", "blocked", 2))


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_results_are_those_of_the_oracle(mode):
    a, b = spread((3, 5), 4, 6), spread((3, 5), 5, 6)
    names = ["deep", "e8m15", "e5m2", "unsigned_finite"]
    for name in names[: 1 if mode in STOCHASTIC else None]:
        rounding = lp.Rounding(BY_NAME[name], mode, random_bits=20, variant="C")
        for accumulator in (
            lp.Accumulator(rounding),
            lp.Accumulator(rounding, "accumulator", "blocked", 2),
        ):
            expected = [
                exact_dot(x, y, accumulator, SEED % 2**64, 3 * i + j)
                for i, x in enumerate(a.tolist())
                for j, y in enumerate(b.tolist())
            ]
            wanted = torch.tensor(expected, dtype=torch.float32).view(3, 3)
            assert same_numbers(product(a, b.T, accumulator), wanted), accumulator


def random_case(pick):
    m, k, n = (pick.choice(sizes) for sizes in ((1, 3, 5), (2, 7, 20), (1, 8, 17)))
    carrier = pick.choice(CARRIERS)
    a, b = (random_matrix(pick, shape, carrier) for shape in ((m, k), (k, n)))
    modes = ["nearest_even"] * 6 + ["toward_zero", "to_odd", "stochastic"]
    saturations = [pick.choice(SATURATIONS) for _ in range(2)]
    rounding = lp.Rounding(random_format(pick), pick.choice(modes), saturations[0])
    rounded = lp.Rounding(random_format(pick), saturation=saturations[1])
    order = pick.choice(ORDERS[:2])
    size = pick.choice([1, 2, 5, 32]) if order.value == "blocked" else None
    chosen = pick.choice(["exact", "exact", "accumulator", rounded])
    return a, b, lp.Accumulator(rounding, chosen, order, size)


@pytest.mark.parametrize(
    "seed",
    [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 40))],
)
def test_random_accumulators_and_operands(seed):
    # Shortcuts are taken where they are proved: try to catch a proof that is wrong.
    pick = random.Random(seed)
    for _ in range(20):
        check(*random_case(pick))


@pytest.mark.parametrize("p", [2, 3, 5, 8, 10, 11, 12, 15, 22, 23])
def test_sums_that_a_first_rounding_would_turn_into_ties(p):
    # 1 + 2^(1-p) + 2^-p - 2^-2p is just below a tie of p bits; rounded first to 2p bits
    # or less it becomes one.
    u = 2.0**-p
    near = u - u * u
    target = lp.Format(precision=p, emax=100, emin=-110 + p)
    for row in ([1 + 2 * u, near], [-1 - 2 * u, -near], [1 + 2 * u, u - u * u / 2]):
        a = torch.tensor([row])
        for rounded in ("exact", "accumulator"):
            check(a, torch.ones(2, 1), lp.Accumulator(lp.Rounding(target), rounded))


@pytest.mark.parametrize("saturation", SATURATIONS, ids=name_of)
def test_sums_beyond_the_accumulator_of_few_bits(saturation):
    # float32 is proved to do, but not without tests for overflow and subnormals.
    rows = [[256.0] * 4, [-192.0] * 4, [2.0**-8, 2.0**-9, -(2.0**-7), 2.0**-10]]
    for name in ("e4m3fn", "e5m2"):
        rounding = lp.Rounding(name, saturation=saturation)
        for row in rows:  # one by one: what is proved depends on all elements
            a = torch.tensor([row]) * (128 if name == "e5m2" and row[1] > 1 else 1)
            check(a, torch.ones(4, 1), lp.Accumulator(rounding))
            check(a, torch.ones(4, 1), lp.Accumulator(rounding, "accumulator"))


def test_infinite_products_in_a_sum_that_saturates():
    # The largest value takes the place of the infinite sum, far above finite products.
    saturating = lp.Rounding("e8m15", saturation="finite")
    for rounded in ("e5m2", lp.Rounding("e5m2", saturation="finite"), "exact"):
        for big in (1e5, float("inf")):
            rows = [[big, 1.0, -big, 3.0, 1.0], [1.0, big, big, 0.5, -1.0]]
            a = torch.tensor(rows)
            check(a, torch.ones(5, 1), lp.Accumulator(saturating, rounded))


@pytest.mark.parametrize("mode", ["nearest_even", "toward_zero"])
def test_sums_beyond_float64_are_finite_ones(mode):
    # Every product becomes 2^1022, so that four make an overflow, but no infinity.
    huge = lp.Rounding(
        lp.Format(precision=2, emax=1023, emin=1023, name="huge"), "toward_positive"
    )
    wide = lp.Rounding("e11m5", mode, saturation="propagate")
    a = torch.ones(1, 6)
    check(a.double(), a.double().T, lp.Accumulator(wide, huge))
    narrow = lp.Rounding("bfloat16", saturation="propagate")
    check(a, a.T, lp.Accumulator(narrow, huge, "blocked", 6, within=wide))


def proofs(a, b, accumulator):
    from lowprec.kernels.triton import _matmul

    chosen = _matmul.Codes(*map(tuple, arguments(accumulator)[:3]))
    return _matmul._proof(a, b, chosen, arguments(accumulator)[3])


def test_float32_is_used_where_it_is_proved_only():
    a, b = spread((4, 8), 1, 2), spread((8, 4), 2, 2)  # products of 8 bits
    width, proof = proofs(a, b, lp.Accumulator("bfloat16"))
    assert (width, proof.odd, proof.guarded) == (32, False, False)
    # Terms of more bits than the accumulator, and more than a float32 sum holds.
    wide = torch.ldexp(few_bits((4, 8), 3, torch.float32), torch.arange(8) * 4)
    width, proof = proofs(
        wide, few_bits((8, 4), 4, torch.float32), lp.Accumulator(BF16)
    )
    assert (width, proof.odd) == (32, True)
    width, proof = proofs(a, b, lp.Accumulator(lp.Rounding("e4m3fn")))
    assert (width, proof.guarded) == (32, True)
    # Products of 48 bits; modes without a proof.
    width, proof = proofs(torch.randn(4, 8), torch.randn(8, 4), lp.Accumulator("e5m2"))
    assert (width, proof is not None) == (64, True)
    for mode in ("toward_zero", "stochastic"):
        accumulator = lp.Accumulator(lp.Rounding("e5m2", mode))
        assert proofs(a, b, accumulator) == (64, None)


@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_layouts_and_batches_do_not_matter(mode):
    accumulator = lp.Accumulator(lp.Rounding("bfloat16", mode))
    a, b = torch.randn(2, 2, 4, 3), torch.randn(2, 2, 3, 8)
    expected = product(a, b, accumulator)
    assert same_numbers(expected, usual_product(a, b, accumulator))
    turned = a.mT.contiguous().mT, b.mT.contiguous().mT
    assert same_numbers(product(*turned, accumulator), expected)
    wide = torch.full((2, 2, 8, 6), float("nan"))
    wide[..., ::2, ::2] = a
    assert same_numbers(product(wide[..., ::2, ::2], b, accumulator), expected)
    last = product(a[1, 1], b[1, 1], accumulator, 3 * 32)
    assert same_numbers(last, expected[1, 1])
    lower = product(a[1, 1, 2:], b[1, 1], accumulator, 3 * 32 + 16)
    assert same_numbers(lower, expected[1, 1, 2:])
    same = b[0, 0].expand(2, 2, 3, 8)
    assert same_numbers(
        product(a, same, accumulator), product(a, same.clone(), accumulator)
    )


def test_what_has_no_kernel_is_computed_by_the_portable_one(monkeypatch):
    from lowprec.kernels.triton import _matmul

    monkeypatch.setattr(_matmul, "matmul", None)  # must not be called
    a, b = torch.randn(4, 7), torch.randn(7, 3)
    for order in ("pairwise", "kahan"):
        accumulator = lp.Accumulator("bfloat16", order=order)
        expected = portable_product(a, b, accumulator)
        assert same_bits(product(a, b, accumulator), expected)
    wide = torch.randn(4, 7, dtype=torch.float64), torch.randn(7, 3).double()
    expected = portable_product(*wide, lp.Accumulator("bfloat16"))
    assert same_bits(product(*wide, lp.Accumulator("bfloat16")), expected)


def test_what_cannot_be_exact_is_refused():
    a, b = torch.ones(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="at most 51"):
        product(a, b, lp.Accumulator("binary64"))
    with pytest.raises(ValueError, match="use float64 operands"):
        product(a.float(), b.float(), lp.Accumulator("e11m5"))
    with pytest.raises(ValueError, match="scale the operands"):
        product(a * 2.0**600, b * 2.0**600, lp.Accumulator("e5m2"))
    with pytest.raises(ValueError, match=r"cannot multiply \(2, 2\)"):
        product(a, a[:1], lp.Accumulator("e5m2"))
    with pytest.raises(TypeError, match="got float64"):
        product(a.float(), b, lp.Accumulator("e5m2"))


def test_operations_reach_the_kernel(monkeypatch):
    from lowprec.kernels.triton import _matmul

    calls = []
    kernel = _matmul.matmul
    monkeypatch.setattr(_matmul, "matmul", lambda *x: calls.append(1) or kernel(*x))
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    accumulator = lp.Accumulator(lp.Rounding("e6m8", "stochastic"), "e5m2")
    expected = lp.matmul(a, b, accumulator=accumulator, seed=3)
    with kernels.using("triton"):
        actual = lp.matmul(a, b, accumulator=accumulator, seed=3)
    assert calls == [1]
    assert same_bits(actual, expected)


def chunk_bound(a, b, chunk, unit):
    """Bound on the error of the sums of chunks, from `chunked_dot`'s contract."""
    return (chunk + 1) * unit * (a.double().abs() @ b.double().abs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_chunked_dot_keeps_its_bound(dtype):
    a, b = torch.randn(2, 5, 70).to(dtype), torch.randn(2, 70, 9).to(dtype)
    rounding = lp.Rounding("e8m22")  # its own roundings are below the bound
    actual = triton.chunked_dot(a, b, rounding.code, 32)
    assert actual.dtype == torch.float32
    error = (actual.double() - a.double() @ b.double()).abs()
    assert (error <= chunk_bound(a, b, 32 + 3, 2.0**-21)).all()
    # The bound is not idle: one rounding to few bits breaks it.
    coarse = triton.chunked_dot(a, b, lp.Rounding("e8m3").code, 32)
    error = (coarse.double() - a.double() @ b.double()).abs()
    assert (error > chunk_bound(a, b, 32 + 3, 2.0**-21)).any()


def test_chunked_dot_rounds_between_chunks():
    # Sums of small integers are exact in any order, so only the roundings remain.
    a, b = torch.randint(-8, 9, (3, 50)), torch.randint(-8, 9, (50, 20))
    for mode in ("nearest_even", "toward_zero", "stochastic"):
        rounding = lp.Rounding("e5m2", mode)
        accumulator = lp.Accumulator(rounding, order="blocked", block_size=16)
        within = lp.Accumulator(
            rounding, order="blocked", block_size=16, within="binary32"
        )
        x, y = a.float(), b.float()
        actual = triton.chunked_dot(x, y, rounding.code, 16, torch.tensor(SEED), 7)
        assert same_bits(actual, usual_product(x, y, within, 7))
        assert not same_bits(actual, usual_product(x, y, accumulator, 7))


def test_chunked_dot_refuses_what_it_cannot_do():
    a, code = torch.ones(2, 32), lp.Rounding("e5m2").code
    with pytest.raises(ValueError, match="multiple of 16, got 8"):
        triton.chunked_dot(a, a.T, code, 8)
    with pytest.raises(ValueError, match="cannot multiply"):
        triton.chunked_dot(a, a, code, 16)
    stochastic = lp.Rounding("e5m2", "stochastic").code
    with pytest.raises(ValueError, match="needs a seed"):
        triton.chunked_dot(a, a.T, stochastic, 16)
    with pytest.raises(TypeError, match="float32, float16, bfloat16 cpu tensors"):
        triton.chunked_dot(a.double(), a.T.double(), code, 16)
