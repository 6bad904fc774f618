"""Error feedback loses nothing, rounds errors once, refuses what it cannot keep."""

import math
from fractions import Fraction

import pytest
import torch
from distributed.compression_oracle import EXACT, fractions, worker_seed

import lowprec as lp
from lowprec.distributed import (
    Cast,
    ErrorFeedback,
    RandomK,
    Sign,
    Threshold,
    TopK,
)
from lowprec.random import split_seed
from lowprec.testing import exact_round, random_word

D = 16
SAFE = [
    c
    for c in EXACT
    if c != RandomK(k=1, unbiased=True) and c != RandomK(k=8, unbiased=True)
]
every = pytest.mark.parametrize("compressor", SAFE, ids=repr)
FORMATS = [
    None,
    lp.Rounding("bfloat16"),
    lp.Rounding("e5m2", saturation="finite"),
    lp.Rounding("bfloat16", "stochastic"),
    lp.Rounding("e4m3fn", "toward_negative", saturation="finite"),
]


def vectors(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-96, 96, (steps, 3, D), generator=generator).float() / 32


@every
@pytest.mark.parametrize("error_format", FORMATS, ids=repr)
def test_what_is_kept_is_what_was_not_sent_rounded_once(compressor, error_format):
    feedback = ErrorFeedback(compressor, error_format)
    error = None
    for step, g in enumerate(vectors(4)):
        before = g.clone()
        p = g if error is None else g + error
        payload, kept = feedback.step(g, error, seed=7, step=step, worker=2)
        assert torch.equal(g, before)
        assert torch.equal(
            payload.dense(), compressor.compress(p, 7, step, worker=2).dense()
        )
        for i in range(3):
            sent = fractions(payload.dense()[i])
            exact = [a - b for a, b in zip(fractions(p[i]), sent, strict=True)]
            if error_format is None:
                assert fractions(kept[i]) == [
                    Fraction(float(torch.tensor(float(value)))) for value in exact
                ]
                continue
            key = torch.tensor((worker_seed(7, step, 2 + i) + 2**63) % 2**64 - 2**63)
            own = int(split_seed(key, 1)[0]) % 2**64
            words = [
                random_word(own, j) if error_format.stochastic else 0 for j in range(D)
            ]
            expected = [
                Fraction(exact_round(value, error_format, word))
                for value, word in zip(exact, words, strict=True)
            ]
            assert fractions(kept[i]) == expected
        error = kept


@every
def test_workers_are_independent(compressor):
    feedback = ErrorFeedback(compressor, lp.Rounding("bfloat16", "stochastic"))
    g, error = vectors(1)[0], vectors(1, seed=9)[0]
    payload, kept = feedback.step(g, error, seed=3, step=1, worker=4)
    for i in range(3):
        alone = feedback.step(g[i], error[i], seed=3, step=1, worker=4 + i)
        assert torch.equal(alone.error, kept[i])
        assert torch.equal(alone.payload.dense(), payload.dense()[i])


def test_all_entries_sent_leave_no_error():
    g = vectors(1)[0]
    for compressor in (TopK(k=D), RandomK(k=D), Threshold(absolute=1e-9)):
        _, error = ErrorFeedback(compressor).step(g, seed=0)
        assert torch.equal(error, torch.zeros_like(g))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [None, "bfloat16", "e5m2"])
def test_entries_that_are_not_sent_are_kept_to_the_last_bit(dtype, values):
    generator = torch.Generator().manual_seed(2)
    g = torch.randn(D, generator=generator, dtype=dtype).tan()
    payload, error = ErrorFeedback(TopK(k=4, values=values)).step(g)
    assert fractions(g) == [
        a + b for a, b in zip(fractions(payload.dense()), fractions(error), strict=True)
    ]


def saturating(name, **options):
    return Cast(lp.Rounding(name, saturation="finite"), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "compressor",
    [Sign(), saturating("e4m3fn"), TopK(k=2, values=saturating("e4m3fn"))],
    ids=repr,
)
@pytest.mark.parametrize("error_format", ["bfloat16", lp.Rounding("e8m15", "to_odd")])
def test_differences_beyond_the_carrier_are_rounded_once(
    compressor, dtype, error_format
):
    # p - 448 is just below a tie of bfloat16, and rounds to the tie in float32.
    large = 2.0**34 * (1 + 3 * 2.0**-8)
    p = torch.tensor([large, -large, 0.1, 5e-8, 1e9], dtype=dtype)
    payload, error = ErrorFeedback(compressor, error_format).step(p)
    sent = fractions(payload.dense())
    exact = [a - b for a, b in zip(fractions(p), sent, strict=True)]
    expected = [Fraction(exact_round(value, error_format)) for value in exact]
    assert fractions(error) == expected
    if not isinstance(compressor, Sign):
        assert error[0].item() == 2.0**34 * (1 + 2.0**-7) or error_format != "bfloat16"


