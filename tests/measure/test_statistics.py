"""TensorStatistics, against the same sums and counts in exact rationals."""

import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import FORMATS

import lowprec as lp
from lowprec.measure import TensorStatistics
from lowprec.measure._statistics import spread

SMALL = [one for one in FORMATS if one.precision <= 24]
NAMES = [one.name for one in SMALL]


def inputs(target, count=300):
    generator = torch.Generator().manual_seed(5)
    low = math.log2(float(target.smallest_subnormal)) - 3
    high = math.log2(float(target.max)) + 2
    low, high = max(low, -1000), min(high, 1000)
    exponents = low + (high - low) * torch.rand(count, generator=generator).double()
    x = torch.randn(count, generator=generator).double() * torch.exp2(exponents)
    x[:5] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    return x.abs() if not target.signed else x


@pytest.mark.parametrize("target", SMALL, ids=NAMES)
@pytest.mark.parametrize("saturation", ["none", "finite"])
def test_sums_and_counts_are_those_of_exact_rationals(target, saturation):
    exact = inputs(target)
    actual = lp.round(exact, lp.Rounding(target, saturation=saturation))
    statistics = TensorStatistics()
    statistics.update(actual, exact, target)

    counts, exponents = Counter(), Counter()
    signal = noise = total = largest = Fraction(0)
    for a, e in zip(actual.tolist(), exact.tolist(), strict=True):
        counts["nonfinite"] += not math.isfinite(a)
        counts["zeros"] += e == 0
        if math.isfinite(e):
            counts["overflow"] += not math.isfinite(a)
            counts["underflow"] += a == 0 and e != 0
            if e:
                exponents[math.frexp(e)[1] - 1] += 1
        counts["saturation"] += abs(a) == target.max and abs(e) > target.max
        counts["subnormal"] += 0 < abs(a) < target.smallest_normal
        if math.isfinite(a) and math.isfinite(e):
            error = abs(Fraction(a) - Fraction(e))
            distance = error / Fraction(target.ulp(e))
            signal += Fraction(e) ** 2
            noise += error**2
            total += distance
            largest = max(largest, distance)
    for name in ("nonfinite", "zeros", "overflow", "underflow", "saturation"):
        assert getattr(statistics, name) == counts[name], name
    assert statistics.subnormal == counts["subnormal"]
    assert statistics.exponents == exponents
    assert statistics.max_ulps == pytest.approx(float(largest), rel=1e-12)
    assert statistics.ulps == pytest.approx(float(total), rel=1e-12)
    if signal < Fraction(2) ** 1000:
        assert statistics.signal == pytest.approx(float(signal), rel=1e-12)
        assert statistics.noise == pytest.approx(float(noise), rel=1e-12)
        ratio = math.sqrt(noise / signal)
        assert statistics.relative_error == pytest.approx(ratio, rel=1e-12)
        if noise:
            decibels = -20 * math.log10(ratio)
            assert statistics.signal_to_noise == pytest.approx(decibels, rel=1e-9)


def test_nearest_rounding_errs_by_half_a_unit_at_most():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    statistics = TensorStatistics()
    statistics.update(lp.round(x, "e4m3fn"), x, lp.format("e4m3fn"))
    assert 0.45 < statistics.max_ulps <= 0.5
    assert 0.2 < statistics.mean_ulps < 0.3


@given(total=st.integers(1, 5000), count=st.integers(1, 400))
@settings(deadline=None)
def test_sampled_indices_differ_and_reach_everywhere(total, count):
    index = spread(total, count)
    assert index.numel() == min(total, count)
    assert index.unique().numel() == index.numel()
    assert (index >= 0).all()
    assert (index < total).all()
    if index.numel() > 8:  # no eighth of the tensor is left out
        assert (index * 8 // total).unique().numel() == 8 or total < 16


def test_samples_of_a_matrix_meet_all_its_columns():
    index = spread(64 * 64, 512)
    assert (index % 64).unique().numel() == 64
    assert (index // 64).unique().numel() == 64


def test_the_sample_bounds_what_is_compared():
    x = torch.linspace(-3, 3, 10_000)
    statistics = TensorStatistics()
    statistics.update(lp.round(x, "e5m2"), x, lp.format("e5m2"), sample=100)
    assert (statistics.elements, statistics.compared) == (10_000, 100)
    assert sum(statistics.exponents.values()) + statistics.zeros == 100
    full = TensorStatistics()
    full.update(lp.round(x, "e5m2"), x, lp.format("e5m2"))
    assert statistics.signal_to_noise == pytest.approx(full.signal_to_noise, abs=1.0)


def test_merging_calls_is_seeing_all_at_once():
    x, target = inputs(lp.format("e5m2")), lp.format("e5m2")
    y = lp.round(x, target)
    whole, first, second = TensorStatistics(), TensorStatistics(), TensorStatistics()
    whole.update(y, x, target)
    first.update(y[:100], x[:100], target)
    second.update(y[100:], x[100:], target)
    first.merge(second)
    first.count_additions(5, 2)
    assert (first.additions, first.swamped) == (5, 2)
    for name, value in vars(whole).items():
        if name not in ("additions", "swamped"):
            assert getattr(first, name) == pytest.approx(value, rel=1e-12), name


def test_means_are_over_elements_that_have_an_error():
    statistics = TensorStatistics()
    exact, actual = [math.inf, 1.09375, 1.0], [448.0, 1.0625, math.inf]
    statistics.update(torch.tensor(actual), torch.tensor(exact), lp.format("e4m3fn"))
    assert (statistics.compared, statistics.measured) == (3, 1)
    assert statistics.mean_ulps == 0.25


def test_no_errors_and_no_values():
    empty = TensorStatistics()
    empty.update(torch.ones(0), torch.ones(0), lp.format("e5m2"))
    assert (empty.relative_error, empty.mean_ulps) == (0.0, 0.0)
    assert empty.signal_to_noise == math.inf
    lost = TensorStatistics()
    lost.update(torch.ones(2), torch.zeros(2), None)
    assert lost.relative_error == math.inf
    assert lost.signal_to_noise == -math.inf
    assert math.isnan(lost.mean_ulps)
    with pytest.raises(ValueError, match=r"the same shape, got \(2,\) and \(3,\)"):
        lost.update(torch.ones(2), torch.ones(3), None)
