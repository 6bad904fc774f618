"""The conformance suites pass right kernels and catch the peers' wrong ones."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from suite_runner import failures, methods_of

import lowprec as lp
import pytest_lowprec
from lowprec.testing import (
    BlockCodingSuite,
    BlockRoundingSuite,
    CodingSuite,
    OperationSuite,
    RoundingSuite,
    StochasticSuite,
    SummationSuite,
)
from lowprec.testing import strategies as lps

ROOT = Path(__file__).parents[2]


class TestOurRounding(RoundingSuite):
    """What a third party writes to test a kernel of its own."""

    formats = ("e5m2", "e4m3fn", "e3m2")
    modes = ("nearest_even", "to_odd", "toward_negative")

    def round(self, x, rounding):
        return lp.round(x, rounding)


class TestOurOperations(OperationSuite):
    formats = ("e2m2", "bfloat16")
    modes = ("nearest_even", "toward_negative")
    operations = ("add", "sub", "mul", "div", "sqrt", "fma", "exp", "log")
    count = 60

    def compute(self, operation, operands, rounding):
        return getattr(lp, operation)(*operands, rounding)


class TestOurSums(SummationSuite):
    dtype = torch.float64

    def sum(self, x, accumulator):
        return lp.sum(x, 1, accumulator=accumulator)


class Wrong(RoundingSuite):
    """Kernels with the bugs of spec/peers.md, each in a place of its own."""

    formats = ("e5m2", "bfloat16")
    modes = ("nearest_even", "toward_zero")
    saturations = ("none",)

    def __init__(self, kernel):
        self.kernel = kernel

    def round(self, x, rounding):
        return self.kernel(x, rounding)


def by_logarithms(x, rounding):
    """pychop: exponents by log2, overflow to zero, no saturation."""
    fmt = rounding.format
    e = torch.log2(x.abs()).floor().clamp(min=fmt.emin, max=fmt.emax)
    quantum = 2.0 ** (e - fmt.precision + 1)
    k = x / quantum
    k = torch.round(k) if rounding.mode == lp.RoundingMode.NEAREST_EVEN else k.trunc()
    return torch.where(x.abs() < 2.0 ** (fmt.emax + 1), k * quantum, torch.zeros(()))


def by_casts(x, rounding):
    """A cast knows one mode and one way to overflow."""
    dtype = {"e5m2": torch.float8_e5m2, "bfloat16": torch.bfloat16}
    return x.to(dtype[rounding.format.name]).to(x.dtype)


def without_the_sign_of_zero(x, rounding):
    return lp.round(x, rounding) + 0.0


def in_place(x, rounding):
    return lp.round(x, rounding, out=x)


def with_nan_payloads_rounded(x, rounding):
    y = lp.round(x, rounding)
    return torch.where(x.isnan(), 131008.0, y)


def never_the_same(x, rounding):
    return lp.round(x, rounding.format, "stochastic", seed=0)


@pytest.mark.parametrize(
    "kernel",
    [
        by_logarithms,
        by_casts,
        without_the_sign_of_zero,
        in_place,
        with_nan_payloads_rounded,
        never_the_same,
    ],
)
def test_wrong_roundings_are_caught(kernel):
    assert "test_decisive_numbers" in failures(Wrong(kernel))


def test_right_kernels_pass():
    assert failures(Wrong(lp.round)) == set()


def test_double_rounding_of_operations_is_caught():
    class Twice(OperationSuite):
        formats = ("e2m2", "bfloat16")
        modes = ("nearest_even",)
        operations = ("fma",)

        def compute(self, operation, operands, rounding):
            a, b, c = operands
            return lp.round(a * b + c, rounding)  # rounds in the carrier first

    assert failures(Twice())


@pytest.mark.parametrize("total", ["at once", "as float32"])
def test_sums_that_round_less_are_caught(total):
    class Unrounded(SummationSuite):
        accumulators = ("bfloat16",)

        def sum(self, x, accumulator):
            if total == "at once":
                return lp.round(x.double().sum(1), accumulator.rounding).float()
            return x.sum(1)

    assert "test_rows" in failures(Unrounded())


def test_a_suite_says_what_it_needs():
    for suite, message in (
        (RoundingSuite, "round"),
        (OperationSuite, "compute"),
        (SummationSuite, "sum"),
        (CodingSuite, "encode"),
        (BlockCodingSuite, "encode"),
        (BlockRoundingSuite, "round"),
        (StochasticSuite, "round"),
    ):
        with pytest.raises(NotImplementedError, match=rf"needs {message}\(self"):
            getattr(suite(), methods_of(suite)[0])()


PROGRAM = """
import sys

def test_seed(lowprec_seed):
    import torch
    first = torch.rand(3)
    torch.manual_seed(lowprec_seed)
    assert torch.equal(first, torch.rand(3))

def test_modes(rounding_mode, carrier, saturation, assert_bit_equal):
    import torch
    import lowprec as lp
    x = torch.tensor([0.5, -0.0, float("nan")], dtype=carrier)
    assert_bit_equal(lp.round(x, lp.Rounding("e5m2", rounding_mode, saturation)), x)

def test_deterministic(deterministic_mode):
    assert "stochastic" not in deterministic_mode.value

def test_kinds(format_of_each_kind, boundary_inputs, assert_bit_equal):
    import lowprec as lp
    x = boundary_inputs(format_of_each_kind)[:-2]
    once = lp.round(x, format_of_each_kind)
    assert_bit_equal(lp.round(once, format_of_each_kind), once)
"""


def test_plugin(tmp_path):
    (tmp_path / "test_theirs.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "pytest", "-q"]  # finds the entry point
    options = ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    run = subprocess.run(
        [*command, *options, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "68 passed" in run.stdout  # 1 + 9 * 2 * 3 + 7 + 6


def test_plugin_costs_nothing_until_it_is_used():
    program = "import sys, pytest_lowprec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_plugin_is_declared_and_knows_every_mode():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["pytest11"]
    assert points == {"lowprec": "pytest_lowprec"}
    assert "pytest_lowprec" in project["tool"]["scikit-build"]["wheel"]["packages"]
    assert list(pytest_lowprec._MODES) == [mode.value for mode in lp.RoundingMode]


def test_strategies_are_public():
    names = {"formats", "roundings", "tensors", "block_formats", "accumulators"}
    kinds = {"posits", "level_sets", "table_roundings", "block_roundings"}
    assert names | kinds <= set(lps.__all__)
