"""Loss scaling: gradients of a multiple of the loss, so that they do not underflow."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Both the scale and its inverse are normal numbers of float32.
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-126, 2.0**126


class _Stage(Enum):
    """What has happened to an optimizer's gradients since the last `update`."""

    FINITE = "finite"
    NONFINITE = "non-finite"
    STEPPED = "stepped"
    SKIPPED = "skipped"


class LossScaler:
    r"""Multiply the loss by a power of two, and divide the gradients by it.

    .. math::
        \hat g = S^{-1}\,\hat\nabla(S f), \qquad
        S \leftarrow \begin{cases}
          \beta S & \text{if a gradient was not finite; its step is skipped} \\
          \gamma S & \text{after } N \text{ finite steps in a row} \\
          S & \text{otherwise}
        \end{cases}

    with beta ``backoff_factor``, gamma ``growth_factor`` and N ``growth_interval``.
    It is used like ``torch.amp.GradScaler`` and follows its rule, for float32 and
    float64 carriers on any device, and reads and writes its ``state_dict``.

    Contract:
        S is a power of two, so that scaling and unscaling are exact while results are
        normal numbers of the carrier: 16-bit and 8-bit gradients neither gain nor lose
        a bit to it, and where nothing over- or underflows results do not depend on S.
        Scaling takes place in the carrier, also inside `lowprec.emulate`. S stays
        between 2^-126 and 2^126. Overflow shows as infinity or NaN: roundings that
        saturate hide it, and then S only grows.
        A `RoundoffMonitor` takes S beside the closure, ``monitor.backward(closure,
        scale=scaler.get_scale())``, and its records are about the loss itself. With
        DDP all ranks see the same gradients and keep the same scale.

    Args:
        init_scale: first S, a power of two.
        growth_factor: gamma, a power of two above 1.
        backoff_factor: beta, a power of two below 1.
        growth_interval: N; None means static scaling, in which S stays as it is.

    Raises:
        ValueError: if an argument is out of range or not a power of two.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([2.0**-20]))
        >>> optimizer = torch.optim.SGD([w], lr=1.0)
        >>> scaler = LossScaler(2.0**10)
        >>> scaler.scale((2.0**-20 * w).sum()).backward()
        >>> w.grad.item() == 2.0**-10
        True
        >>> scaler.step(optimizer)  # whether it was stepped
        True
        >>> scaler.update()
        >>> w.item(), scaler.get_scale()
        (0.0, 1024.0)

    References:
        Micikevicius et al. 2018, Mixed precision training, section 3.2;
        ``torch.amp.GradScaler``.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int | None = 2000,
    ) -> None:
        """Check the arguments."""
        _check(init_scale, growth_factor, backoff_factor, growth_interval)
        self._scale = float(init_scale)
        self._growth_factor = float(growth_factor)
        self._backoff_factor = float(backoff_factor)
        self._growth_interval = growth_interval
        self._finite_steps = 0
        self._stages: dict[int, _Stage] = {}

    def __repr__(self) -> str:
        """Return the scale and the rule."""
        return (
            f"LossScaler({self._scale!r}, {self._growth_factor!r}, "
            f"{self._backoff_factor!r}, {self._growth_interval!r})"
        )

    def get_scale(self) -> float:
        """Return S."""
        return self._scale

    def scale(self, loss: Tensor) -> Tensor:
        """Return S times the loss.

        Args:
            loss: float32 or float64 tensor of any shape.

        Returns:
            Tensor of its shape and dtype.

        Raises:
            TypeError: for other dtypes, whose range S may exceed.
        """
        _check_carrier(loss, "the loss")
        with torch._C.DisableTorchFunction():
            return loss * self._scale

    @torch.no_grad()
    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimizer's parameters by S, in place.

        `step` does it if this has not been called, for example to clip gradients.

        Args:
            optimizer: its parameters' gradients come from a scaled loss.

        Raises:
            RuntimeError: if it was called before since the last `update`, or a
                gradient is sparse; nothing has changed then.
            TypeError: if a gradient is not float32 or float64; likewise.
        """
        if id(optimizer) in self._stages:
            raise RuntimeError(
                "unscale_() or step() has been called on this optimizer since the last "
                "update(): its gradients are unscaled already"
            )
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        for gradient in gradients:
            _check_carrier(gradient, "a gradient")
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        exchange = getattr(optimizer, "exchange", None)
        if exchange is not None:  # a rank that skips alone would leave others waiting
            finite = exchange.everywhere(finite)
        with torch._C.DisableTorchFunction():
            for gradient in gradients:
                gradient.mul_(1.0 / self._scale)
        self._stages[id(optimizer)] = _Stage.FINITE if finite else _Stage.NONFINITE

    def step(self, optimizer: Optimizer) -> bool:
        """Unscale the gradients and, if all are finite, call ``optimizer.step()``.

        Args:
            optimizer: what to step.

        Returns:
            Whether the optimizer was stepped.

        Raises:
            RuntimeError: if it was called before since the last `update`.
            TypeError: as `unscale_`.
        """
        stage = self._stages.get(id(optimizer))
        if stage in (_Stage.STEPPED, _Stage.SKIPPED):
            raise RuntimeError(
                "step() has been called on this optimizer since the last update()"
            )
        if stage is None:
            self.unscale_(optimizer)
        finite = self._stages[id(optimizer)] is _Stage.FINITE
        if finite:
            optimizer.step()
        self._stages[id(optimizer)] = _Stage.STEPPED if finite else _Stage.SKIPPED
        return finite

    def update(self) -> None:
        """Change S for the next step, once all optimizers have been stepped.

        Raises:
            RuntimeError: if no gradients have been unscaled since the last call.
        """
        if not self._stages:
            raise RuntimeError(
                "update() needs gradients that were checked: call step(optimizer) or "
                "unscale_(optimizer) first"
            )
        stages = set(self._stages.values())
        self._stages = {}
        if self._growth_interval is None:
            return
        if stages & {_Stage.NONFINITE, _Stage.SKIPPED}:
            self._scale = max(self._scale * self._backoff_factor, _SMALLEST_SCALE)
            self._finite_steps = 0
            return
        self._finite_steps += 1
        if self._finite_steps == self._growth_interval:
            self._scale = min(self._scale * self._growth_factor, _LARGEST_SCALE)
            self._finite_steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, its rule and the count, under torch's names."""
        return {
            "scale": self._scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._finite_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of this class or of ``torch.amp.GradScaler``.

        Args:
            state_dict: what ``state_dict()`` returned.

        Raises:
            KeyError: if an entry is missing; nothing has changed then.
            ValueError: if a value is not a power of two; likewise.
        """
        rule = (
            state_dict["scale"],
            state_dict["growth_factor"],
            state_dict["backoff_factor"],
            state_dict["growth_interval"],
        )
        count = int(state_dict["_growth_tracker"])
        _check(*rule)
        self._scale, self._growth_factor, self._backoff_factor = map(float, rule[:3])
        self._growth_interval, self._finite_steps = rule[3], count


def _check(scale: float, growth: float, backoff: float, interval: int | None) -> None:
    if not (_is_power_of_two(scale) and _SMALLEST_SCALE <= scale <= _LARGEST_SCALE):
        raise ValueError(
            "the scale must be a power of two from 2^-126 to 2^126, so that unscaling "
            f"is exact, got {scale!r}"
        )
    if not (_is_power_of_two(growth) and growth > 1):
        raise ValueError(
            f"growth_factor must be a power of two above 1, got {growth!r}"
        )
    if not (_is_power_of_two(backoff) and backoff < 1):
        raise ValueError(
            f"backoff_factor must be a power of two below 1, got {backoff!r}"
        )
    if interval is not None and (
        isinstance(interval, bool) or not isinstance(interval, int) or interval < 1
    ):
        raise ValueError(
            "growth_interval must be a whole number of steps >= 1, or None for a "
            f"static scale, got {interval!r}"
        )


def _is_power_of_two(value: float) -> bool:
    return value > 0 and math.frexp(value)[0] == 0.5


def _check_carrier(x: Tensor, what: str) -> None:
    if x.layout != torch.strided:
        raise RuntimeError(
            f"{what} is sparse, which LossScaler does not support: use sparse=False "
            "in the layer, or p.grad.to_dense()"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{what} must be float32 or float64, got "
            f"{str(x.dtype).removeprefix('torch.')}: use model.float(), and a "
            "Precision for the format"
        )
