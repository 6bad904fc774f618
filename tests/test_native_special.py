"""Posits, levels and formats that are others but for a few numbers, in every build.

The portable kernels say what is right: tests/arithmetic compares these with the oracle.
"""

import math

import pytest
import torch
from native_checks import SEED, needs_library, same_bits, same_numbers, with_all_isas
from tables import CARRIERS, DETERMINISTIC, MODES, SATURATIONS, VARIANTS, name_of

import lowprec as lp
from lowprec import kernels
from lowprec.arithmetic import decode, encode, fits
from lowprec.kernels import native, portable

pytestmark = needs_library

POSITS = [lp.Posit(*widths) for widths in ((2, 0), (3, 2), (6, 4), (8, 2), (8, 0))]
POSITS += [lp.Posit(16, es) for es in (0, 1, 2, 4)]
NAMES = ["int8", "e8m0fnu", "dlfloat16", "binary8p1", "binary4p1uf", "binary5p1sf"]
FIXED = [
    lp.Format.fixed_point(8, 4),
    lp.Format.fixed_point(16, -3),
    lp.Format.fixed_point(8, 7, signed=False),
    lp.Format.fixed_point(2, 0),
]
LEVELS = [
    lp.Levels([5.0]),
    lp.Levels.ternary(),
    lp.Levels([-3.0, -2.5, -0.5]),
    lp.Levels(sorted({math.sin(i) for i in range(16)})),
    lp.Levels.int_bits(5),
    lp.Levels([2.0**i for i in range(-60, 40)]),
]


@pytest.fixture
def all_isas():
    yield from with_all_isas()


def patterns(carrier, low, high, count=2003):
    """Numbers with exponents in a range, any patterns, zeros and special ones."""
    source = torch.Generator().manual_seed(count)
    integer = torch.int32 if carrier == torch.float32 else torch.int64
    ends = torch.iinfo(integer)
    words = torch.randint(ends.min, ends.max, (count,), dtype=integer, generator=source)
    exponent = torch.randint(low, high, (2 * count,), generator=source)
    near = torch.randn(2 * count, dtype=torch.float64, generator=source)
    near = torch.ldexp(near, exponent)
    short = torch.ldexp(
        torch.randint(-9, 10, (count,), generator=source).double(), exponent[:count]
    )
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan] * 3)
    parts = [words.view(carrier), near, short, special, torch.zeros(100)]
    return torch.cat([part.to(carrier) for part in parts])


def both(x, code, offset=0):
    """Round by the portable and by the C++ kernel."""
    if code[5] < kernels.codes.STOCHASTIC:
        return portable.round(x, code), native.round(x, code)
    expected = portable.round_stochastic(x, code, torch.tensor(SEED), offset)
    return expected, native.round_stochastic(x, code, SEED, offset)


def modes_and_bits():
    for mode in MODES:
        for variant in VARIANTS if mode.value == "stochastic" else VARIANTS[:1]:
            for bits in (1, 5, 32) if mode.value == "stochastic" else (32,):
                yield mode, variant, bits


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("target", POSITS, ids=lambda posit: posit.name)
def test_posits(target, carrier, all_isas):
    if not fits(target, carrier):
        pytest.skip("the carrier does not hold them")
    end = math.frexp(target.max)[1]
    x = patterns(carrier, -end - 3, end + 3)
    for mode, variant, bits in modes_and_bits():
        code = lp.TableRounding(target, mode, bits, variant).code
        for isa in all_isas:
            native.set_instruction_set(isa)
            assert same_bits(*both(x, code, offset=3)), (mode, variant, bits, isa)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("name", NAMES)
def test_formats_that_are_others_but_for_a_few_numbers(name, carrier, all_isas):
    target = lp.format(name)
    x = patterns(carrier, max(target.emin - 14, -140), min(target.emax + 3, 120))
    for mode, variant, bits in modes_and_bits():
        for saturation in SATURATIONS:
            code = lp.Rounding(target, mode, saturation, bits, variant).code
            for isa in all_isas:
                native.set_instruction_set(isa)
                assert same_numbers(*both(x, code, offset=1)), (mode, saturation, isa)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("target", FIXED, ids=repr)
def test_fixed_point_that_wraps(target, carrier, all_isas):
    x = patterns(carrier, target.emin - 20, target.emax + 40)
    for mode, variant, bits in modes_and_bits():
        code = lp.Rounding(target, mode, "wrap", bits, variant).code
        for isa in all_isas:
            native.set_instruction_set(isa)
            assert same_bits(*both(x, code, offset=2)), (mode, variant, bits, isa)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("levels", LEVELS, ids=len)
