"""Conformance suites: subclass one, say how to call your kernel, and pytest runs it.

A class that says how to call a kernel gets every test. What a kernel does not have,
modes or formats or operations, is left out by a class attribute::

    class TestMyKernel(RoundingSuite):
        modes = ("nearest_even", "toward_zero")

        def round(self, x, rounding):
            return my_kernel(x, rounding.format.name, rounding.mode.value)

The suites need neither pytest nor hypothesis: any runner may call their methods.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..arithmetic import fits
from ..formats import Format
from ..rounding import (
    Accumulator,
    AccumulatorLike,
    Rounding,
    RoundingMode,
    Saturation,
    as_accumulator,
)
from ._boundaries import boundary_inputs
from ._conformance import assert_bit_equal
from ._exact_operations import EXACT_OPERATIONS, exact_operation, exact_sum
from ._oracle import Real, exact_round

__all__ = ["OperationSuite", "RoundingSuite", "SummationSuite"]

_SEED = 20
_DETERMINISTIC = tuple(
    mode.value for mode in RoundingMode if not mode.value.startswith("stochastic")
)
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def _tensor(values: Sequence[Real], dtype: torch.dtype) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=dtype)


def _compared(actual: Tensor, expected: Tensor, what: str) -> None:
    """Compare bit for bit, naming the case."""
    try:
        assert_bit_equal(actual, expected)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def _random_bits(count: int, dtype: torch.dtype) -> Tensor:
    integer = _INTEGERS[dtype]
    limits = torch.iinfo(integer)
    source = torch.Generator().manual_seed(_SEED)
    bits = torch.randint(
        limits.min, limits.max, (count,), dtype=integer, generator=source
    )
    return bits.view(dtype)


def _near_ties(target: Format) -> Iterator[tuple[float, ...]]:
    """Yield a, b, c with a b half-way between two values, and c what decides.

    3 b is odd and one bit too long, so that a carrier that loses c rounds wrong.
    """
    if not target.is_representable(3) or target.emax < target.precision:
        return
    first, last = 2**target.precision // 3, 2 ** (target.precision + 1) // 3
    source = random.Random(_SEED)
    tiny = float(target.smallest_subnormal)
    for _ in range(20):
        b = float(source.randint(first, last) | 1)
        if target.is_representable(b) and 3 * b < float(target.max):
            yield 3.0, b, source.choice((tiny, -tiny))


class _Suite:
    """What a kernel is tested with; override what it does not have."""

    formats: ClassVar[Sequence[Format | str]] = ("e5m2", "e4m3fn", "bfloat16")
    modes: ClassVar[Sequence[RoundingMode | str]] = _DETERMINISTIC
    saturations: ClassVar[Sequence[Saturation | str]] = ("none", "finite")
    dtype: ClassVar[torch.dtype] = torch.float32

    def roundings(self) -> Iterator[Rounding]:
        """Yield the roundings under test, those that the dtype can hold."""
        for name, mode, saturation in itertools.product(
            self.formats, self.modes, self.saturations
        ):
            rounding = Rounding(name, mode, saturation)
            if fits(rounding.format, self.dtype):
                yield rounding


class RoundingSuite(_Suite):
    """Tests of a kernel that rounds the numbers of a tensor to a format.

    Override `round`. For formats of at most 12 bits every value, midpoint and their
    neighbours in the carrier are tried, of wider ones those at both ends and in every
    binade; zeros, infinities and NaN always.

    Example:
        >>> class TestOurs(RoundingSuite):
        ...     def round(self, x, rounding):
        ...         return lowprec.round(x, rounding)
        >>> import lowprec
        >>> TestOurs().test_decisive_numbers()
    """

    def round(self, x: Tensor, rounding: Rounding) -> Tensor:
        """Round with the kernel under test.

        Args:
            x: 1-d tensor of ``dtype``.
            rounding: to a format and by a mode of the class.

        Returns:
            Tensor of the same shape and dtype.
        """
        raise NotImplementedError("a RoundingSuite needs round(self, x, rounding)")

    def _check(self, inputs: Callable[[Rounding], Tensor]) -> None:
        for rounding in self.roundings():
            x = inputs(rounding)
            before = x.clone()
            wanted = [exact_round(value, rounding) for value in x.tolist()]
            actual = self.round(x, rounding)
            _compared(actual, _tensor(wanted, self.dtype), repr(rounding))
            _compared(x, before, f"{rounding!r} changed its operand")

    def test_decisive_numbers(self) -> None:
        """Values, midpoints, their neighbours and the ends of the range are right."""
        self._check(lambda rounding: boundary_inputs(rounding.format, self.dtype))

    def test_random_bits(self) -> None:
        """Arbitrary bit patterns are rounded right, NaN payloads included."""
        self._check(lambda rounding: _random_bits(300, self.dtype))

    def test_rounded_numbers_stay(self) -> None:
        """Rounding again changes nothing."""
        for rounding in self.roundings():
            once = self.round(_random_bits(300, self.dtype), rounding)
            _compared(self.round(once, rounding), once, f"{rounding!r}, again")

    def test_empty(self) -> None:
        """An empty tensor stays one."""
        for rounding in self.roundings():
            empty = torch.empty(0, dtype=self.dtype)
            _compared(self.round(empty, rounding), empty, repr(rounding))


class OperationSuite(_Suite):
    """Tests of correctly rounded operations on numbers of a format.

    Override `compute`. Operands are values of the format: all of them for formats of at
    most five bits, else ends, special values, random ones, and for fused operations
    near ties.

    Example:
        >>> class TestOurs(OperationSuite):
        ...     formats = ("e2m1",)
        ...
        ...     def compute(self, operation, operands, rounding):
        ...         return getattr(lowprec, operation)(*operands, rounding)
        >>> import lowprec
        >>> TestOurs().test_values_of_the_format()
    """

    operations: ClassVar[Sequence[str]] = ("add", "sub", "mul", "div", "sqrt", "fma")
    count: ClassVar[int] = 300

    def compute(
        self, operation: str, operands: Sequence[Tensor], rounding: Rounding
    ) -> Tensor:
        """Compute with the kernel under test.

        Args:
            operation: one of ``operations``.
            operands: 1-d tensors of ``dtype``.
            rounding: of the exact result.

        Returns:
            Tensor of the same shape and dtype.
        """
        raise NotImplementedError(
            "an OperationSuite needs compute(self, operation, operands, rounding)"
        )

    def _operands(self, target: Format, arity: int) -> list[tuple[float, ...]]:
        codes = range(1 << target.bits)
        if len(codes) ** arity <= 2 << 10:
            chosen = list(itertools.product(codes, repeat=arity))
        else:
            source = random.Random(_SEED)
            ends = [0, len(codes) // 2, len(codes) - 1, target.encode(target.max)]
            pool = [*ends, *(source.choice(codes) for _ in range(self.count))]
            chosen = [
                tuple(source.choice(pool) for _ in range(arity))
                for _ in range(self.count)
            ]
        rows = [tuple(target.decode(code) for code in row) for row in chosen]
        return [*rows, *_near_ties(target)] if arity == 3 else rows

    def test_values_of_the_format(self) -> None:
        """Operands of the result's own format give the correctly rounded result."""
        for rounding, name in itertools.product(self.roundings(), self.operations):
            rows = self._operands(rounding.format, EXACT_OPERATIONS[name])
            self._check(name, rows, rounding)

    def test_any_operands(self) -> None:
        """Operands with all bits of the carrier do too."""
        for rounding, name in itertools.product(self.roundings(), self.operations):
            arity = EXACT_OPERATIONS[name]
            x = _random_bits(60 * arity, self.dtype)
            self._check(name, [tuple(r) for r in x.view(-1, arity).tolist()], rounding)

    def _check(
        self, name: str, rows: Sequence[tuple[float, ...]], rounding: Rounding
    ) -> None:
        columns = zip(*rows, strict=True)
        operands = [torch.tensor(column, dtype=self.dtype) for column in columns]
        wanted = [exact_operation(name, row, rounding) for row in rows]
        actual = self.compute(name, operands, rounding)
        _compared(actual, _tensor(wanted, self.dtype), f"{name}, {rounding!r}")


