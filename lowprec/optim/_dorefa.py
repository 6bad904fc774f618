"""The uniform maps of DoReFa, for weights of a few bits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._remoteness import check_choice

_MOST_BITS = 16


def _check_bits(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits must be an int, got {bits!r}")
    if not 1 <= bits <= _MOST_BITS:
        raise ValueError(f"bits must be from 1 to {_MOST_BITS}, got {bits}")


def dorefa_int(
    w: Tensor, bits: int, offset: Literal["twos", "report"] = "twos"
) -> Tensor:
    r"""Return the integers that DoReFa's map gives weights in [0, 1].

    .. math::
        \mathrm{round}((2^k - 1) w) - 2^{k-1}

    Contract:
        Ties round to even, after a product in the dtype of ``w``. ``"twos"`` gives the
        integers of two's complement, `Levels.int_bits`; ``"report"`` is the printed
        form, which subtracts 2^(k-1) - 1 and ends at 2^(k-1). NaN stays. No gradient.

    Args:
        w: float tensor of values in [0, 1].
        bits: k.
        offset: ``"twos"`` or ``"report"``.

    Returns:
        Tensor like ``w``.

    Raises:
        TypeError: if ``bits`` is no int.
        ValueError: if ``bits`` or a weight is out of range.

    Example:
        >>> dorefa_int(torch.tensor([0.0, 0.25, 0.75, 1.0]), 2).tolist()
        [-2.0, -1.0, 0.0, 1.0]

    References:
        Zhou et al. 2016, DoReFa-Net; Revisiting ASkewSGD, section 3.
    """
    _check_bits(bits)
    check_choice("offset", offset, ("twos", "report"))
    if bool(((w < 0) | (w > 1)).any()):
        raise ValueError(
            "dorefa_int maps weights in [0, 1], got "
            f"[{w.min().item():g}, {w.max().item():g}]: scale them first, or use "
            "dorefa_weight"
        )
    half = 2 ** (bits - 1)
    steps = torch.round(w.detach() * (2**bits - 1))
    return steps.sub_(half if offset == "twos" else half - 1)


def dorefa_weight(w: Tensor, bits: int) -> Tensor:
    r"""Return DoReFa's weights of ``bits`` bits, in [-1, 1].

    .. math::
        \frac{2\,\mathrm{round}((2^k - 1) t)}{2^k - 1} - 1, \qquad
        t = \frac{\tanh w}{2 \max |\tanh w|} + \frac12

    Contract:
        Ties round to even, in the arithmetic of the dtype of ``w``; the levels are odd
        symmetric. All weights zero give t = 1/2. No gradient.

    Args:
        w: float tensor.
        bits: k.

    Returns:
        Tensor like ``w``.

    Raises:
        TypeError: if ``bits`` is no int.
        ValueError: if ``bits`` is out of range.

    Example:
        >>> dorefa_weight(torch.tensor([-2.0, 0.1, 2.0]), 1).tolist()
        [-1.0, 1.0, 1.0]

    References:
        Zhou et al. 2016, DoReFa-Net, equation (9).
    """
    _check_bits(bits)
    squashed = w.detach().tanh()
    largest = squashed.abs().max() if w.numel() else squashed.new_tensor(1.0)
    share = squashed / (2 * torch.where(largest > 0, largest, 1.0)) + 0.5
    most = 2**bits - 1
    return torch.round(share * most).mul_(2).div_(most).sub_(1)
