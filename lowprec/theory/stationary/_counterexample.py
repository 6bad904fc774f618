"""A convex function whose time average has no limit law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._inputs import Form, check_form, positive

# Largest second derivative of x^3 / sqrt(1 + x^6), at x = 0.545964.
_LARGEST = 2.784124098


@dataclass(frozen=True)
class SkewedQuadratic:
    r"""The counterexample to a central limit theorem for time averages.

    .. math::
        f(x) = \tfrac\kappa2 x^2 + \epsilon \frac{x^3}{\sqrt{1 + x^6}}

    Contract:
        Strongly convex with the minimum 0 for epsilon < kappa / 2.784124. The paper's
        epsilon = kappa = 1 (``form="as_printed"``) is not: f'' reaches -1.784, the
        minimum is at -1.0164, and SGD goes there (erratum C15).

    Args:
        epsilon: weight of the odd term, positive.
        curvature: kappa, positive.
        form: ``"corrected"``; ``"as_printed"`` allows any epsilon.

    Raises:
        ValueError: if an argument is not positive, or f is not strongly convex.

    Example:
        >>> f = SkewedQuadratic(0.3)
        >>> round(f.smallest_curvature, 4), round(f.bias(1.0), 4)
        (0.1648, -0.45)

    References:
        Li, Xiao and Yang, section 5, corrected.
    """

    epsilon: float = 0.3
    curvature: float = 1.0
    form: Form = "corrected"

    def __post_init__(self) -> None:
        """Check that the function is convex."""
        positive("epsilon", self.epsilon)
        positive("curvature", self.curvature)
        if check_form(self.form) and self.smallest_curvature <= 0:
            raise ValueError(
                f"epsilon must be below curvature/2.784124 = "
                f"{self.curvature / _LARGEST:.6g}, got {self.epsilon}: f would not be "
                "convex; form='as_printed' allows it"
            )

    @property
    def smallest_curvature(self) -> float:
        """Infimum of f''."""
        return self.curvature - self.epsilon * _LARGEST

    def __call__(self, x: Tensor) -> Tensor:
        """Return f(x)."""
        return self.curvature * x * x / 2 + self.epsilon * x**3 / torch.sqrt(1 + x**6)

    def gradient(self, x: Tensor) -> Tensor:
        """Return f'(x)."""
        square = x * x
        root = 1 + square * square * square
        return self.curvature * x + 3 * self.epsilon * square / (
            root * torch.sqrt(root)
        )

    def bias(self, variance: float) -> float:
        r"""Return the limit of T_n E xbar_n / S_n, see `time_average_bias`.

        .. math::
            -3 \epsilon \sigma^2 / (2 \kappa^2)

        Args:
            variance: sigma^2 of the gradient.
        """
        if not 0 <= variance < math.inf:
            raise ValueError(f"variance must be finite and >= 0, got {variance}")
        return -3 * self.epsilon * variance / (2 * self.curvature**2)
