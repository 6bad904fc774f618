"""Sizes of vectors that come in parts, and ratios of sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def norm(parts: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all parts; NaN if there is one in them."""
    # In float64: squares of float32 elements overflow from 1e19.
    double = torch.float64
    norms = [float(torch.linalg.vector_norm(part, dtype=double)) for part in parts]
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)


def ratio(part: float, whole: float) -> float:
    """Return part / whole, with 0 / 0 = 0."""
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole
