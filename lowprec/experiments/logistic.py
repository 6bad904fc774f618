"""Multinomial logistic regression by normalized gradient descent in low precision.

The paper's experiment: train in a chosen number format with a chosen accumulator,
measure the errors r_k and s_k at every step, set them beside what theory predicts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import theory
from ..measure import Ledger, NormalizedTrace
from ..optim import normalized_direction, normalized_sgd_step, rounded_step_size
from ..random import split_seed
from ..rounding import Accumulator, Rounding, as_accumulator, as_rounding
from . import data as datasets
from . import growth, multinomial
from .low_precision_gradient import GradientPipeline

__all__ = ["MODES", "LogisticConfig", "LogisticResult", "Problem", "problem", "run"]


@dataclass(frozen=True, kw_only=True)
class LogisticConfig:
    """What one run computes in: data, formats, step size.

    Args:
        data: ``"digits"``, ``"digits-full"``, ``"S1"``, ``"mnist"`` or
            ``"mnist-full"``.
        data_dir: directory of the MNIST IDX files.
        samples: number of samples; S1 needs it, the others take their first ones.
        data_seed: seed of S1.
        gradient: rounding of the gradient's operands and stages, None for float64.
        accumulator: of the inner products, None for float64.
        update: rounding of the weight update, None for float64.
        two_step: whether eta times the direction is rounded before the subtraction.
        step_size: eta; rounded to the update format and used so everywhere.
        iterations: K.
        penalty: l2 factor lam of the objective.
        seed: of stochastic roundings.
    """

    data: str = "digits"
    data_dir: str | None = None
    samples: int | None = None
    data_seed: int = 1
    gradient: Rounding | None = None
    accumulator: Accumulator | None = None
    update: Rounding | None = None
    two_step: bool = False
    step_size: float = 0.125
    iterations: int = 600
    penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Normalise shorthands and check ranges."""
        for name in ("gradient", "update"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_rounding(value))
        if self.accumulator is not None:
            object.__setattr__(self, "accumulator", as_accumulator(self.accumulator))
        if not (self.step_size > 0 and self.step_size < float("inf")):
            raise ValueError(
                f"step size must be positive and finite, got {self.step_size}"
            )
        if self.iterations < 1:
            raise ValueError(f"iterations must be 1 or more, got {self.iterations}")
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(
                f"penalty must be finite and 0 or more, got {self.penalty}"
            )
        self._probe()

    def _probe(self) -> None:
        """Meet what the kernels refuse before anything is computed or written."""
        number, seed = torch.ones(1, 1, dtype=torch.float64), torch.tensor(0)
        pipeline = GradientPipeline(self.gradient, self.accumulator, self.penalty)
        pipeline(number, number, number, seed)
        eta = rounded_step_size(self.step_size, self.update)
        normalized_sgd_step(number, number, eta, self.update, seed=seed)


MODES: dict[str, dict[str, Any]] = {
    "A": {},
    "B": {"gradient": "bfloat16", "accumulator": "e8m15", "update": "bfloat16"},
    "C": {"gradient": "bfloat16", "accumulator": "e8m15", "update": "binary32"},
    "D": {"gradient": "bfloat16", "accumulator": "e8m10", "update": "binary32"},
    "D7": {"gradient": "bfloat16", "accumulator": "e8m7", "update": "binary32"},
    "D5": {"gradient": "bfloat16", "accumulator": "e8m5", "update": "binary32"},
    "D4": {"gradient": "bfloat16", "accumulator": "e8m4", "update": "binary32"},
    "C50": {"gradient": "bfloat16", "accumulator": "e8m50", "update": "binary32"},
    "F": {"update": "bfloat16"},
    "Fsr": {"update": Rounding("bfloat16", "stochastic")},
    "Bsr": {
        "gradient": "bfloat16",
        "accumulator": "e8m15",
        "update": Rounding("bfloat16", "stochastic"),
    },
}


@dataclass(frozen=True)
class Problem:
    """Data with the minimiser of the objective and its growth condition.

    Args:
        dataset: features, labels and their name.
        penalty: l2 factor of the objective.
        optimum: minimiser and minimum, to float64.
        growth: p and L with f - f* <= L dist(w, W*)^p near the minimisers.
    """

    dataset: datasets.Dataset
    penalty: float
    optimum: multinomial.Optimum
    growth: theory.sgd.HolderFit

    @property
    def targets(self) -> Tensor:
        """One-hot labels."""
        labels, classes = self.dataset.labels, self.dataset.classes
        return torch.nn.functional.one_hot(labels, classes).to(torch.float64)


