"""What optimizers of quantized weights share: scales, projection, evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._levels import level_table
from ._scaled_levels import ScaledLevels
from ._scales import check_scale, scale_of
from ._stored import stored

Group = dict[str, Any]


def quantized_params(groups: Sequence[Group]) -> Iterator[tuple[Tensor, Group]]:
    """Yield the parameters that have levels, with their groups."""
    for group in groups:
        if group["levels"] is not None:
            for p in group["params"]:
                yield p, group


def check_gradients(groups: Sequence[Group]) -> None:
    """Refuse gradients that are not finite.

    Raises:
        RuntimeError: naming how many elements are not.
    """
    for group in groups:
        for p in group["params"]:
            if p.grad is None or p.grad.layout != torch.strided:
                continue
            # A sum costs no temporary; it may also overflow, hence the second look.
            if not bool(p.grad.sum().isfinite()) and not bool(p.grad.isfinite().all()):
                count = int((~p.grad.isfinite()).sum())
                raise RuntimeError(
                    f"the gradient of a parameter of shape {tuple(p.shape)} has "
                    f"{count} elements that are NaN or infinite; nothing was changed. "
                    "Skip the step, lower the learning rate or scale the loss"
                )


def check_levels(group: Group, params: Sequence[Any]) -> None:
    """Refuse levels and scales that do not fit the parameters of a group.

    Raises:
        TypeError: if a parameter is not float32 or float64.
        ValueError: if levels or scale are out of range.
    """
    if group["levels"] is None:
        return
    check_scale(group["scale"])
    for p in params:
        tensor = p[1] if isinstance(p, tuple) else p
        if isinstance(tensor, Tensor):
            level_table(group["levels"], tensor.detach())


class QuantizedMixin:
    """Projection on the levels, and evaluation there, for an optimizer's groups.

    The groups have ``levels`` and ``scale``. A scale that is computed from the weights
    is kept in the state from the first step on, until `update_scales_`.
    """

    if TYPE_CHECKING:
        param_groups: list[Group]
        state: defaultdict[Tensor, Any]

    def _scale(self, p: Tensor, group: Group) -> Tensor:
        known = self.state.get(p, {}).get("scale")
        if isinstance(known, Tensor):
            return known
        return scale_of(self._unquantized(p), group["levels"], group["scale"])

    def _unquantized(self, p: Tensor) -> Tensor:
        """Return the weights that the quantization starts from."""
        return p.detach()

    def _pending_scales(self) -> dict[Tensor, Tensor]:
        """Return the scales of all parameters that have levels."""
        return {p: self._scale(p, g) for p, g in quantized_params(self.param_groups)}

    def _keep_scales(self, scales: dict[Tensor, Tensor]) -> None:
        for p, group in quantized_params(self.param_groups):
            if group["scale"] is not None:
                self.state[p]["scale"] = scales[p]

    def _project(self, p: Tensor, group: Group) -> Tensor:
        w, scale = self._unquantized(p), self._scale(p, group)
        return stored(ScaledLevels(group["levels"], scale, w).nearest(w), group)

    def _keeps_scales(self, group: Group, epoch: float | None) -> bool:
        """Whether `update_scales_` leaves the scales of a group as they are."""
        until = group["scale_until"]
        return epoch is not None and until is not None and epoch >= until

    @torch.no_grad()
    def update_scales_(self, epoch: float | None = None) -> None:
        """Compute the scales of all groups from the weights as they are.

        Call it at the start of an epoch. Groups whose ``scale_until`` is reached, or
        whose weights are frozen at their levels, keep the scales that they have.

        Args:
            epoch: number of the epoch, from 0; None means all groups.

        Raises:
            ValueError: if a scale is zero or not finite; nothing has changed then.
        """
        chosen = [
            (p, group)
            for p, group in quantized_params(self.param_groups)
            if not self._keeps_scales(group, epoch)
        ]
        scales = [
            scale_of(self._unquantized(p), group["levels"], group["scale"])
            for p, group in chosen
        ]
        for (p, group), scale in zip(chosen, scales, strict=True):
            if group["scale"] is not None:
                self.state[p]["scale"] = scale

    @torch.no_grad()
    def project_(self) -> None:
        """Move every weight that has levels to its nearest level, in place.

        Training ends near the levels, not on them: without this the weights are not
        in the set. With ``param_format`` the scaled level is rounded to nearest even.
        """
        pairs = list(quantized_params(self.param_groups))
        values = [self._project(p, group) for p, group in pairs]
        for (p, _), value in zip(pairs, values, strict=True):
            p.copy_(value)
            state = self.state.get(p, {})
            if isinstance(state.get("master"), Tensor):
                state["master"].copy_(value)
            if isinstance(state.get("compensation"), Tensor):
                state["compensation"].zero_()

    @contextmanager
    def quantized(self) -> Iterator[None]:
        """Evaluate with projected weights; the others come back bit for bit.

        Statistics of batch normalization are left as they are.
        """
        with self._replaced([self._project(*x) for x in self._pairs()]):
            yield

    def _pairs(self) -> list[tuple[Tensor, Group]]:
        return list(quantized_params(self.param_groups))

    @contextmanager
    def _replaced(self, values: list[Tensor]) -> Iterator[None]:
        params = [p for p, _ in self._pairs()]
        kept = [p.detach().clone() for p in params]
        _assign(params, values)
        try:
            yield
        finally:
            _assign(params, kept)

    @torch.no_grad()
    def distance(self) -> tuple[float, float]:
        """Return the largest and the mean |w/s - P(w/s)| over all quantized weights.

        (0, 0) without any.
        """
        largest, total, count = 0.0, 0.0, 0
        for p, group in quantized_params(self.param_groups):
            if p.numel() == 0:
                continue
            w, scale = self._unquantized(p), self._scale(p, group)
            away = ScaledLevels(group["levels"], scale, w).from_nearest(w).abs_()
            largest = max(largest, float(away.max()))
            total += float(away.sum(dtype=torch.float64))
            count += p.numel()
        return largest, total / max(count, 1)


@torch.no_grad()
def _assign(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
