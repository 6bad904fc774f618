"""Every bug class seen in other emulators, as a regression test of ours.

Names in comments are those of the peers survey; the numbers are the inputs that broke
them, the expected values the correct ones.
"""

import math

import pytest
import torch

import lowprec as lp
from lowprec.kernels.portable import round_with_words
from lowprec.testing import assert_bit_equal, exact_round

pytestmark = pytest.mark.usefixtures("backend")

INF, NAN = math.inf, math.nan
FNUZ = lp.Format(
    precision=4, emax=7, emin=-7, infinities=False, signed_zero=False, encoding="fnuz"
)
E2M1FN = lp.Format(
    precision=2, emax=2, emin=0, infinities=False, nans=False, encoding="finite"
)
E3M2FN = lp.Format(
    precision=3, emax=4, emin=-2, infinities=False, nans=False, encoding="finite"
)
SCALE = lp.Format(  # powers of two, like E8M0
    precision=1,
    emax=127,
    emin=-127,
    infinities=False,
    signed=False,
    signed_zero=False,
    subnormals=False,
)


def same(actual, expected):
    if math.isnan(expected):
        return math.isnan(actual)
    return actual == expected and math.copysign(1, actual) == math.copysign(1, expected)


@pytest.mark.parametrize(
    ("x", "format", "options", "expected"),
    [
        # QPyTorch, Qtorch+: shift by -1 at 23 bits negates; 24 bits give 0.
        (3.0, "e8m22", {}, 3.0),
        (-1.5, "binary32", {}, -1.5),
        (3.0, "e5m22", {}, 3.0),
        # QPyTorch: specials rounded as if they were numbers.
        (NAN, "binary16", {}, NAN),
        (INF, "binary16", {}, INF),
        (-INF, "bfloat16", {}, -INF),
        # QPyTorch: the top exponent is reserved.
        (70000.0, "binary16", {}, INF),
        (65520.0, "binary16", {}, INF),
        (65519.996, "binary16", {}, 65504.0),
        (1e6, "e4m3fn", {"saturation": "finite"}, 448.0),
        (480.0, "e4m3", {"saturation": "finite"}, 240.0),
        # QPyTorch: ties to even.
        (1.0625, "e4m3", {}, 1.0),
        (1.3125, "e4m3", {}, 1.25),
        # QPyTorch: subnormals rounded twice; negative zero lost.
        (float.fromhex("0x1.3b7ffcp-16"), "binary16", {}, 315 * 2.0**-24),
        (-0.0, "binary16", {}, -0.0),
        (-1e-30, "binary16", {}, -0.0),
        # MPTorch: subnormals of bfloat16.
        (1.1477e-38, "bfloat16", {}, 125 * 2.0**-133),
        # pychop: the overflow binade became 0.
        (65536.0, "binary16", {}, INF),
        (131071.0, "binary16", {}, INF),
        (131072.0, "binary16", {}, INF),
        (256.0, "e4m3", {}, INF),
        (300.0, "e4m3", {}, INF),
        (448.0, "e4m3", {}, INF),
        # pychop: toward zero stops at the largest finite value.
        (70000.0, "binary16", {"mode": "toward_zero"}, 65504.0),
        (1e6, "binary16", {"mode": "toward_zero"}, 65504.0),
        (-1e6, "binary16", {"mode": "toward_zero"}, -65504.0),
        # pychop: ties away and toward zero act on the magnitude.
        (-1.0625, "e4m3", {"mode": "nearest_away"}, -1.125),
        (1.0625, "e4m3", {"mode": "nearest_away"}, 1.125),
        (-1.0625, "e4m3", {"mode": "nearest_zero"}, -1.0),
        (1.0625 + 2.0**-23, "e4m3", {"mode": "nearest_zero"}, 1.125),
        # pychop: rounding to odd leaves representable values alone.
        (1.0, "e4m3", {"mode": "to_odd"}, 1.0),
        (1.01, "e4m3", {"mode": "to_odd"}, 1.125),
        # MuFP and IN: values went through half first; directed modes are directed.
        (1.125 + 2.0**-20, "e5m2", {}, 1.25),
        (1.01, "e5m2", {"mode": "toward_positive"}, 1.25),
        (-1.2, "e5m2", {"mode": "toward_positive"}, -1.0),
        (NAN, "e4m3fn", {}, NAN),
        # CPFloat through MATLAB: OFP8's largest value is 448, not 480.
        (464.25, "e4m3fn", {}, NAN),
        (464.25, "e4m3fn", {"saturation": "finite"}, 448.0),
        (464.0, "e4m3fn", {}, 448.0),
        # CPFloat and gfloat disagree on overflow to odd: the largest value is odd.
        (1e9, "e5m2", {"mode": "to_odd"}, 57344.0),
        # Custom-float presets with wrong maxima.
        (100.0, E2M1FN, {}, 6.0),
        (5.0, E2M1FN, {}, 4.0),
        (100.0, E3M2FN, {}, 28.0),
        (448.0, "e4m3fn", {}, 448.0),
        # torch has three overflow policies; each is an explicit choice here.
        (61440.0, "e5m2", {}, INF),
        (248.0, FNUZ, {}, NAN),
        (248.0, FNUZ, {"saturation": "finite"}, 240.0),
        (INF, "e4m3fn", {"saturation": "finite"}, 448.0),
        (INF, "e4m3fn", {}, NAN),
        # gfloat: negative input to an unsigned format.
        (-3.0, SCALE, {}, NAN),
        (-3.0, SCALE, {"saturation": "finite"}, 0.0),
    ],
)
@pytest.mark.parametrize("carrier", [torch.float32, torch.float64], ids=str)
def test_single_values(x, format, options, expected, carrier):
    value = torch.tensor(x, dtype=carrier)
    actual = lp.round(value, format, **options)
    assert actual.dtype == carrier
    assert same(actual.item(), expected)
    assert same(exact_round(value.item(), lp.Rounding(format, **options)), expected)


