"""The gold files: roundings (N1, N8) and dot products (N5), and products (N6)."""

import json
import math
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import lowprec as lp
from lowprec.testing import exact_round, up_probability

DATA = Path(__file__).parent / "data"
MODES = {
    "rn": "nearest_even",
    "rz": "toward_zero",
    "rd": "toward_negative",
    "ru": "toward_positive",
}
ROUNDINGS = json.loads((DATA / "gold_round_dev.json").read_text())
NAMES = list(dict.fromkeys(record["fmt"] for record in ROUNDINGS))
DOTS = json.loads((DATA / "gold_dev.json").read_text())["dot"]


def records_of(name):
    records = [record for record in ROUNDINGS if record["fmt"] == name]
    first = records[0]
    target = lp.Format.from_system(first["t"], first["emin"], first["emax"])
    return target, records


def column(records, key):
    values = [float.fromhex(record[key]) for record in records]
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("suffix", ["", "_sat"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_gold_roundings(name, mode, suffix):
    target, records = records_of(name)
    assert len(records) == 60
    rounding = lp.Rounding(target, MODES[mode], "finite" if suffix else "none")
    x, expected = column(records, "x"), column(records, mode + suffix)
    # `==`: the file does not keep the sign of zero.
    assert bool((lp.round(x, rounding) == expected).all())
    assert [exact_round(value, rounding) for value in x.tolist()] == expected.tolist()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", NAMES)
def test_gold_stochastic_roundings(name):
    # 20 000 draws: .015 is more than 4.2 standard deviations; the seed is fixed.
    draws = 20_000
    target, records = records_of(name)
    records = [record for record in records if "sr_p_away" in record]
    rounding = lp.Rounding(target, "stochastic", "finite")
    x = column(records, "x").unsqueeze(1).expand(-1, draws)
    low = column(records, "sr_toward0").unsqueeze(1)
    away = column(records, "sr_away").unsqueeze(1)
    probability = column(records, "sr_p_away")
    y = lp.round(x, rounding, seed=5)
    assert bool(((y == low) | (y == away)).all())
    inexact = (low != away).squeeze(1)
    frequency = (y == away).double().mean(dim=1)
    assert bool(((frequency - probability).abs()[inexact] < 0.015).all())
    for record in records:
        value = float.fromhex(record["x"])
        stated = Fraction(float.fromhex(record["sr_p_away"]))
        assert 0 <= stated - up_probability(value, rounding) < Fraction(1, 2**32)


@lru_cache
def bfvec(seed, n):
    """The specification's pseudo-random bfloat16 vector (splitmix64)."""
    mask = 2**64 - 1
    values = []
    for k in range(n):
        z = (seed + (k + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        sign = -1 if z & 1 else 1
        significand = 128 + ((z >> 8) & 127)
        values.append(sign * math.ldexp(significand, ((z >> 16) & 15) - 15))
    return tuple(values)


def test_input_vectors():
    assert bfvec(5000, 3) == (2.921875, 3.21875, 9.9375)
    exact = sum(
        Fraction(a) * Fraction(b)
        for a, b in zip(bfvec(5000, 4096), bfvec(5001, 4096), strict=True)
    )
    assert float(exact) == pytest.approx(-358455.3470420586, rel=1e-15)


_CASES = list(dict.fromkeys((r["t"], r["mode"], r["product"]) for r in DOTS))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("t", "mode", "product"), _CASES)
def test_gold_dots(t, mode, product):
    target = lp.Format.from_system(t, -125, 128)
    accumulator = lp.Accumulator(
        lp.Rounding(target, MODES[mode]),
        product={"exact": "exact", "acc": "accumulator"}[product],
    )
    for record in DOTS:
        if (record["t"], record["mode"], record["product"]) != (t, mode, product):
            continue
        n = record["n"]
        a, b = bfvec(record["seed_a"], n), bfvec(record["seed_b"], n)
        expected = float.fromhex(record["value"])
        carriers = [torch.float64] if t > 24 else [torch.float32, torch.float64]
        if n > 1000:  # seconds each with the portable kernel
            carriers = carriers[:1]
        for carrier in carriers:
            x, y = torch.tensor(a, dtype=carrier), torch.tensor(b, dtype=carrier)
            assert lp.dot(x, y, accumulator=accumulator).item() == expected


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("t", [16, 17, 24, 40, 51])
def test_rounding_bfloat16_products_to_16_bits_changes_nothing(t):
    # N6: a product of two 8-bit significands has 16 bits.
    rounding = lp.Rounding(lp.Format.from_system(t, -125, 128))
    a = torch.tensor(bfvec(1, 32 * 40), dtype=torch.float64).reshape(32, 40)
    b = torch.tensor(bfvec(2, 40 * 8), dtype=torch.float64).reshape(40, 8)
    exact, rounded = (
        lp.matmul(a, b, accumulator=lp.Accumulator(rounding, product=product))
        for product in ("exact", "accumulator")
    )
    assert torch.equal(exact, rounded)


@pytest.mark.usefixtures("backend")
def test_one_significand_bit_and_overflow_thresholds():
    # N8.
    one_bit = lp.Format.from_system(1, -6, 8)
    ties = torch.tensor([1.5, 3.0, 6.0, -1.5])
    assert lp.round(ties, one_bit).tolist() == [2.0, 4.0, 8.0, -2.0]
    half = lp.Format.from_system(11, -13, 16)
    threshold = 2.0**16 * (1 - 2.0**-12)
    x = torch.tensor([threshold * (1 - 2.0**-53), threshold], dtype=torch.float64)
    assert lp.round(x, half).tolist() == [65504.0, math.inf]
    assert lp.round(x, half, saturation="finite").tolist() == [65504.0, 65504.0]
