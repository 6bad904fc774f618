"""Sums in registers: borders of tiles, limits of the proofs, threads, forks."""

import math
import os

import pytest
import torch
from native_checks import (
    ISA_NAMES,
    ISAS,
    SEED,
    portable_product,
    product,
    same_numbers,
    with_all_isas,
    with_isa,
)
from tables import CARRIERS, name_of

import lowprec as lp
from lowprec.kernels import native
from lowprec.testing import exact_dot

PROMOTED = lp.Accumulator("e8m10", order="blocked", block_size=16, within="binary32")
# What takes each kind of step: operands' format, accumulator.
CASES = {
    "fp8 into bfloat16": ("e4m3fn", lp.Accumulator("bfloat16")),
    "fp8 into binary16": ("e5m2", lp.Accumulator("binary16")),
    "fp8 saturating": (
        "e4m3fn",
        lp.Accumulator(lp.Rounding("e4m3fn", saturation="finite")),
    ),
    "fused into bfloat16": (None, lp.Accumulator("bfloat16")),
    "fused into binary16": (None, lp.Accumulator("binary16")),
    "fused into 22 bits": (None, lp.Accumulator("e8m21")),
    "fused overflowing": (None, lp.Accumulator("e4m3")),
    "rounded fp8": ("e4m3fn", lp.Accumulator("binary16", "accumulator")),
    "rounded": (None, lp.Accumulator("bfloat16", "accumulator")),
    "rounded to 16 bits": (None, lp.Accumulator("e8m15", "accumulator")),
    "rounded overflowing": (None, lp.Accumulator("e4m3", "e5m2")),
    "chunks": (None, PROMOTED),
    "chunks of 9 bits": (
        "e5m2",
        lp.Accumulator("bfloat16", "exact", "blocked", 7, within="e8m8"),
    ),
    "stochastic": ("e4m3fn", lp.Accumulator(lp.Rounding("bfloat16", "stochastic"))),
    "stochastic fused": (None, lp.Accumulator(lp.Rounding("binary16", "stochastic"))),
    "stochastic rounded": (
        None,
        lp.Accumulator(lp.Rounding("e6m9", "stochastic", random_bits=5), "binary16"),
    ),
}


@pytest.fixture(params=ISAS or [2], ids=ISA_NAMES.get)
def isa(request):
    yield from with_isa(request.param)


@pytest.fixture
def all_isas():
    yield from with_all_isas()


@pytest.fixture
def poisoned(monkeypatch):
    """Outputs that are not written show."""
    empty = torch.empty

    def full_of_nan(*arguments, **options):
        return empty(*arguments, **options).fill_(math.nan)

    monkeypatch.setattr(native.torch, "empty", full_of_nan)


def operands(m, k, n, format, carrier=torch.float32, seed=0):
    source = torch.Generator().manual_seed(seed + 7919 * m + 31 * k + n)
    a = torch.randn((m, k), generator=source).to(carrier)
    b = torch.randn((k, n), generator=source).to(carrier)
    if format is not None:
        a, b = lp.round(a, format), lp.round(b, format)
    return a, b


def check(a, b, accumulator, isas, offset=0):
    """Compare every instruction set with the portable kernel."""
    expected = portable_product(a, b, accumulator, offset)
    for isa in isas:
        native.set_instruction_set(isa)
        actual = product(a, b, accumulator, offset)
        assert same_numbers(actual, expected), (accumulator, isa, a.shape, b.shape)


@pytest.mark.parametrize("case", CASES)
def test_small_products_equal_the_oracle(case, all_isas):
    format, accumulator = CASES[case]
    a, b = operands(5, 37, 3, format)
    expected = [
        exact_dot(x, y, accumulator, SEED % 2**64, 3 * i + j)
        for i, x in enumerate(a.tolist())
        for j, y in enumerate(b.T.tolist())
    ]
    wanted = torch.tensor(expected).view(5, 3)
    for isa in all_isas:
        native.set_instruction_set(isa)
        assert same_numbers(product(a, b, accumulator), wanted), isa


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("case", CASES)
def test_borders_of_tiles(case, carrier, all_isas, poisoned):
    format, accumulator = CASES[case]
    for m, k, n in [
        *((1, 1, 1), (3, 2, 33), (4, 17, 31), (5, 129, 8), (7, 16, 15), (8, 5, 64)),
        *((9, 33, 17), (13, 5, 65), (12, 18, 16), (70, 7, 1), (1, 7, 70)),
        *((0, 4, 3), (3, 0, 5), (3, 4, 0)),
    ]:
        a, b = operands(m, k, n, format, carrier)
        check(a, b, accumulator, all_isas)