@pytest.mark.parametrize(
    ("x", "format", "expected"),
    [
        # N4; ml_dtypes and torch round float64 through float32.
        (1 + 2.0**-8 + 2.0**-40, "bfloat16", 1.0078125),
        (-431.99999999999994, "e4m3fn", -416.0),
        (1 + 2.0**-11 + 2.0**-40, "binary16", 1.0009765625),
        # pychop: float64 values were clamped at 1e-38.
        (1e-50, "binary64", 1e-50),
        (1e-100, "binary64", 1e-100),
        # ml_dtypes from int64: through float32 it becomes the tie 16973824.
        (16973823.0, "bfloat16", 16908288.0),
    ],
)
def test_no_double_rounding_from_float64(x, format, expected):
    assert lp.round(torch.tensor(x, dtype=torch.float64), format).item() == expected


@pytest.mark.parametrize("pattern", [0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1, -8388607])
@pytest.mark.parametrize("name", ["bfloat16", "e4m3fn", "binary16", "e8m15"])
def test_every_nan_payload_stays_nan(pattern, name):
    # QPyTorch: 0x7fffffff -> -0.0, 0x7f800001 -> inf; CPFloat likewise.
    x = torch.tensor([pattern], dtype=torch.int32).view(torch.float32)
    assert lp.round(x, name).isnan().all()
    assert lp.round(x, name, "stochastic", seed=1).isnan().all()


@pytest.mark.parametrize("mode", ["toward_zero", "toward_negative"])
def test_just_below_powers_of_two(mode):
    # floor(log2(x)) in float32 is wrong for pred(2^k): microxcaling, pychop.
    powers = torch.tensor([2.0**k for k in range(-126, 128)])
    below = powers.nextafter(torch.zeros(()))
    largest_below = powers.double() * (1 - 2.0**-8)
    largest_below[0] = 2.0**-126 - 2.0**-133  # subnormal: one bit less
    assert_bit_equal(lp.round(below, "bfloat16", mode), largest_below.float())
    assert_bit_equal(lp.round(below, "bfloat16"), powers)


def test_products_are_rounded_once():
    # MPTorch: through float32, then to 16 bits: 2.2815552.
    a, b = torch.tensor([1.4748383]), torch.tensor([1.5469971])
    exact = lp.dot(a, b, accumulator="e8m16").item()
    assert exact == pytest.approx(2.2815857, abs=1e-7)
    # The operands rounded to decimals may lie beside the tie: ask the oracle too.
    assert exact == exact_round(
        math.prod([a.double().item(), b.double().item()]), "e8m16"
    )


@pytest.mark.parametrize(
    ("acc", "a", "b", "expected"),
    [(-(2.0**-70), 7, 37 / 256, 1.0078125), (2.0**-70, 9, 29 / 256, 1.0234375)],
)
@pytest.mark.parametrize("carrier", [torch.float32, torch.float64], ids=str)
def test_fused_multiply_add_rounds_once(acc, a, b, expected, carrier):
    # N4: float64 add, then rounding, gives 1.015625.
    x = torch.tensor([acc, a], dtype=carrier)
    y = torch.tensor([1.0, b], dtype=carrier)
    assert lp.dot(x, y, accumulator="bfloat16").item() == expected


def test_products_have_an_accumulator():
    # pychop: 4096 ones in e5m2 give 4096; a real e5m2 accumulator stops at 8.
    ones = torch.ones(1, 4096)
    assert lp.matmul(ones, ones.T, accumulator="e5m2").item() == 8.0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool], ids=str
)
def test_other_dtypes_are_refused(dtype):
    # pychop: fp16 1e-5 -> inf; int 300 -> 0. Unit scaling: bf16 [1.1, 3.3] -> [3.25].
    with pytest.raises(TypeError, match="float32"):
        lp.round(torch.ones(2).to(dtype), "e4m3")


def test_gradient_is_not_cut():
    # QPyTorch's float_quantize returns requires_grad=False.
    x = torch.randn(3, requires_grad=True)
    lp.round(x, "bfloat16").sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(3))


def test_manual_seed_governs_stochastic_rounding():
    # QPyTorch and MPTorch ignore it on the CPU.
    x = torch.randn(1000)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(lp.round(x, "e5m2", "stochastic"))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_tiny_stochastic_probabilities_do_not_vanish():
    # QPyTorch: 2^-22 of an ulp has probability 0; IN: 8 random bits never move 1+2^-12.
    code = lp.Rounding("bfloat16", "stochastic").code
    x = torch.full((3,), 1 + 2.0**-7 * 2.0**-16)
    first_up = 2**32 - 2**16
    words = torch.tensor([0, first_up - 1, first_up])
    assert round_with_words(x, code, words).tolist() == [1.0, 1.0, 1.0078125]


def test_stochastic_rounding_of_subnormals_is_stochastic():
    # IN rounds subnormals to nearest.
    x = torch.full((4096,), 0.25 * 2.0**-16)
    ups = (lp.round(x, "e5m2", "stochastic", seed=3) > 0).sum().item()
    assert 850 <= ups <= 1200  # 1024 +- 6 standard deviations: false alarm 2e-9


def test_storage_dtype_and_shape_are_kept():
    x = torch.randn(3, 0, 2)
    assert lp.round(x, "e4m3").shape == x.shape
    assert lp.round(x.double(), "e4m3").dtype == torch.float64
