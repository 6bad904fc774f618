"""`lowprec.matmul` and `dot` equal exact rational sums, bit for bit."""

import math

import pytest
import torch
from tables import CARRIERS, FORMATS, MODES, ORDERS, SATURATIONS, fits, name_of

import lowprec as lp
from lowprec.testing import assert_bit_equal, exact_dot, exact_matmul

pytestmark = pytest.mark.usefixtures("backend")

SEED = 77
_BY_NAME = {target.name: target for target in FORMATS}
NARROW = [f for f in FORMATS if f.precision <= 51]


def accumulators(rounding, products=("exact", "accumulator", "e4m3")):
    """Every order with every product."""
    for order in ORDERS:
        sizes = (1, 3, 64) if order.value == "blocked" else (None,)
        # Compensated sums take the oracle four times as long: see test_sum_orders.py.
        chosen = products[:1] if order.value == "kahan" else products
        for size in sizes:
            for product in chosen:
                yield lp.Accumulator(rounding, product, order, size)


def seed_of(accumulator):
    return SEED if accumulator.stochastic else None


def compare(a, b, accumulator):
    """Compare a batch of dots [N, K] x [N, K] with the oracle."""
    actual = lp.dot(a, b, accumulator=accumulator, seed=seed_of(accumulator))
    expected = [
        exact_dot(x, y, accumulator, SEED, index)
        for index, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True))
    ]
    try:
        assert_bit_equal(actual, torch.tensor(expected, dtype=a.dtype))
    except AssertionError as error:
        raise AssertionError(f"{accumulator}: {error}") from None


def spread(shape, generator, width=12):
    """Numbers with few significant bits and exponents all over [-width, width]."""
    significand = torch.randint(-15, 16, shape, generator=generator)
    exponent = torch.randint(-width, width + 1, shape, generator=generator)
    return torch.ldexp(significand.float(), exponent)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
@pytest.mark.parametrize("name", ["e5m2", "bfloat16", "e6m8", "e8m15"])
def test_random_dots(name, mode, carrier):
    source = generator()
    a = spread((6, 9), source).to(carrier)
    b = torch.randn((6, 9), generator=source).to(carrier)
    rounding = lp.Rounding(name, mode, random_bits=11, variant="B")
    for accumulator in accumulators(rounding):
        compare(a, b, accumulator)


@pytest.mark.parametrize("target", NARROW, ids=name_of)
def test_every_format(target):
    carrier = torch.float32 if fits(target, torch.float32) else torch.float64
    source = generator(1)
    a, b = (spread((6, 7), source, 6).to(carrier) for _ in range(2))
    for mode in ("nearest_even", "toward_negative", "to_odd", "stochastic"):
        rounding = lp.Rounding(target, mode, random_bits=20, variant="C")
        for accumulator in accumulators(rounding, ("exact", "accumulator")):
            compare(a, b, accumulator)


@pytest.mark.parametrize("saturation", SATURATIONS, ids=name_of)
@pytest.mark.parametrize("name", ["e5m2", "e4m3fn", "e4m3fnuz", "e2m1fn", "unsigned"])
def test_overflow_and_specials(name, saturation):
    inf, nan = math.inf, math.nan
    a = torch.tensor(
        [
            [200.0, 300.0, 400.0, -900.0],
            [6e4, 6e4, -6e4, -6e4],
            [inf, -inf, 1.0, 1.0],
            [inf, 1.0, 1.0, -inf],
            [1.0, inf, 2.0, 3.0],
            [0.0, 1.0, nan, 2.0],
            [-inf, -1.0, -1.0, -2.0],
            [1e30, -1e30, 1e30, 1.0],
            [-5.0, 3.0, 2.5, 0.5],
        ]
    )
    b = torch.ones_like(a)
    b[4, 1] = 0.0  # inf * 0
    b[3] = torch.tensor([1.0, -2.0, 1e30, 1e-30])
    for mode in MODES:
        rounding = lp.Rounding(_BY_NAME[name], mode, saturation)
        for accumulator in accumulators(rounding):
            compare(a, b, accumulator)
            compare(a.double(), b.double(), accumulator)


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_signs_of_zero(mode):
    zero = 0.0
    a = torch.tensor(
        [[zero, -zero], [-zero, -zero], [1.0, -1.0], [-1.0, 1.0], [1e-30, -1e-30]]
    )
    b = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1e-30, -1e-30]])
    for name in ("e5m2", "e4m3fnuz", "e5m2_flush"):
        rounding = lp.Rounding(_BY_NAME[name], mode)
        for accumulator in accumulators(rounding):
            compare(a, b, accumulator)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
