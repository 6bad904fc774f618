"""What rounding errors r_k and s_k do to the covariance of replicas of SGD.

Curves follow the trace of V_k as the step size decays, on logistic regression, for
formats x which numbers are rounded x how. Cases compare stationary covariances with
their prediction, on linear problems where it is exact and on the logistic one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import round as fl
from ..formats import Format
from ..measure import ReplicaRunner, scaled_covariance
from ..random import split_seed
from ..rounding import Rounding
from ..schedules import PowerSchedule
from ..theory import stationary
from .clt_rounding_cases import (
    CASES,
    CURVE_ITERATION,
    CURVES,
    Case,
    Curve,
    setting,
)
from .replica_runs import deviations, follow, origin
from .resumable import Parts

__all__ = ["CaseResult", "CurveResult", "RoundingConfig", "checkpoints", "run"]

# A step at which step sizes are as good as zero.
_LATE = 10**9
# Share of the noise below which the law of rounded gradients is left out: finding it
# for every sample takes a minute on a fine grid.
_NEGLIGIBLE = 1e-4


@dataclass(frozen=True, kw_only=True)
class RoundingConfig:
    """What is run.

    Args:
        replicas: M of the curves; cases have their own, times ``scale``.
        steps: number of steps of the curves.
        scale: factor of the replicas of all cases.
        seed: of everything random.
        parts: ``"curves"``, ``"cases"`` or both.
    """

    replicas: int = 500
    steps: int = 12_000
    scale: float = 1.0
    seed: int = 0
    parts: tuple[str, ...] = ("curves", "cases")

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("replicas", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale must be in (0, 1], got {self.scale}")
        if not self.parts or not set(self.parts) <= {"curves", "cases"}:
            raise ValueError(
                f"parts must be some of curves and cases, got {list(self.parts)}"
            )


@dataclass(frozen=True)
class CurveResult:
    """A curve as measured, beside its prediction.

    Args:
        curve: what was rounded.
        steps: numbers of the checkpoints, int64 [C].
        traces: tr V_k around x*, [C].
    """

    curve: Curve
    steps: Tensor
    traces: Tensor

    @property
    def alpha(self) -> Tensor:
        """Step sizes at the checkpoints."""
        return CURVE_ITERATION.step_size(self.steps)

    @cached_property
    def predicted(self) -> Tensor | None:
        """The trace that theory predicts at every checkpoint.

        None if parameters round to nearest.
        """
        rounding = self.curve.rounding("s")
        if rounding is not None and not rounding.stochastic:
            return None
        traces = [self._predicted(k) for k in self.steps.tolist()]
        return torch.tensor(traces, dtype=torch.float64)

    def _predicted(self, k: int) -> float:
        model = setting("logistic").model
        options: dict[str, Any] = {}
        shift = 0.0
        rounding = self.curve.rounding("r")
        if rounding is not None:
            spacing = stationary.grid_spacing(rounding, model.gradients)
            r_cov = stationary.rounding_covariance(
                model.gradients, spacing, mode=self.curve.mode
            )
            if not rounding.stochastic:
                options["r_cov"] = r_cov
                moved = stationary.rounding_shift(
                    model.hessian, model.gradients, spacing
                )
                shift = float(moved.square().sum())
            elif r_cov.trace() > _NEGLIGIBLE * model.noise.trace():
                options["gradient_delta"] = spacing
                options["samples"] = model.gradients
        if self.curve.rounding("s") is not None:
            options["delta"] = self._spacing
            options["samples"] = model.gradients
        v = stationary.predicted_covariance(
            CURVE_ITERATION, model.hessian, model.noise, k, **options
        )
        return shift + float(v.position.trace())

    @cached_property
    def _spacing(self) -> Tensor | None:
        """Spacing of the parameters at x*, None if they are not rounded."""
        rounding = self.curve.rounding("s")
        if rounding is None:
            return None
        return stationary.grid_spacing(rounding, setting("logistic").model.minimiser)

    @cached_property
    def floor(self) -> float | None:
        """The limit of `predicted` as steps go to zero, if parameters round.

        None for rounding to nearest. E|g| is that at the iterates, which a coarse grid
        keeps away from x*; `covariance_floor` with E|g| at x* is below it.
        """
        rounding = self.curve.rounding("s")
        if rounding is None or not rounding.stochastic:
            return None
        return self._predicted(_LATE)

    @cached_property
    def crossover(self) -> float | None:
        """Step size below which the floor exceeds the noise of the gradients.

        Of `crossover_step` for the root mean square of sigma and the mean spacing;
        None if parameters do not round stochastically.
        """
        rounding, spacing = self.curve.rounding("s"), self._spacing
        if rounding is None or spacing is None or not rounding.stochastic:
            return None
        sd = setting("logistic").model.noise.diagonal().mean().sqrt()
        schedule = CURVE_ITERATION.schedule
        assert isinstance(schedule, PowerSchedule)
        last = stationary.crossover_step(schedule, float(sd), float(spacing.mean()))
        return float(schedule.K * (last + schedule.offset) ** -schedule.a)

    @cached_property
    def freezing(self) -> float | None:
        """Step size below which no gradient at x* moves a parameter, to nearest.

        Replicas that are elsewhere have larger gradients and move beyond.
        """
        rounding, spacing = self.curve.rounding("s"), self._spacing
        if rounding is None or spacing is None or rounding.stochastic:
            return None
        largest = setting("logistic").model.gradients.abs().amax(0)
        gradients = self.curve.rounding("r")
        if gradients is not None:
            largest = fl(largest, gradients)
        return float((spacing / (2 * largest)).min())

    def summary(self) -> dict[str, Any]:
        """Return numbers for JSON."""
        predicted = self.predicted
        return {
            "alpha": self.alpha.tolist(),
            "measured": self.traces.tolist(),
            "predicted": None if predicted is None else predicted.tolist(),
            "floor": self.floor,
            "crossover": self.crossover,
            "freezing_at_minimum": self.freezing,
        }


@dataclass(frozen=True)
class CaseResult:
    """A case as measured, beside its prediction.

    Args:
        case: what was compared.
        traces: tr V of x and, with a velocity, of v at every place, [C, 1] or [C, 2].
    """

    case: Case
    traces: Tensor

    def predicted(self, k: int, rounded: bool = True) -> Tensor:
        """Return the predicted traces at step k; ``rounded`` False for float64."""
        case, model = self.case, setting(self.case.problem).model
        options: dict[str, Any] = {}
        if rounded and case.gradient is not None:
            # The grids of linear problems have one spacing.
            places = model.minimiser if case.linear else model.gradients
            options["gradient_delta"] = stationary.grid_spacing(case.gradient, places)
        if rounded and case.param is not None:
            options["delta"] = stationary.grid_spacing(case.param, model.minimiser)
        if options and not case.linear:  # the samples of linear problems are Gaussian
            options["samples"] = model.gradients
        if rounded and case.velocity is not None:
            zero = torch.zeros_like(model.minimiser)
            options["velocity_delta"] = stationary.grid_spacing(case.velocity, zero)
        v = stationary.predicted_covariance(
            case.iteration, model.hessian, model.noise, k, **options
        )
        blocks = [v.position] if v.velocity is None else [v.position, v.velocity]
        return torch.stack([one.trace() for one in blocks])

    @cached_property
    def ratios(self) -> Tensor:
        """Measured over predicted traces, averaged over the places, [1] or [2]."""
        predicted = torch.stack([self.predicted(k) for k in self.case.places])
        return (self.traces / predicted).mean(0)

    def summary(self) -> dict[str, Any]:
        """Return numbers for JSON; traces at the last place, measured ones smoothed."""
        predicted = self.predicted(self.case.places[-1])
        unrounded = self.predicted(self.case.places[-1], rounded=False)
        return {
            "case": self.case.name,
            "linear": self.case.linear,
            "measured": (predicted * self.ratios).tolist(),
            "predicted": predicted.tolist(),
            "ratio": self.ratios.tolist(),
            "unrounded": unrounded.tolist(),
        }


def run(
    config: RoundingConfig,
    *,
    directory: str | Path | None = None,
    advance: Callable[[], object] = lambda: None,
) -> tuple[list[CurveResult], list[CaseResult]]:
    """Run curves and cases.

    Contract:
        A run that was killed continues from its last checkpoint, bit for bit, if it has
        a directory.

    Args:
        config: what to run.
        directory: where finished and unfinished parts are kept; None keeps nothing.
        advance: called once per step.

    Returns:
        Results in the order of `CURVES` and `CASES`.
    """
    parts = None if directory is None else Parts(directory)
    seeds = iter(split_seed(torch.tensor(config.seed), len(CURVES) + len(CASES)))
    curves = [
        _curve(curve, config, seed, parts, advance)
        for curve, seed in zip(CURVES, seeds, strict=False)
        if "curves" in config.parts
    ]
    cases = [
        _case(case, config, seed, parts, advance)
        for case, seed in zip(CASES, seeds, strict=False)
        if "cases" in config.parts
    ]
    return curves, cases


def checkpoints(steps: int) -> list[int]:
    """Return about ten steps per decade, from 10 on, and the last one."""
    powers = {round(10 ** (i / 10)) for i in range(10, 80)}
    return sorted(k for k in powers | {steps} if k <= steps)


def _curve(
    curve: Curve,
    config: RoundingConfig,
    seed: Tensor,
    parts: Parts | None,
    advance: Callable[[], object],
) -> CurveResult:
    p0, param = setting("logistic"), curve.rounding("s")
    places = checkpoints(config.steps)
    runner = ReplicaRunner(
        p0.loss,
        p0.data,
        _start(p0.model.minimiser, None if param is None else param.format),
        CURVE_ITERATION,
        replicas=config.replicas,
        gradient_format=curve.rounding("r"),
        param_format=param,
        seed=seed,
        gradient=p0.gradient,
    )
    description = {
        "iteration": repr(CURVE_ITERATION),
        "formats": repr(runner.formats),
        "replicas": config.replicas,
        "seed": int(seed),
        "places": places,
        **origin(*p0.identity),
    }
    part = None if parts is None else parts.part(curve.name, description)
    measure = partial(_traces, p0.model.minimiser)
    records = follow(runner, places, measure, part, advance)
    traces = torch.tensor([one["traces"][0] for one in records], dtype=torch.float64)
    return CurveResult(curve, torch.tensor(places), traces)


def _case(
    case: Case,
    config: RoundingConfig,
    seed: Tensor,
    parts: Parts | None,
    advance: Callable[[], object],
) -> CaseResult:
    problem = setting(case.problem)
    replicas = max(1, int(case.replicas * config.scale))
    runner = ReplicaRunner(
        problem.loss,
        problem.data,
        _start(problem.model.minimiser, case.param),
        case.iteration,
        replicas=replicas,
        gradient_format=_stochastic(case.gradient),
        param_format=_stochastic(case.param),
        velocity_format=_stochastic(case.velocity),
        seed=seed,
        gradient=problem.gradient,
    )
    description = {
        "case": repr(case),
        "replicas": replicas,
        "seed": int(seed),
        **origin(*problem.identity),
    }
    part = None if parts is None else parts.part(case.name, description)
    measure = partial(_traces, problem.model.minimiser)
    records = follow(runner, case.places, measure, part, advance)
    traces = torch.tensor([one["traces"] for one in records], dtype=torch.float64)
    return CaseResult(case, traces)


def _stochastic(form: Format | None) -> Rounding | None:
    return None if form is None else Rounding(form, "stochastic")


def _start(minimiser: Tensor, form: Format | None) -> Tensor:
    """Return the value of the format that is nearest to x*."""
    return minimiser if form is None else fl(minimiser, form)


def _traces(minimiser: Tensor, runner: ReplicaRunner) -> dict[str, Any]:
    z = deviations(runner, minimiser)
    v = scaled_covariance(z, 1.0, centre=torch.zeros_like(z[0]))
    parts = v.diagonal().split(len(minimiser))
    return {"traces": [float(part.sum()) for part in parts]}
