"""Posits and levels: every code, and rounding against exact rationals."""

import copy
import math
import pickle
from fractions import Fraction

import pytest
import torch
from tables import CARRIERS, DETERMINISTIC, MODES, VARIANTS

import lowprec as lp
from lowprec.arithmetic import decode, fits
from lowprec.random import philox_words
from lowprec.testing import assert_bit_equal, exact_table_round

SEED = 20261126
POSITS = [lp.Posit(bits, es) for bits in (2, 3, 4, 6, 8) for es in (0, 1, 2, 3)]
LEVELS = [
    lp.Levels.binary(),
    lp.Levels.ternary(),
    lp.Levels.int_bits(3),
    lp.Levels([-1.5, 0.25]),
    lp.Levels([0.1, 0.7, 0.7000000000000001, 3.0]),
    lp.Levels([5.0]),
    lp.Levels([-3.0, -2.5, -0.5]),
]
SETS = [*POSITS, *LEVELS]


def label(value):
    return value.name or f"levels{len(value)}_{value.values[0]}"


each_set = pytest.mark.parametrize("target", SETS, ids=label)


# hardware.md section 4: maximum and distance from 1 to the next value.
@pytest.mark.parametrize(
    ("bits", "es", "largest", "eps"),
    [
        (8, 0, 2.0**6, 2.0**-5),
        (8, 1, 2.0**12, 2.0**-4),
        (8, 2, 2.0**24, 2.0**-3),
        (16, 1, 2.0**28, 2.0**-12),
        (16, 2, 2.0**56, 2.0**-11),
    ],
)
def test_posit_limits(bits, es, largest, eps):
    target = lp.Posit(bits, es)
    assert (target.max, target.min, target.eps) == (largest, -largest, eps)
    assert target.smallest_positive == 1 / largest
    assert len(target.values()) == 2**bits - 1
    assert math.isnan(target.decode(2 ** (bits - 1)))


def defined(code, bits, es):
    """The standard's closed formula: ((1 - 3s) + f) 2^((1 - 2s)(4r + e + s))."""
    s = code >> (bits - 1)
    text = f"{code:0{bits}b}"[1:]
    first = text[0]
    run = len(text) - len(text.lstrip(first))
    r = run - 1 if first == "1" else -run
    rest = text[run + 1 :].ljust(es + 1, "0")
    e = int(rest[:es] or "0", 2)
    f = Fraction(int(rest[es:], 2), 2 ** len(rest[es:]))
    return ((1 - 3 * s) + f) * Fraction(2) ** ((1 - 2 * s) * (2**es * r + e + s))


@pytest.mark.parametrize("bits", [3, 5, 8, 11])
@pytest.mark.parametrize("es", [0, 1, 2, 3])
def test_every_code_is_the_formula_of_the_standard(bits, es):
    target = lp.Posit(bits, es)
    for code in range(1, 2**bits):
        if code != 2 ** (bits - 1):
            assert target.decode(code) == defined(code, bits, es), code
    assert target.decode(0) == 0


def test_known_posits():
    # posit<16,1> of Gustafson and Yonemoto 2017: 0 0001 101 11011101 is 477/2^27 ...
    assert lp.Posit(16, 3).decode(0b0000110111011101) == 477 * 2.0**-27
    posit16 = lp.Posit(16)
    assert posit16.decode(0x4000) == 1
    assert posit16.decode(0x7FFF) == 2.0**56
    assert posit16.decode(0x0001) == 2.0**-56
    assert posit16.decode(0xC000) == -1


@each_set
def test_codes_of_tensors(target):
    numbers = list(target.values if isinstance(target, lp.Levels) else target.values())
    codes = target.encode(numbers)
    assert target.decode(codes) == numbers
    x = torch.tensor(numbers, dtype=torch.float64)
    assert target.encode(x).tolist() == codes
    decoded = decode(torch.tensor(codes), target, dtype=torch.float64)
    assert_bit_equal(decoded, x)
    assert max(codes) < 2**target.bits
    for wrong in (-0.0, 1.1, math.inf):
        with pytest.raises(ValueError, match="round it first"):
            target.encode(wrong)
        with pytest.raises(ValueError, match="1 of 1 elements are not values"):
            target.encode(torch.tensor([wrong], dtype=torch.float64))
    beyond = len(numbers) if isinstance(target, lp.Levels) else 2**target.bits
    for wrong in (-1, beyond):
        with pytest.raises(ValueError, match="from 0 to"):
            target.decode(wrong)
        with pytest.raises(ValueError, match="from 0 to"):
            target.decode(torch.tensor([wrong]))


def test_nan_is_no_level():
    levels = lp.Levels.ternary()
    for x in (torch.tensor([1.0, math.nan]), torch.tensor([math.nan] * 2)):
        with pytest.raises(ValueError, match="elements are not values"):
            levels.encode(x)


