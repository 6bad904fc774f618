"""Skewing around any optimizer: Adam and others with weights drawn to levels."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._askew_sgd import Skewing, check_skew_group, effective_step, warn_if_free
from ._base import Group
from ._levels import LevelsLike
from ._remoteness import ClipMode, Midpoint, RemotenessLike, check_choice
from ._scales import ScaleLike
from ._stored import stored
from ._wrapper import AbstractQuantizingOptimizer

Mode = Literal["gradient", "bypass", "displacement"]
_MODES = ("gradient", "bypass", "displacement")


class Skewed(AbstractQuantizingOptimizer):
    r"""Wrap an optimizer so that weights move into a feasible set around the levels.

    ``"gradient"``: the base sees -u in place of the gradient where it is skewed, as in
    published code. ``"bypass"``: it sees 0 there, and those weights move by lr u.
    ``"displacement"``: its own step, as a velocity, is skewed, so that the constraint
    on the velocity holds for any base:

    .. math::
        d = (w_{t-1} - w') / \eta, \quad w' = \text{base step}, \qquad
        w_t = w_{t-1} + \eta v_\epsilon(d, w_{t-1})

    Contract:
        Coordinates that are not skewed move as the base moves them, bit for bit, given
        the gradients it sees. Gradients are the same after a step as before. Where
        ``param_format`` is given, skewed weights are rounded to nearest even; the
        compensation of ``update="kahan"`` is 0 for those that the base did not move.

    Args:
        base: optimizer.
        levels: of groups that do not say it.
        mode: ``"gradient"``, ``"bypass"`` or ``"displacement"``.
        remoteness: as `ASkewSGD`.
        alpha: as `ASkewSGD`.
        epsilon: as `ASkewSGD`.
        clip: as `ASkewSGD`.
        clip_mode: as `ASkewSGD`.
        midpoint: as `ASkewSGD`.
        scale: as `ASkewSGD`.
        scale_until: as `ASkewSGD`.

    Raises:
        TypeError: if ``base`` is no optimizer or a parameter is not float32 or float64.
        ValueError: if an argument is out of range.

    Warns:
        NumericalWarning: if ``epsilon`` exceeds `largest_epsilon`.

    Example:
        >>> from lowprec import Levels
        >>> w = torch.nn.Parameter(torch.tensor([0.5]))
        >>> base = torch.optim.Adam([w], lr=0.5)
        >>> optimizer = Skewed(base, Levels.binary(), "bypass", alpha=0.5, epsilon=0.25)
        >>> w.grad = torch.ones(1)
        >>> optimizer.step()
        >>> w.item()
        0.625

    References:
        Leconte et al. 2023; Revisiting ASkewSGD, section 5.
    """

    def __init__(
        self,
        base: Optimizer,
        levels: LevelsLike | None = None,
        mode: Mode = "gradient",
        *,
        remoteness: RemotenessLike = "quadratic",
        alpha: float = 0.2,
        epsilon: float | None = 1.0,
        clip: float | None = None,
        clip_mode: ClipMode = "report",
        midpoint: Midpoint = "report",
        scale: ScaleLike = None,
        scale_until: float | None = None,
    ) -> None:
        defaults = {
            "levels": levels,
            "mode": mode,
            "remoteness": remoteness,
            "alpha": alpha,
            "epsilon": epsilon,
            "clip": clip,
            "clip_mode": clip_mode,
            "midpoint": midpoint,
            "scale": scale,
            "scale_until": scale_until,
        }
        super().__init__(base, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group here and to the base."""
        super().add_param_group(param_group)
        warn_if_free(self.param_groups[-1], stacklevel=2)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_choice("mode", group["mode"], _MODES)
        check_skew_group(group)

    def _step(self, scales: dict[Tensor, Tensor]) -> None:
        pairs = [(p, group) for p, group in self._pairs() if p.grad is not None]
        gradients = [cast(Tensor, p.grad) for p, _ in pairs]
        moves: dict[Tensor, Tensor] = {}
        olds: dict[Tensor, Tensor] = {}
        try:
            for p, group in pairs:
                if group["mode"] == "displacement":
                    olds[p] = p.detach().clone()
                    continue
                gradient = cast(Tensor, p.grad)
                sign = -1 if group.get("maximize") else 1
                direction = Skewing(group, scales[p], p)(sign * gradient, p)
                # torch's fused Adam misreads gradients of another layout than p's.
                seen = torch.empty_like(p)
                if group["mode"] == "gradient":
                    p.grad = torch.mul(direction, sign, out=seen)
                    continue
                moves[p] = direction.where(direction != sign * gradient, torch.nan)
                olds[p] = p.detach().clone()
                p.grad = seen.copy_(gradient).masked_fill_(~moves[p].isnan(), 0.0)
            self.base.step()
        finally:
            for (p, _), gradient in zip(pairs, gradients, strict=True):
                p.grad = gradient
        for p, group in pairs:
            lr = effective_step(group)
            if p not in olds or lr == 0:
                continue
            if group["mode"] == "displacement":
                velocity = (olds[p] - p).div_(lr)
                move = Skewing(group, scales[p], p)(velocity, olds[p])
                move = move.where(move != velocity, torch.nan)
            else:
                move = moves[p]
            reached = stored(olds[p].sub_(move, alpha=lr), group)
            p.copy_(torch.where(move.isnan(), p, reached))
            # What the base's own step lost belongs to a step that was undone.
            lost = self.base.state.get(p, {}).get("compensation")
            if isinstance(lost, Tensor):
                lost.masked_fill_(~move.isnan(), 0.0)
