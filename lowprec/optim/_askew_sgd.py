"""Annealed skewed SGD: weights drawn into a shrinking set around the levels."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..errors import NumericalWarning, depth_of_caller
from ..rounding import Rounding, RoundingLike
from ._base import AbstractRoundedOptimizer, Group
from ._levels import LevelsLike, LevelTable
from ._quantized import QuantizedMixin, check_gradients, check_levels
from ._remoteness import (
    ClipMode,
    Midpoint,
    RemotenessLike,
    Skew,
    check_cells,
    check_choice,
    check_number,
    check_skew,
    largest_epsilon,
    min_gap,
    outer_slack,
)
from ._scaled_levels import ScaledLevels
from ._scales import ScaleLike
from ._sgd import SGD, Stage
from ._stored import clamp_
from ._update import UpdateLike, step_size

Hull = Literal["levels"] | tuple[float, float] | None


class ASkewSGD(QuantizedMixin, SGD):
    r"""SGD whose weights move into a feasible set around the levels as epsilon shrinks.

    .. math::
        \begin{aligned}
        & d_t = \text{direction of `SGD`, with momentum and decay} \\
        & u = s\,\mathrm{clip}(-\alpha \psi_\epsilon(w/s) / \psi_\epsilon'(w/s),
              \pm M_c) \\
        & w_t = w_{t-1} + \eta v, \quad v = -d_t \text{ if } \psi_\epsilon > 0
          \text{ or } -d_t \psi_\epsilon' \ge -\alpha s \psi_\epsilon, \text{ else } u
        \end{aligned}

    Contract:
        Groups with ``levels=None`` are `SGD`, bit for bit; so is every coordinate
        whose velocity is not skewed. Annealing epsilon is left to `Annealing`; its
        end leaves weights near the levels: call `project_`, or evaluate inside
        `quantized`. ``coupling="gradient"`` skews the gradient before the momentum,
        as published code does; the velocity may then leave its constraint. Gradients
        that are not finite are refused. Roundings, updates, checkpoints and failing
        steps as in `SGD`: what is rounded is w + eta v.

    Args:
        params: parameters or groups, as in ``torch.optim``; `split_params` makes two.
        lr: step size eta.
        levels: `Levels`, or a tensor [..., K] whose leading dimensions broadcast
            against the parameters; None for parameters that stay unquantized.
        momentum: mu.
        dampening: tau.
        weight_decay: lambda.
        nesterov: whether to look ahead along the momentum.
        remoteness: psi; see `remoteness`.
        alpha: rate at which infeasible weights are driven.
        epsilon: slack of the feasible set, in units of the levels; None means
            `largest_epsilon`, from which on all weights between two levels are free.
        clip: M_c, in units of the levels; None means min_gap / (4 lr), a quarter gap a
            step.
        clip_mode: see `skewed_direction`.
        midpoint: ``"report"`` moves weights that lie exactly between two levels by
            +M_c, ``"gradient"`` leaves them to the gradient.
        coupling: ``"velocity"`` or ``"gradient"``.
        hull: None, ``"levels"`` (clamp to the feasible set's outer bounds) or bounds
            in units of the levels.
        scale: s, see `scale_of`; None means 1.
        scale_until: epoch from which `update_scales_` leaves the scale as it is.
        maximize: whether to ascend.
        param_format: rounding of the parameters.
        momentum_format: rounding of the momentum buffer.
        update: as in `SGD`.
        generator: source of the seed; None means torch's default generator.

    Raises:
        TypeError: if a parameter with levels is not float32 or float64, or an argument
            no number.
        ValueError: if an argument is out of range.

    Warns:
        NumericalWarning: if ``epsilon`` exceeds `largest_epsilon`, so that weights
            between levels are free until it is annealed.

    Example:
        >>> from lowprec import Levels
        >>> w = torch.nn.Parameter(torch.tensor([0.5, -2.0]))
        >>> optimizer = ASkewSGD([w], lr=0.5, levels=Levels.binary(), epsilon=0.01)
        >>> for _ in range(100):
        ...     w.grad = torch.zeros(2)
        ...     optimizer.step()
        >>> optimizer.distance()[0] < 0.011
        True
        >>> optimizer.project_()
        >>> w.tolist()
        [1.0, -1.0]

    References:
        Revisiting ASkewSGD, Algorithm 2; Leconte et al. 2023.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        levels: LevelsLike | None = None,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        remoteness: RemotenessLike = "quadratic",
        alpha: float = 0.2,
        epsilon: float | None = 1.0,
        clip: float | None = None,
        clip_mode: ClipMode = "report",
        midpoint: Midpoint = "report",
        coupling: Literal["velocity", "gradient"] = "velocity",
        hull: Hull = None,
        scale: ScaleLike = None,
        scale_until: float | None = None,
        maximize: bool = False,
        param_format: RoundingLike | torch.dtype | None = None,
        momentum_format: RoundingLike | torch.dtype | None = None,
        update: UpdateLike = "fused",
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the arguments and the levels against every parameter."""
        defaults = {
            "lr": lr,
            "levels": levels,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "remoteness": remoteness,
            "alpha": alpha,
            "epsilon": epsilon,
            "clip": clip,
            "clip_mode": clip_mode,
            "midpoint": midpoint,
            "coupling": coupling,
            "hull": hull,
            "scale": scale,
            "scale_until": scale_until,
            "maximize": maximize,
            "param_format": param_format,
            "momentum_format": momentum_format,
            "update": update,
        }
        # Not SGD's, whose defaults these replace.
        AbstractRoundedOptimizer.__init__(self, params, defaults, generator)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; what it lacks is taken from the defaults.

        Raises:
            TypeError: if a parameter with levels is not float32 or float64.
            ValueError: if a value is out of range.
        """
        if isinstance(param_group, dict):
            params = param_group["params"]
            params = [params] if isinstance(params, Tensor) else list(params)
            param_group = {**param_group, "params": params}
            check_levels({**self.defaults, **param_group}, params)
        super().add_param_group(param_group)
        warn_if_free(self.param_groups[-1])

    def _check_values(self, group: Group) -> None:
        super()._check_values(group)
        check_choice("coupling", group["coupling"], ("velocity", "gradient"))
        check_skew_group(group)
        hull = group["hull"]
        if hull is None or hull == "levels":
            return
        pair = isinstance(hull, tuple | list) and len(hull) == 2
        if pair:
            check_number("a bound of hull", hull[0])
            check_number("a bound of hull", hull[1])
        if not pair or not hull[0] <= hull[1]:
            raise ValueError(
                f"hull must be None, 'levels' or (low, high) with low <= high, got "
                f"{hull!r}"
            )

    def _step(self) -> None:
        check_gradients(self.param_groups)
        scales = self._pending_scales()

        redirections = {
            p: Skewing(group, scales[p], p)
            for p, group in self._pairs()
            if p.grad is not None
        }
        self._descend(redirections)
        self._keep_scales(scales)


def check_skew_group(group: Group) -> None:
    """Refuse parameters of the skewed direction that are out of range."""
    if group["levels"] is not None:
        if group["epsilon"] is not None:
            check_number("epsilon", group["epsilon"])
        names = ("clip", "remoteness", "clip_mode", "midpoint")
        check_skew(group["alpha"], _epsilon(group), *(group[name] for name in names))
        check_cells(group["levels"], group["remoteness"])


def warn_if_free(group: Group) -> None:
    """Warn if the constraint binds nowhere between two levels."""
    if group["levels"] is None:
        return
    largest = largest_epsilon(group["levels"], group["remoteness"])
    if _epsilon(group) > largest:
        warnings.warn(
            f"epsilon={group['epsilon']:g} is above its maximum {largest:g} for "
            "these levels: weights between two levels are free until epsilon is "
            "annealed below it; epsilon=None is the maximum",
            NumericalWarning,
            stacklevel=depth_of_caller(),
        )


def _epsilon(group: Group) -> float:
    if group["epsilon"] is None:
        return largest_epsilon(group["levels"], group["remoteness"])
    return float(group["epsilon"])


def _clip(group: Group) -> float:
    if group["clip"] is not None:
        return float(group["clip"])
    eta, gap = effective_step(group), min_gap(group["levels"])
    return gap / (4 * eta) if eta > 0 else gap


def effective_step(group: Group) -> float:
    """Return the step size as the update uses it, for groups of any optimizer."""
    return step_size(group) if "update" in group else float(group["lr"])


class Skewing:
    """The skewed direction of one parameter, with the values of its group."""

    def __init__(self, group: Group, scale: Tensor, p: Tensor) -> None:
        self.stage = Stage(group.get("coupling", Stage.VELOCITY))
        self._levels = ScaledLevels(group["levels"], scale, p)
        self._skew = Skew(
            _epsilon(group),
            float(group["alpha"]),
            _clip(group),
            group["remoteness"],
            group["clip_mode"],
            group["midpoint"],
        )
        self._hull: tuple[Tensor, Tensor] | None = None
        if group.get("hull") is not None:
            self._hull = _hull(self._levels.table, group)

    def confine(self, weights: Tensor, rounding: Rounding | None = None) -> None:
        """Clamp to the hull of the group, if it has one."""
        if self._hull is not None:
            low, high = self._hull
            scale = self._levels.scale
            clamp_(weights, low * scale, high * scale, rounding)

    @property
    def cuttable(self) -> bool:
        """Whether it takes any consecutive elements of the parameter."""
        return self._levels.cuttable

    def __call__(
        self,
        direction: Tensor,
        weights: Tensor,
        first: int = 0,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return -v; see `skewed_direction`."""
        direction, weights = direction.detach(), weights.detach()
        return self._levels.skewed(self._skew, direction, weights, first, out)

    def descend(
        self,
        weights: Tensor,
        gradient: Tensor,
        buffer: Tensor | None,
        started: bool,
        group: Group,
        eta: float,
    ) -> bool:
        """Do a whole step of `SGD` at once, if there is a kernel; else return False."""
        hull = None
        if self._hull is not None:
            if self._hull[0].dim() > 0 or self._hull[1].dim() > 0:
                return False
            hull = self._hull[0].item(), self._hull[1].item()
        return self._levels.descend(
            self._skew,
            weights,
            gradient,
            buffer,
            hull,
            step_size=eta,
            decay=float(group["weight_decay"]),
            momentum=float(group["momentum"]),
            share=1 - group["dampening"],
            maximize=bool(group["maximize"]),
            first_momentum=not started,
            nesterov=bool(group["nesterov"]),
            skew_gradient=self.stage is Stage.GRADIENT,
        )


def _hull(table: LevelTable, group: Group) -> tuple[Tensor, Tensor]:
    """Return the bounds of the hull in units of the levels."""
    hull: Hull = group["hull"]
    if isinstance(hull, tuple | list):
        return table.first.new_tensor(hull[0]), table.first.new_tensor(hull[1])
    epsilon, kind = _epsilon(group), group["remoteness"]
    left = right = table.first.new_tensor(math.inf)
    if table.values.shape[-1] > 1:
        gaps = table.values.diff(dim=-1)
        count = gaps.isfinite().sum(-1, keepdim=True)
        left = gaps[..., 0]
        right = gaps.gather(-1, (count - 1).clamp(min=0)).squeeze(-1)
    low = table.first - outer_slack(left, epsilon, kind)
    return low, table.last + outer_slack(right, epsilon, kind)
