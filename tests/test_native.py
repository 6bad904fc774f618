"""The C++ kernels equal the portable ones and the exact oracle, in every build."""

import math
import os

import pytest
import torch
from tables import (
    CARRIERS,
    FORMATS,
    MODES,
    ORDERS,
    PAIRS,
    SATURATIONS,
    VARIANTS,
    fits,
    name_of,
)

import lowprec as lp
from lowprec.kernels import native, portable, sums
from lowprec.testing import boundary_inputs, exact_dot

REQUIRED = os.environ.get("LOWPREC_REQUIRE_NATIVE") == "1"
ISAS = native.instruction_sets() if native.available() else ()
ISA_IDS = {2: "baseline", 3: "v3", 4: "v4"}
needs_library = pytest.mark.skipif(not native.available(), reason=native.status())
SEED = -7_000_000_000_000_000_001
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_BY_NAME = {target.name: target for target in FORMATS}
NARROW = [f for f in FORMATS if f.precision <= 51]


@pytest.fixture(params=ISAS or [2], ids=lambda isa: ISA_IDS[isa])
def isa(request):
    """Run the test once with every instruction set of this machine."""
    if not native.available():
        pytest.skip(native.status())
    native.set_instruction_set(request.param)
    yield request.param
    native.set_instruction_set()


@pytest.fixture
def all_isas():
    """Let the test switch instruction sets itself."""
    if not native.available():
        pytest.skip(native.status())
    yield ISAS
    native.set_instruction_set()


def test_the_library_is_there_where_it_is_required():
    if not REQUIRED:
        pytest.skip("LOWPREC_REQUIRE_NATIVE=1 demands the C++ library")
    assert native.available(), native.status()


def same_bits(x, y):
    integer = _INTEGERS[x.dtype]
    return torch.equal(x.contiguous().view(integer), y.contiguous().view(integer))


def same_numbers(x, y):
    """Equal bits, but any NaN equals any NaN."""
    return same_bits(
        x.nan_to_num(1.5, math.inf, -math.inf), y.nan_to_num(1.5, math.inf, -math.inf)
    ) and torch.equal(x.isnan(), y.isnan())


def random_patterns(dtype, count, seed=0):
    integer = _INTEGERS[dtype]
    limits = torch.iinfo(integer)
    source = torch.Generator().manual_seed(seed)
    words = torch.randint(
        limits.min, limits.max, (count,), dtype=integer, generator=source
    )
    return words.view(dtype)


def patterns_near(target, dtype, count, seed=1):
    """Random significands with exponents from below to above the format's range."""
    source = torch.Generator().manual_seed(seed)
    low = max(target.emin - target.precision - 2, -1070)
    high = min(target.emax + 3, 1020)
    exponent = torch.randint(low, high, (count,), generator=source)
    x = torch.rand(count, dtype=torch.float64, generator=source) * 2 - 1
    return torch.ldexp(x, exponent).to(dtype)


def deciding_inputs(target, dtype):
    codes = torch.arange(-(2**15), 2**15, 37, dtype=torch.int16)
    return torch.cat(
        [
            boundary_inputs(target, dtype)[::3],
            codes.view(torch.bfloat16).to(dtype),
            random_patterns(dtype, 1001),
            patterns_near(target, dtype, 1001),
        ]
    )


def roundings(target, random_bits):
    for mode in MODES:
        variants = VARIANTS if mode.value == "stochastic" else VARIANTS[:1]
        for saturation in SATURATIONS:
            for variant in variants:
                yield lp.Rounding(target, mode, saturation, random_bits, variant)


def both(x, rounding, seed=SEED, offset=0):
    """Round by the portable and by the C++ kernel."""
    code = rounding.code
    if not rounding.stochastic:
        return portable.round(x, code), native.round(x, code)
    expected = portable.round_stochastic(x, code, torch.tensor(seed), offset)
    return expected, native.round_stochastic(x, code, seed, offset)


