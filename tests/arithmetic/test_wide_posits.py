"""Posits of 17 to 32 bits: codes, rounding and arithmetic against exact rationals."""

import math
import random
from fractions import Fraction

import pytest
import torch
from tables import BACKENDS, CARRIERS, DETERMINISTIC, MODES, VARIANTS

import lowprec as lp
from lowprec import Accumulator, TableRounding, kernels
from lowprec.arithmetic import fits
from lowprec.random import philox_words
from lowprec.testing import (
    assert_bit_equal,
    boundary_inputs,
    exact_dot,
    exact_operation,
    exact_softmax,
    exact_sum,
    exact_table_round,
)

SEED = 20261126
SOME = [lp.Posit(32), lp.Posit(32, 4), lp.Posit(28), lp.Posit(17, 3)]
OTHERS = [lp.Posit(32, 0), lp.Posit(29), lp.Posit(27, 1), lp.Posit(26, 0)]
OTHERS += [lp.Posit(24), lp.Posit(20, 1)]
WIDE = [*SOME, *OTHERS]
each_posit = pytest.mark.parametrize("target", WIDE, ids=lambda one: one.name)
slowly = [pytest.param(target, marks=pytest.mark.slow) for target in OTHERS]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def formula(code, bits, es):
    """The standard's: ((1 - 3s) + f) 2^((1 - 2s)(4r + e + s)), 2^es in place of 4."""
    s = code >> (bits - 1)
    text = f"{code:0{bits}b}"[1:]
    run = len(text) - len(text.lstrip(text[0]))
    r = run - 1 if text[0] == "1" else -run
    rest = text[run + 1 :].ljust(es + 1, "0")
    e, fraction = int(rest[:es] or "0", 2), rest[es:]
    f = Fraction(int(fraction, 2), 2 ** len(fraction))
    return ((1 - 3 * s) + f) * Fraction(2) ** ((1 - 2 * s) * (2**es * r + e + s))


