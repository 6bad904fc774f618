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
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..formats import Format, Levels, Posit
from ..rounding import (
    Accumulator,
    AccumulatorLike,
    Rounding,
    RoundingMode,
    Variant,
    as_accumulator,
)
from ..table_rounding import TableRounding
from ._boundaries import boundary_inputs
from ._exact_operations import EXACT_OPERATIONS, exact_operation, exact_sum
from ._oracle import exact_round
from ._suite import SEED, Suite, as_tensor, compare, random_patterns

__all__ = ["OperationSuite", "RoundingSuite", "StochasticSuite", "SummationSuite"]

_WORD = 2**32


def _near_ties(target: Format) -> Iterator[tuple[float, ...]]:
    """Yield a, b, c with a b half-way between two values, and c what decides.

    3 b is odd and one bit too long, so that a carrier that loses c rounds wrong.
    """
    if not target.is_representable(3) or target.emax < target.precision:
        return
    first, last = 2**target.precision // 3, 2 ** (target.precision + 1) // 3
    source = random.Random(SEED)
    tiny = float(target.smallest_subnormal)
    for _ in range(20):
        b = float(source.randint(first, last) | 1)
        if target.is_representable(b) and 3 * b < float(target.max):
            yield 3.0, b, source.choice((tiny, -tiny))


class RoundingSuite(Suite):
    """Tests of a kernel that rounds the numbers of a tensor to a format.

    Override `round`. For formats of at most 12 bits every value, midpoint and their
    neighbours in the carrier are tried, of wider ones those at both ends and in every
    binade; zeros, infinities and NaN always. Formats may be posits and levels, whose
    roundings are `TableRounding`; saturation ``"wrap"`` is tried with fixed point.

    Example:
        >>> class TestOurs(RoundingSuite):
        ...     formats = ("e4m3fn", "posit6")
        ...
        ...     def round(self, x, rounding):
        ...         return lowprec.round(x, rounding)
        >>> import lowprec
        >>> TestOurs().test_decisive_numbers()
    """

    def round(self, x: Tensor, rounding: Rounding | TableRounding) -> Tensor:
        """Round with the kernel under test.

        Args:
            x: 1-d tensor of ``dtype``.
            rounding: to a format and by a mode of the class.

        Returns:
            Tensor of the same shape and dtype.
        """
        raise NotImplementedError("a RoundingSuite needs round(self, x, rounding)")

    def _check(self, inputs: Callable[[Rounding | TableRounding], Tensor]) -> None:
        for rounding in self.roundings():
            x = inputs(rounding)
            before = x.clone()
            wanted = [exact_round(value, rounding) for value in x.tolist()]
            actual = self.round(x, rounding)
            compare(actual, as_tensor(wanted, self.dtype), repr(rounding))
            compare(x, before, f"{rounding!r} changed its operand")

    def test_decisive_numbers(self) -> None:
        """Values, midpoints, their neighbours and the ends of the range are right."""
        self._check(lambda rounding: boundary_inputs(rounding.format, self.dtype))

    def testrandom_patterns(self) -> None:
        """Arbitrary bit patterns are rounded right, NaN payloads included."""
        self._check(lambda rounding: random_patterns(300, self.dtype))

    def test_rounded_numbers_stay(self) -> None:
        """Rounding again changes nothing."""
        for rounding in self.roundings():
            once = self.round(random_patterns(300, self.dtype), rounding)
            compare(self.round(once, rounding), once, f"{rounding!r}, again")

    def test_empty(self) -> None:
        """An empty tensor stays one."""
        for rounding in self.roundings():
            empty = torch.empty(0, dtype=self.dtype)
            compare(self.round(empty, rounding), empty, repr(rounding))