class SummationSuite(_Suite):
    """Tests of a kernel that adds up rows, rounding every addition.

    Override `sum`, and say by ``accumulators`` which it can do.

    Example:
        >>> class TestOurs(SummationSuite):
        ...     def sum(self, x, accumulator):
        ...         return lowprec.sum(x, 1, accumulator=accumulator)
        >>> import lowprec
        >>> TestOurs().test_rows()
    """

    accumulators: ClassVar[Sequence[AccumulatorLike]] = (
        "bfloat16",
        Accumulator("e4m3fn", order="pairwise"),
        Accumulator("e8m10", order="blocked", block_size=4),
        Accumulator("bfloat16", order="kahan"),
    )

    def sum(self, x: Tensor, accumulator: Accumulator) -> Tensor:
        """Add up the rows of a matrix with the kernel under test.

        Args:
            x: [M, K] tensor of ``dtype``.
            accumulator: one of ``accumulators``.

        Returns:
            Tensor [M] of the same dtype.
        """
        raise NotImplementedError("a SummationSuite needs sum(self, x, accumulator)")

    def test_rows(self) -> None:
        """Sums of one to nine terms, special values among them, are right."""
        source = torch.Generator().manual_seed(_SEED)
        for given, terms in itertools.product(self.accumulators, range(1, 10)):
            accumulator = as_accumulator(given)
            x = torch.randn((20, terms), generator=source, dtype=self.dtype)
            x[0], x[1, 0], x[2, -1] = -0.0, torch.inf, torch.nan
            x[3] = x[3].abs() * 2.0**100
            wanted = [exact_sum(row, accumulator) for row in x.tolist()]
            actual = self.sum(x, accumulator)
            what = f"{accumulator!r}, {terms} terms"
            _compared(actual, _tensor(wanted, self.dtype), what)

    def test_no_terms(self) -> None:
        """The sum of nothing is +0."""
        for accumulator in map(as_accumulator, self.accumulators):
            nothing = torch.empty((3, 0), dtype=self.dtype)
            zeros = torch.zeros(3, dtype=self.dtype)
            _compared(self.sum(nothing, accumulator), zeros, repr(accumulator))
