"""add, sub, mul, div, sqrt, fma: one rounding of the exact result, every operand."""

import itertools
import math
import re
from fractions import Fraction

import gmpy2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import CARRIERS, DETERMINISTIC, MODES, SATURATIONS

import lowprec as lp
from lowprec import Format, Rounding
from lowprec.rounding import RoundingMode
from lowprec.testing import assert_bit_equal, exact_operation, exact_round
from lowprec.testing import random_word as word
from lowprec.testing import strategies as lps

OPERATIONS = {
    "add": (lp.add, 2),
    "sub": (lp.sub, 2),
    "mul": (lp.mul, 2),
    "div": (lp.div, 2),
    "sqrt": (lp.sqrt, 1),
    "fma": (lp.fma, 3),
}


def expected(name, operands, rounding, seed=0):
    """Return the oracle's result for lists of operands."""
    return [
        exact_operation(
            name, each, rounding, word(seed, index) if rounding.stochastic else 0
        )
        for index, each in enumerate(zip(*operands, strict=True))
    ]


def check(name, tensors, rounding, dtypes=None):
    function, _ = OPERATIONS[name]
    seed = 5 if rounding.stochastic else None
    wanted = expected(name, [x.tolist() for x in tensors], rounding, 5)
    for dtype in dtypes or [tensors[0].dtype]:
        actual = function(*[x.to(dtype) for x in tensors], rounding, seed=seed)
        assert_bit_equal(actual, torch.tensor(wanted, dtype=dtype))


def values(name):
    """Every value of a small format, specials included."""
    target = lp.format(name)
    return target.decode(torch.arange(2**target.bits)).tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize(
    "target", ["e3m2", pytest.param("e4m3", marks=pytest.mark.slow)]
)
def test_all_pairs_of_two_small_formats(name, mode, target):
    pairs = list(itertools.product(values("e3m2"), values("e2m2")))
    if name in ("sub", "div"):
        pairs += [(b, a) for a, b in pairs]
    tensors = torch.tensor(pairs).unbind(1)
    check(name, tensors, Rounding(target, mode), CARRIERS)


@pytest.mark.parametrize("mode", MODES)
def test_all_roots_and_all_triples_of_small_formats(mode):
    check("sqrt", [torch.tensor(values("e5m4"))], Rounding("e4m3", mode), CARRIERS)
    triples = itertools.product(values("e2m1"), values("e2m1"), values("e3m1"))
    tensors = torch.tensor(list(triples)).unbind(1)
    check("fma", tensors, Rounding("e2m2", mode), CARRIERS)


def anything(count, dtype):
    """Return random bits, about half of them with exponents close together."""
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    limits = torch.iinfo(integer)
    bits = torch.randint(limits.min, limits.max, (count,), dtype=integer)
    x = bits.view(dtype)
    near = torch.randn(count, dtype=dtype) * torch.randint(1, 9, (count,))
    # Few significant bits make results exact, and ties.
    short = near.view(integer) & (-1 << (20 if dtype == torch.float32 else 48))
    extremes = torch.tensor(
        [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0]
        + [s * v for s in (1, -1) for v in _extreme(dtype)],
        dtype=dtype,
    )
    extreme = extremes[torch.randint(len(extremes), (count,))]
    choice = torch.randint(5, (count,))
    for number, other in enumerate((near, short.view(dtype), extreme)):
        x = torch.where(choice == number, other, x)
    return x


def _extreme(dtype):
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    return [info.max, info.smallest_normal, least, 3 * least, 1 / info.smallest_normal]


TARGETS = {
    torch.float32: [
        "binary32",
        "bfloat16",
        "e4m3fn",
        "e8m22",
        Format(precision=3, emax=100, emin=-140),
        Format(precision=4, emax=7, signed=False, signed_zero=False),
        Format(precision=3, emax=15, subnormals=False),
    ],
    torch.float64: [
        "bfloat16",
        "binary32",
        "e8m50",
        "e11m50",
        "e11m5",
        Format(precision=20, emax=1023, emin=-1000),
        Format(precision=51, emax=900, emin=-1024),
        Format(precision=3, emax=-900, emin=-1060),
        Format(precision=3, emax=1020, emin=990),
        Format(precision=9, emax=1023, subnormals=False),
    ],
}
# No room for a second rounding.
WHOLE = [
    "binary64",
    "e8m51",
    "e8m52",
    Format(precision=53, emax=200, emin=-1022),
    Format(precision=52, emax=900, emin=-900, subnormals=False),
    Format(precision=53, emax=60, infinities=False, nans=False, encoding="finite"),
    Format(precision=53, emax=1023, signed=False, signed_zero=False),
]