@pytest.mark.parametrize("name", ["bfloat16", "e8m15", "binary32", "e8m50"])
def test_adversarial_cancellation_ties_and_gaps(name, mode, carrier):
    target = _BY_NAME[name]
    if not fits(target, carrier):
        pytest.skip("the carrier cannot hold the results")
    p = target.precision
    u = 2.0**-p
    tiny, huge = 2.0**-120, 2.0**100
    rows = [
        # A tie, decided by something far below: both signs, both parities.
        [1.0, u, tiny, 0.0],
        [1.0, u, -tiny, 0.0],
        [1.0 + 2 * u, u, tiny, 0.0],
        [-tiny, 1.0, u, 0.0],
        [tiny, -1.0, -u, 0.0],
        [-tiny, 2.0, -u, u / 2],
        # Just below a power of two: the quantum is half of the one above.
        [1.0, -u, u / 2, -tiny],
        [1.0, -u / 2, -tiny, 0.0],
        # Cancellation after an inexact sum.
        [huge, 1.0, -huge, 1.0],
        [1.0, u / 2, -1.0, -u / 2],
        [huge, tiny, -huge, tiny],
        # Subnormal sums.
        [2.0**-126, -(2.0**-127), 2.0**-133, 2.0**-149],
        [2.0**-149, 2.0**-149, -(2.0**-148), 2.0**-134],
    ]
    a = torch.tensor(rows, dtype=torch.float64)
    if carrier == torch.float32:
        a = a.float()
        keep = torch.isfinite(a).all(dim=1)
        a = a[keep]
    ones = torch.ones_like(a)
    rounding = lp.Rounding(target, mode, random_bits=32, variant="A")
    for accumulator in accumulators(rounding, ("exact", "accumulator")):
        compare(a, ones, accumulator)


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_exact_products_that_need_more_than_53_bits(mode):
    # Products of 53-bit significands: their low halves decide.
    source = generator(2)
    a = torch.randn((40, 5), generator=source, dtype=torch.float64)
    b = torch.randn((40, 5), generator=source, dtype=torch.float64)
    a[:8, 0], b[:8, 0] = 1 + 2.0**-52, 1 - 2.0**-52
    a[:8, 1], b[:8, 1] = -1.0, 1.0
    for name in ("bfloat16", "e8m15", "e8m50"):
        rounding = lp.Rounding(_BY_NAME[name], mode, random_bits=24)
        for accumulator in accumulators(rounding, ("exact", "accumulator", "binary32")):
            compare(a, b, accumulator)


@pytest.mark.parametrize("wide_side", [0, 1])
@pytest.mark.parametrize("mode", ["nearest_even", "toward_positive", "stochastic"])
def test_products_of_a_wide_and_a_narrow_operand(mode, wide_side):
    # Only one operand has more than 26 bits: the product still needs more than 53.
    source = generator(9)
    wide = torch.randn((30, 4), generator=source, dtype=torch.float64)
    narrow = spread((30, 4), source, 2).double()
    wide[:10, 1], narrow[:10, 1] = 1 + 2.0**-52, 3.0
    wide[:10, 0], narrow[:10, 0] = -3.0, 1.0
    a, b = (wide, narrow) if wide_side == 0 else (narrow, wide)
    for name in ("bfloat16", "e8m15", "e8m50"):
        rounding = lp.Rounding(_BY_NAME[name], mode)
        for accumulator in accumulators(rounding, ("exact", "accumulator")):
            compare(a, b, accumulator)


@pytest.mark.parametrize("target", [f for f in NARROW if f.emax < 990], ids=name_of)
def test_sums_at_both_ends_of_the_range(target):
    # Where shortcuts for sums without overflow and underflow must not be taken.
    carrier = torch.float32 if fits(target, torch.float32) else torch.float64
    source = generator(10)
    signs = 1.0 - 2.0 * torch.randint(0, 2, (12, 6), generator=source)
    halvings = torch.randint(0, target.precision + 2, (12, 6), generator=source)
    for end in (target.max, 4 * target.smallest_subnormal, target.smallest_normal):
        scale = torch.ldexp(signs, -halvings).to(carrier)
        a = torch.full((12, 6), end, dtype=carrier) * scale
        b = torch.ones_like(a)
        for mode in ("nearest_even", "nearest_zero", "stochastic"):
            for order in ORDERS:
                size = 4 if order.value == "blocked" else None
                rounding = lp.Rounding(target, mode)
                compare(a, b, lp.Accumulator(rounding, "exact", order, size))


@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("order", ORDERS, ids=name_of)
def test_long_sums_of_many_elements(order, mode):
    # Large enough for kernels to work in parts; a few elements are checked.
    source = generator(11)
    a = spread((48, 1500), source, 3)
    b = torch.randn((1500, 48), generator=source)
    size = 700 if order.value == "blocked" else None
    accumulator = lp.Accumulator(lp.Rounding("bfloat16", mode), "exact", order, size)
    c = lp.matmul(a, b, accumulator=accumulator, seed=seed_of(accumulator))
    for i, j in ((0, 0), (17, 5), (47, 47)):
        expected = exact_dot(
            a[i].tolist(), b[:, j].tolist(), accumulator, SEED, 48 * i + j
        )
        assert c[i, j].item() == expected


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_products_that_are_ties_of_the_accumulator(mode):
    # 7 * 37/256 and 9 * 29/256 are ties of bfloat16; the accumulated value decides.
    a = torch.tensor([[s * 2.0**-70, 7.0, 9.0] for s in (-1, 0, 1)])
    b = torch.tensor([1.0, 37 / 256, 29 / 256]).expand(3, 3)
    rounding = lp.Rounding("bfloat16", mode)
    for accumulator in accumulators(rounding):
        compare(a, b, accumulator)


