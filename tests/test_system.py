"""`System`, the rational reference for any base: the paper's numbers N2 and N3."""

import math
import operator
from fractions import Fraction
from itertools import pairwise

import pytest

from lowprec.formats import Format, System

# F(beta, t, emin, emax): count of values, smallest positive, smallest normal, largest.
# Specification lowprec_sgd.md, section 7.1, check N2.
_N2 = [
    ((2, 3, -2, 3), 28, Fraction(1, 32), Fraction(1, 8), Fraction(7)),
    ((10, 2, -1, 1), 280, Fraction(1, 1000), Fraction(1, 100), Fraction(99, 10)),
    ((3, 2, -1, 2), 27, Fraction(1, 27), Fraction(1, 9), Fraction(8)),
]
_SMALL = [
    (2, 3, -2, 3),
    (2, 1, -2, 3),
    (2, 4, -3, 3),
    (3, 2, -1, 2),
    (3, 1, 0, 1),
    (10, 1, -1, 1),
]
_NAMES = {
    "rn": "nearest_even",
    "rz": "toward_zero",
    "rd": "toward_negative",
    "ru": "toward_positive",
}


@pytest.mark.parametrize(("parameters", "count", "positive", "normal", "largest"), _N2)
def test_n2_elements(parameters, count, positive, normal, largest):
    system = System(*parameters)
    values = system.values()
    assert len(values) == count
    assert values[0] == 0
    assert values[1] == positive == system.smallest_positive
    assert values[-1] == largest == system.max
    assert system.smallest_normal == normal
    assert normal in values


@pytest.mark.parametrize("parameters", _SMALL, ids=str)
def test_values_are_the_definition(parameters):
    beta, t, emin, emax = parameters
    defined = {
        m * Fraction(beta) ** (e - t)
        for m in range(beta**t)
        for e in range(emin, emax + 1)
    }
    values = System(*parameters).values()
    assert values == sorted(defined)
    count = (beta - 1) * beta ** (t - 1) * (emax - emin + 1) + beta ** (t - 1)
    assert len(values) == count


def _neighbours(x, values):
    below = max(value for value in values if value <= x)
    above = min(value for value in values if value >= x)
    return below, above


def _by_search(x, mode, system, values):
    """Round a number inside the range by looking at its two neighbours."""
    below, above = _neighbours(x, values)
    if below == above:
        return below
    toward = {"rd": below, "ru": above, "rz": below if x > 0 else above}
    if mode != "rn":
        return toward[mode]
    if x - below != above - x:
        return below if x - below < above - x else above
    # A tie goes to the even multiple of the quantum of the binade that holds x.
    quantum = above - below
    return below if (below / quantum) % 2 == 0 else above


@pytest.mark.parametrize("mode", _NAMES)
@pytest.mark.parametrize("parameters", _SMALL, ids=str)
def test_round_takes_the_right_neighbour(parameters, mode):
    system = System(*parameters)
    positive = system.values()
    values = [-value for value in reversed(positive[1:])] + positive
    for low, high in pairwise(values):
        for k in range(9):
            x = low + (high - low) * Fraction(k, 8)
            expected = _by_search(x, mode, system, values)
            assert system.round(x, mode) == expected, x
            assert system.round(x, _NAMES[mode], "saturate") == expected, x


@pytest.mark.parametrize("parameters", _SMALL, ids=str)
def test_overflow(parameters):
    beta, t, _, emax = parameters
    system, tiny = System(*parameters), Fraction(1, 10**9)
    threshold = Fraction(beta) ** emax * (1 - Fraction(beta) ** -t / 2)
    largest, infinity = system.max, math.inf
    assert system.round(threshold, "rn") == infinity
    assert system.round(-threshold, "rn") == -infinity
    assert system.round(threshold - tiny, "rn") == largest
    for x in (largest + tiny, threshold, largest * 100):
        assert system.round(x, "rz") == system.round(x, "rd") == largest
        assert system.round(-x, "rz") == system.round(-x, "ru") == -largest
        assert system.round(x, "ru") == infinity
        assert system.round(-x, "rd") == -infinity
        for mode in _NAMES:
            assert system.round(x, mode, "saturate") == largest
            assert system.round(-x, mode, "saturate") == -largest


# Specification N3, exhaustive over F(2, 4, -3, 3).
_OPERATIONS = [operator.add, operator.sub, operator.mul, operator.truediv]


def _n3_results(system):
    """Yield every exact result of two elements within the range."""
    positive = system.values()
    values = [-value for value in reversed(positive[1:])] + positive
    for operation in _OPERATIONS:
        for a in values:
            for b in values:
                if operation is operator.truediv and b == 0:
                    continue
                exact = operation(a, b)
                if exact != 0 and abs(exact) <= system.max:
                    yield operation, exact


def test_n3_relative_errors():
    system = System(2, 4, -3, 3)
    results = set(_n3_results(system))
    worst = dict.fromkeys(_NAMES, Fraction(0))
    below_normal = set()
    for operation, exact in results:
        errors = {
            mode: abs(system.round(exact, mode) - exact) / abs(exact) for mode in _NAMES
        }
        if abs(exact) >= system.smallest_normal:
            worst = {mode: max(worst[mode], errors[mode]) for mode in _NAMES}
        elif operation in (operator.add, operator.sub):
            assert set(errors.values()) == {0}, exact
        else:
            below_normal.add(errors["rn"])
    unit_roundoff = Fraction(1, 16)
    assert worst["rn"] == unit_roundoff / (1 + unit_roundoff) == Fraction(1, 17)
    assert round(float(worst["ru"]), 6) == round(float(worst["rd"]), 6) == 0.122807
    assert round(float(worst["rz"]), 6) == 0.109565
    assert all(error < Fraction(1, 8) for error in worst.values())
    assert Fraction(1, 3) in below_normal


@pytest.mark.parametrize("parameters", [p for p in _SMALL if p[0] == 2], ids=str)
def test_format_of_a_binary_system(parameters):
    _, t, emin, emax = parameters
    system, target = System(*parameters), Format.from_system(t, emin, emax)
    assert [x for x in target.values() if x >= 0] == system.values()
    assert target.smallest_normal == system.smallest_normal
    assert target.smallest_subnormal == system.smallest_positive
    assert target.max == system.max


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, 2, 0, 1), ValueError, "beta must be 2 or more, got 1"),
        ((2, 0, 0, 1), ValueError, "t must be 1 or more, got 0"),
        ((2, 2, 3, 1), ValueError, "emin=3 must not be above emax=1"),
        ((2.0, 2, 0, 1), TypeError, "beta must be an int, got 2.0 of type float"),
        ((2, True, 0, 1), TypeError, "t must be an int, got True of type bool"),
    ],
)
def test_refused_systems(arguments, error, text):
    with pytest.raises(error, match=text):
        System(*arguments)


def test_refused_roundings():
    system = System(2, 3, -2, 3)
    with pytest.raises(ValueError, match=r"mode must be one of .*'nearest'"):
        system.round(Fraction(1, 3), "nearest")
    with pytest.raises(ValueError, match="overflow one of"):
        system.round(Fraction(1, 3), "rn", "wrap")
    for x in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match="takes finite numbers"):
            system.round(x)
