"""Summation bounds: exact constants, and never violated by exactly simulated sums."""

import itertools
import math
import random
from fractions import Fraction

import mpmath
import pytest
import torch
from theory.fraction_rounding import dot, fl

import lowprec as lp
from lowprec.theory import summation

ORDERS = [("sequential", None), ("blocked", 4), ("blocked", 7), ("pairwise", None)]
PRODUCTS = ["exact", "accumulator"]
MODES = ["nearest_even", "toward_zero", "toward_positive", "stochastic"]


def operands(rng, n, p, kind="signed"):
    values = []
    for _ in range(n):
        x = Fraction(rng.randint(2 ** (p - 1), 2**p - 1)) * Fraction(2) ** rng.randint(
            -4, 4
        )
        values.append(x if kind == "positive" or rng.random() < 0.5 else -x)
    return values


def error_and_size(a, b, computed):
    terms = [x * y for x, y in zip(a, b, strict=True)]
    return abs(computed - sum(terms)), sum(map(abs, terms))


# ---- Worst-case bounds are never violated


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(("order", "block"), ORDERS)
def test_no_sum_exceeds_the_worst_case(order, block, product, mode):
    rng = random.Random(f"{order}{block}{product}{mode}")
    for case in range(40):
        p, n = rng.choice([2, 3, 4, 5, 8]), rng.choice([1, 2, 3, 7, 8, 20, 33])
        kind = "positive" if case % 2 else "signed"
        a, b = operands(rng, n, p, kind), operands(rng, n, p, kind)
        computed = dot(
            a, b, p, order=order, block=block, product=product, mode=mode, rng=rng
        )
        error, size = error_and_size(a, b, computed)
        how = {"mode": mode, "order": order, "block_size": block, "product": product}
        bound = summation.dot_error_bound(n, 2.0**-p, kind="compound", **how)
        assert error <= Fraction(bound.error(float(size))) * (1 + Fraction(1, 2**40))
        if bound.roundings * 2.0**-p * (1 if mode == "nearest_even" else 2) < 1:
            classical = summation.dot_error_bound(n, 2.0**-p, kind="gamma", **how)
            assert classical.factor >= bound.factor


@pytest.mark.parametrize(("order", "block"), ORDERS)
def test_representable_products_save_one_rounding(order, block):
    rng = random.Random(1)
    for _ in range(60):
        n, p = rng.choice([1, 2, 5, 16, 21]), 8
        a, b = operands(rng, n, 4), operands(rng, n, 4)
        computed = dot(a, b, p, order=order, block=block)
        error, size = error_and_size(a, b, computed)
        how = {"order": order, "block_size": block, "kind": "compound"}
        bound = summation.dot_error_bound(n, 2.0**-p, product="representable", **how)
        general = summation.dot_error_bound(n, 2.0**-p, **how)
        assert bound.roundings == general.roundings - 1
        assert error <= Fraction(bound.error(float(size)))
        if n == 1:
            assert bound.factor == 0


@pytest.mark.parametrize("product_precision", [3, 8])
def test_products_rounded_to_another_format(product_precision):
    rng = random.Random(2)
    for _ in range(60):
        n, p = rng.choice([1, 2, 9, 30]), 5
        a, b = operands(rng, n, p), operands(rng, n, p)
        computed = dot(a, b, p, product=product_precision)
        error, size = error_and_size(a, b, computed)
        bound = summation.dot_error_bound(
            n,
            2.0**-p,
            product="representable" if product_precision <= p else "exact",
            product_u=2.0**-product_precision,
            kind="compound",
        )
        assert error <= Fraction(bound.error(float(size)))