def test_levels(levels, carrier, all_isas):
    levels = lp.Levels(torch.tensor(levels.values).tolist())  # as float32 holds them
    x = patterns(carrier, -8, 4)
    middles = [float(middle) for middle in levels.midpoints]
    exact = torch.tensor([*levels.values, *middles], dtype=carrier)
    x = torch.cat([x, exact, exact.nextafter(torch.full_like(exact, math.inf))])
    for mode, variant, bits in modes_and_bits():
        if mode.value == "to_odd":
            continue
        rounding = lp.TableRounding(levels, mode, bits, variant)
        seed = {"seed": SEED, "offset": 5} if rounding.stochastic else {}
        with kernels.using("portable"):
            expected = lp.round(x, rounding, **seed)
        for isa in all_isas:
            native.set_instruction_set(isa)
            actual = lp.round(x, rounding, **seed)
            assert same_numbers(actual, expected), (mode, variant, bits, isa)


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("target", POSITS, ids=lambda posit: posit.name)
def test_codes_of_posits(target, carrier, all_isas):
    if not fits(target, carrier):
        pytest.skip("the carrier does not hold them")
    codes = torch.arange(2**target.bits, dtype=torch.int32)
    exact = [target.value_of(code) for code in codes.tolist()]
    values = torch.tensor(exact, dtype=torch.float64).to(carrier)
    with kernels.using("portable"):
        assert same_numbers(decode(codes, target, dtype=carrier), values)
        assert torch.equal(encode(values, target, dtype=torch.int32), codes)
    for isa in all_isas:
        native.set_instruction_set(isa)
        assert same_numbers(decode(codes, target, dtype=carrier), values)
        assert torch.equal(encode(values, target, dtype=torch.int32), codes)


ANY = ["posit8", "dlfloat16", "int8", lp.Levels.int_bits(5)]
MANY = 2**16 + 77  # more than one thread takes


@pytest.mark.parametrize("target", ANY, ids=str)
def test_results_depend_on_no_layout_thread_or_shard(target, all_isas):
    x = torch.randn(MANY, generator=torch.Generator().manual_seed(1))
    x = torch.where(x.abs() < 0.1, x * 2.0**-32, x)
    for mode in ("nearest_even", "stochastic"):
        seed = {"seed": SEED} if mode == "stochastic" else {}

        def rounded(x, mode=mode, seed=seed, **more):
            return lp.round(x, target, mode, **seed, **more)

        torch.set_num_threads(1)
        expected = rounded(x)
        torch.set_num_threads(3)
        try:
            assert same_bits(rounded(x), expected)
        finally:
            torch.set_num_threads(1)
        wide = torch.stack([x, x], 1)
        assert same_bits(rounded(wide[:, 0]), expected)
        place = x.clone()
        assert rounded(place, out=place) is place
        assert same_bits(place, expected)
        for begin, count in ((0, 1), (5, 0), (3, 7), (64, 131)):
            part = x[begin : begin + count].clone()
            assert same_bits(
                rounded(part, **({"offset": begin} if seed else {})),
                expected[begin : begin + count],
            )


@pytest.mark.parametrize(
    "target", ["posit8", "dlfloat16", lp.Levels.ternary()], ids=str
)
def test_whole_graphs_are_compiled(target):
    x = torch.randn(40, requires_grad=True)
    for mode in (*DETERMINISTIC[:1], "stochastic"):
        seed = {"seed": torch.tensor(SEED)} if mode == "stochastic" else {}

        def program(x, mode=mode, seed=seed):
            return lp.round(x, target, mode, **seed) * 2

        compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
        y = compiled(x)
        assert torch.equal(y, program(x))
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(slope, torch.full_like(x, 2.0))
        torch._dynamo.reset()


def test_the_operations_take_the_codes_of_levels():
    x = torch.randn(7)
    tests = ("test_schema", "test_faketensor")
    code = list(lp.TableRounding("ternary").code)
    torch.library.opcheck(torch.ops.lowprec.round.default, (x, code), test_utils=tests)
    code = list(lp.TableRounding("ternary", "stochastic").code)
    arguments = (x, code, torch.tensor(3), 0)
    operation = torch.ops.lowprec.round_stochastic.default
    torch.library.opcheck(operation, arguments, test_utils=tests)
