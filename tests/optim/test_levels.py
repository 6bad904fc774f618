"""Levels, nearest and cell on floats and tensors, and scales."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lowprec as lp
from lowprec.optim import cell, nearest, scale_of

SETS = [
    lp.Levels.binary(),
    lp.Levels.ternary(),
    lp.Levels.int_bits(2),
    lp.Levels.int_bits(4),
    lp.Levels.symmetric_int(2),
    lp.Levels.from_levels([0.1, 0.3, 7.25]),
    lp.Levels([2.5]),
]


def test_constructors():
    assert lp.Levels.binary().values == (-1, 1)
    assert lp.Levels.ternary().values == (-1, 0, 1)
    assert lp.Levels.int_bits(2).values == (-2, -1, 0, 1)
    assert lp.Levels.int_bits(3).values == tuple(range(-4, 4))
    assert lp.Levels.symmetric_int(4).values == tuple(range(-8, 9))
    assert lp.Levels.from_levels(torch.tensor([0.5, 2.0])).values == (0.5, 2.0)
    assert lp.Levels([1, 3, 3.5]).min_gap == 0.5


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ([1, -1], ValueError, "strictly increasing"),
        ([-1, -1, 1], ValueError, "drop duplicates"),
        ([-0.0, 0.0], ValueError, "strictly increasing"),
        ([0, math.inf], ValueError, "finite"),
        ([math.nan], ValueError, "finite"),
        ([], ValueError, "at least one"),
        (3.0, TypeError, "iterable"),
        ("12", TypeError, "iterable"),
        ([[-1, 1], [-2, 2]], TypeError, "tensor"),
        (["-1", "1"], TypeError, "numbers"),
    ],
)
def test_bad_levels_are_refused(values, error, text):
    with pytest.raises(error, match=text):
        lp.Levels(values)


@pytest.mark.parametrize("bits", [1, 0, 17])
def test_one_bit_of_an_integer_is_not_binary(bits):
    with pytest.raises(ValueError, match="binary"):
        lp.Levels.int_bits(bits)


@pytest.mark.parametrize("levels", SETS, ids=str)
@given(w=st.floats(-20, 20))
def test_nearest_minimizes_the_exact_distance(levels, w):
    chosen = levels.nearest(w)
    away = [abs(Fraction(w) - Fraction(q)) for q in levels.values]
    assert chosen == max(
        q for q, d in zip(levels.values, away, strict=True) if d == min(away)
    )
    bounds = [-math.inf, *levels.values, math.inf]
    j = levels.cell(w)
    assert bounds[j] <= w < bounds[j + 1]


def points(levels, dtype):
    """Levels, mid-points, and the numbers beside them."""
    exact = [*levels.values, *map(float, levels.midpoints), -9.0, 9.0, 0.0]
    near = torch.tensor(exact, dtype=dtype)
    up = near.nextafter(torch.tensor(math.inf, dtype=dtype))
    down = near.nextafter(torch.tensor(-math.inf, dtype=dtype))
    generator = torch.Generator().manual_seed(1)
    noise = 6 * torch.randn(200, dtype=dtype, generator=generator)
    return torch.cat([near, up, down, noise])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", SETS, ids=str)
def test_tensors_equal_the_scalar_definition(levels, dtype):
    # Levels mean their values in the dtype.
    stored = lp.Levels(torch.tensor(levels.values, dtype=dtype).tolist())
    w = points(stored, dtype)
    assert nearest(w, levels).tolist() == [stored.nearest(x) for x in w.tolist()]
    assert cell(w, levels).tolist() == [stored.cell(x) for x in w.tolist()]
    rows = torch.tensor(stored.values, dtype=dtype).expand(len(w), -1)
    padded = torch.cat([rows, torch.full((len(w), 2), math.inf)], -1)
    assert torch.equal(nearest(w, padded), nearest(w, levels))
    assert torch.equal(cell(w, padded), cell(w, levels))


def test_nan_stays_and_infinity_goes_to_an_end():
    w = torch.tensor([math.nan, math.inf, -math.inf])
    for levels in SETS:
        result = nearest(w, levels)
        assert result[0].isnan()
        assert result[1:].tolist() == [
            torch.tensor(levels.values[-1]).item(),
            torch.tensor(levels.values[0]).item(),
        ]


def test_levels_per_channel_and_coordinate():
    w = torch.tensor([[0.4, 0.6], [0.4, 2.6]])
    channels = torch.tensor([[[-1.0, 1.0, math.inf]], [[0.0, 1.0, 4.0]]])
    assert nearest(w, channels).tolist() == [[1.0, 1.0], [0.0, 4.0]]
    coordinates = torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]]])
    assert nearest(w, coordinates).tolist() == [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    "levels",
    [
        torch.tensor([1.0, -1.0]),
        torch.tensor([[1.0, 1.0], [0.0, 1.0]]),
        torch.tensor([[math.inf, math.inf], [0.0, 1.0]]),
        torch.tensor([[0.0, math.nan], [0.0, 1.0]]),
        torch.zeros(2, 0),
        torch.tensor(1.0),
        torch.tensor([[0.0, 1.0]]).expand(3, 2),
        lp.Levels([1.0, 1.0 + 2**-40]),
    ],
    ids=str,
)
def test_bad_tensors_of_levels_are_refused(levels):
    with pytest.raises(ValueError, match=r"levels|Levels"):
        nearest(torch.zeros(2), levels)


def test_narrow_weights_are_refused():
    with pytest.raises(TypeError, match=r"model\.float"):
        nearest(torch.zeros(2, dtype=torch.bfloat16), lp.Levels.binary())
    with pytest.raises(TypeError, match=r"Levels\.binary"):
        nearest(torch.zeros(2), [-1, 1])


def test_scales():
    w = torch.tensor([[0.5, -1.5], [0.25, 0.75]])
    int2 = lp.Levels.int_bits(2)
    assert scale_of(w, int2, None).item() == 1
    assert scale_of(w, int2, 0.25).item() == 0.25
    assert scale_of(w, int2, "range").item() == 0.75
    assert scale_of(w, int2, "absmax").item() == 0.75
    assert scale_of(w, int2, "mean_abs").item() == 0.75
    rows = scale_of(w, int2, lambda w: w.abs().amax(1, keepdim=True))
    assert rows.tolist() == [[1.5], [0.75]]
    wide = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    clip = 12.1 * wide.square().mean().sqrt() - 12.2 * wide.abs().mean()
    torch.testing.assert_close(
        scale_of(wide, lp.Levels.symmetric_int(4), "sawb"), clip / 8
    )


@pytest.mark.parametrize(
    "scale", [0, -1.0, math.nan, "absmax", "range", "mean", "sawb"]
)
def test_zero_scales_are_refused(scale):
    with pytest.raises(ValueError, match="scale"):
        scale_of(torch.zeros(3), lp.Levels.binary(), scale)


def test_scales_that_do_not_broadcast_are_refused():
    with pytest.raises((ValueError, RuntimeError)):
        scale_of(torch.ones(3), lp.Levels.binary(), torch.ones(2, 1))


def test_infinite_weights_go_to_the_ends_of_shorter_rows():
    rows = torch.tensor([[0.0, 1.0, math.inf], [0.0, 1.0, 2.0]])
    w = torch.tensor([math.inf, math.inf])
    assert nearest(w, rows).tolist() == [1.0, 2.0]
    assert nearest(-w, rows).tolist() == [0.0, 0.0]