@pytest.mark.parametrize("subnormals", [True, False])
def test_underflow_is_covered_by_the_absolute_part(subnormals):
    rng = random.Random(3)
    target = lp.Format(precision=4, emax=7, emin=-6, subnormals=subnormals)
    uncovered = 0
    for _ in range(200):
        n = rng.choice([2, 5, 12])
        a = [x / 2**6 for x in operands(rng, n, 4)]
        b = [x / 2**8 for x in operands(rng, n, 4)]
        total = Fraction(0)
        for x, y in zip(a, b, strict=True):
            total = bounded(total + x * y, target)
        error, size = error_and_size(a, b, total)
        bound = summation.dot_error_bound(n, target, kind="compound")
        assert bound.underflow > 0
        assert error <= Fraction(bound.error(float(size)))
        uncovered += error > Fraction(bound.factor * float(size))
    assert summation.dot_error_bound(2, 2.0**-4).underflow == 0
    assert uncovered > 0


def bounded(x, target):
    """Round to nearest in a format; without subnormals the gap below 2^emin is one."""
    if target.subnormals or abs(x) >= Fraction(2) ** target.emin:
        return fl(x, target.precision, emin=target.emin)
    return round(x / Fraction(2) ** target.emin) * Fraction(2) ** target.emin


def test_first_term_of_a_chain_has_n_roundings():
    """An exact product is rounded when added to +0: n - 1 roundings do not suffice."""
    p, a = 4, [Fraction(9), Fraction(9)]
    b = [Fraction(15), Fraction(0)]
    assert fl(Fraction(135), p) != 135
    error, size = error_and_size(a, b, dot(a, b, p))
    too_few = Fraction(summation.compound(0, 2.0**-p))
    assert error > too_few * size
    bound = summation.dot_error_bound(1, 2.0**-p)
    assert error <= Fraction(bound.error(float(size)))
    assert bound.roundings == 1


def test_worst_case_is_approached():
    """1 + 2^-p + 2^-p + ... stays at 1: an error of (n - 1) u."""
    p, n = 6, 20
    a = [Fraction(1)] + [Fraction(1, 2**p)] * (n - 1)
    b = [Fraction(1)] * n
    error, size = error_and_size(a, b, dot(a, b, p))
    assert error == Fraction(n - 1, 2**p)
    bound = summation.dot_error_bound(n, 2.0**-p, product="representable")
    assert error >= Fraction(0.5 * bound.error(float(size)))


# ---- Number of roundings


@pytest.mark.parametrize(
    ("n", "order", "block", "expected"),
    [
        (0, "sequential", None, 0),
        (1, "sequential", None, 1),
        (4096, "sequential", None, 4096),
        (1000, "blocked", 32, 32 + 32 - 1),
        (1000, "blocked", 5000, 1000),
        (7, "blocked", 1, 7),
        (0, "blocked", 3, 0),
        (1, "pairwise", None, 1),
        (2, "pairwise", None, 2),
        (1024, "pairwise", None, 11),
        (1025, "pairwise", None, 12),
    ],
)
def test_roundings_per_term(n, order, block, expected):
    how = {"order": order, "block_size": block}
    assert summation.roundings_per_term(n, **how) == expected
    assert summation.roundings_per_term(n, product="accumulator", **how) == expected
    saved = summation.roundings_per_term(n, product="representable", **how)
    assert saved == max(expected - 1, 0)


@pytest.mark.parametrize(("order", "block"), ORDERS)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 13, 29])
def test_roundings_are_counted_in_the_simulated_sum(order, block, n):
    """The table of the docstring against the additions carried out one by one."""
    depth = counted_depth(n, order, block)
    assert summation.roundings_per_term(n, order=order, block_size=block) == depth


def counted_depth(n, order, block):
    """Roundings on the longest path; a sum with +0 of a rounded number is exact."""

    def chain(depths, first_is_rounded):
        deepest = depths[0] if first_is_rounded else depths[0] + 1
        for depth in depths[1:]:
            deepest = max(deepest, depth) + 1
        return deepest

    if order == "sequential":
        return chain([0] * n, False)
    if order == "blocked":
        lengths = [min(block, n - i) for i in range(0, n, block)]
        return chain([chain([0] * length, False) for length in lengths], True)
    level = [1] * n
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [max(x, y) + 1 for x, y in pairs] + odd
    return level[0]