def some_codes(target, count):
    """Codes at the ends, at zero, at one, with one bit, and any."""
    source, last = random.Random(SEED), 1 << target.bits
    near = [0, last // 4, last // 2, last * 3 // 4, 1 << 7, 1 << 14]
    near = [place + step for place in near for step in (-2, -1, 0, 1)]
    return [code % last for code in near] + [
        # Shifted, since nearly all codes have short regimes.
        source.randrange(last) >> source.randrange(target.bits)
        for _ in range(count)
    ]


@each_posit
def test_limits(target):
    reach = (target.bits - 2) << target.es
    assert (target.max, target.min) == (2.0**reach, -(2.0**reach))
    assert target.smallest_positive == 2.0**-reach
    assert target.eps == 2.0 ** -(target.bits - 3 - target.es)
    digits = target.bits - 2 - target.es
    assert fits(target, torch.float32) == (reach <= 126 and digits <= 24)


def test_known_values_of_the_standard():
    posit32 = lp.Posit(32)
    assert posit32 == lp.Posit.from_name("posit32")
    known = {0: 0.0, 1: 2.0**-120, 0x40000000: 1.0, 0x7FFFFFFF: 2.0**120}
    known |= {0x48000000: 2.0, 0x40000001: 1 + 2.0**-27, 0xC0000000: -1.0}
    known |= {0xFFFFFFFF: -(2.0**-120), 0x80000001: -(2.0**120)}
    for code, value in known.items():
        assert posit32.decode(code) == value
        assert posit32.encode(value) == code
    assert math.isnan(posit32.decode(0x80000000))
    assert posit32.encode(math.nan) == 0x80000000


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("es", range(5))
def test_values_and_ties_of_narrow_posits_are_all_of_the_formula(bits, es):
    table, last = lp.Posit(bits, es).table, 2 ** (bits - 1) - 1
    positive = [formula(code, bits, es) for code in range(1, last + 1)]
    between = [formula(2 * code + 1, bits + 1, es) for code in range(1, last)]
    values = [*(-x for x in reversed(positive)), 0, *positive]
    ties = [*(-x for x in reversed(between)), 0, 0, *between]
    assert list(table.values) == values
    assert list(table.ties) == ties
    assert list(table.odd) == [code % 2 == 1 for code in range(-last, last + 1)]
    assert list(table.upper) == [code % 2 == 1 for code in range(-last, last)]
    assert values == lp.Posit(bits, es).values() == sorted(values)


@each_posit
@each_backend
def test_codes_round_trip(target, backend):
    codes = some_codes(target, 300)
    nar = 1 << (target.bits - 1)
    values = [
        math.nan if c == nar else formula(c, target.bits, target.es) for c in codes
    ]
    values = [0.0 if c == 0 else float(x) for c, x in zip(codes, values, strict=True)]
    assert [x for x in target.decode(codes) if x == x] == [x for x in values if x == x]
    assert target.encode(values) == codes
    with kernels.using(backend):
        for carrier in CARRIERS:
            if fits(target, carrier):
                x = torch.tensor(values, dtype=carrier)
                given = torch.tensor(codes)
                assert_bit_equal(lp.decode(given, target, dtype=carrier), x)
                assert lp.encode(x, target).tolist() == codes
                narrow = lp.encode(x, target, dtype=torch.uint32)
                assert narrow.to(torch.int64).tolist() == codes
                assert_bit_equal(lp.decode(narrow, target, dtype=carrier), x)
                unpacked = lp.unpack(lp.pack(narrow, target), target, len(codes))
                assert unpacked.tolist() == codes


def decisive(target, carrier):
    """Values, ties, their neighbours in the carrier, five sixteenths, and the ends."""
    nar, table = 1 << (target.bits - 1), target.table
    places = {(c + nar) % (2 * nar) - 1 for c in some_codes(target, 6)}
    places = sorted(place for place in places if 0 <= place < len(table.ties))
    exact = [Fraction(table.values[place]) for place in places]
    above = [Fraction(table.values[place + 1]) for place in places]
    inside = [a + (b - a) * 5 / 16 for a, b in zip(exact, above, strict=True)]
    exact += [*above, *inside, *(table.ties[place] for place in places)]
    x = torch.tensor([float(value) for value in exact], dtype=torch.float64).to(carrier)
    infinity = torch.full_like(x, math.inf)
    x = torch.cat([x, x.nextafter(infinity), x.nextafter(-infinity)])
    ends = [0.0, -0.0, 1e37, -1e37, 1e-37, math.inf, -math.inf, math.nan]
    limits = torch.finfo(carrier)
    ends += [limits.max, -limits.tiny, limits.tiny * limits.eps]
    return torch.cat([x, torch.tensor(ends, dtype=carrier)])


@pytest.mark.parametrize("target", [*SOME, *slowly], ids=lambda one: one.name)
def test_rounding_equals_the_oracle(target):
    for carrier in CARRIERS:
        if not fits(target, carrier):
            continue
        x = decisive(target, carrier)
        words = philox_words(torch.arange(len(x)), torch.tensor(SEED)).tolist()
        for mode in MODES:
            stochastic = mode == "stochastic"
            for variant in VARIANTS if stochastic else VARIANTS[:1]:
                for random_bits in (5, 32) if stochastic else (32,):
                    rounding = TableRounding(target, mode, random_bits, variant)
                    y = [
                        exact_table_round(value, rounding, word)
                        for value, word in zip(x.tolist(), words, strict=True)
                    ]
                    expected = torch.tensor(y, dtype=carrier)
                    seed = SEED if rounding.stochastic else None
                    for backend in BACKENDS:
                        with kernels.using(backend):
                            assert_bit_equal(lp.round(x, rounding, seed=seed), expected)


def test_ties_are_those_of_the_code():
    posit32 = lp.Posit(32)
    # 2^116 and 2^120 are neighbours, whose tie is 2^118; so are 1 and 1 + 2^-27.
    ties = [2.0**118, 1 + 2.0**-28, 1 + 3 * 2.0**-28, -(2.0**-118)]
    x = torch.tensor(ties, dtype=torch.float64)
    nearest = [2.0**116, 1.0, 1 + 2.0**-26, -(2.0**-116)]
    assert lp.round(x, posit32).tolist() == nearest
    above = x.nextafter(torch.full_like(x, math.inf))
    expected = [2.0**120, 1 + 2.0**-27, 1 + 2.0**-26, -(2.0**-120)]
    assert lp.round(above, posit32).tolist() == expected


def operands(target, count, arity):
    """Values of the posits and any numbers, half of them near the first ones."""
    source = random.Random(SEED)
    codes = some_codes(target, count)
    rows = []
    for _ in range(count):
        row = [target.decode(source.choice(codes)) for _ in range(arity)]
        if source.random() < 0.5:
            row = [source.gauss(0, 1) * 2.0 ** source.randint(-12, 12) for _ in row]
        if source.random() < 0.3:
            row[-1] = -row[0] * (1 + source.randint(-4, 4) * 2.0**-29)
        rows.append(row)
    return rows


@each_backend
@pytest.mark.parametrize(
    "name", ["add", "sub", "mul", "div", "sqrt", "fma", "exp", "log", "tanh", "sigmoid"]
)
def test_arithmetic(name, backend):
    arity = {"fma": 3, "add": 2, "sub": 2, "mul": 2, "div": 2}.get(name, 1)
    count = 40 if name in ("exp", "log", "tanh", "sigmoid") else 80
    for target in (lp.Posit(32), lp.Posit(27, 1)):
        for mode in (MODES[0], *random.Random(name).sample(MODES[1:], 2)):
            rounding = TableRounding(target, mode)
            for carrier in CARRIERS:
                if not fits(target, carrier):
                    continue
                rows = operands(target, count, arity)
                x = torch.tensor(rows, dtype=torch.float64).to(carrier)
                words = [0] * count
                if rounding.stochastic:
                    key = torch.tensor(SEED)
                    words = philox_words(torch.arange(count), key).tolist()
                y = [
                    exact_operation(name, row, rounding, word)
                    for row, word in zip(x.tolist(), words, strict=True)
                ]
                seed = SEED if rounding.stochastic else None
                with kernels.using(backend):
                    actual = getattr(lp, name)(*x.T, rounding, seed=seed)
                assert_bit_equal(actual, torch.tensor(y, dtype=carrier))


@each_backend
@pytest.mark.parametrize("order", ["sequential", "pairwise", "kahan"])
def test_sums_and_products(order, backend):
    torch.manual_seed(SEED)
    for target, carrier in ((lp.Posit(32), CARRIERS[1]), (lp.Posit(28), CARRIERS[0])):
        a = torch.randn(4, 6, dtype=torch.float64).mul(2.0**9).to(carrier)
        b = torch.randn(6, 2, dtype=torch.float64).to(carrier)
        a[0, 0], a[1, 3], a[2, 2] = -0.0, 1e30, 1e-30
        for mode in ("nearest_even", "toward_negative", "stochastic"):
            for product in ("exact", "accumulator"):
                rounding = TableRounding(target, mode)
                accumulator = Accumulator(rounding, product, order=order)
                seed = SEED if rounding.stochastic else None
                with kernels.using(backend):
                    total = lp.sum(a, 1, accumulator=accumulator, seed=seed)
                    y = lp.matmul(a, b, accumulator=accumulator, seed=seed)
                rows, columns = a.tolist(), b.T.tolist()
                wanted = [
                    exact_sum(row, accumulator, SEED, i) for i, row in enumerate(rows)
                ]
                assert_bit_equal(total, torch.tensor(wanted, dtype=carrier))
                wanted = [
                    [
                        exact_dot(row, column, accumulator, SEED, 2 * i + j)
                        for j, column in enumerate(columns)
                    ]
                    for i, row in enumerate(rows)
                ]
                assert_bit_equal(y, torch.tensor(wanted, dtype=carrier))


def test_softmax():
    rounding = TableRounding("posit32")
    x = torch.tensor([[0.0, 0.0, 1.0], [1.5, -30.0, 2.0]], dtype=torch.float64)
    wanted = [exact_softmax(row, rounding) for row in x.tolist()]
    assert_bit_equal(
        lp.softmax(x, 1, rounding), torch.tensor(wanted, dtype=torch.float64)
    )


@each_posit
def test_boundary_inputs_have_the_ends_and_every_binade(target):
    found = set(boundary_inputs(target, torch.float64).tolist())
    assert len(found) < 60_000
    reach = (target.bits - 2) << target.es
    for end, beyond in ((target.max, 4.0), (target.smallest_positive, 0.25)):
        assert {end, -end, math.nextafter(end, 0), end * beyond} <= found
    powers = {2.0**e for e in range(-reach, reach) if held(2.0**e, target)}
    assert powers <= found
    # Of every binade in which there are some: posits inside, and ties.
    step = 2.0 ** -(target.bits - 3 - target.es)
    assert {1 + step / 2, 1 + step, 2 - step, 2 - step / 2} <= found
    assert any(1.2 < x < 1.5 for x in found)


def held(x, target):
    try:
        target.encode(x)
    except ValueError:
        return False
    return True


@each_backend
def test_what_does_not_fit_is_refused(backend):
    single, code = torch.ones(2), TableRounding("posit32").code
    with kernels.using(backend):
        with pytest.raises(ValueError, match="float32 carrier cannot hold every value"):
            lp.round(single, "posit32")
        with pytest.raises(ValueError, match="float32 cannot hold every value"):
            lp.decode(torch.tensor([1]), "posit32", dtype=torch.float32)
        for refused in (
            lambda: lp.add(single, single, "posit32"),
            lambda: lp.exp(single, "posit32"),
            lambda: lp.sum(single, accumulator="posit32"),
            lambda: lp.matmul(single, single[:, None], accumulator="posit32"),
        ):
            with pytest.raises(ValueError, match="float64 operands"):
                refused()
        with pytest.raises(ValueError, match="cannot hold codes of 32 bits"):
            lp.encode(single.double(), "posit32", dtype=torch.int32)
        assert lp.encode(single, "posit32").tolist() == [1 << 30] * 2
    assert len(code) == 9


@each_backend
@pytest.mark.parametrize("es", range(5))
def test_float32_takes_exactly_the_posits_that_it_holds(es, backend):
    x = torch.tensor([1.7, 0.0])
    with kernels.using(backend):
        for bits in range(2, 33):
            target = lp.Posit(bits, es)
            decisive = [target.max, target.smallest_positive, 1 + target.eps]
            exact = torch.tensor(decisive, dtype=torch.float64)
            held = torch.equal(exact.float().double(), exact)
            assert fits(target, torch.float32) == held, target
            if held:
                expected = lp.round(x.double(), target).float()
                assert_bit_equal(lp.round(x, target), expected)
                continue
            with pytest.raises(ValueError, match="float32 carrier cannot hold every"):
                lp.round(x, target)


@pytest.mark.parametrize("name", ["posit33", "posit64", "posit64_0"])
def test_wider_posits_are_refused(name):
    with pytest.raises(ValueError, match=r"from 2 to 32, got .* values that float64"):
        lp.round(torch.ones(1, dtype=torch.float64), name)


def test_what_would_list_every_value_is_refused():
    posit32 = lp.Posit(32)
    with pytest.raises(ValueError, match=r"posit32 has 2\^32 - 1 values, too many"):
        posit32.values()
    assert len(posit32.table.values) == 2**32 - 1
    assert posit32.line.values(1000) is None
    assert posit32.line.positive(2) == 2.0**-116
    assert "svg" in posit32._repr_html_()


def test_deterministic_modes_are_monotone_and_idempotent():
    for target in WIDE[:3]:
        x = boundary_inputs(target, torch.float64)
        x = x[x.isfinite()].sort().values
        for mode in DETERMINISTIC:
            y = lp.round(x, target, mode)
            assert_bit_equal(lp.round(y, target, mode), y)
            if mode != "to_odd":
                assert bool((y.diff() >= 0).all())
