"""The randomized index of Theorem 5, as a law and as a sampler of one pass."""

from __future__ import annotations

import math
from typing import Any, Generic, TypeVar

import torch
from torch import Generator, Tensor

from .._inputs import positive

Item = TypeVar("Item")


def index_law(step_sizes: Any) -> Tensor:
    r"""Return the law of the randomized index tau_K on k_0 ... K.

    .. math:: P(\tau_K = k) = \gamma_k \Big/ \sum_{j=k_0}^K \gamma_j

    Contract:
        For gamma_k = gamma_0/(k + 1) and N_0 = k_0 this is the law of the convergence
        notes, P(t + N_0) = 1/(H_k (t + N_0 + 1)).

    Args:
        step_sizes: gamma_{k_0} ... gamma_K, shape [K - k_0 + 1], positive.

    Returns:
        Probabilities, shape of ``step_sizes``, in binary64.

    Raises:
        ValueError: if a step size is not positive and finite, or there is none.

    Example:
        >>> index_law([1.0, 0.5, 0.5])
        tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)

    References:
        "Revisiting ASkewSGD", Theorem 5; convergence notes, Theorem 1.
    """
    steps = positive("step_sizes", step_sizes)
    if steps.ndim != 1 or steps.numel() == 0:
        raise ValueError(
            "step_sizes must be a nonempty sequence of numbers, got shape "
            f"{tuple(steps.shape)}"
        )
    probabilities: Tensor = steps / steps.sum()
    return probabilities


class RandomIterate(Generic[Item]):
    r"""Keep one iterate of a run, drawn with `index_law`, without knowing its length.

    Iterate k replaces the kept one with probability gamma_k / (gamma_{k_0} + ... +
    gamma_k), so that after every step the kept iterate has the law of tau_k.

    Contract:
        Holds one iterate; `offer` says when to pass a copy, so that nothing is copied
        in vain. The probability is exact up to the rounding of the running sum.

    Args:
        generator: source of the draws; None for torch's default generator.

    Example:
        >>> kept = RandomIterate(torch.Generator().manual_seed(0))
        >>> for k in range(100):
        ...     if kept.offer(1 / (k + 1)):
        ...         kept.keep(f"iterate {k}")
        >>> kept.value == f"iterate {kept.index}"
        True

    References:
        "Revisiting ASkewSGD", Theorem 5.
    """

    def __init__(self, generator: Generator | None = None) -> None:
        self.generator = generator
        self.offered = 0
        self.index: int | None = None
        self.value: Item | None = None
        self._total = 0.0

    def offer(self, step_size: float) -> bool:
        """Count one iterate and return whether it is to be kept.

        Args:
            step_size: gamma_k of this iterate, positive.

        Returns:
            Whether to call `keep`; always for the first iterate.

        Raises:
            ValueError: if the step size is not positive and finite.
        """
        if not 0 < step_size < math.inf:
            raise ValueError(
                f"step_size must be positive and finite, got {step_size!r}"
            )
        self._total += step_size
        draw = torch.rand((), generator=self.generator, dtype=torch.float64)
        chosen = bool(draw * self._total < step_size)
        if chosen:
            self.index, self.value = self.offered, None
        self.offered += 1
        return chosen

    def keep(self, value: Item) -> None:
        """Store the iterate that was offered last; pass a copy of what will change."""
        self.value = value