# ---- Formulas against mpmath


@pytest.mark.parametrize("n", [0, 1, 17, 1000, 10**6])
@pytest.mark.parametrize("p", [4, 11, 24, 53])
def test_formulas_agree_with_mpmath(n, p):
    with mpmath.workdps(50):
        u, number, deviation = mpmath.mpf(2) ** -p, mpmath.mpf(n), mpmath.mpf("2.5")
        worst = (1 + u) ** n - 1
        likely = mpmath.exp(
            deviation * mpmath.sqrt(number) * u + number * u**2 / (1 - u)
        )
        classical = number * u / (1 - number * u) if number * u < 1 else None
        failure = 2 * mpmath.exp(-(deviation**2) * (1 - u) ** 2 / 2)
    if worst < 1e300:
        assert summation.compound(n, 2.0**-p) == pytest.approx(float(worst), rel=1e-12)
    value = summation.gamma_probabilistic(n, 2.0**-p, 2.5)
    assert value == pytest.approx(float(likely - 1), rel=1e-12)
    found = summation.failure_probability(2.5, 2.0**-p)
    assert found == pytest.approx(float(failure), rel=1e-12)
    if classical is not None:
        assert summation.gamma(n, 2.0**-p) == pytest.approx(float(classical), rel=1e-14)
        assert summation.compound(n, 2.0**-p) <= summation.gamma(n, 2.0**-p)


def test_deviation_and_failure_probability_are_inverse():
    for probability, u, terms in itertools.product(
        (0.5, 1e-3, 1e-9), (2.0**-4, 2.0**-24), (1, 1000)
    ):
        deviation = summation.lambda_for(probability, u, terms=terms)
        found = summation.failure_probability(deviation, u, terms=terms)
        assert found == pytest.approx(probability, rel=1e-12)


def test_directed_and_stochastic_modes_double_the_unit():
    for mode in ("toward_zero", "to_odd", "stochastic", lp.RoundingMode.STOCHASTIC):
        assert summation.gamma(5, 2.0**-8, mode=mode) == summation.gamma(5, 2.0**-7)
    stochastic = summation.gamma_probabilistic(9, 2.0**-8, 3.0, mode="stochastic")
    assert stochastic == summation.gamma_probabilistic(9, 2.0**-7, 3.0)
    leading = 3.0 * math.sqrt(9) * 2.0**-7
    assert stochastic == pytest.approx(leading, rel=0.06)


def test_formats_names_and_dtypes_are_accepted():
    for u in ("bfloat16", torch.bfloat16, lp.Format(precision=8, emax=127)):
        assert summation.gamma(9, u) == summation.gamma(9, 2.0**-8)
    bound = summation.dot_error_bound(9, "bfloat16")
    assert bound.factor == summation.gamma(9, 2.0**-8)
    assert 0 < bound.underflow < 2.0**-128


def test_overflow_of_the_worst_case_is_infinite():
    assert summation.compound(10**9, 2.0**-4) == math.inf
    assert summation.gamma_probabilistic(10**9, 2.0**-1, 5.0) == math.inf


# ---- Stochastic rounding obeys its probabilistic bound


@pytest.mark.parametrize(("order", "block"), ORDERS[:2] + ORDERS[3:])
def test_stochastic_sums_fail_no_more_often_than_allowed(order, block):
    """200 sums allowed to fail with probability 1e-4 each: 2 % that any one does.

    The seed is fixed and the union bound is loose, so none does.
    """
    rng = random.Random(4)
    p, n = 8, 64
    chance = 1e-4
    deviation = summation.lambda_for(chance, 2.0**-p, terms=n, mode="stochastic")
    bound = summation.dot_error_bound(
        n,
        2.0**-p,
        mode="stochastic",
        order=order,
        block_size=block,
        kind="probabilistic",
        lambda_=deviation,
    )
    assert bound.failure_probability == pytest.approx(chance)
    for _ in range(200):
        a, b = operands(rng, n, 4, "positive"), operands(rng, n, 4, "positive")
        computed = dot(a, b, p, order=order, block=block, mode="stochastic", rng=rng)
        error, size = error_and_size(a, b, computed)
        assert error <= Fraction(bound.error(float(size)))


