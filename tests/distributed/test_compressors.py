"""Compressors against their definitions in rational arithmetic; what they refuse."""

import copy
import io
import math
import pickle
from fractions import Fraction

import pytest
import torch
from distributed.compression_oracle import (
    EXACT,
    compressed,
    exactly,
    fractions,
    top,
    worker_seed,
)
from hypothesis import given
from hypothesis import strategies as st

import lowprec as lp
from lowprec.distributed import (
    Cast,
    Compressor,
    PayloadKind,
    RandomK,
    Sign,
    Threshold,
    TopK,
)
from lowprec.distributed._selection import largest, random_subsets

D = 16
every = pytest.mark.parametrize("compressor", EXACT, ids=repr)


def rows(dtype, seed=0):
    """Small integers over 64, with ties, zeros of both signs and heavy tails."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-200, 200, (3, D), generator=generator).to(dtype) / 64
    x[0, 3:6] = x[0, 0]
    x[1, ::2] = -x[1, 1::2]
    x[2] = torch.where(torch.arange(D) % 3 == 0, -0.0, x[2] * 2.0 ** torch.arange(D))
    return x


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_payloads_stand_for_what_the_definition_says(compressor, dtype):
    x = rows(dtype)
    sent = compressor.compress(x, seed=11, step=3, worker=5).dense()
    assert sent.dtype == dtype
    for i, row in enumerate(x):
        expected = compressed(compressor, row, worker_seed(11, 3, 5 + i))
        assert fractions(sent[i]) == [Fraction(value) for value in expected]


@every
def test_a_worker_is_compressed_as_it_would_be_alone(compressor):
    x = rows(torch.float32, seed=1)
    payload = compressor.compress(x, seed=4, step=1, worker=7)
    assert payload.size == D
    for i, own in enumerate(payload.workers()):
        alone = compressor.compress(x[i], seed=4, step=1, worker=7 + i)
        assert torch.equal(own.dense(), alone.dense())
        assert torch.equal(payload.dense()[i], alone.dense())
        assert own.values.shape == alone.values.shape
        assert own.rounding == alone.rounding
        if own.indices is not None:
            assert own.indices.dtype == torch.int64
            assert torch.equal(own.indices, alone.indices)
            assert bool((own.indices.diff() > 0).all())


@every
def test_random_numbers_depend_on_seed_step_worker_and_offset(compressor):
    x = torch.linspace(0.1, 1.3, 64).sqrt()
    arguments = [
        {"seed": 1}, {"seed": 2}, {"seed": 1, "step": 1}, {"seed": 1, "worker": 1},
        {"seed": 1, "offset": 64},
    ]  # fmt: skip
    sent = [compressor.compress(x, **each).dense() for each in arguments]
    assert torch.equal(sent[0], compressor.compress(x, seed=1).dense())
    different = [not torch.equal(sent[0], other) for other in sent[1:]]
    assert different == [compressor.stochastic] * 4


@every
def test_compressors_are_values(compressor):
    names = vars(lp.distributed)
    evaluated = eval(repr(compressor), {**names, "Rounding": lp.Rounding})
    twins = [
        evaluated,
        copy.deepcopy(compressor),
        pickle.loads(pickle.dumps(compressor)),
    ]
    file = io.BytesIO()
    torch.save(compressor, file)
    file.seek(0)
    twins.append(torch.load(file, weights_only=True))
    assert all(twin == compressor for twin in twins)
    assert len({compressor, *twins}) == 1
    with pytest.raises((AttributeError, TypeError)):
        compressor.k = 3


@pytest.mark.parametrize("k", [1, 2, 17, 49, 50])
def test_topk_contracts_by_the_root_of_the_share_left_out(k):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(1000, 50, generator=generator, dtype=torch.float64)
    x[::2] = x[::2].sinh() ** 3  # heavy tails
    compressor = TopK(k=k)
    q = compressor.contraction(50)
    assert q == math.sqrt(1 - k / 50)
    payload = compressor.compress(x)
    assert payload.indices.shape == (1000, k)
    error = (x - payload.dense()).norm(dim=-1)
    assert bool((error <= q * (1 + 1e-12) * x.norm(dim=-1)).all())
    equal = torch.full((50,), -0.25, dtype=torch.float64)
    left = (equal - compressor.compress(equal).dense()).norm()
    assert left.item() == pytest.approx(q * equal.norm().item(), rel=1e-12)


CONTRACTING = [
    TopK(k=5),
    TopK(k=5, values="e4m3fn"),
    TopK(k=5, values=lp.Rounding("e5m2", "stochastic")),
    Threshold(relative=0.3),
    Threshold(absolute=0.5),
    Sign(),
    Cast("e4m3fn"),
    Cast(lp.Rounding("e4m3fn", "toward_zero")),
    Cast(lp.Rounding("bfloat16", "stochastic")),
    RandomK(k=5),  # pathwise only with q = 1
]


@pytest.mark.parametrize("compressor", CONTRACTING, ids=repr)
def test_no_vector_is_further_from_its_payload_than_the_contraction(compressor):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(2000, 20, generator=generator, dtype=torch.float64) * 6 - 3
    signs = torch.randint(0, 2, sizes.shape, generator=generator) * 2 - 1
    x = sizes.exp() * signs  # in the normal range of e4m3fn
    left = (x - compressor.compress(x, seed=1).dense()).norm(dim=-1)
    bound = 1.0 if isinstance(compressor, RandomK) else compressor.contraction(20)
    assert bool((left <= bound * (1 + 1e-12) * x.norm(dim=-1)).all())


def test_the_contraction_of_a_relative_threshold_is_attained():
    d, share = 20, 0.5
    x = torch.full((d,), 0.5 - 2**-20, dtype=torch.float64)
    x[3] = 1.0
    left = (x - Threshold(relative=share).compress(x).dense()).norm() / x.norm()
    bound = Threshold(relative=share).contraction(d)
    assert bound * (1 - 1e-4) < left.item() <= bound


def test_the_contraction_of_signs_is_that_of_one_large_entry():
    x = torch.zeros(9, dtype=torch.float64)
    x[4] = -2.0
    left = (x - Sign().compress(x).dense()).norm() / x.norm()
    assert left.item() == pytest.approx(Sign().contraction(9), rel=1e-12)


@pytest.mark.parametrize("size", [5, 64, 2410])
def test_random_entries_are_uniform_and_the_errors_those_of_the_formulas(size):
    k, draws = max(1, size // 5), 4000 if size < 100 else 400
    x = torch.linspace(-1, 2, size, dtype=torch.float64).expand(draws, size)
    for unbiased in (False, True):
        compressor = RandomK(k=k, unbiased=unbiased)
        payload = compressor.compress(x, seed=size)
        if not unbiased:
            hits = torch.bincount(payload.indices.flatten(), minlength=size).double()
            mean, spread = (
                draws * k / size,
                math.sqrt(draws * k / size * (1 - k / size)),
            )
            assert bool(((hits - mean).abs() < 6 * spread).all())
        squares = (x - payload.dense()).square().sum(-1) / x[0].square().sum()
        assert squares.mean().item() == pytest.approx(
            compressor.contraction(size) ** 2, rel=0.1
        )
        if unbiased:
            noise = 6 * compressor.contraction(size) * x[0].norm() / draws**0.5
            assert (payload.dense().mean(0) - x[0]).norm() < noise


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 7])
def test_every_random_subset_is_equally_likely(count):
    seeds = torch.arange(3000)
    seen = [tuple(row) for row in random_subsets(7, count, seeds).tolist()]
    expected = seeds.numel() / math.comb(7, count)
    counts = {subset: seen.count(subset) for subset in set(seen)}
    assert all(len(set(subset)) == count for subset in counts)
    assert len(counts) == math.comb(7, count)
    square = sum((n - expected) ** 2 / expected for n in counts.values())
    freedom = len(counts) - 1
    assert square < freedom + 6 * math.sqrt(2 * freedom) + 6


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    st.integers(1, 30),
)
def test_of_equal_magnitudes_the_lowest_index_wins(values, k):
    x = torch.tensor(values, dtype=torch.float32)
    k = min(k, len(values))
    payload = TopK(k=k).compress(x)
    assert payload.indices.tolist() == sorted(top(values, k))
    assert torch.equal(payload.values, x[payload.indices])


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "ramp", "periodic"])
@pytest.mark.parametrize("share", [1e-5, 0.01, 0.2, 0.7])
def test_long_vectors_are_searched_exactly(kind, share):
    size = 200_003
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, generator=generator)
    if kind == "ties":
        x = x.mul(4).round()
    elif kind == "zeros":
        x[: size - 1000] = 0
    elif kind == "ramp":
        x = torch.arange(size, dtype=torch.float32)
    elif kind == "periodic":  # a sample that sees the largest entries only
        x = torch.zeros(size)
        x[:: size // (1 << 14)] = 1
    k = max(1, int(share * size))
    magnitudes = x.abs()
    order = magnitudes.sort(descending=True, stable=True).indices[:k]
    assert torch.equal(largest(magnitudes.unsqueeze(0), k)[0], order.sort().values)


def test_a_share_means_the_decimal_number_that_prints():
    assert TopK(density=0.07).count(100) == 7  # 0.07 * 100 > 7 in binary64
    assert TopK(density=0.01).count(2410) == 25
    assert TopK(density=1e-9).count(10) == 1
    assert TopK(density=1).count(10) == 10


def test_all_of_the_entries_are_the_vector():
    x = rows(torch.float32)
    for compressor in (TopK(k=D), TopK(density=1.0), RandomK(k=D)):
        assert torch.equal(compressor.compress(x, seed=0).dense(), x)


def test_a_vector_of_zeros_is_sent_as_zeros():
    x = torch.zeros(8)
    for compressor in (
        TopK(k=3), RandomK(k=3), Threshold(relative=0.5), Sign(),
        Cast("e4m3fn", scaled=True),
    ):  # fmt: skip
        payload = compressor.compress(x, seed=0)
        assert torch.equal(payload.dense(), x)
    assert TopK(k=3).compress(x).indices.tolist() == [0, 1, 2]


def test_signs_of_both_zeros_are_positive():
    payload = Sign().compress(torch.tensor([0.0, -0.0, -3.0, 1.0]))
    assert payload.kind is PayloadKind.SIGN
    assert payload.values.tolist() == [1.0, 1.0, -1.0, 1.0]
    assert payload.scale.item() == 1.0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_mean_magnitude_does_not_depend_on_threads_or_rows(threads):
    x = torch.randn(2, 100_001)
    torch.set_num_threads(1)
    expected = [Sign().compress(row).scale.item() for row in x]
    torch.set_num_threads(threads)
    assert Sign().compress(x).scale.tolist() == expected
    mean = sum(fractions(x[0].abs())) / x.shape[1]
    assert expected[0] == pytest.approx(float(mean), rel=2**-23)


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e2m1fn", "e3m2fn", "binary16"])
def test_the_scale_is_the_smallest_that_fits(name):
    largest_value = Fraction(lp.format(name).max)
    cast = Cast(name, scaled=True)
    for exponent in (-100, -7, 0, 3, 90):
        for factor in (1, 1 - 2.0**-20, 1 + 2.0**-20, 1.5, 0.75):
            x = torch.tensor([float(largest_value) * factor * 2.0**exponent, 0.0])
            scale = Fraction(cast.compress(x).scale.item())
            value = Fraction(x[0].item())
            assert scale.numerator == 1 or scale.denominator == 1
            assert value <= largest_value * scale
            assert value > largest_value * scale / 2


@pytest.mark.parametrize("value", [1e-45, 1e-38, 3e38])
def test_scales_of_extreme_vectors_are_finite(value):
    x = torch.tensor([value, -value])
    for name in ("e4m3fn", "e5m2", "bfloat16"):
        sent = Cast(name, scaled=True).compress(x).dense()
        assert bool(sent.isfinite().all())
        assert torch.allclose(sent, x, rtol=0.13, atol=2.0**-130)


def test_exactly_representable_constants_are_sent_exactly():
    x = exactly([Fraction(3, 4), -2, Fraction(1, 8), 0], torch.float64)
    assert torch.equal(Cast("e4m3fn").compress(x).dense(), x)


@pytest.mark.parametrize("cls", [TopK, RandomK])
def test_the_number_of_entries_must_be_one_number(cls):
    with pytest.raises(ValueError, match="exactly one of k"):
        cls()
    with pytest.raises(ValueError, match=r"got k=3 and density=0\.1"):
        cls(k=3, density=0.1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cls(k=0)
    with pytest.raises(ValueError, match="at least 1, got -2"):
        cls(k=-2)
    with pytest.raises(TypeError, match="must be an int"):
        cls(k=2.0)
    with pytest.raises(TypeError, match="must be an int"):
        cls(k=True)
    for density in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            cls(density=density)
    with pytest.raises(ValueError, match="k=9 entries of a vector that has 8"):
        cls(k=9).compress(torch.ones(8), seed=0)
    with pytest.raises(ValueError, match="k=9"):
        cls(k=9).contraction(8)
    assert cls(k=9).limited(8) == cls(k=8)
    assert cls(density=0.5).limited(8) == cls(density=0.5)


def test_a_threshold_sends_nothing_of_zeros():
    rows = torch.tensor([[0.0, -0.0, 0.0], [1e-45, 0.0, 0.0]])  # half of which is 0
    payload = Threshold(relative=0.4).compress(rows)
    assert payload.indices.tolist() == [0]
    assert payload.offsets.tolist() == [0, 0, 1]
    assert torch.equal(payload.dense(), rows)


def test_thresholds_must_be_one_positive_number():
    for given_ in ({}, {"relative": 0.5, "absolute": 1.0}):
        with pytest.raises(ValueError, match="exactly one of relative"):
            Threshold(**given_)
    for relative in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="relative must be"):
            Threshold(relative=relative)
    for absolute in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="absolute must be"):
            Threshold(absolute=absolute)


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_vectors_that_are_not_finite_are_refused(compressor, bad):
    x = rows(torch.float32)
    x[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or an infinity"):
        compressor.compress(x, seed=0)


@every
def test_what_is_no_vector_is_refused(compressor):
    with pytest.raises(TypeError, match=r"use p\.float"):
        compressor.compress(torch.ones(D, dtype=torch.float16))
    with pytest.raises(TypeError, match="got list"):
        compressor.compress([1.0] * D)
    for shape in [(), (2, 3, D), (0,), (2, 0)]:
        with pytest.raises(ValueError, match="vector"):
            compressor.compress(torch.ones(shape))


def test_values_that_overflow_are_refused():
    with pytest.raises(ValueError, match="largest value is 448"):
        Cast("e4m3fn").compress(torch.tensor([1.0, 500.0]))
    with pytest.raises(ValueError, match="scaled=True"):
        TopK(k=1, values="e5m2").compress(torch.tensor([1.0, 1e6]))
    saturating = Cast(lp.Rounding("e4m3fn", saturation="finite"))
    assert saturating.compress(torch.tensor([500.0])).dense().item() == 448.0


def test_a_compressor_is_no_abstract_class():
    with pytest.raises(TypeError, match="abstract"):
        Compressor()


def test_gradients_do_not_pass():
    x = torch.ones(4, requires_grad=True)
    assert not TopK(k=2).compress(x).dense().requires_grad


def test_a_scaled_value_beyond_the_carrier_is_refused():
    with pytest.raises(ValueError, match="overflows"):
        Cast("e5m2", scaled=True).compress(torch.tensor([3.4e38]))


@pytest.mark.parametrize("k", [1, 7, 29, 30])
def test_ties_of_one_worker_are_no_matter_for_another(k):
    x = torch.randint(-3, 4, (50, 30)).float()
    x[::5] = torch.randn(10, 30)
    payload = TopK(k=k).compress(x)
    for row, indices in zip(x.tolist(), payload.indices.tolist(), strict=True):
        assert indices == sorted(top(row, k))
