"""lowprec.sum to 52 and 53 bits, and at the ends of the range of float64."""

import functools
import itertools
import math
import operator

import gmpy2
import pytest
import torch
from layer_roundings import ignore_dynamo, leaf
from tables import DETERMINISTIC, MODES

import lowprec as lp
from lowprec import Accumulator, Format, Rounding
from lowprec.arithmetic import sum_settings
from lowprec.rounding import RoundingMode
from lowprec.testing import assert_bit_equal, exact_sum

ORDERS = [
    {"order": "sequential"},
    {"order": "pairwise"},
    {"order": "kahan"},
    {"order": "blocked", "block_size": 4},
]
# Whose values reach the ends of float64's range.
FAR = [
    "e11m50",
    "e11m40",
    "e11m5",
    Format(precision=9, emax=1023, subnormals=False),
    Format(precision=3, emax=-900, emin=-1060),
    Format(precision=3, emax=1020, emin=990),
    Format(precision=20, emax=1023, signed=False, signed_zero=False),
]
# No room for a second rounding.
WHOLE = [
    "binary64",
    "e11m51",
    "e8m52",
    Format(precision=53, emax=200, emin=-1022),
    Format(precision=52, emax=900, emin=-900, subnormals=False),
    Format(precision=53, emax=60, infinities=False, nans=False, encoding="finite"),
    Format(precision=53, emax=1023, signed=False, signed_zero=False),
]
HUGE, TINY = torch.finfo(torch.float64).max, 5e-324
SPECIAL = [
    [-0.0, -0.0, -0.0, -0.0, -0.0],
    [-0.0, 0.0, -0.0, 1.0, -1.0],
    [TINY, TINY, -TINY, -TINY, -0.0],
    [TINY, 2.0**-1022, -(2.0**-1023), 3 * TINY, -TINY],
    [2.0**-1022, -TINY, -TINY, 2.0**-1061, 2.0**-1062],
    [HUGE, HUGE, -HUGE, -HUGE, 1.0],
    [-HUGE, -(2.0**970), -TINY, HUGE, HUGE],
    [HUGE, 2.0**969, 2.0**969, -HUGE, -HUGE],
    [1.0, 2.0**-53, 2.0**-53, -(2.0**-54), 2.0**-105],
    [1.0, 2.0**-53, TINY, -1.0, -(2.0**-52)],
    [math.inf, 1.0, -HUGE, HUGE, TINY],
    [1.0, math.inf, -math.inf, 0.0, 0.0],
    [-math.inf, -HUGE, -HUGE, 0.0, -0.0],
    [math.nan, 1.0, 2.0, math.inf, 0.0],
    [5e-324, 1e308, -1e308, 1e308, 1e308],
]


