"""Remoteness from a quantization set, psi, for optimizers and for theory alike.

Every step is an elementwise operation of torch that autograd knows.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

# "quadratic" is Definition 3 of "Revisiting ASkewSGD", "quartic" Definition 2;
# "quartic_ext" continues the quartic of the end cells beyond the hull, as all published
# code does.
Kind: TypeAlias = Literal["quadratic", "quartic", "quartic_ext"]


def remoteness_between(
    w: Tensor,
    cell: tuple[Tensor, Tensor],
    hull: tuple[Tensor, Tensor],
    epsilon: float,
    kind: Kind,
) -> tuple[Tensor, Tensor]:
    r"""Return psi(w) and its derivative, from the right at a kink.

    .. math::
        \psi = \epsilon - s \text{ (quadratic)}, \quad \epsilon - s^2
        \text{ (quartic)}, \qquad s = (w - a)(b - w)

    Args:
        w: weights, in units of the levels.
        cell: levels a and b around each weight; beyond the hull those of the end cell.
        hull: lowest and highest level, outside of which s is the distance to them
            unless the kind is ``"quartic_ext"``.
        epsilon: slack.
        kind: of the remoteness.
    """
    lower, upper = cell
    slope = lower + upper - w - w
    s = (w - lower) * (upper - w)
    if kind != "quartic_ext":
        first, last = hull
        left, right = w < first, w >= last
        s = torch.where(left, first - w, torch.where(right, w - last, s))
        slope = torch.where(left, -1.0, torch.where(right, 1.0, slope))
    if kind == "quadratic":
        return epsilon - s, -slope
    return epsilon - s * s, slope * s * -2
