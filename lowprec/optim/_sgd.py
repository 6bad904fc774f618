"""Stochastic gradient descent whose parameters and momentum are stored in a format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..rounding import Rounding, RoundingLike
from ._base import AbstractRoundedOptimizer, Group
from ._exact import by_pieces, consecutive, round_exact, round_sum, scaled
from ._update import (
    Purpose,
    Seeds,
    UpdateLike,
    kept_name,
    step_size,
    store_master,
    store_update,
)


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
        & \text{two\_step: } w_t
          = \mathrm{fl}_w(w_{t-1} - \mathrm{fl}_w(\hat\eta d_t)) \\
        & \text{kahan: } y = \mathrm{fl}_w(-\hat\eta d_t - c_{t-1}), \quad
          w_t = \mathrm{fl}_w(w_{t-1} + y), \quad
          c_t = \mathrm{fl}_w(\mathrm{fl}_w(w_t - w_{t-1}) - y) \\
        & \text{master: } v_t = v_{t-1} - \eta d_t, \quad w_t = \mathrm{fl}_w(v_t)
        \end{aligned}

    with lambda ``weight_decay``, mu ``momentum``, tau ``dampening``, eta ``lr``.

    Contract:
        Each fl rounds the exact value of its argument once, for formats of up to 51
        significant bits, in which mu and 1 - tau mean their values in the dtype of
        the parameter, as in torch. Lines without a format are computed in that dtype
        by torch's own operations, so that with both formats None every bit is that of
        ``torch.optim.SGD(foreach=False)``. Parameters are rounded when they are first
        updated, not before. Compensations c round to nearest even whatever the mode;
        master weights v stay in the parameter's dtype and take the place of w in the
        decay. Both start at the first step, v from the parameter, which from then on
        is overwritten whoever changed it, and are part of ``state_dict``; without
        ``param_format`` nothing is lost and neither is kept. NaN and infinity
        propagate. With stochastic roundings one seed is drawn, at construction; it and
        the step number are in ``state_dict``, so that a resumed run continues bit for
        bit; word i of a step belongs to element i of all parameters in order. A step
        that raises changes nothing.

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
        update: ``"fused"``, one rounding of w - eta d, ``"two_step"``, ``"kahan"`` or
            ``"master"``.
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
        Cacciola et al., section 3.2 (fused is their model of the update); Kahan 1965
        and Zamirai et al. 2020, Revisiting BFloat16 training (kahan); Micikevicius et
        al. 2018, Mixed precision training (master); ``torch.optim.SGD``.
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

    def _step(self) -> None:
        self._descend({})

    def _descend(self, redirections: Mapping[Tensor, Redirection]) -> None:
        """Step along the directions as redirected; if it raises, nothing changes."""
        groups = [self._validated(group) for group in self.param_groups]
        seeds = self._step_seeds()
        rounded: list[_Change] = []
        unrounded: list[Callable[[], None]] = []
        for group, (_, members) in zip(groups, self._offsets(), strict=True):
            for p, offset in members:
                redirection = redirections.get(p)
                if group["param_format"] is None and group["momentum_format"] is None:
                    step = partial(self._move, p, group, step_size(group), redirection)
                    unrounded.append(step)
                    continue
                state = self.state.get(p, {})
                rounded.append(_change(p, state, group, seeds, offset, redirection))
        for change in rounded:
            change.apply()
            if change.state:
                self.state[change.p].update(change.state)
            if change.p in redirections:
                confine = redirections[change.p].confine
                confine(change.p.detach(), change.rounding)
                if "master" in change.state:
                    confine(change.state["master"], None)
        for move in unrounded:
            move()
        self._advance(seeds)

    def _move(
        self, p: Tensor, group: Group, eta: float, redirection: Redirection | None
    ) -> None:
        """Move a parameter without roundings in place, a cache's part at a time."""
        weights, gradient = p.detach(), cast(Tensor, p.grad).detach()
        buffer, started = None, True
        if float(group["momentum"]) != 0:
            buffer = self.state.get(p, {}).get("momentum_buffer")
            started = buffer is not None
            buffer = torch.empty_like(weights) if buffer is None else buffer
        if redirection is None or not redirection.descend(
            weights, gradient, buffer, started, group, eta
        ):
            _move_pieces(weights, gradient, buffer, started, group, eta, redirection)
        if buffer is not None:
            self.state[p]["momentum_buffer"] = buffer


class Stage(Enum):
    """Which direction a step is about to use."""

    GRADIENT = "gradient"
    VELOCITY = "velocity"  # the direction that the weights move along


