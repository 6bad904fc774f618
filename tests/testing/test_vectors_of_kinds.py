"""lowprec vectors of posits, levels, fixed point and block formats."""

import csv
import itertools
import math
from fractions import Fraction

import pytest
import torch

import lowprec as lp
from lowprec.cli import main
from lowprec.testing import assert_bit_equal, block_vectors, vectors


def written(capsys, *arguments):
    assert main(["vectors", *arguments]) == 0
    head, *rows = csv.reader(capsys.readouterr().out.splitlines())
    return head, [[int(cell, 16) for cell in row] for row in rows]


def nearest_posit(exact, target):
    """By the definition: among the posits of one bit more, which are values or ties."""
    if isinstance(exact, float):  # NaN and infinity
        return 1 << (target.bits - 1)
    if exact == 0:
        return 0
    wide = lp.Posit(target.bits + 1, target.es)
    size = min(
        max(abs(exact), Fraction(target.smallest_positive)), Fraction(target.max)
    )
    codes = range(1, 1 << target.bits)
    below = max(code for code in codes if Fraction(wide.decode(code)) <= size)
    code, odd = divmod(below, 2)
    tie = Fraction(wide.decode(below)) == size
    if odd and (not tie or code % 2 == 1):
        code += 1
    return code if exact > 0 else (1 << target.bits) - code


def test_every_pair_of_posits(capsys):
    target = lp.Posit(5, 1)
    for name, sign in (("add", 1), ("mul", None), ("div", None)):
        head, rows = written(capsys, "posit5_1", "--operation", name)
        assert head == ["a", "b", "result", "flags"]
        assert len(rows) == 32 * 32
        for a, b, result, flags in rows:
            x, y = (target.decode(code) for code in (a, b))
            if math.isnan(x) or math.isnan(y) or (name == "div" and y == 0):
                exact = math.nan
            elif sign:
                exact = Fraction(x) + Fraction(y)
            else:
                exact = Fraction(x) * Fraction(y) if name == "mul" else 0
                exact = Fraction(x) / Fraction(y) if name == "div" else exact
            assert result == nearest_posit(exact, target), (name, x, y)
            number = not isinstance(exact, float)
            assert flags == (number and target.decode(result) != exact)


def test_conversions_to_posits_and_levels(capsys):
    _, rows = written(capsys, "posit6", "--source", "e4m3fn")
    source, target = lp.format("e4m3fn"), lp.Posit(6)
    assert len(rows) == 256
    for a, result, _ in rows:
        x = source.decode(a)
        exact = x if math.isnan(x) else Fraction(x)
        assert result == nearest_posit(exact, target)
    _, rows = written(capsys, "ternary", "--source", "e2m1fn", "--mode", "nearest_away")
    for a, result, _ in rows:
        x = lp.format("e2m1fn").decode(a)
        wanted = 0.0 if abs(x) < 0.5 else math.copysign(1.0, x)
        assert lp.Levels.ternary().decode(result) == wanted
    _, rows = written(capsys, "int_bits(2)", "--source", "e4m3fn")
    assert len(rows) == 254  # NaN has no level


def test_products_of_levels(capsys):
    _, rows = written(capsys, "ternary", "--operation", "mul")
    assert [(a - 1) * (b - 1) + 1 for a, b, *_ in rows] == [row[2] for row in rows]
    assert [row[:2] for row in rows] == [
        list(p) for p in itertools.product(range(3), repeat=2)
    ]


def test_posits_at_random_and_of_16_bits(capsys):
    options = ["--mode", "stochastic", "--random-bits", "4", "--count", "50"]
    head, rows = written(capsys, "posit16_1", *options)
    assert head == ["a", "word", "result", "flags"]
    assert len(rows) == 50
    target, source = lp.Posit(16, 1), lp.format("binary32")
    for a, _, result, flags in rows:
        x, y = source.decode(a), target.decode(result)
        if math.isfinite(x):
            assert flags == (x != y)
            neighbours = [
                lp.round(torch.tensor([x], dtype=torch.float64), target, mode).item()
                for mode in ("toward_positive", "toward_negative")
            ]
            assert y in neighbours


