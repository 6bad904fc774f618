"""Values that a parameter's format has, for what a quantization makes of weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..rounding import Rounding, RoundingMode, Saturation, as_rounding
from ._exact import round_exact


def clamp_(
    w: Tensor, low: Tensor, high: Tensor, rounding: Rounding | None = None
) -> None:
    """Clamp in place to bounds, moved inward to values of the format.

    Unlike by ``torch.clamp``, zeros keep their signs.
    """
    if rounding is not None:
        low, high = (
            _nearest_value(bound, rounding, mode).to(w.dtype)
            for bound, mode in (
                (low, RoundingMode.TOWARD_POSITIVE),
                (high, RoundingMode.TOWARD_NEGATIVE),
            )
        )
    torch.where(w < low, low, w, out=w)
    torch.where(w > high, high, w, out=w)


def stored(w: Tensor, group: dict[str, Any]) -> Tensor:
    """Return w in the format of the parameters, rounded to nearest even."""
    rounding = group.get("param_format")
    if rounding is None:
        return w
    return _nearest_value(w, as_rounding(rounding), RoundingMode.NEAREST_EVEN)


def _nearest_value(x: Tensor, rounding: Rounding, mode: RoundingMode) -> Tensor:
    directed = replace(rounding, mode=mode, saturation=Saturation.NONE)
    return round_exact(x, directed, None, 0)
