"""Every bug class seen in other emulators, as a regression test of ours.

Names in comments are those of the peers survey; the numbers are the inputs that broke
them, the expected values the correct ones.
"""

import math

import pytest
import torch

import lowprec as lp
from lowprec.kernels.portable import round_with_words
from lowprec.testing import assert_bit_equal, exact_block_round, exact_round

pytestmark = pytest.mark.usefixtures("backend")

INF, NAN = math.inf, math.nan
ZERO = {"mode": "toward_zero"}
UP = {"mode": "toward_positive"}
AWAY = {"mode": "nearest_away"}
TIE_ZERO = {"mode": "nearest_zero"}
ODD = {"mode": "to_odd"}
FINITE = {"saturation": "finite"}
DEEP = float.fromhex("0x1.3b7ffcp-16")

# Peer, input, format, options, what the peer returned, what is right.
BUGS = [
    # Shifts by -1 at 23 bits; specials rounded as if they were numbers; the top
    # exponent is not reserved; ties are not to even; subnormals round twice; -0 lost.
    ("QPyTorch", 3.0, "e8m23", {}, -3.0, 3.0),
    ("QPyTorch", -1.5, "e8m23", {}, 1.5, -1.5),
    ("Qtorch+", 3.0, "e5m23", {}, -3.0, 3.0),
    ("QPyTorch", NAN, "binary16", {}, 131008.0, NAN),
    ("QPyTorch", INF, "binary16", {}, 131008.0, INF),
    ("QPyTorch", 70000.0, "binary16", {}, 70016.0, INF),
    ("QPyTorch", 65520.0, "binary16", {}, 65536.0, INF),
    ("QPyTorch", 1e6, "e4m3fn", FINITE, 480.0, 448.0),
    ("QPyTorch", 1e6, "e4m3", FINITE, 480.0, 240.0),
    ("QPyTorch", 1.0625, "e4m3", {}, 1.125, 1.0),
    ("QPyTorch", 1.3125, "e4m3", {}, 1.375, 1.25),
    ("QPyTorch", DEEP, "binary16", {}, 316 * 2.0**-24, 315 * 2.0**-24),
    ("QPyTorch", -0.0, "binary16", {}, 0.0, -0.0),
    # Subnormals of bfloat16; -0 lost.
    ("MPTorch", 1.1477e-38, "bfloat16", {}, 124 * 2.0**-133, 125 * 2.0**-133),
    ("MPTorch", -0.0, "bfloat16", {}, 0.0, -0.0),
    # The overflow binade becomes 0, toward zero too; ties ignore the sign and have a
    # tolerance; rounding to odd moves exact values.
    ("pychop", 65536.0, "binary16", {}, 0.0, INF),
    ("pychop", 70000.0, "binary16", {}, 0.0, INF),
    ("pychop", 131071.0, "binary16", {}, 0.0, INF),
    ("pychop", 65520.0, "binary16", {}, 65536.0, INF),
    ("pychop", 256.0, "e4m3", {}, 0.0, INF),
    ("pychop", 300.0, "e4m3", {}, 0.0, INF),
    ("pychop", 448.0, "e4m3", {}, 0.0, INF),
    ("pychop", 70000.0, "binary16", ZERO, 0.0, 65504.0),
    ("pychop", 1e6, "binary16", ZERO, INF, 65504.0),
    ("pychop", -1e6, "binary16", ZERO, -INF, -65504.0),
    ("pychop", -1.0625, "e4m3", AWAY, -1.0, -1.125),
    ("pychop", 1.0625 + 2.0**-23, "e4m3", TIE_ZERO, 1.0, 1.125),
    ("pychop", 1.0, "e4m3", ODD, 1.125, 1.0),
    # Negative numbers and numbers below the range in formats without a sign.
    ("gfloat", -3.0, "e8m0fnu", {}, -4.0, NAN),
    ("gfloat", -3.0, "e8m0fnu", FINITE, -4.0, 2.0**-127),
    ("gfloat", -3.0, "binary8p3ue", {}, -3.0, NAN),
    ("gfloat", -3.0, "binary8p3uf", FINITE, -3.0, 0.0),
    ("gfloat", 2.0**-128, "e8m0fnu", {}, 2.0**-128, 2.0**-127),
    ("gfloat", 0.0, "e8m0fnu", {}, 0.0, 2.0**-127),
    # IEEE 754 takes a tie between one-digit numbers to the larger magnitude.
    ("gfloat", 3.0, "e8m0fnu", {}, 2.0, 4.0),
    ("gfloat", INF, "binary8p4sf", FINITE, NAN, 240.0),
    ("ml_dtypes", NAN, "e2m1fn", {}, -0.0, NAN),
    ("ml_dtypes", NAN, "e3m2fn", {}, -0.0, NAN),
    ("ml_dtypes", NAN, "e2m3fn", {}, -0.0, NAN),
    ("ml_dtypes", 0.0, "e8m0fnu", {}, NAN, 2.0**-127),
    # Three overflow policies in one library.
    ("torch", INF, "e4m3fn", {}, 448.0, NAN),
    ("torch", 1000.0, "e4m3fn", {}, 448.0, NAN),
    ("torch", 248.0, "e4m3fnuz", FINITE, NAN, 240.0),
    ("torch", 61440.0, "e5m2", FINITE, INF, 57344.0),
    ("torch", -1.0, "e8m0fnu", {}, 1.0, NAN),
    # Ties go away from zero.
    ("microxcaling", 2.5, "e2m1fn", {}, 3.0, 2.0),
    # Through half first; specials saturate; directed modes are nearest.
    ("mpemu", 1.125 + 2.0**-20, "e5m2", {}, 1.0, 1.25),
    ("mpemu", 0.0107421875, "e4m3", {}, 0.0107421875, 6 * 2.0**-9),
    ("mpemu", NAN, "e4m3fn", {}, 448.0, NAN),
    ("mpemu", 1.01, "e5m2", UP, 1.0, 1.25),
    ("mpemu", -1.2, "e5m2", UP, -1.25, -1.0),
    # OFP8's largest value; the largest value is odd, so overflow stays there.
    ("CPFloat", 464.25, "e4m3fn", {}, 480.0, NAN),
    ("CPFloat", 464.25, "e4m3fn", FINITE, 480.0, 448.0),
    ("gfloat", 1e9, "e5m2", ODD, INF, 57344.0),
    # Presets with wrong maxima.
    ("customfloat", 5.0, "e2m1fn", {}, INF, 4.0),
    ("customfloat", 100.0, "e2m1fn", {}, 3.0, 6.0),
    ("customfloat", 100.0, "e3m2fn", {}, 14.0, 28.0),
    ("customfloat", 448.0, "e4m3fn", {}, INF, 448.0),
    ("TensorFormat", NAN, "e4m3fn", {}, 256.0, NAN),
    # The smallest exponent is one too low; ties go toward zero.
    ("unit_scaling", 2.0**-17 * 1.5, "e5m2", {}, 2.0**-17, 2.0**-16),
    ("unit_scaling", 1.375, "e5m2", {}, 1.25, 1.5),
    ("brevitas", 480.0, "e4m3", {}, 480.0, INF),
    ("brevitas", INF, "e4m3", {}, NAN, INF),
    ("torchao", NAN, "e2m1fn", {}, 1.5, NAN),
]