def test_nar_is_nan():
    target = lp.Posit(8)
    assert target.encode(math.nan) == 128
    assert target.encode(torch.tensor([math.nan, 1.0])).tolist() == [128, 64]
    assert target.decode(torch.tensor([128])).isnan().all()
    x = torch.tensor([math.nan, math.inf, -math.inf])
    assert lp.round(x, "posit8").isnan().all()
    assert lp.round(x, lp.Levels.binary()).tolist()[1:] == [1, -1]


def inputs(target, carrier):
    """Values, ties, their neighbours in the carrier, and beyond the ends."""
    table = target.table
    exact = [*map(Fraction, table.values), *table.ties]
    pairs = zip(table.values, table.values[1:], strict=False)
    exact += [Fraction(a) + (Fraction(b) - Fraction(a)) * 5 / 16 for a, b in pairs]
    x = torch.tensor([float(value) for value in exact], dtype=carrier)
    infinity = torch.full_like(x, math.inf)
    x = torch.cat([x, x.nextafter(infinity), x.nextafter(-infinity)])
    ends = [0.0, -0.0, 1e30, -1e30, 1e-30, -1e-30, math.inf, -math.inf, math.nan]
    return torch.cat([x, torch.tensor(ends, dtype=carrier)])


@each_set
def test_rounding_equals_the_oracle(target):
    for carrier in CARRIERS:
        if not fits(target, carrier):
            with pytest.raises(ValueError, match="float32 cannot hold every value"):
                lp.round(torch.ones(1), target)
            continue
        x = inputs(target, carrier)
        x = x[:: max(len(x) // 60, 1)]
        words = philox_words(torch.arange(len(x)), torch.tensor(SEED)).tolist()
        for mode in MODES:
            if mode == "to_odd" and isinstance(target, lp.Levels):
                continue
            for variant in VARIANTS if mode == "stochastic" else VARIANTS[:1]:
                for bits in (2, 32) if mode == "stochastic" else (32,):
                    rounding = lp.TableRounding(target, mode, bits, variant)
                    if mode == "stochastic" and label(target) == "levels4_0.1":
                        with pytest.raises(ValueError, match="distances float64 holds"):
                            lp.round(x, rounding, seed=SEED)
                        continue
                    expected = [
                        exact_table_round(value, rounding, word)
                        for value, word in zip(x.tolist(), words, strict=True)
                    ]
                    stochastic = rounding.stochastic
                    actual = lp.round(x, rounding, seed=SEED if stochastic else None)
                    assert_bit_equal(actual, torch.tensor(expected, dtype=carrier))


@pytest.mark.slow
@pytest.mark.parametrize("es", [0, 1, 2])
def test_every_value_and_tie_of_16_bit_posits(es):
    target = lp.Posit(16, es)
    values = torch.tensor(target.values(), dtype=torch.float64)
    ties = torch.tensor([float(tie) for tie in target.table.ties], dtype=torch.float64)
    codes = torch.arange(-(2**15) + 1, 2**15)
    infinity = torch.full_like(ties, math.inf)
    even = torch.where(codes[1:] % 2 == 0, values[1:], values[:-1])
    even = torch.where(ties == 0, 0.0, even)
    assert_bit_equal(lp.round(values, target), values)
    assert_bit_equal(lp.round(ties, target), even)
    lower, upper = values[:-1], values[1:]
    inside = ties != 0  # nothing else rounds to zero
    above = lp.round(ties.nextafter(infinity), target)
    assert_bit_equal(above[inside], upper[inside])
    below = lp.round(ties.nextafter(-infinity), target)
    assert_bit_equal(below[inside], lower[inside])
    assert target.encode(values).tolist() == (codes & 0xFFFF).tolist()


def test_posit_rounding_follows_the_bit_string():
    # posit8, es = 2: between 2^20 and 2^24 = maxpos the tie is 2^22, not the mean.
    target = lp.Posit(8)
    x = torch.tensor(
        [2.0**22 + 1, 2.0**22, 2.0**22 - 1, 2.0**30, 2.0**-40, -(2.0**-40)]
    )
    ends = (target.max, target.smallest_positive)
    assert lp.round(x, "posit8").tolist() == [
        *(2.0**24, 2.0**20, 2.0**20),
        *(ends[0], ends[1], -ends[1]),
    ]


def test_levels_round_as_the_optimizers_project():
    from lowprec.optim._levels import nearest

    x = torch.cat([torch.randn(500) * 3, torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.5])])
    for levels in LEVELS[:4]:
        assert torch.equal(lp.round(x, levels), nearest(x, levels))


