"""ProxQuant: a proximal map draws weights to their levels after every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._base import Group
from ._levels import LevelsLike
from ._remoteness import check_choice, check_number
from ._scaled_levels import Prox, ScaledLevels
from ._scales import ScaleLike
from ._stored import clamp_, stored
from ._wrapper import AbstractQuantizingOptimizer

_PROXES = ("l1", "sq", "l2")


def proximal_map(
    w: Tensor, levels: LevelsLike, lam: float, prox: Prox = "l1"
) -> Tensor:
    r"""Return the proximal map of the distance to a quantization set.

    .. math::
        \arg\min_x \tfrac12 \|x - w\|^2 + \lambda R(x), \qquad
        R = \|x - P(x)\|_1, \quad \tfrac12 \|x - P(x)\|^2, \quad \|x - P(x)\|

    for ``"l1"``, ``"sq"`` and ``"l2"``.

    Contract:
        Closed forms around q = P(w), which is optimal for all three; the norm of
        ``"l2"`` runs over the whole tensor and hardly moves large ones. lam = 0 gives
        w back; NaN stays.

    Args:
        w: float32 or float64 tensor, in units of the levels.
        levels: as `nearest`.
        lam: lambda, not negative.
        prox: which R.

    Returns:
        Tensor like ``w``.

    Raises:
        TypeError: if lambda is no number.
        ValueError: if an argument is out of range.

    Example:
        >>> from lowprec import Levels
        >>> w = torch.tensor([0.5, 0.875])
        >>> proximal_map(w, Levels.binary(), 0.25).tolist()
        [0.75, 1.0]

    References:
        Bai et al. 2019, ProxQuant; Revisiting ASkewSGD, section 3 (l2).
    """
    check_choice("prox", prox, _PROXES)
    _check_lam(lam)
    result = w.detach().clone()
    one = torch.ones((), dtype=w.dtype, device=w.device)
    ScaledLevels(levels, one, result).proximal_(result, lam, prox)
    return result


def _check_lam(lam: float) -> None:
    check_number("lam", lam)
    if not 0 <= lam < math.inf:
        raise ValueError(f"lam must be finite and not negative, got {lam}")


class ProxQuant(AbstractQuantizingOptimizer):
    r"""Wrap an optimizer so that each step ends in a proximal map toward the levels.

    .. math::
        w_t = s\,\mathrm{prox}_{\lambda R}(w' / s), \qquad
        w' = \text{base step from } w_{t-1}

    Contract:
        Where lambda is 0, steps are the base's, bit for bit. `Annealing` of ``"lam"``
        with `LinearLambda` is the usual schedule. The map acts on one parameter at a
        time and is rounded to nearest even of the base's ``param_format``. Training
        ends near the levels: call `project_`, or give ``freeze_at``.

    Args:
        base: optimizer.
        levels: of groups that do not say it.
        prox: ``"l1"``, ``"sq"`` or ``"l2"``; see `proximal_map`.
        lam: lambda, in units of the levels.
        scale_by_lr: whether lambda is multiplied by the learning rate.
        clip: whether to clamp to the hull of the levels.
        scale: s; see `scale_of`; None means 1.
        scale_until: see `ASkewSGD`.
        freeze_at: number of steps after which weights with levels go to the nearest
            ones and stay there, with the scale that they have, while the base goes on
            with all others; None for never. Groups in which it is set later freeze at
            the next step.

    Raises:
        TypeError: if ``base`` is no optimizer or a parameter is not float32 or float64.
        ValueError: if an argument is out of range.

    Example:
        >>> from lowprec import Levels
        >>> w = torch.nn.Parameter(torch.tensor([0.25]))
        >>> base = torch.optim.SGD([w], lr=0.5)
        >>> optimizer = ProxQuant(base, Levels.binary(), lam=0.125)
        >>> w.grad = torch.ones(1)
        >>> optimizer.step()
        >>> w.item()
        -0.375

    References:
        Bai et al. 2019, ProxQuant.
    """

    def __init__(
        self,
        base: Optimizer,
        levels: LevelsLike | None = None,
        prox: Prox = "l1",
        lam: float = 0.0,
        *,
        scale_by_lr: bool = False,
        clip: bool = False,
        scale: ScaleLike = None,
        scale_until: float | None = None,
        freeze_at: int | None = None,
    ) -> None:
        defaults = {
            "levels": levels,
            "prox": prox,
            "lam": lam,
            "scale_by_lr": scale_by_lr,
            "clip": clip,
            "scale": scale,
            "scale_until": scale_until,
            "freeze_at": freeze_at,
            "prox_step": 0,
            "frozen": False,
        }
        super().__init__(base, defaults)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_choice("prox", group["prox"], _PROXES)
        _check_lam(group["lam"])
        freeze_at = group["freeze_at"]
        if freeze_at is None:
            return
        if isinstance(freeze_at, bool) or not isinstance(freeze_at, int):
            raise TypeError(f"freeze_at must be a number of steps, got {freeze_at!r}")
        if freeze_at < 1:
            raise ValueError(f"freeze_at must be at least 1 step, got {freeze_at}")

    def _step_and_quantize(self, scales: dict[Tensor, Tensor]) -> None:
        frozen = [p for p, group in self._pairs() if _is_frozen(group)]
        gradients = [p.grad for p in frozen]
        for p in frozen:
            p.grad = None
        try:
            self.base.step()
        finally:
            for p, gradient in zip(frozen, gradients, strict=True):
                p.grad = gradient
        for p, group in self._pairs():
            if p.grad is not None and not _is_frozen(group):
                self._map(p, group, scales[p])
        for group in self.param_groups:
            group["prox_step"] += 1
            freezes = _is_frozen(group) and not group["frozen"]
            if freezes and group["levels"] is not None:
                for p in group["params"]:
                    self._place(p, self._project(p, group, scales[p]))
            group["frozen"] = _is_frozen(group)

    def _keeps_scales(self, group: Group, epoch: float | None) -> bool:
        return _is_frozen(group) or super()._keeps_scales(group, epoch)

    def _map(self, p: Tensor, group: Group, scale: Tensor) -> None:
        levels = ScaledLevels(group["levels"], scale, p.detach())
        lam = float(group["lam"]) * (
            float(group["lr"]) if group["scale_by_lr"] else 1.0
        )
        rounding = group.get("param_format")
        clip = group["clip"] and rounding is None
        levels.proximal_(p.detach(), lam, group["prox"], clip)
        if rounding is None:
            return
        p.copy_(stored(p, group))
        if group["clip"]:
            clamp_(p.detach(), *levels.hull, rounding)


def _is_frozen(group: Group) -> bool:
    return group["freeze_at"] is not None and group["prox_step"] >= group["freeze_at"]
