"""lowprec vectors: codes and flags for hardware benches, judged by the processor."""

import csv
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

import lowprec as lp
from lowprec import Rounding
from lowprec.cli import main
from lowprec.testing import exact_flags, exact_operation, vectors
from lowprec.testing import random_word as word

NAMES = {"divide by zero": 8, "overflow": 4, "underflow": 2, "invalid value": 16}
PROCESSOR = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "sqrt": np.sqrt,
}
BINARY32 = Rounding("binary32")


def raised(function, operands):
    """Return the processor's result and its flags but inexact, which NumPy ignores."""
    seen = []
    numbers = [np.float32(x) for x in operands]
    with np.errstate(all="call", call=lambda kind, _: seen.append(NAMES[kind])):
        result = function(*numbers)
    return float(result), sum(set(seen))


@pytest.mark.parametrize("name", list(PROCESSOR))
def test_flags_are_those_of_the_processor(name):
    source = lp.format("binary32")
    kinds = set()
    for vector in vectors(name, BINARY32, count=1500, seed=3):
        operands = [source.decode(code) for code in vector.operands]
        result, flags = raised(PROCESSOR[name], operands)
        assert vector.flags & ~1 == flags, (operands, vector)
        decoded = source.decode(vector.result)
        assert decoded == result or (math.isnan(decoded) and math.isnan(result))
        kinds.add(flags)
    assert len(kinds) >= 2


def test_inexact_is_told_by_fractions():
    for vector in vectors("add", Rounding("e3m2")):
        fmt = lp.format("e3m2")
        a, b, y = (fmt.decode(code) for code in (*vector.operands, vector.result))
        if math.isfinite(a + b) and math.isfinite(y):  # sums of these are exact
            assert vector.flags & 1 == (a + b != y)


@pytest.mark.parametrize("mode", ["nearest_even", "toward_zero", "toward_positive"])
def test_edges_of_the_flags(mode):
    def flags(operation, *operands, target="e4m3"):
        rounding = Rounding(target, mode)
        result = exact_operation(operation, operands, rounding)
        return exact_flags(operation, operands, rounding, result)

    top, low = 240.0, 2.0**-6
    assert flags("add", top, 0.0) == 0
    assert flags("add", top, 16.0) == 5
    # Below the first value that the largest exponent does not reach: by the mode.
    beyond = 5 if mode == "toward_positive" else 1
    assert flags("round", top + 1) == beyond
    assert flags("round", low * 0.5) == 0  # subnormal, but exact
    assert flags("round", low * (0.5 + 2.0**-8)) == 3
    # Rounds up to the smallest normal number with any exponent: no underflow.
    almost = low * (1 - 2.0**-9)
    assert flags("round", almost) == (3 if mode == "toward_zero" else 1)
    assert flags("div", 1.0, 0.0) == 8
    assert flags("log", 0.0) == 8
    assert flags("sqrt", -1.0) == 16
    assert flags("sub", math.inf, math.inf) == 16
    assert flags("mul", math.nan, math.inf) == 0
    assert flags("add", math.inf, 1.0) == 0
    assert flags("exp", 0.0) == 0
    assert flags("exp", 1.0) == 1
    assert flags("round", 500.0, target="e4m3fn") == 5


def table(text):
    head, *rows = csv.reader(text.splitlines())
    return head, rows


def test_command_writes_every_pair_of_a_small_format(capsys, tmp_path):
    assert main(["vectors", "e2m1", "--operation", "mul", "--mode", "to_odd"]) == 0
    head, rows = table(capsys.readouterr().out)
    assert head == ["a", "b", "result", "flags"]
    pairs = [(int(a, 16), int(b, 16)) for a, b, *_ in rows]
    assert pairs == list(itertools.product(range(16), repeat=2))
    fmt = lp.format("e2m1")
    for a, b, result, _ in rows:
        operands = [fmt.decode(int(code, 16)) for code in (a, b)]
        exact = exact_operation("mul", operands, Rounding("e2m1", "to_odd"))
        assert int(result, 16) == fmt.encode(exact)
    path = tmp_path / "mul.csv"
    arguments = ["vectors", "e2m1", "--operation", "mul", "--mode", "to_odd"]
    assert main([*arguments, "--out", str(path)]) == 0
    assert table(path.read_text()) == (head, rows)


def test_random_words_are_columns(capsys):
    options = ["--mode", "stochastic", "--random-bits", "8", "--saturation", "finite"]
    options += ["--source", "binary16", "--count", "40", "--seed", "5"]
    assert main(["vectors", "e5m2", *options]) == 0
    text = capsys.readouterr().out
    head, rows = table(text)
    assert head == ["a", "word", "result", "flags"]
    assert len(rows) == 40
    assert {len(row[0]) for row in rows} == {4}
    rounding = Rounding("e5m2", "stochastic", "finite", 8)
    for index, (a, words, result, _) in enumerate(rows):
        assert int(words, 16) == word(5, index)
        x = lp.format("binary16").decode(int(a, 16))
        exact = exact_operation("round", (x,), rounding, int(words, 16))
        assert int(result, 16) == lp.format("e5m2").encode(exact)
    assert main(["vectors", "e5m2", *options]) == 0
    assert capsys.readouterr().out == text


