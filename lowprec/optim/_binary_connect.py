"""BinaryConnect: gradients at quantized weights move weights that stay unquantized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..random import draw_seed, philox_words
from ._base import Group
from ._levels import LevelsLike, level_table
from ._quantized import clamp_, stored
from ._remoteness import cell_bounds, check_choice
from ._scales import ScaleLike, scale_of
from ._wrapper import AbstractQuantizingOptimizer

_MODES = ("deterministic", "stochastic")
_WORDS = 2.0**32


class BinaryConnect(AbstractQuantizingOptimizer):
    r"""Wrap an optimizer so that gradients are taken at quantized weights.

    .. math::
        v_t = \mathrm{clip}(\text{base step from } v_{t-1} \text{ with }
        \nabla f(w_{t-1})), \qquad w_t = P(v_t)

    Contract:
        Parameters hold P(v) from construction on; the latent weights v are in the
        state as ``latent``. The stochastic P goes to the upper of the two levels
        around v with probability (v - a) / (b - a), so that its expectation is v
        inside the hull; its random words are a function of a seed, drawn at
        construction, the step and the element, and resume from a checkpoint.
        Moments of the base are those of gradients at P(v). ``param_format`` of the
        base rounds v; P(v) is rounded to nearest even.

    Args:
        base: optimizer of the latent weights.
        levels: of groups that do not say it.
        mode: ``"deterministic"``, the nearest level, or ``"stochastic"``.
        clip: whether to clamp v to the hull of the levels after a step; without it
            weights far outside take as long to come back.
        scale: see `scale_of`; None means 1.
        scale_until: see `ASkewSGD`.
        generator: source of the seed; None means torch's default generator.

    Raises:
        TypeError: if ``base`` is no optimizer or a parameter is not float32 or float64.
        ValueError: if an argument is out of range.

    Example:
        >>> from lowprec import Levels
        >>> w = torch.nn.Parameter(torch.tensor([0.25]))
        >>> base = torch.optim.SGD([w], lr=0.5)
        >>> optimizer = BinaryConnect(base, Levels.binary())
        >>> w.grad = torch.ones(1)
        >>> optimizer.step()
        >>> w.item()
        -1.0
        >>> with optimizer.latent():
        ...     w.item()
        -0.25

    References:
        Courbariaux et al. 2015, BinaryConnect.
    """

    def __init__(
        self,
        base: Optimizer,
        levels: LevelsLike | None = None,
        mode: Literal["deterministic", "stochastic"] = "deterministic",
        *,
        clip: bool = True,
        scale: ScaleLike = None,
        scale_until: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        defaults = {
            "levels": levels,
            "mode": mode,
            "clip": clip,
            "scale": scale,
            "scale_until": scale_until,
            "sampling_seed": None,
            "sampling_step": 0,
        }
        check_choice("mode", mode, _MODES)
        if mode == "stochastic":
            defaults["sampling_seed"] = int(draw_seed(generator))
        super().__init__(base, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group here and to the base, and quantize its parameters."""
        super().add_param_group(param_group)
        # During construction the base is ahead until the last group is shared.
        if len(self.param_groups) == len(self.base.param_groups):
            steps = max(group["sampling_step"] for group in self.param_groups)
            self.param_groups[-1]["sampling_step"] = steps
            self._quantize()

    def load_state_dict(self, state_dict: Group) -> None:
        """Restore both optimizers, and set parameters to P of the latent weights.

        Raises:
            ValueError: if the state is not of a wrapped optimizer.
        """
        super().load_state_dict(state_dict)
        self._quantize()

    def _check_new(self, group: Group) -> None:
        """Refuse parameters that have no scale, which is needed at once."""
        if group["levels"] is not None:
            for p in group["params"]:
                scale_of(p, group["levels"], group["scale"])

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_choice("mode", group["mode"], _MODES)
        if group["mode"] == "stochastic" and group["sampling_seed"] is None:
            raise ValueError(
                "a stochastic group needs a seed: give mode='stochastic' to the "
                "optimizer, and 'deterministic' to the other groups"
            )

    def _unquantized(self, p: Tensor) -> Tensor:
        latent = self.state.get(p, {}).get("latent")
        return latent if isinstance(latent, Tensor) else p.detach()

    def _step(self, scales: dict[Tensor, Tensor]) -> None:
        params = [p for p, _ in self._pairs()]
        quantized = [p.detach().clone() for p in params]
        for p in params:
            p.copy_(self._unquantized(p))
        try:
            self.base.step()
        except BaseException:
            for p, value in zip(params, quantized, strict=True):
                p.copy_(value)
            raise
        for p, group in self._pairs():
            if group["clip"]:
                table = level_table(group["levels"], p)
                low, high = table.first * scales[p], table.last * scales[p]
                clamp_(p.detach(), low, high, group.get("param_format"))
            self.state[p]["latent"].copy_(p)
        for group in self.param_groups:
            group["sampling_step"] += 1
        self._quantize(scales)

    @torch.no_grad()
    def _quantize(self, scales: dict[Tensor, Tensor] | None = None) -> None:
        """Set every parameter to P of its latent weights."""
        scales = self._pending_scales() if scales is None else scales
        self._keep_scales(scales)
        offset = 0
        for group in self.param_groups:
            for p in group["params"]:
                if group["levels"] is not None:
                    state = self.state[p]
                    if "latent" not in state:
                        state["latent"] = p.detach().clone()
                    p.copy_(_sampled(state["latent"], scales[p], group, offset))
                offset += p.numel()

    def update_scales_(self, epoch: float | None = None) -> None:
        """Compute scales as `ASkewSGD.update_scales_`, and quantize with them."""
        super().update_scales_(epoch)
        self._quantize()

    @contextmanager
    def latent(self) -> Iterator[None]:
        """Evaluate with the latent weights; the quantized ones come back."""
        with self._replaced([self._unquantized(p) for p, _ in self._pairs()]):
            yield


def _sampled(latent: Tensor, scale: Tensor, group: Group, offset: int) -> Tensor:
    z = latent / scale
    table = level_table(group["levels"], z)
    level = table.nearest(z)
    if group["mode"] == "stochastic" and table.values.shape[-1] > 1:
        count = table.values.isfinite().sum(-1)
        lower, upper = cell_bounds(z, table, count)
        index = torch.arange(offset, offset + z.numel(), device=z.device)
        seed = torch.tensor(group["sampling_seed"], device=z.device)
        step = group["sampling_step"] % 2**32
        words = philox_words(index, seed, step=step, purpose=0).view(z.shape)
        share = (z - lower).to(torch.float64) / (upper - lower)
        up = words < share * _WORDS
        # Rows of a single level have no cell, and NaN no level.
        sample = torch.where(up, upper, lower)
        level = torch.where(z.isnan() | (count < 2), level, sample)
    return stored(level.mul_(scale), group)
