"""What optimizers of quantized weights share: scales, projection, evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._levels import level_table
from ._remoteness import check_number
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
            if p.grad is None:
                continue
            gradient = _values(p.grad)
            # A sum costs no temporary; it may also overflow, hence the second look.
            if not bool(gradient.sum().isfinite()) and not bool(
                gradient.isfinite().all()
            ):
                count = int((~gradient.isfinite()).sum())
                raise RuntimeError(
                    f"the gradient of a parameter of shape {tuple(p.shape)} has "
                    f"{count} elements that are NaN or infinite; nothing was changed. "
                    "Skip the step, lower the learning rate or scale the loss"
                )


def _values(gradient: Tensor) -> Tensor:
    """Return the elements that are stored, of a gradient of any layout."""
    if gradient.layout == torch.strided:
        return gradient
    if gradient.layout == torch.sparse_coo:
        gradient = gradient.coalesce()
    return gradient.values()


def check_levels(group: Group, params: Sequence[Any]) -> None:
    """Refuse levels and scales that do not fit the parameters of a group.

    Raises:
        TypeError: if a parameter is not float32 or float64, or a value no number.
        ValueError: if levels or scale are out of range.
    """
    if group["levels"] is None:
        return
    check_scale(group["scale"])
    if group["scale_until"] is not None:
        check_number("scale_until", group["scale_until"])
    for p in params:
        tensor = p[1] if isinstance(p, tuple) else p
        if isinstance(tensor, Tensor):
            level_table(group["levels"], tensor.detach())


class QuantizedMixin:
    """Projection on the levels, and evaluation there, for an optimizer's groups.

    The groups have ``levels`` and ``scale``. A scale that is computed from the weights
    is kept in the state from the first step or `project_` on, until `update_scales_`.
    """

    if TYPE_CHECKING:
        param_groups: list[Group]
        state: defaultdict[Tensor, Any]

    def _pairs(self) -> list[tuple[Tensor, Group]]:
        return list(quantized_params(self.param_groups))

    def _scale(self, p: Tensor, group: Group) -> Tensor:
        known = self.state.get(p, {}).get("scale")
        if isinstance(known, Tensor):
            return known
        return scale_of(self._unquantized(p), group["levels"], group["scale"])

    def _unquantized(self, p: Tensor) -> Tensor:
        """Return the weights that the quantization starts from."""
        return p.detach()

    def _wrote(self, p: Tensor) -> None:
        """Take note that a parameter has values that this optimizer gave it."""

    def _kept(self, p: Tensor) -> Group:
        """Return the state that belongs to the weights and moves with them."""
        state: Group = self.state.get(p, {})
        return state

    def _pending_scales(
        self, pairs: Sequence[tuple[Tensor, Group]] | None = None
    ) -> dict[Tensor, Tensor]:
        """Return the scales of these parameters, or of all that have levels."""
        pairs = self._pairs() if pairs is None else pairs
        return {p: self._scale(p, group) for p, group in pairs}

    def _keep_scales(self, scales: dict[Tensor, Tensor]) -> None:
        for p, group in self._pairs():
            if p in scales and group["scale"] is not None:
                self.state[p]["scale"] = scales[p]

    def _project(self, p: Tensor, group: Group, scale: Tensor) -> Tensor:
        w = self._unquantized(p)
        return stored(ScaledLevels(group["levels"], scale, w).nearest(w), group)

    def _place(self, p: Tensor, value: Tensor) -> None:
        """Set weights to values that no step has led to, and what belongs to them."""
        p.copy_(value)
        self._wrote(p)
        kept = self._kept(p)
        if isinstance(kept.get("master"), Tensor):
            kept["master"].copy_(value)
        if isinstance(kept.get("compensation"), Tensor):
            kept["compensation"].zero_()

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
        chosen = [x for x in self._pairs() if not self._keeps_scales(x[1], epoch)]
        self._keep_scales(
            {
                p: scale_of(self._unquantized(p), group["levels"], group["scale"])
                for p, group in chosen
            }
        )

    @torch.no_grad()
    def project_(self, params: Tensor | Iterable[Tensor] | None = None) -> None:
        """Move weights that have levels to their nearest levels, in place.

        Training ends near the levels, not on them: without this the weights are not
        in the set. With ``param_format`` the scaled level is rounded to nearest even.
        Scales are kept from here on, so that a second projection moves nothing.

        Args:
            params: which parameters; None means all that have levels.

        Raises:
            ValueError: for parameters that have no levels here, and if a scale is zero
                or not finite; nothing has changed then.
        """
        pairs = self._pairs() if params is None else self._chosen(params)
        scales = self._pending_scales(pairs)
        values = [self._project(p, group, scales[p]) for p, group in pairs]
        self._keep_scales(scales)
        for (p, _), value in zip(pairs, values, strict=True):
            self._place(p, value)

    def _chosen(self, params: Tensor | Iterable[Tensor]) -> list[tuple[Tensor, Group]]:
        ids = {id(p) for p in ([params] if isinstance(params, Tensor) else params)}
        pairs = [(p, group) for p, group in self._pairs() if id(p) in ids]
        if len(pairs) < len(ids):
            raise ValueError(
                f"{len(ids) - len(pairs)} of {len(ids)} given parameters have no "
                f"levels in this {type(self).__name__}: give members of its groups, or "
                "None for all that have"
            )
        return pairs

    @contextmanager
    def quantized(self) -> Iterator[None]:
        """Evaluate with projected weights; the others come back bit for bit.

        Statistics of batch normalization are left as they are.
        """
        scales = self._pending_scales()
        values = [self._project(p, group, scales[p]) for p, group in self._pairs()]
        with self._holding(scales), self._replaced(values):
            yield

    @contextmanager
    def _holding(self, scales: dict[Tensor, Tensor]) -> Iterator[None]:
        """Keep scales while weights are replaced, from which others would follow."""
        new = [p for p in scales if "scale" not in self.state.get(p, {})]
        self._keep_scales(scales)
        try:
            yield
        finally:
            for p in new:
                state = self.state.get(p, {})
                state.pop("scale", None)
                if not state:
                    self.state.pop(p, None)

    @contextmanager
    def _replaced(self, values: list[Tensor]) -> Iterator[None]:
        params = [p for p, _ in self._pairs()]
        kept = [p.detach().clone() for p in params]
        self._assign(params, values)
        try:
            yield
        finally:
            self._assign(params, kept)

    @torch.no_grad()
    def _assign(self, params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        for p, value in zip(params, values, strict=True):
            p.copy_(value)
            self._wrote(p)

    @torch.no_grad()
    def distance(self) -> tuple[float, float]:
        """Return the largest and the mean |w/s - P(w/s)| over all quantized weights.

        (0, 0) without any.
        """
        largest, total, count = 0.0, 0.0, 0
        for p, group in self._pairs():
            if p.numel() == 0:
                continue
            w, scale = self._unquantized(p), self._scale(p, group)
            away = ScaledLevels(group["levels"], scale, w).from_nearest(w).abs_()
            largest = max(largest, float(away.max()))
            total += float(away.sum(dtype=torch.float64))
            count += p.numel()
        return largest, total / max(count, 1)