# The neighbours of those inputs, on which a repair would fail.
NEAR = [
    (-INF, "bfloat16", {}, -INF),
    (65519.996, "binary16", {}, 65504.0),
    (-1e-30, "binary16", {}, -0.0),
    (131072.0, "binary16", {}, INF),
    (1.0625, "e4m3", AWAY, 1.125),
    (-1.0625, "e4m3", TIE_ZERO, -1.0),
    (1.01, "e4m3", ODD, 1.125),
    (464.0, "e4m3fn", {}, 448.0),
    (448.0, "e4m3fn", {}, 448.0),
    (248.0, "e4m3fnuz", {}, NAN),
    (61440.0, "e5m2", {}, INF),
    (INF, "e4m3fn", FINITE, 448.0),
    (6.0, "e8m0fnu", {}, 8.0),
    # P3109 takes that tie to the even code: 2^62 has code 126.
    (1.5 * 2.0**61, "binary8p1sf", {}, 2.0**62),
    (1.5 * 2.0**62, "binary8p1sf", {}, 2.0**62),
    # Without saturation, P3109/D1 has no number for them, as gfloat.
    (INF, "binary8p4sf", {}, NAN),
    (-1000.0, "binary8p4sf", {}, NAN),
    (1000.0, "binary8p4sf", ZERO, 240.0),
    (1000.0, "binary8p4sf", FINITE, 240.0),
]


def same(actual, expected):
    if math.isnan(expected):
        return math.isnan(actual)
    return actual == expected and math.copysign(1, actual) == math.copysign(1, expected)


@pytest.mark.parametrize("carrier", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("peer", "x", "format", "options", "wrong", "right"), BUGS)
def test_bugs_of_peers(peer, x, format, options, wrong, right, carrier):
    assert not same(wrong, right), peer
    check_value(x, format, options, right, carrier)


@pytest.mark.parametrize("carrier", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("x", "format", "options", "right"), NEAR)
def test_neighbours_of_bugs(x, format, options, right, carrier):
    check_value(x, format, options, right, carrier)


def check_value(x, format, options, right, carrier):
    value = torch.tensor(x, dtype=carrier)
    actual = lp.round(value, format, **options)
    assert actual.dtype == carrier
    assert same(actual.item(), right)
    assert same(exact_round(value.item(), lp.Rounding(format, **options)), right)


