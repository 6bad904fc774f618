"""Block formats: every rule, mode and shape against the oracle and other judges."""

import copy
import itertools
import math
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import block as gfloat_block
from gfloat import formats as gfloat_formats
from hypothesis import given
from hypothesis import strategies as st

import lowprec as lp
from lowprec import BlockFormat, BlockRounding, RoundingMode, ScaleRule, SharedExponent
from lowprec.kernels import using
from lowprec.testing import (
    assert_bit_equal,
    exact_block_round,
    exact_block_scale,
    exact_tensor_scale,
    random_word,
)
from lowprec.testing import strategies as lps

NAMED = list(lp.block_formats())
SHARED_RULES = ["floor", "ceil", "rceil", "even"]
SHARED = [
    lp.block_format(name).replace(rule=rule)
    for name in ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4")
    for rule in SHARED_RULES
] + [
    lp.block_format("mxint8"),
    BlockFormat.fixed_point(4),
    BlockFormat.fixed_point(6, exponent_bits=5).replace(rule="even"),
    BlockFormat("e2m1fn", SharedExponent(4), 4, "ceil"),
    BlockFormat("e4m7", "e8m0", 8),
]
SCALED = [
    BlockFormat("e2m1fn", "e4m3fn", 16, rule, second)
    for rule in ("amax", "nv")
    for second in (None, "binary32")
] + [BlockFormat("e4m3fn", "e5m2", 8, "amax", "bfloat16")]
ALL = SHARED + SCALED
LENGTH = 19  # a tail for every block size


def label(value):
    if isinstance(value, BlockFormat):
        return f"{value.element.name}-{value.rule.value}-{value.tensor_scale is None}"
    return str(value)


def inputs(dtype, rows=16):
    """Rows of 19 numbers: all magnitudes, ties, neighbours of powers of two, zeros."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, LENGTH, generator=generator, dtype=dtype)
    exponents = torch.randint(-20, 20, (rows, 1), generator=generator)
    x = torch.ldexp(x, exponents)
    short = torch.randint(-24, 25, (rows // 2, LENGTH), generator=generator)
    x[: rows // 2] = torch.ldexp(short.to(dtype), exponents[: rows // 2] // 2)
    x[0] = 0.0
    x[1, ::3] = -0.0
    top = 2.0**120 if dtype == torch.float32 else 2.0**1000
    tiny = 2.0**-149 if dtype == torch.float32 else 2.0**-1074
    x[2] *= top
    x[3] = tiny * torch.arange(LENGTH)
    x[4, 3], x[4, 17] = top, tiny
    for row, base in enumerate((1.0, 2.0, 1.75, 448.0, 6.0, 57344.0), 5):
        around = torch.tensor([base], dtype=dtype)
        below = torch.nextafter(around, torch.zeros_like(around))
        above = torch.nextafter(around, 2 * around)
        x[row] = 0.01
        x[row, 0], x[row, 7], x[row, 16] = below[0], around[0], above[0]
    x[11, 5], x[12, 2], x[13, 18] = math.nan, math.inf, -math.inf
    return x


def blocks_of(row, size):
    return [row[i : i + size] for i in range(0, len(row), size)]


def expected(x, rounding, seed=None, dtype=None):
    """The oracle's values, elements and scales of rows, as nested lists."""
    format = rounding.format
    size = format.block_size
    rows = [blocks_of(row, size) for row in x.double().tolist()]
    finite = [
        number
        for row in rows
        for block in row
        if not math.isnan(exact_block_scale(block, format.replace(tensor_scale=None)))
        for number in block
    ]
    second = exact_tensor_scale(finite, format)
    index = itertools.count()
    result = []
    for row in rows:
        done = []
        for block in row:
            words = None
            if seed is not None:
                words = [random_word(seed, next(index)) for _ in block]
            done.append(exact_block_round(block, rounding, words, second))
        result.append(done)
    return result, second


def in_carrier(value, dtype):
    """A real number rounded to the carrier once, NaN and infinity kept."""
    if isinstance(value, float) and not math.isfinite(value):
        return value
    name = "binary32" if dtype == torch.float32 else "binary64"
    from lowprec.testing import exact_round

    return float(exact_round(value, name))


