"""Normalised gradient descent with a rounded direction, step size and update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..random import as_seed, split_seed
from ..rounding import Rounding, RoundingLike, as_rounding
from ._base import AbstractRoundedOptimizer, Group
from ._exact import check_storage, round_exact
from ._projection import Ball, Box, Projection
from ._update import (
    Purpose,
    Seeds,
    UpdateLike,
    check_update,
    rounded_step_size,
    update_weights,
)

# A projection acts on the weights alone, not on what the others keep beside them.
_UPDATES = ("fused", "two_step")


class NormalizedSGD(AbstractRoundedOptimizer):
    r"""Projected normalised (sub)gradient descent in low precision.

    .. math::
        \begin{aligned}
        & \hat u = \mathrm{fl}_d(g / \|g\|_2), \qquad
          \hat\eta = \mathrm{fl}_w(\eta) \text{ to nearest even} \\
        & w \leftarrow P_\Omega\bigl(\mathrm{fl}_w(w - \hat\eta \hat u)\bigr), \quad
          \text{two\_step: } \mathrm{fl}_w(w - \mathrm{fl}_w(\hat\eta \hat u))
        \end{aligned}

    Contract:
        The norm runs over the gradients of all parameters; norm and quotient are
        computed in float64, free of overflow and underflow, and each fl rounds the
        exact value of its argument once, for formats of up to 51 significant bits.
        ``param_format=None`` computes w - eta u in float64 and stores it in the
        parameter's dtype. A gradient that is zero everywhere has no direction:
        ``on_zero="stop"`` ends the run, ``converged`` is set, and no later step
        changes anything; ``"skip"`` leaves the parameters as they are in this step. A
        projection acts on the parameters of its group as one vector. Seeds,
        checkpoints and failing steps as in `SGD`.

    Args:
        params: parameters or groups, as in ``torch.optim``.
        lr: step size eta; `effective_lr` is the rounded one, for bounds too.
        param_format: rounding fl_w of the parameters; None leaves them in their dtype.
        update: ``"fused"``, one rounding of w - eta u, or ``"two_step"``.
        projection: `Box` or `Ball`; None means the whole space.
        on_zero: ``"stop"`` or ``"skip"``.
        direction_format: rounding fl_d of the direction; None leaves it in float64.
        generator: source of the seed; None means torch's default generator.

    Raises:
        TypeError: if a parameter is not float32 or float64.
        ValueError: if an argument is out of range or a format does not fit a dtype.
        NotImplementedError: for ``param_format`` of more than 51 significant bits.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = NormalizedSGD([w], lr=0.5, param_format="bfloat16")
        >>> w.square().sum().backward()
        >>> optimizer.step()
        >>> w.tolist()
        [2.703125, 3.59375]

    References:
        Cacciola et al., equation (3) and section 3.2; Hu et al. 2015.
    """

    _roundings = ("param_format", "direction_format")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        param_format: RoundingLike | torch.dtype | None = None,
        update: UpdateLike = "fused",
        projection: Projection | None = None,
        on_zero: Literal["stop", "skip"] = "stop",
        direction_format: RoundingLike | torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the arguments."""
        defaults = {
            "lr": lr,
            "param_format": param_format,
            "update": update,
            "projection": projection,
            "on_zero": on_zero,
            "direction_format": direction_format,
            "converged": False,
        }
        super().__init__(params, defaults, generator)

    @property
    def converged(self) -> bool:
        """Whether a step met a zero gradient under ``on_zero="stop"``."""
        return any(group["converged"] for group in self.param_groups)

    def _check_values(self, group: Group) -> None:
        super()._check_values(group)
        check_update(group["update"], _UPDATES)
        _check_options(group)

    def _check_storage(self, key: str, rounding: Rounding | None, p: Tensor) -> None:
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                "NormalizedSGD needs float32 or float64 parameters, got "
                f"{str(p.dtype).removeprefix('torch.')}: use model.float()"
            )
        if key == "param_format":  # the direction is float64 in any case
            check_storage(rounding, p, key)

    def _step(self) -> None:
        groups = [self._validated(group) for group in self.param_groups]
        if self.converged:
            return
        members = [members for _, members in self._offsets()]
        gradients = [p.grad for group in members for p, _ in group]
        directions = _directions([g for g in gradients if g is not None])
        if directions is None:
            if any(group["on_zero"] == "stop" for group in groups):
                for group in self.param_groups:
                    group["converged"] = True
            return
        seeds = self._step_seeds()
        remaining = iter(directions)
        results: list[tuple[list[tuple[Tensor, int]], list[Tensor]]] = []
        for group, parameters in zip(groups, members, strict=True):
            mine = [next(remaining) for _ in parameters]
            results.append((parameters, _next(group, parameters, mine, seeds)))
        for parameters, values in results:
            for (p, _), value in zip(parameters, values, strict=True):
                p.copy_(value)
        self._advance(seeds)


def _check_options(group: Group) -> None:
    if group["on_zero"] not in ("stop", "skip"):
        raise ValueError(f"on_zero must be 'stop' or 'skip', got {group['on_zero']!r}")
    projection = group["projection"]
    if projection is not None and not isinstance(projection, Box | Ball):
        raise TypeError(
            f"projection must be a Box, a Ball or None, got {type(projection).__name__}"
        )


