"""DoReFa's maps."""

import math

import pytest
import torch

import lowprec as lp
from lowprec.optim import dorefa_int, dorefa_weight


def test_the_tables_of_the_specification():
    w = torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert dorefa_int(w, 2).tolist() == [-2, -1, -1, 0, 0, 1]
    assert dorefa_int(w, 2, "report").tolist() == [-1, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_levels_are_those_of_the_integers(bits):
    w = torch.linspace(0, 1, 40 * 2**bits, dtype=torch.float64)
    levels = lp.Levels.int_bits(bits).values
    assert tuple(dorefa_int(w, bits).unique().tolist()) == levels
    exact = [round(x * (2**bits - 1)) - 2 ** (bits - 1) for x in w.tolist()]
    assert dorefa_int(w, bits).tolist() == exact


def test_weights_are_odd_symmetric():
    w = torch.randn(
        1001, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    result = dorefa_weight(w, 2)
    levels = torch.tensor([-1, -1 / 3, 1 / 3, 1], dtype=torch.float64)
    torch.testing.assert_close(result.unique(), levels)
    torch.testing.assert_close(dorefa_weight(-w, 2), -result)
    assert dorefa_weight(w, 1).unique().tolist() == [-1, 1]
    assert result[w.abs().argmax()].abs() == 1


def test_zero_and_empty_weights():
    assert dorefa_weight(torch.zeros(2), 2).isfinite().all()
    assert dorefa_weight(torch.zeros(0), 2).numel() == 0
    assert dorefa_int(torch.tensor([math.nan]), 2).isnan().all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        dorefa_int(torch.tensor([-0.1, 0.5]), 2)
    with pytest.raises(ValueError, match="bits"):
        dorefa_weight(torch.ones(1), 0)
    with pytest.raises(TypeError, match="bits"):
        dorefa_weight(torch.ones(1), 2.0)
    with pytest.raises(ValueError, match="offset"):
        dorefa_int(torch.ones(1), 2, "none")
