"""Multinomial logistic regression in float64: objective, gradient, minimiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Objective", "Optimum", "minimise", "remove_class_mean"]

_TOLERANCE = 1e-12
_STEP_TOLERANCE = 1e-6
_ITERATIONS = 200
_POLISHING = 5
_CONJUGATE_STEPS = 2000
_NOISE = 1e-15
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

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1]:
            raise ValueError(
                "features must have shape [n, D] and labels shape [n], got "
                f"{tuple(self.features.shape)} and {tuple(self.labels.shape)}"
            )
        if not self.labels.numel():
            raise ValueError("there are no samples: give one or more")
        least, largest = int(self.labels.min()), int(self.labels.max())
        if least < 0 or largest >= self.classes:
            raise ValueError(
                f"labels must lie in 0 ... {self.classes - 1}, "
                f"got {least} ... {largest}"
            )
        if not 0 <= self.penalty < math.inf:
            raise ValueError(
                f"penalty must be 0 or more and finite, got {self.penalty}"
            )

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

    def hessian(self, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the Hessian at W as the map V -> H V, both [D, C]."""
        x = self.features
        p = torch.softmax(x @ weights, dim=1)  # [n, C]

        def product(direction: Tensor) -> Tensor:
            logits = x @ direction
            change = p * (logits - (p * logits).sum(dim=1, keepdim=True))
            return x.T @ change / len(x) + self.penalty * direction

        return product

    def smallest_margin(self, weights: Tensor) -> float:
        """Return the least lead of the right class's logit over the others'."""
        logits = self.features @ weights
        labels = self.labels.unsqueeze(1)
        right = logits.gather(1, labels)
        others = logits.scatter(1, labels, -math.inf)
        return float((right.squeeze(1) - others.amax(dim=1)).min())


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
        The steps are found by conjugate gradients from zero, which stay in the range
        of the Hessian: directions that change nothing (one vector added to all
        classes, features that are never used) are never taken, and the minimiser of
        minimum norm is returned. A small gradient alone proves nothing: where the
        infimum is not attained, gradient and curvature vanish together, but the Newton
        step does not. It must be at most 1e-6 (1 + ||W||) as well.

    Args:
        objective: what to minimise.

    Returns:
        The minimiser.

    Raises:
        ValueError: if no minimiser exists, because the classes or some of them are
            separable or a class has no samples: a penalty makes one.

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [0.0]], dtype=torch.float64) + 1
        >>> found = minimise(Objective(x, torch.tensor([0, 0, 1]), 2))
        >>> 2 * found.weights / math.log(2)  # odds of two to one
        tensor([[ 1.0000, -1.0000]], dtype=torch.float64)

    References:
        Nocedal and Wright, Numerical Optimization, section 7.1.
    """
    weights = objective.features.new_zeros(
        objective.features.shape[1], objective.classes
    )
    polishing = 0
    for _ in range(_ITERATIONS):
        gradient = objective.gradient(weights)
        norm = float(gradient.norm())
        step = _newton_step(objective, weights, gradient)
        small = float(step.norm()) <= _STEP_TOLERANCE * (1 + float(weights.norm()))
        if norm <= _TOLERANCE:
            if small:
                return _optimum(objective, weights)
            polishing += 1
            if polishing > _POLISHING:
                break
        weights = _damped(objective, weights, step, gradient)
        if objective.penalty == 0 and objective.smallest_margin(weights) > 0:
            raise ValueError(_SEPARABLE)
    raise ValueError(
        f"no minimiser was found: the gradient norm is {norm:.1e} at weights of norm "
        f"{float(weights.norm()):.1e}, and the next Newton step has norm "
        f"{float(step.norm()):.1e}. Some classes are probably separable or have no "
        "samples, so that the infimum is not attained: use a positive penalty"
    )


def _optimum(objective: Objective, weights: Tensor) -> Optimum:
    centred = remove_class_mean(weights)
    norm = float(objective.gradient(centred).norm())
    return Optimum(centred, objective.value(centred), norm)


def _newton_step(objective: Objective, weights: Tensor, gradient: Tensor) -> Tensor:
    """Solve H step = gradient, the better the smaller the gradient is."""
    hessian = objective.hessian(weights)
    # Directions that change nothing have no curvature but that of rounding errors.
    scale = float(objective.features.square().sum(dim=1).mean()) + objective.penalty
    flat = torch.finfo(torch.float64).eps * scale
    step = torch.zeros_like(gradient)
    residual = direction = remove_class_mean(gradient)
    squared = float(residual.square().sum())
    norm = math.sqrt(squared)
    target = max(min(0.5, math.sqrt(norm)) * norm, _NOISE) ** 2
    for _ in range(_CONJUGATE_STEPS):
        if squared <= target:
            break
        image = remove_class_mean(hessian(direction))
        curvature = float((direction * image).sum())
        if curvature <= flat * float(direction.square().sum()):
            break
        step = step + squared / curvature * direction
        residual = residual - squared / curvature * image
        previous, squared = squared, float(residual.square().sum())
        direction = residual + squared / previous * direction
    return step


def _damped(
    objective: Objective, weights: Tensor, step: Tensor, gradient: Tensor
) -> Tensor:
    """Halve the Newton step until the objective falls enough (Armijo)."""
    value = objective.value(weights)
    slope = float((step * gradient).sum())
    # Near the minimum the objective's own rounding hides the decrease.
    noise = 1e-14 * abs(value)
    length = 1.0
    while length > 1e-10:
        trial = weights - length * step
        if objective.value(trial) <= value - 1e-4 * length * slope + noise:
            return trial
        length /= 2
    return weights