def terms(rows, count):
    """Rows of close sizes anywhere in the range, the special ones among them."""
    generator = torch.Generator().manual_seed(rows + count)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    significand = 1 + integers(0, 2**52, rows, count).double() * 2.0**-52
    short = torch.tensor([[1.0], [1.5], [0.0]]).double()
    significand[: rows // 2 : 3] = short[integers(0, 2, len(range(0, rows // 2, 3)))]
    exponent = integers(-1074, 1024, rows, 1)
    exponent[::4] = integers(-1074, -1020, len(range(0, rows, 4)), 1)
    exponent[1::4] = integers(1020, 1024, len(range(1, rows, 4)), 1)
    exponent = (exponent + integers(-56, 56, rows, count)).clamp(-1074, 1023)
    half = exponent >> 1
    x = significand * 2.0 ** half.double() * 2.0 ** (exponent - half).double()
    x = torch.where(integers(0, 2, rows, count) == 1, -x, x)
    special = torch.tensor(SPECIAL, dtype=torch.float64)
    assert x.isfinite().all()
    return torch.cat([x, special.repeat(1, -(-count // 5))[:, :count]])


def check(x, accumulator, offset=0):
    seed = 9 if accumulator.stochastic else None
    actual = lp.sum(x, 1, accumulator=accumulator, seed=seed, offset=offset)
    wanted = [
        exact_sum(row, accumulator, 9, offset + i) for i, row in enumerate(x.tolist())
    ]
    assert_bit_equal(actual, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order["order"])
@pytest.mark.parametrize("mode", MODES)
def test_far_formats(mode, order):
    x = terms(12, 7)
    for number, target in enumerate(FAR):
        saturation = ("none", "finite", "propagate")[number % 3]
        rounding = Rounding(target, mode, saturation)
        check(x, Accumulator(rounding, **order), offset=3)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order["order"])
@pytest.mark.parametrize("mode", DETERMINISTIC)
def test_as_many_bits_as_the_carrier(mode, order):
    x = terms(12, 7)
    for number, target in enumerate(WHOLE):
        saturation = ("none", "finite", "propagate")[number % 3]
        check(x, Accumulator(Rounding(target, mode, saturation), **order))


@pytest.mark.parametrize(
    ("rounding", "within"),
    [
        ("bfloat16", "binary64"),
        ("binary64", "bfloat16"),
        (Rounding("e11m40", "stochastic"), Rounding("binary64", "toward_negative")),
        (Rounding("e8m52", "to_odd"), Rounding("e11m5", "stochastic_equal")),
        ("posit16", "e11m51"),
        (lp.Levels([-1.0, 0.0, 1.0]), "binary64"),
        ("int8", "binary64"),
    ],
)
def test_blocks_of_other_formats(rounding, within):
    for size in (1, 3, 20):
        accumulator = Accumulator(
            rounding, order="blocked", block_size=size, within=within
        )
        check(terms(12, 7), accumulator)


def test_results_do_not_depend_on_the_other_terms():
    """Terms in the range of products are served by other kernels when alone."""
    near = terms(40, 7)
    near = near[(near.abs() > 1e-280).all(1) & (near.abs() < 1e290).all(1)]
    assert len(near) > 5
    far = torch.cat([near, terms(0, 7)])
    for mode, order in itertools.product(MODES, ORDERS):
        accumulator = Accumulator(Rounding("e11m40", mode), **order)
        seed = 4 if accumulator.stochastic else None
        alone = lp.sum(near, 1, accumulator=accumulator, seed=seed)
        together = lp.sum(far, 1, accumulator=accumulator, seed=seed)
        assert_bit_equal(together[: len(near)], alone)


def test_binary64_is_what_the_processor_adds():
    x = terms(60, 50)
    loops = [functools.reduce(operator.add, row, 0.0) for row in x.tolist()]
    result = lp.sum(x, 1, accumulator="binary64")
    assert_bit_equal(result, torch.tensor(loops, dtype=torch.float64))
    short = torch.randint(-(2**40), 2**40, (20, 50)).double() * 2.0**-1074
    exact = [math.fsum(row) for row in short.tolist()]
    for order in ORDERS:
        adder = Accumulator("binary64", **order)
        result = lp.sum(short, 1, accumulator=adder)
        assert_bit_equal(result, torch.tensor(exact, dtype=torch.float64))


def test_two_terms_are_an_addition():
    x = terms(200, 2)
    x = x[(x != 0).all(1)]
    for target, mode in itertools.product(WHOLE[:3] + FAR[:3], DETERMINISTIC):
        first = lp.round(x[:, 0], target, mode)
        wanted = lp.add(first, x[:, 1], target, mode)
        assert_bit_equal(lp.sum(x, 1, accumulator=Rounding(target, mode)), wanted)


MPFR_MODES = {
    RoundingMode.NEAREST_EVEN: gmpy2.RoundToNearest,
    RoundingMode.TOWARD_ZERO: gmpy2.RoundToZero,
    RoundingMode.TOWARD_POSITIVE: gmpy2.RoundUp,
    RoundingMode.TOWARD_NEGATIVE: gmpy2.RoundDown,
}


@pytest.mark.parametrize("mode", list(MPFR_MODES))
@pytest.mark.parametrize("target", ["binary64", "e11m51", "e11m40", "e8m52"])
def test_mpfr_agrees(target, mode):
    fmt = lp.format(target)
    context = gmpy2.context(
        precision=fmt.precision,
        emax=fmt.emax + 1,
        emin=fmt.emin - fmt.precision + 2,
        subnormalize=True,
        round=MPFR_MODES[mode],
    )
    x = terms(60, 12)
    with gmpy2.context(precision=53):
        rows = [[gmpy2.mpfr(value) for value in row] for row in x.tolist()]
        zero = gmpy2.mpfr(0.0)
    sums = [float(functools.reduce(context.add, row, zero)) for row in rows]
    actual = lp.sum(x, 1, accumulator=Rounding(target, mode))
    assert_bit_equal(actual, torch.tensor(sums, dtype=torch.float64))


def test_compensation_keeps_what_recursion_loses():
    x = torch.full((1000,), 0.1, dtype=torch.float64)
    kahan = lp.sum(x, accumulator=Accumulator("binary64", order="kahan"))
    assert kahan.item() == math.fsum(x.tolist())
    assert lp.sum(x, accumulator="binary64").item() != math.fsum(x.tolist())


def test_layers_share_the_sums():
    x = terms(4, 6)
    precision = lp.Precision(accumulator="binary64", elementwise="binary64")
    result = lp.functional.sum(x, 1, precision=precision)
    assert_bit_equal(result, lp.sum(x, 1, accumulator="binary64"))


@pytest.mark.parametrize("rounding", ["binary64", Rounding("e11m40", "stochastic")])
def test_segments_share_the_sums(rounding):
    x = terms(12, 2)
    index = torch.arange(len(x)) % 5
    for order in ORDERS:
        adder = Accumulator(rounding, **order)
        seed = torch.tensor(9) if adder.stochastic else None
        settings = sum_settings(adder)
        sums = lp.kernels.segment_sums(x, index, 5, *settings, seed)
        for segment, column in itertools.product(range(5), range(2)):
            column_terms = x[index == segment, column].tolist()
            wanted = exact_sum(column_terms, adder, 9, 2 * segment + column)
            assert_bit_equal(
                sums[segment, column], torch.tensor(wanted, dtype=torch.float64)
            )


def test_transforms_and_shapes():
    x = leaf(3, 5).detach().double().requires_grad_()
    y = lp.sum(x, 1, True, accumulator="binary64")
    assert y.shape == (3, 1)
    assert_bit_equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(3, 5).double())
    assert lp.sum(x[:, :0], 1, accumulator="binary64").tolist() == [0, 0, 0]
    assert lp.sum(x[:0], 1, accumulator="binary64").shape == (0,)
    adder = Rounding("e11m40", "stochastic")
    far = terms(0, 5)
    rows = torch.func.vmap(
        lambda row: lp.sum(row, accumulator=adder, seed=torch.tensor(3))
    )(far)
    wanted = [lp.sum(row, accumulator=adder, seed=3) for row in far]
    assert_bit_equal(rows, torch.stack(wanted))
    settings = (list(adder.code), [], 2, 0, torch.tensor(3), 1)
    far = far[:4]  # opcheck takes no NaN for equal
    settings = (list(adder.code), [], 2, 0, torch.tensor(3), 1)
    torch.library.opcheck(torch.ops.lowprec.term_sums.default, (far.mT, *settings))


@ignore_dynamo
def test_compiles_without_graph_breaks():
    def run(x):
        return lp.sum(x, 1, accumulator=Accumulator("binary64", order="pairwise"))

    torch._dynamo.reset()
    x = terms(4, 6)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_bit_equal(compiled(x), run(x))


@pytest.mark.parametrize(
    ("accumulator", "kind", "message"),
    [
        (
            Rounding("binary64", "stochastic"),
            NotImplementedError,
            "at most 51 significant bits in this mode, got 53",
        ),
        (
            Accumulator(
                "bfloat16",
                order="blocked",
                block_size=2,
                within=Rounding("e8m51", "stochastic_equal"),
            ),
            NotImplementedError,
            "at most 51 significant bits in this mode, got 52",
        ),
        (
            "int54",
            NotImplementedError,
            "at most 51 significant bits in this mode, got 53",
        ),
        (
            Accumulator("bfloat16", order="blocked", block_size=2, within="e8m60"),
            NotImplementedError,
            "at most 53 significant bits in this mode, got 61",
        ),
        ("e15m40", ValueError, "float64 tensors cannot hold every value"),
        ("e8m60", ValueError, "float64 tensors cannot hold every value"),
        (
            Accumulator("bfloat16", order="blocked", block_size=2, within="e15m40"),
            ValueError,
            "float64 tensors cannot hold every value",
        ),
    ],
)
def test_refusals(accumulator, kind, message):
    with pytest.raises(kind, match=message):
        lp.sum(torch.ones(2, 3).double(), accumulator=accumulator)


def test_terms_that_would_lose_bits_before_they_wrap_are_refused():
    wrapping = lp.Rounding("int8", saturation="wrap")
    terms = torch.tensor([62.0, 2.0**51], dtype=torch.float64)
    with pytest.raises(ValueError, match="wraps exactly for terms below"):
        lp.sum(terms, accumulator=wrapping)
    inside = {"order": "blocked", "block_size": 2, "within": wrapping}
    with pytest.raises(ValueError, match="wraps exactly"):
        lp.sum(terms, accumulator=lp.Accumulator("int16", **inside))
    terms = torch.tensor([62.25, -(2.0**50) - 2.5, 100.0], dtype=torch.float64)
    assert lp.sum(terms, accumulator=wrapping).item() == exact_sum(
        terms.tolist(), lp.Accumulator(wrapping)
    )
