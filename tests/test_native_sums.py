"""Sums of products in C++ equal the portable ones and the exact oracle."""

import math
import random

import pytest
import torch
from native_checks import (
    BY_NAME,
    ISA_NAMES,
    ISAS,
    SEED,
    portable_product,
    product,
    same_numbers,
    with_all_isas,
    with_isa,
)
from tables import CARRIERS, FORMATS, MODES, ORDERS, SATURATIONS, fits, name_of

import lowprec as lp
from lowprec.kernels import native
from lowprec.testing import exact_dot

NARROW = [f for f in FORMATS if f.precision <= 51]


@pytest.fixture(params=ISAS or [2], ids=ISA_NAMES.get)
def isa(request):
    yield from with_isa(request.param)


@pytest.fixture
def all_isas():
    yield from with_all_isas()


def accumulators(rounding, products=("exact", "accumulator", "e4m3"), size=3):
    for order in ORDERS:
        block = size if order.value == "blocked" else None
        for rounded in products:
            yield lp.Accumulator(rounding, rounded, order, block)


def spread(shape, seed, width=12):
    """Numbers with few significant bits and exponents all over [-width, width]."""
    source = torch.Generator().manual_seed(seed)
    significand = torch.randint(-15, 16, shape, generator=source)
    exponent = torch.randint(-width, width + 1, shape, generator=source)
    return torch.ldexp(significand.float(), exponent)


SHAPES = [
    *((1, 1, 1), (3, 40, 10), (40, 3, 10), (5, 7, 1), (1, 9, 130), (67, 33, 65)),
    *((600, 2, 2), (2, 65, 7), (20, 5, 64), (0, 3, 2), (2, 0, 3), (2, 3, 0)),
]


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matmul_of_every_shape(shape, carrier, isa):
    m, k, n = shape
    a = spread((m, k), 1, 3).to(carrier)
    b = torch.randn((k, n), dtype=carrier)
    for mode in ("nearest_even", "stochastic"):
        rounding = lp.Rounding("e6m8", mode, random_bits=20)
        for accumulator in accumulators(rounding):
            expected = portable_product(a, b, accumulator, 5)
            assert same_numbers(product(a, b, accumulator, 5), expected), accumulator


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_matmul_of_every_mode_equals_the_portable_one(mode, carrier, isa):
    a, b = spread((6, 40), 2, 4).to(carrier), torch.randn((40, 9), dtype=carrier)
    for name in ("e5m2", "bfloat16", "e8m15", "e2m1fn", "unsigned", "bf16_flush"):
        rounding = lp.Rounding(BY_NAME[name], mode, random_bits=11, variant="B")
        for accumulator in accumulators(rounding):
            expected = portable_product(a, b, accumulator)
            assert same_numbers(product(a, b, accumulator), expected), accumulator


@pytest.mark.parametrize("target", NARROW, ids=name_of)
def test_matmul_in_every_format_equals_the_oracle(target, all_isas):
    carrier = torch.float32 if fits(target, torch.float32) else torch.float64
    a, b = (spread((3, 7), seed, 6).to(carrier) for seed in (3, 4))
    for mode in ("nearest_even", "toward_negative", "to_odd", "stochastic"):
        rounding = lp.Rounding(target, mode, random_bits=20, variant="C")
        for accumulator in accumulators(rounding, ("exact", "accumulator")):
            expected = [
                exact_dot(x, y, accumulator, SEED % 2**64, 3 * i + j)
                for i, x in enumerate(a.tolist())
                for j, y in enumerate(b.tolist())
            ]
            wanted = torch.tensor(expected, dtype=carrier).view(3, 3)
            for isa in all_isas:
                native.set_instruction_set(isa)
                actual = product(a, b.T, accumulator)
                assert same_numbers(actual, wanted), (accumulator, isa)


