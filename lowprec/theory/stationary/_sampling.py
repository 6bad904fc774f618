"""How exactly a covariance can be known from a number of replicas."""

from __future__ import annotations

import math
from typing import Any

from .._inputs import count
from ._matrices import covariance


def effective_dimension(W: Any) -> float:
    r"""Return the number of directions that a covariance occupies.

    .. math::
        d_{eff} = (\mathrm{tr}\, W)^2 / \|W\|_F^2

    Args:
        W: covariance, d x d.

    Returns:
        A number from 1 (one direction) to d (all alike).

    Raises:
        ValueError: if W is zero or no covariance.

    Example:
        >>> import torch
        >>> effective_dimension(torch.eye(3))
        3.0
    """
    matrix = covariance("W", W)
    size = (matrix**2).sum().item()
    if size == 0:
        raise ValueError("W must not be zero: no direction is occupied")
    trace: float = matrix.trace().item()
    return trace**2 / size


def sampling_floor(W: Any, M: int, *, known_mean: bool = True) -> float:
    r"""Return the relative error of a covariance from M independent Gaussian samples.

    .. math::
        \sqrt{E \|\tilde W - W\|_F^2} / \|W\|_F = \sqrt{(1 + d_{eff}) / M}

    Contract:
        A root mean square over repetitions; the mean is a little smaller. No
        simulation with M replicas comes closer to theory.

    Args:
        W: covariance, d x d.
        M: number of samples.
        known_mean: whether deviations are from the true mean; with the sample's mean
            and M - 1 in the denominator, the floor has M - 1 too.

    Returns:
        A positive number.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> sampling_floor(torch.eye(3), 100)
        0.2
    """
    samples = float(count("M", M)) - (0 if known_mean else 1)
    if samples < 1:
        raise ValueError(f"M must be at least 2 if the mean is estimated, got {M}")
    return math.sqrt((1 + effective_dimension(W)) / samples)