def test_nearest_violates_the_model_where_additions_stagnate():
    """The probabilistic bound is no theorem for nearest: equal positive terms."""
    p, n, u = 8, 1000, 2.0**-8
    a = b = [Fraction(1)] * n
    computed = dot(a, b, p)
    assert computed == 256
    error, size = error_and_size(a, b, computed)
    model = summation.dot_error_bound(n, u, kind="probabilistic", lambda_=4.0)
    worst = summation.dot_error_bound(n, u, kind="compound")
    assert summation.failure_probability(4.0, u) < 1e-3
    assert Fraction(model.error(float(size))) < error
    assert error <= Fraction(worst.error(float(size)))


# ---- Results and errors


def test_bound_applies_to_tensors_and_prints():
    bound = summation.dot_error_bound(3, 2.0**-4)
    sizes = torch.tensor([0.0, 1.0])
    assert bound.error(sizes).tolist() == [0.0, pytest.approx(bound.factor)]
    assert str(bound).startswith("|error| <= 0.230769 * sum |a_k b_k| (gamma, 3 r")
    likely = summation.dot_error_bound(3, "e4m3", kind="probabilistic")
    assert "fails with probability <= 0.01" in str(likely)
    assert hash(bound) == hash(summation.dot_error_bound(3, 2.0**-4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summation.gamma(256, "bfloat16"), r"n u = 1 .*gamma_probabilistic"),
        (lambda: summation.gamma(-1, 0.1), "n must be 0 or more, got -1"),
        (lambda: summation.gamma(1, 0.0), r"must lie in \(0, 1\)"),
        (lambda: summation.gamma(1, math.nan), r"must lie in \(0, 1\)"),
        (lambda: summation.gamma(1, "e4m3", mode="up"), "unknown rounding mode 'up'"),
        (
            lambda: summation.gamma_probabilistic(2, 0.1, -1.0),
            "lambda_ must be nonnegative",
        ),
        (
            lambda: summation.gamma_probabilistic(2, 0.5, mode="stochastic"),
            "precision of two bits or more",
        ),
        (lambda: summation.lambda_for(0.0, 0.1), "probability must lie"),
        (lambda: summation.failure_probability(math.nan, 0.1), "lambda_ must be"),
        (
            lambda: summation.roundings_per_term(4, order="random"),
            "order must be 'sequential'",
        ),
        (
            lambda: summation.roundings_per_term(4, product="rounded"),
            "product must be 'exact'",
        ),
        (
            lambda: summation.roundings_per_term(4, order="blocked"),
            "order='blocked' needs block_size",
        ),
        (
            lambda: summation.roundings_per_term(4, block_size=2),
            "block_size needs order='blocked'",
        ),
        (lambda: summation.dot_error_bound(4, 0.1, kind="best"), "kind must be"),
        (
            lambda: summation.dot_error_bound(4, 0.1, lambda_=1.0),
            "lambda_ needs kind='probabilistic'",
        ),
        (
            lambda: summation.dot_error_bound(
                4, 0.1, product="accumulator", product_u=0.1
            ),
            "product_u does not go with",
        ),
        (
            lambda: summation.dot_error_bound(
                4, 0.1, mode="toward_zero", kind="probabilistic"
            ),
            "rounds with a bias",
        ),
        (
            lambda: summation.dot_error_bound(
                4, 0.1, mode="stochastic_equal", kind="probabilistic"
            ),
            "rounds with a bias",
        ),
    ],
)
def test_bad_input_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_types_are_explained():
    with pytest.raises(TypeError, match="n must be an int, got float"):
        summation.gamma(2.0, 0.1)
    with pytest.raises(TypeError, match="u must be a format or a unit roundoff"):
        summation.gamma(2, True)