def _next(
    group: Group,
    parameters: list[tuple[Tensor, int]],
    directions: list[Tensor],
    seeds: Seeds | None,
) -> list[Tensor]:
    eta = rounded_step_size(group["lr"], group["param_format"])
    values = [
        _step(
            p,
            _rounded(u, group["direction_format"], seeds, offset),
            eta,
            group,
            seeds,
            offset,
        )
        for (p, offset), u in zip(parameters, directions, strict=True)
    ]
    projection: Projection | None = group["projection"]
    if projection is None or not values:
        return values
    return projection.project(values, [group["param_format"]] * len(values))


def _step(
    w: Tensor,
    direction: Tensor,
    eta: float,
    group: Group,
    seeds: Seeds | None,
    offset: int,
) -> Tensor:
    rounding: Rounding | None = group["param_format"]
    if rounding is None:
        return (w.to(torch.float64) - eta * direction.to(torch.float64)).to(w.dtype)
    return update_weights(
        w, direction, eta, rounding, update=group["update"], seeds=seeds, offset=offset
    )


def _rounded(
    direction: Tensor, rounding: Rounding | None, seeds: Seeds | None, offset: int
) -> Tensor:
    if rounding is None:
        return direction
    seed = None if seeds is None else seeds[Purpose.DIRECTION]
    return round_exact(direction, rounding, seed, offset)


def _directions(gradients: Sequence[Tensor]) -> list[Tensor] | None:
    """Return g/||g|| of the flattened gradients in float64; None if g is zero."""
    if not gradients:
        return None
    flat = torch.cat([g.to(torch.float64).reshape(-1) for g in gradients])
    largest = flat.abs().max().item() if flat.numel() else 0.0
    if largest == 0:
        return None
    if not torch.isfinite(flat).all():
        raise RuntimeError(
            "the gradient has NaN or infinite elements and no direction: widen the "
            "format in which it overflowed, or scale the loss"
        )
    # A power of two: squares neither overflow nor underflow, quotients stay the same.
    _, exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64))
    flat = torch.ldexp(flat, -exponent)
    flat = flat / flat.norm()
    pieces = flat.split([g.numel() for g in gradients])
    return [u.view(g.shape) for u, g in zip(pieces, gradients, strict=True)]


def normalized_direction(
    gradient: Tensor,
    rounding: RoundingLike | torch.dtype | None = None,
    *,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Return the direction fl(g/||g||) that `NormalizedSGD` follows.

    Contract:
        Norm and quotient in float64, free of overflow and underflow; the rounded
        direction is in general no unit vector. A zero gradient gives zeros.

    Args:
        gradient: float32 or float64 tensor, flattened for the norm.
        rounding: fl; None leaves float64.
        generator: source of the seed of a stochastic rounding.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        float64 tensor of the gradient's shape.

    Raises:
        RuntimeError: if the gradient has NaN or infinite elements.

    Example:
        >>> normalized_direction(torch.tensor([3.0, 4.0]), "bfloat16").tolist()
        [0.6015625, 0.80078125]

    References:
        Cacciola et al., section 4.
    """
    directions = _directions([gradient.detach()])
    if directions is None:
        return torch.zeros_like(gradient, dtype=torch.float64)
    if rounding is None:
        return directions[0]
    fl = as_rounding(rounding)
    word = as_seed(seed, generator) if fl.stochastic else None
    return round_exact(directions[0], fl, word, offset)


@torch.no_grad()
def normalized_sgd_step(
    weights: Tensor,
    direction: Tensor,
    eta: float | Tensor,
    rounding: RoundingLike | torch.dtype | None = None,
    *,
    update: UpdateLike = "fused",
    projection: Projection | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Return P(fl(w - eta u)), one step of `NormalizedSGD` on plain tensors.

    Contract:
        As `NormalizedSGD`; ``eta`` is rounded to the format first.

    Args:
        weights: w, float32 or float64, not changed.
        direction: u, of the same shape, for example of `normalized_direction`.
        eta: step size.
        rounding: fl of the weights; None computes in float64.
        update: ``"fused"`` or ``"two_step"``.
        projection: P; None means the whole space.
        generator: source of the seed of a stochastic rounding.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor like ``weights``.

    Raises:
        TypeError: if ``weights`` are not float32 or float64.
        ValueError: if shapes differ or the format does not fit the dtype.

    Example:
        >>> w = torch.tensor([4000.0])
        >>> normalized_sgd_step(w, torch.tensor([8.0]), 1.0, "bfloat16").item()
        4000.0

    References:
        Cacciola et al., equation (3).
    """
    if weights.shape != direction.shape:
        raise ValueError(
            f"weights and direction must have one shape, got {tuple(weights.shape)} "
            f"and {tuple(direction.shape)}"
        )
    check_update(update, _UPDATES)
    fl = None if rounding is None else as_rounding(rounding)
    check_storage(fl, weights, "rounding")
    seeds = None
    if fl is not None and fl.stochastic:
        seeds = split_seed(as_seed(seed, generator), len(Purpose))
    group: Group = {"param_format": fl, "update": update}
    size = rounded_step_size(eta, fl)
    result = _step(weights, direction, size, group, seeds, offset)
    return result if projection is None else projection.project([result], [fl])[0]
