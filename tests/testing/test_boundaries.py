"""Boundary inputs have every value, every tie, and what is beside them."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from tables import FORMATS, name_of

import lowprec as lp
from lowprec.arithmetic import fits
from lowprec.formats import any_format
from lowprec.testing import boundary_blocks, boundary_inputs, exact_block_scale
from lowprec.testing._oracle import simplest

SMALL = [
    *(fmt for fmt in lp.formats() if fmt.bits <= 8),
    *(fmt for fmt in FORMATS if fmt.precision <= 8 and fmt.emax - fmt.emin < 100),
    *(lp.format(f"binary8p{p}{kind}") for p in (1, 2, 4, 7) for kind in ("se", "sf")),
    *(lp.format(f"binary8p{p}{kind}") for p in (1, 2, 5, 8) for kind in ("ue", "uf")),
    *(lp.format(name) for name in ("fixed8f3", "fixed6f9", "ufixed7f2", "hfp8_e4m3")),
    *map(any_format, ["posit8", "posit8_0", "posit6_3", "ternary", "int_bits(3)"]),
    lp.Levels([0.1, 0.7, 0.7000000000000001, 3.0]),
    lp.Levels([-3.0, -2.5, -0.5]),
]
LARGE = ["binary16", "bfloat16", "int16", "uint16", "binary16p5se", "posit16", "e7m8"]
UNSIGNED = ["binary12p6ue", "ufixed12f3", "binary12p1uf", "binary13p4ue"]


def ties(target):
    """The midpoints of neighbours, and half a step beyond both ends."""
    if not isinstance(target, lp.Format):
        return list(target.table.ties)
    values = [Fraction(value) for value in target.values()]
    middles = [(a + b) / 2 for a, b in pairwise(values)]
    above = values[-1] + Fraction(target.ulp(target.max)) / 2
    below = values[0] - Fraction(target.ulp(target.min)) / 2
    return [*middles, above, below]


def defined(target, dtype):
    """Everything that the definition lists and the carrier has."""
    listed = target.values if isinstance(target, lp.Levels) else target.values()
    every = [simplest(Fraction(value)) for value in [*listed, *ties(target)]]
    x = torch.tensor([v for v in every if isinstance(v, float)], dtype=torch.float64)
    kept = x[x.to(dtype).double() == x].to(dtype)
    up = torch.full_like(kept, math.inf)
    return torch.cat([kept, kept.nextafter(up), kept.nextafter(-up)])


def check(target, dtype, **options):
    found = boundary_inputs(target, dtype, **options)
    assert found.isnan().sum() == 1
    assert math.isnan(found[-1])
    assert found[~found.isnan()].isinf().sum() == 2
    zeros = found[found == 0]
    assert zeros.signbit().tolist() == [False, True]
    numbers = found[~found.isnan() & (found != 0)]
    assert torch.equal(numbers, numbers.unique())
    wanted = defined(target, dtype)
    place = torch.searchsorted(numbers, wanted).clamp(max=len(numbers) - 1)
    missing = wanted[(numbers[place] != wanted) & (wanted != 0)]
    assert missing.tolist() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", SMALL, ids=name_of)
def test_small_formats_are_complete(target, dtype):
    if fits(target, dtype):
        check(target, dtype)


@pytest.mark.parametrize("name", UNSIGNED[:3])
def test_unsigned_formats_of_12_bits_are_complete(name):
    check(lp.format(name), torch.float64)


@pytest.mark.parametrize("name", [LARGE[0], UNSIGNED[3], "posit14"])
def test_wider_formats_are_complete_when_asked(name):
    check(any_format(name), torch.float64, most_values=2**16)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_every_format_of_16_bits(name):
    check(any_format(name), torch.float64, most_values=2**16)


@pytest.mark.parametrize("name", [*LARGE, "binary64", "e8m22", "int32"])
def test_wide_formats_have_their_ends(name):
    target = any_format(name)
    found = set(boundary_inputs(target, torch.float64).tolist())
    assert len(found) < 200_000
    ends = {target.max, target.min, 1.0}
    tie = target.max + target.ulp(target.max) / 2 if name != "posit16" else 1.0
    assert ends | ({tie} if math.isfinite(tie) else set()) <= found
    below = math.nextafter(float(target.max), 0)
    assert below in found


def test_a_largest_significand_that_is_not_all_ones_is_there():
    target = lp.Format(precision=14, emax=9, max_significand=12345, encoding="ieee")
    top = float(target.max)
    step = float(target.ulp(top))
    found = set(boundary_inputs(target, torch.float64, most_values=4).tolist())
    assert {top, top - step / 2, top + step / 2} <= found


def test_fixed_point_goes_on_where_it_wraps():
    found = set(boundary_inputs("int8", torch.float64).tolist())
    assert {128.0, 128.5, 200.5, 255.5, 256.0, -300.5} <= found


@pytest.mark.parametrize("name", [one.name for one in lp.block_formats()])
def test_blocks_lie_at_the_ends_of_scales(name):
    target = lp.block_format(name)
    blocks = boundary_blocks(target, torch.float64)
    assert blocks.shape[1] == target.block_size
    assert bool(blocks.isfinite().all())
    tops = blocks.abs().amax(1)
    assert len(tops.unique()) == len(tops)
    scales = {exact_block_scale([top], target) for top in tops.tolist()}
    if isinstance(target.scale, lp.SharedExponent):
        assert {2.0**-127, 2.0**127, 2.0**-126, 0.5, 1.0} <= scales
    else:
        assert {target.scale.max, target.scale.smallest_subnormal} <= scales
    assert len(scales) >= 8