class Redirection(Protocol):
    """Replaces the direction of one parameter at one stage of a step."""

    stage: Stage

    @property
    def cuttable(self) -> bool:
        """Whether it takes any consecutive elements."""
        ...

    def __call__(
        self, direction: Tensor, weights: Tensor, first: int, out: Tensor | None
    ) -> Tensor:
        """Return another direction, or the same tensor; change neither.

        ``first`` is the linear index of the first element, and ``out`` is where the
        result may be written, which may be ``direction``.
        """
        ...

    def confine(self, weights: Tensor, rounding: Rounding | None) -> None:
        """Clamp, to values of the rounding's format, what the step has reached."""
        ...

    def descend(
        self,
        weights: Tensor,
        gradient: Tensor,
        buffer: Tensor | None,
        started: bool,
        group: Group,
        eta: float,
    ) -> bool:
        """Do the whole step of `_move_pieces` at once, or return False."""
        ...


class _Change(NamedTuple):
    """What a step does to one parameter, once all of them are known."""

    p: Tensor
    direction: Tensor
    eta: float
    rounding: Rounding | None
    weights: Tensor | None  # None: the carrier's own update
    state: dict[str, Tensor]

    def apply(self) -> None:
        if self.weights is None:
            self.p.add_(self.direction, alpha=-self.eta)
        else:
            self.p.copy_(self.weights)


def _move_pieces(
    weights: Tensor,
    gradient: Tensor,
    buffer: Tensor | None,
    started: bool,
    group: Group,
    eta: float,
    redirection: Redirection | None,
) -> None:
    """Step in place; ``buffer`` is the momentum, of no value until it is started."""
    momentum, share = float(group["momentum"]), 1 - group["dampening"]
    tensors = [weights, gradient] if buffer is None else [weights, gradient, buffer]
    bare = not (group["maximize"] or float(group["weight_decay"]))
    if buffer is None and redirection is None and bare:
        weights.add_(gradient, alpha=-eta)
        return

    def averaged(direction: Tensor, buffer: Tensor) -> Tensor:
        if started:
            return buffer.mul_(momentum).add_(direction, alpha=share)
        return buffer.copy_(direction)

    spare: Tensor | None = None
    cuttable = redirection is None or redirection.cuttable
    for first, (w, g, *buffers) in consecutive(tensors, cuttable):
        spare = torch.empty_like(w) if spare is None else spare[: len(w)]
        average = partial(averaged, buffer=buffers[0]) if buffers else None
        direction = _direction(g, w, average, group, redirection, first, spare)
        w.add_(direction, alpha=-eta)
    if redirection is not None:
        redirection.confine(weights, None)


def _change(
    p: Tensor,
    state: dict[str, Tensor],
    group: Group,
    seeds: Seeds | None,
    offset: int,
    redirection: Redirection | None,
) -> _Change:
    eta, name = step_size(group), kept_name(group)
    kept = None if name is None else state.get(name)
    moving = kept if name == "master" and kept is not None else p
    changed: dict[str, Tensor] = {}

    def averaged(direction: Tensor) -> Tensor:
        buffer = _next_buffer(
            direction, state.get("momentum_buffer"), group, seeds, offset
        )
        changed["momentum_buffer"] = buffer
        return buffer

    average = averaged if float(group["momentum"]) != 0 else None
    direction = _direction(cast(Tensor, p.grad), moving, average, group, redirection)
    rounding: Rounding | None = group["param_format"]
    if rounding is None:
        return _Change(p, direction, eta, None, None, changed)
    if name == "master":
        master = moving.add(direction, alpha=-eta)
        stored = store_master(master, rounding, seeds, offset)
    else:
        update = group["update"]
        stored = store_update(
            p, kept, direction, eta, rounding, update=update, seeds=seeds, offset=offset
        )
    if name is not None:
        changed[name] = cast(Tensor, stored.kept)
    return _Change(p, direction, eta, rounding, stored.weights, changed)


def _direction(
    gradient: Tensor,
    weights: Tensor,
    average: Callable[[Tensor], Tensor] | None,
    group: Group,
    redirection: Redirection | None,
    first: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Return the direction to move along; ``average`` gives the momentum buffer."""
    direction, stage = gradient, None if redirection is None else redirection.stage
    decay = float(group["weight_decay"])
    if group["maximize"]:
        direction = torch.neg(direction, out=out)
    if decay != 0:
        direction = torch.add(direction, weights, alpha=decay, out=out)
    if redirection is not None and stage is Stage.GRADIENT:
        direction = redirection(direction, weights, first, out)
    if average is not None:
        buffer, momentum = average(direction), float(group["momentum"])
        direction = (
            torch.add(direction, buffer, alpha=momentum, out=out)
            if group["nesterov"]
            else buffer
        )
    if redirection is not None and stage is Stage.VELOCITY:
        direction = redirection(direction, weights, first, out)
    return direction


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
