"""Dropout: torch's own mask, a rounded scaling."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._wide import wide_for

Seed = int | Tensor | None

# Negative limit of SELU, which alpha dropout puts in the place of dropped elements.
_SATURATION = -1.7580993408473766


def _dropped(
    function: Callable[..., Tensor],
    input: Tensor,
    p: float,
    training: bool,
    precision: Precision,
    generator: torch.Generator | None,
    seed: Seed,
) -> Tensor:
    if as_precision(precision).elementwise is None or not training:
        return function(input, p, training)
    check_carrier(input, "input")
    wide = wide_for(precision, input.dtype, generator, seed)
    x = wide.enter(input)
    # One where elements stay, whatever the scale; the same draw as torch's.
    kept = function(torch.ones_like(input.detach()), p, True) > 0
    if function in (F.alpha_dropout, F.feature_alpha_dropout):
        return wide.leave(_affine(x, kept, p))
    scaled = x / (1 - p) if p < 1 else x
    return wide.leave(torch.where(kept, scaled, 0.0))


def _affine(x: Tensor, kept: Tensor, p: float) -> Tensor:
    """Return what keeps mean and variance when elements become the saturation."""
    if p == 1:
        return torch.where(kept, x, 0.0)
    scale = 1 / math.sqrt((1 - p) * (1 + p * _SATURATION**2))
    shift = -scale * _SATURATION * p
    return torch.where(kept, x, _SATURATION) * scale + shift


@overridable
def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Zero elements with probability p: y = fl(x / (1 - p)) where they stay.

    Contract:
        The mask is the one that torch's function would draw from torch's generator.
        dx = fl(fl(dy) / (1 - p)) where elements stay, else 0. Without ``training`` or
        with ``elementwise=None`` this is torch's own function. The random numbers of
        stochastic roundings are others, from ``generator`` or ``seed``.

    Args:
        input: float32 or float64 tensor of any shape.
        p: probability of zeros.
        training: whether there are any.
        precision: ``elementwise`` is used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead.

    Returns:
        Tensor of the input's shape and dtype.

    Raises:
        TypeError: if ``input`` is no carrier, or ``precision`` not a `Precision`.
        ValueError: if the carrier cannot hold the values of ``elementwise``; from
            torch, if p is no probability.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x, low = torch.ones(100), Precision(elementwise="e5m2")
        >>> sorted(set(dropout(x, 0.1, precision=low).tolist()))
        [0.0, 1.0]

    References:
        Srivastava et al., Dropout, JMLR 2014.
    """
    return _dropped(F.dropout, input, p, training, precision, generator, seed)


@overridable
def alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Set elements to SELU's limit, keeping mean and variance; see `dropout`."""
    return _dropped(F.alpha_dropout, input, p, training, precision, generator, seed)


@overridable
def feature_alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Do what `alpha_dropout` does to whole channels; see `dropout`."""
    function = F.feature_alpha_dropout
    return _dropped(function, input, p, training, precision, generator, seed)


@overridable
def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Zero whole channels of one dimension; see `dropout`."""
    return _dropped(F.dropout1d, input, p, training, precision, generator, seed)


@overridable
def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Zero whole channels of two dimensions; see `dropout`."""
    return _dropped(F.dropout2d, input, p, training, precision, generator, seed)


@overridable
def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: Seed = None,
) -> Tensor:
    """Zero whole channels of three dimensions; see `dropout`."""
    return _dropped(F.dropout3d, input, p, training, precision, generator, seed)
