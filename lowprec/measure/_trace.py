"""Measured errors of normalised gradient descent, and what theory says about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..theory.sgd import Certificate, CrossTerms, certificate
from ._ledger import Ledger

# A vector of R^d: one tensor, or the tensors of a model in a fixed order.
Vector: TypeAlias = Tensor | Sequence[Tensor]
Window: TypeAlias = str | slice

CROSS_TERMS = tuple(f"cross_{name}" for name in CrossTerms._fields)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of the measured errors over a window of steps; about zero.

    Args:
        steps: number of steps.
        eta: mean step size.
        V_r: mean of ||r_k||^2 (d sigma_r^2 in the theory).
        V_s: mean of ||s_k||^2 (d sigma_s^2).
        R: largest ||r_k||.
        S: largest ||s_k|| plus largest error of the projection.
        r_bias: ||mean r_k|| / sqrt(V_r); near 1 if the errors do not average out. NaN
            if the window's vectors were not summed.
        s_bias: the same for s_k.
        stagnation: mean share of coordinates that did not move.
        zero_directions: steps whose low-precision direction was zero although the
            exact one was not.

    Example:
        >>> trace = NormalizedTrace()
        >>> w, u = torch.tensor([1.5]), torch.tensor([1.0])
        >>> _ = trace.record(0, w, u, u, w, 2**-9)
        >>> trace.moments().s_bias  # a stagnating update: s_k = eta u_k
        1.0
    """

    steps: int
    eta: float
    V_r: float
    V_s: float
    R: float
    S: float
    r_bias: float
    s_bias: float
    stagnation: float
    zero_directions: int


