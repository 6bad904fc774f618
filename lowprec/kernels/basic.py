"""Operations of IEEE 754, correctly rounded to any format in every mode.

The exact result is rounded to odd to 53 bits, which keeps all that a second rounding to
at most 51 bits needs. Operands from float32 stay far inside the range of float64. Those
of float64 are split into significand and exponent first, so that nothing overflows or
underflows before the format says so. Elementary functions are first enclosed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import elementary
from ._library import round as round_deterministic
from ._library import round_stochastic
from .addition import negative_zero
from .codes import (
    SATURATE_WRAP,
    SUBNORMALS,
    TABLE,
    TOWARD_NEGATIVE,
    RoundingCode,
    decode,
    numbers_of,
)
from .elementary import Elementary, Enclosure, resolved, undecided
from .exact import (
    add_to_odd,
    divide_to_odd,
    exact_product,
    fused_to_odd,
    multiply_to_odd,
    square_root_to_odd,
    to_odd,
    two_sum,
)
from .levels import check_decidable
from .nearly import (
    Nearest,
    fused_of,
    product_of,
    quotient_of,
    root_of,
    round_nearest,
    sum_of,
)
from .transcendental import Scaled

ADD, MUL, DIV, SQRT, FMA, EXP, LOG, TANH, SIGMOID = range(9)

# A second rounding of what is rounded to odd to 53 bits has no more.
WIDEST_TO_ODD = 51
_BIAS, _FRACTION = 1023, 52
_SIGN = -(1 << 63)
# Subnormal numbers become normal ones by this factor.
_LIFT = 200
# A sum of significands this many binades apart is one of them and a sign.
_FAR = 200
# Further below the smallest value, or above the largest, all results are the same: a
# stochastic rounding compares 33 bits.
_BELOW, _ABOVE, _WRAPPED_ABOVE = 40, 3, 120
# Formats that reach beyond are rounded in the middle of the range of float64.
_EDGE, _SHIFT = 960, 300
# Elements at a time on CPUs, so that the float64 temporaries stay in the cache.
_PIECE = 1 << 16

# What rounds float64 numbers by a code.
Round: TypeAlias = Callable[[Tensor, RoundingCode], Tensor]

_LIBRARY = torch.library.Library("lowprec", "FRAGMENT")
_LIBRARY.define(
    "basic(int operation, Tensor a, Tensor b, Tensor c, int[] code, Tensor? seed, "
    "SymInt offset) -> Tensor"
)


def _normal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (m, e) with x = m 2^e and 1 <= |m| < 2; zeros and specials have e = 0."""
    ordinary = x.isfinite() & (x != 0)
    low = x.abs() < 2.0**-_EDGE
    bits = torch.where(low, x * 2.0**_LIFT, x).view(torch.int64)
    field = (bits >> _FRACTION) & (2 * _BIAS + 1)
    fraction = bits & (_SIGN | ((1 << _FRACTION) - 1))
    significand = (fraction | (_BIAS << _FRACTION)).view(torch.float64)
    exponent = field - _BIAS - torch.where(low, _LIFT, 0)
    return torch.where(ordinary, significand, x), torch.where(ordinary, exponent, 0)


def _power(exponent: Tensor) -> Tensor:
    """Return 2^e for exponents of normal float64 numbers."""
    return ((exponent + _BIAS) << _FRACTION).view(torch.float64)


def _sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    # Both terms of a sum that overflows are so large that dividing them is exact.
    overflow = (a + b).isinf() & a.isfinite() & b.isfinite()
    scale = torch.where(overflow, 0.25, 1.0)
    return add_to_odd(a * scale, b * scale), torch.where(overflow, 2, 0)


def _nearest_sum(a: Tensor, b: Tensor) -> tuple[Nearest, Tensor]:
    total = a + b
    overflow = total.isinf() & a.isfinite() & b.isfinite()
    # Only small terms have a small sum that is inexact.
    small = torch.maximum(a.abs(), b.abs()) < 2.0**-_EDGE
    shift = torch.where(overflow, -2, torch.where(small, _LIFT, 0))
    scale = _power(shift)
    return sum_of(a * scale, b * scale), -shift


def _nearest_product(a: Tensor, b: Tensor) -> tuple[Nearest, Tensor]:
    (a, i), (b, j) = _normal(a), _normal(b)
    return product_of(a, b), i + j


def _nearest_quotient(a: Tensor, b: Tensor) -> tuple[Nearest, Tensor]:
    (a, i), (b, j) = _normal(a), _normal(b)
    return quotient_of(a, b), i - j


def _nearest_root(a: Tensor) -> tuple[Nearest, Tensor]:
    significand, exponent = _normal(a)
    odd = exponent & 1
    return root_of(significand * (1 + odd)), (exponent - odd) >> 1


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    (a, i), (b, j) = _normal(a), _normal(b)
    return multiply_to_odd(a, b), i + j