def adversaries(p):
    """Ties that something far below decides, cancellation, subnormal sums."""
    u, tiny, huge = 2.0**-p, 2.0**-120, 2.0**100
    return [
        [1.0, u, tiny, 0.0],
        [1.0, u, -tiny, 0.0],
        [1.0 + 2 * u, u, tiny, 0.0],
        [-tiny, 1.0, u, 0.0],
        [tiny, -1.0, -u, 0.0],
        [-tiny, 2.0, -u, u / 2],
        [1.0, -u, u / 2, -tiny],
        [1.0, -u / 2, -tiny, 0.0],
        [huge, 1.0, -huge, 1.0],
        [1.0, u / 2, -1.0, -u / 2],
        [huge, tiny, -huge, tiny],
        [2.0**-126, -(2.0**-127), 2.0**-133, 2.0**-149],
        [2.0**-149, 2.0**-149, -(2.0**-148), 2.0**-134],
        [0.0, -0.0, -0.0, 0.0],
        [-0.0, -0.0, -0.0, -0.0],
        [math.inf, 1.0, -math.inf, 1.0],
        [-math.inf, 1.0, 2.0, 1.0],
        [math.nan, 1.0, 2.0, 1.0],
        [1e30, -1e30, 1e30, 1.0],
        [3e38, 3e38, -3e38, 1.0],
    ]


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_adversarial_sums_equal_the_oracle(mode, carrier, all_isas):
    for name in ("bfloat16", "e8m15", "binary32", "e8m50", "e4m3fnuz", "e5m2"):
        target = BY_NAME[name]
        if not fits(target, carrier):
            continue
        a = torch.tensor(adversaries(target.precision), dtype=torch.float64).to(carrier)
        ones = torch.ones((4, 2), dtype=carrier)
        ones[:, 1] = -1.0
        for saturation in SATURATIONS:
            rounding = lp.Rounding(target, mode, saturation)
            for accumulator in accumulators(rounding, ("exact", "accumulator")):
                expected = [
                    exact_dot(x, y, accumulator, SEED % 2**64, 2 * i + j)
                    for i, x in enumerate(a.tolist())
                    for j, y in enumerate(ones.T.tolist())
                ]
                wanted = torch.tensor(expected, dtype=carrier).view(-1, 2)
                for isa in all_isas:
                    native.set_instruction_set(isa)
                    actual = product(a, ones, accumulator)
                    assert same_numbers(actual, wanted), (accumulator, isa)


def test_products_of_more_than_53_bits_equal_the_oracle(all_isas):
    source = torch.Generator().manual_seed(5)
    a = torch.randn((20, 5), generator=source, dtype=torch.float64)
    b = torch.randn((5, 2), generator=source, dtype=torch.float64)
    a[:4, 0], b[0] = 1 + 2.0**-52, 1 - 2.0**-52
    a[:4, 1], b[1] = -1.0, 1.0
    a[4:8, 2:] = -0.0
    a[4:6, :2] = 0.0
    a[8:14] = torch.ldexp(a[8:14], torch.randint(-200, 200, (6, 5)))
    for mode in MODES:
        for name in ("bfloat16", "e8m15", "e8m50"):
            rounding = lp.Rounding(BY_NAME[name], mode, random_bits=24)
            for accumulator in accumulators(rounding):
                expected = [
                    exact_dot(x, y, accumulator, SEED % 2**64, 2 * i + j)
                    for i, x in enumerate(a.tolist())
                    for j, y in enumerate(b.T.tolist())
                ]
                wanted = torch.tensor(expected, dtype=torch.float64).view(-1, 2)
                for isa in all_isas:
                    native.set_instruction_set(isa)
                    actual = product(a, b, accumulator)
                    assert same_numbers(actual, wanted), (accumulator, isa)


