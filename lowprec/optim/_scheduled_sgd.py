"""SGD, momentum and Nesterov's method as limit theorems write them, rounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..rounding import Rounding, RoundingLike
from ..schedules import Coefficients, Iteration, Method, ScheduleLike
from ._base import AbstractRoundedOptimizer, Change, Group
from ._quantized import check_gradients
from ._rounded_sum import rounded_sum
from ._update import Purpose, Seeds


class ScheduledSGD(AbstractRoundedOptimizer):
    r"""Stochastic gradient descent with step sizes by schedule, rounded.

    .. math::
        v_k = \mathrm{fl}_v(\rho_k v_{k-1} - \alpha_k \nabla f_k(y_{k-1})), \qquad
        x_k = \mathrm{fl}_x(x_{k-1} + \gamma_k v_k), \qquad
        y_k = \mathrm{fl}_x(x_k + c_{k+1} v_k)

    with the numbers of `Iteration`, for which limit theorems are known:
    ``lowprec.theory.stationary`` predicts the covariance of x and v. For ``"sgd"``
    x_k = fl(x_{k-1} - alpha_k grad), and y is x unless the method looks ahead.

    Contract:
        Steps are counted by group, from 1, in ``step``. Each fl rounds the exact value
        of its argument once, at the binary64 numbers of the schedule, which are not
        rounded to the format; without a format torch's operations in the parameter's
        dtype take its place. Parameters hold y, where the gradient is taken, and are
        overwritten whoever changed them if the method looks ahead: x is ``position``
        in the state then, and `x` puts it in place for evaluation. There is no ``lr``,
        and no scheduler of torch applies. Gradients that are not finite are refused. A
        step that raises changes nothing. Roundings and checkpoints are as in `SGD`;
        schedules of `lowprec.schedules` load with ``weights_only=True``, functions can
        only be pickled by name.

        ``torch.optim.SGD`` does the same, if its groups are set before every step, with
        (3) SGD: lr = alpha_k; (4) heavy ball: lr = alpha_k, momentum = beta_k
        alpha_{k-1} / alpha_k; (7) momentum: lr = alpha_k, momentum = 1 - mu alpha_k,
        dampening = 1 - alpha_k and a buffer of zeros to begin with; (5) Nesterov with
        constant alpha and beta: nesterov=True. Others have no equivalent there.

    Args:
        params: parameters or groups, as in ``torch.optim``.
        schedule: alpha_k, a `PowerSchedule`, a number or a function of k = 1, 2, ...
        method: ``"sgd"``, ``"heavy_ball"``, ``"momentum"``, ``"nesterov"`` or
            ``"nasgd"``, see `Iteration`.
        damping: mu_k, likewise; for momentum, nesterov and nasgd.
        momentum: beta_k in [0, 1), likewise; for heavy_ball and nesterov.
        param_format: rounding fl_x of the parameters; None leaves them in their dtype.
        velocity_format: rounding fl_v of the velocity; None likewise.
        generator: source of the seed; None means torch's default generator.

    Raises:
        TypeError: if the method lacks its damping or momentum or has one too many, or
            no velocity for ``velocity_format``, or a format is given and a parameter
            is not float32 or float64.
        ValueError: if an argument is out of range or a format does not fit a dtype.
        NotImplementedError: for formats of more than 51 significant bits.

    Example:
        >>> from lowprec.schedules import PowerSchedule
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = ScheduledSGD(
        ...     [w], PowerSchedule(0.5, 0.5), "nesterov", damping=0.2,
        ...     param_format="bfloat16",
        ... )
        >>> for _ in range(4):
        ...     optimizer.zero_grad()
        ...     (w * w / 2).sum().backward()
        ...     optimizer.step()
        >>> with optimizer.x():
        ...     w.item()
        0.1201171875

    References:
        Li, Xiao and Yang, Revisiting the central limit theorems for the SGD-type
        methods, (3), (4), (5), (7), (49).
    """

    _roundings = ("param_format", "velocity_format")

    def __init__(
        self,
        params: ParamsT,
        schedule: ScheduleLike,
        method: Method = "sgd",
        *,
        damping: ScheduleLike | None = None,
        momentum: ScheduleLike | None = None,
        param_format: RoundingLike | torch.dtype | None = None,
        velocity_format: RoundingLike | torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the arguments; the method must have what it needs."""
        self._at_x = False
        defaults = {
            "schedule": schedule,
            "method": method,
            "damping": damping,
            "momentum": momentum,
            "param_format": param_format,
            "velocity_format": velocity_format,
            "step": 0,
        }
        super().__init__(params, defaults, generator)

    def __setstate__(self, state: Group) -> None:
        """Restore the groups; a copy made inside `x` is not inside it."""
        super().__setstate__(state)
        self._at_x = False

    def _check_values(self, group: Group) -> None:
        iteration = _iteration(group)
        if group["velocity_format"] is not None and not iteration.has_velocity:
            raise TypeError(
                f"method {iteration.method!r} has no velocity to round: omit "
                "velocity_format"
            )

    @property
    def effective_lr(self) -> list[float]:
        """Step size alpha_k of each group in the step to come."""
        return [
            _iteration(group).step_size(group["step"] + 1)
            for group in self.param_groups
        ]

    def _check_ready(self) -> None:
        if self._at_x:
            raise RuntimeError(
                "step() inside x() would be undone when the block ends: leave it first"
            )

    def _step(self) -> None:
        check_gradients(self.param_groups)
        groups = [self._validated(group) for group in self.param_groups]
        seeds = self._step_seeds()
        changes = []
        for group, (_, members) in zip(groups, self._offsets(), strict=True):
            iteration, k = _iteration(group), group["step"] + 1
            numbers = iteration.coefficients(k)
            after = iteration.coefficients(k + 1) if iteration.looks_ahead else numbers
            for p, offset in members:
                member = _Member(p, self.state.get(p, {}), group, seeds, offset)
                changes.append(
                    _change(member, iteration, numbers, float(after.look_ahead))
                )
        self._commit(changes, seeds)
        for group in self.param_groups:
            group["step"] += 1

    @contextmanager
    def x(self) -> Iterator[None]:
        """Put the iterate x into the parameters for the length of a block.

        Between steps the parameters of methods that look ahead hold the point where the
        next gradient is taken. It comes back bit for bit; `step` is refused inside.
        """
        pairs = [
            (p, self.state[p]["position"])
            for group in self.param_groups
            for p in group["params"]
            if "position" in self.state.get(p, {})
        ]
        kept = [p.detach().clone() for p, _ in pairs]
        outer, self._at_x = self._at_x, True
        try:
            with torch.no_grad():
                for p, position in pairs:
                    p.copy_(position)
            yield
        finally:
            self._at_x = outer
            with torch.no_grad():
                for (p, _), value in zip(pairs, kept, strict=True):
                    p.copy_(value)


