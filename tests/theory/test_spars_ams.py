"""Theory of SPARS-AMS against runs, exact arithmetic and the reference numbers."""

import math
from fractions import Fraction

import pytest
import torch

import lowprec as lp
from lowprec.distributed import (
    Cast,
    ErrorFeedback,
    RandomK,
    Sign,
    Threshold,
    TopK,
)
from lowprec.testing import exact_round
from lowprec.theory import spars_ams as theory

WORKERS, SIZE, BETA1, BETA2 = 5, 20, 0.9, 0.999


class Run:
    """A run of n workers in float64 with everything that the identities name."""

    def __init__(self, compressor, steps, eta=0.01, eps=1e-3, error_format=None):
        torch.manual_seed(0)
        centers = torch.randn(WORKERS, SIZE, dtype=torch.float64)
        theta = torch.nn.Parameter(torch.randn(SIZE, dtype=torch.float64))
        optimizer = lp.optim.AMSGrad([theta], lr=eta, betas=(BETA1, BETA2), eps=eps)
        feedback, error = ErrorFeedback(compressor, error_format), None
        rows = {name: [] for name in ("g", "sent", "e", "rho", "m", "v")}
        iterates = [theta.detach().clone()]
        for step in range(steps):
            noise = torch.randn(WORKERS, SIZE, dtype=torch.float64)
            g = torch.tanh(theta.detach() - centers) + noise / 4
            payload, kept = feedback.step(g, error, seed=1, step=step)
            p = g if error is None else g + error
            error = kept
            theta.grad = payload.dense().mean(0)
            optimizer.step()
            state = optimizer.state[theta]
            values = {
                "g": g,
                "sent": payload.dense(),
                "e": error,
                "rho": error - (p - payload.dense()),
                "m": state["exp_avg"],
                "v": state["max_exp_avg_sq"],
            }
            for name, value in values.items():
                rows[name].append(value.clone())
            iterates.append(theta.detach().clone())
        self.iterates = torch.stack(iterates)
        self.rows = {name: torch.stack(each) for name, each in rows.items()}

    def __getattr__(self, name):
        return self.rows[name]


@pytest.fixture(scope="module")
def run():
    return Run(TopK(k=3), 2000)


def test_what_was_not_sent_is_in_the_errors(run):
    residual = theory.transmission_residual(run.g, run.sent, run.e[-1])
    assert residual.abs().max() < 1e-10
    wrong = theory.transmission_residual(run.g, run.sent, run.e[-2])
    assert wrong.abs().max() > 1e-2


@pytest.mark.parametrize(
    "compressor",
    [
        TopK(k=3, values="bfloat16"), RandomK(k=3), Threshold(relative=0.5), Sign(),
        Cast("e4m3fn"),
    ],
    ids=repr,
)  # fmt: skip
def test_the_identity_holds_for_every_compressor(compressor):
    run = Run(compressor, 200)
    residual = theory.transmission_residual(run.g, run.sent, run.e[-1])
    assert residual.abs().max() < 1e-11


def test_rounding_on_the_wire_that_stays_out_of_the_errors_is_lost():
    torch.manual_seed(1)
    rounding = Cast("bfloat16")
    error = torch.zeros(SIZE, dtype=torch.float64)
    gradients, sent, dropped = [], [], torch.zeros(SIZE, dtype=torch.float64)
    for _ in range(100):
        g = torch.randn(SIZE, dtype=torch.float64)
        selected = TopK(k=3).compress(g + error).dense()
        error = g + error - selected  # of the values before they were rounded
        sent.append(rounding.compress(selected).dense())
        dropped += sent[-1] - selected
        gradients.append(g)
    stacked = [torch.stack(each).unsqueeze(1) for each in (gradients, sent)]
    residual = theory.transmission_residual(*stacked, error.unsqueeze(0))
    assert torch.allclose(residual, dropped, atol=1e-12)
    assert dropped.abs().max() > 1e-3


@pytest.mark.parametrize(
    "error_format", [lp.Rounding("bfloat16"), lp.Rounding("e5m2", "stochastic")]
)
def test_rounded_errors_change_the_sum_by_their_rounding_errors(error_format):
    run = Run(TopK(k=3), 200, error_format=error_format)
    residual = theory.transmission_residual(run.g, run.sent, run.e[-1], run.rho)
    assert residual.abs().max() < 1e-11
    assert theory.transmission_residual(run.g, run.sent, run.e[-1]).abs().max() > 1e-4


