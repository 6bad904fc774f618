"""Inputs that decide a rounding: values, ties and their neighbours in the carrier."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

from ..formats import (
    AnyFormat,
    BlockFormat,
    Format,
    Levels,
    Posit,
    SharedExponent,
    any_format,
    block_format,
    line_of,
)
from ._block_oracle import exact_block_scale
from ._oracle import simplest

__all__ = ["boundary_blocks", "boundary_inputs"]

_MOST_VALUES = 2**12
_BEYOND = 2  # binades beyond both ends
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_MOST_SCALES = 30


def boundary_inputs(
    format: AnyFormat | str,
    dtype: torch.dtype = torch.float32,
    *,
    most_values: int = _MOST_VALUES,
) -> Tensor:
    """Return inputs on which roundings to a format are decided.

    Contract:
        For formats of at most ``most_values`` positive values: every value, every tie
        of neighbours (their midpoint; of posits what the standard says), and the
        carrier's neighbours of both. For others: the same at both ends and two places
        inside every binade. Always: two binades beyond both ends of the range, in which
        fixed point goes on as where it wraps, both signs, zeros, infinities, NaN, and
        the carrier's extreme values. Sorted, without duplicates, NaN last. Of block
        formats these are inputs of the elements, in units of the scale.

    Args:
        format: a format of any kind or its name.
        dtype: carrier, float32 or float64.
        most_values: where formats become too large to be complete; 2^12 are all formats
            of 12 bits, 2^16 all of 16.

    Returns:
        1-d tensor.

    Raises:
        KeyError: if ``dtype`` is not a carrier.

    Example:
        >>> x = boundary_inputs("e5m2")
        >>> bool((x == 1.125).any()), bool((x == 2.0**-17).any())
        (True, True)
    """
    integer = _INTEGERS[dtype]
    target = any_format(format)
    if isinstance(target, BlockFormat):
        target = target.element
    if isinstance(target, Format):
        centres = _grid(target, most_values)
    else:
        chosen = [simplest(abs(x)) for x in _listed(target, most_values)]
        centres = torch.tensor(list(map(float, chosen)), dtype=torch.float64)
    limits = torch.finfo(dtype)
    extremes = torch.tensor(
        [0.0, limits.tiny * limits.eps, limits.tiny, limits.max, math.inf],
        dtype=torch.float64,
    )
    # Of values beyond the carrier's range only its own extremes remain.
    size = torch.cat([centres, extremes]).to(dtype)
    zero, infinity = size.new_zeros(()), size.new_full((), math.inf)
    size = torch.cat([size, size.nextafter(zero), size.nextafter(infinity)])
    both = torch.cat([size, -size]).unique()
    signed_zeros = torch.zeros(2, dtype=dtype)
    signed_zeros.view(integer)[1] = torch.iinfo(integer).min
    nan = signed_zeros.new_full((1,), math.nan)
    return torch.cat([both[both != 0], signed_zeros, nan])


def _grid(target: Format, most: int) -> Tensor:
    """Return positive values and the midpoints above them, also beyond both ends."""
    precision, emin, emax = target.precision, int(target.emin or 0), target.emax
    lowest = emin - precision + 1
    complete = (emax - emin + 2) << (precision - 1) <= most
    every = []
    for exponent in range(lowest - _BEYOND, emax + 1 + _BEYOND):
        quantum = max(exponent, emin) - precision + 1
        if target.encoding == "integer":
            quantum = emin - precision + 1
        if exponent < lowest:
            every.append(_scaled([1], exponent))
            continue
        first = 1 << (exponent - quantum)
        if complete:
            every.append(_scaled(range(first, 2 * first), quantum))
            continue
        third = first + first // 3
        chosen = {first, first + 1, third, third + 1, 2 * first - 2, 2 * first - 1}
        if exponent == emax:
            top = int(target.max_significand or 0)
            chosen |= {top - 1, top, top + 1}
        inside = [k for k in sorted(chosen) if first <= k < 2 * first]
        every.append(_scaled(inside, quantum))
    values = torch.cat(every)
    return values[(values > 0) & (values < math.inf)]


def _scaled(significands: Iterable[int], exponent: int) -> Tensor:
    """Return k 2^exponent and (k + 1/2) 2^exponent, 0 or infinite out of float64."""
    whole = torch.tensor([float(k) for k in significands], dtype=torch.float64)
    k = torch.cat([whole, whole + 0.5])
    for part in (exponent // 2, exponent - exponent // 2):
        k = k * (math.ldexp(1.0, part) if part < 1024 else math.inf)
    return k


def _listed(target: Posit | Levels, most: int) -> Iterator[Fraction]:
    """Yield values and ties of a table, and numbers beyond both ends."""
    table = target.table
    count = len(table.values)
    chosen: Iterable[int] = range(count)
    if count > 2 * most:
        firsts = [value for value, _ in line_of(target).gaps()]
        signed = [*(-value for value in reversed(firsts)), *firsts]
        places = [0, *(bisect_left(table.values, x) for x in signed), count - 1]
        thirds = [a + (b - a) // 3 for a, b in itertools.pairwise(places)]
        near = [place + step for place in places + thirds for step in (-1, 0)]
        chosen = sorted({min(max(i, 0), count - 1) for i in near})
    for i in chosen:
        yield Fraction(table.values[i])
        if i + 1 < count:
            yield table.ties[i]
    zero = bisect_left(table.values, 0)  # beside which the smallest ones are
    ends = {*table.values[max(zero - 1, 0) : zero + 2], table.values[0]}
    ends |= {table.values[-1]}
    sizes = [abs(Fraction(x)) for x in ends if x != 0] or [Fraction(1)]
    for factor in (2**i for i in range(1, _BEYOND + 1)):
        yield max(sizes) * factor
        yield min(sizes) / factor


def boundary_blocks(
    format: BlockFormat | str, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return blocks on which the scales and the elements of a block format are decided.

    Contract:
        Finite. The largest magnitudes are those where scales change, at both ends of
        the scales' range and inside, and the carrier's neighbours; the other elements
        are boundary inputs of the element format, times the scale, in turn.

    Args:
        format: a `BlockFormat` or its name.
        dtype: carrier, float32 or float64.

    Returns:
        Tensor [N, block_size].

    Raises:
        KeyError: if ``dtype`` is not a carrier.

    Example:
        >>> boundary_blocks("nvfp4").shape[1]
        16
    """
    target = block_format(format)
    tops = torch.tensor(
        [float(_bounded(top)) for top in _largest_magnitudes(target)],
        dtype=torch.float64,
    ).to(dtype)
    zero, infinity = tops.new_zeros(()), tops.new_full((), math.inf)
    tops = torch.cat([tops, tops.nextafter(zero), tops.nextafter(infinity)]).unique()
    tops = tops[(tops > 0) & tops.isfinite()]
    inputs = boundary_inputs(target.element, torch.float64)
    elements = itertools.cycle(map(Fraction, inputs[inputs.isfinite()].tolist()))
    rows = []
    for number, top in enumerate(tops.tolist()):
        scale = Fraction(exact_block_scale([top], target))
        row: list[float] = []
        while len(row) < target.block_size - 1:
            x = float(_bounded(next(elements) * scale))
            row.append(x if abs(x) <= top else math.copysign(top, x))
        row.insert(number % target.block_size, -top if number % 2 else top)
        rows.append(row)
    return torch.tensor(rows, dtype=dtype)


def _bounded(value: Fraction) -> Fraction:
    """Return a number that binary64 can be rounded to from."""
    largest = Fraction(torch.finfo(torch.float64).max)
    return min(max(value, -largest), largest)


def _largest_magnitudes(target: BlockFormat) -> Iterator[Fraction]:
    """Yield magnitudes at which a rule takes another scale."""
    element, scale = target.element, target.scale
    top = Fraction(element.max)
    if isinstance(scale, SharedExponent):
        power = Fraction(2) ** element.emax
        half = power / Fraction(2) ** element.precision  # of the quantum
        sizes = (power, power * 3 / 2, top, (top + 2 * power) / 2, 2 * power - half)
        reach = scale.bias
        for k in sorted(
            {*range(-2, 2), -reach, 1 - reach, -2 - reach, reach - 1, reach}
        ):
            yield from (size * Fraction(2) ** k for size in sizes)
        return
    inputs = boundary_inputs(scale, torch.float64)
    inputs = inputs[(inputs > 0) & (inputs <= float(scale.max))]
    step = max(len(inputs) // _MOST_SCALES, 1)
    ends = (float(scale.smallest_subnormal), float(scale.max))
    yield from (top * Fraction(value) for value in [*inputs[::step].tolist(), *ends])
