"""BinaryConnect: gradients at quantized weights move weights that stay unquantized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..random import draw_seed
from ._base import Group
from ._levels import LevelsLike
from ._remoteness import check_choice
from ._scaled_levels import Sampling, ScaledLevels
from ._scales import ScaleLike, scale_of
from ._stored import clamp_, stored
from ._wrapper import AbstractQuantizingOptimizer

_MODES = ("deterministic", "stochastic")


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
        base rounds v; P(v) is rounded to nearest even. Where the stochastic P is used,
        the nearest levels of `project_` last until the next step, `update_scales_` or
        `load_state_dict`. Weights that are loaded into the model, or initialized
        again, after construction are refused, because P(v) would overwrite them: call
        `reset_latent_` after it. Writes through ``p.data``, and those in the contexts
        of this optimizer, are not seen.

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
        self._written: dict[Tensor, tuple[int, int]] = {}
        super().__init__(base, defaults)

    def __setstate__(self, state: Group) -> None:
        """Restore a copy, whose parameters count their changes anew."""
        super().__setstate__(state)
        self._written = {}

    def add_param_group(self, param_group: Group) -> None:
        """Add a group here and to the base, and quantize its parameters."""
        super().add_param_group(param_group)
        # During construction the base is ahead until the last group is shared.
        if len(self.param_groups) == len(self.base.param_groups):
            steps = max(group["sampling_step"] for group in self.param_groups)
            self.param_groups[-1]["sampling_step"] = steps
            new = [x for x in self._pairs() if "latent" not in self.state.get(x[0], {})]
            self._quantize(self._pending_scales(new))

    def load_state_dict(self, state_dict: Group) -> None:
        """Restore both optimizers, and set parameters to P of the latent weights.

        Raises:
            RuntimeError: as `step`.
            ValueError: if the state is not of a wrapped optimizer.
        """
        super().load_state_dict(state_dict)
        for p, _ in self._pairs():
            self._wrote(p)
        self._quantize(self._pending_scales())

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
        if not isinstance(latent, Tensor):
            return p.detach()
        if not self._is_own(p, latent):
            raise RuntimeError(
                f"the weights of a parameter of shape {tuple(p.shape)} were changed "
                "after BinaryConnect quantized them, and the next step would overwrite "
                "them; nothing was changed here. Call reset_latent_() to train on from "
                "the present weights, load_state_dict() for those of a checkpoint"
            )
        # The model may have changed its dtype or device since the last step.
        return latent.to(p)

    def _latent_of(self, p: Tensor) -> Tensor:
        """Return the latent weights, in memory of their own from the first time on."""
        new = "latent" not in self.state.get(p, {})
        return p.detach().clone() if new else self._unquantized(p)

    def _kept(self, p: Tensor) -> Group:
        """Return nothing: what the base keeps belongs to the latent weights."""
        return {}

    def _wrote(self, p: Tensor) -> None:
        self._written[p] = _mark(p)

    @torch.no_grad()
    def _is_own(self, p: Tensor, latent: Tensor) -> bool:
        """Whether a parameter has the values that it got here.

        Copies of the parameters count their changes anew, and loading may write the
        same values: then the quantized latent weights decide.
        """
        if self._written.get(p) == _mark(p):
            return True
        group, offset = next((g, i) for x, g, i in self._places() if x is p)
        scale = self.state[p].get("scale")
        if scale is None:
            scale = scale_of(latent, group["levels"], group["scale"])
        levels = ScaledLevels(group["levels"], scale, latent)
        for mode in (group["mode"], "deterministic"):
            own = torch.empty_like(latent)
            _quantize(latent, own, levels, {**group, "mode": mode}, offset, False)
            if torch.equal(own.to(p), p):
                self._wrote(p)
                return True
        return False

    def _step_and_quantize(self, scales: dict[Tensor, Tensor]) -> None:
        with self._latent_data():
            self.base.step()
        for group in self.param_groups:
            group["sampling_step"] += 1
        self._quantize(scales, clip=True)

    @contextmanager
    def _latent_data(self) -> Iterator[None]:
        """Let the parameters have the memory of the latent weights, without a copy."""
        latents = {p: self._latent_of(p) for p, _ in self._pairs()}
        quantized = {p: p.data for p in latents}
        for p, latent in latents.items():
            p.data = latent
        try:
            yield
        finally:
            for p, values in quantized.items():
                self.state[p]["latent"], p.data = p.data, values
                self._wrote(p)

    def _places(self) -> Iterator[tuple[Tensor, Group, int]]:
        """Yield parameters that have levels, their groups, and their first elements."""
        offset = 0
        for group in self.param_groups:
            for p in group["params"]:
                if group["levels"] is not None:
                    yield p, group, offset
                offset += p.numel()

    @torch.no_grad()
    def _quantize(self, scales: dict[Tensor, Tensor], clip: bool = False) -> None:
        """Set parameters to P of their latent weights, clipped if groups say so.

        Args:
            scales: of these parameters.
            clip: whether groups decide on clipping; else there is none.
        """
        self._keep_scales(scales)
        for p, group, offset in self._places():
            if p in scales:
                latent = self.state[p]["latent"] = self._latent_of(p)
                levels = ScaledLevels(group["levels"], scales[p], latent)
                _quantize(latent, p, levels, group, offset, clip and group["clip"])
                self._wrote(p)

    def update_scales_(self, epoch: float | None = None) -> None:
        """Compute scales as `ASkewSGD.update_scales_`, and quantize with them.

        Raises:
            RuntimeError: if others changed the weights; nothing has changed then.
            ValueError: if a scale is zero or not finite; likewise.
        """
        for p, _ in self._pairs():
            self._unquantized(p)
        super().update_scales_(epoch)
        self._quantize(self._pending_scales())

    @torch.no_grad()
    def reset_latent_(self) -> None:
        """Take weights that were loaded into the model as latent ones, and quantize.

        Parameters that have other values than they got here start anew, as at
        construction: their present values become the latent weights, of which scales
        are computed. All others, and the base's moments, stay as they are.

        Raises:
            ValueError: if a scale is zero or not finite; nothing has changed then.
        """
        loaded = [
            (p, group)
            for p, group in self._pairs()
            if "latent" not in self.state.get(p, {})
            or not self._is_own(p, self.state[p]["latent"])
        ]
        scales = {p: scale_of(p, g["levels"], g["scale"]) for p, g in loaded}
        for p, _ in loaded:
            self.state[p]["latent"] = p.detach().clone()
            self._wrote(p)
            # What was lost in a step of other weights.
            lost = self.base.state.get(p, {}).get("compensation")
            if isinstance(lost, Tensor):
                lost.zero_()
        self._quantize(scales)

    @contextmanager
    def latent(self) -> Iterator[None]:
        """Evaluate with the latent weights; the quantized ones come back."""
        with self._replaced([self._unquantized(p) for p, _ in self._pairs()]):
            yield


def _mark(p: Tensor) -> tuple[int, int]:
    """Return what differs after torch has written to a parameter or moved it."""
    return p._version, p.data_ptr()


def _quantize(
    latent: Tensor,
    p: Tensor,
    levels: ScaledLevels,
    group: Group,
    offset: int,
    clip: bool,
) -> None:
    sampling, rounding = None, group.get("param_format")
    if group["mode"] == "stochastic":
        step = group["sampling_step"] % 2**32
        sampling = Sampling(group["sampling_seed"], step, offset)
    if clip and rounding is not None:
        clamp_(latent, *levels.hull, rounding)
    levels.quantize_(latent, p.detach(), clip and rounding is None, sampling)
    if rounding is not None:
        p.copy_(stored(p, group))