def test_momentum_and_virtual_iterates_follow_the_plain_gradients(run):
    gradients, errors = run.g.mean(1), run.e.mean(1)
    residual = theory.momentum_residual(gradients, errors, run.m, BETA1)
    assert residual.abs().max() < 1e-12
    options = {"eta": 0.01, "beta1": BETA1, "eps": 1e-3}
    given = (run.iterates, gradients, errors, run.v)
    assert theory.iterate_residual(*given, **options).abs().max() < 1e-12
    options["eta"] = 0.011
    assert theory.iterate_residual(*given, **options).abs().max() > 1e-4
    off = theory.momentum_residual(gradients, 0 * errors, run.m, BETA1)
    assert off.abs().max() > 1e-3


@pytest.mark.parametrize("compressor", [TopK(k=3), TopK(k=10), Sign(), Cast("e5m2")])
def test_no_run_exceeds_the_bounds(compressor):
    run, q = Run(compressor, 300), compressor.contraction(SIZE)
    G = run.g.norm(dim=-1).max().item()
    errors = run.e.norm(dim=-1)
    for step in (1, 2, 10, 300):
        bound = theory.error_bound(q, G, steps=step)
        assert errors[step - 1].max().item() <= bound
        assert bound <= theory.error_bound(q, G)
    selection = isinstance(compressor, TopK)
    sent = theory.sent_bound(q, G, selection=selection)
    assert run.sent.norm(dim=-1).max().item() <= sent
    assert run.m.norm(dim=-1).max().item() <= sent
    assert run.v.max().item() <= sent**2
    lengths = run.iterates.diff(dim=0).square().sum(-1)
    longest = theory.step_length_bound(0.01, SIZE, beta1=BETA1, beta2=BETA2)
    assert lengths.max().item() <= longest


def test_a_constant_gradient_nearly_attains_the_error_bound_without_limit():
    # The paper's (15) bounds what is sent by sqrt(1 + q^2) G.
    d = 50
    g = torch.full((d,), d**-0.5, dtype=torch.float64)
    error, largest = None, 0.0
    for _ in range(4 * d):
        payload, error = ErrorFeedback(TopK(k=1)).step(g, error)
        largest = max(largest, payload.dense().norm().item())
    q = TopK(k=1).contraction(d)
    assert largest == pytest.approx(7.07, abs=0.01)
    assert math.sqrt(1 + q * q) < largest <= theory.sent_bound(q, 1.0)


def test_the_largest_relative_step_is_attained_by_growing_gradients():
    ratio, beta1, beta2 = 0.9 / 0.999, 0.9, 0.999
    m = v = 0.0
    for t in range(400, -1, -1):
        g = ratio**t
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    bound = theory.largest_relative_step(beta1, beta2)
    assert m / math.sqrt(v) == pytest.approx(bound, rel=1e-6)
    assert bound == pytest.approx(7.27, abs=5e-3)
    assert theory.step_length_bound(0.5, 3, beta1=beta1, beta2=beta2) == pytest.approx(
        0.75 * bound**2
    )


CONSTANTS = {"L": 0.02, "G": 1.0, "beta1": 0.9, "eps": 1.0, "n": 20, "d": 20}


@pytest.mark.parametrize(
    ("T", "expected"),
    [(10**4, 0.6859), (10**5, 0.1404), (10**6, 0.0367), (10**7, 0.0109)],
)
def test_the_corrected_theorem_has_the_reference_values(T, expected):
    bound = theory.convergence_bound(
        0.7, 0.0, **CONSTANTS, q=math.sqrt(0.5), eta=0.3 / math.sqrt(T), T=T, sigma2=1.0
    )
    assert bound.value == pytest.approx(expected, abs=1.01e-4)
    assert sum(bound.terms.values()) == pytest.approx(bound.value, rel=1e-12)
    assert len(bound.terms) == 5
    assert bound.step_ok is True
    assert float(bound) == bound.value


def test_the_corrected_theorem_vanishes_for_every_contraction():
    T = torch.tensor([1e6, 1e10, 1e14, 1e18], dtype=torch.float64)
    for q in (0.0, 0.9, 0.999):
        bound = theory.convergence_bound(
            1.0, 0.0, **CONSTANTS, q=q, eta=1e-3 * T.rsqrt(), T=T, sigma2=1.0
        )
        assert bool(bound.step_ok.all())
        assert torch.allclose(
            bound.value[1:] / bound.value[:-1], torch.tensor(1e-2).double(), rtol=0.5
        )


def test_too_large_a_step_size_is_said():
    bound = theory.convergence_bound(
        0.7, 0.0, **CONSTANTS, q=0.5, eta=100.0, T=10, sigma2=1.0
    )
    assert bound.step_ok is False
    assert "small enough, which it is not" in str(bound)


