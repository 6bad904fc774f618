"""Statistics of rounding errors that grow with no tensor: sums, extremes and counts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..formats import Format

# A step near n times the golden ratio spreads any number of samples evenly, and meets
# the rows and columns of a tensor alike.
_GOLDEN = (math.sqrt(5) - 1) / 2


def spread(total: int, count: int, device: torch.device | None = None) -> Tensor:
    """Return at most ``count`` different indices below ``total``, evenly spread.

    The same ones for the same numbers; no random numbers are drawn.
    """
    if count >= total:
        return torch.arange(total, device=device)
    step = max(1, round(total * _GOLDEN))
    while math.gcd(step, total) != 1:
        step += 1
    return torch.arange(count, device=device) * step % total


def unit_exponents(x: Tensor, format: Format) -> Tensor:
    """Return q of the unit in the last place 2^q, `Format.ulp`, of finite numbers."""
    normal = math.frexp(float(format.smallest_normal))[1] - 1
    lowest = math.frexp(float(format.smallest_subnormal))[1] - 1
    exponent = torch.frexp(x).exponent.to(torch.int64) - 1
    below = (exponent < normal) | (x == 0)
    return torch.where(below, lowest, exponent - (format.precision - 1))


def _scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """Return x 2^exponent; two steps, since one power might overflow."""
    half = exponent // 2
    return torch.ldexp(torch.ldexp(x, half), exponent - half)


@dataclass
class TensorStatistics:
    r"""Errors of a tensor against its exact values, over any number of calls.

    Contract:
        A call compares at most ``sample`` elements, spread evenly over the tensor and
        always the same ones for one size, so memory and time are bounded; sums, counts
        and extremes are over the compared elements. Elements that are not finite, or
        whose exact value is not, have no error and are counted.

    Args:
        elements: elements seen.
        compared: elements compared.
        measured: those of them that are finite, as is their exact value.
        signal: sum of squares of the exact values.
        noise: sum of squared errors.
        ulps: sum of the absolute errors in units in the last place (`Format.ulp` at
            the exact value) of the tensor's format; NaN where the format has none.
        max_ulps: the largest of them.
        overflow: infinity or NaN, though the exact value is finite.
        saturation: the largest finite value, though the exact one is larger.
        underflow: zero, though the exact value is not.
        subnormal: nonzero, below the smallest normal value of the format.
        nonfinite: infinity or NaN, for whatever reason.
        zeros: exact values that are zero.
        additions: additions of nonzero terms in the sums that were watched.
        swamped: those of them that changed nothing.
        exponents: number of exact values in [2^e, 2^(e+1)) by e.

    Example:
        >>> from lowprec import format, round
        >>> statistics, x = TensorStatistics(), torch.tensor([1.0, 1.0625, 500.0])
        >>> statistics.update(round(x, "e4m3fn"), x, format("e4m3fn"))
        >>> statistics.max_ulps, statistics.overflow, dict(statistics.exponents)
        (0.5, 1, {0: 2, 8: 1})
    """

    elements: int = 0
    compared: int = 0
    measured: int = 0
    signal: float = 0.0
    noise: float = 0.0
    ulps: float = 0.0
    max_ulps: float = 0.0
    overflow: int = 0
    saturation: int = 0
    underflow: int = 0
    subnormal: int = 0
    nonfinite: int = 0
    zeros: int = 0
    additions: int = 0
    swamped: int = 0
    exponents: Counter[int] = field(default_factory=Counter)

    @property
    def relative_error(self) -> float:
        """||error|| / ||exact||; infinite if only the exact norm is zero."""
        if self.signal == 0:
            return 0.0 if self.noise == 0 else math.inf
        return math.sqrt(self.noise / self.signal)

    @property
    def signal_to_noise(self) -> float:
        """10 log10(signal / noise) in decibels; infinite without noise."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def mean_ulps(self) -> float:
        """Mean absolute error in units in the last place; 0 without elements."""
        return self.ulps / self.measured if self.measured else 0.0

    def update(
        self,
        actual: Tensor,
        exact: Tensor,
        format: Format | None,
        *,
        sample: int = 1 << 16,
    ) -> None:
        """Compare a tensor with its exact values.

        Args:
            actual: values as computed; not changed.
            exact: exact values of the same shape, of any floating-point dtype.
            format: format of ``actual``; None leaves out what depends on it.
            sample: most elements to compare.

        Raises:
            ValueError: if the shapes differ.
        """
        if actual.shape != exact.shape:
            raise ValueError(
                f"actual and exact must have the same shape, got "
                f"{tuple(actual.shape)} and {tuple(exact.shape)}"
            )
        index = spread(actual.numel(), sample, actual.device)
        computed, wanted = (
            torch.take(x.detach(), index).to(torch.float64) for x in (actual, exact)
        )
        self.elements += actual.numel()
        self.compared += index.numel()
        known, finite = wanted.isfinite(), computed.isfinite()
        self.nonfinite += _count(~finite)
        self.overflow += _count(known & ~finite)
        self.underflow += _count(known & (computed == 0) & (wanted != 0))
        self.zeros += _count(wanted == 0)
        if format is not None:
            largest, size = float(format.max), computed.abs()
            beyond = (size == largest) & (wanted.abs() > largest)
            self.saturation += _count(beyond)
            tiny = (size > 0) & (size < float(format.smallest_normal))
            self.subnormal += _count(tiny)
        self._add(computed[known & finite], wanted[known & finite], format)
        nonzero = wanted[known & (wanted != 0)]
        exponents = torch.frexp(nonzero).exponent - 1
        values, counts = torch.unique(exponents, return_counts=True)
        self.exponents.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def _add(self, computed: Tensor, wanted: Tensor, format: Format | None) -> None:
        if computed.numel() == 0:
            return
        self.measured += computed.numel()
        error = (computed - wanted).abs()
        self.signal += float(wanted.square().sum())
        self.noise += float(error.square().sum())
        if format is None:
            self.ulps = self.max_ulps = math.nan
            return
        distance = _scaled(error, -unit_exponents(wanted, format))
        self.ulps += float(distance.sum())
        self.max_ulps = max(self.max_ulps, float(distance.max()))

    def count_additions(self, additions: int, swamped: int) -> None:
        """Add the additions of some sums."""
        self.additions += additions
        self.swamped += swamped

    def merge(self, other: TensorStatistics) -> None:
        """Add the statistics of other calls."""
        for name, value in vars(other).items():
            if name == "max_ulps":
                # NaN, for a tensor without units, stays.
                self.max_ulps = (
                    value if math.isnan(value) else max(self.max_ulps, value)
                )
            else:
                setattr(self, name, getattr(self, name) + value)

    def record(self) -> dict[str, float | int | str]:
        """Return the scalars of a `Ledger` record; the histogram as ``"e:n e:n"``."""
        histogram = " ".join(f"{e}:{self.exponents[e]}" for e in sorted(self.exponents))
        return {
            "elements": self.elements,
            "compared": self.compared,
            "signal_to_noise": self.signal_to_noise,
            "relative_error": self.relative_error,
            "mean_ulps": self.mean_ulps,
            "max_ulps": self.max_ulps,
            "overflow": self.overflow,
            "saturation": self.saturation,
            "underflow": self.underflow,
            "subnormal": self.subnormal,
            "nonfinite": self.nonfinite,
            "zeros": self.zeros,
            "additions": self.additions,
            "swamped": self.swamped,
            "exponents": histogram,
        }


def _count(mask: Tensor) -> int:
    return int(mask.sum())
