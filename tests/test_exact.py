"""Rounding to odd in float64 against exact rationals."""

import operator
from fractions import Fraction

import pytest
import torch

import lowprec as lp
from lowprec.kernels import exact
from lowprec.testing import exact_round

TO_ODD = lp.Rounding("binary64", "to_odd")
OPERATIONS = {
    "add": (exact.add_to_odd, operator.add),
    "multiply": (exact.multiply_to_odd, operator.mul),
    "divide": (exact.divide_to_odd, operator.truediv),
}


def operands():
    """Short, full and nearly equal significands with exponents up to 60 apart."""
    generator = torch.Generator().manual_seed(1)
    size = 3000
    full = torch.randn(size, dtype=torch.float64, generator=generator)
    short = torch.randint(-256, 256, (size,), generator=generator).to(torch.float64)
    short = torch.where(short == 0, 1.0, short)
    shift = torch.randint(-60, 60, (size,), generator=generator)
    near = full * (1 + 2.0**-52 * (shift % 5))
    return [
        (full, full.roll(1)),
        (full, torch.ldexp(full.roll(1), shift)),
        (short, torch.ldexp(full, shift)),
        (torch.ldexp(short, shift), short.roll(1)),
        (full, -near),
    ]


@pytest.mark.parametrize("name", OPERATIONS)
def test_to_odd_equals_the_rounded_exact_result(name):
    function, exactly = OPERATIONS[name]
    for a, b in operands():
        got = function(a, b).tolist()
        wanted = [
            exact_round(exactly(Fraction(x), Fraction(y)), TO_ODD)
            for x, y in zip(a.tolist(), b.tolist(), strict=True)
        ]
        assert got == wanted


@pytest.mark.parametrize("name", OPERATIONS)
def test_special_values_are_those_of_ieee_754(name):
    function, _ = OPERATIONS[name]
    plain = {"add": torch.add, "multiply": torch.mul, "divide": torch.div}[name]
    values = torch.tensor([0.0, -0.0, 1.0, -2.0, torch.inf, -torch.inf, torch.nan])
    a, b = torch.meshgrid(values.double(), values.double(), indexing="ij")
    torch.testing.assert_close(
        function(a, b), plain(a, b), rtol=0, atol=0, equal_nan=True
    )
    same_sign = function(a, b).signbit() == plain(a, b).signbit()
    assert bool((same_sign | plain(a, b).isnan()).all())
