"""Rounding to every format of at most 8 bits, exhaustively, in every mode."""

import math

import numpy as np
import pytest
import torch
from format_tables import SMALL
from table_oracle import ValueTable
from tables import CARRIERS, DETERMINISTIC, MODES, SATURATIONS, VARIANTS, name_of

import lowprec as lp
from lowprec import kernels
from lowprec.arithmetic import fits
from lowprec.random import philox_words
from lowprec.testing import assert_bit_equal, exact_round

SEED = 20261126


def p3109(bits):
    """Every P3109 format of a width."""
    return [
        lp.format(f"binary{bits}p{precision}{sign}{domain}")
        for sign in "su"
        for precision in range(1, bits + (sign == "u"))
        for domain in "ef"
    ]


def fixed_point(bits):
    """Fixed point of a width, with the point inside, at an end and outside."""
    return [
        lp.Format.fixed_point(bits, f, signed=signed, symmetric=symmetric, name=name)
        for f in (-2, 0, 3, bits, 12)
        for signed, symmetric in [(True, False), (True, True), (False, False)]
        for name in [f"{'us'[signed]}{'y' * symmetric}{bits}f{f}"]
        if bits > signed and f >= -bits
    ]


NARROW = [one for one in SMALL if one.precision > 1 or one.encoding != "ieee"]
FAMILIES = [
    *[format for bits in range(3, 9) for format in p3109(bits)],
    *[format for bits in (1, 2, 3, 5, 8) for format in fixed_point(bits)],
    *[lp.format(name) for name in ("e8m0fnu", "hfp8_e4m3", "e3m2b5", "e4m3b-2")],
]
EVERY = [*(one for one in NARROW if one.bits <= 8), *FAMILIES]


def inputs(target, carrier):
    """Values, midpoints, neighbours in the carrier of both, the ends, specials."""
    values = torch.tensor(target.values(), dtype=torch.float64)
    middles = values[:-1] / 2 + values[1:] / 2
    quarter = values[:-1] * 0.75 + values[1:] / 4
    last = values[-1:]
    beyond = last + (last - values[-2:-1]) * torch.arange(1, 6) / 2
    below = values[:1] * torch.tensor([1 + 2.0**-9, 1.5, 2.0, 3.0])
    x = torch.cat([values, middles, quarter, beyond, below]).to(carrier)
    x = torch.cat([x, x.nextafter(torch.full_like(x, math.inf))])
    x = torch.cat([x, x.nextafter(torch.full_like(x, -math.inf))])
    limits = torch.finfo(carrier)
    ends = [0.0, limits.tiny, limits.tiny * limits.eps, limits.max, math.inf]
    x = torch.cat([x, torch.tensor(ends, dtype=carrier)])
    both = torch.cat([x, -x, torch.tensor([math.nan], dtype=carrier)])
    return both


def check(target):
    """Compare every deterministic mode and saturation in both carriers."""
    table = ValueTable(target)
    for carrier in CARRIERS:
        if not fits(target, carrier):
            continue
        x = inputs(target, carrier)
        for mode in DETERMINISTIC:
            for saturation in SATURATIONS:
                expected = table.rounded(x.double().numpy(), mode, saturation)
                actual = lp.round(x, target, mode, saturation=saturation)
                try:
                    assert_bit_equal(actual, torch.from_numpy(expected).to(carrier))
                except AssertionError as error:
                    raise AssertionError(f"{mode} {saturation}: {error}") from None


@pytest.mark.parametrize("target", EVERY, ids=name_of)
def test_every_value_and_midpoint(target):
    check(target)


@pytest.mark.parametrize("target", EVERY[::4], ids=name_of)
def test_every_value_and_midpoint_portably(target):
    with kernels.using("portable"):
        check(target)


WIDE = [
    *("binary16", "bfloat16", "dlfloat16", "int16", "uint16", "fixed16f8"),
    *("binary12p4", "binary16p11", "binary16p1f", "binary16p16u", "binary16p8uf"),
    *("e5m10b7", "ufixed13f20"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_every_value_and_midpoint_of_16_bits(name):
    target = lp.format(name)
    if fits(target, torch.float64):
        check(target)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("target", EVERY[::7], ids=name_of)
def test_stochastic_modes(target):
    x = inputs(target, torch.float64)
    x = x[:: max(len(x) // 60, 1)]
    words = philox_words(torch.arange(len(x)), torch.tensor(SEED)).tolist()
    for mode in MODES[7:]:
        for variant in VARIANTS if mode is MODES[7] else VARIANTS[:1]:
            for bits in (3, 32):
                rounding = lp.Rounding(target, mode, "none", bits, variant)
                expected = [
                    exact_round(value, rounding, word)
                    for value, word in zip(x.tolist(), words, strict=True)
                ]
                actual = lp.round(x, rounding, seed=SEED)
                assert_bit_equal(actual, torch.tensor(expected, dtype=x.dtype))


@pytest.mark.parametrize("target", EVERY[::5], ids=name_of)
def test_the_oracles_agree(target):
    table, x = ValueTable(target), inputs(target, torch.float64)
    x = x[:: max(len(x) // 40, 1)]
    for mode in DETERMINISTIC:
        for saturation in SATURATIONS:
            rounding = lp.Rounding(target, mode, saturation)
            exact = [exact_round(value, rounding) for value in x.tolist()]
            judged = table.rounded(x.numpy(), mode, saturation)
            np.testing.assert_array_equal(judged, exact)
            np.testing.assert_array_equal(
                np.signbit(judged[judged == 0]),
                np.signbit(np.array(exact)[judged == 0]),
            )


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("fraction", [-1, 0, 4])
@pytest.mark.parametrize("signed", [True, False])
def test_wrapping_is_modular(bits, fraction, signed):
    if bits == 1 and signed:
        return
    target = lp.Format.fixed_point(bits, fraction, signed=signed)
    step = target.smallest_subnormal
    counts = torch.arange(-5 * 2**bits, 5 * 2**bits + 1, dtype=torch.float64)
    x = torch.cat([counts, counts + 0.5, counts - 0.25, 2.0 ** torch.arange(50.0)])
    x = torch.cat([x, -x]) * step
    for mode in DETERMINISTIC:
        actual = lp.round(x, target, mode, saturation="wrap")
        assert set(actual.tolist()) <= set(target.values())
        wide = lp.round(x, lp.Format.fixed_point(53, fraction), mode)
        # The difference is exact, and so is fmod.
        assert not np.fmod((wide - actual).numpy(), 2**bits * step).any()
    for special in (math.inf, -math.inf, math.nan):
        y = lp.round(torch.tensor(special), target, saturation="wrap").item()
        ends = {math.inf: target.max, -math.inf: target.min}
        assert y == ends.get(special) or (math.isnan(special) and math.isnan(y))


def test_only_fixed_point_wraps():
    with pytest.raises(ValueError, match="saturation='wrap' needs fixed point"):
        lp.round(torch.ones(2), "e5m2", saturation="wrap")
