"""Section 3.2: bounds on r and s, against exact roundings; what the paper prints."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from theory.fraction_rounding import fl

from lowprec.theory import sgd, summation

U = 2.0**-8  # bfloat16
MODES = ["nearest_even", "toward_zero", "toward_positive", "toward_negative"]


def norm(values):
    return math.sqrt(math.fsum(float(x) ** 2 for x in values))


def random_vector(generator, scale):
    raw = [generator.gauss(0, scale) for _ in range(5)]
    return [fl(Fraction(x), 8) for x in raw]


@pytest.mark.parametrize("mode", MODES)
def test_relative_error_over_all_products_sums_and_quotients(mode):
    """N3 of the specification: F(2, 4, -3, 3), exhaustive over significands."""
    values = [Fraction(m) * Fraction(2) ** e for m in range(8, 16) for e in range(4)]
    worst = Fraction(0)
    for x in values:
        for y in values:
            for exact in (x + y, x - y, x * y, x / y):
                if exact != 0:
                    error = abs(fl(exact, 4, mode) - exact) / abs(exact)
                    worst = max(worst, error)
    bound = sgd.relative_error_bound(2.0**-4, mode=mode)
    if mode == "nearest_even":
        assert worst == Fraction(1, 17)
        assert bound == 1 / 17
    else:
        assert 0.1 < worst < bound == 1 / 8


def test_e7_printed_bound_is_twice_too_large_to_nearest():
    u = 2.0**-4
    printed = sgd.relative_error_bound(u, form="as_printed")
    corrected = sgd.relative_error_bound(u)
    assert printed == 1 / 8
    assert printed == pytest.approx(2 * (1 + u) * corrected, rel=1e-15)
    # Read as the unit roundoff 2^-p, it would be violated in the other directions.
    exact = Fraction(143, 128)
    assert abs(fl(exact, 4, "toward_zero") / exact - 1) > u


@pytest.mark.parametrize("mode", MODES)
def test_update_error_in_one_and_two_roundings(mode):
    generator = random.Random(0)
    for _ in range(250):
        w = random_vector(generator, 1.0)
        g = random_vector(generator, 10 ** generator.uniform(-3, 1))
        exact = [x - y / 8 for x, y in zip(w, g, strict=True)]
        stored = [fl(x, 8, mode) for x in exact]
        error = norm(x - y for x, y in zip(stored, exact, strict=True))
        slack = 1 + 1e-14
        assert error <= sgd.update_error_bound(norm(exact), U, mode=mode) * slack
        limit = sgd.stored_update_error_bound(norm(stored), U, mode=mode)
        assert error <= limit * slack
        # A product with more digits than the format makes the first rounding matter.
        eta = Fraction(13, 128)
        exact = [x - eta * y for x, y in zip(w, g, strict=True)]
        twice = [
            fl(x - fl(eta * y, 8, mode), 8, mode) for x, y in zip(w, g, strict=True)
        ]
        error = norm(x - y for x, y in zip(twice, exact, strict=True))
        bound = sgd.update_error_bound(
            norm(exact), U, mode=mode, step_norm=float(eta) * norm(g)
        )
        assert error <= bound * slack


def test_nearest_update_bound_is_attained():
    exact = 1 + Fraction(2) ** -8
    error = abs(fl(exact, 8) - exact)
    bound = sgd.update_error_bound(float(exact), U)
    assert float(error) == pytest.approx(bound, rel=1e-15)


def test_e3_printed_update_bound_is_false():
    w, step = Fraction(4000), Fraction(8)
    s = fl(w - step, 8) - (w - step)
    assert s == 8
    assert s > sgd.update_error_bound(4000.0, "bfloat16", form="as_printed")
    assert s <= sgd.update_error_bound(float(w - step), "bfloat16")
    # From w = 0 the printed bound allows no error at all.
    step = 1 + Fraction(2) ** -9
    assert fl(-step, 8) != -step
    assert sgd.update_error_bound(0.0, U, form="as_printed") == 0


def test_e3_printed_gradient_bound_is_false():
    size, c = 100.0, 4.0
    relative = c * U * (1 - 1e-12)
    assert relative * size <= sgd.gradient_error_bound(size, U, c=c)
    assert relative * size > sgd.gradient_error_bound(size, U, c=c, form="as_printed")


@pytest.mark.parametrize("p", [4, 8, 11, 24])
def test_e4_no_relative_bound_survives_cancellation(p):
    h = Fraction(2) ** (1 - p)
    x, y = (1 + h, Fraction(1)), (1 + h, -(1 + 2 * h))
    products = [fl(a * b, p) for a, b in zip(x, y, strict=True)]
    computed = fl(products[0] + products[1], p)
    exact = x[0] * y[0] + x[1] * y[1]
    assert computed == 0
    assert exact == h * h
    absolute = sum(abs(a * b) for a, b in zip(x, y, strict=True))
    bound = summation.dot_error_bound(2, 2.0**-p, product="accumulator")
    assert abs(computed - exact) <= bound.error(float(absolute))


def test_direction_error_is_sharp():
    generator = np.random.default_rng(0)
    for _ in range(300):
        g = generator.standard_normal(4)
        epsilon = generator.uniform(0, 0.999)
        error = generator.standard_normal(4)
        error *= epsilon * np.linalg.norm(g) / np.linalg.norm(error)
        moved = g + error
        r = moved / np.linalg.norm(moved) - g / np.linalg.norm(g)
        bound = sgd.direction_error_bound(epsilon)
        assert np.linalg.norm(r) <= bound * (1 + 1e-12)
        assert bound <= math.sqrt(2) * epsilon * (1 + 1e-14)
        # Tangent to the sphere of radius epsilon: the largest angle.
        angle = math.asin(epsilon)
        tangent = np.array([math.cos(angle), math.sin(angle)])
        moved = math.cos(angle) * tangent
        assert np.linalg.norm(moved - [1, 0]) == pytest.approx(epsilon, abs=1e-14)
        assert np.linalg.norm(tangent - [1, 0]) == pytest.approx(bound, rel=1e-12)


def test_direction_error_limits():
    edge = math.sqrt(3) / 2
    assert sgd.direction_error_bound(edge * (1 - 1e-9)) < 1
    assert sgd.direction_error_bound(edge * (1 + 1e-9)) > 1
    assert sgd.direction_error_bound(0.0) == 0
    assert sgd.direction_error_bound(1e-300) == pytest.approx(1e-300, rel=1e-15)
    many = sgd.direction_error_bound(torch.tensor([0.6, 1.0, 9.0]))
    assert many[1:].tolist() == [2.0, 2.0]
    one = sgd.direction_error_bound(0.6, normalisation_error=0.01)
    assert one == pytest.approx(math.sqrt(0.4) + 0.01, rel=1e-15)


def test_formats_names_and_dtypes_give_the_same_bound():
    expected = sgd.update_error_bound(1.0, 2.0**-8)
    for u in ("bfloat16", torch.bfloat16, Fraction(1, 256)):
        assert sgd.update_error_bound(1.0, u) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, U), "updated_norm must be nonnegative"),
        ((math.nan, U), "updated_norm must be nonnegative"),
        ((1.0, 1.0), r"unit roundoff must lie in \(0, 1\), got 1.0"),
        ((1.0, 8), r"unit roundoff must lie in \(0, 1\), got 8.0"),
    ],
)
def test_bad_input_is_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        sgd.update_error_bound(*arguments)


def test_unknown_mode_is_explained():
    with pytest.raises(ValueError, match="unknown rounding mode 'sideways'"):
        sgd.relative_error_bound(U, mode="sideways")