def random_format(pick):
    """Any format, with a bias to the limits of the proofs that allow shortcuts."""
    p = pick.choice([1, 2, 3, 4, 5, 8, 9, 11, 12, 13, 16, 19, 22, 23, 24])
    emax = pick.choice([127, 120, 100, 60, *range(40)])
    emin = 1 - emax if emax > 40 else pick.randint(-40, emax)
    infinities = pick.random() < 0.7
    nans = infinities or pick.random() < 0.5
    return lp.Format(
        precision=p,
        emax=emax,
        emin=max(emin, p - 150),
        max_significand=pick.choice([None, None, pick.randint(2 ** (p - 1), 2**p - 1)]),
        infinities=infinities,
        nans=nans,
        subnormals=pick.random() < 0.9,
        encoding="ieee" if infinities else "fn" if nans else "finite",
    )


def random_matrix(pick, shape, carrier):
    """Few or many bits, narrow or wide exponents, zeros, now and then a special."""
    source = torch.Generator().manual_seed(pick.randint(0, 2**40))
    bits = pick.choice(
        [1, 2, 3, 4, 6, 8, 11, 12, 16, 24, 24 if carrier.itemsize == 4 else 53]
    )
    width, centre = (
        pick.choice([0, 1, 2, 5, 10, 20, 40]),
        pick.choice([0, 0, -20, 20, -50]),
    )
    x = torch.randint(1 - 2**bits, 2**bits, shape, generator=source).double()
    exponent = torch.randint(-width, width + 1, shape, generator=source)
    x = torch.ldexp(x, exponent + centre - bits)
    if pick.random() < 0.3:
        x = torch.where(torch.rand(shape, generator=source) < 0.3, 0.0 * x, x)
    if pick.random() < 0.08:
        x.view(-1)[pick.randrange(x.numel())] = pick.choice(
            [math.inf, -math.inf, math.nan]
        )
    return x.to(carrier)


@pytest.mark.parametrize("seed", range(8))
def test_random_accumulators_and_operands(seed, all_isas):
    # Shortcuts are taken where they are proved: try to catch a proof that is wrong.
    pick = random.Random(seed)
    for _ in range(60):
        m, k, n = (pick.choice(sizes) for sizes in ((1, 3, 5), (2, 20, 70), (1, 8, 17)))
        carrier = pick.choice([torch.float32, torch.float32, torch.float64])
        a, b = (
            random_matrix(pick, (m, k), carrier),
            random_matrix(pick, (k, n), carrier),
        )
        modes = ["nearest_even"] * 6 + ["toward_zero", "to_odd", "stochastic"]
        rounding = lp.Rounding(
            random_format(pick), pick.choice(modes), pick.choice(SATURATIONS)
        )
        rounded = lp.Rounding(random_format(pick), saturation=pick.choice(SATURATIONS))
        order = pick.choice(ORDERS)
        blocked = order.value == "blocked"
        inner = lp.Rounding(random_format(pick), pick.choice(modes))
        accumulator = lp.Accumulator(
            rounding,
            pick.choice(["exact", "exact", "accumulator", rounded]),
            order,
            pick.choice([1, 2, 31, 32, 64]) if blocked else None,
            pick.choice([None, "binary32", inner]) if blocked else None,
        )
        expected = portable_product(a, b, accumulator)
        native.set_instruction_set(pick.choice(all_isas))
        assert same_numbers(product(a, b, accumulator), expected), accumulator


@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_layouts_threads_and_offsets_do_not_matter(mode, isa):
    a, b = torch.randn(71, 90), torch.randn(90, 70)
    for accumulator in accumulators(lp.Rounding("bfloat16", mode)):
        expected = product(a, b, accumulator)
        assert same_numbers(product(a.T.contiguous().T, b, accumulator), expected)
        assert same_numbers(product(a, b.T.contiguous().T, accumulator), expected)
        wide = torch.full((142, 180), math.nan)
        wide[::2, ::2] = a
        assert same_numbers(product(wide[::2, ::2], b, accumulator), expected)
        lower = product(a[40:], b, accumulator, 40 * 70)
        assert same_numbers(lower, expected[40:])
        torch.set_num_threads(2)
        assert same_numbers(product(a, b, accumulator), expected)
        torch.set_num_threads(1)


