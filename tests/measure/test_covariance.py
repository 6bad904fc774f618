"""Covariances of replicas and of gradients, and the minimiser they are taken at."""

import math

import numpy as np
import pytest
import torch

from lowprec.measure import local_model, relative_error, scaled_covariance


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def squares(x, target, weight):
    return weight * (x - target).square().sum() / 2


TARGETS = normal(1, 50, 3), normal(2, 50).exp()


def test_around_the_mean_the_covariance_is_numpys():
    x = normal(0, 40, 3)
    expected = torch.from_numpy(np.cov(x.numpy().T)) / 0.25
    assert relative_error(scaled_covariance(x, 0.25, centre="mean"), expected) < 1e-14


def test_around_a_point_a_shift_counts():
    x, shift = normal(0, 40, 3), torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    x = x - x.mean(0)
    around = scaled_covariance(x + shift, 0.25, centre=torch.zeros(3))
    expected = scaled_covariance(x, 0.25, centre="mean") * 39 / 40
    assert relative_error(around, expected + torch.outer(shift, shift) / 0.25) < 1e-14


def test_norms_of_errors_are_numpys():
    a, b = normal(3, 4, 4), normal(4, 4, 4)
    for norm in ("fro", 2):
        expected = np.linalg.norm(a - b, norm) / np.linalg.norm(b, norm)
        assert relative_error(a, b, norm) == pytest.approx(expected, rel=1e-12)


def test_weighted_squares_have_a_known_local_model():
    """The minimiser is the weighted mean, A the mean weight, Sigma by its formula."""
    targets, weights = TARGETS
    model = local_model(squares, TARGETS, torch.zeros(3, dtype=torch.float64))
    mean = (weights.unsqueeze(1) * targets).sum(0) / weights.sum()
    assert (model.minimiser - mean).norm() < 1e-13
    hessian = weights.mean() * torch.eye(3, dtype=torch.float64)
    assert relative_error(model.hessian, hessian) < 1e-14
    gradients = weights.unsqueeze(1) * (mean - targets)
    assert relative_error(model.noise, gradients.T @ gradients / 50) < 1e-12
    assert relative_error(model.gradients, gradients) < 1e-12


def test_newton_finds_a_minimum_that_full_steps_miss():
    """log cosh: Newton's full steps diverge from |x| > 1.09."""

    def loss(x, target):
        return torch.log(torch.cosh(x - target)).sum()

    target = torch.tensor([0.25], dtype=torch.float64)
    model = local_model(loss, (target,), torch.tensor([3.0], dtype=torch.float64))
    assert abs(model.minimiser.item() - 0.25) < 1e-14


def test_hessians_that_are_not_positive_definite_are_refused():
    def saddle(x, sample):
        return (x[0].square() - x[1].square()) * sample

    data, start = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    with pytest.raises(
        ValueError, match="positive definite, got smallest eigenvalue -2"
    ):
        local_model(saddle, (data,), start)


def test_a_tolerance_below_rounding_errors_is_refused():
    with pytest.raises(ValueError, match="above the tolerance 1e-30"):
        local_model(squares, TARGETS, torch.ones(3).double(), tolerance=1e-30)


X = torch.zeros(5, 2, dtype=torch.float64)
BAD = [
    ((X[0], 1.0, "mean"), r"one replica per row, \[M, d\], got \(2,\)"),
    ((X, 0.0, "mean"), "scale must be positive and finite, got 0.0"),
    ((X, math.nan, "mean"), "scale must be positive and finite, got nan"),
    ((X, 1.0, X), r"centre must have the shape \(2,\) of a replica, got \(5, 2\)"),
    ((X, 1.0, "median"), "a tensor or 'mean', got 'median'"),
    ((X[:1], 1.0, "mean"), "needs 2 or more replicas"),
    ((X[:0], 1.0, X[0]), "one or more finite replicas, got 0 of 0"),
    ((X / 0, 1.0, X[0]), "finite replicas, got 5 of 5 that are not"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_covariances_are_refused(arguments, message):
    x, scale, centre = arguments
    with pytest.raises(ValueError, match=message):
        scaled_covariance(x, scale, centre=centre)


def test_unknown_norms_are_refused():
    with pytest.raises(ValueError, match="norm must be 'fro' or 2, got 'nuc'"):
        relative_error(X.T @ X, X.T @ X, "nuc")


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (X[:1].T @ X[:1], "not zero, got a norm of 0.0"),
        (torch.full((2, 2), math.nan), "finite and not zero, got a norm of nan"),
        (torch.ones(1, 2), r"one shape, got \(2, 2\) and \(1, 2\)"),
    ],
)
def test_errors_relative_to_nothing_are_refused(expected, message):
    with pytest.raises(ValueError, match=message):
        relative_error(torch.eye(2), expected)