def test_a_format_that_the_carrier_does_not_hold_is_refused():
    with pytest.raises(ValueError, match="float32 carrier cannot hold"):
        ErrorFeedback(Sign(), "binary64").step(torch.tensor([0.1, 3.0]))


def test_the_errors_of_a_threshold_stay_below_it():
    feedback, error = ErrorFeedback(Threshold(absolute=0.5)), None
    for g in torch.randn(200, 3, D) / 4:
        _, error = feedback.step(g, error)
        assert error.abs().max() < 0.5


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(1.01, 2), (1, 1), (0.99, 1), (0.75, 1), (0.5, 0.5), (0.25, 0.25)],
)
def test_small_entries_stall_in_an_accumulator_of_eight_bits(shape, expected):
    # One large entry is sent in every step; the small one never exceeds it.
    feedback, error = ErrorFeedback(TopK(k=1), lp.Rounding("bfloat16")), None
    g = torch.tensor([100.0, shape * 2.0**-8], dtype=torch.float64)
    for _ in range(1000):
        _, error = feedback.step(g, error)
    assert error[1].item() == expected
    assert lp.theory.spars_ams.accumulator_stall(g[1].item(), 8) == expected


@pytest.mark.parametrize(
    ("error_format", "releases"),
    [
        ("bfloat16", [19, 0, 0]),
        pytest.param("binary16", [19, 9, 4], marks=pytest.mark.slow),
        pytest.param(None, [19, 9, 4], marks=pytest.mark.slow),
    ],
)
def test_an_entry_is_lost_if_its_error_stalls_below_the_release(error_format, releases):
    feedback, error = ErrorFeedback(TopK(k=1), error_format), None
    addends = [2.0**-8, 2.0**-9, 2.0**-10]
    g = torch.tensor([[1.0, addend] for addend in addends])
    count = torch.zeros(3)
    for _ in range(5000):
        payload, error = feedback.step(g, error)
        count += payload.indices.flatten()
    assert count.tolist() == releases
    precision = 53 if error_format is None else lp.format(error_format).precision
    for addend, releases_of_it in zip(addends, releases, strict=True):
        lost = lp.theory.spars_ams.is_never_sent(addend, precision, 1.0)
        assert lost == (releases_of_it == 0)


def test_stochastic_errors_lose_nothing_in_the_mean():
    rounding = lp.Rounding("bfloat16", "stochastic")
    feedback, error = ErrorFeedback(TopK(k=1), rounding), None
    g = torch.tensor([1.0, 2.0**-9]).expand(16, 2)
    sent, steps = torch.zeros(16), 600
    for step in range(steps):
        payload, error = feedback.step(g, error, seed=1, step=step)
        sent += payload.dense()[:, 1]
    mass = (sent + error[:, 1]).mean().item() / (steps * 2.0**-9)
    assert mass == pytest.approx(1, abs=0.1)


def test_unbiased_random_entries_are_refused_if_their_errors_grow():
    g = torch.ones(D)
    with pytest.raises(ValueError, match="amplifies without bound"):
        ErrorFeedback(RandomK(k=8, unbiased=True)).step(g, seed=0)
    ErrorFeedback(RandomK(k=9, unbiased=True)).step(g, seed=0)
    ErrorFeedback(RandomK(k=8)).step(g, seed=0)


def test_what_cannot_be_kept_is_refused():
    g = torch.tensor([1e6, 9e5])
    with pytest.raises(ValueError, match="wider error_format"):
        ErrorFeedback(TopK(k=1), "e5m2").step(g)
    with pytest.raises(ValueError, match="NaN or an infinity"):
        ErrorFeedback(TopK(k=1)).step(g, torch.tensor([0.0, math.inf]))
    largest = torch.full((2,), 3e38)
    with pytest.raises(ValueError, match="NaN or an infinity"):
        ErrorFeedback(TopK(k=1)).step(largest, largest)
    for error in (torch.ones(3), torch.ones(2, dtype=torch.float64)):
        with pytest.raises(ValueError, match="must be like the gradient"):
            ErrorFeedback(TopK(k=1)).step(g, error)
    with pytest.raises(TypeError, match="needs a compressor"):
        ErrorFeedback(0.01)


def test_error_feedback_is_a_value():
    feedback = ErrorFeedback(TopK(k=2), "bfloat16")
    assert feedback == ErrorFeedback(TopK(k=2), lp.Rounding("bfloat16"))
    assert hash(feedback) == hash(ErrorFeedback(TopK(k=2), lp.Rounding("bfloat16")))
    names = {**vars(lp.distributed), "Rounding": lp.Rounding}
    assert eval(repr(feedback), names) == feedback
    assert not feedback.stochastic
    assert ErrorFeedback(Sign(), lp.Rounding("e5m2", "stochastic")).stochastic
    assert ErrorFeedback(Cast(lp.Rounding("e5m2", "stochastic"))).stochastic