def test_batches(isa):
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5, 6)
    accumulator = lp.Accumulator(lp.Rounding("e5m2", "stochastic"))
    expected = torch.stack(
        [
            product(x, y, accumulator, 24 * i)
            for i, (x, y) in enumerate(
                zip(a.view(6, 4, 5), b.view(6, 5, 6), strict=True)
            )
        ]
    ).view(2, 3, 4, 6)
    assert same_numbers(product(a, b, accumulator), expected)
    same = b[0, 0].expand(2, 3, 5, 6)
    assert same_numbers(
        product(a, same, accumulator), product(a, same.clone(), accumulator)
    )


@pytest.mark.parametrize("terms", [*range(1, 20), 31, 32, 33, 63, 64, 65, 100])
def test_pairwise_of_every_length(terms, isa):
    a, b = spread((4, terms), terms), torch.randn(terms, 5)
    for mode in ("nearest_even", "stochastic"):
        accumulator = lp.Accumulator(lp.Rounding("bfloat16", mode), order="pairwise")
        expected = portable_product(a, b, accumulator)
        assert same_numbers(product(a, b, accumulator), expected)


def compare_with_oracle(a, accumulator, isas):
    """Compare the sums of the rows of ``a``."""
    ones = torch.ones((a.shape[1], 1), dtype=a.dtype)
    expected = [
        [exact_dot(row, [1.0] * len(row), accumulator, SEED % 2**64, i)]
        for i, row in enumerate(a.tolist())
    ]
    wanted = torch.tensor(expected, dtype=a.dtype)
    for isa in isas:
        native.set_instruction_set(isa)
        assert same_numbers(product(a, ones, accumulator), wanted), (accumulator, isa)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
def test_sums_that_a_first_rounding_would_turn_into_ties(carrier, all_isas):
    # 1 + 2^(1-p) + 2^-p - 2^-2p is just below a tie of p bits; rounded first to 2p bits
    # or less it becomes one.
    for p in range(2, 24 if carrier == torch.float32 else 51):
        u = 2.0**-p
        near, wider = u - u * u, u - u * u / 2
        rows = [[1 + 2 * u, near], [1.0, u + 2 * u * u], [-1 - 2 * u, -near]]
        rows += [[near, 1 + 2 * u], [1 + 2 * u, wider]]
        target = lp.Format(precision=p, emax=100, emin=-110 + p)
        for rounded in ("exact", "accumulator"):
            accumulator = lp.Accumulator(lp.Rounding(target), rounded)
            for row in rows:  # one by one: what is proved depends on all elements
                a = torch.tensor([row], dtype=torch.float64).to(carrier)
                compare_with_oracle(a, accumulator, all_isas)


def test_sums_at_the_limit_of_exact_float32_addition(all_isas):
    # The total is far above the terms' lowest bit: 130 + 1/2 + 2^-j is above a tie.
    accumulator = lp.Accumulator("bfloat16")
    for j in range(2, 24):
        for row in ([1.0] * 131 + [0.5 - 2.0**-j], [1.0] * 130 + [0.5 + 2.0**-j]):
            compare_with_oracle(torch.tensor([row]), accumulator, all_isas)


def test_infinite_products_in_a_sum_that_saturates(all_isas):
    # The largest value takes the place of the infinite sum, far above finite products.
    saturating = lp.Rounding("e8m15", saturation="finite")
    for rounded in ("e5m2", lp.Rounding("e5m2", saturation="finite"), "exact"):
        for size in (None, 2):
            order = "sequential" if size is None else "blocked"
            accumulator = lp.Accumulator(saturating, rounded, order, size)
            for big in (1e5, math.inf):
                a = torch.tensor(
                    [[big, 1.0, -big, 3.0, 1.0], [1.0, big, big, 0.5, -1.0]]
                )
                compare_with_oracle(a, accumulator, all_isas)