class NormalizedTrace:
    r"""Errors r_k and s_k of normalised gradient descent, step by step.

    .. math::
        w_{k+1} = P_\Omega\bigl(w_k - \eta_k (\hat g_k + r_k) + s_k\bigr), \qquad
        r_k = \hat u_k - \hat g_k, \quad s_k = z_k - (w_k - \eta_k \hat u_k)

    with the exact unit direction g_k, the direction u_k that was used, and the rounded
    step z_k before the projection.

    Contract:
        All differences are computed in float64, from the stored values; they are exact
        for formats as narrow as the theory is for. Nothing given is changed. An exact
        gradient of zero has direction zero. V and bias are moments about zero, not
        variances.

    Args:
        optimum: w*, one minimiser; with it distances, phi_k and the cross terms are
            recorded.
        ledger: where records go; None makes one in memory.
        steps: planned number of steps; the second half of the run starts at half of
            it, and is needed for the bias of that half only.
        distance_projection: applied to w_k - w* before its norm is recorded as
            ``distance``, for example to remove the class mean of softmax weights. The
            certificate uses the distance to the fixed w* in any case.

    Example:
        >>> trace = NormalizedTrace(optimum=torch.tensor([0.0]))
        >>> w, u = torch.tensor([1.5]), torch.tensor([1.0])
        >>> for k in range(8):
        ...     _ = trace.record(k, w, u, u, w, 2**-9)
        >>> trace.certificate().stochastic_bound_applies  # nearest rounding stagnates
        False

    References:
        Cacciola et al., sections 3.2, 4 and 5.
    """

    def __init__(
        self,
        optimum: Vector | None = None,
        *,
        ledger: Ledger | None = None,
        steps: int | None = None,
        distance_projection: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Start with no steps."""
        self.ledger = Ledger() if ledger is None else ledger
        self._optimum = None if optimum is None else _flat(optimum)
        self._project = distance_projection
        self._half = None if steps is None else steps // 2
        self._steps = 0
        self._sums: dict[str, Tensor] = {}
        self._first_half: dict[str, Tensor] = {}
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        """Return the number of recorded steps."""
        return len(self._rows)

    def record(
        self,
        step: int,
        weights: Vector,
        direction: Vector,
        exact_gradient: Vector,
        next_weights: Vector,
        eta: float,
        *,
        unprojected: Vector | None = None,
        projected: Vector | None = None,
        gradient: Vector | None = None,
        loss: float | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Measure one step.

        Args:
            step: its number.
            weights: stored w_k.
            direction: u_k as it was used (rounded if it was).
            exact_gradient: g_k at the stored w_k, in float64; any length.
            next_weights: stored w_{k+1}.
            eta: step size as it was used (rounded if it was).
            unprojected: z_k, the rounded step before the projection; None means that
                there was no projection.
            projected: P(z_k) in float64, for the rounding error of the projection;
                None means that it had none, as for boxes.
            gradient: low-precision gradient before normalisation, for its relative
                error.
            loss: f(w_k).
            **more: further scalars of the record.

        Returns:
            The record.

        Raises:
            ValueError: if the shapes do not match, a gradient is not finite, or
                ``more`` has a name that is measured.
        """
        w, used, following = _flat(weights), _flat(direction), _flat(next_weights)
        exact = _flat(exact_gradient)
        reached = following if unprojected is None else _flat(unprojected)
        target = following if projected is None else _flat(projected)
        for name, vector in {
            "direction": used,
            "exact_gradient": exact,
            "next_weights": following,
            "unprojected": reached,
            "projected": target,
            "optimum": w if self._optimum is None else self._optimum,
        }.items():
            if vector.shape != w.shape:
                raise ValueError(
                    f"{name} must have as many elements as weights, {w.numel()}, got "
                    f"{vector.numel()}"
                )
        if not torch.isfinite(exact).all():
            raise ValueError("exact_gradient must be finite: it has NaN or infinity")
        unit = _unit(exact)
        r, s = used - unit, reached - (w - eta * used)
        row: dict[str, Any] = {
            "step": step,
            "eta": float(eta),
            "r_norm": _norm(r),
            "s_norm": _norm(s),
            "projection_error": _norm(following - target),
            "stagnation": (following == w).double().mean().item(),
            "zero_direction": bool((used == 0).all() and (unit != 0).any()),
            "gradient_norm": _norm(exact),
            "direction2": _dot(unit, unit),
        }
        if gradient is not None and row["gradient_norm"] > 0:
            error = _norm(_flat(gradient) - exact)
            row["relative_gradient_error"] = error / row["gradient_norm"]
        if loss is not None:
            row["loss"] = float(loss)
        if self._optimum is not None:
            row |= self._against(self._optimum, w, following, unit, r, s)
        if known := row.keys() & more.keys():
            raise ValueError(
                f"{', '.join(sorted(known))}: measured already, choose other names"
            )
        row |= more
        self.ledger.append(row)
        self._rows.append(row)
        self._add({"r": r, "s": s})
        return row

    def _against(
        self,
        optimum: Tensor,
        w: Tensor,
        following: Tensor,
        unit: Tensor,
        r: Tensor,
        s: Tensor,
    ) -> dict[str, float]:
        offset = w - optimum
        seen = offset if self._project is None else self._project(offset)
        cross = CrossTerms(
            _dot(unit, r), _dot(unit, s), _dot(r, s), _dot(r, offset), _dot(s, offset)
        )
        return {
            "phi": _dot(unit, offset),
            "D": _norm(offset),
            "D_next": _norm(following - optimum),
            "distance": _norm(seen),
            **dict(zip(CROSS_TERMS, cross, strict=True)),
        }

    def _add(self, vectors: dict[str, Tensor]) -> None:
        if self._steps == self._half:
            self._first_half = {name: v.clone() for name, v in self._sums.items()}
        for name, vector in vectors.items():
            known = self._sums.get(name)
            self._sums[name] = vector if known is None else known + vector
        self._steps += 1

    def moments(self, window: Window = "all") -> Moments:
        """Return moments, maxima and biases over a window of steps.

        Args:
            window: ``"all"``, ``"second_half"`` (of the planned steps if they were
                given, else of those recorded), or a slice of record numbers.

        Returns:
            The moments.

        Raises:
            ValueError: if the window is empty or unknown.
        """
        span = self._span(window)
        rows = self._rows[span]
        r, s = (np.array([row[name] for row in rows]) for name in ("r_norm", "s_norm"))
        V_r, V_s = float(np.mean(r**2)), float(np.mean(s**2))
        projection = max(row["projection_error"] for row in rows)
        return Moments(
            steps=len(rows),
            eta=float(np.mean([row["eta"] for row in rows])),
            V_r=V_r,
            V_s=V_s,
            R=float(r.max()),
            S=float(s.max()) + projection,
            r_bias=self._bias("r", span, V_r),
            s_bias=self._bias("s", span, V_s),
            stagnation=float(np.mean([row["stagnation"] for row in rows])),
            zero_directions=sum(row["zero_direction"] for row in rows),
        )

    def certificate(
        self,
        window: Window = "all",
        *,
        L: float = 1.0,
        p: float = 1.0,
        f_star: float = 0.0,
        tolerance: float = 0.5,
    ) -> Certificate:
        """Return what the run proves about itself: `lowprec.theory.sgd.certificate`.

        Args:
            window: as in `moments`; its steps must be consecutive.
            L: constant of f - f* <= L dist(w, W*)^p.
            p: order of that growth condition.
            f_star: infimum f* of the objective.
            tolerance: largest bias for which Theorem 4.3 is said to apply.

        Returns:
            The certificate; with losses if every step of the window has one.

        Raises:
            ValueError: if the trace has no optimum, or steps of the window are missing.
        """
        if self._optimum is None:
            raise ValueError(
                "a certificate needs the distance to a minimiser: NormalizedTrace("
                "optimum=...)"
            )
        rows = self._rows[self._span(window)]
        for row, following in pairwise(rows):
            if row["D_next"] != following["D"]:
                raise ValueError(
                    f"step {following['step']} does not start where step "
                    f"{row['step']} ended: record every step for a certificate"
                )
        column = {
            name: [row[name] for row in rows]
            for name in ("eta", "phi", "r_norm", "s_norm", "direction2", *CROSS_TERMS)
        }
        losses = [row.get("loss") for row in rows]
        return certificate(
            torch.tensor(column["eta"], dtype=torch.float64),
            column["phi"],
            [x**2 for x in column["r_norm"]],
            [x**2 for x in column["s_norm"]],
            CrossTerms(*(column[name] for name in CROSS_TERMS)),
            D_0=rows[0]["D"],
            D_K=rows[-1]["D_next"],
            L=L,
            p=p,
            f_star=f_star,
            f=None if any(loss is None for loss in losses) else losses,
            direction2=column["direction2"],
            tolerance=tolerance,
        )

    def _span(self, window: Window) -> slice:
        if window == "all":
            span = slice(0, len(self._rows))
        elif window == "second_half":
            half = len(self._rows) // 2 if self._half is None else self._half
            span = slice(half, len(self._rows))
        elif isinstance(window, slice):
            span = slice(*window.indices(len(self._rows)))
        else:
            raise ValueError(
                f"window must be 'all', 'second_half' or a slice, got {window!r}"
            )
        if span.step not in (None, 1) or not self._rows[span]:
            raise ValueError(
                f"the window {window!r} has no consecutive steps among the "
                f"{len(self._rows)} recorded ones"
            )
        return span

    def _bias(self, name: str, span: slice, moment: float) -> float:
        total = self._sums[name]
        if span.stop != self._steps or span.start not in (0, self._half):
            return math.nan
        if span.start > 0:
            if name not in self._first_half:
                return math.nan
            total = total - self._first_half[name]
        mean = _norm(total) / (span.stop - span.start)
        return 0.0 if moment == 0 else mean / math.sqrt(moment)


def _flat(vector: Vector) -> Tensor:
    parts = [vector] if isinstance(vector, Tensor) else list(vector)
    # cat copies, so that a caller may go on changing its tensors in place.
    return torch.cat([part.detach().to(torch.float64).reshape(-1) for part in parts])


def _unit(gradient: Tensor) -> Tensor:
    largest = gradient.abs().max() if gradient.numel() else gradient.new_zeros(())
    if largest == 0:
        return torch.zeros_like(gradient)
    _, exponent = torch.frexp(largest)
    scaled = torch.ldexp(gradient, -exponent)
    return torch.div(scaled, scaled.norm())


def _norm(x: Tensor) -> float:
    return float(x.norm())


def _dot(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum())