@pytest.mark.parametrize(("target", "carrier"), PAIRS, ids=name_of)
def test_every_rounding_equals_the_portable_one(target, carrier, all_isas):
    x = deciding_inputs(target, carrier)
    for random_bits in (32, 7):
        for rounding in roundings(target, random_bits):
            if random_bits != 32 and rounding.mode.value != "stochastic":
                continue
            expected = both(x, rounding)[0]
            for isa in all_isas:
                native.set_instruction_set(isa)
                assert same_bits(_native(x, rounding), expected), (rounding, isa)


def _native(x, rounding, offset=0, out=None):
    if rounding.stochastic:
        return native.round_stochastic(x, rounding.code, SEED, offset, out)
    return native.round(x, rounding.code, out)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
def test_all_bfloat16_patterns(carrier, isa):
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    x = codes.view(torch.bfloat16).to(carrier)
    for name in ("binary16", "e5m2", "e4m3fn", "e2m1fn", "bf16_flush", "e4m3fnuz"):
        for rounding in roundings(_BY_NAME[name], 32):
            expected, actual = both(x, rounding)
            assert same_bits(actual, expected), rounding


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("name", ["bfloat16", "binary16", "e4m3fn", "e8m15", "e5m2"])
def test_a_million_patterns(name, carrier, all_isas):
    x = random_patterns(carrier, 2**20, seed=3)
    for mode in ("nearest_even", "toward_zero", "stochastic"):
        rounding = lp.Rounding(name, mode, random_bits=32)
        expected = both(x, rounding)[0]
        for isa in all_isas:
            native.set_instruction_set(isa)
            assert same_bits(_native(x, rounding), expected), (mode, isa)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("random_bits", [1, 2, 8, 9, 16, 23, 24, 31, 32])
def test_every_number_of_random_bits(random_bits, carrier, isa):
    x = random_patterns(carrier, 500)
    for name in ("bfloat16", "e4m3fn", "e8m22", "binary16"):
        near = patterns_near(_BY_NAME[name], carrier, 2001)
        for variant in VARIANTS:
            rounding = lp.Rounding(
                name, "stochastic", random_bits=random_bits, variant=variant
            )
            expected, actual = both(torch.cat([x, near]), rounding)
            assert same_bits(actual, expected)


@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_lengths_and_unaligned_starts(mode, isa):
    rounding = lp.Rounding("e4m3fn", mode)
    x = random_patterns(torch.float32, 200)
    for count in range(70):
        for start in (0, 1, 3, 8):
            part = x[start : start + count]
            expected, actual = both(part, rounding)
            assert same_bits(actual, expected)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 1023, 2**32 * 4 - 5, 2**40 + 3])
def test_offsets_continue_one_stream(offset, isa):
    rounding = lp.Rounding("e5m2", "stochastic", random_bits=32)
    x = torch.randn(3000)
    expected, actual = both(x, rounding, offset=offset)
    assert same_bits(actual, expected)
    rest = native.round_stochastic(x[1001:], rounding.code, SEED, offset + 1001)
    assert same_bits(rest, expected[1001:])


@pytest.mark.parametrize("mode", ["nearest_even", "toward_negative", "stochastic"])
def test_threads_do_not_matter(mode, isa):
    x = torch.randn(200_003)
    rounding = lp.Rounding("bfloat16", mode)
    expected = _native(x, rounding)
    torch.set_num_threads(2)
    assert same_bits(_native(x, rounding), expected)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("name", ["bfloat16", "e4m3fn", "e8m15", "unsigned"])
def test_in_place_out_and_layouts(name, carrier, isa):
    for mode in MODES:
        rounding = lp.Rounding(_BY_NAME[name], mode)
        x = random_patterns(carrier, 40 * 33).view(40, 33)
        expected = _native(x, rounding)
        out = torch.empty_like(x)
        assert _native(x, rounding, out=out) is out
        assert same_bits(out, expected)
        strided = torch.empty(33, 40, dtype=carrier).T
        assert _native(x, rounding, out=strided) is strided
        assert same_bits(strided, expected)
        assert same_bits(_native(x.T.contiguous().T, rounding), expected)
        assert _native(x, rounding, out=x) is x
        assert same_bits(x, expected)


