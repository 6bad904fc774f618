"""Covariances of iterates and velocities together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._matrices import Eigenbasis


@dataclass(frozen=True, kw_only=True, eq=False)
class JointCovariance:
    """Covariance of Z = (x - x*, v), in blocks.

    Args:
        position: E (x - x*)(x - x*)^T, [..., d, d].
        cross: E v (x - x*)^T, [..., d, d], rows belong to v; None for SGD.
        velocity: E v v^T, [..., d, d]; None for SGD.

    Example:
        >>> one = torch.eye(1)
        >>> JointCovariance(position=2 * one, cross=0 * one, velocity=one).matrix
        tensor([[2., 0.],
                [0., 1.]])
    """

    position: Tensor
    cross: Tensor | None = None
    velocity: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """The blocks as one matrix, [..., 2d, 2d] or [..., d, d] for SGD."""
        if self.cross is None or self.velocity is None:
            return self.position
        upper = torch.cat([self.position, self.cross.mT], -1)
        return torch.cat([upper, torch.cat([self.cross, self.velocity], -1)], -2)

    def __truediv__(self, scale: float | Tensor) -> JointCovariance:
        """Return the covariance over a step size; a tensor divides leading entries."""
        if isinstance(scale, Tensor) and scale.dim() > 0:
            scale = scale[..., None, None]
        return JointCovariance(
            position=self.position / scale,
            cross=None if self.cross is None else self.cross / scale,
            velocity=None if self.velocity is None else self.velocity / scale,
        )


def from_pairs(pairs: Tensor, basis: Eigenbasis) -> JointCovariance:
    """Return a covariance from its entries in the eigenbasis.

    Args:
        pairs: E Z_i Z_j^T for eigenvectors i and j, [..., d, d, m, m], where m is 1
            for x alone and 2 for x and v.
        basis: of the Hessian.
    """
    position = basis.back(pairs[..., 0, 0])
    position = (position + position.mT) / 2
    if pairs.shape[-1] == 1:
        return JointCovariance(position=position)
    velocity = basis.back(pairs[..., 1, 1])
    return JointCovariance(
        position=position,
        cross=basis.back(pairs[..., 1, 0]),
        velocity=(velocity + velocity.mT) / 2,
    )
