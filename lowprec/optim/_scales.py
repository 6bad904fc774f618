"""Scales of quantization sets: a weight is the scale times a number near a level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ._levels import LevelsLike, level_table
from ._remoteness import check_choice

_POLICIES = ("range", "absmax", "mean_abs", "sawb")
# The constants of 4-bit weights, whose levels span 16 gaps.
_SAWB = (12.1, 12.2)
_MOST_SHOWN = 4  # bad channels that an error names


@dataclass(frozen=True)
class PerChannel:
    """A scale policy that gives each channel its own scale; see `scale_of`.

    Args:
        policy: ``"range"``, ``"absmax"``, ``"mean_abs"`` or ``"sawb"``.
        dim: dimension of the weights that counts channels, 0 for ``torch.nn`` layers.

    Raises:
        ValueError: for an unknown policy.

    Example:
        >>> from lowprec import Levels
        >>> w = torch.tensor([[0.5, -0.25], [2.0, 1.0]])
        >>> scale_of(w, Levels.ternary(), PerChannel("absmax")).tolist()
        [[0.5], [2.0]]
    """

    policy: str
    dim: int = 0

    def __post_init__(self) -> None:
        """Check the policy."""
        check_choice("policy", self.policy, _POLICIES)


ScaleLike: TypeAlias = (
    float | Tensor | str | PerChannel | Callable[[Tensor], Tensor | float] | None
)


def check_scale(scale: object) -> None:
    """Refuse what is no scale policy.

    Raises:
        TypeError: for a truth value.
        ValueError: for unknown names, and numbers that are not positive and finite.
    """
    if scale is None or callable(scale) or isinstance(scale, PerChannel):
        return
    if isinstance(scale, str):
        check_choice("scale", scale, _POLICIES)
        return
    if isinstance(scale, bool):
        raise TypeError(f"scale must be a number or a policy, got {scale}")
    numbers = torch.as_tensor(scale, dtype=torch.float64)
    if not bool(((numbers > 0) & numbers.isfinite()).all()):
        raise ValueError(
            f"scale must be positive and finite, got {scale}: scale=None means 1"
        )


def scale_of(w: Tensor, levels: LevelsLike, scale: ScaleLike) -> Tensor:
    r"""Return the scale s of a quantization set for the weights ``w``.

    ``"range"``: (max w - min w) / (q_K - q_1); ``"absmax"``: max |w| / max |q|;
    ``"mean_abs"``: mean |w|; ``"sawb"``: 2 (12.1 sqrt(mean w^2) - 12.2 mean |w|) /
    (q_K - q_1), whose constants are those of 4-bit weights.

    Contract:
        Computed in float64, rounded to the dtype of ``w``.

    Args:
        w: weights.
        levels: as `nearest`.
        scale: a policy, `PerChannel` of one, a positive number or tensor that
            broadcasts against ``w``, a function of ``w`` that returns one, or None
            for 1.

    Returns:
        Tensor of the dtype of ``w``, 0-d unless ``scale`` gives more.

    Raises:
        ValueError: if the scale is zero, negative or not finite, or no policy.

    Example:
        >>> from lowprec import Levels
        >>> scale_of(torch.tensor([0.5, -0.25]), Levels.ternary(), "absmax").item()
        0.5

    References:
        W25 notebooks of Revisiting ASkewSGD (range); Choi et al. 2019 (sawb).
    """
    check_scale(scale)
    w = w.detach()
    if scale is None:
        return torch.ones((), dtype=w.dtype, device=w.device)
    if isinstance(scale, str):
        result = _by_policy(w.to(torch.float64), levels, scale, None)
    elif isinstance(scale, PerChannel):
        result = _by_policy(w.to(torch.float64), levels, scale.policy, scale.dim)
    elif callable(scale):
        result = torch.as_tensor(scale(w))
    else:
        result = torch.as_tensor(scale)
    result = result.detach().to(w)
    bad = ~((result > 0) & result.isfinite())
    if bool(bad.any()):
        raise ValueError(
            f"scale {scale!r} gives {_shown(result, bad)} for weights of shape "
            f"{tuple(w.shape)}: it must be positive and finite; initialize the weights "
            "to other values, or give the scale as a number"
        )
    if torch.broadcast_shapes(result.shape, w.shape) != w.shape:
        raise ValueError(
            f"scale of shape {tuple(result.shape)} does not broadcast against weights "
            f"of shape {tuple(w.shape)}"
        )
    return result


def _shown(scales: Tensor, bad: Tensor) -> str:
    """Return the bad scales with their places; the first ones, if there are many."""
    if scales.dim() == 0:
        return f"{scales.item():g}"
    places = bad.nonzero().tolist()
    named = [
        f"{scales[tuple(place)].item():g} at {place}" for place in places[:_MOST_SHOWN]
    ]
    more = len(places) - len(named)
    return ", ".join(named) + (f" and at {more} other places" if more else "")


def _by_policy(
    w: Tensor, levels: LevelsLike, policy: str, channels: int | None
) -> Tensor:
    if w.numel() == 0:
        return torch.ones((), dtype=w.dtype)
    if channels is not None and not -w.dim() <= channels < w.dim():
        raise ValueError(
            f"weights of shape {tuple(w.shape)} have no dimension {channels} of "
            "channels: give parameters of other shapes a group of their own"
        )
    keep = channels is not None
    kept = None if channels is None else channels % w.dim()
    dims = [i for i in range(w.dim()) if i != kept]
    if keep and not dims:  # torch takes no dimensions for all
        w, dims = w.unsqueeze(-1), [1]
        return _of_channels(w, levels, policy, dims, keep).squeeze(-1)
    return _of_channels(w, levels, policy, dims, keep)


def _of_channels(
    w: Tensor, levels: LevelsLike, policy: str, dims: list[int], keep: bool
) -> Tensor:
    table = level_table(levels, w)
    first, last = (x.expand(w.shape) for x in (table.first, table.last))
    lowest, highest = first.amin(dims, keep), last.amax(dims, keep)
    if policy == "mean_abs":
        return w.abs().mean(dims, keep)
    if policy == "absmax":
        largest = torch.maximum(lowest.abs(), highest.abs())
        return w.abs().amax(dims, keep) / largest
    if policy == "range":
        return (w.amax(dims, keep) - w.amin(dims, keep)) / (highest - lowest)
    root, mean = _SAWB
    size = w.square().mean(dims, keep).sqrt()
    clip = root * size - mean * w.abs().mean(dims, keep)
    return 2 * clip / (highest - lowest)
