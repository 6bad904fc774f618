"""Theorems in simulation: bounds are attained, never violated, and misread ones are."""

import math

import numpy as np
import pytest
import torch

from lowprec.theory import sgd


class Attained:
    """The quasi-convex f in the plane that turns Theorem 4.1 into an equality.

    f = L (B gauge(w))^p with the gauge of the convex hull of a ball of radius
    B = Gamma(c) and two points a, b at distance c. A step from one of them in the
    direction of its outer tangent normal can be pushed to the other by admissible
    errors, for ever.
    """

    def __init__(self, eta, R, S, c, L=1.0, p=1.0):
        self.eta, self.R, self.S, self.L, self.p = eta, R, S, L, p
        self.B = sgd.gamma_deterministic(eta, R, S, c)
        angle = math.acos(self.B / c)
        turn = math.atan2(eta * math.sin(angle), c - eta * math.cos(angle))
        self.vertices = [c * unit(0.0), c * unit(-turn)]
        self.normals = [unit(angle), unit(-turn - angle)]
        corners = [(0.0, angle), (-turn, angle)]
        tangents = [unit(x + sign * y) for x, y in corners for sign in (1, -1)]
        self.tangents = np.array(tangents)

    def f(self, w):
        candidates = np.vstack([self.tangents, w / np.linalg.norm(w)])
        support = np.maximum(self.B, (candidates @ np.array(self.vertices).T).max(1))
        gauge = (candidates @ w / support).max()
        return self.L * (self.B * gauge) ** self.p

    def step(self, w, normal, target):
        """Return w + the step, and the errors r, s that make it end at target."""
        error = target - (w - self.eta * normal)
        share = self.eta * self.R + self.S
        r, s = -error * self.R / share, error * self.S / share
        return w - self.eta * (normal + r) + s, r, s

    def check_is_admissible(self):
        """The tangent normals are quasi-subgradients and f grows as L dist^p."""
        for vertex, normal in zip(self.vertices, self.normals, strict=True):
            largest = max(self.B, *(normal @ other for other in self.vertices))
            assert normal @ vertex >= largest * (1 - 1e-12)
        for angle in np.linspace(0, 2 * math.pi, 97):
            assert self.f(unit(angle)) <= self.L * (1 + 1e-12)


def unit(angle):
    return np.array([math.cos(angle), math.sin(angle)])


def random_informative(count, seed):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        R, c = generator.uniform(0, 0.95), 10 ** generator.uniform(-1, 1)
        S = generator.uniform(0.01, 0.95) * c * (1 - R)
        interval = sgd.informative_interval(R, S, c)
        share = generator.uniform(0.02, 0.98)
        eta = interval.lower + share * (interval.upper - interval.lower)
        yield eta, R, S, c


# ---- Theorem 4.1 is attained


def run_attained(case, steps, tolerance):
    bound = case.L * case.B**case.p
    case.check_is_admissible()
    w, now = case.vertices[0], 0
    for _ in range(steps):
        assert case.f(w) / bound == pytest.approx(1.0, abs=tolerance)
        w, r, s = case.step(w, case.normals[now], case.vertices[1 - now])
        assert np.linalg.norm(r) <= case.R * (1 + tolerance)
        assert np.linalg.norm(s) <= case.S * (1 + tolerance)
        now = 1 - now