@each_set
def test_idempotent_and_monotone(target):
    x = (torch.randn(400, dtype=torch.float64) * 4).sort().values
    for mode in DETERMINISTIC:
        if mode == "to_odd":
            continue
        y = lp.round(x, target, mode)
        assert torch.equal(lp.round(y, target, mode), y)
        assert bool((y.diff() >= 0).all())


def test_gradient_and_in_place():
    x = torch.randn(5, requires_grad=True)
    lp.round(x, "posit8").sum().backward()
    assert torch.equal(x.grad, torch.ones(5))
    y = torch.randn(5)
    expected = lp.round(y, lp.Levels.ternary())
    assert lp.round(y, lp.Levels.ternary(), out=y) is y
    assert torch.equal(y, expected)


def test_compiles_without_graph_breaks():
    x = torch.randn(8)
    for target in ("posit8", lp.Levels.ternary()):
        compiled = torch.compile(
            lambda x, to=target: lp.round(x, to) + 1,
            fullgraph=True,
            backend="aot_eager",
        )
        assert torch.equal(compiled(x), lp.round(x, target) + 1)
        torch._dynamo.reset()


def test_operands_of_products():
    precision = lp.Precision(input="posit8", weight=lp.Levels.ternary())
    assert lp.Precision.from_json(precision.to_json()) == precision
    assert eval(repr(precision), vars(lp)) == precision
    x, w = torch.randn(3, 4), torch.randn(2, 4)
    actual = lp.functional.linear(x, w, precision=precision)
    expected = lp.round(x, "posit8") @ lp.round(w, lp.Levels.ternary()).T
    assert torch.equal(actual, expected)
    stochastic = lp.Precision(weight=lp.TableRounding("posit16_1", "stochastic"))
    assert lp.Precision.from_json(stochastic.to_json()) == stochastic


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, 2), ValueError, "bits of a posit must be from 2 to 32, got 1"),
        ((64, 2), ValueError, "from 2 to 32, got 64: wider ones, as posit64"),
        ((8, -1), ValueError, "es of a posit must be from 0 to 4, got -1"),
        ((8.0, 2), TypeError, "bits must be an int, got 8.0"),
    ],
)
def test_refused_posits(arguments, error, text):
    with pytest.raises(error, match=text):
        lp.Posit(*arguments)


@pytest.mark.parametrize("wrong", [[1.0, 0.0], [1.0, 1.0], [0.0, math.inf], []])
def test_refused_levels(wrong):
    with pytest.raises(ValueError, match="levels must"):
        lp.Levels(wrong)


def test_refused_roundings():
    with pytest.raises(ValueError, match="has no odd numbers"):
        lp.round(torch.ones(1), lp.Levels.binary(), "to_odd")
    with pytest.raises(ValueError, match="does not apply to Posit"):
        lp.round(torch.ones(1), "posit8", saturation="finite")
    with pytest.raises(ValueError, match="unknown posit 'bfloat16': write"):
        lp.TableRounding("bfloat16")
    with pytest.raises(TypeError, match="is a posit, which stands where"):
        lp.Rounding(lp.Posit(8))


@each_set
def test_value_objects(target):
    rounding = lp.TableRounding(target, "toward_zero")
    for twin in (copy.deepcopy(rounding), pickle.loads(pickle.dumps(rounding))):
        assert twin == rounding
        assert hash(twin) == hash(rounding)
    assert eval(repr(rounding), vars(lp)) == rounding
    if isinstance(target, lp.Posit):
        assert lp.Posit.from_name(target.name) == target


def test_stochastic_rounding_refuses_levels_farther_apart_than_float64_goes():
    levels = lp.Levels([-1.7e308, 1.7e308])
    x = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="levels whose distances float64 holds"):
        lp.round(x, levels, "stochastic", seed=1)
    assert lp.round(x, levels).tolist() == list(levels.values)


@pytest.mark.parametrize("target", [lp.Levels([0.1, 0.2]), lp.Posit(16, 4)])
def test_values_that_float32_does_not_hold_are_decoded_to_float64(target):
    codes = torch.tensor([0, 1])
    values = lp.decode(codes, target)
    assert values.dtype == torch.float64
    assert values.tolist() == target.decode([0, 1])
    assert lp.decode(codes, lp.Levels.ternary()).dtype == torch.float32
    with pytest.raises(ValueError, match="float32 cannot hold every value"):
        lp.decode(codes, target, dtype=torch.float32)
    with pytest.raises(TypeError, match=r"must be torch\.float32 or torch\.float64"):
        lp.decode(codes, target, dtype=torch.int8)


@pytest.mark.parametrize("huge", [10**400, -(10**400), Fraction(10**400, 3)])
def test_levels_beyond_binary64_are_refused(huge):
    with pytest.raises(ValueError, match="levels must be finite floats"):
        lp.Levels([huge])