def _quotient(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    (a, i), (b, j) = _normal(a), _normal(b)
    return divide_to_odd(a, b), i - j


def _root(a: Tensor) -> tuple[Tensor, Tensor]:
    significand, exponent = _normal(a)
    odd = exponent & 1
    return square_root_to_odd(significand * (1 + odd)), (exponent - odd) >> 1


def _fused(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    a, b, addend, exponent = _aligned(a, b, c)
    return fused_to_odd(addend, exact_product(a, b, wide=True)), exponent


def _nearest_fused(a: Tensor, b: Tensor, c: Tensor) -> tuple[Nearest, Tensor]:
    a, b, addend, exponent = _aligned(a, b, c)
    return fused_of(addend, a, b), exponent


def _aligned(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return factors and an addend of middling size, and the exponent they share."""
    (a, i), (b, j), (c, k) = _normal(a), _normal(b), _normal(c)
    exponent = i + j
    distance = torch.where((a == 0) | (b == 0) | (c == 0), 0, k - exponent)
    # Where a zero has no exponent, that of the other term counts.
    exponent = torch.where((a == 0) | (b == 0), k, exponent)
    exponent = torch.where(distance > _FAR, k - _FAR, exponent)
    return a, b, c * _power(distance.clamp(-_FAR, _FAR)), exponent


def round_scaled(
    x: Tensor, exponent: Tensor, code: RoundingCode, round: Round
) -> Tensor:
    """Return fl(x 2^exponent), also where float64 cannot hold the argument."""
    significand, own = _normal(x)
    smallest = code.emin
    if code.flags & SUBNORMALS:
        smallest -= code.precision - 1
    exponent = torch.where(x.isfinite(), exponent + own, 0)
    # Where results wrap, what is beyond counts until it is a multiple of the range.
    above = _WRAPPED_ABOVE if code.saturation == SATURATE_WRAP else _ABOVE
    exponent = exponent.clamp(smallest - _BELOW, code.emax + above)
    upward = _SHIFT if smallest < -_EDGE else 0
    downward = _SHIFT if code.emax > _EDGE else 0
    # Values above one cannot underflow; those below cannot overflow a large format.
    large = _shifted(significand, exponent, -downward, code, round)
    if upward == downward == 0:
        return large
    small = _shifted(significand, exponent, upward, code, round)
    return torch.where(exponent < 0, small, large)


def _shifted(
    significand: Tensor,
    exponent: Tensor,
    shift: int,
    code: RoundingCode,
    round: Round,
) -> Tensor:
    """Round in the format times 2^shift; elements out of its reach are not used."""
    moved = (exponent + shift).clamp(1 - _BIAS, _BIAS)
    emax = min(code.emax + shift, _BIAS)
    target = code._replace(emin=code.emin + shift, emax=emax)
    return round(significand * _power(moved), target) * 2.0**-shift


def rounder(seed: Tensor | None, offset: int, numbers: tuple[int, ...]) -> Round:
    """Return the kernel that rounds by a code, or to levels."""

    def round(x: Tensor, code: RoundingCode) -> Tensor:
        result: Tensor
        if seed is None:
            result = round_deterministic(x, [*code, *numbers])
        else:
            result = round_stochastic(x, [*code, *numbers], seed, offset)
        return result

    return round


def _elementary(
    function: Elementary, x: Tensor, code: RoundingCode, round: Round
) -> Tensor:
    ends = function.enclosure(x)
    rounded = Enclosure(*(round(end, code) for end in ends))
    hard = undecided(ends, rounded, code)
    if not bool(hard.any()):
        return rounded.low

    def exact(places: Tensor) -> list[Scaled]:
        return [function.exact(value) for value in x.reshape(-1)[places].tolist()]

    odd = resolved(ends.low, hard, exact)
    return torch.where(hard, round_scaled(*odd, code, round), rounded.low)


def _piece(
    operation: int,
    operands: Sequence[Tensor],
    integers: Sequence[int],
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    round = rounder(seed, offset, numbers_of(integers))
    return correctly_rounded(operation, operands, decode(integers), round)


def correctly_rounded(
    operation: int, operands: Sequence[Tensor], code: RoundingCode, round: Round
) -> Tensor:
    """Return the exact result of an operation, rounded once.

    Args:
        operation: as in `basic`.
        operands: as many as it has, float32 or float64, of one shape.
        code: of a rounding as `basic` takes it.
        round: rounds float64 numbers by a code; stochastic ones by the random words
            that the caller has chosen.

    Returns:
        float64 tensor of that shape.
    """
    if operation in _ELEMENTARY:
        x = operands[0].to(torch.float64)
        return _elementary(_ELEMENTARY[operation], x, code, round)
    narrow = all(x.dtype == torch.float32 for x in operands)
    wide = [x.to(torch.float64) for x in operands]
    if code.precision > WIDEST_TO_ODD:
        return _nearly(operation, wide, code, round)
    exponent = None
    if narrow and operation == DIV and not (code.stochastic or code.flags & TABLE):
        # A quotient of 24-bit numbers is a 25-bit number, or further than 2^-49 of
        # itself from all of them: what the rounding needs survives in float64.
        value = wide[0] / wide[1]
    elif narrow:
        value = _NARROW[operation](*wide)
    else:
        value, exponent = _WIDE[operation](*wide)
    if code.mode == TOWARD_NEGATIVE and operation in (ADD, FMA):
        first = wide[0] if operation == ADD else wide[0] * wide[1]
        value = negative_zero(value, first, wide[-1])
    if exponent is None:
        return round(value, code)
    return round_scaled(value, exponent, code, round)


def _nearly(
    operation: int,
    operands: Sequence[Tensor],
    code: RoundingCode,
    round: Round,
) -> Tensor:
    """Round to as many bits as float64 has, or one less, in a deterministic mode."""
    exact, exponent = _NEARLY[operation](*operands)
    head = exact.head
    if code.mode == TOWARD_NEGATIVE and operation in (ADD, FMA):
        first = operands[0] if operation == ADD else operands[0] * operands[1]
        head = negative_zero(head, first, operands[-1])
    ordinary = head.isfinite() & (head != 0)
    value = round_nearest(exact, exponent, code)
    return round(torch.where(ordinary, value, head), code)


def _narrow_sum(a: Tensor, b: Tensor) -> Tensor:
    total, error = two_sum(a, b)
    return total if bool((error == 0).all()) else to_odd(total, error)


_NARROW: dict[int, Callable[..., Tensor]] = {
    ADD: _narrow_sum,
    MUL: torch.mul,  # 48 bits
    DIV: divide_to_odd,
    SQRT: square_root_to_odd,
    FMA: lambda a, b, c: fused_to_odd(c, exact_product(a, b, wide=False)),
}
_WIDE: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    ADD: _sum,
    MUL: _product,
    DIV: _quotient,
    SQRT: _root,
    FMA: _fused,
}
_NEARLY: dict[int, Callable[..., tuple[Nearest, Tensor]]] = {
    ADD: _nearest_sum,
    MUL: _nearest_product,
    DIV: _nearest_quotient,
    SQRT: _nearest_root,
    FMA: _nearest_fused,
}
_ELEMENTARY = {
    EXP: elementary.EXPONENTIAL,
    LOG: elementary.LOGARITHM,
    TANH: elementary.HYPERBOLIC_TANGENT,
    SIGMOID: elementary.LOGISTIC,
}
_OPERANDS = {ADD: 2, MUL: 2, DIV: 2, SQRT: 1, FMA: 3, **dict.fromkeys(_ELEMENTARY, 1)}


def _basic(
    operation: int,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    code: Sequence[int],
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    check_decidable(code)
    operands = (a, b, c)[: _OPERANDS[operation]]
    if a.numel() <= _PIECE or a.device.type != "cpu":
        return _piece(operation, operands, code, seed, offset).contiguous()
    result = torch.empty(a.shape, dtype=torch.float64, device=a.device)
    flat = [x.reshape(-1) for x in operands]
    for start in range(0, a.numel(), _PIECE):
        pieces = [x[start : start + _PIECE] for x in flat]
        piece = _piece(operation, pieces, code, seed, offset + start)
        result.view(-1)[start : start + _PIECE] = piece
    return result


def _basic_fake(
    operation: int,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    code: Sequence[int],
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    return torch.empty(a.shape, dtype=torch.float64, device=a.device)


_LIBRARY.impl("basic", _basic, "CompositeExplicitAutograd")
_LIBRARY.impl("basic", _basic_fake, "Meta")


@torch.library.register_vmap("lowprec::basic", lib=_LIBRARY)
def _basic_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    operation: int,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    code: Sequence[int],
    seed: Tensor | None,
    offset: int,
) -> tuple[Tensor, int]:
    def rows(value: Tensor, dim: int | None) -> list[Tensor]:
        if dim is None:
            return [value] * info.batch_size
        return list(value.unbind(dim))

    a_rows, b_rows, c_rows = map(rows, (a, b, c), in_dims[1:4])
    if seed is None:
        a, b, c = map(torch.stack, (a_rows, b_rows, c_rows))
        return basic(operation, a, b, c, code, None, offset), 0
    # Elements are counted inside one example, as a loop over the examples would.
    results = [
        basic(operation, a, b, c, code, one, offset)
        for a, b, c, one in zip(
            a_rows, b_rows, c_rows, rows(seed, in_dims[5]), strict=True
        )
    ]
    return torch.stack(results), 0


def basic(
    operation: int,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    code: Sequence[int],
    seed: Tensor | None,
    offset: int,
) -> Tensor:
    """Return fl(a + b), fl(a b), fl(a / b), fl(sqrt(a)), fl(a b + c), fl(exp(a)), ...

    Args:
        operation: ADD, MUL, DIV, SQRT, FMA, EXP, LOG, TANH or SIGMOID.
        a: float32 or float64 tensor; all three have one shape.
        b: second operand; not used by functions of one.
        c: third operand; used by FMA only.
        code: integers of a rounding to at most 51 bits whose values float64 holds, or
            of one to levels that `levels.check_decidable` takes.
        seed: 0-d int64, of stochastic modes only.
        offset: linear index of the first element.

    Returns:
        float64 tensor of that shape.
    """
    arguments = (operation, a, b, c, code, seed, offset)
    result: Tensor = torch.ops.lowprec.basic.default(*arguments)
    return result