def test_a_run_stays_below_the_corrected_theorem():
    torch.manual_seed(0)
    d, n, T = 20, 20, 1500
    w = torch.randn(n, d, dtype=torch.float64)
    w = w / w.norm(dim=-1, keepdim=True)  # losses log(1 + exp(-w x)), G = 1
    x = torch.nn.Parameter(torch.zeros(d, dtype=torch.float64))
    eta, compressor = 1 / math.sqrt(T), TopK(density=0.5)
    optimizer = lp.optim.AMSGrad([x], lr=eta, eps=1.0)
    error, squares = None, []
    for _ in range(T):
        g = -w * torch.sigmoid(-(w @ x.detach())).unsqueeze(-1)
        squares.append(g.mean(0).square().sum().item())
        payload, error = ErrorFeedback(compressor).step(g, error)
        x.grad = payload.dense().mean(0)
        optimizer.step()
    smooth = torch.linalg.eigvalsh(w.T @ w / n).max().item() / 4
    q = compressor.contraction(d)
    bound = theory.convergence_bound(
        math.log(2), 0.0, L=smooth, G=1.0, q=q, beta1=0.9, eps=1.0, eta=eta, T=T,
        n=n, sigma2=0.0, d=d,
    )  # fmt: skip
    assert bound.step_ok is True
    assert sum(squares) / T <= bound.value
    assert error.norm(dim=-1).max() <= theory.error_bound(q, 1.0)
    printed = theory.convergence_bound_as_printed(
        math.log(2), 0.0, L=smooth, G=1.0, q=q, beta1=0.9, beta2=0.999, eps=1.0, T=T,
        n=n, d=d,
    )  # fmt: skip
    assert printed.value > 1e3 * bound.value


def test_the_printed_theorem_says_nothing():
    torch.manual_seed(0)
    count = 20000

    def between(low, high):
        return low * (high / low) ** torch.rand(count, dtype=torch.float64)

    beta2 = 1 - between(1e-4, 0.5)
    G = between(1e-3, 1e3)
    bound = theory.convergence_bound_as_printed(
        0.0, 0.0, L=between(1e-3, 1e3), G=G, q=torch.rand(count).double(),
        beta1=0.99 * beta2.sqrt() * torch.rand(count), beta2=beta2,
        eps=between(1e-10, 1e6), T=1000, n=20, d=10,
    )  # fmt: skip
    fourth = bound.terms["momentum"]
    assert bool((fourth >= 2 * G**2).all())
    assert (fourth / G**2).min() < 2.1
    assert bound.form == "as_printed"
    assert "vacuous: term 4 >= 2G^2" in str(bound)


def test_the_printed_theorem_is_the_one_of_the_paper():
    L, G, q, b1, b2, eps, T, n, d = 0.3, 1.2, 0.6, 0.8, 0.95, 0.01, 400, 4, 7
    one = (1 - b1) / 2 * (eps + (q**2 + 1) * G**2 / (1 - b2)) ** -0.5
    tail = sum(b1 ** (k + 2) for k in range(1, 400))
    two = q**2 + tail * G**2 / (eps * 2 * n**2)
    three = (L / 2 + 1 + b1 * L / (1 - b1)) / (1 - b2) / (1 - b1**2 / b2)
    eta = L / math.sqrt(T)
    expected = [
        1.5 / (L * one * math.sqrt(T)),
        d * L * three / (one * math.sqrt(T)),
        two / (eta * one * T),
        (1 - b1) / one * eps**-0.5 * math.sqrt(q**2 + 1) * G**2,
    ]
    bound = theory.convergence_bound_as_printed(
        2.0, 0.5, L=L, G=G, q=q, beta1=b1, beta2=b2, eps=eps, T=T, n=n, d=d
    )
    assert list(bound.terms.values()) == pytest.approx(expected, rel=1e-12)
    assert bound.value == pytest.approx(sum(expected), rel=1e-12)


@pytest.mark.parametrize("tau", [1, 4, 16, 64])
def test_second_moments_of_sparse_releases_grow_to_the_formula(tau):
    beta2, g, v, largest = 0.99, 0.5, 0.0, 0.0
    for step in range(4000):
        v = beta2 * v + (1 - beta2) * (tau * g if step % tau == 0 else 0.0) ** 2
        largest = max(largest, v)
    expected = theory.largest_second_moment(tau, g, beta2=beta2)
    assert largest == pytest.approx(expected, rel=1e-9)
    ratio = theory.effective_step_ratio(tau, beta2=beta2)
    assert ratio == pytest.approx(g / math.sqrt(expected), rel=1e-12)
    assert theory.effective_step_ratio(tau, beta2=1 - 1e-9) == pytest.approx(
        tau**-0.5, rel=1e-5
    )


def stalled(precision, beta2):
    """The trajectory of v in exact arithmetic, until it stays."""
    rounding = lp.Rounding(lp.format(f"e8m{precision - 1}"))
    beta, v = Fraction(str(beta2)), Fraction(0)
    while (new := Fraction(exact_round(beta * v + 1 - beta, rounding))) != v:
        v = new
    return v


