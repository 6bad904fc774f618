"""Hoelder growth: known moduli, the linear program, and logistic regression."""

import math

import numpy as np
import pytest
import torch

from lowprec.theory import sgd


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_radii_are_half_octaves():
    radii = sgd.default_radii()
    assert radii[0].item() == 2.0**-7
    assert radii[-1].item() == pytest.approx(2.0**4.5, rel=1e-15)
    assert radii.numel() == 24


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_radial_powers_are_recovered(p, generator):
    centre = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = sgd.growth_modulus(
        lambda w: 3.0 * (w - centre).norm() ** p, None, centre, generator=generator
    )
    reference = 3.0 * sgd.default_radii() ** p
    torch.testing.assert_close(found.omega, reference, rtol=1e-12, atol=0.0)
    fit = sgd.holder_fit(found.rho, found.omega, max_order=4.0)
    assert [fit.p, fit.L] == pytest.approx([p, 3.0], rel=1e-7)
    assert sgd.holder_constant(found.rho, found.omega, p) == pytest.approx(3.0)


def test_quadratic_finds_its_largest_eigenvalue(generator):
    x = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    matrix = x @ x.T
    largest = torch.linalg.eigvalsh(matrix)[-1]
    found = sgd.growth_modulus(
        lambda w: w @ matrix @ w / 2,
        lambda w: matrix @ w,
        torch.zeros(12),
        [0.1, 3.0],
        iterations=2000,
        generator=generator,
    )
    reference = largest / 2 * torch.tensor([0.01, 9.0], dtype=torch.float64)
    torch.testing.assert_close(found.omega, reference, rtol=1e-6, atol=0.0)


def test_matrix_weights_and_any_order_of_radii(generator):
    centre = torch.ones(2, 3, dtype=torch.float64)
    found = sgd.growth_modulus(
        lambda w: (w - centre).square().sum() + 7.0,
        None,
        centre,
        [2.0, 0.5, 1.0],
        generator=generator,
    )
    assert found.f_star == 7.0
    torch.testing.assert_close(
        found.omega, torch.tensor([4.0, 0.25, 1.0], dtype=torch.float64)
    )


def test_fit_is_an_envelope_and_no_power_law_is_closer():
    rho = sgd.default_radii()
    omega = torch.log1p(rho**2)
    fit = sgd.holder_fit(rho, omega)
    gap = math.log(fit.L) + fit.p * rho.log() - omega.log()
    assert gap.min() >= -1e-12
    assert gap.exp().max().item() == pytest.approx(fit.largest_ratio)
    for p in np.linspace(0.01, 2, 400):
        constant = sgd.holder_constant(rho, omega, p)
        other = math.log(constant) + p * rho.log() - omega.log()
        assert other.sum() >= gap.sum() - 1e-9


def test_zero_moduli_constrain_nothing():
    with_zero = sgd.holder_fit([0.5, 1.0, 2.0], [0.0, 1.0, 3.0])
    without = sgd.holder_fit([1.0, 2.0], [1.0, 3.0])
    assert (with_zero.p, with_zero.L) == (without.p, without.L)


def test_constants_for_many_orders():
    orders = torch.tensor([1.0, 2.0])
    constants = sgd.holder_constant([1.0, 2.0], [1.0, 3.0], orders)
    assert constants.tolist() == [1.5, 1.0]