@dataclass(frozen=True)
class LogisticResult:
    """What a run measured, and what theory says about it.

    Args:
        config: what was run.
        problem: on which data, with which minimiser and growth condition.
        trace: every step's losses and errors.
        step_size: the eta that was used, a value of the update format.
        weights: the final weights.
    """

    config: LogisticConfig
    problem: Problem
    trace: NormalizedTrace
    step_size: float
    weights: Tensor

    @property
    def losses(self) -> Tensor:
        """f(w_k) for every step."""
        return torch.as_tensor(self.trace.ledger["loss"])

    def floor(self, window: str = "all") -> theory.sgd.Bound:
        """Return Theorem 4.3's level with the second moments of this run."""
        moments = self.trace.moments(window)
        return theory.sgd.stochastic_floor(
            self.step_size,
            d_sigma_r2=moments.V_r,
            d_sigma_s2=moments.V_s,
            L=self.problem.growth.L,
            p=self.problem.growth.p,
            f_star=self.problem.optimum.value,
        )

    def certificate(self, window: str = "all") -> theory.sgd.Certificate:
        """Return what the run proves about itself (specification 1.11)."""
        law, optimum = self.problem.growth, self.problem.optimum
        return self.trace.certificate(window, L=law.L, p=law.p, f_star=optimum.value)

    def worst_case(self) -> theory.sgd.Bound:
        """Return Theorem 4.2's bound with the largest errors of this run."""
        moments, optimum = self.trace.moments(), self.problem.optimum
        return theory.sgd.bound_running_min(
            self.step_size,
            moments.R,
            moments.S,
            float(optimum.weights.norm()),
            L=self.problem.growth.L,
            p=self.problem.growth.p,
            K=self.config.iterations,
            f_star=optimum.value,
        )

    def summary(self) -> dict[str, Any]:
        """Return the numbers people ask for, as plain Python values."""
        f_star = self.problem.optimum.value
        gaps = self.losses - f_star
        tail = gaps[len(gaps) // 2 :]
        moments, late = self.trace.moments(), self.trace.moments("second_half")
        floor, certificate = self.floor(), self.certificate()
        return {
            "f_star": f_star,
            "distance_to_optimum_at_start": float(self.problem.optimum.weights.norm()),
            "L": self.problem.growth.L,
            "p": self.problem.growth.p,
            "step_size": self.step_size,
            "final_gap": float(gaps[-1]),
            "smallest_gap": float(gaps.min()),
            "tail_mean_gap": float(tail.mean()),
            "V_r": moments.V_r,
            "V_s": moments.V_s,
            "V_r_tail": late.V_r,
            "V_s_tail": late.V_s,
            "r_bias_tail": late.r_bias,
            "s_bias_tail": late.s_bias,
            "largest_r": moments.R,
            "largest_s": moments.S,
            "stagnation_tail": late.stagnation,
            "Gamma_s": float(floor.gamma),
            "stochastic_bound_gap": float(floor) - f_star,
            "stochastic_bound_holds": bool(gaps.min() <= float(floor) - f_star),
            "worst_case_gap": float(self.worst_case()) - f_star,
            "worst_case_vacuous": bool(self.worst_case().vacuous),
            "certificate_gap": certificate.bound - f_star,
            "certificate_holds": bool(certificate.holds),
            "certificate_residual": certificate.residual,
            "theorem_4_3_applies": certificate.stochastic_bound_applies,
        }


def problem(config: LogisticConfig) -> Problem:
    """Load the data, find the minimiser, and fit the growth condition around it.

    Args:
        config: names the data and the penalty.

    Returns:
        The problem; p = 2 and the smallest L that holds on the default radii.

    Raises:
        ValueError: if the data are separable and the penalty is zero.
    """
    dataset = datasets.load(
        config.data,
        data_dir=config.data_dir,
        samples=config.samples,
        seed=config.data_seed,
    )
    objective = multinomial.Objective(
        dataset.features, dataset.labels, dataset.classes, config.penalty
    )
    optimum = multinomial.minimise(objective)
    modulus = growth.measure(objective, optimum)
    fit = theory.sgd.holder_fit(modulus.rho, modulus.omega)
    return Problem(dataset, config.penalty, optimum, fit)


def run(
    config: LogisticConfig,
    *,
    ledger: Ledger | None = None,
    advance: Callable[[], object] = lambda: None,
    setting: Problem | None = None,
) -> LogisticResult:
    """Train by normalized gradient descent and measure every step.

    w_{k+1} = fl_update(w_k - eta fl(g/||g||)), g the low-precision gradient at w_k,
    from w_0 = 0.

    Args:
        config: formats, data, step size.
        ledger: where records go; None keeps them in memory.
        advance: called after every step, for progress bars.
        setting: the problem, if it is known already.

    Returns:
        Measurements and what theory says about them.

    Raises:
        ValueError: if the data are separable without a penalty.

    References:
        Cacciola et al., section 5.2; specification sections 4 and 5.2.
    """
    setting = problem(config) if setting is None else setting
    dataset, optimum = setting.dataset, setting.optimum
    objective = multinomial.Objective(
        dataset.features, dataset.labels, dataset.classes, config.penalty
    )
    pipeline = GradientPipeline(config.gradient, config.accumulator, config.penalty)
    eta = rounded_step_size(config.step_size, config.update)
    classes = dataset.classes
    trace = NormalizedTrace(
        optimum.weights,
        ledger=ledger,
        steps=config.iterations,
        distance_projection=lambda w: multinomial.remove_class_mean(
            w.reshape(-1, classes)
        ),
    )
    weights = torch.zeros_like(optimum.weights)
    targets = setting.targets
    seeds = split_seed(torch.tensor(config.seed), 3 * config.iterations)
    for step in range(config.iterations):
        ours, direct, store = seeds[3 * step : 3 * step + 3]
        gradient = pipeline(dataset.features, targets, weights, ours)
        direction = normalized_direction(gradient, config.gradient, seed=direct)
        following = normalized_sgd_step(
            weights,
            direction,
            eta,
            config.update,
            update="two_step" if config.two_step else "fused",
            seed=store,
        )
        trace.record(
            step,
            weights,
            direction,
            objective.gradient(weights),
            following,
            eta,
            gradient=gradient,
            loss=objective.value(weights),
        )
        weights = following
        advance()
    return LogisticResult(config, setting, trace, eta, weights)
