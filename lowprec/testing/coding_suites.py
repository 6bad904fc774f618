"""Conformance suites of codes: single numbers to bit patterns and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..formats import Format, Levels, Posit
from ._boundaries import boundary_inputs
from ._oracle import Real, exact_round
from ._suite import Suite, as_tensor, compare

__all__ = ["CodingSuite"]

_MOST_COMPLETE = 16


def _same(a: Real, b: Real) -> bool:
    """Whether numbers are equal, their signs if they are zero too, or both NaN."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1.0, a) == math.copysign(1.0, b)


class CodingSuite(Suite):
    """Tests of a kernel that turns values of a format into codes and back.

    Override `encode` and `decode`. Formats of at most 16 bits are tried completely.

    Example:
        >>> class TestOurs(CodingSuite):
        ...     formats = ("e2m1fn", "posit6", "ternary")
        ...
        ...     def encode(self, x, format):
        ...         return lowprec.encode(x, format)
        ...
        ...     def decode(self, codes, format):
        ...         return lowprec.decode(codes, format, dtype=self.dtype)
        >>> import lowprec
        >>> TestOurs().test_values_of_codes()
    """

    formats: ClassVar[Sequence[Format | Posit | Levels | str]] = (
        "e5m2",
        "e4m3fn",
        "e4m3fnuz",
        "int8",
    )

    def encode(self, x: Tensor, format: Format | Posit | Levels) -> Tensor:
        """Encode with the kernel under test.

        Args:
            x: 1-d tensor of ``dtype``, of values of the format.
            format: one of ``formats``.

        Returns:
            int64 tensor of codes, of the same shape.
        """
        raise NotImplementedError("a CodingSuite needs encode(self, x, format)")

    def decode(self, codes: Tensor, format: Format | Posit | Levels) -> Tensor:
        """Decode with the kernel under test.

        Args:
            codes: 1-d int64 tensor.
            format: one of ``formats``.

        Returns:
            Tensor of ``dtype`` and of the same shape.
        """
        raise NotImplementedError("a CodingSuite needs decode(self, codes, format)")

    def _known(self, target: Format | Posit | Levels) -> tuple[Tensor, list[Real]]:
        """Return codes that denote something, and what they denote."""
        last = (1 << target.bits) - 1
        codes: Sequence[int] = range(last + 1)
        if target.bits > _MOST_COMPLETE:
            values = boundary_inputs(target, self.dtype).tolist()
            found = [x for x in values if _is_value(x, target)]
            codes = sorted({0, last, *(target.encode(x) for x in found)})
        pairs = list(_decoded(codes, target))
        kept = torch.tensor([code for code, _ in pairs], dtype=torch.int64)
        return kept, [value for _, value in pairs]

    def test_values_of_codes(self) -> None:
        """Every code that denotes something is decoded to it."""
        for target in self.targets():
            codes, values = self._known(target)
            actual = self.decode(codes, target)
            compare(actual, as_tensor(values, self.dtype), f"decode, {target!r}")

    def test_codes_of_values(self) -> None:
        """Every value has the code that denotes it, and NaN one that denotes NaN."""
        for target in self.targets():
            _, meant = self._known(target)
            # Two's complement has a code that a symmetric format decodes only.
            values = [value for value in meant if _is_value(value, target)]
            x = as_tensor(values, self.dtype)
            for value, code in zip(
                values, self.encode(x, target).tolist(), strict=True
            ):
                found = dict(_decoded([code], target)).get(code)
                wanted = target.encode(value)
                right = code == wanted or math.isnan(value)
                if not right or found is None or not _same(found, value):
                    raise AssertionError(
                        f"encode, {target!r}: got code {code} of {value!r}, expected "
                        f"{wanted}"
                    )

    def test_rounded_numbers_have_codes(self) -> None:
        """Codes carry what was rounded: decode(encode(fl(x))) = fl(x)."""
        for target in self.targets():
            x = boundary_inputs(target, self.dtype)
            some = x[:: max(len(x) // 500, 1)].tolist()
            y = [exact_round(value, target) for value in some]
            rounded = as_tensor([z for z in y if _is_value(z, target)], self.dtype)
            again = self.decode(self.encode(rounded, target), target)
            compare(again, rounded, f"decode(encode(x)), {target!r}")

    def test_empty(self) -> None:
        """Empty tensors stay empty."""
        for target in self.targets():
            nothing = torch.empty(0, dtype=self.dtype)
            codes = self.encode(nothing, target)
            compare(self.decode(codes, target), nothing, repr(target))


def _is_value(x: Real, target: Format | Posit | Levels) -> bool:
    try:
        target.encode(x)
    except ValueError:
        return False
    return True


def _decoded(
    codes: Sequence[int], target: Format | Posit | Levels
) -> Iterator[tuple[int, Real]]:
    """Yield codes and values, without the codes that denote nothing."""
    for code in codes:
        try:
            yield code, target.decode(code)
        except ValueError:
            continue