@pytest.mark.slow
@pytest.mark.parametrize("size", range(1, 71))
def test_every_size(size, all_isas, poisoned):
    for format, accumulator in CASES.values():
        for m, k, n in ((size, 5, 3), (3, size, 5), (5, 3, size), (size, 9, size)):
            check(*operands(m, k, n, format), accumulator, all_isas)


@pytest.mark.slow
def test_borders_of_blocks(all_isas, poisoned):
    for format, accumulator in CASES.values():
        for m, k, n in ((257, 3, 129), (65, 257, 31), (255, 130, 127)):
            check(*operands(m, k, n, format), accumulator, all_isas)


def test_layouts(isa):
    for format, accumulator in CASES.values():
        a, b = operands(19, 40, 37, format)
        expected = product(a, b, accumulator)
        assert same_numbers(product(a.T.contiguous().T, b, accumulator), expected)
        assert same_numbers(product(a, b.T.contiguous().T, accumulator), expected)
        wide = torch.full((38, 80), math.nan)
        wide[::2, ::2] = a
        assert same_numbers(product(wide[::2, ::2], b, accumulator), expected)
        both = product(a.expand(2, 19, 40), b.expand(2, 40, 37), accumulator)
        assert same_numbers(both[0], expected)
        if accumulator.stochastic:
            second = product(a, b, accumulator, 19 * 37)
            assert same_numbers(both[1], second)
        else:
            assert same_numbers(both[1], expected)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_matter(threads, isa):
    for format, accumulator in CASES.values():
        a, b = operands(150, 120, 140, format)
        expected = product(a, b, accumulator)
        torch.set_num_threads(threads)
        try:
            assert same_numbers(product(a, b, accumulator), expected)
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 17, 2**33 + 5, 2**34 - 40])
def test_random_words_of_any_alignment(offset, all_isas):
    for case in ("stochastic", "stochastic fused", "stochastic rounded"):
        format, accumulator = CASES[case]
        for n in (1, 30, 33):
            check(*operands(9, 6, n, format), accumulator, all_isas, offset)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 8, 17, 32])
@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**-70, 2.0**60])
def test_stochastic_sums_of_any_magnitude(bits, scale, all_isas):
    # Sums below the normal range, overflow, and carries from below the truncation.
    for name in ("bfloat16", "binary16", "e5m2", "e8m21", "e4m3fn", "e6m15"):
        rounding = lp.Rounding(name, "stochastic", random_bits=bits)
        for rounded in ("exact", "accumulator"):
            a, b = operands(4, 40, 33, None, seed=bits)
            check(a * scale, b, lp.Accumulator(rounding, rounded), all_isas)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**60])
def test_stochastic_sums_at_both_ends(scale, all_isas):
    for name in ("bfloat16", "e5m2", "e8m21"):
        accumulator = lp.Accumulator(lp.Rounding(name, "stochastic"), "accumulator")
        a, b = operands(4, 20, 33, None)
        check(a * scale, b, accumulator, all_isas)


def test_stochastic_sums_that_reach_the_largest_number(all_isas):
    # From small sums to overflow and back, inside terms that are looked at together.
    source = torch.Generator().manual_seed(3)
    for name in ("e4m3", "e5m2", "binary16"):
        for saturation in ("finite", "none"):
            rounding = lp.Rounding(name, "stochastic", saturation=saturation)
            step = float(lp.format(name).max) * 0.45
            a = torch.randint(-2, 3, (9, 43), generator=source) * step
            for rounded in ("exact", "accumulator"):
                check(
                    a, torch.ones(43, 33), lp.Accumulator(rounding, rounded), all_isas
                )


@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan, 0.0, -0.0])
def test_stochastic_sums_of_special_values(special, all_isas):
    for name in ("bfloat16", "binary16", "e4m3"):
        a, b = operands(5, 21, 33, "e4m3fn")
        a[1, 3] = a[2, 20] = b[7, 5] = b[15, 32] = special
        a[3] = special  # a whole row
        for rounded in ("exact", "bfloat16", name):
            accumulator = lp.Accumulator(lp.Rounding(name, "stochastic"), rounded)
            check(a, b, accumulator, all_isas)