@pytest.mark.parametrize(
    ("peer", "x", "format", "wrong", "right"),
    [
        ("QPyTorch", 3.0, "e8m24", 0.0, 3.0),
        ("QPyTorch", 8388609.0, "int32", 8388610.0, 8388609.0),
        ("QPyTorch", 8388609.0, "fixed32f4", 8388610.0, 8388609.0),
        ("ml_dtypes", -431.99999999999994, "e4m3fn", -448.0, -416.0),
        ("torch", -431.99999999999994, "e4m3fn", -448.0, -416.0),
        ("torch", 1 + 2.0**-8 + 2.0**-40, "bfloat16", 1.0, 1.0078125),
        ("torch", 1 + 2.0**-11 + 2.0**-40, "binary16", 1.0, 1.0009765625),
        ("pychop", 1e-50, "binary64", 9.99938e-51, 1e-50),
        ("pychop", 1e-100, "binary64", 0.0, 1e-100),
        # From int64, through float32, where it becomes a tie.
        ("ml_dtypes", 16973823.0, "bfloat16", 17039360.0, 16908288.0),
    ],
)
def test_bugs_of_peers_in_float64(peer, x, format, wrong, right):
    assert wrong != right, peer
    if peer == "ml_dtypes" and format == "bfloat16":
        assert abs(x - right) < abs(x - wrong)
    value = torch.tensor(x, dtype=torch.float64)
    assert lp.round(value, format).item() == right == exact_round(x, format)


def test_blocks_of_peers():
    # QPyTorch: [3e38, 1e38] in 8 bits became negative.
    block = lp.BlockFormat.fixed_point(8, 2)
    y = lp.round(torch.tensor([3e38, 1e38]), block)
    assert y.tolist() == [
        exact_block_round([3e38, 1e38], block).values[i] for i in (0, 1)
    ]
    assert bool((y > 0).all())
    # microxcaling: the largest magnitude just below 2^20 was taken for 2^20.
    y = lp.round(torch.tensor([1048575.94] * 2), "mxfp4")
    assert y.tolist() == [786432.0] * 2
    # pychop: a block with infinity kept it, which no FP4 number is.
    assert lp.round(torch.tensor([math.inf, 1.0]), "mxfp4").isnan().all()
    # torchao: the scale rule "even" does not compile.
    even = lp.block_format("mxfp4").replace(rule="even")
    compiled = torch.compile(lambda x: lp.round(x, even), backend="eager")
    x = torch.randn(64)
    assert_bit_equal(compiled(x), lp.round(x, even))


def test_sums_of_many_small_numbers():
    # ml_dtypes: np.sum of 1400 e4m3 numbers is NaN; an accumulator only stagnates.
    ones = torch.ones(1400)
    assert lp.dot(ones, ones, accumulator="e4m3fn").item() == 16.0


def test_converted_layers_keep_their_parameters_and_optimizers_round_them():
    # pychop: the attention layer replaced its parameters; QuantizedSGD never rounded.
    model = torch.nn.Linear(4, 3)
    kept = dict(model.named_parameters())
    converted = lp.nn.convert_(model, lp.Policy({"*": lp.Precision(weight="e4m3fn")}))
    assert dict(converted.named_parameters()).keys() == kept.keys()
    for name, parameter in converted.named_parameters():
        assert parameter is kept[name]
    optimizer = lp.optim.SGD(converted.parameters(), lr=0.1, param_format="e4m3fn")
    converted(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    weight = converted.weight.detach()
    assert torch.equal(weight, lp.round(weight, "e4m3fn"))


def test_attention_keeps_its_parameters_and_they_learn():
    # pychop: QuantizedMultiheadAttention replaced them in forward, so that optimizers
    # changed weights that nothing used any more.
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    kept = dict(layer.named_parameters())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02)
    x = torch.randn(2, 3, 4)
    precision = lp.Precision(input="e4m3fn", weight="e4m3fn", accumulator="e8m10")

    def attended():
        with lp.emulate(precision):
            return layer(x, x, x, need_weights=False)[0]

    before = {name: one.detach().clone() for name, one in kept.items()}
    first = attended()
    first.pow(2).sum().backward()
    optimizer.step()
    assert all(one is kept[name] for name, one in layer.named_parameters())
    changed = [name for name, one in kept.items() if not torch.equal(one, before[name])]
    assert {"in_proj_weight", "out_proj.weight"} <= set(changed)
    assert attended().pow(2).sum() < first.pow(2).sum()


@pytest.mark.parametrize("name", ["e2m1fn", "e2m3fn", "e3m2fn"])
def test_one_large_number_does_not_refuse_an_array(name):
    # gfloat: without saturation, a number beyond the range raises for all of them.
    target = lp.format(name)
    x = torch.tensor([0.5, 1e6, -INF, -1.0, NAN, INF])
    limit = target.max
    y = lp.round(x, name, saturation="none")
    expected = torch.tensor([0.5, limit, -limit, -1.0, NAN, limit])
    assert_bit_equal(y, expected)


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