def values_of(blocks, dtype):
    return torch.tensor(
        [
            [in_carrier(v, dtype) for block in row for v in block.values]
            for row in blocks
        ],
        dtype=torch.float64,
    ).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("format", ALL, ids=label)
def test_every_rule_is_the_oracle(format, dtype):
    x = inputs(dtype)
    blocks, _ = expected(x, BlockRounding(format))
    actual = lp.round(x, format)
    assert actual.dtype == dtype
    assert_bit_equal(actual, values_of(blocks, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", list(RoundingMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("format", [SHARED[0], SHARED[19], *SCALED[:4]], ids=label)
def test_every_mode_is_the_oracle(format, mode, dtype):
    x = inputs(dtype)
    for variant in "ABC" if mode == "stochastic" else "A":
        rounding = BlockRounding(format, mode, variant=variant)
        seed = 11 if rounding.stochastic else None
        blocks, _ = expected(x, rounding, seed)
        actual = lp.round(x, rounding, seed=seed)
        assert_bit_equal(actual, values_of(blocks, dtype))


@pytest.mark.parametrize("format", [*NAMED, *SCALED], ids=label)
def test_codes_are_the_oracle_and_decode_to_the_rounded_tensor(format):
    x = inputs(torch.float64)
    blocks, second = expected(x, BlockRounding(format))
    codes = lp.encode_blocks(x, format)
    assert_bit_equal(
        lp.decode_blocks(codes, format, dtype=torch.float64), lp.round(x, format)
    )
    assert (codes.tensor_scale is None) == (format.tensor_scale is None)
    if codes.tensor_scale is not None:
        assert codes.tensor_scale.item() == second
    for row, code_row, scale_row in zip(
        blocks, codes.codes.tolist(), codes.scales.tolist(), strict=True
    ):
        elements = [q for block in row for q in block.elements]
        assert code_row == [element_code(q, format) for q in elements]
        assert scale_row == [scale_code(block.scale, format) for block in row]


def element_code(q, format):
    if format.name == "mxint8":
        return int(q * 64) % 256
    return format.element.encode(q)


def scale_code(scale, format):
    if isinstance(format.scale, lp.Format):
        return format.scale.encode(scale)
    if math.isnan(scale):
        return 2**format.scale.bits - 1
    return math.frexp(scale)[1] - 1 + format.scale.bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", ["amax", "nv"])
def test_quotients_next_to_ties_round_as_exact_ones(rule, dtype):
    """x is the carrier number at or next to a tie times S, for many awkward S."""
    format = BlockFormat("e2m1fn", "e4m3fn", 16, rule, "binary32")
    generator = torch.Generator().manual_seed(0)
    largest = 1 + torch.rand(12, generator=generator, dtype=torch.float64)
    largest = largest.to(dtype)
    values = format.element.values()
    ties = [(a + b) / 2 for a, b in itertools.pairwise(values) if a >= 0]
    for amax in largest.tolist():
        second = exact_tensor_scale([amax], format)
        scale = exact_block_scale([amax], format, second)
        places = [float(Fraction(t) * Fraction(scale) * Fraction(second)) for t in ties]
        middle = torch.tensor(places, dtype=torch.float64).to(dtype)
        below = torch.nextafter(middle, torch.zeros_like(middle))
        above = torch.nextafter(middle, 2 * middle)
        rest = torch.full((1,), amax, dtype=dtype)
        x = torch.cat([rest, below, middle, rest, above, rest, rest, rest])[:32]
        x = torch.cat([x, rest.expand(32 - len(x))])[None]
        for mode in ("nearest_even", "toward_positive"):
            rounding = BlockRounding(format, mode)
            blocks, _ = expected(x, rounding)
            assert_bit_equal(lp.round(x, rounding), values_of(blocks, dtype))


def test_every_pair_of_fp4_multiples_is_the_oracle():
    """All blocks of two numbers k/4, abs(k) <= 28: every tie of every binade."""
    numbers = [k / 4 for k in range(-28, 29)]
    x = torch.tensor(list(itertools.product(numbers, numbers)))
    for rule in SHARED_RULES:
        format = BlockFormat("e2m1fn", "e8m0", 2, rule)
        blocks = [exact_block_round(row, format).values for row in x.tolist()]
        assert_bit_equal(lp.round(x, format), torch.tensor(blocks))


def test_scale_rules_differ_where_they_should():
    # E = 2, M = 6, p = 2: thresholds of the significand 1, 1.5, 1.75.
    exponents = {
        1.0: (-2, -2, -2, -2),
        1.25: (-2, -1, -2, -2),
        1.5: (-2, -1, -2, -2),
        1.625: (-2, -1, -1, -2),
        1.75: (-2, -1, -1, -1),
    }
    for amax, wanted in exponents.items():
        for rule, exponent in zip(SHARED_RULES, wanted, strict=True):
            format = lp.block_format("mxfp4").replace(rule=rule)
            assert exact_block_scale([amax], format) == 2.0**exponent
            codes = lp.encode_blocks(torch.tensor([amax]), format)
            assert codes.scales.item() - 127 == exponent


def test_numbers_below_a_power_of_two_keep_its_binade():
    """microxcaling, which takes log2 in float32, makes this 1048576."""
    x = torch.tensor([1048575.94] + [0.0] * 31)
    assert lp.round(x, "mxfp4")[0].item() == 786432.0
    powers = 2.0 ** torch.arange(-100, 100, dtype=torch.float64)
    below = torch.nextafter(powers.float(), torch.zeros(()))[:, None]
    codes = lp.encode_blocks(below, "mxfp8_e4m3")
    assert codes.scales.flatten().tolist() == [
        127 + e - 1 - 8 for e in range(-100, 100)
    ]


def test_gfloat_agrees_on_blocks_whose_logarithm_is_safe():
    generator = torch.Generator().manual_seed(3)
    pairs = {
        "mxfp8_e4m3": gfloat_formats.format_info_mxfp8_e4m3,
        "mxfp8_e5m2": gfloat_formats.format_info_mxfp8_e5m2,
        "mxfp6_e3m2": gfloat_formats.format_info_mxfp6_e3m2,
        "mxfp6_e2m3": gfloat_formats.format_info_mxfp6_e2m3,
        "mxfp4": gfloat_formats.format_info_mxfp4_e2m1,
        "mxint8": gfloat_formats.format_info_mxint8,
    }
    for name, info in pairs.items():
        x = torch.randn(16, 32, generator=generator, dtype=torch.float64)
        x = torch.ldexp(x, torch.randint(-30, 30, (16, 1), generator=generator))
        if name == "mxint8":  # gfloat uses -2, which has no counterpart
            x = x.abs()
        for row, actual in zip(x, lp.round(x, name), strict=True):
            theirs = gfloat_block.quantize_block(
                info, row.numpy(), gfloat_block.compute_scale_amax
            )
            assert actual.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mxfp8_e4m3", ml_dtypes.float8_e4m3fn),
        ("mxfp8_e5m2", ml_dtypes.float8_e5m2),
        ("mxfp6_e3m2", ml_dtypes.float6_e3m2fn),
        ("mxfp6_e2m3", ml_dtypes.float6_e2m3fn),
        ("mxfp4", ml_dtypes.float4_e2m1fn),
        ("nvfp4", ml_dtypes.float4_e2m1fn),
    ],
)
def test_element_codes_are_those_of_ml_dtypes(name, dtype):
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    codes = lp.encode_blocks(x, name)
    format = lp.block_format(name)
    if name == "nvfp4":  # the published float32 steps, in NumPy
        scale = codes.tensor_scale.numpy().astype(np.float32)
        assert scale == np.float32(x.abs().max().numpy()) / np.float32(2688)
        amax = x.unflatten(1, (2, 16)).abs().amax(-1).numpy()
        block = (amax / np.float32(6) / scale).astype(ml_dtypes.float8_e4m3fn)
        assert (block.view(np.uint8) == codes.scales.numpy()).all()
        divisor = np.repeat(block.astype(np.float32) * scale, 16, 1)
    else:
        divisor = np.exp2(codes.scales.numpy().astype(np.float32) - 127)
    quotient = x.numpy() / divisor
    largest = np.float32(format.element.max)
    theirs = np.clip(quotient, -largest, largest).astype(dtype).view(np.uint8)
    assert (theirs == codes.codes.numpy()).all()