@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", list(TARGETS))
def test_any_operands(name, mode, dtype):
    _, arity = OPERATIONS[name]
    for number, target in enumerate(TARGETS[dtype]):
        saturation = ("none", "finite", "propagate")[number % 3]
        tensors = [anything(80, dtype) for _ in range(arity)]
        check(name, tensors, Rounding(target, mode, saturation))


def ties(count):
    """Operands whose sums, products and fused products lie half-way, or nearly."""
    one = torch.randint(2**52, 2**53, (count,)) | 1
    a = one.double() * 2.0 ** torch.randint(-60, 60, (count,))
    ulp = (a / one.double()).abs()
    b = (
        ulp
        * torch.tensor([0.5, 0.25, 0.5 + 2**-40, -0.25, -0.5, 1.5, 0.0, 3.0])[
            torch.randint(8, (count,))
        ]
    )
    power = torch.randint(2, (count,)).bool()
    a = torch.where(power, ulp * 2.0**52, a)  # powers of two, whose ulps differ
    tiny = ulp * 2.0 ** -torch.randint(1, 150, (count,))
    return a, b, tiny * torch.randint(-1, 2, (count,))


@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize("mode", DETERMINISTIC)
def test_as_many_bits_as_the_carrier(name, mode):
    _, arity = OPERATIONS[name]
    a, b, c = ties(60)
    near = {
        "fma": (
            torch.cat([a, a]),
            torch.cat([1 + 2.0**-52 + 0 * b, b.sign()]),
            torch.cat([b, c]),
        ),
        "mul": (torch.cat([a, b]), torch.cat([1 + 2.0**-52 + 0 * b, 1.5 + 0 * b])),
        "sqrt": (torch.cat([a, a * a]).abs(),),
    }.get(name, (torch.cat([a, b, a]), torch.cat([b, a, c])))
    for number, target in enumerate(WHOLE):
        saturation = ("none", "finite", "propagate")[number % 3]
        rounding = Rounding(target, mode, saturation)
        check(name, near, rounding)
        if name in ("add", "sub"):
            large = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]).double()
            check(name, (large * torch.finfo(torch.float64).max).unbind(), rounding)
        check(name, [anything(60, torch.float64) for _ in range(arity)], rounding)


@pytest.mark.parametrize("name", list(OPERATIONS))
@given(data=st.data())
def test_any_rounding(name, data):
    dtype = data.draw(st.sampled_from(CARRIERS))
    widest = (24, 8) if dtype == torch.float32 else (51, 11)
    formats = lps.formats(
        max_precision=widest[0], max_exponent_bits=widest[1], carrier=dtype
    )
    rounding = data.draw(lps.roundings(formats))
    near = rounding.format
    arity = OPERATIONS[name][1]
    tensors = [data.draw(lps.tensors((8,), dtype, near=near)) for _ in range(arity)]
    check(name, tensors, rounding)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", list(TARGETS))
def test_any_operands_at_length(name, mode, dtype):
    _, arity = OPERATIONS[name]
    for target, saturation in itertools.product(TARGETS[dtype], SATURATIONS):
        tensors = [anything(500, dtype) for _ in range(arity)]
        check(name, tensors, Rounding(target, mode, saturation))


MPFR_MODES = {
    RoundingMode.NEAREST_EVEN: gmpy2.RoundToNearest,
    RoundingMode.TOWARD_ZERO: gmpy2.RoundToZero,
    RoundingMode.TOWARD_POSITIVE: gmpy2.RoundUp,
    RoundingMode.TOWARD_NEGATIVE: gmpy2.RoundDown,
}


def mpfr_results(name, fmt, mode, tensors):
    """MPFR's results: one rounding to a precision and range, with subnormals."""
    wide = gmpy2.context(precision=53)
    narrow = gmpy2.context(
        precision=fmt.precision,
        emax=fmt.emax + 1,
        emin=fmt.emin - fmt.precision + 2,
        subnormalize=True,
        round=MPFR_MODES[mode],
    )
    method = getattr(narrow, name)
    with gmpy2.context(wide):
        columns = [[gmpy2.mpfr(x) for x in tensor.tolist()] for tensor in tensors]
    results = [float(method(*row)) for row in zip(*columns, strict=True)]
    return torch.tensor(results, dtype=torch.float64)


@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize("mode", list(MPFR_MODES))
@pytest.mark.parametrize("target", ["bfloat16", "binary16", "e8m50", "e11m50", "e11m5"])
def test_mpfr_agrees(name, mode, target):
    function, arity = OPERATIONS[name]
    tensors = [anything(400, torch.float64) for _ in range(arity)]
    wanted = mpfr_results(name, lp.format(target), mode, tensors)
    assert_bit_equal(function(*tensors, target, mode), wanted)


