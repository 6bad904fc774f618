"""The low-precision gradient of multinomial logistic regression, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import gemm, round
from ..kernels.exact import add_to_odd, divide_to_odd, multiply_to_odd
from ..random import split_seed
from ..rounding import Accumulator, Rounding

__all__ = ["GradientPipeline"]

_STAGES = 8
# Rounding to odd in float64 keeps what the rounding to the operand format needs.
_TO_ODD: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    torch.add: add_to_odd,
    torch.sub: lambda a, b: add_to_odd(a, -b),
    torch.mul: multiply_to_odd,
    torch.div: divide_to_odd,
}


@dataclass(frozen=True)
class GradientPipeline:
    """Gradient of f(W) = mean_i [logsumexp(x_i W) - x_i W y_i] + lam/2 ||W||^2.

    In this order, with fl the operand rounding and dot the accumulated product:
    Wq = fl(W); Z = dot(X, Wq); P = fl(softmax(Z)); E = fl(P - Y); A = dot(X^T, E);
    g = fl(A / n), with a penalty fl(g + fl(lam Wq)).

    Contract:
        Every stage rounds its exact value once, except softmax, which is computed in
        float64 first. Operand rounding None and accumulator None is float64 throughout.

    Args:
        operand: rounding of operands and stages, or None.
        accumulator: of both inner products, or None.
        penalty: lam, the factor of the squared norm.

    References:
        Cacciola et al., section 5.2; specification section 4.1.
    """

    operand: Rounding | None
    accumulator: Accumulator | None
    penalty: float = 0.0

    def __call__(
        self, features: Tensor, targets: Tensor, weights: Tensor, seed: Tensor
    ) -> Tensor:
        """Return the gradient at ``weights``.

        Args:
            features: X, float64 [n, D].
            targets: Y, one-hot float64 [n, C].
            weights: W, float64 [D, C].
            seed: 0-d int64; only stochastic stages use it.

        Returns:
            The gradient, float64 [D, C].
        """
        seeds = split_seed(seed, _STAGES)
        operands = self._round(weights, seeds[0])
        logits = gemm(features, operands, self.accumulator, seeds[1])
        probabilities = self._round(torch.softmax(logits, dim=1), seeds[2])
        error = self._compute(torch.sub, probabilities, targets, seeds[3])
        total = gemm(features.T, error, self.accumulator, seeds[4])
        samples = total.new_tensor(float(features.shape[0]))
        gradient = self._compute(torch.div, total, samples, seeds[5])
        if self.penalty:
            factor = total.new_tensor(self.penalty)
            decay = self._compute(torch.mul, factor, operands, seeds[6])
            gradient = self._compute(torch.add, gradient, decay, seeds[7])
        return gradient

    def _compute(
        self, operation: Callable[..., Tensor], a: Tensor, b: Tensor, seed: Tensor
    ) -> Tensor:
        """Return fl(a op b): the exact result, rounded once."""
        if self.operand is None:
            return operation(a, b)
        return self._round(_TO_ODD[operation](a, b), seed)

    def _round(self, x: Tensor, seed: Tensor) -> Tensor:
        if self.operand is None:
            return x
        return round(x, self.operand, seed=seed if self.operand.stochastic else None)
