"""Table and figures of the central limit theorems, and their command-line options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..formats import columns
from ..measure import relative_error, royston_test, scaled_covariance
from ..schedules import InverseTimeDamping, Iteration, PowerSchedule
from ..theory import stationary
from .clt import (
    BLOCKS,
    ROWS,
    TESTED,
    VARIANTS,
    CltConfig,
    Trace,
    even_checkpoints,
    run,
)
from .clt_problem import Problem, logistic
from .output import RunDirectory, environment

__all__ = [
    "RowResult",
    "add_arguments",
    "config_from_arguments",
    "run_and_save",
    "steps",
    "table",
]

_SIGNIFICANCE = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``lowprec run clt``."""
    parser.add_argument(
        "--rows",
        nargs="+",
        default=list(ROWS),
        choices=list(ROWS),
        metavar="ROW",
        help=f"methods, of: {', '.join(ROWS)}",
    )
    parser.add_argument("--replicas", type=int, default=2000, help="M")
    parser.add_argument("--steps", type=int, default=200_000, help="number of steps")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--out",
        default="runs/clt",
        help="directory of results; a run that was killed continues from there",
    )


def config_from_arguments(arguments: argparse.Namespace) -> CltConfig:
    """Return the configuration that the options ask for.

    Raises:
        ValueError: if an option is out of range.
    """
    return CltConfig(
        rows=tuple(arguments.rows),
        replicas=arguments.replicas,
        steps=arguments.steps,
        seed=arguments.seed,
    )


def steps(config: CltConfig) -> int:
    """Return how often a run calls ``advance``: once per step of each method."""
    return config.steps * len(config.rows)