@pytest.mark.parametrize("order", ORDERS, ids=name_of)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 8, 17])
def test_lengths(k, order):
    source = generator(3)
    a, b = (torch.randn((3, k), generator=source) for _ in range(2))
    size = 4 if order.value == "blocked" else None
    for mode in ("nearest_even", "stochastic"):
        rounding = lp.Rounding("e5m2", mode)
        for product in ("exact", lp.Rounding("e4m3", mode)):
            compare(a, b, lp.Accumulator(rounding, product, order, size))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 4), (4, 2)),
        ((2, 3, 4), (4, 2)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((3, 0), (0, 2)),
        ((0, 4), (4, 2)),
        ((1, 4), (4, 0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_matmul_shapes(left, right, mode):
    source = generator(4)
    a = torch.randn(left, generator=source)
    b = torch.randn(right, generator=source)
    for order in ORDERS:
        size = 3 if order.value == "blocked" else None
        accumulator = lp.Accumulator(
            lp.Rounding("e5m2", mode), "accumulator", order, size
        )
        seed = seed_of(accumulator)
        offset = 1000
        actual = lp.matmul(a, b, accumulator=accumulator, seed=seed, offset=offset)
        expected = exact_matmul(a, b, accumulator, SEED, offset)
        assert_bit_equal(actual, expected.float())


@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_layout_does_not_matter(mode):
    source = generator(5)
    a, b = (torch.randn(s, generator=source) for s in ((7, 9), (9, 5)))
    accumulator = lp.Accumulator(lp.Rounding("bfloat16", mode))
    seed = seed_of(accumulator)

    def product(x, y):
        return lp.matmul(x, y, accumulator=accumulator, seed=seed)

    expected = product(a, b)
    assert_bit_equal(product(a.T.contiguous().T, b), expected)
    assert_bit_equal(product(a, b.T.contiguous().T), expected)
    wide = torch.full((14, 9), math.nan)
    wide[::2] = a
    assert_bit_equal(product(wide[::2], b), expected)
    assert_bit_equal(
        torch.cat(
            [
                lp.matmul(a[:3], b, accumulator=accumulator, seed=seed),
                lp.matmul(a[3:], b, accumulator=accumulator, seed=seed, offset=15),
            ]
        ),
        expected,
    )
    torch.set_num_threads(2)
    assert_bit_equal(product(a, b), expected)


def test_vectors_as_in_torch():
    source = generator(6)
    a, b = (torch.randn(s, generator=source) for s in ((7, 9), (9, 5)))

    def shape(x, y):
        return lp.matmul(x, y, accumulator="bfloat16").shape

    assert shape(a[0], b) == torch.matmul(a[0], b).shape
    assert shape(a, b[:, 0]) == torch.matmul(a, b[:, 0]).shape
    assert shape(a[0], b[:, 0]) == torch.matmul(a[0], b[:, 0]).shape


def test_equals_operand_and_output_roundings_done_by_hand():
    source = generator(7)
    a, b = (torch.randn(s, generator=source) for s in ((4, 9), (9, 5)))
    actual = lp.matmul(
        a, b, accumulator="e8m15", input="e4m3fn", weight="e5m2", output="bfloat16"
    )
    left, right = lp.round(a, "e4m3fn"), lp.round(b, "e5m2")
    expected = lp.round(exact_matmul(left, right, "e8m15"), "bfloat16").float()
    assert_bit_equal(actual, expected)


def test_shapes_that_torch_cannot_multiply_are_refused():
    message = r"multiply shapes \(3, 1, 2\) and \(2, 2, 1\): their batch dimensions"
    with pytest.raises(ValueError, match=message):
        lp.matmul(torch.ones(3, 1, 2), torch.ones(2, 2, 1), accumulator="bfloat16")
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(2, 3\): the last"):
        lp.matmul(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(2, 2\)"):
        lp.dot(torch.ones(3, 2), torch.ones(2, 2), accumulator="bfloat16")


def test_too_wide_accumulators_are_refused():
    x = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="accumulator=None"):
        lp.matmul(x, x, accumulator=lp.Format(precision=52, emax=127))
    with pytest.raises(ValueError, match="float64"):
        lp.matmul(x.float(), x.float(), accumulator="e8m50")


def test_products_beyond_float64_are_refused():
    x = torch.full((1, 2), 1e-200, dtype=torch.float64)
    with pytest.raises(ValueError, match="float64"):
        lp.matmul(x, x.T, accumulator="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_many_random_dots(mode, carrier):
    source = generator(8)
    for name in ("e4m3fn", "bfloat16", "e6m8", "e8m15", "binary32"):
        a = spread((200, 20), source, 30).to(carrier)
        b = torch.randn((200, 20), generator=source).to(carrier)
        rounding = lp.Rounding(_BY_NAME[name], mode, random_bits=17, variant="C")
        for accumulator in accumulators(rounding):
            compare(a, b, accumulator)
