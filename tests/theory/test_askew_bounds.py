"""Theorems 2 to 4 and Corollary 2: tables, runs below the bounds, false readings."""

import math

import pytest
import torch

from lowprec.theory import askew
from lowprec.theory.askew import Remoteness

TABLE = {"alpha": 0.5, "d": 10, "G": 2.0, "beta": 3.0}

# ---- the table of the specification


@pytest.mark.parametrize(
    ("form", "expected"), [("as_printed", 72.3), ("corrected", 23.14911064)]
)
def test_theorem_2_table(form, expected):
    bound = askew.bound_constant_step(1.0, 0.01, 1000, clip=1.0, **TABLE, form=form)
    assert bound.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("form", "expected"), [("as_printed", 3.80027), ("corrected", 0.4571022128)]
)
def test_theorem_3_table(form, expected):
    bound = askew.bound_small_step(1.0, 0.01, 1000, **TABLE, form=form)
    assert bound.value == pytest.approx(expected, rel=1e-9)


def test_corollary_2_table():
    bound = askew.bound_horizon_step(1.0, 10_000, **TABLE, form="as_printed")
    assert bound.value == pytest.approx(3.62027, rel=1e-9)


def test_theorem_4_by_hand():
    constants = {"clip": 3.0, "d": 9, "G": 5.0, "beta": 0.5}
    bound = askew.bound_decreasing_steps(2.0, [1.0, 0.5], **constants)
    assert bound.floor == pytest.approx(3 * 5 * 3 + 81 / 2, rel=1e-15)
    last = 0.5 * 81 * (1.0 + 0.25) / (2 * 1.5)
    assert bound.value == pytest.approx(2 / 1.5 + bound.floor + last, rel=1e-15)
    printed = askew.bound_decreasing_steps(
        2.0, [0.1, 0.05], **constants, form="as_printed"
    )
    assert (printed.value, printed.floor) == (121.5, 121.5)


# ---- structure


def test_corollary_2_is_theorem_3_at_its_step_size():
    for form in ("corrected", "as_printed"):
        horizon = askew.bound_horizon_step(1.0, 400, **TABLE, form=form)
        small = askew.bound_small_step(1.0, 0.05, 400, **TABLE, form=form)
        assert horizon.value == pytest.approx(small.value, rel=1e-14)
        assert horizon.floor == 0.0


def test_corollary_2_vanishes_as_the_root_of_the_horizon():
    values = [
        askew.bound_horizon_step(1.0, steps, **TABLE).value for steps in (10**8, 10**12)
    ]
    assert values[0] / values[1] == pytest.approx(100.0, rel=1e-2)


@pytest.mark.parametrize("form", ["corrected", "as_printed"])
def test_floor_is_the_limit(form):
    for bound in (
        lambda n: askew.bound_constant_step(1, 0.01, n, clip=1, **TABLE, form=form),
        lambda n: askew.bound_small_step(1, 0.01, n, **TABLE, form=form),
    ):
        assert bound(10**15).value == pytest.approx(bound(1).floor, rel=1e-10)


def test_last_term_of_theorem_3_is_too_large_only_up_to_step_size_two():
    """Erratum E17: 8 against 4 gamma."""
    constants = {"alpha": 1.0, "d": 1, "G": 1e-9, "beta": 1e-9}
    for gamma, larger in ((1.9, True), (2.1, False)):
        printed, corrected = (
            askew.bound_small_step(0.0, gamma, 1, **constants, form=form).floor
            for form in ("as_printed", "corrected")
        )
        common = 4e-18 * gamma
        assert (printed - common > corrected - common) is larger


def test_tensors_broadcast_and_floats_stay_floats():
    gammas = torch.tensor([0.01, 0.02], dtype=torch.float64)
    bound = askew.bound_small_step(
        1.0, gammas[:, None], gammas.new_tensor([10, 20, 30]), **TABLE
    )
    assert bound.value.shape == (2, 3)
    single = askew.bound_small_step(1.0, 0.02, 30, **TABLE)
    assert isinstance(single.value, float)
    assert bound.value[1, 2].item() == single.value
    assert float(single) == single.value