def test_bad_input_is_explained(generator):
    w = torch.zeros(2)
    with pytest.raises(ValueError, match="starts must be 4 or more, got 3"):
        sgd.growth_modulus(torch.sum, None, w, starts=3)
    with pytest.raises(ValueError, match="iterations must be 1 or more"):
        sgd.growth_modulus(torch.sum, None, w, iterations=0)
    with pytest.raises(ValueError, match="rho must be positive"):
        sgd.growth_modulus(torch.sum, None, w, [0.0])
    with pytest.raises(ValueError, match="two or more radii"):
        sgd.holder_fit([1.0, 2.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="vectors of the same length"):
        sgd.holder_constant([1.0, 2.0], [1.0], 1.0)
    with pytest.raises(ValueError, match="0 < min_order <= max_order"):
        sgd.holder_fit([1.0, 2.0], [1.0, 2.0], min_order=3.0)
    with pytest.raises(ValueError, match="omega must be finite"):
        sgd.holder_fit([1.0, 2.0], [1.0, math.inf])


# ---- Logistic regression on the synthetic data set S1(512, 1), specification 5.4


def splitmix64(seed, i):
    mask = 2**64 - 1
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def synthetic(n, seed):
    angles = [2 * math.pi * c / 10 for c in range(10)]
    centres = [
        (round(48 * math.cos(a)) / 64, round(48 * math.sin(a)) / 64) for a in angles
    ]
    labels = [splitmix64(1000 * seed, i) % 10 for i in range(n)]
    rows = []
    for i, label in enumerate(labels):
        features = []
        for j in range(2):
            word = splitmix64(1000 * seed + 1 + j, i)
            total = sum((word >> (8 * byte)) & 255 for byte in range(4))
            features.append(centres[label][j] + (total - 510) / 256)
        rows.append(features)
    x = torch.tensor(rows, dtype=torch.float32).to(torch.bfloat16).to(torch.float64)
    return torch.cat([x, torch.ones(n, 1, dtype=torch.float64)], 1), torch.tensor(
        labels
    )


@pytest.fixture(scope="module")
def logistic():
    """Objective, gradient and minimum-norm minimiser, by damped Newton."""
    x, labels = synthetic(512, 1)
    assert x[:3, :2].tolist() == [
        [-0.02734375, 0.42578125],
        [-1.25, -0.109375],
        [1.5078125, 1.84375],
    ]
    target = torch.nn.functional.one_hot(labels, 10).to(torch.float64)

    def f(w):
        z = x @ w
        return (torch.logsumexp(z, 1) - (z * target).sum(1)).mean()

    def gradient(w):
        return x.T @ (torch.softmax(x @ w, 1) - target) / len(x)

    w = torch.zeros(3, 10, dtype=torch.float64)
    for _ in range(50):
        probability = torch.softmax(x @ w, 1)
        curvature = torch.diag_embed(probability) - torch.einsum(
            "ic,id->icd", probability, probability
        )
        hessian = torch.einsum("ia,icd,ib->acbd", x, curvature, x) / len(x)
        slope = gradient(w).reshape(-1)
        step = torch.linalg.pinv(hessian.reshape(30, 30), rtol=1e-12) @ slope
        length = 1.0
        while f(w - length * step.reshape(3, 10)) > f(w) and length > 1e-6:
            length /= 2
        w = w - length * step.reshape(3, 10)
    assert gradient(w).norm() <= 1e-12
    return f, gradient, w - w.mean(1, keepdim=True)


def test_logistic_reference_values(logistic):
    f, _, w_star = logistic
    assert f(w_star).item() == pytest.approx(1.6474490858876636, rel=1e-9)
    assert w_star.norm().item() == pytest.approx(7.80091755, rel=1e-6)


def test_logistic_growth(logistic, generator):
    f, gradient, w_star = logistic
    radii = [0.02, 0.5, 1.0, math.sqrt(2), 4.0, 8.0, 16.0]
    found = sgd.growth_modulus(f, gradient, w_star, radii, generator=generator)
    ratios = found.omega / found.rho**2
    # Table 6.3 of the specification lists local maxima from radius 4; the second row
    # is what 60 random starts reach, and the default number with this seed.
    listed = [0.09058, 0.0906, 0.0923, 0.0930, 0.0852, 0.0713, 0.0482]
    reached = [0.09058, 0.0906, 0.0923, 0.0930, 0.08586, 0.07175, 0.04860]
    assert ratios.tolist() == pytest.approx(reached, abs=6e-5)
    assert all(x >= y - 6e-5 for x, y in zip(ratios.tolist(), listed, strict=True))


def test_logistic_fit(logistic, generator):
    f, gradient, w_star = logistic
    radii = 2.0 ** (torch.arange(-8, 7, dtype=torch.float64) / 2)
    found = sgd.growth_modulus(
        f, gradient, w_star, radii, starts=6, generator=generator
    )
    fit = sgd.holder_fit(found.rho, found.omega)
    constant = sgd.holder_constant(found.rho, found.omega, 2.0)
    assert 0.0915 <= constant <= 0.0940
    assert 1.9 <= fit.p <= 2.0
    lowest = f(w_star)
    for _ in range(200):
        v = torch.randn(3, 10, dtype=torch.float64, generator=generator)
        rho = 2.0 ** (9 * torch.rand((), generator=generator).item() - 6)
        value = f(w_star + rho * v / v.norm()) - lowest
        assert value <= constant * rho**2 * (1 + 1e-9)
