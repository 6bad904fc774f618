"""The logistic regression on which the central limit theorems are tried out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..measure import LocalModel, local_model

__all__ = ["Problem", "logistic"]

_SAMPLES, _DIMENSION = 1000, 10
_SEED, _PENALTY = 20261121, 0.05
# Up to here the derivative of softplus is 1/(1 + exp(-z)), beyond it 1, as in float64.
_LINEAR_FROM = 40.0


@dataclass(frozen=True)
class Problem:
    """Regularised logistic regression without intercept.

    Args:
        features: w_i, float64 [N, d].
        labels: y_i, 0 or 1, float64 [N].
        penalty: beta, factor of ||x||^2 / 2.
    """

    features: Tensor
    labels: Tensor
    penalty: float

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """Features and labels, as the loss takes them."""
        return self.features, self.labels

    @property
    def start(self) -> Tensor:
        """x_0 = 0."""
        return torch.zeros(self.features.shape[1], dtype=torch.float64)

    def loss(self, x: Tensor, features: Tensor, label: Tensor) -> Tensor:
        """Return the loss of one sample, log(1 + e^z) - y z + beta/2 ||x||^2, z = w x.

        References:
            Li, Xiao and Yang, section 6; its gradient is (sigma(z) - y) w + beta x
            (C16: the printed one lacks a minus sign).
        """
        z = (features * x).sum()
        squares = (x * x).sum()
        return (
            softplus(z, threshold=_LINEAR_FROM)
            - label * z
            + 0.5 * self.penalty * squares
        )

    def gradient(self, x: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Return the gradients of `loss` for one parameter vector per sample.

        What ``torch.func`` derives from the loss, by half as many operations.

        Args:
            x: [M, d].
            features: [M, d].
            labels: [M].

        Returns:
            [M, d].
        """
        error = torch.sigmoid((features * x).sum(1)).sub_(labels)
        return (error.unsqueeze(1) * features).add_(x, alpha=self.penalty)

    @cached_property
    def model(self) -> LocalModel:
        """x*, A and Sigma."""
        return local_model(self.loss, self.data, self.start)


def logistic() -> Problem:
    """Return P0: 1000 samples of 10 normal features, labels drawn from a random model.

    Example:
        >>> f"{logistic().model.hessian.trace().item():.6f}"
        '2.221593'

    References:
        Specification, section 3.
    """
    generator = np.random.default_rng(_SEED)
    features = generator.standard_normal((_SAMPLES, _DIMENSION))
    truth = generator.standard_normal(_DIMENSION)
    chance = 1 / (1 + np.exp(-features @ truth))
    labels = (generator.random(_SAMPLES) < chance).astype(np.float64)
    return Problem(torch.from_numpy(features), torch.from_numpy(labels), _PENALTY)
