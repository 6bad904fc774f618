"""Skewing around any optimizer: Adam and others with weights drawn to levels."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._askew_sgd import Skewing, check_skew_group, effective_step, warn_if_free
from ._base import Group
from ._exact import consecutive
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
        warn_if_free(self.param_groups[-1])

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_choice("mode", group["mode"], _MODES)
        check_skew_group(group)

    def _step_and_quantize(self, scales: dict[Tensor, Tensor]) -> None:
        pairs = [(p, group) for p, group in self._pairs() if p.grad is not None]
        gradients = [cast(Tensor, p.grad) for p, _ in pairs]
        skewings = {p: Skewing(group, scales[p], p) for p, group in pairs}
        # Where weights were before the step, or will be after it.
        places: dict[Tensor, Tensor] = {}
        try:
            for p, group in pairs:
                if group["mode"] == "displacement":
                    places[p] = p.detach().clone()
                    continue
                # torch's fused Adam misreads gradients of another layout than p's.
                seen = torch.empty_like(p)
                if group["mode"] == "bypass":
                    places[p] = torch.empty_like(p)
                _look(p, group, skewings[p], seen, places.get(p))
                p.grad = seen
            self.base.step()
        finally:
            for (p, _), gradient in zip(pairs, gradients, strict=True):
                p.grad = gradient
        for p, group in pairs:
            if p in places and effective_step(group) > 0:
                # What the base's own step lost belongs to a step that was undone.
                lost = self._kept(p).get("compensation")
                _move(p, group, skewings[p], places[p], lost)


def _look(
    p: Tensor, group: Group, skewing: Skewing, seen: Tensor, reached: Tensor | None
) -> None:
    """Write the gradient that the base sees and, to bypass it, where weights go.

    Args:
        p: the parameter, with its gradient.
        group: of the parameter.
        skewing: of the parameter.
        seen: -u where the gradient is skewed or, to bypass the base, 0.
        reached: w + lr u where it is, else NaN; None if the base moves all weights.
    """
    lr, negate = effective_step(group), bool(group.get("maximize"))
    tensors = [p.detach(), cast(Tensor, p.grad).detach(), seen]
    if reached is not None:
        tensors.append(reached)
    zero, nan = (p.new_tensor(x) for x in (0.0, torch.nan))
    for first, (w, gradient, out, *targets) in consecutive(tensors, skewing.cuttable):
        downhill = gradient.neg() if negate else gradient
        skewing(downhill, w, first, out)
        for target in targets:
            free = out == downhill
            torch.sub(w, out, alpha=lr, out=target)
            torch.where(free, nan, stored(target, group), out=target)
            torch.where(free, out, zero, out=out)
        if negate:
            out.neg_()


def _move(
    p: Tensor, group: Group, skewing: Skewing, place: Tensor, lost: Tensor | None
) -> None:
    """Move skewed weights after a step of the base.

    Args:
        p: the parameter.
        group: of the parameter.
        skewing: of the parameter.
        place: where they were or, to bypass the base, are to be.
        lost: by the base's own step.
    """
    lr, displaced = effective_step(group), group["mode"] == "displacement"
    tensors = [p.detach(), place]
    if lost is not None:
        tensors.append(lost)
    for first, (w, target, *losses) in consecutive(tensors, skewing.cuttable):
        if displaced:
            velocity = torch.sub(target, w).div_(lr)
            move = skewing(velocity, target, first)
            free = move == velocity
            target = stored(target.sub_(move, alpha=lr), group)
        else:
            free = target.isnan()
        torch.where(free, w, target, out=w)
        for loss in losses:
            loss.masked_fill_(free.logical_not(), 0.0)
