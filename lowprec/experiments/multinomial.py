"""Multinomial logistic regression in float64: objective, gradient, minimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Objective", "Optimum", "minimise", "remove_class_mean"]

_TOLERANCE = 1e-12
_ITERATIONS = 200
_LARGEST_NORM = 1e6
_SEPARABLE = (
    "no minimiser exists: the data are linearly separable, so that the objective falls "
    "for ever as the weights grow; use a positive penalty"
)


def remove_class_mean(weights: Tensor) -> Tensor:
    """Return the representative of minimum norm among weights with the same softmax.

    Adding one vector to the weights of all classes changes nothing.

    Args:
        weights: [..., D, C] or flattened to C-sized rows.

    Returns:
        ``weights`` minus their mean over the classes.
    """
    return weights - weights.mean(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Objective:
    """f(W) = mean_i [logsumexp(x_i W) - x_i W y_i] + lam/2 ||W||^2.

    Args:
        features: X, float64 [n, D].
        labels: int64 [n].
        classes: C.
        penalty: lam.

    References:
        Specification section 4.1.
    """

    features: Tensor
    labels: Tensor
    classes: int
    penalty: float = 0.0

    def value(self, weights: Tensor) -> float:
        """Return f(W)."""
        logits = self.features @ weights
        chosen = logits.gather(1, self.labels.unsqueeze(1)).squeeze(1)
        loss = (torch.logsumexp(logits, dim=1) - chosen).mean()
        return float(loss + 0.5 * self.penalty * weights.square().sum())

    def gradient(self, weights: Tensor) -> Tensor:
        """Return the gradient, [D, C]."""
        error = torch.softmax(self.features @ weights, dim=1)
        error[torch.arange(len(error)), self.labels] -= 1
        return self.features.T @ error / len(error) + self.penalty * weights

    def smallest_margin(self, weights: Tensor) -> float:
        """Return the least lead of the right class's logit over the others'."""
        logits = self.features @ weights
        labels = self.labels.unsqueeze(1)
        right = logits.gather(1, labels)
        others = logits.scatter(1, labels, -math.inf)
        return float((right.squeeze(1) - others.amax(dim=1)).min())

    def hessian(self, weights: Tensor) -> Tensor:
        """Return the Hessian over flattened weights, [D C, D C]."""
        x, n = self.features, len(self.features)
        p = torch.softmax(x @ weights, dim=1)
        size, classes = x.shape[1], self.classes
        result = x.new_empty(size, classes, size, classes)
        for c in range(classes):
            for d in range(c, classes):
                curvature = p[:, c] * (float(c == d) - p[:, d])
                block = (x * curvature.unsqueeze(1)).T @ x / n
                result[:, c, :, d] = block
                result[:, d, :, c] = block
        flat = result.reshape(size * classes, size * classes)
        return flat + self.penalty * torch.eye(size * classes, dtype=x.dtype)


@dataclass(frozen=True)
class Optimum:
    """A minimiser found to float64 accuracy.

    Args:
        weights: W*, [D, C], class-mean free.
        value: f*.
        gradient_norm: norm of the gradient at W*.
    """

    weights: Tensor
    value: float
    gradient_norm: float


def minimise(objective: Objective) -> Optimum:
    """Minimise by damped Newton steps to ||gradient|| <= 1e-12.

    Contract:
        The Hessian's null space (adding a vector to all classes) is removed, so that
        the minimiser of minimum norm is returned.

    Args:
        objective: what to minimise.

    Returns:
        The minimiser.

    Raises:
        ValueError: if the data are separable or nearly so, so that no minimiser
            exists: a penalty makes one.
    """
    weights = objective.features.new_zeros(objective.features.shape[1], objective.classes)
    value = objective.value(weights)
    size = weights.shape[0]
    classes = objective.classes
    # Lifts the null space without changing Newton steps on its complement.
    shift = torch.kron(
        torch.eye(size, dtype=torch.float64),
        torch.full((classes, classes), 1.0 / classes, dtype=torch.float64),
    )
    for _ in range(_ITERATIONS):
        gradient = objective.gradient(weights)
        norm = float(gradient.norm())
        if norm <= _TOLERANCE:
            break
        hessian = objective.hessian(weights) + shift
        ridge = 1e-14 * float(hessian.diagonal().max())
        hessian.diagonal().add_(ridge)
        step = torch.linalg.solve(hessian, gradient.reshape(-1)).reshape(weights.shape)
        weights, value = _damped(objective, weights, value, step, gradient)
        if float(weights.norm()) > _LARGEST_NORM:
            break
    gradient_norm = float(objective.gradient(weights).norm())
    if not gradient_norm <= _TOLERANCE:
        raise ValueError(
            f"no minimiser was found: the gradient norm is {gradient_norm:.1e} at weights "
            f"of norm {float(weights.norm()):.1e}. The data are probably separable, so that "
            "the infimum is not attained: use a positive penalty"
        )
    if objective.penalty == 0 and objective.smallest_margin(weights) > 0:
        raise ValueError(_SEPARABLE)
    weights = remove_class_mean(weights)
    return Optimum(weights, objective.value(weights), gradient_norm)


def _damped(
    objective: Objective, weights: Tensor, value: float, step: Tensor, gradient: Tensor
) -> tuple[Tensor, float]:
    """Halve the Newton step until the objective falls enough (Armijo)."""
    slope = float((step * gradient).sum())
    length = 1.0
    while length > 1e-10:
        trial = weights - length * step
        reached = objective.value(trial)
        # Near the minimum the objective's own rounding hides the decrease.
        noise = 1e-14 * abs(value)
        if math.isfinite(reached) and reached <= value - 1e-4 * length * slope + noise:
            return trial, reached
        length /= 2
    return weights - step, value
