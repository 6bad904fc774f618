"""Linear combinations are one rounding of the exact value, by whichever path."""

import math
from fractions import Fraction

import pytest
import torch

import lowprec as lp
from lowprec.optim import _rounded_sum, rounded_sum
from lowprec.testing import assert_bit_equal, exact_round, random_word

FORMATS = [
    lp.format("bfloat16"),
    lp.format("e4m3fn"),
    lp.Format(precision=20, emax=15, emin=15, name="multiples of 1/16"),
]
MODES = list(lp.RoundingMode)
SCALES = {
    "update": [1.0, -0.1],
    "powers of two": [1.0, -0.125],
    "velocity": [0.98, -0.1],
    "three": [1.0, 0.3, -0.7],
}


def tricky(scales, target, count=150):
    """Operands whose sums sit at, and just off, values of the format and ties."""
    generator = torch.Generator().manual_seed(3)

    def random(low, high):
        exponents = torch.randint(low, high, (count,), generator=generator)
        return 2.0**exponents * torch.randn(
            count, dtype=torch.float64, generator=generator
        )

    *others, last = [random(-3, 4) for _ in scales]
    others[0] = lp.round(others[0], target, saturation="finite")
    wanted = lp.round(random(-3, 4), target, saturation="finite")
    half = torch.tensor([target.ulp(v) / 2 if v else 0.0 for v in wanted.tolist()])
    odd = torch.randint(-2, 3, (count,), generator=generator)
    rest = wanted + odd * half.double()
    for s, x in zip(scales, others, strict=False):
        rest = rest - s * x
    last = rest / scales[-1]
    places = torch.rand(count, generator=generator)
    last = torch.where(places < 0.3, last * (1 + 2.0**-50), last)
    last[:4] = torch.tensor([0.0, -0.0, 2.0**-1000, -(2.0**-1060)]).double()
    for x in others:
        x[:4] = torch.tensor([0.0, -0.0, 0.0, 0.0])
    return [*others, last]


def expected(scales, tensors, rounding, seed):
    """Round the exact sums; zeros get a sign that is not looked at."""
    results = []
    for i, values in enumerate(zip(*(x.tolist() for x in tensors), strict=True)):
        exact = sum(
            Fraction(s) * Fraction(v) for s, v in zip(scales, values, strict=True)
        )
        results.append(float(exact_round(exact, rounding, random_word(seed, 5 + i))))
    return torch.tensor(results, dtype=torch.float64)


def positive_zeros(x):
    return torch.where(x == 0, 0.0, x)


@pytest.fixture(params=["both paths", "exact path"])
def path(request, monkeypatch):
    if request.param == "exact path":
        monkeypatch.setattr(_rounded_sum, "_by_float64", lambda *_: None)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("target", FORMATS, ids=lambda target: target.name)
@pytest.mark.parametrize("name", SCALES)
@pytest.mark.usefixtures("path")
def test_the_exact_sum_is_rounded_once(name, target, mode):
    rounding = lp.Rounding(target, mode, "finite", random_bits=16)
    tensors = tricky(SCALES[name], target)
    actual = rounded_sum(SCALES[name], tensors, rounding, seed=8, offset=5)
    wanted = expected(SCALES[name], tensors, rounding, 8)
    assert_bit_equal(positive_zeros(actual), positive_zeros(wanted))
    # One element at a time, so that those float64 can decide are decided there.
    for i in range(0, len(actual), 13):
        one = [x[i : i + 1] for x in tensors]
        alone = rounded_sum(SCALES[name], one, rounding, seed=8, offset=5 + i)
        assert_bit_equal(alone, actual[i : i + 1])


def test_float64_decides_when_it_can(monkeypatch):
    """Without ties and exact zeros the slow path is not needed."""
    monkeypatch.setattr(_rounded_sum, "round_sum", None)
    generator = torch.Generator().manual_seed(0)
    x = lp.round(torch.randn(500, generator=generator).double(), "bfloat16")
    g = torch.randn(500, dtype=torch.float64, generator=generator)
    for mode in ("nearest_even", "stochastic", "toward_positive"):
        result = rounded_sum([1.0, -0.1], [x, g], lp.Rounding("bfloat16", mode), seed=1)
        assert result.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["nearest_even", "toward_negative", "stochastic"])
def test_zeros_infinities_and_nan_are_those_of_the_sum(dtype, mode):
    x = torch.tensor([0.0, -0.0, 0.0, 1.0, math.inf, math.inf, math.nan], dtype=dtype)
    v = torch.tensor([0.0, -0.0, -0.0, -1.0, 2.0, -math.inf, 0.0], dtype=dtype)
    result = rounded_sum([1.0, 1.0], [x, v], lp.Rounding("bfloat16", mode), seed=0)
    down = mode == "toward_negative"
    wanted = [0.0, -0.0, -0.0, -0.0] if down else [0.0, -0.0, 0.0, 0.0]
    wanted += [math.inf, math.nan, math.nan]
    assert_bit_equal(result, torch.tensor(wanted, dtype=dtype))


def test_results_do_not_depend_on_the_pieces(monkeypatch):
    tensors = tricky(SCALES["velocity"], FORMATS[0])
    rounding = lp.Rounding("bfloat16", "stochastic")
    whole = rounded_sum(SCALES["velocity"], tensors, rounding, seed=4)
    monkeypatch.setattr("lowprec.optim._exact.PIECE", 64)
    assert_bit_equal(rounded_sum(SCALES["velocity"], tensors, rounding, seed=4), whole)


X = torch.ones(3)
BAD = [
    (([1.0], [X, X], "bfloat16"), ValueError, "one or more, got 1 and 2"),
    (([], [], "bfloat16"), ValueError, "one or more, got 0 and 0"),
    (([math.nan], [X], "bfloat16"), ValueError, "scales must be finite, got nan"),
    (([1.0, 1.0], [X, X.double()], "bfloat16"), ValueError, "one shape and dtype"),
    (([1.0, 1.0], [X, X[:2]], "bfloat16"), ValueError, "one shape and dtype"),
    (([1.0], [X.half()], "bfloat16"), TypeError, "float32 or float64"),
    (([1.0], [X], "e8m30"), ValueError, "cannot hold every value"),
    (([1.0], [X.double()], "e11m52"), NotImplementedError, "at most 51"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        rounded_sum(*arguments)
