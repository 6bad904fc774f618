"""Levels times a scale, for one parameter: what the optimizers compute from both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..kernels import native_levels
from ..random import philox_words
from ._exact import consecutive
from ._levels import LevelsLike, LevelTable, level_table
from ._remoteness import Skew
from ._stored import clamp_

_WORDS = 2.0**32


Prox = Literal["l1", "sq", "l2"]


class Sampling(NamedTuple):
    """Random words of a parameter: of a seed, a step, and its first element."""

    seed: int
    step: int
    offset: int


class ScaledLevels:
    """The quantization set s Q of a parameter, and functions of weights and s Q.

    The C++ kernels serve plain CPU tensors whose levels and scale are constant, or
    change along leading dimensions only; they equal the torch operations bit for bit.

    Args:
        levels: of the parameter, in units of the scale.
        scale: positive, broadcasts against the weights; in the dtype and on the
            device of w from here on, which a model may have changed since.
        w: the parameter; dtype, device and shape count.
    """

    def __init__(self, levels: LevelsLike, scale: Tensor, w: Tensor) -> None:
        self.table: LevelTable = level_table(levels, w)
        self.scale = scale = scale.to(w)
        level_run = _run_length(self.table.values.shape[:-1], w.shape)
        scale_run = _run_length(scale.shape, w.shape)
        self._rows: native_levels.Rows | None = None
        if level_run is not None and scale_run is not None and kernels.unobserved(w):
            self._rows = native_levels.Rows(
                self.table.values.contiguous(),
                self.table.thresholds.contiguous(),
                scale.contiguous(),
                level_run,
                scale_run,
                self.table.spacing,
            )

    @property
    def cuttable(self) -> bool:
        """Whether the functions take any consecutive weights of the parameter."""
        return self._rows is not None or (self.table.shared and self.scale.dim() == 0)

    def nearest(self, w: Tensor) -> Tensor:
        """Return s P(w/s)."""
        if self._rows is not None:
            return self._native(native_levels.NEAREST, w)
        return self.table.nearest(w / self.scale).mul_(self.scale)

    def from_nearest(self, w: Tensor) -> Tensor:
        """Return w/s - P(w/s)."""
        if self._rows is not None:
            return self._native(native_levels.FROM_NEAREST, w)
        z = w / self.scale
        return z - self.table.nearest(z)

    def quantize_(
        self, w: Tensor, out: Tensor, clip: bool, sampling: Sampling | None = None
    ) -> None:
        """Write s P(w/s) to another tensor; the nearest levels unless sampled.

        Args:
            w: the weights; clamped to the hull in place if ``clip``.
            out: where to write.
            clip: whether to clamp.
            sampling: of the random words.
        """
        same = w.is_contiguous() and out.is_contiguous() and w.dtype == out.dtype
        if self._rows is not None and same:
            fields: dict[str, Any] = {} if sampling is None else sampling._asdict()
            native_levels.map_levels(
                native_levels.NEAREST if sampling is None else native_levels.SAMPLED,
                w,
                self._rows,
                out,
                hull=native_levels.OWN_ENDS if clip else None,
                keeps_clamped=clip,
                **fields,
            )
            kernels.mark_written(w)
            kernels.mark_written(out)
            return
        if clip:
            clamp_(w, *self.hull)
        for first, (weights, levels) in consecutive([w, out], self.cuttable):
            z = weights / self.scale
            quantized = (
                self.table.nearest(z)
                if sampling is None
                else _sampled(z, self.table, sampling, first)
            )
            levels.copy_(quantized.mul_(self.scale))

    def proximal_(self, w: Tensor, lam: float, prox: Prox, clip: bool = False) -> None:
        """Replace w by s prox(w/s); see `proximal_map`, and clamp it if ``clip``."""
        factor = lam
        if prox == "l2":
            length = self._length(w)
            factor = max(0.0, 1 - lam / length) if length > 0 else 0.0
        if lam > 0 and self._rows is not None and w.is_contiguous():
            hull = native_levels.OWN_ENDS if clip else None
            operation = native_levels.PROX[prox]
            native_levels.map_levels(
                operation, w, self._rows, w, factor=factor, hull=hull
            )
            kernels.mark_written(w)
            return
        if lam > 0:
            for _, (weights,) in consecutive([w], self.cuttable):
                z = weights / self.scale
                moved = proximal(z, self.table.nearest(z), factor, prox)
                weights.copy_(moved.mul_(self.scale))
        if clip:
            clamp_(w, *self.hull)

    @property
    def hull(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest level times the scale."""
        return self.table.first * self.scale, self.table.last * self.scale

    def _length(self, w: Tensor) -> float:
        """Return |w/s - P(w/s)|."""
        if w.numel() == 0:
            return 0.0
        w = w.contiguous()
        if self._rows is not None:
            count = -(-w.numel() // native_levels.BLOCK)
            blocks = torch.empty(count, dtype=torch.float64)
            native_levels.map_levels(native_levels.SQUARED, w, self._rows, blocks)
        else:
            # Pieces are whole blocks, and enough of them to add many at a time.
            parts = consecutive([w], self.cuttable, size=256 * native_levels.BLOCK)
            blocks = torch.cat(
                [_sums_of_squares(self.from_nearest(x)) for _, (x,) in parts]
            )
        return math.sqrt(float(_halved(blocks)))

    def skewed(
        self,
        skew: Skew,
        direction: Tensor,
        w: Tensor,
        first: int = 0,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the skewed direction; see `Skew.apply`.

        Args:
            skew: its parameters.
            direction: what would be subtracted from w.
            w: the weights or, if `cuttable`, consecutive ones.
            first: linear index of the first of them.
            out: where to write the result, which may be ``direction``; None for a new
                tensor.
        """
        if self._rows is not None:
            operation, fields = _fields(skew)
            # A momentum kept from before a change of dtype gives one of its own.
            direction = direction.to(w).contiguous()
            return self._native(operation, w, first, out, direction=direction, **fields)
        result = skew.apply(direction, w / self.scale, self.table, self.scale)
        return result if out is None else out.copy_(result)

    def descend(
        self,
        skew: Skew,
        w: Tensor,
        gradient: Tensor,
        buffer: Tensor | None,
        hull: tuple[float, float] | None = None,
        **descent: Any,
    ) -> bool:
        """Move all weights in place and in one pass, if the C++ kernels can.

        Args:
            skew: the skewed direction.
            w: the weights.
            gradient: of the weights.
            buffer: momentum; None without momentum.
            hull: bounds of the weights, in units of the levels.
            descent: see ``native_levels.descend``.

        Returns:
            Whether they have moved.
        """
        tensors = [w, gradient] if buffer is None else [w, gradient, buffer]
        if (
            self._rows is None
            or not all(x.is_contiguous() and x.dtype == w.dtype for x in tensors)
            or not all(map(kernels.is_plain, tensors))
            or native_levels.torch_fuses(w.dtype) is None
        ):
            return False
        operation, fields = _fields(skew)
        fields["hull"] = hull
        native_levels.descend(
            operation, w, gradient, buffer, self._rows, fields, **descent
        )
        kernels.mark_written(w)
        return True

    def _native(
        self,
        operation: int,
        w: Tensor,
        first: int = 0,
        out: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        assert self._rows is not None
        w = w.contiguous()
        target = torch.empty_like(w)
        if out is not None and out.is_contiguous() and out.dtype == w.dtype:
            target = out
        native_levels.map_levels(operation, w, self._rows, target, first=first, **more)
        return target if out is None or target is out else out.copy_(target)


def _sums_of_squares(x: Tensor) -> Tensor:
    """Return the sum of squares of every block of consecutive elements, in float64.

    The order of the additions is fixed: `LANES` at a time, then the halves of those.
    """
    size, lanes = native_levels.BLOCK, native_levels.LANES
    flat = x.reshape(-1).to(torch.float64)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % size))
    rows = flat.square_().view(-1, size // lanes, lanes)
    total = rows.new_zeros(len(rows), lanes)
    for row in rows.unbind(1):
        total += row
    return _halved(total)


def _halved(x: Tensor) -> Tensor:
    """Return sums along the last dimension, halves added until one element is left."""
    while x.shape[-1] != 1:
        x = torch.nn.functional.pad(x, (0, x.shape[-1] % 2))
        first, second = x.chunk(2, -1)
        x = first + second
    return x[..., 0]


def _sampled(z: Tensor, table: LevelTable, sampling: Sampling, first: int) -> Tensor:
    """Return levels around z whose expectation is z inside the hull."""
    lower, upper = table.bounds(z)
    start = sampling.offset + first
    index = torch.arange(start, start + z.numel(), device=z.device)
    seed = torch.tensor(sampling.seed, device=z.device)
    words = philox_words(index, seed, step=sampling.step, purpose=0).view(z.shape)
    share = (z - lower).to(torch.float64) / (upper - lower)
    level = torch.where(words < share * _WORDS, upper, lower)
    # Rows of a single level have no cell, and NaN no level.
    return torch.where(z.isnan() | (table.count < 2), table.nearest(z), level)


def proximal(z: Tensor, q: Tensor, factor: float, prox: Prox) -> Tensor:
    """Return the proximal map of z with nearest levels q, which are overwritten.

    ``factor`` is lambda or, for ``"l2"``, what is left of the distance.
    """
    if prox == "sq":
        return q.mul_(factor).add_(z).div_(1 + factor)
    rest = z - q
    if prox == "l1":
        shrunk = rest.abs().sub_(factor).clamp_(min=0).mul_(rest.sign())
        return shrunk.add_(q)
    return rest.mul_(factor).add_(q)


def _fields(skew: Skew) -> tuple[int, dict[str, Any]]:
    """Return the number and the fields of a skewed direction in the C++ kernels."""
    return native_levels.SKEW[skew.kind], {
        "epsilon": skew.epsilon,
        "alpha": skew.alpha,
        "clip": skew.clip,
        "clip_by_size": skew.clip_mode == "max",
        "midpoint_moves": skew.midpoint == "report",
    }


def _run_length(shape: Sequence[int], full: torch.Size) -> int | None:
    """Return how many consecutive elements share an entry of a smaller tensor.

    0 if there is one entry for all; None if entries come again, or are not in order.
    """
    if math.prod(shape) == 1:
        return 0
    padded = [1] * (len(full) - len(shape)) + list(shape)
    leading = max(i for i, size in enumerate(padded) if size != 1) + 1
    same = padded[:leading] == list(full[:leading])
    return math.prod(full[leading:]) if same else None