class StochasticSuite(Suite):
    """Tests of a kernel that rounds at random, given the random words.

    Override `round`. Every input is rounded with words that decide: none of their bits,
    all, and those beside the probability of going up, in every variant.

    Example:
        >>> class TestOurs(StochasticSuite):
        ...     formats = ("e4m3fn",)
        ...     random_bits = (8,)
        ...
        ...     def round(self, x, rounding, words):
        ...         pairs = zip(x.tolist(), words.tolist())
        ...         return torch.tensor([exact_round(a, rounding, b) for a, b in pairs])
        >>> from lowprec.testing import exact_round
        >>> TestOurs().test_words_that_decide()

    References:
        FitzGibbon and Felix, On stochastic rounding with few random bits, ARITH 2025.
    """

    modes: ClassVar[Sequence[RoundingMode | str]] = ("stochastic", "stochastic_equal")
    random_bits: ClassVar[Sequence[int]] = (1, 8, 32)
    variants: ClassVar[Sequence[Variant | str]] = tuple(Variant)
    count: ClassVar[int] = 200

    def round(
        self, x: Tensor, rounding: Rounding | TableRounding, words: Tensor
    ) -> Tensor:
        """Round with the kernel under test.

        Args:
            x: 1-d tensor of ``dtype``.
            rounding: to a format and by a mode of the class.
            words: one 32-bit word per element, int64; the top ``random_bits`` bits are
                used, as an integer.

        Returns:
            Tensor of the same shape and dtype.
        """
        raise NotImplementedError(
            "a StochasticSuite needs round(self, x, rounding, words)"
        )

    def roundings(self) -> Iterator[Rounding | TableRounding]:
        """Yield the roundings under test, with every width and variant."""
        for plain in super().roundings():
            equal = plain.mode is RoundingMode.STOCHASTIC_EQUAL
            choices = itertools.product(self.random_bits, self.variants)
            for bits, variant in itertools.islice(choices, 1 if equal else None):
                if isinstance(plain, Rounding):
                    saturation = plain.saturation
                    yield Rounding(plain.format, plain.mode, saturation, bits, variant)
                else:
                    yield TableRounding(plain.format, plain.mode, bits, variant)

    def test_words_that_decide(self) -> None:
        """Results are what the words say, so always neighbours of the number."""
        source = random.Random(SEED)
        for rounding in self.roundings():
            x = boundary_inputs(rounding.format, self.dtype)
            x = torch.cat([x[:: max(len(x) // self.count, 1)], x[-3:]])
            fractions = random_patterns(self.count, self.dtype)
            x = torch.cat([x, fractions, _between(rounding.format, source, self.dtype)])
            step = _WORD >> rounding.random_bits
            for words in _words(len(x), step, source):
                pairs = zip(x.tolist(), words.tolist(), strict=True)
                wanted = [exact_round(value, rounding, word) for value, word in pairs]
                actual = self.round(x, rounding, words)
                compare(actual, as_tensor(wanted, self.dtype), repr(rounding))


def _words(count: int, step: int, source: random.Random) -> Iterator[Tensor]:
    """Yield words without a bit, with all, with the top one, and at random."""
    for word in (0, _WORD - 1, _WORD // 2, _WORD // 2 - step):
        yield torch.full((count,), word)
    yield torch.tensor([source.randrange(_WORD) for _ in range(count)])


def _between(
    target: Format | Posit | Levels, source: random.Random, dtype: torch.dtype
) -> Tensor:
    """Return numbers at eighths of the way between neighbours."""
    kind: Any = Rounding if isinstance(target, Format) else TableRounding
    down, up = kind(target, "toward_negative"), kind(target, "toward_positive")
    inputs = boundary_inputs(target, dtype)
    some = source.choices(inputs[inputs.isfinite()].tolist(), k=100)
    pairs = [(float(exact_round(x, down)), float(exact_round(x, up))) for x in some]
    x = [low + source.randrange(9) / 8 * (high - low) for low, high in pairs]
    between = torch.tensor(x, dtype=dtype)
    return between[between.isfinite()]


class OperationSuite(Suite):
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
        self,
        operation: str,
        operands: Sequence[Tensor],
        rounding: Rounding | TableRounding,
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

    def _operands(
        self, target: Format | Posit | Levels, arity: int
    ) -> list[tuple[float, ...]]:
        codes = range(len(target) if isinstance(target, Levels) else 1 << target.bits)
        if len(codes) ** arity <= 2 << 10:
            chosen = list(itertools.product(codes, repeat=arity))
        else:
            source = random.Random(SEED)
            ends = [
                0,
                len(codes) // 2,
                len(codes) - 1,
                target.encode(target.line.largest),
            ]
            pool = [*ends, *(source.choice(codes) for _ in range(self.count))]
            chosen = [
                tuple(source.choice(pool) for _ in range(arity))
                for _ in range(self.count)
            ]
        rows = [tuple(target.decode(code) for code in row) for row in chosen]
        if arity == 3 and isinstance(target, Format):
            rows += _near_ties(target)
        return rows

    def test_values_of_the_format(self) -> None:
        """Operands of the result's own format give the correctly rounded result."""
        for rounding, name in itertools.product(self.roundings(), self.operations):
            rows = self._operands(rounding.format, EXACT_OPERATIONS[name])
            self._check(name, rows, rounding)

    def test_any_operands(self) -> None:
        """Operands with all bits of the carrier do too."""
        for rounding, name in itertools.product(self.roundings(), self.operations):
            arity = EXACT_OPERATIONS[name]
            x = random_patterns(60 * arity, self.dtype)
            self._check(name, [tuple(r) for r in x.view(-1, arity).tolist()], rounding)

    def _check(
        self,
        name: str,
        rows: Sequence[tuple[float, ...]],
        rounding: Rounding | TableRounding,
    ) -> None:
        columns = zip(*rows, strict=True)
        operands = [torch.tensor(column, dtype=self.dtype) for column in columns]
        wanted = [exact_operation(name, row, rounding) for row in rows]
        actual = self.compute(name, operands, rounding)
        compare(actual, as_tensor(wanted, self.dtype), f"{name}, {rounding!r}")


class SummationSuite(Suite):
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
        source = torch.Generator().manual_seed(SEED)
        for given, terms in itertools.product(self.accumulators, range(1, 10)):
            accumulator = as_accumulator(given)
            x = torch.randn((20, terms), generator=source, dtype=self.dtype)
            x[0], x[1, 0], x[2, -1] = -0.0, torch.inf, torch.nan
            x[3] = x[3].abs() * 2.0**100
            wanted = [exact_sum(row, accumulator) for row in x.tolist()]
            actual = self.sum(x, accumulator)
            what = f"{accumulator!r}, {terms} terms"
            compare(actual, as_tensor(wanted, self.dtype), what)

    def test_no_terms(self) -> None:
        """The sum of nothing is +0."""
        for accumulator in map(as_accumulator, self.accumulators):
            nothing = torch.empty((3, 0), dtype=self.dtype)
            zeros = torch.zeros(3, dtype=self.dtype)
            compare(self.sum(nothing, accumulator), zeros, repr(accumulator))
