"""The C++ kernels equal the portable ones and the exact oracle, in every build."""

import math
import os

import pytest
import torch
from native_checks import (
    BY_NAME,
    ISA_NAMES,
    ISAS,
    SEED,
    needs_library,
    product,
    same_bits,
    with_all_isas,
    with_isa,
)
from tables import (
    CARRIERS,
    MODES,
    PAIRS,
    SATURATIONS,
    VARIANTS,
    name_of,
)

import lowprec as lp
from lowprec.kernels import native, native_coding, portable
from lowprec.testing import boundary_inputs

REQUIRED = os.environ.get("LOWPREC_REQUIRE_NATIVE") == "1"
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.fixture(params=ISAS or [2], ids=ISA_NAMES.get)
def isa(request):
    yield from with_isa(request.param)


@pytest.fixture
def all_isas():
    yield from with_all_isas()


def test_the_library_is_there_where_it_is_required():
    if not REQUIRED:
        pytest.skip("LOWPREC_REQUIRE_NATIVE=1 demands the C++ library")
    assert native.available(), native.status()


def random_patterns(dtype, count, seed=0):
    integer = INTEGERS[dtype]
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


def finite_values(x, target):
    """Leave out what overflows or is NaN: whole blocks without it take other code."""
    return x[x.abs() <= float(target.max)]


def deciding_inputs(target, dtype):
    codes = torch.arange(-(2**15), 2**15, 37, dtype=torch.int16)
    boundaries = boundary_inputs(target, dtype)[::3]
    near = patterns_near(target, dtype, 1001)
    return torch.cat(
        [
            boundaries,
            codes.view(torch.bfloat16).to(dtype),
            random_patterns(dtype, 1001),
            near,
            finite_values(torch.cat([boundaries, near]), target),
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
@pytest.mark.parametrize("name", ["binary16", "e5m2", "e4m3fn", "bf16_flush"])
def test_all_bfloat16_patterns(name, carrier, all_isas):
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    x = codes.view(torch.bfloat16).to(carrier)
    for mode in MODES:
        rounding = lp.Rounding(BY_NAME[name], mode)
        expected = both(x, rounding)[0]
        for isa in all_isas:
            native.set_instruction_set(isa)
            assert same_bits(_native(x, rounding), expected), (mode, isa)


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
        near = patterns_near(BY_NAME[name], carrier, 2001)
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


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 1023, 2**32 * 4 - 5, 2**40 + 3])
def test_offsets_continue_one_stream(offset, carrier, isa):
    rounding = lp.Rounding("e5m2", "stochastic", random_bits=32)
    x = torch.randn(3000, dtype=carrier)
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
        rounding = lp.Rounding(BY_NAME[name], mode)
        x = random_patterns(carrier, 40 * 33).view(40, 33)
        expected = _native(x, rounding)
        out = torch.empty_like(x)
        assert _native(x, rounding, out=out) is out
        assert same_bits(out, expected)
        strided = torch.empty(33, 40, dtype=carrier).T
        assert _native(x, rounding, out=strided) is strided
        assert same_bits(strided, expected)
        assert same_bits(_native(x.T.contiguous().T, rounding), expected)
        flat = torch.cat([x.flatten(), x.flatten()[:3]])
        _native(flat[:-3], rounding, out=flat[3:])
        assert same_bits(flat[3:], expected.flatten())
        assert _native(x, rounding, out=x) is x
        assert same_bits(x, expected)


def test_sizes_and_poisoned_outputs(isa):
    x = random_patterns(torch.float32, 80)
    for mode in MODES:
        for name in ("bfloat16", "e4m3fn", "e5m2_flush", "e4m3fnuz", "binary32"):
            rounding = lp.Rounding(BY_NAME[name], mode)
            expected = both(x, rounding)[0]
            for count in range(71):
                memory = torch.full((80,), math.nan)
                out = memory[1 : 1 + count]
                _native(x[:count], rounding, out=out)
                assert same_bits(out, expected[:count]), (mode, name, count)
                assert memory[0].isnan()
                assert memory[1 + count :].isnan().all()  # nothing beyond is written


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
def test_outputs_larger_than_the_cache(carrier, isa):
    # Streaming stores begin at a vector boundary, wherever the output begins.
    count = 9_000_000 if carrier == torch.float32 else 4_500_000
    x = random_patterns(carrier, 4099).repeat(count // 4099 + 1)[:count]
    rounding = lp.Rounding("e4m3fn")
    expected = _native(x.clone(), rounding, out=x.clone())  # in place: none
    in_place = x.clone()
    _native(in_place, rounding, out=in_place)
    memory = torch.full((count + 2,), math.nan, dtype=carrier)
    _native(x, rounding, out=memory[1:-1])
    assert same_bits(memory[1:-1], in_place)
    assert same_bits(expected, in_place)
    assert memory[0].isnan()
    assert memory[-1].isnan()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", ["e4m3fn", "bfloat16", "deep"])
def test_every_number_of_threads(name, threads, isa):
    x = random_patterns(torch.float32, 400_003)
    for mode in ("nearest_even", "toward_positive", "nearest_away", "stochastic"):
        rounding = lp.Rounding(BY_NAME[name], mode)
        torch.set_num_threads(1)
        expected = _native(x, rounding, offset=3)
        torch.set_num_threads(threads)
        assert same_bits(_native(x, rounding, offset=3), expected)


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_the_callers_environment_does_not_matter(mode, isa):
    x = torch.cat(
        [patterns_near(BY_NAME[name], torch.float32, 1001) for name in ("e4m3fn",)]
        + [torch.arange(-500, 500, dtype=torch.int32).view(torch.float32)]
    )
    for name in ("e4m3fn", "bfloat16", "bf16_flush", "deep", "e8m22"):
        rounding = lp.Rounding(BY_NAME[name], mode)
        expected = both(x, rounding)[0]
        torch.set_flush_denormal(True)
        try:
            actual = _native(x, rounding)
            assert float(torch.tensor(1e-40) * 1) == 0.0  # the caller's state is kept
        finally:
            torch.set_flush_denormal(False)
        assert same_bits(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "carrier"), PAIRS, ids=name_of)