def test_products_at_the_quantum(all_isas):
    # Multiples of the product's quantum or not quite, subnormal ones and zeros.
    source = torch.Generator().manual_seed(4)
    for name in ("e5m10", "e4m3", "e5m2", "e8m7"):
        q = lp.format(name).smallest_subnormal
        for scale in (q, q / 2, q * 2.0**-4):
            a = torch.randint(-9, 10, (5, 19), generator=source) * scale
            b = torch.randint(-3, 4, (19, 33), generator=source) * 1.0
            for sums in (name, lp.Rounding(name, "stochastic"), "e8m10"):
                check(a, b, lp.Accumulator(sums, name), all_isas)


def test_carries_from_below_the_truncation(all_isas):
    # 1 + 2^-7 less 2^-30: all bits below the quantum are ones, so a random word of
    # ones carries and one of zeros does not. About half of 2^9 sums must go up.
    for low in (2.0**-30, 2.0**-31, 2.0**-36):
        a = torch.tensor([[1.0, 2.0**-7, -low]]).expand(16, 3)
        b = torch.ones(3, 32)
        for name in ("bfloat16", "e8m9"):
            accumulator = lp.Accumulator(lp.Rounding(name, "stochastic"))
            check(a, b, accumulator, all_isas)


def compare_with_oracle(a, b, accumulator, isas):
    """Compare one inner product of float32 vectors."""
    left, right = torch.tensor([a]), torch.tensor(b).unsqueeze(1)
    exact = exact_dot(left[0].tolist(), right[:, 0].tolist(), accumulator)
    wanted = torch.tensor([[exact]], dtype=torch.float32)
    for isa in isas:
        native.set_instruction_set(isa)
        actual = product(left, right, accumulator)
        assert same_numbers(actual, wanted), (accumulator, isa)


def test_double_rounding_of_exact_products(all_isas):
    # Rounding to float32 first makes these sums ties.
    vectors = [
        ([1.0, 7 / 16], [-(2.0**-30), 37 / 16]),
        ([1.0, 7 / 16], [2.0**-30, 37 / 16]),
        ([-1.0, -7 / 16], [-(2.0**-30), 37 / 16]),
        ([2.0**-60, 9.0], [1.0, 29.0]),
        ([-(2.0**-60), 9.0], [1.0, 29.0]),
        ([1.0] * 4, [2.0**-6, 2.0**-19, 2.0**-24, 1.0]),
        ([1 + 2.0**-23, 1.0], [1 + 2.0**-23, -1.0]),
        # As float32 numbers, these products are a tie and a power of two.
        ([1 + 2.0**-23], [1 + 2.0**-8 - 2.0**-23]),
        ([1 + 2.0**-23], [2 - 2.0**-22]),
        ([2.0**-75, 1.0], [2.0**-75, 2.0**-126]),
        ([2.0**-80, 2.0**-80], [2.0**-80, -(2.0**-80)]),
        ([-(2.0**-75), 0.0], [2.0**-75, -1.0]),
        ([2.0**64, -(2.0**64)], [2.0**63, 2.0**63]),
    ]
    for name in ("e8m7", "e8m10", "e5m10", "e8m18", "e8m21", "e4m3", "e5m2"):
        for rounded in ("exact", "accumulator", "e8m7", "e5m10"):
            accumulator = lp.Accumulator(name, rounded)
            for a, b in vectors:
                compare_with_oracle(a, b, accumulator, all_isas)


def test_sums_that_round_to_minus_zero(all_isas):
    for name in ("e5m10", "e4m3", "e5m2"):
        q = lp.format(name).smallest_subnormal
        for terms in ([-q / 4], [-q / 2], [-q / 4, -q / 4], [q, -q], [0.0, -0.0]):
            a, ones = torch.tensor([terms]), torch.ones(len(terms), 1)
            for rounded in ("exact", "accumulator"):
                check(a, ones, lp.Accumulator(name, rounded), all_isas)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_with_one_thread_works(isa):
    format, accumulator = CASES["fused into bfloat16"]
    a, b = operands(160, 160, 160, format)
    expected = product(a, b, accumulator)
    torch.set_num_threads(2)
    product(a, b, accumulator)  # the parent has had a parallel region
    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if same_numbers(product(a, b, accumulator), expected) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
