"""The weight update w - eta d in a format, and the step size that goes with it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from enum import Enum
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import NumericalWarning
from ..rounding import Rounding, RoundingLike, RoundingMode, Saturation, as_rounding
from ._exact import Term, by_pieces, round_exact, round_sum, scaled

UpdateLike = Literal["fused", "two_step"]


class Purpose(int, Enum):
    """Which seed of a step each rounding uses; part of the numerical contract."""

    PARAMETER = 0
    PRODUCT = 1
    MOMENTUM = 2
    DIRECTION = 3


Seeds = tuple[Tensor, ...]


def check_update(update: Any) -> None:
    """Refuse unknown ways to round the update.

    Raises:
        ValueError: naming the two that exist.
    """
    if update not in ("fused", "two_step"):
        raise ValueError(
            f"update must be 'fused', one rounding of w - lr*d, or 'two_step', which "
            f"rounds lr*d too, got {update!r}"
        )


def rounded_step_size(lr: float | Tensor, rounding: RoundingLike | None) -> float:
    r"""Return the step size that an update in a format really uses.

    .. math::
        \hat\eta = \mathrm{fl}(\eta), \quad\text{to nearest even, whatever the mode.}

    Contract:
        Use this value in bounds and measurements too. A stochastic or directed mode
        would make the step size itself noisy or biased, so it is not applied here.

    Args:
        lr: step size, finite.
        rounding: rounding of the parameters; None returns ``lr``.

    Returns:
        A value of the format.

    Raises:
        ValueError: if ``lr`` exceeds the format's largest value or is not finite.

    Warns:
        NumericalWarning: if a positive ``lr`` rounds to zero, so that nothing moves.

    Example:
        >>> rounded_step_size(0.1, "bfloat16")
        0.10009765625

    References:
        Cacciola et al., section 3.2, where eta is a member of the update format.
    """
    eta = float(lr)
    if rounding is None:
        return eta
    fl = as_rounding(rounding)
    largest = fl.format.max
    if not abs(eta) <= largest:
        raise ValueError(
            f"the learning rate {eta:g} is beyond {float(largest):g}, the largest "
            f"value of {fl.format!r}: use a smaller one or a wider param_format"
        )
    nearest = replace(fl, mode=RoundingMode.NEAREST_EVEN, saturation=Saturation.NONE)
    value = round_exact(torch.tensor(eta, dtype=torch.float64), nearest, None, 0).item()
    if value == 0 and eta != 0:
        warnings.warn(
            f"the learning rate {eta:g} is zero in {fl.format!r}: parameters do not "
            "move; use a larger one or a wider param_format",
            NumericalWarning,
            stacklevel=3,
        )
    return value


def update_weights(
    weights: Tensor,
    direction: Tensor,
    eta: float,
    rounding: Rounding,
    *,
    update: UpdateLike = "fused",
    seeds: Seeds | None = None,
    offset: int = 0,
) -> Tensor:
    """Return fl(w - eta d), or fl(w - fl(eta d)) for ``two_step``, in w's dtype.

    Each fl rounds the exact value once; `check_storage` says for which dtypes.
    """
    sum_seed = product_seed = None
    if seeds is not None:
        sum_seed, product_seed = seeds[Purpose.PARAMETER], seeds[Purpose.PRODUCT]

    def updated(weights: Tensor, direction: Tensor, offset: int) -> Tensor:
        start = Term(weights.to(torch.float64))
        if update == "fused":
            step = scaled(-eta, direction, rounding)
        else:
            product = [scaled(eta, direction, rounding)]
            change = round_sum(product, rounding, torch.float64, product_seed, offset)
            step = Term(-change)
        return round_sum([start, step], rounding, weights.dtype, sum_seed, offset)

    return by_pieces(updated, [weights, direction], offset)