@pytest.mark.parametrize("precision", [2, 3, 4, 8, 9, 10])
@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.9, 0.95, 0.99, 0.995, 0.9921875])
def test_second_moments_stall_where_exact_arithmetic_does(precision, beta2):
    v = theory.second_moment_stall(precision, beta2)
    assert v == stalled(precision, beta2)
    ratio = 2.0**-precision / (1 - beta2)
    assert 1 / (1 + ratio) <= v * (1 + 1e-12)
    assert v <= 1 / (1 + ratio / 2) + 2.0**-precision


def test_second_moments_stall_at_the_reference_values():
    assert theory.second_moment_stall(8, 0.999) == 0.25
    assert theory.second_moment_stall(11, 0.999) == 0.755859375
    assert theory.second_moment_stall(8, 0.99) == pytest.approx(0.8047, abs=1e-4)
    assert theory.second_moment_stall(11, 0.99) == pytest.approx(0.9756, abs=1e-4)


@pytest.mark.parametrize("beta2", [0.5, 0.9, 0.99, 0.999])
def test_decay_is_blocked_where_rounding_returns_the_number(beta2):
    rounding, blocked = lp.Rounding("bfloat16"), set()
    for k in range(128, 257):
        v = Fraction(k, 128)
        rest = Fraction(str(beta2)) * v
        stays = Fraction(exact_round(rest, rounding)) == v
        ulp = Fraction(1, 128) if k > 128 else Fraction(1, 256)
        if k == 256:
            ulp = Fraction(1, 128)
        if (1 - Fraction(str(beta2))) * v != ulp / 2:  # ties depend on the parity
            assert theory.decay_is_blocked(float(v), 8, beta2) == stays
        blocked.add(stays)
    assert blocked == (
        {True} if beta2 == 0.999 else {False} if beta2 < 0.99 else blocked
    )


@pytest.mark.parametrize("precision", [2, 3, 8, 11])
def test_accumulators_stall_where_exact_arithmetic_does(precision):
    rounding = lp.Rounding(lp.format(f"e8m{precision - 1}"))
    for numerator in (8, 9, 12, 15, 16, 31):
        addend = Fraction(numerator, 1024)
        e = Fraction(0)
        while (new := Fraction(exact_round(e + addend, rounding))) != e:
            e = new
        assert theory.accumulator_stall(float(addend), precision) == e


def test_weights_below_the_smallest_step_size_never_move():
    eta = theory.smallest_moving_step_size(2.0**-7, beta1=0.9, beta2=0.999)
    assert eta == pytest.approx(5.4e-4, rel=0.01)


@pytest.mark.parametrize(("k", "d"), [(1, 2), (3, 7), (24, 2410), (0, 5), (5, 5)])
def test_no_code_of_indices_is_shorter_than_the_number_of_subsets(k, d):
    least = theory.subset_bits(k, d)
    assert 2**least >= math.comb(d, k) > 2**least // 2 or least == 0
    packed = theory.payload_bits(k, d, value_bits=0)
    assert least <= packed == min(k * theory.index_bits(d), d)
    assert 2 ** theory.index_bits(d) >= d


def test_bytes_and_break_even_of_the_reference():
    both = {"value_bits": 32, "bits_of_index": 32}
    assert theory.payload_bits(24, 2410, **both) == 192 * 8
    assert theory.payload_bits(24, 2410, value_bits=16) == 84 * 8
    assert theory.break_even_density(20, **both) == 0.05
    n, d = 8, 1000
    density = theory.break_even_density(n, value_bits=16, bits_of_index=10)
    gathered = (n - 1) * density * d * 26
    assert gathered == pytest.approx(2 * (n - 1) / n * d * 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.error_bound(1.0, 1.0), "q must be"),
        (lambda: theory.sent_bound(-0.1, 1.0), "q must be"),
        (lambda: theory.largest_relative_step(0.9, 0.8), "beta1\\^2 < beta2"),
        (lambda: theory.effective_step_ratio(0.5, beta2=0.9), "tau"),
        (lambda: theory.effective_step_ratio(2, beta2=1.0), "beta2"),
        (lambda: theory.second_moment_stall(8, 1.0), "beta2"),
        (lambda: theory.second_moment_stall(1, 0.9), "precision"),
        (lambda: theory.accumulator_stall(0.0, 8), "addend"),
        (lambda: theory.payload_bits(4, 3, value_bits=8), "k must be"),
        (lambda: theory.index_bits(0), "d must be"),
        (
            lambda: theory.break_even_density(0, value_bits=1, bits_of_index=1),
            "workers",
        ),
        (
            lambda: theory.transmission_residual(
                torch.ones(2, 3), torch.ones(2, 3), torch.ones(3)
            ),
            "steps, workers, d",
        ),
        (
            lambda: theory.momentum_residual(
                torch.ones(2, 3), torch.ones(2, 3), torch.ones(3), 0.9
            ),
            "all alike",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