@needs_library
def test_flushing_subnormals_elsewhere_does_not_matter():
    x = patterns_near(_BY_NAME["bfloat16"], torch.float32, 3000)
    a, b = x[:1500].view(30, 50) * 2**-60, x[1500:].view(50, 30) * 2**-60
    expected = [both(x, lp.Rounding(name))[0] for name in ("bfloat16", "e4m3fn")]
    sum_expected = product(a, b, lp.Accumulator("bfloat16"))
    torch.set_flush_denormal(True)
    try:
        for name, wanted in zip(("bfloat16", "e4m3fn"), expected, strict=True):
            assert same_bits(native.round(x, lp.Rounding(name).code), wanted)
        assert same_bits(product(a, b, lp.Accumulator("bfloat16")), sum_expected)
        assert float(torch.tensor(1e-40) * 1) == 0.0  # the caller's state is kept
    finally:
        torch.set_flush_denormal(False)


@needs_library
def test_refusals_are_those_of_the_portable_kernels():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="use a float64 carrier"):
        native.round(x, lp.Rounding("e8m50").code)
    with pytest.raises(TypeError, match="float32 or float64"):
        native.round(x.half(), lp.Rounding("e5m2").code)
    with pytest.raises(ValueError, match="out must be"):
        native.round(x, lp.Rounding("e5m2").code, torch.empty(4))
    with pytest.raises(ValueError, match="not a valid rounding code"):
        native.round(x, lp.Rounding("e5m2", "stochastic").code)
    with pytest.raises(ValueError, match="is not one of"):
        native.set_instruction_set(9)
    wide = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="accumulator=None"):
        product(wide, wide, lp.Accumulator(lp.Format(precision=52, emax=127)))
    with pytest.raises(ValueError, match="float64"):
        product(wide.float(), wide.float(), lp.Accumulator("e8m50"))
    with pytest.raises(ValueError, match="scale the operands"):
        product(wide * 1e-200, wide * 1e-200, lp.Accumulator("bfloat16"))


@needs_library
def test_a_missing_library_is_reported(tmp_path, monkeypatch):
    for name in ("_library", "_reason"):
        monkeypatch.setattr(native, name, getattr(native, name))
    assert not native.load(tmp_path / "none.so")
    assert not native.available()
    assert "none.so" in native.status()
    with pytest.raises(RuntimeError, match="not available"):
        native.round(torch.ones(1), lp.Rounding("e5m2").code)


# Sums of products.


def arguments(accumulator):
    rounded = accumulator.product_rounding
    return (
        accumulator.rounding.code,
        () if rounded is None else rounded.code,
        ORDERS.index(accumulator.order),
        accumulator.block_size or 0,
    )


def product(a, b, accumulator, offset=0):
    return native.matmul(a, b, *arguments(accumulator), SEED, offset)


def portable_product(a, b, accumulator, offset=0):
    seed = torch.tensor(SEED)
    return sums.matmul(a, b, *arguments(accumulator), seed, offset)


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
        rounding = lp.Rounding(_BY_NAME[name], mode, random_bits=11, variant="B")
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
        target = _BY_NAME[name]
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
    a = torch.randn((30, 5), generator=source, dtype=torch.float64)
    b = torch.randn((5, 2), generator=source, dtype=torch.float64)
    a[:8, 0], b[0] = 1 + 2.0**-52, 1 - 2.0**-52
    a[:8, 1], b[1] = -1.0, 1.0
    a[8:12, 2:] = -0.0
    a[8:10, :2] = 0.0
    a[12:20] = torch.ldexp(a[12:20], torch.randint(-200, 200, (8, 5)))
    for mode in MODES:
        for name in ("bfloat16", "e8m15", "e8m50"):
            rounding = lp.Rounding(_BY_NAME[name], mode, random_bits=24)
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
