"""The methods that `lowprec run spars-ams` compares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..distributed import Cast, Compressor, RandomK, Sign, Threshold, TopK
from ..rounding import Rounding, as_rounding

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    Args:
        label: for people.
        make: from k, the number of entries sent, to the compressor.
        density: k/d; 1 where the compressor sends something of every entry.
        error_feedback: whether what is not sent joins the next gradient.
        error_format: rounding of the stored errors.
    """

    label: str
    make: Callable[[int], Compressor]
    density: float = 1.0
    error_feedback: bool = True
    error_format: Rounding | None = None

    def compressor(self, size: int) -> Compressor:
        """Return the compressor for gradients of ``size`` entries."""
        return self.make(self.entries(size))

    def entries(self, size: int) -> int:
        """Return k = max(1, floor(density d))."""
        return max(1, math.floor(self.density * size))

    def step_factor(self, size: int) -> float:
        """Return sqrt(d/k), by which a compensated step is longer."""
        return math.sqrt(size / self.entries(size))


def _top(density: float, feedback: bool = True, values: str | None = None) -> Method:
    wire = "" if values is None else f", {values} on the wire"
    return Method(
        label=f"Top-k {100 * density:g} %, {_feedback(feedback)}{wire}",
        make=lambda k: TopK(k=k, values=values),
        density=density,
        error_feedback=feedback,
    )


def _top_stored(density: float, format: str) -> Method:
    return Method(
        label=f"Top-k {100 * density:g} %, EF, errors in {format}",
        make=lambda k: TopK(k=k),
        density=density,
        error_format=as_rounding(format),
    )


def _random(unbiased: bool) -> Method:
    kind = "unbiased, no EF" if unbiased else "EF"
    return Method(
        label=f"random-k 1 %, {kind}",
        make=lambda k: RandomK(k=k, unbiased=unbiased),
        density=0.01,
        error_feedback=not unbiased,
    )


def _sign(feedback: bool) -> Method:
    return Method(
        label=f"scaled sign, {_feedback(feedback)}",
        make=lambda _: Sign(),
        error_feedback=feedback,
    )


def _cast(format: str) -> Method:
    return Method(
        label=f"cast to {format}, no EF",
        make=lambda _: Cast(format),
        error_feedback=False,
    )


def _feedback(feedback: bool) -> str:
    return "EF" if feedback else "no EF"


METHODS: dict[str, Method] = {
    "full": Method(
        label="full AMSGrad",
        make=lambda _: Cast("binary32"),
        error_feedback=False,
    ),
    "topk-10%": _top(0.1),
    "topk-1%": _top(0.01),
    "topk-1%-no-ef": _top(0.01, feedback=False),
    "topk-0.1%": _top(0.001),
    "topk-0.1%-no-ef": _top(0.001, feedback=False),
    "randomk-1%": _random(unbiased=False),
    "randomk-1%-unbiased": _random(unbiased=True),
    "sign": _sign(True),
    "sign-no-ef": _sign(False),
    "threshold": Method(
        label="threshold 0.5 max, EF", make=lambda _: Threshold(relative=0.5)
    ),
    "cast-e4m3": _cast("e4m3fn"),
    "cast-e5m2": _cast("e5m2"),
    "topk-1%-bfloat16": _top(0.01, values="bfloat16"),
    "topk-1%-e5m2": _top(0.01, values="e5m2"),
    "topk-1%-error-bfloat16": _top_stored(0.01, "bfloat16"),
    "topk-1%-error-e5m2": _top_stored(0.01, "e5m2"),
    "topk-0.1%-error-bfloat16": _top_stored(0.001, "bfloat16"),
    "topk-0.1%-error-e5m2": _top_stored(0.001, "e5m2"),
}