# Every precision that is emulated, in narrow and in wide ranges.
MPFR_FORMATS = [
    Format(precision=p, emax=15 if p % 3 == 0 else 127 if p % 3 == 1 else 1023)
    for p in range(4, 54)
]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_mpfr_agrees_a_million_times(name):
    function, arity = OPERATIONS[name]
    cases = 0
    for fmt, mode in itertools.product(MPFR_FORMATS, MPFR_MODES):
        tensors = [anything(5000, torch.float64) for _ in range(arity)]
        wanted = mpfr_results(name, fmt, mode, tensors)
        assert_bit_equal(function(*tensors, fmt, mode), wanted)
        cases += len(wanted)
    assert cases == 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "sqrt"])
@pytest.mark.parametrize("target", ["e2m2", "e3m1", "e5m2", "e4m3fn"])
def test_all_operands_of_5_and_of_8_bits(name, mode, target):
    arity = OPERATIONS[name][1]
    rows = torch.tensor(list(itertools.product(values(target), repeat=arity)))
    check(name, rows.unbind(1), Rounding(target, mode), [torch.float32])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", ["e2m2", "e3m1"])
def test_all_triples_of_5_bits(mode, target):
    rows = torch.tensor(list(itertools.product(values(target), repeat=3)))
    check("fma", rows.unbind(1), Rounding(target, mode), [torch.float32])


PROCESSOR = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "sqrt": np.sqrt,
}


@pytest.mark.filterwarnings("ignore:(overflow|divide|invalid|underflow)")
@pytest.mark.parametrize("name", list(PROCESSOR))
def test_binary32_is_what_the_processor_computes(name):
    # Not torch, whose vectorised square roots are wrong in the last bit.
    function, arity = OPERATIONS[name]
    tensors = [anything(20000, torch.float32) for _ in range(arity)]
    wanted = PROCESSOR[name](*[x.numpy() for x in tensors])
    assert_bit_equal(function(*tensors, "binary32"), torch.tensor(wanted))
    halves = [x.numpy().astype(np.float16) for x in tensors]
    wanted = torch.tensor(PROCESSOR[name](*halves)).float()
    halves = [torch.tensor(x).float() for x in halves]
    assert_bit_equal(function(*halves, "binary16"), wanted)


def test_small_terms_decide_in_directed_modes():
    one = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    tiny = torch.tensor([1e-300, -1e-300, 5e-324], dtype=torch.float64)
    up = lp.add(one, tiny, "bfloat16", "toward_positive")
    assert up.tolist() == [1 + 2**-7, 1.0, -1 + 2**-8]
    assert lp.fma(tiny, tiny, one, "bfloat16", "toward_positive")[0] == 1 + 2**-7


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_long_tensors_are_their_parts(name):
    function, arity = OPERATIONS[name]
    tensors = [anything(200_000, torch.float32) for _ in range(arity)]
    for rounding in (Rounding("bfloat16"), Rounding("bfloat16", "stochastic")):
        seed = 3 if rounding.stochastic else None
        whole = function(*tensors, rounding, seed=seed)
        for start in (0, 65_530, 150_000):
            part = [x[start : start + 50] for x in tensors]
            result = function(*part, rounding, seed=seed, offset=start)
            assert_bit_equal(result, whole[start : start + 50])


def test_broadcasting_numbers_and_layouts():
    a, b = torch.randn(3, 1), torch.randn(4)
    assert lp.mul(a, b, "bfloat16").shape == (3, 4)
    # 0.1 is a float64 number; binary32(0.1) would give another result here.
    x = torch.tensor([1 + 2.0**-23], dtype=torch.float32)
    exact = exact_round(Fraction(x.item()) * Fraction(0.1), Rounding("e8m22"))
    assert lp.mul(0.1, x, "e8m22").item() == exact
    assert lp.mul(x, 0.1, "e8m22").dtype == torch.float32
    assert lp.sub(2, torch.ones(2), "e5m2").tolist() == [1, 1]
    assert lp.fma(torch.ones(2), 3, torch.ones(3, 1), "e5m2").tolist() == [[4, 4]] * 3
    strided = torch.randn(6, 4)[::2].mT
    seeded = {"mode": "stochastic", "seed": 4}
    assert_bit_equal(
        lp.add(strided, 1.0, "e5m2", **seeded),
        lp.add(strided.contiguous(), 1.0, "e5m2", **seeded),
    )
    assert lp.add(torch.empty(0, 3), torch.ones(3), "e5m2").shape == (0, 3)