def test_sentences():
    bound = askew.bound_decreasing_steps(
        1.0, [0.1], clip=1.0, d=4, G=2.0, beta=3.0, form="as_printed"
    )
    assert str(bound) == (
        "mean of gamma_k/2 ||v_k||^2 <= 6 (Theorem 4 as printed, which is false, "
        "6 in the limit)"
    )


# ---- runs on random non-convex functions stay below the corrected bounds


class Waves:
    """l(w) = sum_i a_i sin(w_i + b_i) + c (sum_i sin(w_i))^2 / d: smooth, bounded."""

    def __init__(self, d, seed):
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b = torch.rand(2, d, generator=generator, dtype=torch.float64)
        self.b = self.b * 2 * math.pi
        self.d = d
        # |gradient_i| <= a_i + 1; the Hessian is at most max a + 1 + 1 in norm
        self.coordinate = (self.a + 1).max().item()
        self.G = (self.a + 1).square().sum().sqrt().item()
        self.beta = self.a.max().item() + 2.0

    def loss(self, w):
        coupling = torch.sin(w).sum() ** 2 / (2 * self.d)
        return ((self.a * torch.sin(w + self.b)).sum() + coupling).item()

    def gradient(self, w):
        pull = torch.sin(w).sum() / self.d * torch.cos(w)
        return self.a * torch.cos(w + self.b) + pull


def test_constants_of_the_test_function_hold():
    waves = Waves(6, 0)
    w = torch.randn(60, 6, generator=torch.Generator().manual_seed(1)).double() * 3
    exact = torch.func.jacrev(
        lambda x: (
            (waves.a * torch.sin(x + waves.b)).sum()
            + torch.sin(x).sum() ** 2 / (2 * waves.d)
        )
    )
    for point in w:
        assert torch.allclose(waves.gradient(point), exact(point))
        hessian = torch.func.jacrev(waves.gradient)(point)
        assert torch.linalg.matrix_norm(hessian, 2) <= waves.beta
        assert waves.gradient(point).norm() <= waves.G
        assert waves.gradient(point).abs().max() <= waves.coordinate


def run(waves, psi, w, steps, **rates):
    """Return the losses before each step and after the last, and all ||v||^2."""
    losses, squares = [waves.loss(w)], []
    for gamma in steps:
        v = askew.velocity(w, waves.gradient(w), psi, **rates)
        w = w + gamma * v
        losses.append(waves.loss(w))
        squares.append(v.square().sum().item())
    return losses, squares


KINDS = ("quadratic", "quartic")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_theorem_2_holds_for_each_horizon(kind, seed):
    waves, psi = Waves(6, seed), Remoteness((-1, 1), 0.3, kind)
    rates = {"alpha": 2.0, "clip": 0.8}
    gamma = 0.9 / waves.beta
    start = torch.randn(6, generator=torch.Generator().manual_seed(seed)).double() * 2
    losses, squares = run(waves, psi, start, [gamma] * 120, **rates)
    for n in range(1, 121):
        bound = askew.bound_constant_step(
            losses[0] - losses[n], gamma, n, d=6, G=waves.G, beta=waves.beta, **rates
        )
        # the proof bounds the mean, and so does the theorem
        assert sum(squares[:n]) / n <= bound.value


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_theorem_3_holds_after_the_count_of_lemma_5(kind, seed):
    waves, psi = Waves(6, seed), Remoteness((-1, 1), 0.3, kind)
    rates = {"alpha": 2.0, "clip": 1.5}
    limits = {"G": waves.coordinate, "beta": waves.beta}
    gamma = 0.999 * askew.max_stepsize(psi, **rates, **limits)
    start = torch.randn(6, generator=torch.Generator().manual_seed(seed)).double()
    first = askew.lemma5_count(
        psi.distance(start).max().item(), psi, **rates, G=waves.coordinate, gamma=gamma
    )
    assert first > 0
    losses, squares = run(waves, psi, start, [gamma] * (first + 150), **rates)
    for n in range(1, 151):
        bound = askew.bound_small_step(
            losses[first] - losses[first + n],
            gamma,
            n,
            alpha=rates["alpha"],
            d=6,
            G=waves.G,
            beta=waves.beta,
        )
        assert sum(squares[first : first + n]) / n <= bound.value


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_theorem_4_holds_for_each_horizon(kind, seed):
    waves, psi = Waves(6, seed), Remoteness((-1, 1), 0.3, kind)
    rates = {"alpha": 2.0, "clip": 0.8}
    steps = [0.9 / waves.beta / (1 + 0.1 * k) for k in range(120)]
    start = torch.randn(6, generator=torch.Generator().manual_seed(seed)).double() * 2
    losses, squares = run(waves, psi, start, steps, **rates)
    for n in range(1, 121, 7):
        taken = steps[:n]
        weighted = sum(g * v / 2 for g, v in zip(taken, squares, strict=False))
        bound = askew.bound_decreasing_steps(
            losses[0] - losses[n],
            taken,
            clip=rates["clip"],
            d=6,
            G=waves.G,
            beta=waves.beta,
        )
        assert weighted / sum(taken) <= bound.value