def test_liminf_bound_is_attained_for_ever():
    case = Attained(0.5, 0.4, 0.05, 2.0, L=3.0, p=0.2)
    assert abs(case.B - 1.1875) < 1e-15
    run_attained(case, 5000, 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_liminf_bound_is_attained_for_random_parameters(seed):
    for eta, R, S, c in random_informative(10, seed):
        run_attained(Attained(eta, R, S, c, L=2.0, p=0.7), 200, 1e-9)


def test_distance_to_start_does_not_bound_the_limit_inferior():
    """Erratum E11: a run that starts at C_0 = 1.9 climbs out to radius 2 and stays."""
    case = Attained(0.5, 0.4, 0.05, 2.0)
    radius = sgd.gamma_deterministic(0.5, 0.4, 0.05, 1.9)
    assert radius == pytest.approx(1.1375, rel=1e-14)
    scale, now, values = 0.95, 0, []
    reach = case.eta * case.R + case.S
    for _ in range(400):
        w = scale * case.vertices[now]
        values.append(case.f(w))
        moved = w - case.eta * case.normals[now]
        ray = case.vertices[1 - now] / 2.0
        along = moved @ ray
        across = math.sqrt(max(moved @ moved - along**2, 0.0))
        scale = min((along + math.sqrt(reach**2 - across**2)) / 2.0, 1.0)
        _, r, s = case.step(w, case.normals[now], scale * case.vertices[1 - now])
        assert np.linalg.norm(r) <= case.R * (1 + 1e-12)
        assert np.linalg.norm(s) <= case.S * (1 + 1e-12)
        now = 1 - now
    assert min(values) <= radius  # Theorem 4.2 with K -> infinity holds
    assert min(values[100:]) > radius  # Theorem 4.1 with c = C_0 does not
    assert values[-1] == pytest.approx(1.1875, rel=1e-5)


# ---- Theorem 4.2 is never violated


def test_finite_bound_survives_radial_adversary_and_printed_one_does_not():
    generator = np.random.default_rng(0)
    printed_violations = 0
    for _ in range(500):
        C_0 = 10 ** generator.uniform(-1, 2)
        eta = C_0 * 10 ** generator.uniform(-3, 0)
        R, S = generator.uniform(0, 0.8), eta * generator.uniform(0, 0.3)
        K, p = int(generator.integers(1, 400)), generator.uniform(0.2, 2)
        distance = closest = C_0
        for _ in range(K - 1):
            distance = abs(distance - eta) + eta * R + S
            closest = min(closest, distance)
        growth = {"L": 2.0, "p": p, "K": K}
        corrected = sgd.bound_running_min(eta, R, S, C_0, **growth)
        printed = sgd.bound_running_min(eta, R, S, C_0, form="as_printed", **growth)
        reached = 2.0 * closest**p
        assert reached <= corrected.value * (1 + 1e-12)
        printed_violations += reached > printed.value * (1 + 1e-9)
    assert printed_violations > 10


# ---- Theorem 4.3 and the certificate


def noisy_run(eta, B_r, B_s, steps, seed, dimension=40, project=None):
    """Normalised descent on ||w|| with uniform errors; eta may vary by step."""
    generator = np.random.default_rng(seed)
    w = generator.standard_normal(dimension)
    w /= np.linalg.norm(w)
    iterates, directions, rs, ss, distances = [], [], [], [], []
    for k in range(steps):
        step = eta[k] if np.ndim(eta) else eta
        g = w / np.linalg.norm(w)
        r = generator.uniform(-B_r, B_r, dimension)
        s = generator.uniform(-B_s, B_s, dimension)
        for store, value in zip(
            (iterates, directions, rs, ss), (w, g, r, s), strict=True
        ):
            store.append(torch.from_numpy(value))
        distances.append(np.linalg.norm(w))
        w = w - step * (g + r) + s
        if project is not None:
            w = w * min(1.0, project / np.linalg.norm(w))
    distances.append(np.linalg.norm(w))
    quantities = sgd.step_quantities(
        *(torch.stack(store) for store in (iterates, directions, rs, ss)),
        torch.zeros(dimension),
    )
    return quantities, np.array(distances)


def certify(eta, quantities, distances, **options):
    return sgd.certificate(
        eta,
        *quantities[:4],
        D_0=distances[0],
        D_K=distances[-1],
        f=distances[:-1] ** options.get("p", 1.0),
        direction2=quantities.direction2,
        **options,
    )


@pytest.mark.parametrize("B_s", [0.1, 0.01])
def test_stationary_distance_is_the_stochastic_radius(B_s):
    """E||w|| = Gamma_s exactly; the mean has sd 0.2 % (12 seeds), 3 % is allowed."""
    eta = 0.343
    _, distances = noisy_run(eta, 0.1, B_s, 6000, seed=1)
    radius = sgd.gamma_stochastic(
        eta, d_sigma_r2=40 * 0.1**2 / 3, d_sigma_s2=40 * B_s**2 / 3
    )
    assert distances[750:].mean() == pytest.approx(radius, rel=0.03)


@pytest.mark.parametrize(("first", "last"), [(0, 800), (400, 800), (17, 18)])
def test_identity_and_certificate_hold_on_every_window(first, last):
    eta = 0.1
    quantities, distances = noisy_run(eta, 0.1, 0.1, 800, seed=2)
    rows = slice(first, last)
    window = sgd.StepQuantities(
        quantities.phi[rows],
        quantities.r2[rows],
        quantities.s2[rows],
        sgd.CrossTerms(*(term[rows] for term in quantities.cross)),
        quantities.direction2[rows],
    )
    run = certify(eta, window, distances[first : last + 1], p=0.2)
    assert abs(run.residual) <= 1e-9 * run.mean_phi
    assert run.holds
    assert run.growth_violations == 0
    assert run.steps == last - first
    assert run.bound == pytest.approx(run.mean_phi**0.2, rel=1e-15)
    assert "min f(w_k) <=" in str(run)


def test_unbiased_run_is_described_by_the_stochastic_bound():
    """Under the hypotheses the score is about normal: 5 fails once in 10^6 seeds."""
    eta = 0.343
    quantities, distances = noisy_run(eta, 0.1, 0.1, 1500, seed=3)
    run = certify(eta, quantities, distances)
    assert run.stochastic_bound_applies
    assert abs(run.bias_score) < 5
    assert run.gamma_stochastic == pytest.approx(0.388730126323, rel=0.01)
    assert abs(run.bias) < 0.1 * run.gamma_stochastic


def test_identity_with_variable_steps():
    eta = np.random.default_rng(4).uniform(0.05, 0.5, 300)
    quantities, distances = noisy_run(eta, 0.1, 0.05, 300, seed=4)
    run = certify(torch.from_numpy(eta), quantities, distances)
    assert abs(run.residual) <= 1e-12 * run.mean_phi
    assert run.mean_phi == pytest.approx(
        (eta * quantities.phi.numpy()).sum() / eta.sum(), rel=1e-14
    )


def test_projection_turns_the_identity_into_an_inequality():
    quantities, distances = noisy_run(0.1, 0.3, 0.3, 300, seed=5, project=0.8)
    run = certify(0.1, quantities, distances)
    assert run.residual < 0
    assert run.holds


def test_skipped_steps_need_their_zero_direction():
    quantities, distances = noisy_run(0.1, 0.1, 0.1, 3, seed=6)
    idle = sgd.StepQuantities(
        *(0 * x for x in quantities[:3]),
        sgd.CrossTerms(*(0 * term for term in quantities.cross)),
        0 * quantities.direction2,
    )
    run = certify(0.1, idle, np.full(4, distances[0]))
    assert run.residual == 0
    assert run.step == 0


def test_stagnation_invalidates_the_stochastic_bound():
    """Erratum E9: f = |w|, eta = 2^-9, bfloat16 to nearest; 1.5 never moves."""
    eta, w = 2.0**-9, 1.5
    spacing = 2.0**-7
    assert round((w - eta) / spacing) * spacing == w
    s = w - (w - eta)
    cross = sgd.CrossTerms(0.0, s, 0.0, 0.0, s * w)
    run = sgd.certificate(
        eta, [w] * 2000, 0.0, s * s, cross, D_0=w, D_K=w, f=[w] * 2000
    )
    assert run.residual == 0
    assert run.stochastic_bound == pytest.approx(0.001953125, rel=1e-12)
    assert 0.0019 <= run.gamma_stochastic <= 0.0020
    assert run.bound == run.smallest_value == 1.5
    assert run.holds
    assert not run.stochastic_bound_applies
    assert run.bias_score == pytest.approx(math.sqrt(2000))
    assert "does NOT apply" in str(run)
    deterministic = sgd.bound_running_min(eta, 0.0, s, 1.5, L=1.0, p=1.0)
    assert deterministic.value == pytest.approx(1.5, rel=1e-12)


def test_exactly_normalised_gradient_is_biased_but_safe():
    """Erratum E10: <g, r> = -||r||^2/2 identically."""
    generator = np.random.default_rng(7)
    g = torch.from_numpy(generator.standard_normal((50, 5)))
    g /= g.norm(dim=1, keepdim=True)
    other = g + 0.3 * torch.from_numpy(generator.standard_normal((50, 5)))
    r = other / other.norm(dim=1, keepdim=True) - g
    quantities = sgd.step_quantities(g, g, r, 0 * r, 0 * g[0])
    gap = quantities.cross.direction_gradient + quantities.r2 / 2
    assert gap.abs().max() < 1e-15


def test_certificate_takes_a_table_of_cross_terms():
    quantities, distances = noisy_run(0.1, 0.1, 0.1, 20, seed=8)
    table = torch.stack(list(quantities.cross), dim=1)
    ends = {"D_0": distances[0], "D_K": distances[-1]}
    by_table = sgd.certificate(0.1, *quantities[:3], table.numpy(), **ends)
    by_name = sgd.certificate(0.1, *quantities[:4], **ends)
    assert by_table == by_name


def test_bounds_beyond_the_float_range_are_infinite():
    zero = [[0.0] * 5]
    ends = {"D_0": 1e200, "D_K": 1e200, "p": 2.0}
    run = sgd.certificate(0.5, [1e200], [1e201], 0.0, zero, **ends)
    assert run.bound == run.stochastic_bound == math.inf


def test_negative_phi_is_reported():
    run = sgd.certificate(
        0.1, [-1.0, 0.5], 0.0, 0.0, [[0.0] * 5] * 2, D_0=1.0, D_K=1.0, f=[1.0, 1.0]
    )
    assert run.smallest_phi == -1.0
    assert run.bound == math.inf
    assert run.growth_violations == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 0.0}, "eta must be positive"),
        ({"phi": []}, "phi is empty"),
        ({"phi": [math.nan, 1.0]}, "phi must be finite"),
        ({"r2": [0.0] * 3}, "r2 must have one entry per step"),
        ({"s2": -1.0}, "s2 must be nonnegative"),
        ({"cross": [0.0] * 5}, r"cross must be CrossTerms or have shape \(2, 5\)"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"D_K": math.inf}, "D_K must be finite"),
    ],
)
def test_bad_certificates_are_explained(changes, message):
    arguments = {
        "eta": 0.1,
        "phi": [1.0, 1.0],
        "r2": 0.0,
        "s2": 0.0,
        "cross": sgd.CrossTerms(0.0, 0.0, 0.0, 0.0, 0.0),
        "D_0": 1.0,
        "D_K": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        sgd.certificate(**{**arguments, **changes})


def test_shapes_of_step_quantities_are_checked():
    w = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"r must have shape \(3, 2\)"):
        sgd.step_quantities(w, w, w[:2], w, w[0])
    with pytest.raises(ValueError, match=r"w_star must have shape \(2,\)"):
        sgd.step_quantities(w, w, w, w, w)