def test_a_hundred_million_patterns(target, carrier, all_isas):
    # The builds are compared with each other on all of them, some of each mode also
    # with the portable kernel, which is a thousand times slower. Every chunk has a
    # seed of its own, so that no mode sees the patterns of another. Half of them are
    # any bit patterns, of which few are in range, half are values in range.
    chunk, per_mode = 2**20, 22
    assert chunk * per_mode // 2 * len(MODES) >= 10**8
    for mode_number, mode in enumerate(MODES):
        rounding = lp.Rounding(target, mode, random_bits=32)
        for number in range(per_mode):
            seed = 1000 + mode_number * per_mode + number
            x = random_patterns(carrier, chunk, seed)
            if number % 2:
                x = finite_values(patterns_near(target, carrier, chunk, seed), target)
            results = []
            for isa in all_isas:
                native.set_instruction_set(isa)
                results.append(_native(x, rounding, offset=number * chunk))
            assert all(same_bits(one, results[0]) for one in results), (mode, seed)
            if number < 2:
                part = x[: 2**16]
                expected = both(part, rounding, offset=number * chunk)[0]
                assert same_bits(results[0][: 2**16], expected), mode


@needs_library
def test_flushing_subnormals_elsewhere_does_not_matter():
    x = patterns_near(BY_NAME["bfloat16"], torch.float32, 3000)
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
def test_what_the_c_interface_must_not_see_is_refused():
    code = lp.Rounding("e5m2").code
    stochastic = lp.Rounding("e5m2", "stochastic").code
    memory = bytearray(4 * 9)
    odd = torch.frombuffer(memory, dtype=torch.float32, offset=1, count=8)
    aligned = torch.ones(8)
    with pytest.raises(ValueError, match="no multiple of 4: clone the tensor"):
        native.round(odd, code)
    with pytest.raises(ValueError, match="no multiple of 4"):
        native.round(aligned, code, odd)
    with pytest.raises(ValueError, match="no multiple of 4"):
        native.round_stochastic(odd, stochastic, 1)
    assert native.round(odd.clone(), code).tolist() == [0.0] * 8
    for wrong in (torch.ones(2, device="meta"), torch.eye(2).to_sparse()):
        with pytest.raises(TypeError, match="dense float32 or float64 CPU"):
            native.round(wrong, code)
    for offset in (-1, 2**64 - 8):
        with pytest.raises(ValueError, match="offset must be from 0"):
            native.round_stochastic(aligned, stochastic, 1, offset)
    with pytest.raises(RuntimeError, match="single memory location"):
        native.round(aligned, code, torch.empty(1).expand(8))
    huge = torch.ones(1, 1).expand(2**31, 2**31)
    with pytest.raises(ValueError, match="more than memory can hold"):
        product(huge, huge, lp.Accumulator("bfloat16"))
    freed = torch.ones(8)
    freed.untyped_storage().resize_(0)
    with pytest.raises((ValueError, RuntimeError)):
        native.round(freed, code)
    with pytest.raises(TypeError, match="integer CPU tensors"):
        native_coding.decode(
            aligned, (3, -14, 8, 1, 1, 1, 123, 124, 126), aligned.dtype
        )
    with pytest.raises(ValueError, match="too narrow"):
        native_coding.encode(aligned, (3, -14, 40, 1, 1, 1, 123, 124, 126), torch.int64)


@needs_library
def test_a_missing_library_is_reported(tmp_path, monkeypatch):
    for name in ("_library", "_reason"):
        monkeypatch.setattr(native, name, getattr(native, name))
    assert not native.load(tmp_path / "none.so")
    assert not native.available()
    assert "none.so" in native.status()
    with pytest.raises(RuntimeError, match="not available"):
        native.round(torch.ones(1), lp.Rounding("e5m2").code)
