"""The weight update w - eta d in a format, and the step size that goes with it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from enum import Enum
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import NumericalWarning
from ..rounding import Rounding, RoundingLike, RoundingMode, Saturation, as_rounding
from ._exact import Term, by_pieces, round_exact, round_sum, scaled

UpdateLike = Literal["fused", "two_step", "kahan", "master"]


class Purpose(int, Enum):
    """Which seed of a step each rounding uses; part of the numerical contract."""

    PARAMETER = 0
    PRODUCT = 1
    MOMENTUM = 2
    DIRECTION = 3
    SECOND_MOMENT = 4
    DECAY = 5


Seeds = tuple[Tensor, ...]

_MEANINGS = {
    "fused": "one rounding of w - lr*d",
    "two_step": "rounds lr*d too",
    "kahan": "keeps what the last step lost, in the format",
    "master": "keeps unrounded weights and stores them rounded",
}
# What an update keeps beside the parameter, by its name in the optimizer's state.
_KEPT = {"kahan": "compensation", "master": "master"}


def check_update(update: Any, allowed: tuple[str, ...] = tuple(_MEANINGS)) -> None:
    """Refuse unknown ways to round the update.

    Raises:
        ValueError: naming those that exist.
    """
    if update not in allowed:
        choices = [f"{name!r} ({_MEANINGS[name]})" for name in allowed]
        raise ValueError(
            f"update must be {', '.join(choices[:-1])} or {choices[-1]}, got {update!r}"
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


def kept_name(group: dict[str, Any]) -> str | None:
    """Return the state's name of what the update keeps; None if it keeps nothing.

    Where parameters are not rounded, no update loses anything that could be kept.
    """
    return None if group["param_format"] is None else _KEPT.get(group["update"])


def step_size(group: dict[str, Any]) -> float:
    """Return the step size of a group; unrounded if the carrier's weights move."""
    in_carrier = group["update"] == "master"
    return rounded_step_size(group["lr"], None if in_carrier else group["param_format"])


class Stored(NamedTuple):
    """Weights of the format, and what the update keeps for the next step."""

    weights: Tensor
    kept: Tensor | None = None


def store_master(
    master: Tensor, rounding: Rounding, seeds: Seeds | None, offset: int
) -> Stored:
    """Return the rounded copy of weights that stay in their dtype."""
    seed = _seed_of(seeds, Purpose.PARAMETER)
    return Stored(round_exact(master, rounding, seed, offset), master)


def store_update(
    weights: Tensor,
    kept: Tensor | None,
    direction: Tensor,
    eta: float,
    rounding: Rounding,
    *,
    update: UpdateLike,
    shrink: float = 0.0,
    seeds: Seeds | None = None,
    offset: int = 0,
) -> Stored:
    """Return what `update_weights` or `update_compensated` does, by ``update``."""
    options: dict[str, Any] = {"shrink": shrink, "seeds": seeds, "offset": offset}
    if update == "kahan":
        lost = torch.zeros_like(weights) if kept is None else kept
        return update_compensated(weights, lost, direction, eta, rounding, **options)
    return Stored(
        update_weights(weights, direction, eta, rounding, update=update, **options)
    )


def update_weights(
    weights: Tensor,
    direction: Tensor,
    eta: float,
    rounding: Rounding,
    *,
    update: UpdateLike = "fused",
    shrink: float = 0.0,
    seeds: Seeds | None = None,
    offset: int = 0,
) -> Tensor:
    """Return fl(w - s w - eta d), in w's dtype, with ``shrink`` s.

    ``two_step`` means fl(fl(w - s w) - fl(eta d)). Each fl rounds the exact value
    once; `check_storage` says for which dtypes.
    """

    def updated(weights: Tensor, direction: Tensor, offset: int) -> Tensor:
        def total(terms: list[Term], purpose: Purpose) -> Tensor:
            seed = _seed_of(seeds, purpose)
            return round_sum(terms, rounding, weights.dtype, seed, offset)

        start = [Term(weights.to(torch.float64))]
        if shrink != 0:
            start.append(scaled(-shrink, weights, rounding))
        if update == "fused":
            return total([*start, scaled(-eta, direction, rounding)], Purpose.PARAMETER)
        if shrink != 0:
            start = [Term(total(start, Purpose.DECAY).to(torch.float64))]
        product = [scaled(eta, direction, rounding)]
        change = total(product, Purpose.PRODUCT).to(torch.float64)
        return total([*start, Term(-change)], Purpose.PARAMETER)

    return by_pieces(updated, [weights, direction], offset)


def update_compensated(
    weights: Tensor,
    compensation: Tensor,
    direction: Tensor,
    eta: float,
    rounding: Rounding,
    *,
    shrink: float = 0.0,
    seeds: Seeds | None = None,
    offset: int = 0,
) -> Stored:
    """Return w' = fl(w + y) and the compensation fl(fl(w' - w) - y).

    y = fl(-s w - eta d - c) is the step and what the last one lost, rounded once. The
    compensation's own lines measure an error and round it to nearest even in every
    mode.

    References:
        Kahan 1965; Zamirai et al. 2020, Revisiting BFloat16 training, algorithm 3,
        where -eta d is rounded before c is subtracted.
    """
    nearest = replace(rounding, mode=RoundingMode.NEAREST_EVEN)

    def step(weights: Tensor, lost: Tensor, direction: Tensor, offset: int) -> Tensor:
        terms = [scaled(-eta, direction, rounding), Term(-lost.to(torch.float64))]
        if shrink != 0:
            terms.append(scaled(-shrink, weights, rounding))
        seed = _seed_of(seeds, Purpose.PRODUCT)
        return round_sum(terms, rounding, weights.dtype, seed, offset)

    def moved(weights: Tensor, y: Tensor, offset: int) -> Tensor:
        terms = [Term(weights.to(torch.float64)), Term(y.to(torch.float64))]
        seed = _seed_of(seeds, Purpose.PARAMETER)
        return round_sum(terms, rounding, weights.dtype, seed, offset)

    def loss(reached: Tensor, weights: Tensor, y: Tensor, offset: int) -> Tensor:
        result = reached
        for other in (weights, y):
            terms = [Term(result.to(torch.float64)), Term(-other.to(torch.float64))]
            result = round_sum(terms, nearest, reached.dtype, None, offset)
        return result

    y = by_pieces(step, [weights, compensation, direction], offset)
    reached = by_pieces(moved, [weights, y], offset)
    return Stored(reached, by_pieces(loss, [reached, weights, y], offset))


def _seed_of(seeds: Seeds | None, purpose: Purpose) -> Tensor | None:
    return None if seeds is None else seeds[purpose]
