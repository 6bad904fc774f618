"""Scaled sums of tensors, rounded once.

Heads and errors are float64 tensors whose exact sum is the value to round. The sum is
rounded to odd in float64 first, which keeps all that a second rounding to at most 51
bits needs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .. import kernels
from ..kernels.exact import add_to_odd, is_wide, two_product, two_sum
from ..rounding import Rounding, RoundingMode

_WIDEST = 51
_NARROW = 26
# Below, float64 may lose bits of a product's error; above, of its splitting.
_SMALLEST_PRODUCT = 2.0**-960
_LARGEST_FACTOR = 2.0**900
_RESCALING = 2.0**-200
_SMALLEST_SCALE = 2.0**-500
# In a format with larger quanta every product below _SMALLEST_PRODUCT is only a sign.
_SMALLEST_QUANTUM = -800
_MAGNITUDE = 2**63 - 1  # all bits but the sign
_LARGEST = torch.finfo(torch.float64).max
_CARRIERS = {torch.float32: (24, -149, 127), torch.float64: (53, -1074, 1023)}


# Elements at a time on CPUs, so that the float64 temporaries stay in the cache.
PIECE = 1 << 16


class Term(NamedTuple):
    """One exact term of a sum; ``error`` None means that the head is exact."""

    head: Tensor
    error: Tensor | None = None


def check_storage(rounding: Rounding | None, x: Tensor, what: str) -> None:
    """Refuse tensors that cannot hold, or roundings that cannot produce, exact results.

    Raises:
        TypeError: if a format is given and ``x`` is not float32 or float64.
        ValueError: if the dtype of ``x`` cannot hold the format's values.
        NotImplementedError: for more than 51 significant bits.
    """
    if rounding is None:
        return
    name = str(x.dtype).removeprefix("torch.")
    if x.dtype not in _CARRIERS:
        raise TypeError(
            f"{what} needs float32 or float64 parameters, which hold the format's "
            f"values, got {name}: use model.float()"
        )
    precision, emin, emax = rounding.code[:3]
    if precision > _WIDEST:
        raise NotImplementedError(
            f"{what} with {precision} significant bits cannot be emulated in float64: "
            f"at most {_WIDEST} are correctly rounded; None computes in {name}"
        )
    digits, lowest, largest = _CARRIERS[x.dtype]
    if precision > digits or quantum_exponent(rounding) < lowest or emax > largest:
        advice = ": use model.double()" if x.dtype == torch.float32 else ""
        raise ValueError(
            f"{name} parameters cannot hold every value of {what} with precision "
            f"{precision}, emin {emin}, emax {emax}{advice}"
        )


def quantum_exponent(rounding: Rounding) -> int:
    """Return the exponent of the format's smallest positive value."""
    precision, emin = rounding.code[:2]
    return emin - precision + 1 if rounding.format.subnormals else emin


def by_pieces(
    compute: Callable[..., Tensor], operands: Sequence[Tensor], offset: int
) -> Tensor:
    """Apply an elementwise function to a piece of its operands at a time.

    Args:
        compute: takes the operands' pieces and the linear index of the first element.
        operands: tensors of one shape; the result has the dtype of the first.
        offset: linear index of the first element.

    Returns:
        Contiguous tensor of that shape.
    """
    first = operands[0]
    if first.numel() <= PIECE or first.device.type != "cpu":
        return compute(*operands, offset)
    result = torch.empty(first.shape, dtype=first.dtype, device=first.device)
    flat = [x.reshape(-1) for x in operands]
    for start in range(0, first.numel(), PIECE):
        pieces = [x[start : start + PIECE] for x in flat]
        result.view(-1)[start : start + PIECE] = compute(*pieces, offset + start)
    return result


