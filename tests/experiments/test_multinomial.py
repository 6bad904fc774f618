"""G1 (optimum part), G9: minimisers of multinomial logistic regression."""

import pytest
import torch

from lowprec.experiments import data, growth, multinomial
from lowprec.theory import sgd


def objective(name, samples=None, penalty=0.0):
    dataset = data.load(name, samples=samples)
    return multinomial.Objective(
        dataset.features, dataset.labels, dataset.classes, penalty
    )


# Specification 6.3 and 6.6: f* and C_0 = ||w*||.
OPTIMA = [
    ("S1", 128, 1.5353306073353854, 10.28247966),
    ("S1", 512, 1.6474490858876636, 7.80091755),
    ("S1", 2048, 1.7104066748523852, 6.99443742),
    ("S1", 65536, 1.7049339107665957, 7.01182187),
]


@pytest.mark.parametrize(("name", "samples", "value", "norm"), OPTIMA)
def test_reference_optima(name, samples, value, norm):
    optimum = multinomial.minimise(objective(name, samples))
    assert optimum.value == pytest.approx(value, rel=0, abs=1e-9)
    assert optimum.weights.norm().item() == pytest.approx(norm, abs=1e-6)
    assert optimum.gradient_norm <= 1e-12


def test_digits_optimum():
    optimum = multinomial.minimise(objective("digits"))
    assert optimum.value == pytest.approx(1.07225075, abs=1e-8)
    assert optimum.weights.norm().item() == pytest.approx(21.5076, abs=1e-4)


def test_digits_with_all_features_and_a_penalty():
    penalised = objective("digits-full", penalty=1e-3)
    optimum = multinomial.minimise(penalised)
    norm = optimum.weights.norm().item()
    # The specification's f* = .141563 is the mean loss without the penalty.
    assert optimum.value - 0.0005 * norm**2 == pytest.approx(0.141563, abs=1e-6)
    assert norm == pytest.approx(15.577, abs=1e-3)
    right = (penalised.features @ optimum.weights).argmax(dim=1) == penalised.labels
    assert right.double().mean().item() == pytest.approx(0.979, abs=1e-3)


def test_the_minimiser_has_the_smallest_norm():
    # A column of zeros and a doubled column leave the minimiser undetermined.
    s1 = data.s1(200)
    x = torch.cat([s1.features, torch.zeros(200, 1), s1.features[:, :1]], dim=1)
    weights = multinomial.minimise(multinomial.Objective(x, s1.labels, 10)).weights
    assert weights.sum(dim=1).abs().max() < 1e-12
    assert weights[3].abs().max() == 0
    assert (weights[0] - weights[4]).abs().max() < 1e-9


def test_scikit_learn_finds_the_same_minimum():
    from sklearn.linear_model import LogisticRegression

    digits = objective("digits", penalty=0.1)
    ours = multinomial.minimise(digits)
    n = len(digits.labels)
    theirs = LogisticRegression(C=1 / (0.1 * n), fit_intercept=False, tol=1e-10)
    theirs.fit(digits.features.numpy(), digits.labels.numpy())
    found = torch.from_numpy(theirs.coef_.T)
    assert (found - ours.weights).norm() <= 1e-6


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_derivatives_agree_with_autograd(penalty):
    f = objective("S1", 32, penalty)
    generator = torch.Generator().manual_seed(0)
    w, v = torch.randn(2, 3, 10, dtype=torch.float64, generator=generator)

    def loss(weights):
        cross_entropy = torch.nn.functional.cross_entropy
        data_term = cross_entropy(f.features @ weights, f.labels)
        return data_term + penalty / 2 * weights.square().sum()

    assert f.value(w) == pytest.approx(loss(w).item(), rel=1e-14)
    gradient = torch.func.grad(loss)
    assert (f.gradient(w) - gradient(w)).abs().max() < 1e-15
    _, product = torch.func.jvp(gradient, (w,), (v,))
    assert (f.hessian(w)(v) - product).abs().max() < 1e-14


def test_separable_data_are_refused():
    with pytest.raises(ValueError, match=r"the data are linearly separable.*penalty"):
        multinomial.minimise(objective("digits-full"))


def test_one_separable_class_is_refused():
    # The classes touch at 0, so that no weights classify all samples with a margin.
    x = torch.tensor([[-1.0, 1], [0, 1], [0, 1], [1, 1]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"next Newton step has norm.*penalty"):
        multinomial.minimise(multinomial.Objective(x, torch.tensor([0, 0, 1, 1]), 2))


def test_a_class_without_samples_is_refused():
    s1 = data.s1(512)
    kept = s1.labels != 9
    incomplete = multinomial.Objective(s1.features[kept], s1.labels[kept], 10)
    with pytest.raises(ValueError, match=r"have no samples.*penalty"):
        multinomial.minimise(incomplete)
    multinomial.minimise(multinomial.Objective(s1.features[kept], s1.labels[kept], 9))


@pytest.mark.parametrize(
    ("labels", "penalty", "message"),
    [
        ([0, 1], 0.0, r"labels shape \[n\], got \(3, 2\) and \(2,\)"),
        ([0, 1, 2], 0.0, "labels must lie in 0 ... 1, got 0 ... 2"),
        ([0, 1, -1], 0.0, "labels must lie in 0 ... 1, got -1 ... 1"),
        ([0, 1, 1], -1.0, "penalty must be 0 or more and finite, got -1.0"),
        ([0, 1, 1], float("nan"), "penalty must be 0 or more and finite, got nan"),
    ],
)
def test_wrong_objectives_are_explained(labels, penalty, message):
    features = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        multinomial.Objective(features, torch.tensor(labels), 2, penalty)


@pytest.mark.slow
def test_growth_around_the_optimum():
    """G9: the fit of p and L, and that it lies above the loss."""
    f = objective("S1", 512)
    optimum = multinomial.minimise(f)
    modulus = growth.measure(f, optimum)
    constant = sgd.holder_constant(modulus.rho, modulus.omega, 2.0)
    assert 0.0915 <= constant <= 0.0940
    # The orders of specification 6.3 belong to radii 1/16 ... 8.
    near = (modulus.rho >= 2**-4) & (modulus.rho <= 8)
    assert 1.9 <= sgd.holder_fit(modulus.rho[near], modulus.omega[near]).p <= 2
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        v = torch.randn(3, 10, dtype=torch.float64, generator=generator)
        rho = 2.0 ** (9 * torch.rand((), generator=generator).item() - 6)
        gap = f.value(optimum.weights + rho * v / v.norm()) - optimum.value
        assert gap <= constant * rho**2 * (1 + 1e-9)
