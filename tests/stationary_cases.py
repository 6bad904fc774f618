"""Matrices for tests of limit covariances."""

import numpy as np
import torch


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