def test_words_that_wrap(capsys):
    options = ["--operation", "add", "--saturation", "wrap"]
    _, rows = written(capsys, "int4", *options)
    assert all((a + b) % 16 == result for a, b, result, _ in rows)
    assert {flags for *_, flags in rows} == {0}


BLOCKS = ["mxfp4", "mxint8", "nvfp4", "msfp12"]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_blocks_are_what_our_kernels_make(name, mode):
    target, source = lp.block_format(name), lp.format("binary32")
    rounding = lp.BlockRounding(name, mode)
    found = list(block_vectors(rounding, count=60, seed=5))
    assert len(found) == 60
    numbers = [[source.decode(code) for code in one.operands] for one in found]
    for number, (row, vector) in enumerate(zip(numbers, found, strict=True)):
        x = torch.tensor(row)
        offset = number * target.block_size
        seed = 5 if rounding.stochastic else None
        blocks = lp.encode_blocks(x, rounding, seed=seed, offset=offset)
        assert blocks.codes.tolist() == list(vector.elements)
        assert blocks.scales.tolist() == [vector.scale]
        if vector.tensor_scale is None:
            assert blocks.tensor_scale is None
        else:
            second = target.tensor_scale.decode(vector.tensor_scale)
            assert blocks.tensor_scale.item() == second
        assert (vector.words is None) == (mode == "nearest_even")
        y = lp.decode_blocks(blocks, target)
        assert_bit_equal(y, lp.round(x, rounding, seed=seed, offset=offset))


def test_blocks_as_columns(capsys):
    options = ["--source", "bfloat16", "--count", "40"]
    head, rows = written(capsys, "nvfp4", *options)
    counts = range(16)
    assert head == [
        *(f"a{j}" for j in counts),
        *(f"q{j}" for j in counts),
        *("scale", "tensor_scale"),
    ]
    assert len(rows) == 40
    assert written(capsys, "nvfp4", *options) == (head, rows)
    head, rows = written(capsys, "mxfp4", "--mode", "stochastic", "--count", "3")
    assert head[32] == "word0"
    assert len(rows[0]) == 3 * 32 + 1


def test_blocks_of_nan_and_of_zeros_are_among_them():
    found = list(block_vectors("mxfp4", count=250, seed=0))
    scales = {vector.scale for vector in found}
    assert {0, 255} <= scales
    assert max(scales - {255}) == 252  # 2^125, of the largest numbers of binary32
    broken = [vector for vector in found if vector.scale == 255]
    assert all(set(vector.elements) == {0} for vector in broken)
    assert any(set(vector.elements) <= {0, 8} for vector in found if vector.scale == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mxfp4", "--operation", "add"], "is a block format, whose vectors are those"),
        (["posit8", "--saturation", "finite"], "--saturation does not apply to posit8"),
        (["ternary", "--mode", "to_odd"], "has no odd numbers"),
        (["e4m3fn", "--source", "mxfp4"], "is a block format, which codes no single"),
        (["mxfp4", "--count", "-1"], "count must not be negative, got -1"),
        (["e4m3fn", "--saturation", "wrap"], "saturation='wrap' needs fixed point"),
        (["int_bits(40)"], "bits must be from 2 to 16, got 40"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys, arguments, message):
    assert main(["vectors", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_vectors_of_numbers_refuse_blocks():
    with pytest.raises(TypeError, match="is a block format, which codes no single"):
        vectors("round", lp.BlockRounding("mxfp4"))


@pytest.mark.parametrize("operation", ["add", "mul", "fma", "exp", "round"])
def test_vectors_of_wide_posits(operation):
    target = lp.Posit(32)
    every = list(vectors(operation, lp.TableRounding(target), count=60, seed=3))
    assert len(every) == 60
    given = lp.format("binary32") if operation == "round" else target
    columns = zip(*(vector.operands for vector in every), strict=True)
    operands = [
        lp.decode(torch.tensor(column), given, dtype=torch.float64)
        for column in columns
    ]
    results = lp.encode(getattr(lp, operation)(*operands, "posit32"), target)
    assert results.tolist() == [vector.result for vector in every]
    assert len(set(results.tolist())) > 20