# ---- what the corrections are needed for


def test_theorem_3_as_printed_is_false_without_smoothness():
    """Erratum E8: |w| is 1-Lipschitz and has no Lipschitz gradient.

    Around the kink inside C the update is a gradient of length one for ever.
    """
    psi = Remoteness((-1, 1), 0.2)
    gamma, alpha = 1e-3, 0.1
    w = torch.tensor(1.0 + gamma / 2, dtype=torch.float64)
    lengths = []
    for _ in range(400):
        v = askew.velocity(w, torch.sign(w - 1.0), psi, alpha=alpha, clip=1.0)
        w = w + gamma * v
        lengths.append(v.square().item())
    printed = askew.bound_small_step(
        1e-3, gamma, 400, alpha=alpha, d=1, G=1.0, beta=1.0, form="as_printed"
    )
    assert min(lengths) == 1.0
    assert printed.value < 0.01


def test_bound_of_theorem_2_as_printed_needs_smoothness_too():
    """Erratum E8, with a small clip that makes the printed bound small."""
    psi = Remoteness((-1, 1), 0.2)
    constants = {"alpha": 0.1, "clip": 0.01, "d": 1, "G": 1.0, "beta": 1.0}
    printed = askew.bound_constant_step(0.0, 1e-3, 2000, **constants, form="as_printed")
    assert printed.value < 0.1
    w = torch.tensor([1.0005, 0.9995], dtype=torch.float64)  # the two-point orbit
    v = askew.velocity(w, torch.sign(w - 1.0), psi, alpha=0.1, clip=0.01)
    assert v.square().tolist() == [1.0, 1.0]
    assert (w + 1e-3 * v).tolist() == pytest.approx([0.9995, 1.0005], abs=1e-15)


# ---- refusals


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"gamma": 0.4}, "below 1/beta"),
        ({"gamma": 0.0}, "gamma must be positive"),
        ({"steps": 0}, "steps counts steps"),
        ({"steps": 1.5}, "steps counts steps"),
        ({"d": 0}, "d counts"),
        ({"G": -1.0}, "G must be positive"),
        ({"alpha": math.nan}, "alpha must be positive"),
        ({"decrease": math.inf}, "decrease must be finite"),
        ({"form": "printed"}, "form must be"),
    ],
)
def test_bad_input_is_refused(change, text):
    given = {"decrease": 1.0, "gamma": 0.01, "steps": 10, **TABLE} | change
    with pytest.raises(ValueError, match=text):
        askew.bound_small_step(**given)
    with pytest.raises(ValueError, match=text):
        askew.bound_constant_step(**given, clip=1.0)


def test_printed_form_needs_steps_below_one_over_its_one_constant():
    with pytest.raises(ValueError, match=r"below 1/L = 0\.2"):
        askew.bound_small_step(
            1.0, 0.25, 10, alpha=1.0, d=1, G=5.0, beta=1.0, form="as_printed"
        )


def test_horizon_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="below 1/beta"):
        askew.bound_horizon_step(1.0, 4, **TABLE)


@pytest.mark.parametrize("steps", [[], [[0.1]], [0.1, 0.5], [0.1, -0.1]])
def test_bad_step_sizes_are_refused(steps):
    with pytest.raises(ValueError, match=r"step_sizes|gamma"):
        askew.bound_decreasing_steps(1.0, steps, clip=1.0, d=1, G=1.0, beta=3.0)