def test_nan_and_infinity_take_their_block_and_nothing_else():
    x = torch.ones(3, 64)
    x[0, 3], x[1, 40], x[2, 63] = math.nan, math.inf, -math.inf
    for format in NAMED:
        broken = lp.round(x, format).isnan()
        count = 64 // format.block_size
        wanted = (~x.isfinite()).unflatten(1, (count, -1)).any(-1)
        assert torch.equal(broken, wanted.repeat_interleave(format.block_size, 1))


def test_e8m0_codes_decode_to_all_powers_of_two():
    format = BlockFormat("e2m1fn", "e8m0", 1)
    one = format.element.encode(1.0)
    codes = lp.BlockCodes(torch.full((256,), one), torch.arange(256), None)
    decoded = lp.decode_blocks(codes, format, dtype=torch.float64)
    theirs = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)
    assert_bit_equal(decoded, torch.tensor(theirs.astype(np.float64)))


def test_int8_codes_are_twos_complement_and_decode_minus_two():
    codes = lp.BlockCodes(torch.arange(256), torch.full((8,), 127), None)
    decoded = lp.decode_blocks(codes, "mxint8")
    wanted = torch.arange(256, dtype=torch.uint8).view(torch.int8) / 64
    assert torch.equal(decoded, wanted)


@pytest.mark.parametrize("format", [SHARED[2], SCALED[0], SCALED[3]], ids=label)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (1,), (2, 3, 70), (33, 2)])
def test_any_axis_is_the_last_axis_of_the_moved_tensor(format, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for axis in range(-len(shape), len(shape)):
        actual = lp.round(x, format, axis=axis)
        moved = lp.round(x.movedim(axis, -1).contiguous(), format)
        assert_bit_equal(actual.movedim(axis, -1).contiguous(), moved)
        codes = lp.encode_blocks(x, format, axis)
        assert codes.codes.shape == x.shape
        assert_bit_equal(lp.decode_blocks(codes, format, axis), actual)


def test_layout_and_backend_do_not_matter():
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    for format in (SHARED[1], SCALED[1], SCALED[2]):
        rounding = BlockRounding(format, "stochastic")
        wanted = lp.round(x, rounding, axis=0, seed=3)
        strided = x.mT.contiguous().mT
        assert_bit_equal(lp.round(strided, rounding, axis=0, seed=3), wanted)
        with using("portable"):
            assert_bit_equal(lp.round(x, rounding, axis=0, seed=3), wanted)


def test_random_words_are_those_of_the_element_index():
    x = torch.rand(4, 8) + 0.1
    rounding = BlockRounding(BlockFormat("e2m1fn", "e8m0", 4), "stochastic")
    whole = lp.round(x, rounding, seed=9)
    assert_bit_equal(lp.round(x[2:], rounding, seed=9, offset=16), whole[2:])


def test_stochastic_rounding_of_elements_is_unbiased():
    """The mean is within five standard errors, at most 1/sqrt(n) each, of x."""
    x = torch.tensor([6.0, 2.3, -0.7, 4.9]).repeat(20000, 1)
    rounding = BlockRounding(BlockFormat("e2m1fn", "e8m0", 4), "stochastic")
    mean = lp.round(x, rounding, seed=1).mean(0)
    assert torch.allclose(mean, x[0], atol=5 * 1.0 / math.sqrt(20000))


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(data=st.data(), other=lps.roundings())
def test_any_format_and_mode_is_the_oracle(data, other, dtype):
    format = data.draw(lps.block_formats(carrier=dtype))
    near = lps.values_near(format.element, dtype) | st.floats(width=32)
    row = data.draw(st.lists(near, min_size=1, max_size=12))
    rounding = BlockRounding(
        format, other.mode, other.saturation, other.random_bits, other.variant
    )
    seed = 3 if rounding.stochastic else None
    x = torch.tensor([row], dtype=dtype)
    blocks, _ = expected(x, rounding, seed)
    assert_bit_equal(lp.round(x, rounding, seed=seed), values_of(blocks, dtype))


@given(st.lists(numbers, min_size=1, max_size=9), st.sampled_from(SHARED))
def test_rounding_again_changes_nothing(block, format):
    once = lp.round(torch.tensor(block, dtype=torch.float64), format)
    assert_bit_equal(lp.round(once, format), once)


@given(st.lists(numbers, min_size=1, max_size=9), st.sampled_from(ALL))
def test_signs_change_sides(block, format):
    x = torch.tensor(block, dtype=torch.float64)
    assert torch.equal(lp.round(-x, format), -lp.round(x, format))


@given(st.lists(numbers, min_size=1, max_size=9), st.sampled_from(SHARED))
def test_error_is_half_a_quantum_of_the_scaled_element(block, format):
    x = torch.tensor(block, dtype=torch.float64)
    for i in range(0, len(block), format.block_size):
        part = block[i : i + format.block_size]
        scale = Fraction(exact_block_scale(part, format))
        for number, rounded in zip(
            part, lp.round(x, format)[i:].tolist(), strict=False
        ):
            quotient = abs(Fraction(number) / scale)
            if quotient <= Fraction(format.element.max):
                half = Fraction(format.element.ulp(quotient)) * scale / 2
                assert abs(Fraction(number) - Fraction(rounded)) <= half


def test_gradient_is_that_of_the_identity_and_may_be_rounded():
    x = torch.randn(4, 33, requires_grad=True)
    gradient = torch.randn(4, 33)
    lp.round(x, "mxfp8_e4m3", axis=0).backward(gradient)
    assert torch.equal(x.grad, gradient)
    x.grad = None
    lp.round(x, "mxfp8_e4m3", backward="mxfp8_e5m2", axis=0).backward(gradient)
    assert torch.equal(x.grad, lp.round(gradient, "mxfp8_e5m2", axis=0))
    x.grad = None
    lp.round(x, "nvfp4", backward="bfloat16").backward(gradient)
    assert torch.equal(x.grad, lp.round(gradient, "bfloat16"))


def test_transforms_and_dual_numbers():
    x = torch.randn(3, 4, 20)
    for format in ("mxfp4", "nvfp4"):
        wanted = torch.stack([lp.round(one, format, axis=0) for one in x])
        mapped = torch.func.vmap(lambda one, f=format: lp.round(one, f, axis=0))(x)
        assert_bit_equal(mapped, wanted)
        gradient = torch.func.grad(lambda one, f=format: lp.round(one, f).sum())(x)
        assert torch.equal(gradient, torch.ones_like(x))
        _, tangent = torch.func.jvp(lambda one, f=format: lp.round(one, f), (x,), (x,))
        assert torch.equal(tangent, x)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_an_emulation_around_leaves_the_arithmetic_inside_alone(name):
    x = torch.randn(3, 40)
    rounded, codes = lp.round(x, name), lp.encode_blocks(x, name)
    with lp.emulate(lp.Precision(elementwise="e5m2"), strict=True):
        assert_bit_equal(lp.round(x, name), rounded)
        again = lp.encode_blocks(x, name)
        decoded = lp.decode_blocks(again, name)
    assert torch.equal(again.codes, codes.codes)
    assert torch.equal(again.scales, codes.scales)
    assert_bit_equal(decoded, rounded)


@pytest.mark.slow
def test_compiles_in_one_graph():
    x = torch.randn(5, 40)
    for format in ("mxfp8_e4m3", "nvfp4"):
        compiled = torch.compile(lambda one, f=format: lp.round(one, f), fullgraph=True)
        assert_bit_equal(compiled(x), lp.round(x, format))


def test_out_receives_the_result_and_may_be_the_operand():
    x = torch.randn(5, 40)
    wanted = lp.round(x, "mxfp6", axis=0)
    assert lp.round(x, "mxfp6", axis=0, out=x) is x
    assert_bit_equal(x, wanted)


@pytest.mark.parametrize("format", [*NAMED, *ALL], ids=label)
def test_values_copy_print_and_compare(format):
    names = {
        "BlockFormat": BlockFormat,
        "Format": lp.Format,
        "SharedExponent": SharedExponent,
    }
    assert eval(repr(format), names) == format
    for rounding in (BlockRounding(format), BlockRounding(format, "to_odd", "none", 7)):
        for twin in (pickle.loads(pickle.dumps(rounding)), copy.deepcopy(rounding)):
            assert twin == rounding
            assert hash(twin) == hash(rounding)
            assert twin.element == rounding.element
        assert (
            eval(repr(rounding), names | {"BlockRounding": BlockRounding}) == rounding
        )


def test_names_sizes_and_published_ranges():
    bits = {one.name: (one.element.bits, one.block_size) for one in NAMED}
    assert bits["mxfp8_e4m3"] == (8, 32)
    assert bits["mxfp6_e2m3"] == (6, 32)
    assert bits["mxfp4"] == (4, 32)
    assert bits["mxint8"] == (8, 32)
    assert bits["nvfp4"] == (4, 16)
    assert bits["msfp12"] == (4, 16)
    assert bits["msfp16"] == (8, 16)
    assert lp.block_format("MXFP8") is lp.block_format("mxfp8_e4m3")
    assert lp.block_format("mxint8").element.max == 1.984375
    assert lp.block_format("msfp12").element.values()[-1] == 1.75


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: BlockFormat("e2m1fn", block_size=0), "block_size must be at least 1"),
        (lambda: BlockFormat("e2m1fn", block_size=2.0), "block_size must be an int"),
        (lambda: BlockFormat("e2m1fn", block_size=True), "block_size must be an int"),
        (lambda: BlockFormat("e2m1fn", rule="amax"), "rule of a shared exponent"),
        (lambda: BlockFormat("e2m1fn", "e4m3fn", rule="floor"), "with a significand"),
        (lambda: BlockFormat("e2m1fn", "e2m3fn"), "must be able to say NaN"),
        (lambda: BlockFormat("e2m1fn", tensor_scale="binary32"), "needs a scale with"),
        (lambda: BlockFormat("binary32"), "at most 16 bits of precision"),
        (lambda: BlockFormat("e11m5"), "within the range of binary32"),
        (
            lambda: BlockFormat("e2m1fn", "e4m3fn", 16, "amax", "binary64"),
            "scales must have values that binary32 has",
        ),
        (lambda: BlockFormat("e2m1fn", "e11m3"), "scales must have values"),
        (
            lambda: BlockFormat("e2m5", "e4m6", 16, "amax", "binary32"),
            "at most 28 significant bits, got 31",
        ),
        (lambda: SharedExponent(9), "2 to 8 bits"),
        (lambda: SharedExponent(1), "at least 2"),
        (lambda: BlockFormat.fixed_point(1), "bits must be at least 2"),
        (
            lambda: lp.block_format("mxfp5"),
            "unknown block format 'mxfp5': did you mean",
        ),
        (lambda: lp.block_format(8), "a block format is a BlockFormat or a name"),
        (lambda: lp.format("mxfp4"), "blocks run along an axis"),
        (lambda: lp.Rounding("nvfp4"), "lowprec.block_format returns it"),
        (lambda: BlockRounding("bfloat16"), "unknown block format"),
        (lambda: BlockRounding("mxfp4", "up"), "unknown rounding mode"),
        (lambda: lp.round(torch.tensor(1.0), "mxfp4"), "axis -1 is not possible"),
        (lambda: lp.round(torch.ones(2, 2), "mxfp4", axis=2), "from -2 to 1"),
        (lambda: lp.round(torch.ones(2), "mxfp4", axis=0.0), "axis must be an int"),
        (lambda: lp.round(torch.ones(2), "bfloat16", axis=0), "needs a block format"),
        (lambda: lp.round(torch.ones(2).half(), "mxfp4"), "float16"),
        (
            lambda: lp.round(torch.ones(2), BlockFormat("bfloat16", "e8m0")),
            "use a float64 carrier",
        ),
        (lambda: lp.encode_blocks([1.0], "mxfp4"), "must be a float32 or float64"),
        (
            lambda: lp.decode_blocks(
                lp.BlockCodes(torch.zeros(33, dtype=torch.int64), torch.zeros(1), None),
                "mxfp4",
            ),
            "have scales",
        ),
        (
            lambda: lp.decode_blocks(
                lp.BlockCodes(torch.tensor([16]), torch.tensor([0]), None), "mxfp4"
            ),
            "are from 0 to 15, got values from 16",
        ),
        (
            lambda: lp.decode_blocks(
                lp.BlockCodes(torch.tensor([1]), torch.tensor([256]), None), "mxfp4"
            ),
            "from 0 to 255",
        ),
        (
            lambda: lp.decode_blocks(
                lp.BlockCodes(torch.tensor([1]), torch.tensor([1]), None), "nvfp4"
            ),
            "has a tensor scale",
        ),
    ],
)
def test_refusals_say_what_is_allowed(make, text):
    with pytest.raises((TypeError, ValueError), match=text):
        make()


