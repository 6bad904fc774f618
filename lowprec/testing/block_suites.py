"""Conformance suites of block formats: values, and codes of elements and scales."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from ..arithmetic import BlockCodes, fits
from ..block_rounding import BlockRounding
from ..formats import BlockFormat, SharedExponent, block_format
from ..rounding import RoundingMode, Saturation
from ._block_oracle import ExactBlock, exact_block_round, exact_tensor_scale
from ._boundaries import boundary_blocks
from ._oracle import Real
from ._suite import SEED, as_tensor, compare

__all__ = ["BlockCodingSuite", "BlockRoundingSuite"]


class _BlockSuite:
    """What a kernel is tested with; override what it does not have."""

    formats: ClassVar[Sequence[BlockFormat | str]] = ("mxfp8_e4m3", "mxfp4", "mxint8")
    modes: ClassVar[Sequence[RoundingMode | str]] = ("nearest_even",)
    saturations: ClassVar[Sequence[Saturation | str]] = ("finite",)
    dtype: ClassVar[torch.dtype] = torch.float32

    def roundings(self) -> Iterator[BlockRounding]:
        """Yield the roundings under test, those that the dtype can hold."""
        for given, mode, saturation in itertools.product(
            self.formats, self.modes, self.saturations
        ):
            target = block_format(given)
            if fits(target, self.dtype):
                yield BlockRounding(target, mode, saturation)

    def _inputs(self, rounding: BlockRounding) -> Iterator[tuple[str, Tensor]]:
        """Yield matrices whose rows are cut into blocks, and what they are."""
        target = rounding.format
        size = target.block_size
        decisive = boundary_blocks(target, self.dtype)
        for number, part in enumerate(decisive.split(64)):
            yield f"decisive blocks {64 * number} ...", part
        special = decisive[: 6 if size > 1 else 4].clone()
        special[0], special[1] = 0.0, -0.0
        special[2, -1], special[3, 0] = math.nan, -math.inf
        if size > 1:
            special[4, :-1], special[5, 1:] = 0.0, -0.0
        yield "blocks of zeros, with NaN and with infinity", special
        source = torch.Generator().manual_seed(SEED)
        shape = (4, 2 * size + size // 2)
        exponents = torch.randint(-20, 21, (*shape[:1], 1), generator=source)
        x = torch.randn(shape, generator=source, dtype=torch.float64)
        yield "rows with a tail", torch.ldexp(x, exponents).to(self.dtype)


def _exact(x: Tensor, rounding: BlockRounding) -> tuple[list[list[ExactBlock]], Real]:
    """Return what the blocks of every row become, and the scale of the tensor."""
    size = rounding.format.block_size
    rows = [
        [row[first : first + size] for first in range(0, len(row), size)]
        for row in x.tolist()
    ]
    finite = [
        number
        for block in itertools.chain(*rows)
        if all(map(math.isfinite, block))
        for number in block
    ]
    scale = exact_tensor_scale(finite, rounding.format)
    exact = [
        [exact_block_round(block, rounding, tensor_scale=scale) for block in row]
        for row in rows
    ]
    return exact, scale


class BlockRoundingSuite(_BlockSuite):
    """Tests of a kernel that rounds the rows of a matrix to a block format.

    Override `round`. Blocks have scales at both ends of their range and where the
    rule takes another one, elements at ties and their neighbours; zeros, infinities,
    NaN, and rows that end within a block.

    Example:
        >>> class TestOurs(BlockRoundingSuite):
        ...     formats = ("mxfp4",)
        ...
        ...     def round(self, x, rounding):
        ...         return lowprec.round(x, rounding)
        >>> import lowprec
        >>> TestOurs().test_blocks()

    References:
        OCP Microscaling Formats 1.0, section 6.3.
    """

    def round(self, x: Tensor, rounding: BlockRounding) -> Tensor:
        """Round with the kernel under test.

        Args:
            x: [M, K] tensor of ``dtype``; blocks run along its rows, the last one of a
                row may be shorter.
            rounding: to a format and by a mode of the class.

        Returns:
            Tensor of the same shape and dtype: the values q s (and t).
        """
        raise NotImplementedError("a BlockRoundingSuite needs round(self, x, rounding)")

    def test_blocks(self) -> None:
        """Decisive blocks, special values and tails are rounded right."""
        for rounding in self.roundings():
            for what, x in self._inputs(rounding):
                before = x.clone()
                exact, _ = _exact(x, rounding)
                values = [v for row in exact for block in row for v in block.values]
                wanted = as_tensor(values, self.dtype).view(x.shape)
                actual = self.round(x, rounding)
                compare(actual, wanted, f"{rounding!r}, {what}")
                compare(x, before, f"{rounding!r} changed its operand")

    def test_empty(self) -> None:
        """Empty tensors stay empty."""
        for rounding, shape in itertools.product(self.roundings(), ((0, 5), (3, 0))):
            empty = torch.empty(shape, dtype=self.dtype)
            compare(self.round(empty, rounding), empty, repr(rounding))


class BlockCodingSuite(_BlockSuite):
    """Tests of a kernel that turns the rows of a matrix into codes and back.

    Override `encode` and `decode`.

    Example:
        >>> class TestOurs(BlockCodingSuite):
        ...     formats = ("mxfp4",)
        ...
        ...     def encode(self, x, rounding):
        ...         return lowprec.encode_blocks(x, rounding)
        ...
        ...     def decode(self, blocks, format):
        ...         return lowprec.decode_blocks(blocks, format, dtype=self.dtype)
        >>> import lowprec
        >>> TestOurs().test_codes()

    References:
        OCP Microscaling Formats 1.0, sections 5 and 6.
    """

    def encode(self, x: Tensor, rounding: BlockRounding) -> BlockCodes:
        """Encode with the kernel under test.

        Args:
            x: [M, K] tensor of ``dtype``; blocks run along its rows.
            rounding: to a format and by a mode of the class.

        Returns:
            int64 codes of the elements [M, K], of the scales [M, blocks of a row], and
            the scale of the tensor, 0-d float64, or None.
        """
        raise NotImplementedError("a BlockCodingSuite needs encode(self, x, rounding)")

    def decode(self, blocks: BlockCodes, format: BlockFormat) -> Tensor:
        """Decode with the kernel under test.

        Args:
            blocks: as `encode` returns them.
            format: one of ``formats``.

        Returns:
            Tensor [M, K] of ``dtype``: the values q s (and t).
        """
        raise NotImplementedError(
            "a BlockCodingSuite needs decode(self, blocks, format)"
        )

    def _cases(self) -> Iterator[tuple[str, BlockRounding, Tensor, BlockCodes, Tensor]]:
        """Yield inputs with their codes and values."""
        for rounding in self.roundings():
            for what, x in self._inputs(rounding):
                exact, scale = _exact(x, rounding)
                codes = exact_codes(exact, scale, rounding.format)
                values = [v for row in exact for block in row for v in block.values]
                y = as_tensor(values, self.dtype).view(x.shape)
                yield f"{rounding!r}, {what}", rounding, x, codes, y

    def test_codes(self) -> None:
        """Elements and scales have the codes that denote them."""
        for what, rounding, x, wanted, _ in self._cases():
            actual = self.encode(x, rounding)
            pairs = zip(actual, wanted, wanted._fields, strict=True)
            for got, expected, name in pairs:
                if got is None or expected is None:
                    same = got is expected
                else:
                    same = torch.equal(got, expected)
                if not same:
                    raise AssertionError(f"{what}: {name} {got} are not {expected}")

    def test_values_of_codes(self) -> None:
        """Codes are decoded to what was rounded."""
        for what, rounding, _, codes, wanted in self._cases():
            compare(self.decode(codes, rounding.format), wanted, what)


def exact_codes(
    rows: Sequence[Sequence[ExactBlock]], tensor_scale: Real, format: BlockFormat
) -> BlockCodes:
    """Return the codes of blocks that `exact_block_round` rounded."""
    elements = [
        [format.element.encode(q) for block in row for q in block.elements]
        for row in rows
    ]
    scales = [[scale_code(block.scale, format) for block in row] for row in rows]
    second = None
    if format.tensor_scale is not None:
        second = torch.tensor(float(tensor_scale), dtype=torch.float64)
    return BlockCodes(torch.tensor(elements), torch.tensor(scales), second)


def scale_code(scale: Real, format: BlockFormat) -> int:
    """Return the code of a block's scale: k + bias of 2^k, all ones of NaN."""
    kind = format.scale
    if not isinstance(kind, SharedExponent):
        return int(kind.encode(scale))
    if math.isnan(scale):
        return (1 << kind.bits) - 1
    power = Fraction(scale)
    return power.numerator.bit_length() - power.denominator.bit_length() + kind.bias