@dataclass(frozen=True)
class RowResult:
    """What one method did, beside what theory says.

    Args:
        iteration: the method.
        trace: what was measured.
        problem: on which problem.
    """

    iteration: Iteration
    trace: Trace
    problem: Problem

    @cached_property
    def limit(self) -> Tensor:
        """W*, the covariance of the limit law."""
        model, iteration = self.problem.model, self.iteration
        schedule, damping = iteration.schedule, iteration.damping
        if isinstance(damping, PowerSchedule | InverseTimeDamping):
            assert isinstance(schedule, PowerSchedule)
            return stationary.vanishing_damping_covariance(
                model.hessian, model.noise, schedule, damping
            ).matrix
        assert isinstance(schedule, PowerSchedule)
        assert damping is None or isinstance(damping, float)
        return stationary.limit_covariance(
            iteration.method,
            model.hessian,
            model.noise,
            damping=damping,
            d0=schedule.d0,
        ).matrix

    @cached_property
    def scales(self) -> Tensor:
        """What V is divided by at every checkpoint: alpha_k, or alpha_k / mu_k."""
        places = self.trace.steps
        alpha = self.iteration.step_size(places)
        damping = self.iteration.damping
        if isinstance(damping, PowerSchedule | InverseTimeDamping):
            return alpha / damping(places)
        return alpha

    @property
    def vanishing(self) -> bool:
        """Whether the damping goes to zero."""
        return isinstance(self.iteration.damping, PowerSchedule | InverseTimeDamping)

    @cached_property
    def scaled(self) -> Tensor:
        """W_k at every checkpoint, [C, d, d]."""
        return self.trace.covariance / self.scales[:, None, None]

    @cached_property
    def errors(self) -> Tensor:
        """||W_k - W*||_F / ||W*||_F at every checkpoint, [C]."""
        return torch.tensor(
            [relative_error(one, self.limit) for one in self.scaled],
            dtype=torch.float64,
        )

    @cached_property
    def linear(self) -> Tensor:
        """W_n of the same method with linear gradients from the same start, exactly."""
        model, last = self.problem.model, int(self.trace.steps[-1])
        return (
            stationary.linear_covariance(
                self.iteration,
                model.hessian,
                model.noise,
                last,
                x0=self.problem.start - model.minimiser,
            )
            / self.scales[-1]
        ).matrix

    def block_errors(self, size: int) -> Tensor:
        """Return the errors of W~ from so many replicas at the end, for all blocks."""
        blocks = self.trace.final.split(size)
        zero = torch.zeros_like(self.trace.final[0])
        errors = [
            relative_error(
                scaled_covariance(one, float(self.scales[-1]), centre=zero), self.limit
            )
            for one in blocks
            if len(one) == size
        ]
        return torch.tensor(errors, dtype=torch.float64)

    def verdicts(self, variant: str) -> tuple[Tensor, Tensor]:
        """Return the even checkpoints, and whether the test of x passes there."""
        places = self.trace.steps
        even = torch.isin(places, torch.tensor(even_checkpoints(int(places[-1]))))
        return places[even], self.trace.p_values[variant][even] > _SIGNIFICANCE

    def passes(self, variant: str) -> float:
        """Return the share of the even checkpoints at which the test of x passes."""
        return float(self.verdicts(variant)[1].to(torch.float64).mean())

    @cached_property
    def final_p_values(self) -> dict[str, float]:
        """Royston's test of Z, velocities included, after the last step."""
        z = self.trace.final[:TESTED]
        return {name: royston_test(z, name).p_value for name in VARIANTS}

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the table."""
        replicas = len(self.trace.final)
        sizes = [size for size in (*BLOCKS, replicas) if size <= replicas]
        final = self.scaled[-1]
        return {
            "trace_of_limit": float(self.limit.trace()),
            "norm_of_limit": float(torch.linalg.matrix_norm(self.limit)),
            "spectral_norm_of_limit": float(torch.linalg.matrix_norm(self.limit, 2)),
            "effective_dimension": stationary.effective_dimension(self.limit),
            "errors": {size: float(self.block_errors(size).mean()) for size in sizes},
            "sampling_floors": {
                size: stationary.sampling_floor(self.limit, size) for size in sizes
            },
            "spectral_error": relative_error(final, self.limit, 2),
            "error_of_linear_recursion": relative_error(self.linear, self.limit),
            "error_from_linear_recursion": relative_error(final, self.linear),
            "passes_sw": self.passes("sw"),
            "passes_trujillo": self.passes("trujillo"),
            "final_p_values_of_z": self.final_p_values,
            "checkpoints": {
                int(k): float(error)
                for k, error in zip(self.trace.steps, self.errors, strict=True)
            },
        }


def run_and_save(
    config: CltConfig, out: str, advance: Callable[[], object] = lambda: None
) -> str:
    """Run, write configuration, results and figures, and return the table.

    Args:
        config: what to run.
        out: directory of results, and of what a killed run continues from.
        advance: called after every step.

    Returns:
        A table for people, with the path of the results below.

    Raises:
        OSError: if ``out`` cannot be written to; nothing has been computed then.
    """
    from . import clt_figures

    with RunDirectory(out) as directory:
        problem = logistic()
        described = {**config.__dict__, "rows": list(config.rows)}
        directory.write_json("config.json", {**described, **environment()})
        traces = run(config, directory=directory.path, advance=advance, problem=problem)
        results = {
            name: RowResult(ROWS[name], trace, problem)
            for name, trace in traces.items()
        }
        summaries = {name: result.summary() for name, result in results.items()}
        directory.write_json("result.json", {"rows": summaries})
        directory.write_figure("clt-1.png", clt_figures.distributions(results))
        directory.write_figure("clt-2.png", clt_figures.convergence(results))
        return f"{table(summaries)}\n\nresults: {directory.path}"


def table(summaries: dict[str, dict[str, Any]]) -> str:
    """Return Table 1 for people: errors of the estimated covariance, by M.

    Args:
        summaries: `RowResult.summary` by name.

    Returns:
        Aligned lines.
    """
    sizes = list(next(iter(summaries.values()))["errors"])
    titles = ["||W~ - W*|| / ||W*||", *(f"M={size}" for size in sizes)]
    titles += ["linear", "rho>0", "p of Z"]
    lines = [titles]
    for name, summary in summaries.items():
        cells = [f"{summary['errors'][size]:.4g}" for size in sizes]
        shares = f"{summary['passes_sw']:.2f}/{summary['passes_trujillo']:.2f}"
        bias = f"{summary['error_of_linear_recursion']:.4f}"
        joint = "/".join(f"{p:.2f}" for p in summary["final_p_values_of_z"].values())
        lines.append([name, *cells, bias, shares, joint])
        floors = [f"{summary['sampling_floors'][size]:.4g}" for size in sizes]
        lines.append(["  sampling floor", *floors, "", "", ""])
    notes = (
        "M: mean over blocks of M replicas; linear: ||W - W*|| / ||W*|| of the exact "
        "recursion with linear gradients at the last step; rho>0: share of checkpoints "
        "at which x passes Royston's test (Shapiro-Wilk/Shapiro-Francia); p of Z: its "
        "p-value for Z = x - x*, or (x - x*, v), after the last step"
    )
    rows = columns(lines, right=range(1, len(titles)))
    return "\n".join([*rows, "", notes])
