"""Arithmetic of posits and levels: one rounding of the exact result, in every mode."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from layer_roundings import leaf
from tables import BACKENDS, CARRIERS, DETERMINISTIC, MODES, STOCHASTIC, VARIANTS

import lowprec as lp
from lowprec import Accumulator, TableRounding, kernels
from lowprec.arithmetic import fits
from lowprec.random import philox_words
from lowprec.testing import (
    assert_bit_equal,
    exact_dot,
    exact_operation,
    exact_softmax,
    exact_sum,
    exact_table_round,
    exact_value,
)

SEED = 20261126
BINARY = ("add", "sub", "mul", "div")
ELEMENTARY = ("exp", "log", "tanh", "sigmoid")
ARBITRARY = lp.Levels([-2.5, -0.3125, 0.1171875, 0.125, 3.0, 40.0])
LEVELS = [lp.Levels.ternary(), lp.Levels.int_bits(3), ARBITRARY, lp.Levels([5.0])]
WIDE = lp.Levels(torch.tensor([-0.7312, 0.0001234, 0.1, 0.7312]).tolist())


def label(value):
    return getattr(value, "name", None) or f"levels{len(value)}"


def roundings(target, modes=MODES):
    """All modes that the set has, with variants and numbers of random bits."""
    for mode in modes:
        if mode == "stochastic":
            yield TableRounding(target, mode)
            yield from (TableRounding(target, mode, 3, one) for one in VARIANTS)
        elif mode != "to_odd" or isinstance(target, lp.Posit):
            yield TableRounding(target, mode)


def numbers(target):
    """All numbers of the set, and NaR of posits."""
    values = list(target.table.values)
    if isinstance(target, lp.Posit):
        values.append(math.nan)
    return torch.tensor(values, dtype=torch.float64)


def words(count, rounding):
    if not rounding.stochastic:
        return [0] * count
    return philox_words(torch.arange(count), torch.tensor(SEED)).tolist()


def expected(values, rounding):
    """Round exact values, of which there are few different ones."""
    chance = words(len(values), rounding)
    known = {}
    for value, word in zip(values, chance, strict=True):
        if (value, word) not in known:
            known[value, word] = exact_table_round(value, rounding, word)
    pairs = zip(values, chance, strict=True)
    return torch.tensor([known[pair] for pair in pairs], dtype=torch.float64)


def check(name, operands, every):
    """Compare with the exact values rounded once, not first to odd."""
    rows = zip(*(x.tolist() for x in operands), strict=True)
    values = [exact_value(name, row) for row in rows]
    for rounding in every:
        seed = SEED if rounding.stochastic else None
        actual = getattr(lp, name)(*operands, rounding, seed=seed)
        assert_bit_equal(actual, expected(values, rounding).to(actual.dtype))


def pairs(x):
    left, right = torch.meshgrid(x, x, indexing="ij")
    return left.flatten(), right.flatten()


@pytest.mark.parametrize("name", [*BINARY, "sqrt"])
@pytest.mark.parametrize("target", [lp.Posit(6), lp.Posit(5, 1), *LEVELS], ids=label)
def test_all_pairs_of_small_sets(target, name):
    x = numbers(target)
    if isinstance(target, lp.Posit):
        x = x[:: 1 if target.bits < 6 or name == "sqrt" else 2]
    check(name, (x,) if name == "sqrt" else pairs(x), roundings(target))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BINARY, "sqrt"])
@pytest.mark.parametrize("target", [lp.Posit(8, 0), lp.Posit(8)], ids=label)
def test_all_pairs_of_8_bit_posits(target, name):
    x = numbers(target)
    check(name, (x,) if name == "sqrt" else pairs(x), roundings(target))


@pytest.mark.parametrize("target", [lp.Posit(4), *LEVELS[:2]], ids=label)
def test_all_triples_of_tiny_sets(target):
    x = numbers(target)
    triples = [x.flatten() for x in torch.meshgrid(x, x, x, indexing="ij")]
    check("fma", triples, roundings(target))


def near(target, count):
    """Operands whose results lie at thresholds: values, ties, and anything else."""
    values = numbers(target)
    picked = values[torch.randint(len(values), (count,))]
    places = torch.randint(len(target.table.ties), (count,)).tolist()
    ties = [float(target.table.ties[place]) for place in places]
    ties = torch.tensor(ties, dtype=torch.float64)
    scale = 2.0 ** torch.randint(-60, 60, (count,)).double()
    other = torch.randn(count, dtype=torch.float64) * scale
    return torch.cat([picked, ties, other])[torch.randperm(3 * count)]


def operands_near(target, name, count):
    """Operands of which some have a result at, or beside, a value or tie of the set."""
    result, b, c = (near(target, count) for _ in range(3))
    little = 2.0**-50 * torch.randint(-1, 2, (3 * count,))
    result = result * (1 + little)
    match name:
        case "add":
            return result - b, b
        case "sub":
            return result + b, b
        case "mul":
            return result / b, b
        case "div":
            return result * b, b
        case "sqrt":
            return (result.abs() * result.abs(),)
        case "fma":
            return (result - c) / b, b, c
    return (near(target, count),)


POSIT32_LIKE = lp.Posit(16, 4)  # of the widest range


@pytest.mark.parametrize("name", [*BINARY, "sqrt", "fma"])
@pytest.mark.parametrize(
    "target", [lp.Posit(16), lp.Posit(16, 1), POSIT32_LIKE, WIDE], ids=label
)
def test_operands_whose_results_lie_at_thresholds(target, name):
    count = 10
    operands = operands_near(target, name, count)
    every = list(roundings(target, DETERMINISTIC))
    check(name, operands, every)
    if target is not WIDE:  # whose probabilities are those of the number seen
        check(name, operands, roundings(target, STOCHASTIC))
    if not fits(target, torch.float32):
        return
    single = [x.float() for x in operands]
    for rounding in every:
        rows = zip(*(x.tolist() for x in single), strict=True)
        wanted = [exact_operation(name, row, rounding) for row in rows]
        actual = getattr(lp, name)(*single, rounding)
        assert_bit_equal(actual, torch.tensor(wanted, dtype=torch.float32))


def test_quotients_of_float32_numbers_that_float64_takes_for_mid_points():
    a, b = (x.tolist() for x in torch.randint(1 << 23, 1 << 24, (2, 400)).double())
    found = 0
    for x, y in zip(a, b, strict=True):
        middle = x / y  # its last bits are zeros, which the exact quotient's are not
        high = torch.tensor(2 * middle).float().item()
        low = torch.tensor(2 * middle - high).float().item()
        splits = Fraction(low) + Fraction(high) == 2 * Fraction(middle)
        inexact = Fraction(x) / Fraction(y) != middle
        if splits and low < 0 and inexact and digits(middle) <= 52:
            levels = lp.Levels([low, high])
            single = torch.tensor([x]), torch.tensor([y])
            check("div", [z.float() for z in single], roundings(levels, MODES[:3]))
            found += 1
    assert found > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BINARY, "sqrt", "fma"])
@pytest.mark.parametrize("target", [lp.Posit(16), lp.Posit(16, 0)], ids=label)
def test_many_operands_of_16_bit_posits(target, name):
    every = [TableRounding(target, mode) for mode in MODES]
    check(name, operands_near(target, name, 2000), every)


@pytest.mark.parametrize("name", [*BINARY, "fma"])
def test_stochastic_levels_see_the_number_rounded_to_odd(name):
    operands = operands_near(WIDE, name, 40)
    rows = list(zip(*(x.tolist() for x in operands), strict=True))
    for rounding in roundings(WIDE, STOCHASTIC):
        chance = words(len(rows), rounding)
        actual = getattr(lp, name)(*operands, rounding, seed=SEED)
        wanted = [
            exact_operation(name, row, rounding, word)
            for row, word in zip(rows, chance, strict=True)
        ]
        assert_bit_equal(actual, torch.tensor(wanted, dtype=torch.float64))


def digits(value):
    """Bits from the first to the last one of a binary fraction."""
    exact = abs(Fraction(value))
    odd = exact.numerator // (exact.numerator & -exact.numerator or 1)
    return odd.bit_length()


@pytest.mark.parametrize(
    "bits", [2, 5, 8, 12, pytest.param(16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("es", [0, 2, 4])
def test_what_posits_are_compared_with_has_at_most_52_bits(bits, es):
    table = lp.Posit(bits, es).table
    assert max(map(digits, table.values)) <= max(bits - 2 - es, 1)
    assert max(map(digits, table.ties)) <= max(bits - 1, 1)
    # Thresholds of stochastic roundings are low + k (high - low) / 2^33, as is this.
    for low, high in itertools.pairwise(map(Fraction, table.values)):
        near, far = sorted((low, high), key=abs)
        assert digits(far + (near - far) / 2**33) <= 50


@pytest.mark.parametrize("name", ELEMENTARY)
@pytest.mark.parametrize("target", [lp.Posit(8), lp.Posit(16), ARBITRARY], ids=label)
def test_elementary_functions(target, name):
    edges = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, 1e308, -1e308, -800.0]
    edges += [800.0, 1e-300, -1e-300, 5e-324, 1 + 2**-52, 1 - 2**-53, 40.0, -40.0]
    x = torch.cat([torch.tensor(edges, dtype=torch.float64), near(target, 8)])
    check(name, (x,), roundings(target))


@pytest.mark.slow
@pytest.mark.parametrize("name", ELEMENTARY)
@pytest.mark.parametrize("target", [lp.Posit(8), lp.Posit(16)], ids=label)
def test_elementary_functions_of_posits(target, name):
    x = numbers(target)[:: 1 if target.bits == 8 else 31]
    values = [exact_value(name, (value,)) for value in x.tolist()]
    for rounding in roundings(target, DETERMINISTIC):
        assert_bit_equal(getattr(lp, name)(x, rounding), expected(values, rounding))


@pytest.mark.parametrize("target", [lp.Posit(8), lp.Posit(16), ARBITRARY], ids=label)
def test_softmax(target):
    rows = [[0.0, 0.0, 1.0], [-math.inf, 2.0, 2.0], [math.nan, 0.0, 1.0], [1e30, 0, 0]]
    x = torch.tensor([*rows, *torch.randn(6, 3).tolist()], dtype=torch.float64)
    for rounding in roundings(target):
        seed = SEED if rounding.stochastic else None
        chance = words(x.numel(), rounding)
        wanted = [
            exact_softmax(row, rounding, chance[3 * i : 3 * i + 3])
            for i, row in enumerate(x.tolist())
        ]
        actual = lp.softmax(x, 1, rounding, seed=seed)
        assert_bit_equal(actual, torch.tensor(wanted, dtype=torch.float64))


ORDERS = [
    {"order": "sequential"},
    {"order": "pairwise"},
    {"order": "kahan"},
    {"order": "blocked", "block_size": 3},
    {"order": "blocked", "block_size": 4, "within": "posit16"},
    {"order": "blocked", "block_size": 2, "within": "e8m10"},
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(map(str, order)))
@pytest.mark.parametrize("target", [lp.Posit(8), lp.Posit(16, 1), ARBITRARY], ids=label)
def test_sums_in_every_order(target, order):
    x = torch.randn(4, 7, dtype=torch.float64) * 3
    x[0, 0], x[1, 3], x[2, 2], x[3, 1] = -0.0, math.inf, 1e300, 1e-300
    for rounding in roundings(target):
        accumulator = Accumulator(rounding, **order)
        seed = SEED if accumulator.stochastic else None
        actual = lp.sum(x, 1, accumulator=accumulator, seed=seed, offset=3)
        wanted = [
            exact_sum(row, accumulator, SEED, 3 + i) for i, row in enumerate(x.tolist())
        ]
        assert_bit_equal(actual, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("product", ["exact", "accumulator", "posit8", "e5m2"])
def test_products_of_matrices(product, backend):
    a, b = torch.randn(3, 5), torch.randn(5, 2)
    for mode in ("nearest_even", "stochastic"):
        accumulator = Accumulator(TableRounding("posit16", mode), product)
        seed = SEED if accumulator.stochastic else None
        with kernels.using(backend):
            actual = lp.matmul(a, b, accumulator=accumulator, seed=seed)
        wanted = [
            exact_dot(row, column, accumulator, SEED, 2 * i + j)
            for i, row in enumerate(a.tolist())
            for j, column in enumerate(b.T.tolist())
        ]
        assert_bit_equal(actual, torch.tensor(wanted).reshape(3, 2))
    only = Accumulator("e8m10", product="posit8")
    wanted = exact_dot(a[0].tolist(), b[:, 0].tolist(), only)
    assert lp.dot(a[0], b[:, 0], accumulator=only).item() == wanted


def test_layers_take_them_as_accumulators():
    x, w = torch.randn(4, 6), torch.randn(3, 6)
    precision = lp.Precision(
        accumulator="posit8", grad_accumulator=lp.Levels.int_bits(4)
    )
    assert lp.Precision.from_json(precision.to_json()) == precision
    assert eval(repr(precision), vars(lp)) == precision
    x.requires_grad_()
    y = lp.functional.linear(x, w, precision=precision)
    assert_bit_equal(y.detach(), lp.matmul(x.detach(), w.T, accumulator="posit8"))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    ones = torch.ones_like(y)
    wanted = lp.matmul(ones, w, accumulator=lp.Levels.int_bits(4))
    assert_bit_equal(gradient, wanted)
    stochastic = Accumulator(
        TableRounding("posit16_1", "stochastic", 8), TableRounding("posit8", "to_odd")
    )
    other = lp.Precision(accumulator=stochastic)
    assert lp.Precision.from_json(other.to_json()) == other


def test_not_a_real():
    x = torch.tensor([1.0, -1.0, 0.0, -0.0, math.nan, math.inf])
    assert lp.div(x, 0.0, "posit8").isnan().all()
    assert lp.sqrt(-x[:2].abs(), "posit16").isnan().all()
    assert lp.log(torch.tensor([0.0, -1.0]), "posit8").isnan().all()
    assert lp.add(x[4:], 1.0, "posit16").isnan().all()
    assert lp.mul(x[4:], 0.0, "posit16").isnan().all()
    for order in ORDERS[:5]:
        total = lp.sum(x, accumulator=Accumulator("posit8", **order))
        assert total.isnan(), order
    # Only zero is zero, and there is one of it.
    for zero in (lp.sqrt(x[3:4], "posit8"), lp.add(x[:1], -1.0, "posit8")):
        assert_bit_equal(zero, torch.zeros(1))
    tiny = torch.tensor([1e-30])
    assert lp.mul(tiny, tiny, "posit16").item() == lp.Posit(16).smallest_positive
    assert lp.div(1 / tiny, tiny, "posit16").item() == lp.Posit(16).max
    # Levels have no NaR: infinity is beyond the end, NaN stays.
    ternary = lp.Levels.ternary()
    assert lp.div(x[:2], 0.0, ternary).tolist() == [1.0, -1.0]
    assert lp.div(x[2:5], 0.0, ternary).isnan().all()


def test_one_rounding_where_two_would_differ():
    tie = float(lp.Posit(8).table.ties[-3])
    a, b = torch.tensor([tie]), torch.tensor([2.0**-20])
    value = lp.Posit(8).table.values
    assert (a + b).item() == tie  # binary32 loses what decides
    assert lp.add(a, b, "posit8").item() == value[-3]
    assert lp.sub(a, b, "posit8").item() == value[-4]


def test_gradients_are_those_of_torch():
    a, b, c = leaf(5), leaf(5), leaf(5)
    g = torch.randn(5)
    for ours, theirs, operands in (
        (lp.add, torch.add, (a, b)),
        (lp.div, torch.div, (a, b)),
        (lp.fma, lambda a, b, c: a * b + c, (a, b, c)),
        (lp.exp, torch.exp, (a,)),
        (lp.tanh, torch.tanh, (a,)),
    ):
        for rounding in ("posit8", TableRounding(lp.Levels.ternary(), "stochastic")):
            y = ours(*operands, rounding)
            got = torch.autograd.grad(y, operands, g)
            wanted = torch.autograd.grad(theirs(*operands), operands, g)
            for one, other in zip(got, wanted, strict=True):
                assert_bit_equal(one, other)
    y = lp.sum(a, accumulator="posit8")
    assert_bit_equal(torch.autograd.grad(y, a)[0], torch.ones(5))
    y = lp.softmax(a, 0, "posit16")
    wanted = torch.autograd.grad(torch.softmax(a, 0), a, g)
    assert_bit_equal(torch.autograd.grad(y, a, g)[0], wanted[0])


def test_torch_func_sees_one_example_at_a_time():
    x = torch.randn(4, 3)
    rounding = TableRounding("posit8", "stochastic")

    def ours(row):
        y = lp.exp(lp.mul(row, row, rounding, seed=3), "posit16")
        return lp.sum(y, accumulator="posit16")

    rows = torch.func.vmap(ours)(x)
    gradients = torch.func.vmap(torch.func.grad(ours))(x)
    for row, result, gradient in zip(x, rows, gradients, strict=True):
        assert_bit_equal(result, ours(row))
        assert_bit_equal(gradient, torch.func.grad(ours)(row))


def test_compiled_programs():
    def run(x):
        y = lp.add(lp.exp(x, "posit16"), x, lp.Levels.int_bits(3))
        return lp.sum(lp.div(y, 3.0, "posit8"), 0, accumulator="posit8") + 1

    x = torch.randn(4, 3)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_bit_equal(compiled(x), run(x))


@pytest.mark.parametrize("carrier", CARRIERS)
def test_shapes_offsets_and_strides(carrier):
    a, b = torch.randn(4, 6, dtype=carrier).mT, torch.randn(6, 1, dtype=carrier)
    rounding = TableRounding("posit8", "stochastic")
    whole = lp.mul(a, b, rounding, seed=1)
    assert whole.dtype == carrier
    rows = [
        lp.mul(a[i], b[i], rounding, seed=1, offset=4 * i) for i in range(a.shape[0])
    ]
    assert_bit_equal(whole, torch.stack(rows))
    assert lp.add(torch.empty(0, 3), 1, "posit8").shape == (0, 3)
    assert lp.add(torch.tensor(0.3), 1, "posit8").item() == 1.25
    changed = lp.add(a, b, "posit8", "toward_zero")
    assert_bit_equal(changed, lp.add(a, b, TableRounding("posit8", "toward_zero")))


def test_of_operands_too_large_for_the_cache():
    x = torch.randn(70_000)
    rounding = TableRounding("posit16", "stochastic")
    last = lp.mul(x, x, rounding, seed=2)[65_536:]
    assert_bit_equal(
        last, lp.mul(x[65_536:], x[65_536:], rounding, seed=2, offset=65_536)
    )


@pytest.mark.parametrize("levels", [[0.1, 0.7], [1.0, 1 + 2.0**-52], [2.0**-60, 1.0]])
def test_refuses_levels_whose_mid_points_have_too_many_bits(levels):
    x = torch.ones(2, dtype=torch.float64)
    with pytest.raises(
        NotImplementedError, match=r"52 significant bits.*round the level"
    ):
        lp.add(x, x, lp.Levels(levels))
    with pytest.raises(NotImplementedError, match="mid-points have no more bits"):
        lp.sum(x, accumulator=lp.Levels(levels))
    assert lp.round(x, lp.Levels(levels)).unique().numel() == 1  # is exact


def test_refusals():
    x = torch.ones(2)
    with pytest.raises(NotImplementedError, match="magnitude of 0 or 2"):
        lp.add(x.double(), x.double(), lp.Levels([0.0, 1e300]))
    directed = TableRounding(lp.Levels([0.1, 0.7]), "toward_zero")
    assert lp.add(x.double(), x.double(), directed).tolist() == [0.7, 0.7]
    for refused in (
        lambda: lp.add(x, x, directed),
        lambda: lp.sum(x, accumulator=directed),
        lambda: lp.dot(x, x, accumulator=directed),
    ):
        with pytest.raises(ValueError, match=r"float32 .*cannot hold every value"):
            refused()
    with pytest.raises(ValueError, match="does not apply to Posit"):
        lp.mul(x, x, "posit8", saturation="finite")
    with pytest.raises(ValueError, match="has no odd numbers"):
        lp.mul(x, x, lp.Levels.binary(), "to_odd")
    with pytest.raises(TypeError, match="half carrier"):
        lp.mul(x.half(), x.half(), "posit8")
    with pytest.raises(ValueError, match="not both"):
        lp.mul(x, x, "posit8", seed=1, generator=torch.Generator())
    with pytest.raises(ValueError, match="posit must be from 2 to 32, got 64"):
        lp.mul(x, x, "posit64")
    with pytest.raises(ValueError, match="is a posit, which stands where"):
        lp.optim.SGD([leaf(2)], lr=0.1, param_format="posit16")
    with pytest.raises(ValueError, match="and more only for levels"):
        kernels.round(x, list(TableRounding("ternary").code[:9]))


def test_every_format_has_the_gradient_of_the_identity():
    # Small tensors are rounded in place, behind a clone that autograd sees.
    for target in ("posit8", lp.Levels.binary(), "int8", "e8m0fnu", "e4m3fn"):
        for rounding in (target, lp.rounding.as_scalar_rounding(target)):
            for mode in ("nearest_even", "stochastic"):
                x = torch.tensor([200.0, 1.0, -300.0, 0.3], requires_grad=True)
                lp.round(x, rounding, mode).sum().backward()
                assert_bit_equal(x.grad, torch.ones(4))
    x = torch.tensor([200.0, 1.0], requires_grad=True)
    lp.round(x, "int8", saturation="wrap").sum().backward()
    assert_bit_equal(x.grad, torch.ones(2))