def _iteration(group: Group) -> Iteration:
    keys = ("method", "schedule", "damping", "momentum")
    return Iteration(*(group[key] for key in keys))


class _Member(NamedTuple):
    """A parameter, and what its sums are rounded with."""

    p: Tensor
    state: dict[str, Tensor]
    group: Group
    seeds: Seeds | None
    offset: int

    def sum(
        self,
        format: str,
        purpose: Purpose,
        base: Tensor | None,
        factor: float,
        term: Tensor,
        scale: float,
    ) -> Tensor:
        """Return fl(factor base + scale term); ``base`` None means zero."""
        fl: Rounding | None = self.group[format]
        if fl is None:
            if base is None:
                return term * scale
            start = base if factor == 1 else base * factor
            return torch.add(start, term, alpha=scale)
        seed = None if self.seeds is None else self.seeds[purpose]
        pairs = [(scale, term)] if base is None else [(factor, base), (scale, term)]
        scales, tensors = zip(*pairs, strict=True)
        return rounded_sum(scales, tensors, fl, seed=seed, offset=self.offset)


def _change(
    member: _Member, iteration: Iteration, numbers: Coefficients, ahead: float
) -> Change:
    """Return what a step does; ``ahead`` is how far the next one looks ahead."""
    p, state = member.p, member.state
    gradient = cast(Tensor, p.grad)
    alpha, retained, advance, _ = map(float, numbers)
    stored, kept = "param_format", "velocity_format"
    x = state.get("position", p)
    if not iteration.has_velocity:
        x = member.sum(stored, Purpose.PARAMETER, x, 1.0, gradient, -alpha)
        return Change(p, x, {})
    before = state.get("velocity")
    v = member.sum(kept, Purpose.MOMENTUM, before, retained, gradient, -alpha)
    x = member.sum(stored, Purpose.PARAMETER, x, 1.0, v, advance)
    if not iteration.looks_ahead:
        return Change(p, x, {"velocity": v})
    # The point at which the direction of the next step is taken.
    y = member.sum(stored, Purpose.DIRECTION, x, 1.0, v, ahead)
    return Change(p, y, {"velocity": v, "position": x})
