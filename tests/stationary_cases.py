"""Matrices and simulations for tests of limit covariances."""

import math

import numpy as np
import torch

import lowprec as lp


def spd(d, seed):
    """A symmetric positive definite matrix with eigenvalues in [0.2, 5]."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(
        torch.randn(d, d, generator=generator, dtype=torch.float64)
    ).Q
    values = torch.rand(d, generator=generator, dtype=torch.float64)
    return (basis * (0.2 * 25**values)) @ basis.T


def logistic_regression():
    """Hessian, gradient covariance, gradients and minimum of the specification's P0."""
    generator = np.random.default_rng(20261121)
    w = generator.standard_normal((1000, 10))
    t = generator.standard_normal(10)
    y = generator.random(1000) < 1 / (1 + np.exp(-w @ t))
    x = np.zeros(10)
    for _ in range(20):  # Newton
        p = 1 / (1 + np.exp(-w @ x))
        gradients = (p - y)[:, None] * w + 0.05 * x
        hessian = (w * (p * (1 - p))[:, None]).T @ w / 1000 + 0.05 * np.eye(10)
        x = x - np.linalg.solve(hessian, gradients.mean(0))
    assert np.linalg.norm(gradients.mean(0)) < 1e-14
    return hessian, np.cov(gradients.T, bias=True), gradients, x


def grid(delta, mode="stochastic"):
    """A rounding to multiples of delta, up to 2^25 of them."""
    exponent = round(math.log2(delta))
    return lp.Rounding(lp.Format(precision=26, emin=exponent + 25, emax=500), mode)


def simulate(
    iteration,
    A,
    Sigma,
    steps,
    *,
    M,
    delta=None,
    velocity_delta=None,
    gradient_delta=None,
    start=1,
    burn=0,
):
    """Mean of Z Z^T over M replicas and the steps after the first ``burn``."""
    generator = torch.Generator().manual_seed(20261126)
    d = len(A)
    root = torch.linalg.cholesky(Sigma)
    x, v = torch.zeros(2, M, d, dtype=torch.float64)
    total = torch.zeros(2 * d, 2 * d, dtype=torch.float64)
    of_x = None if delta is None else grid(delta)
    of_g = None if gradient_delta is None else grid(gradient_delta)
    of_v = None if velocity_delta is None else grid(velocity_delta)

    def stored(value, rounding):
        return (
            value
            if rounding is None
            else lp.round(value, rounding, generator=generator)
        )

    for k in range(start, start + steps):
        alpha, retained, advance, ahead = iteration.coefficients(k)
        point = stored(x + ahead * v, of_x) if ahead else x
        noise = torch.randn(M, d, generator=generator, dtype=torch.float64) @ root.T
        g = stored(point @ A + noise, of_g)
        v = stored(retained * v - alpha * g, of_v)
        x = stored(x + advance * v, of_x)
        if k >= start + burn:
            z = torch.cat([x, v], 1)
            total += z.T @ z
    return total / (M * (steps - burn))