def test_rules_are_an_enumeration():
    assert [rule.value for rule in ScaleRule][:4] == SHARED_RULES


MX = lp.BlockCodes(torch.tensor([0, 1, 6]), torch.tensor([130]), None)
NV = lp.BlockCodes(
    torch.tensor([0, 1, 6]), torch.tensor([64]), torch.tensor(2.0, dtype=torch.float64)
)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"codes": MX.codes.float()}, TypeError, "must be an integer tensor"),
        ({"codes": [0, 1, 6]}, TypeError, "codes must be an integer tensor, got list"),
        ({"scales": [130]}, TypeError, "scales must be an integer tensor, got list"),
        ({"scales": torch.tensor([127.9])}, TypeError, "must be an integer tensor"),
        ({"scales": torch.tensor([True])}, TypeError, "must be an integer tensor"),
        ({"scales": torch.tensor([-1])}, ValueError, "from 0 to 255"),
    ],
)
def test_codes_that_are_none_are_refused(changes, error, text):
    with pytest.raises(error, match=text):
        lp.decode_blocks(MX._replace(**changes), "mxfp4")


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"scales": torch.tensor([0.5])}, TypeError, "must be an integer tensor"),
        ({"scales": torch.tensor([64 + 128])}, ValueError, "non-negative scales"),
        ({"scales": torch.tensor([128])}, ValueError, "non-negative scales"),
        ({"scales": torch.tensor([255])}, ValueError, "non-negative scales"),
        ({"tensor_scale": 2.0}, TypeError, "0-d float32 or float64 tensor, got 2.0"),
        ({"tensor_scale": torch.tensor(2)}, TypeError, "0-d float32 or float64"),
        ({"tensor_scale": torch.ones(3)}, ValueError, r"got shape \(3,\)"),
        ({"tensor_scale": torch.tensor(-2.0)}, ValueError, "non-negative value of"),
        ({"tensor_scale": torch.tensor(-0.0)}, ValueError, "non-negative value of"),
        ({"tensor_scale": torch.tensor(math.nan)}, ValueError, "finite, non-negative"),
        (
            {"tensor_scale": torch.tensor(0.1, dtype=torch.float64)},
            ValueError,
            "value of 'binary32', got 0.1",
        ),
    ],
)
def test_scales_that_are_none_are_refused(changes, error, text):
    with pytest.raises(error, match=text):
        lp.decode_blocks(NV._replace(**changes), "nvfp4")


def test_scales_in_dtypes_of_torch():
    held = MX._replace(scales=MX.scales.to(torch.uint8).view(torch.float8_e8m0fnu))
    assert_bit_equal(lp.decode_blocks(held, "mxfp4"), lp.decode_blocks(MX, "mxfp4"))
    held = NV._replace(scales=NV.scales.to(torch.uint8).view(torch.float8_e4m3fn))
    assert_bit_equal(lp.decode_blocks(held, "nvfp4"), lp.decode_blocks(NV, "nvfp4"))
    missing = lp.BlockFormat("e2m1fn", "e4m3fnuz")  # whose NaN has the code of -0
    codes = lp.encode_blocks(torch.tensor([math.nan, 1.0]), missing)
    assert codes.scales.tolist() == [128]
    assert lp.decode_blocks(codes, missing).isnan().all()


def test_names_are_strings():
    with pytest.raises(TypeError, match="name must be a str or None, got 3"):
        BlockFormat("e2m1fn", name=3)
