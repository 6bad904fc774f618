"""Stochastic gradient descent whose parameters and momentum are stored in a format."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..rounding import Rounding, RoundingLike
from ._base import AbstractRoundedOptimizer, Closure, Group
from ._exact import by_pieces, round_exact, round_sum, scaled
from ._update import Purpose, Seeds, UpdateLike, rounded_step_size, update_weights


class SGD(AbstractRoundedOptimizer):
    r"""Stochastic gradient descent with rounded parameters and momentum.

    .. math::
        \begin{aligned}
        & d_t = \nabla f_t(w_{t-1}) \text{ (negated if maximize)} \\
        & d_t \leftarrow d_t + \lambda w_{t-1} \\
        & b_1 = \mathrm{fl}_m(d_1), \qquad
          b_t = \mathrm{fl}_m(\mu b_{t-1} + (1 - \tau) d_t) \\
        & d_t \leftarrow d_t + \mu b_t \text{ if nesterov, else } b_t \\
        & w_t = \mathrm{fl}_w(w_{t-1} - \hat\eta d_t), \quad
          \hat\eta = \mathrm{fl}_w(\eta) \text{ to nearest even} \\
        & \text{two\_step: } w_t = \mathrm{fl}_w(w_{t-1} - \mathrm{fl}_w(\hat\eta d_t))
        \end{aligned}

    with lambda ``weight_decay``, mu ``momentum``, tau ``dampening``, eta ``lr``.

    Contract:
        Each fl rounds the exact value of its argument once, for formats of up to 51
        significant bits, in which mu and 1 - tau mean their values in the dtype of
        the parameter, as in torch. Lines without a format are computed in that dtype
        by torch's own operations, so that with both formats None every bit is that of
        ``torch.optim.SGD(foreach=False)``. Parameters are rounded when they are first
        updated, not before. NaN and infinity propagate. With stochastic roundings
        one seed is drawn, at construction; it and the step number are in
        ``state_dict``, so that a resumed run continues bit for bit; word i of a step
        belongs to element i of all parameters in order. A step that raises changes
        nothing.

    Args:
        params: parameters or groups, as in ``torch.optim``.
        lr: step size eta; see `rounded_step_size`.
        momentum: mu.
        dampening: tau.
        weight_decay: lambda.
        nesterov: whether to look ahead along the momentum.
        maximize: whether to ascend.
        param_format: rounding fl_w of the parameters; None leaves them in their dtype.
        momentum_format: rounding fl_m of the momentum buffer; None likewise.
        update: ``"fused"``, one rounding of w - eta d, or ``"two_step"``.
        generator: source of the seed; None means torch's default generator.

    Raises:
        TypeError: if a format is given and a parameter is not float32 or float64.
        ValueError: if an argument is out of range or a format does not fit a dtype.
        NotImplementedError: for formats of more than 51 significant bits.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.5]))
        >>> optimizer = SGD([w], lr=2**-9, param_format="bfloat16")
        >>> w.sum().backward()
        >>> optimizer.step()
        >>> w.item()  # the update is less than half a unit in the last place
        1.5

    References:
        Cacciola et al., section 3.2 (fused is their model of the update);
        ``torch.optim.SGD``.
    """

    _roundings = ("param_format", "momentum_format")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        param_format: RoundingLike | torch.dtype | None = None,
        momentum_format: RoundingLike | torch.dtype | None = None,
        update: UpdateLike = "fused",
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the arguments as ``torch.optim.SGD`` does."""
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "param_format": param_format,
            "momentum_format": momentum_format,
            "update": update,
        }
        super().__init__(params, defaults, generator)

    def _check_values(self, group: Group) -> None:
        super()._check_values(group)
        momentum, weight_decay = group["momentum"], group["weight_decay"]
        if not momentum >= 0.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        if group["nesterov"] and (momentum <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Perform one step.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's result, or None.

        Raises:
            RuntimeError: for sparse gradients; nothing has changed then.
            ValueError: if the group's values are out of range; likewise.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [self._validated(group) for group in self.param_groups]
        seeds = self._step_seeds()
        changes: list[_Change] = []
        for group, (_, members) in zip(groups, self._offsets(), strict=True):
            eta = rounded_step_size(group["lr"], group["param_format"])
            for p, offset in members:
                known = self.state.get(p, {})
                buffer = known.get("momentum_buffer")
                changes.append(_change(p, buffer, group, eta, seeds, offset))
        for change in changes:
            change.apply()
            if change.buffer is not None:
                self.state[change.p]["momentum_buffer"] = change.buffer
        self._advance(seeds)
        return loss


class _Change(NamedTuple):
    """What a step does to one parameter, once all of them are known."""

    p: Tensor
    direction: Tensor
    eta: float
    weights: Tensor | None  # None: the carrier's own update
    buffer: Tensor | None

    def apply(self) -> None:
        if self.weights is None:
            self.p.add_(self.direction, alpha=-self.eta)
        else:
            self.p.copy_(self.weights)


def _change(
    p: Tensor,
    buffer: Tensor | None,
    group: Group,
    eta: float,
    seeds: Seeds | None,
    offset: int,
) -> _Change:
    gradient = cast(Tensor, p.grad)
    direction = -gradient if group["maximize"] else gradient
    decay, momentum = float(group["weight_decay"]), float(group["momentum"])
    if decay != 0:
        direction = direction.add(p, alpha=decay)
    if momentum != 0:
        buffer = _next_buffer(direction, buffer, group, seeds, offset)
        if group["nesterov"]:
            direction = direction.add(buffer, alpha=momentum)
        else:
            direction = buffer
    else:
        buffer = None
    weights = None
    if group["param_format"] is not None:
        weights = update_weights(
            p,
            direction,
            eta,
            group["param_format"],
            update=group["update"],
            seeds=seeds,
            offset=offset,
        )
    return _Change(p, direction, eta, weights, buffer)


def _next_buffer(
    direction: Tensor,
    buffer: Tensor | None,
    group: Group,
    seeds: Seeds | None,
    offset: int,
) -> Tensor:
    momentum, weight = float(group["momentum"]), 1 - group["dampening"]
    rounding: Rounding | None = group["momentum_format"]
    if rounding is None:
        if buffer is None:
            return direction.clone()
        return buffer.mul(momentum).add_(direction, alpha=weight)
    seed = None if seeds is None else seeds[Purpose.MOMENTUM]
    if buffer is None:
        return round_exact(direction, rounding, seed, offset)
    dtype = direction.dtype
    # The factors that torch would use.
    kept = torch.tensor(momentum, dtype=dtype).item()
    new = torch.tensor(weight, dtype=dtype).item()

    def averaged(direction: Tensor, buffer: Tensor, offset: int) -> Tensor:
        products = [scaled(kept, buffer, rounding), scaled(new, direction, rounding)]
        return round_sum(products, rounding, dtype, seed, offset)

    return by_pieces(averaged, [direction, buffer], offset)