def test_seeds_and_generators_reproduce():
    x = torch.randn(50)

    def run(**randomness):
        return lp.mul(x, 0.7, "e4m3fn", "stochastic", **randomness)

    assert_bit_equal(run(seed=1), run(seed=torch.tensor(1)))
    assert not torch.equal(run(seed=1), run(seed=2))
    first = run(generator=torch.Generator().manual_seed(3))
    assert_bit_equal(first, run(generator=torch.Generator().manual_seed(3)))
    torch.manual_seed(4)
    first = run()
    torch.manual_seed(4)
    assert_bit_equal(first, run())
    state = torch.get_rng_state()
    lp.mul(x, 0.7, "e4m3fn")
    assert torch.equal(torch.get_rng_state(), state)


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: lp.add(1.0, 2.0, "e5m2"), TypeError, "needs at least one tensor"),
        (lambda: lp.add(ONES, "1", "e5m2"), TypeError, "b must be a tensor or a num"),
        (lambda: lp.sqrt(2.0, "e5m2"), TypeError, "needs at least one tensor"),
        (lambda: lp.add(ONES.half(), 1, "e5m2"), TypeError, "half carrier"),
        (lambda: lp.add(ONES, ONES.double(), "e5m2"), TypeError, "a and b must have"),
        (lambda: lp.fma(1, ONES, ONES.double(), "e5m2"), TypeError, "b and c must ha"),
        (lambda: lp.add(ONES, ONES.to("meta"), "e5m2"), ValueError, "same device"),
        (lambda: lp.add(ONES, 1, "e8m24"), ValueError, "use float64 operands"),
        (
            lambda: lp.add(ONES.double(), 1, "e8m51", "stochastic"),
            NotImplementedError,
            "51 signif",
        ),
        (lambda: lp.mul(ONES.double(), 1, "fixed53f0"), NotImplementedError, "51 sig"),
        (lambda: lp.add(ONES, 2**53 + 1, "e5m2"), ValueError, r"exact up to 2\^53"),
        (lambda: lp.add(ONES, ONES[:, :2], "e5m2"), RuntimeError, "size|shape"),
        (
            lambda: lp.add(ONES, 1, "e5m2", seed=1, generator=torch.Generator()),
            ValueError,
            "not both",
        ),
    ],
)
def test_refusals(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


WRAPPING = Rounding("int8", saturation="wrap")


@pytest.mark.parametrize("target", ["int5", "uint5", "fixed5f2"])
@pytest.mark.parametrize("mode", ["nearest_even", "toward_negative", "stochastic"])
def test_all_sums_and_products_of_small_words_wrap(target, mode):
    rounding = Rounding(target, mode, "wrap")
    pairs = torch.tensor(list(itertools.product(values(target), repeat=2)))
    for name in ("add", "sub", "mul"):
        check(name, pairs.unbind(1), rounding, CARRIERS)
    triples = torch.cat([pairs, pairs[:, :1].flip(0)], 1)
    check("fma", triples.unbind(1), rounding, CARRIERS)


def test_the_oracle_wraps_exact_values():
    # In exact integers, not in the 53 bits that float64 has.
    assert exact_operation("add", (2.0**60, 1.0), WRAPPING) == 1
    wanted = (2**60 // 3 + 128) % 256 - 128  # of 2^60 / 3, whose fraction is 1/3
    assert exact_operation("div", (2.0**60, 3.0), WRAPPING) == wanted


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
@pytest.mark.parametrize("other", [2.0**60, 128.0, 0.5])
def test_what_may_have_more_bits_than_float64_does_not_wrap(name, other):
    function, arity = OPERATIONS[name]
    one = torch.ones(2, dtype=torch.float64)
    for position in range(arity):
        operands = [one] * arity
        operands[position] = torch.tensor([1.0, other], dtype=torch.float64)
        with pytest.raises(ValueError, match=f"got {re.escape(str(other))}: round the"):
            function(*operands, WRAPPING)
    nan = torch.full((1,), math.nan)
    assert function(*[nan] * arity, WRAPPING).isnan().all()


@pytest.mark.parametrize("name", ["div", "sqrt", "exp", "log", "tanh", "sigmoid"])
def test_quotients_and_functions_do_not_wrap(name):
    operands = [torch.ones(2)] * (2 if name == "div" else 1)
    with pytest.raises(
        NotImplementedError, match=r"wrap' is for lowprec\.add, sub, mul"
    ):
        getattr(lp, name)(*operands, WRAPPING)
    with pytest.raises(
        NotImplementedError, match=r"wrap' is for lowprec\.add, sub, mul"
    ):
        lp.softmax(torch.ones(2), 0, WRAPPING)
