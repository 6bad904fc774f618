"""What one rounding and one accumulator are: frozen values without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any, ClassVar, Literal, TypeAlias

from .formats import Format
from .formats import format as as_format

__all__ = [
    "Accumulator",
    "AccumulatorLike",
    "FormatLike",
    "Order",
    "Rounding",
    "RoundingLike",
    "RoundingMode",
    "Saturation",
    "Variant",
    "as_accumulator",
    "as_rounding",
]

# The kernels keep significands in 64-bit integers. Beyond 62 bits every number of a
# carrier in the normal range is a value: fewer bits with the same quantum do the same.
_WIDEST_PRECISION = 62
_MOST_RANDOM_BITS = 32
_WIDEST_WRAPPING = 26


class RoundingMode(StrEnum):
    """Rounding-direction attribute: which neighbour a value between two takes.

    The deterministic modes are those of IEEE 754-2019 section 4.3 plus
    ``nearest_zero`` (ties toward zero) and ``to_odd`` (inexact results take the
    neighbour with odd significand). ``stochastic`` goes up with probability equal to
    the discarded fraction (up to ``random_bits``); ``stochastic_equal`` tosses a coin.

    References:
        IEEE 754-2019, section 4.3; P3109 interim report 3.2.2; Croci et al. 2022.
    """

    NEAREST_EVEN = "nearest_even"
    NEAREST_AWAY = "nearest_away"
    NEAREST_ZERO = "nearest_zero"
    TOWARD_POSITIVE = "toward_positive"
    TOWARD_NEGATIVE = "toward_negative"
    TOWARD_ZERO = "toward_zero"
    TO_ODD = "to_odd"
    STOCHASTIC = "stochastic"
    STOCHASTIC_EQUAL = "stochastic_equal"


class Saturation(StrEnum):
    """What happens beyond the largest finite value, after rounding.

    ``none``: IEEE 754 overflow (infinity, or NaN in a format without infinities, or
    the largest finite value in a format with neither). ``finite``: everything,
    infinity too, becomes the largest finite value. ``propagate``: finite values
    become the largest finite value, infinity stays. ``wrap``: fixed point only, the
    integer k modulo 2^word, as adders of that width leave it; infinity becomes the
    largest finite value. Of sums and products this is exact where they have at most 53
    bits before they wrap, so words have at most 26 there, operands of ``lowprec.add``,
    ``sub``, ``mul`` and ``fma`` are values of the format, and others do not wrap.

    References:
        P3109 interim report 3.2.2, OvfInf / SatFinite / SatPropagate.
    """

    NONE = "none"
    FINITE = "finite"
    PROPAGATE = "propagate"
    WRAP = "wrap"


class Variant(StrEnum):
    """How a stochastic rounding treats the bits beyond its random bits.

    With nu the discarded fraction and R uniform in [0, 2^r): up iff
    ``A``: floor(nu 2^r) + R >= 2^r (hardware; truncates nu),
    ``B``: floor(nu 2^(r+1)) + 2R + 1 >= 2^(r+1) (rounds nu half up),
    ``C``: RNE(nu 2^r) + R >= 2^r (rounds nu to nearest even; unbiased).

    References:
        P3109 StochasticA/B/C; FitzGibbon and Felix, ARITH 2025.
    """

    A = "A"
    B = "B"
    C = "C"


class Order(StrEnum):
    """Order of the additions of a sum: recursive, blocked, pairwise or compensated.

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, sections 4.1 and 4.3.
    """

    SEQUENTIAL = "sequential"
    BLOCKED = "blocked"
    PAIRWISE = "pairwise"
    KAHAN = "kahan"


# What `as_format`, `as_rounding` and `as_accumulator` normalise. Torch dtypes are
# accepted too, but this layer does not know torch.
FormatLike: TypeAlias = "Format | str"
RoundingLike: TypeAlias = "Rounding | Format | str"
AccumulatorLike: TypeAlias = "Accumulator | Rounding | Format | str"


def _member(enum: type[Enum], value: Any, what: str) -> Any:
    try:
        return enum(value)
    except ValueError:
        allowed = ", ".join(repr(member.value) for member in enum)
        raise ValueError(
            f"unknown {what} {value!r}: it must be one of {allowed}"
        ) from None


def _position(member: Enum) -> int:
    return list(type(member)).index(member)


_FIRST_STOCHASTIC = _position(RoundingMode.STOCHASTIC)


@dataclass(frozen=True, init=False)
class Rounding:
    """A map fl(.) from the reals to a format: direction, saturation, randomness.

    fl(x) = sign(x) (k + up) 2^q with |x| = (k + nu) 2^q, q the exponent of the
    format's quantum at x, and ``up`` decided by the mode. The exponent is unbounded
    above during rounding; saturation is applied afterwards.

    Contract:
        NaN stays NaN, also in formats that have none; a zero keeps its sign where the
        format has signed zeros, and becomes the smallest value where there is no zero;
        representable values are unchanged in every mode. A tie goes to the even k,
        with one significand bit (k = 1) to the larger magnitude as in IEEE 754, in
        P3109 formats to the even code.
        Stochastic modes are pure functions of (seed, element index).

    Args:
        format: a `Format`, a name such as ``"bfloat16"`` or ``"e6m8"``, or a torch
            dtype.
        mode: a `RoundingMode` or its name.
        saturation: a `Saturation` or its name.
        random_bits: random bits per rounding, 1 to 32; only stochastic modes use it.
        variant: a `Variant` or its name; only ``stochastic`` uses it.

    Raises:
        TypeError: if ``format`` is not a format or ``random_bits`` not an integer.
        ValueError: if a name is unknown, ``random_bits`` is out of range, or what is
            no fixed point shall wrap.

    Example:
        >>> Rounding("bfloat16", "stochastic", random_bits=8).mode.value
        'stochastic'

    References:
        IEEE 754-2019 section 4; P3109 projection specification.
    """

    format: Format
    mode: RoundingMode = RoundingMode.NEAREST_EVEN
    saturation: Saturation = Saturation.NONE
    random_bits: int = _MOST_RANDOM_BITS
    variant: Variant = Variant.A
    _code: ClassVar[tuple[int, ...]]  # not a field: it follows from them

    def __init__(
        self,
        format: FormatLike,
        mode: RoundingMode | str = RoundingMode.NEAREST_EVEN,
        saturation: Saturation | str = Saturation.NONE,
        random_bits: int = _MOST_RANDOM_BITS,
        variant: Variant | str = Variant.A,
    ) -> None:
        """Normalise names to values and check ranges."""
        # Written out so that type checkers know the shorthands that fields never hold.
        set_field = object.__setattr__
        set_field(self, "format", as_format(format))
        set_field(self, "mode", _member(RoundingMode, mode, "rounding mode"))
        set_field(self, "saturation", _member(Saturation, saturation, "saturation"))
        set_field(self, "variant", _member(Variant, variant, "variant"))
        if isinstance(random_bits, bool) or not isinstance(random_bits, int):
            raise TypeError(
                f"random_bits must be an int from 1 to {_MOST_RANDOM_BITS}, "
                f"got {random_bits!r} of type {type(random_bits).__name__}"
            )
        if not 1 <= random_bits <= _MOST_RANDOM_BITS:
            raise ValueError(
                f"random_bits must be from 1 to {_MOST_RANDOM_BITS}, got {random_bits}"
            )
        set_field(self, "random_bits", random_bits)
        if self.saturation is Saturation.WRAP and self.format.encoding != "integer":
            raise ValueError(
                f"saturation='wrap' needs fixed point, such as 'int8', got "
                f"{self.format!r}"
            )
        set_field(self, "_code", self._integers())  # once: small tensors wait for it

    def __repr__(self) -> str:
        """Return one line that evaluates back, only what differs from the default."""
        parts = [repr(self.format.name) if self._named() else repr(self.format)]
        if self.mode is not RoundingMode.NEAREST_EVEN:
            parts.append(repr(self.mode.value))
        if self.saturation is not Saturation.NONE:
            parts.append(f"saturation={self.saturation.value!r}")
        if self.random_bits != _MOST_RANDOM_BITS:
            parts.append(f"random_bits={self.random_bits}")
        if self.variant is not Variant.A:
            parts.append(f"variant={self.variant.value!r}")
        return f"Rounding({', '.join(parts)})"

    def _named(self) -> bool:
        if self.format.name is None:
            return False
        try:
            return as_format(self.format.name) == self.format
        except ValueError:
            return False

    @property
    def stochastic(self) -> bool:
        """Whether results depend on random bits."""
        return self._code[5] >= _FIRST_STOCHASTIC

    @property
    def wraps_inexactly(self) -> bool:
        """Whether it wraps words whose products have more than 53 bits."""
        wraps = self.saturation is Saturation.WRAP
        return wraps and self.format.bits > _WIDEST_WRAPPING

    @property
    def code(self) -> tuple[int, ...]:
        """The nine integers that kernels take (`lowprec.kernels.RoundingCode`)."""
        return self._code

    def _integers(self) -> tuple[int, ...]:
        target = self.format
        emin, significand = target.emin, target.max_significand
        if emin is None or significand is None:  # resolved by Format.__post_init__
            raise ValueError(f"{target!r} has unresolved fields")
        excess = max(target.precision - _WIDEST_PRECISION, 0)
        if target.subnormals:
            emin -= excess  # the quantum 2^(emin-p+1) stays
        inexact = significand & ((1 << excess) - 1) != 0
        flags = (
            1 * target.subnormals
            + 2 * target.infinities
            + 4 * target.nans
            + 8 * target.signed
            + 16 * target.signed_zero
            + 32 * target.asymmetric
            + 64 * (target.encoding == "p3109" and target.precision == 1)
            + 128 * (not target.zero)
            + 256 * (target.encoding == "normal" and target.zero)
        )
        return (
            target.precision - excess,
            emin,
            target.emax,
            significand >> excess | inexact,
            flags,
            _position(self.mode),
            _position(self.saturation),
            self.random_bits,
            _position(self.variant),
        )


def as_rounding(value: Any) -> Rounding:
    """Return ``value`` as a `Rounding`; formats mean nearest-even, no saturation.

    Args:
        value: a `Rounding`, `Format`, format name or torch dtype.

    Returns:
        The rounding.

    Raises:
        TypeError: if ``value`` is none of these.
        ValueError: if it is an unknown name.

    Example:
        >>> as_rounding("e4m3fn").mode.value
        'nearest_even'
    """
    return value if isinstance(value, Rounding) else Rounding(value)


@dataclass(frozen=True, init=False)
class Accumulator:
    """How a sum of products is rounded: after each addition, in a stated order.

    acc <- fl(acc + pi(a_k b_k)), from +0, with one rounding of the exact sum. pi is
    the identity for exact products (a chain of fused multiply-adds), or a rounding.

    Contract:
        ``sequential``: k ascending. ``blocked``: each block of ``block_size`` terms is
        summed from +0 under ``within``, then the block sums are added sequentially
        under ``rounding``. ``pairwise``: the terms are rounded to the accumulator, then
        neighbours are added level by level. ``kahan``: with acc = c = +0, for each term
        y = fl(pi(a_k b_k) - c), t = fl(acc + y), c = fl(fl(t - acc) - y), acc = t;
        infinities turn c, and what follows, into NaN as IEEE 754 arithmetic does.

    Args:
        rounding: of every addition; a `Rounding` or its shorthand.
        product: ``"exact"``, ``"accumulator"`` (rounded as the sums are) or a
            `Rounding` or its shorthand.
        order: an `Order` or its name.
        block_size: terms per block, positive; required by and only allowed for
            ``blocked``.
        within: rounding of the additions inside a block, or its shorthand; only for
            ``blocked``. None means as ``rounding``.

    Raises:
        TypeError: if ``block_size`` is not an integer.
        ValueError: if a name is unknown, or ``block_size`` or ``within`` does not fit
            ``order``.

    Example:
        >>> Accumulator("e8m15").product
        'exact'
        >>> promoted = Accumulator(
        ...     "e8m10", order="blocked", block_size=32, within="binary32"
        ... )
        >>> promoted.within.format.precision
        24

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, sections 4.1 and 4.3;
        Blanchard, Higham and Mary 2020 (blocked summation).
    """

    rounding: Rounding
    product: Rounding | Literal["exact", "accumulator"] = "exact"
    order: Order = Order.SEQUENTIAL
    block_size: int | None = None
    within: Rounding | None = None

    def __init__(
        self,
        rounding: RoundingLike,
        product: RoundingLike | Literal["exact", "accumulator"] = "exact",
        order: Order | str = Order.SEQUENTIAL,
        block_size: int | None = None,
        within: RoundingLike | None = None,
    ) -> None:
        """Normalise shorthands and check that order and block size agree."""
        set_field = object.__setattr__
        set_field(self, "rounding", as_rounding(rounding))
        named = product in ("exact", "accumulator")
        set_field(self, "product", product if named else as_rounding(product))
        set_field(self, "order", _member(Order, order, "order"))
        if self.order is not Order.BLOCKED:
            if block_size is not None:
                raise ValueError(
                    f"block_size={block_size!r} needs order='blocked', "
                    f"got order={self.order.value!r}"
                )
        elif isinstance(block_size, bool) or not isinstance(block_size, int):
            raise TypeError(
                "order='blocked' needs block_size, a positive int, "
                f"got {block_size!r} of type {type(block_size).__name__}"
            )
        elif block_size < 1:
            raise ValueError(f"block_size must be positive, got {block_size}")
        set_field(self, "block_size", block_size)
        if within is not None and self.order is not Order.BLOCKED:
            raise ValueError(
                f"within={within!r} needs order='blocked', "
                f"got order={self.order.value!r}"
            )
        set_field(self, "within", None if within is None else as_rounding(within))
        for each in (self.rounding, self.within, self.product_rounding):
            if each is not None and each.wraps_inexactly:
                raise ValueError(
                    f"{each!r} cannot accumulate: products of words of more than "
                    f"{_WIDEST_WRAPPING} bits do not fit 53 bits before they wrap"
                )

    def __repr__(self) -> str:
        """Return one line that evaluates back, only what differs from the default."""
        parts = [repr(self.rounding)]
        if self.product != "exact":
            parts.append(f"product={self.product!r}")
        if self.order is not Order.SEQUENTIAL:
            parts.append(f"order={self.order.value!r}")
        if self.block_size is not None:
            parts.append(f"block_size={self.block_size}")
        if self.within is not None:
            parts.append(f"within={self.within!r}")
        return f"Accumulator({', '.join(parts)})"

    @property
    def product_rounding(self) -> Rounding | None:
        """The rounding of each product, or None where products are exact."""
        if isinstance(self.product, Rounding):
            return self.product
        return self.rounding if self.product == "accumulator" else None

    @property
    def stochastic(self) -> bool:
        """Whether results depend on random bits."""
        roundings = (self.rounding, self.product_rounding, self.within)
        return any(each is not None and each.stochastic for each in roundings)

    def replace(self, **changes: Any) -> Accumulator:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


def as_accumulator(value: Any) -> Accumulator:
    """Return ``value`` as an `Accumulator`; roundings mean sequential, exact products.

    Args:
        value: an `Accumulator`, or anything `as_rounding` accepts.

    Returns:
        The accumulator.

    Raises:
        TypeError: if ``value`` is none of these.
        ValueError: if it is an unknown name.

    Example:
        >>> as_accumulator("e8m15").order.value
        'sequential'
    """
    return value if isinstance(value, Accumulator) else Accumulator(value)
