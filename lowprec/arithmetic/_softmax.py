"""`lowprec.softmax`, every element correctly rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.softmax import softmax as kernel
from ..random import as_seed
from ..rounding import RoundingMode, Saturation, ScalarRoundingLike, Variant
from ._correct import check_operands, valued
from ._overrides import overridable
from ._round import chosen, refuse_compiled_transforms


@overridable
def softmax(
    a: Tensor,
    dim: int,
    rounding: ScalarRoundingLike,
    mode: RoundingMode | str | None = None,
    *,
    saturation: Saturation | str | None = None,
    random_bits: int | None = None,
    variant: Variant | str | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Normalise exponentials, each with one rounding: fl(exp(a_i) / sum_j exp(a_j)).

    Contract:
        As `exp`: the exact quotient is rounded once, so that elements differ from it by
        no more than one rounding, however many there are. -infinity has the share +0;
        with NaN, infinity, or nothing but -infinity, all are NaN. The gradient is that
        of torch's softmax in the carrier. `lowprec.functional.softmax` adds the
        exponentials up by an accumulator instead.

    Args:
        a: float32 or float64 tensor.
        dim: the dimension along which the exact results add up to one.
        rounding: as in `exp`, and so are the others.
        mode: overrides the rounding's mode.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        generator: source of the seed of stochastic modes.
        seed: the seed itself instead.
        offset: linear index of the first element.

    Returns:
        Tensor of the operand's shape and dtype.

    Raises:
        TypeError: as `exp`, and if ``dim`` is no int.
        ValueError: as `exp`.
        NotImplementedError: as `exp`.
        IndexError: if there is no such dimension.

    Example:
        >>> x = torch.tensor([0.0, 0.0, -200.0])
        >>> softmax(x, 0, "e4m3", "toward_zero").tolist()
        [0.46875, 0.46875, 0.0]

    References:
        Blanchard, Higham and Higham 2021, Accurately computing the log-sum-exp and
        softmax functions; Ziv 1991.
    """
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {dim!r} of type {type(dim).__name__}")
    fl = chosen(rounding, mode, saturation, random_bits, variant)
    refuse_compiled_transforms("lowprec.softmax")
    if seed is not None and generator is not None:
        raise ValueError("give either seed= or generator=, not both")
    dtype = check_operands("softmax", {"a": a}, fl)
    key = as_seed(seed, generator) if fl.stochastic else None
    rows = a.detach() if a.dim() else a.detach().unsqueeze(0)
    axis = range(rows.dim())[dim] if -rows.dim() <= dim < rows.dim() else None
    if axis is None:
        raise IndexError(f"dim={dim} is none of the {a.dim()} dimensions of a")
    value = kernel(rows, axis, list(fl.code), key, offset).reshape(a.shape).to(dtype)
    return valued(value, lambda: torch.softmax(a, dim), a)