def test_formats_of_16_bits_are_rounded_completely():
    found = vectors("round", Rounding("e2m1"), source="e5m10")
    codes = [vector.operands[0] for vector in itertools.islice(found, 300)]
    assert codes == list(range(300))
    found = vectors("round", Rounding("e2m1"), source="e4m3")
    assert sum(1 for _ in found) == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["e5m2", "--count", "-1"], "count must not be negative, got -1"),
        (["e5m2", "--operation", "add", "--source", "e4m3"], "source= is for"),
        (["e5m0"], "zero-width mantissa"),
        (["e5m2", "--random-bits", "33"], "random_bits must be from 1 to 32"),
    ],
)
def test_bad_arguments_are_one_sentence(capsys, arguments, message):
    assert main(["vectors", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_unknown_operations_are_refused():
    with pytest.raises(ValueError, match="operation must be one of round, add"):
        vectors("cbrt", Rounding("e5m2"))


NO_NAN = [
    ["int8", "--source", "e5m2"],
    ["int4", "--operation", "div"],
    ["e2m1fn", "--operation", "sqrt"],
    ["e2m1fn", "--operation", "div", "--mode", "toward_zero"],
    ["e2m1fn", "--source", "e4m3fn"],
    ["uint8", "--source", "e4m3", "--mode", "stochastic"],
]


@pytest.mark.parametrize("arguments", NO_NAN, ids=" ".join)
def test_formats_without_nan_leave_out_what_would_be_nan(arguments, capsys):
    assert main(["vectors", *arguments]) == 0
    _, rows = table(capsys.readouterr().out)
    target = lp.format(arguments[0])
    name, source = "round", target
    if "--operation" in arguments:
        name = arguments[2]
    else:
        source = lp.format(arguments[2])
    arity = 2 if name == "div" else 1
    kept = {tuple(int(cell, 16) for cell in row[:arity]) for row in rows}
    assert len(kept) == len(rows)
    for codes in itertools.product(range(2**source.bits), repeat=arity):
        operands = [source.decode(code) for code in codes]
        with np.errstate(all="ignore"):
            numbers = [np.float64(x) for x in operands]
            result = PROCESSOR[name](*numbers) if name != "round" else numbers[0]
        assert (codes in kept) == (not np.isnan(result)), operands


def test_files_are_complete_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "all.csv"
    path.write_text("before")

    def broken(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("lowprec.testing._vectors_csv._write", broken)
    assert main(["vectors", "e2m1", "--operation", "add", "--out", str(path)]) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["all.csv"]
    assert path.read_text() == "before"


@pytest.mark.parametrize(
    ("target", "mode", "x", "wanted"),
    [
        ("uint8", "nearest_even", -0.25, 1),
        ("uint8", "nearest_even", -0.5, 1),
        ("uint8", "nearest_even", -0.75, 16),
        ("uint8", "toward_negative", -0.25, 16),
        ("uint8", "toward_zero", -0.75, 1),
        ("uint8", "nearest_even", 255.25, 1),
        ("uint8", "nearest_even", 255.5, 16),
        ("uint8", "toward_zero", 255.5, 1),
        ("uint8", "nearest_even", 7.0, 0),
        ("uint8", "nearest_even", 300.0, 16),
        ("uint8", "nearest_even", math.inf, 16),
        ("uint8", "nearest_even", -math.inf, 16),
        ("int8", "nearest_even", -128.25, 1),
        ("int8", "nearest_even", -128.75, 16),
        ("int8", "toward_zero", -128.75, 1),
        ("int8", "nearest_even", -1.0, 0),
        ("fixed8f4", "nearest_even", 7.9375, 0),
        ("fixed8f4", "nearest_even", 7.96875, 16),
        ("binary8p3ue", "nearest_even", -1.0, 16),
        ("binary8p3ue", "nearest_even", -(2.0**-100), 3),
        ("binary8p3ue", "nearest_even", -math.inf, 16),
    ],
)
def test_what_does_not_fit_integers_is_invalid(target, mode, x, wanted):
    rounding = Rounding(target, mode)
    result = exact_operation("round", (x,), rounding)
    assert exact_flags("round", (x,), rounding, result) == wanted


@pytest.mark.parametrize(("x", "wanted"), [(300.0, 0), (300.25, 1), (-0.75, 1)])
def test_what_wraps_is_not_invalid(x, wanted):
    rounding = Rounding("uint8", saturation="wrap")
    result = exact_operation("round", (x,), rounding)
    assert exact_flags("round", (x,), rounding, result) == wanted


def test_random_words_decide_what_is_invalid():
    rounding = Rounding("uint8", "stochastic")
    for random, wanted in ((0, 1), (2**32 - 1, 16)):
        result = exact_operation("round", (-0.5,), rounding, random)
        assert exact_flags("round", (-0.5,), rounding, result, random) == wanted


@pytest.mark.parametrize("name", ["binary16p1se", "e15m3"])
def test_vectors_of_formats_beyond_binary64(name):
    target = lp.format(name)
    assert isinstance(target.max, Fraction)
    rounding = Rounding(target, "toward_zero")
    for operation in ("sqrt", "div"):
        wide = 0
        for vector in vectors(operation, rounding, count=60, seed=1):
            operands = [target.decode(code) for code in vector.operands]
            y = target.decode(vector.result)
            if any(not isinstance(x, Fraction) or x <= 0 for x in (*operands, y)):
                continue
            if y == target.max:  # whatever is beyond it
                continue
            wide += 1
            above = Fraction(target.decode(vector.result + 1))
            if operation == "sqrt":
                assert y**2 <= operands[0] < above**2
            else:
                assert y * operands[1] <= operands[0] < above * operands[1]
        assert wide >= 3
    with pytest.raises(NotImplementedError, match="'exp' are for formats whose values"):
        vectors("exp", rounding)