def consecutive(
    tensors: Sequence[Tensor], cuttable: bool = True, size: int = PIECE
) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield views of consecutive elements, a cache's part of them, with their index.

    Tensors that are not contiguous, or on other devices, are yielded whole.
    """
    count = tensors[0].numel()
    contiguous = all(x.is_contiguous() and x.is_cpu for x in tensors)
    if count <= size or not cuttable or not contiguous:
        yield 0, list(tensors)
        return
    flat = [x.view(-1) for x in tensors]
    for start in range(0, count, size):
        yield start, [x[start : start + size] for x in flat]


def scaled(scale: float, x: Tensor, rounding: Rounding) -> Term:
    """Return ``scale * x`` for a sum that ``rounding`` will round.

    Contract:
        Exact while the product lies in [2^-960, 2^1024). A smaller one becomes
        2^-960 with its sign, which no rounding to the format can tell apart; a larger
        one becomes the largest float64.

    Raises:
        ValueError: if a product is smaller and the format has values of that size.
    """
    if x.dtype == torch.float32:
        x = x.to(torch.float64)
        # 24 significant bits of an exponent above -150: nothing can go wrong.
        if scale == 0 or (
            _significant_bits(scale) <= _NARROW
            and _SMALLEST_SCALE < abs(scale) < 1 / _SMALLEST_SCALE
        ):
            return Term(x * scale)
    head = x * scale
    error = None
    if _significant_bits(scale) > _NARROW or is_wide(x):
        large = x.abs() > _LARGEST_FACTOR
        factor = torch.where(large, x * _RESCALING, x)
        _, error = two_product(factor, torch.full_like(x, scale))
        error = torch.where(large, error / _RESCALING, error)
        error = torch.where(error.isfinite() & head.isfinite(), error, 0.0)
    head = torch.where(
        x.isfinite() & head.isinf(), head.clamp(-_LARGEST, _LARGEST), head
    )
    tiny = (head.abs() < _SMALLEST_PRODUCT) & (x != 0)
    if scale == 0 or not bool(tiny.any()):
        return Term(head, error)
    if quantum_exponent(rounding) < _SMALLEST_QUANTUM:
        raise ValueError(
            f"a product with {scale:g} is below 2^-960, where float64 cannot hold it "
            f"exactly, and the format of {rounding!r} has values of that size: scale "
            "the problem by a power of two"
        )
    sign = math.copysign(1.0, scale) * x.sign()
    head = torch.where(tiny, sign * _SMALLEST_PRODUCT, head)
    return Term(head, None if error is None else torch.where(tiny, 0.0, error))


def _significant_bits(value: float) -> int:
    if not math.isfinite(value) or value == 0:
        return 0
    numerator = abs(value.as_integer_ratio()[0])
    return (numerator // (numerator & -numerator)).bit_length()


def sum_to_odd(terms: list[Term]) -> Tensor:
    """Return the exact sum of all terms, rounded to odd in float64.

    References:
        Shewchuk 1997, Grow-Expansion, whose parts do not overlap; Boldo and Melquiond
        2008 for the sticky last bits.
    """
    parts = [term.error for term in terms if term.error is not None]
    if not parts and len(terms) == 1:
        return terms[0].head
    if not parts and len(terms) == 2:
        return _add_to_odd(terms[0].head, terms[1].head)
    if len(parts) == 1 and len(terms) == 2:
        result = _fused_to_odd(*terms)
        if result is not None:
            return result
    plain = terms[0].head
    for term in terms[1:]:
        plain = plain + term.head
    expansion: list[Tensor] = []
    for addend in [*parts, *(term.head for term in terms)]:
        carry, grown = addend, []
        for part in expansion:
            carry, error = two_sum(carry, part)
            grown.append(error)
        expansion = [*grown, carry]
    total = expansion[0]
    for part in expansion[1:]:
        total = add_to_odd(part, total)
    finite = torch.ones_like(plain, dtype=torch.bool)
    for term in terms:
        finite = finite & term.head.isfinite()
    # Infinities, NaN and the sign of an exact zero are those of the plain sum.
    overflow = finite & plain.isinf()
    total = torch.where(overflow, plain.clamp(-_LARGEST, _LARGEST), total)
    return torch.where(finite & (total != 0), total, plain)


def _add_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """Do what ``add_to_odd`` does, by fewer operations if all sums are finite."""
    # Knuth's exact error of a sum, as ``two_sum``, with half as many temporaries.
    total = a + b
    error = total - a
    rest = b - error
    torch.sub(total, error, out=error)
    torch.sub(a, error, out=error).add_(rest)
    size = torch.abs(error, out=rest).sum().item()
    if size == 0:
        return total
    if not math.isfinite(size):  # so is the error of an infinite sum
        return add_to_odd(a, b)
    bits, error_bits = total.view(torch.int64), error.view(torch.int64)
    # Masks of all ones: where the sum is inexact, and where it lies beyond the exact
    # value, whose bits without the last one are then those of the number before.
    inexact = (error_bits & _MAGNITUDE).neg_().bitwise_right_shift_(63)
    beyond = (bits ^ error_bits).bitwise_right_shift_(63).bitwise_and_(inexact)
    return bits.add_(beyond).bitwise_or_(inexact.neg_()).view(torch.float64)


def _fused_to_odd(first: Term, second: Term) -> Tensor | None:
    """Return the sum of a number and a product with its error, if all is finite.

    References:
        Boldo and Melquiond 2008, as ``fused_to_odd``, by fewer operations.
    """
    addend, product = (second, first) if second.error is None else (first, second)
    upper, lower = two_sum(addend.head, cast(Tensor, product.error))
    total, rest = two_sum(product.head, upper)
    result = _add_to_odd(total, _add_to_odd(rest, lower))
    if not math.isfinite(result.abs().sum().item()):
        return None
    # The sign of an exact zero is that of the plain sum.
    return torch.where(result != 0, result, addend.head + product.head)


def round_sum(
    terms: list[Term],
    rounding: Rounding,
    dtype: torch.dtype,
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    """Return fl(sum of terms) with one rounding of the exact sum.

    Args:
        terms: exact terms, float64, all of one shape.
        rounding: fl.
        dtype: of the result; `check_storage` says which can hold it.
        seed: 0-d int64, needed by stochastic modes only.
        offset: linear index of the first element.

    Returns:
        Tensor of ``dtype``.
    """
    exact = sum_to_odd(terms)
    if rounding.mode is RoundingMode.TOWARD_NEGATIVE and len(terms) > 1:
        # IEEE 754 6.3: an exact zero sum is -0 in this direction unless all are +0.
        positive = torch.ones_like(exact, dtype=torch.bool)
        for term in terms:
            positive = positive & (term.head == 0) & ~term.head.signbit()
        exact = torch.where((exact == 0) & ~positive, -0.0, exact)
    return round_exact(exact, rounding, seed, offset).to(dtype)


@functools.cache
def _code(rounding: Rounding) -> list[int]:
    """Return the kernels' code, which takes longer to make than a piece to round."""
    return list(rounding.code)


def round_exact(
    x: Tensor, rounding: Rounding, seed: Tensor | None, offset: int
) -> Tensor:
    """Round a tensor without autograd; ``seed`` is for stochastic modes only."""
    code = _code(rounding)
    if not rounding.stochastic:
        return kernels.round(x, code)  # type: ignore[no-any-return]
    if seed is None:
        raise ValueError("a stochastic rounding needs a seed")
    return kernels.round_stochastic(x, code, seed, offset)  # type: ignore[no-any-return]
