"""f(w) = L ||w||^p with artificial errors: do the theorems predict the level reached?

The paper's first experiment: normalized gradient descent on a function that satisfies
the Hoelder condition with equality, uniform errors added to direction and update.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..measure import Ledger
from ..theory.sgd import (
    Bound,
    Certificate,
    CrossTerms,
    bound_running_min,
    certificate,
    stochastic_floor,
)
from .output import RunDirectory, environment

__all__ = [
    "SETTINGS",
    "QuasiConvexConfig",
    "QuasiConvexResult",
    "QuasiConvexRow",
    "add_arguments",
    "config_from_arguments",
    "run",
    "run_and_save",
]


@dataclass(frozen=True, kw_only=True)
class QuasiConvexConfig:
    """Function, errors and step sizes; every step size is run ``repetitions`` times.

    Args:
        step_sizes: the eta to compare.
        gradient_error: B_r; entries of r_k are uniform on [-B_r, B_r].
        update_error: B_s; entries of s_k are uniform on [-B_s, B_s].
        dimension: d, 2 or more.
        initial_distance: C_0 = ||w_0||.
        epochs: number of steps K.
        repetitions: independent runs of each step size.
        L: factor of f.
        p: exponent of f.
        seed: of the starting points and of all errors.
    """

    step_sizes: tuple[float, ...] = (0.01, 0.0348, 0.1, 0.343, 0.5)
    gradient_error: float = 0.1
    update_error: float = 0.1
    dimension: int = 40
    initial_distance: float = 1.0
    epochs: int = 1500
    repetitions: int = 10
    L: float = 3.0
    p: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        object.__setattr__(self, "step_sizes", tuple(map(float, self.step_sizes)))
        if not self.step_sizes:
            raise ValueError("step_sizes is empty: give one or more")
        for name, numbers in (
            ("step sizes", self.step_sizes),
            ("initial_distance", (self.initial_distance,)),
            ("L", (self.L,)),
            ("p", (self.p,)),
        ):
            if not all(0 < number < math.inf for number in numbers):
                raise ValueError(f"{name} must be positive and finite, got {numbers}")
        for name in ("gradient_error", "update_error"):
            bound = getattr(self, name)
            if not 0 <= bound < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {bound}")
        for name, least in (("dimension", 2), ("epochs", 2), ("repetitions", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} must be {least} or more, got {getattr(self, name)}"
                )

    @property
    def V_r(self) -> float:
        """E||r_k||^2 = d B_r^2/3."""
        return self.dimension * self.gradient_error**2 / 3

    @property
    def V_s(self) -> float:
        """E||s_k||^2 = d B_s^2/3."""
        return self.dimension * self.update_error**2 / 3

    @property
    def R(self) -> float:
        """Largest possible ||r_k||, B_r sqrt(d)."""
        return self.gradient_error * math.sqrt(self.dimension)

    @property
    def S(self) -> float:
        """Largest possible ||s_k||, B_s sqrt(d)."""
        return self.update_error * math.sqrt(self.dimension)

    def stochastic_bound(self, step_size: float) -> Bound:
        """Return Theorem 4.3's level L Gamma_s^p."""
        return stochastic_floor(
            step_size, d_sigma_r2=self.V_r, d_sigma_s2=self.V_s, L=self.L, p=self.p
        )

    def deterministic_bound(self, step_size: float) -> Bound:
        """Return Theorem 4.2's level for K -> infinity, which bounds inf f(w_k).

        The paper calls it Theorem 4.1 with c = C_0; without a projection it bounds the
        running minimum and not the limit inferior (erratum E11).
        """
        return bound_running_min(
            step_size, self.R, self.S, self.initial_distance, L=self.L, p=self.p
        )


_AS_PRINTED = QuasiConvexConfig()
_AS_DRAWN = QuasiConvexConfig(step_sizes=(0.01, 0.0343, 0.1, 0.5), update_error=0.01)

SETTINGS: dict[str, QuasiConvexConfig] = {
    # B_r = B_s = 0.1, what the text of section 8.1 says.
    "A1": _AS_PRINTED,
    # B_s = 0.01, with which all its statements are true (erratum E5).
    "A2": _AS_DRAWN,
    "A1-far": replace(_AS_PRINTED, initial_distance=10.0),
    "A2-far": replace(_AS_DRAWN, initial_distance=10.0),
    # ||w||^0.2 in two dimensions: the best step of Theorem 4.3, then of Theorem 4.1.
    "plane": QuasiConvexConfig(step_sizes=(0.0814, 0.518), dimension=2, L=1.0),
}


@dataclass(frozen=True, kw_only=True)
class QuasiConvexRow:
    """What one step size gave; the tail is the second half of the epochs.

    Args:
        step_size: eta.
        gamma_stochastic: Gamma_s of Theorem 4.3.
        stochastic_bound: L Gamma_s^p.
        deterministic_bound: L Gamma(C_0)^p.
        deterministic_vacuous: whether that says nothing beyond f(w_0).
        tail_distance_ratio: tail mean of ||w_k|| over Gamma_s; 1 once stationary.
        tail_mean: tail mean of f.
        tail_mean_of_maximum: tail mean of the largest f over the repetitions.
        tail_share_above: share of tail epochs at which that largest f exceeds the
            stochastic bound, which is a mean level and no ceiling (erratum E12).
        worst_running_minimum: largest min_k f(w_k) over the repetitions.
        running_minimum_holds: whether it is at most the stochastic bound.
    """

    step_size: float
    gamma_stochastic: float
    stochastic_bound: float
    deterministic_bound: float
    deterministic_vacuous: bool
    tail_distance_ratio: float
    tail_mean: float
    tail_mean_of_maximum: float
    tail_share_above: float
    worst_running_minimum: float
    running_minimum_holds: bool


@dataclass(frozen=True, eq=False)
class QuasiConvexResult:
    """Trajectories of all step sizes (E) and repetitions (N) over K epochs.

    Args:
        config: what was run.
        distance: ||w_k||, float64 [E, N, K + 1].
        gradient_error: ||r_k||, float64 [E, N, K].
        update_error: ||s_k||, float64 [E, N, K].
        cross: the five inner products of the certificate, each [E, N, K].
    """

    config: QuasiConvexConfig
    distance: Tensor
    gradient_error: Tensor
    update_error: Tensor
    cross: CrossTerms

    @property
    def values(self) -> Tensor:
        """f(w_k), [E, N, K + 1]."""
        return self.config.L * self.distance**self.config.p

    def certificate(
        self, index: int, repetition: int, window: slice = slice(None)
    ) -> Certificate:
        """Return what one run proves about itself.

        Args:
            index: of the step size.
            repetition: of that step size.
            window: consecutive steps.

        Returns:
            The certificate; here <g_k, w_k - w*> = ||w_k||.
        """
        config = self.config
        steps = range(config.epochs)[window]
        path = self.distance[index, repetition]
        phi = path[:-1][window]
        return certificate(
            config.step_sizes[index],
            phi,
            self.gradient_error[index, repetition, window] ** 2,
            self.update_error[index, repetition, window] ** 2,
            CrossTerms(*(term[index, repetition, window] for term in self.cross)),
            D_0=float(path[steps[0]]),
            D_K=float(path[steps[-1] + 1]),
            L=config.L,
            p=config.p,
            f=self.values[index, repetition, :-1][window],
            direction2=(phi > 0).to(phi.dtype),
        )

    def rows(self) -> tuple[QuasiConvexRow, ...]:
        """Return the numbers of one table row per step size."""
        return tuple(self._row(index) for index in range(len(self.config.step_sizes)))

    def _row(self, index: int) -> QuasiConvexRow:
        step_size = self.config.step_sizes[index]
        stochastic = self.config.stochastic_bound(step_size)
        deterministic = self.config.deterministic_bound(step_size)
        tail = slice(self.config.epochs // 2, None)
        values = self.values[index]
        maximum = values.amax(dim=0)[tail]
        worst = values.amin(dim=1).max()
        distance = self.distance[index, :, tail].mean()
        return QuasiConvexRow(
            step_size=step_size,
            gamma_stochastic=float(stochastic.gamma),
            stochastic_bound=float(stochastic),
            deterministic_bound=float(deterministic),
            deterministic_vacuous=bool(deterministic.vacuous),
            tail_distance_ratio=float(distance) / float(stochastic.gamma),
            tail_mean=float(values[:, tail].mean()),
            tail_mean_of_maximum=float(maximum.mean()),
            tail_share_above=float((maximum > float(stochastic)).double().mean()),
            worst_running_minimum=float(worst),
            running_minimum_holds=bool(worst <= float(stochastic)),
        )

    def summary(self) -> dict[str, Any]:
        """Return the numbers people ask for, as plain Python values."""
        rows = self.rows()
        return {
            "best_step_size": min(rows, key=lambda row: row.tail_mean).step_size,
            "rows": [asdict(row) for row in rows],
        }

    def __str__(self) -> str:
        """Return the table of `rows` as aligned text."""
        config = self.config
        lines = [
            f"f(w) = {config.L:g} ||w||^{config.p:g} in {config.dimension} dimensions, "
            f"B_r = {config.gradient_error:g}, B_s = {config.update_error:g}, "
            f"C_0 = {config.initial_distance:g}, {config.repetitions} repetitions of "
            f"{config.epochs} epochs",
            "    eta  Gamma_s  stoch. bound  det. bound  tail D/Gamma_s  tail mean f"
            "  tail max f  worst min f",
        ]
        for row in self.rows():
            mark = "v" if row.deterministic_vacuous else " "
            lines.append(
                f"{row.step_size:7g}  {row.gamma_stochastic:7.4f}  "
                f"{row.stochastic_bound:12.5f}  {row.deterministic_bound:9.4f}{mark}  "
                f"{row.tail_distance_ratio:14.4f}  {row.tail_mean:11.4f}  "
                f"{row.tail_mean_of_maximum:10.4f}  {row.worst_running_minimum:11.4f}"
            )
        if any(row.deterministic_vacuous for row in self.rows()):
            lines.append("v: vacuous, the bound says nothing beyond f(w_0)")
        return "\n".join(lines)


def run(
    config: QuasiConvexConfig,
    *,
    ledger: Ledger | None = None,
    advance: Callable[[], object] = lambda: None,
) -> QuasiConvexResult:
    r"""Run all step sizes and repetitions at once, in float64.

    .. math::
        w_{k+1} = w_k - \eta (w_k/\|w_k\| + r_k) + s_k, \qquad
        r_{ki} \sim U(-B_r, B_r), \quad s_{ki} \sim U(-B_s, B_s) .

    Contract:
        A run that hits the minimiser exactly stops there. The same config gives the
        same bits; a change of ``step_sizes`` changes the errors of all of them.

    Args:
        config: function, errors and step sizes.
        ledger: receives, for every epoch, the largest f over the repetitions of each
            step size; None records nothing.
        advance: called after every epoch, for progress bars.

    Returns:
        Trajectories and error norms.

    Example:
        >>> result = run(QuasiConvexConfig(step_sizes=(0.343,), epochs=300))
        >>> 2.4 < result.rows()[0].tail_mean < 2.6
        True

    References:
        Cacciola et al., sections 5.1, 8 and 8.1; specification section 5.1.
    """
    generator = torch.Generator().manual_seed(config.seed)
    shape = (len(config.step_sizes), config.repetitions, config.dimension)  # [E, N, d]
    eta = torch.tensor(config.step_sizes, dtype=torch.float64).reshape(-1, 1, 1)
    start = torch.randn(shape, dtype=torch.float64, generator=generator)
    w = config.initial_distance * start / start.norm(dim=2, keepdim=True)

    def uniform(bound: float) -> Tensor:
        draws = torch.rand(shape, dtype=torch.float64, generator=generator)
        return bound * (2 * draws - 1)

    distances, errors = [], []
    for epoch in range(config.epochs):
        length = w.norm(dim=2, keepdim=True)  # [E, N, 1]
        distances.append(length.squeeze(2))
        _record(ledger, config, epoch, distances[-1])
        moving = length > 0
        direction = torch.where(moving, w / length, 0.0)
        r = torch.where(moving, uniform(config.gradient_error), 0.0)
        s = torch.where(moving, uniform(config.update_error), 0.0)
        pairs = ((direction, r), (direction, s), (r, s), (r, w), (s, w))
        inner = [(a * b).sum(dim=2) for a, b in pairs]
        errors.append(torch.stack([*inner, r.norm(dim=2), s.norm(dim=2)]))
        w = w - eta * (direction + r) + s
        advance()
    distances.append(w.norm(dim=2))
    _record(ledger, config, config.epochs, distances[-1])
    *cross, gradient, update = torch.stack(errors, dim=3).unbind()  # each [E, N, K]
    return QuasiConvexResult(
        config, torch.stack(distances, dim=2), gradient, update, CrossTerms(*cross)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this experiment's options; those left out keep the setting's values.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--setting", choices=SETTINGS, default="A2", help="where all values start from"
    )
    for field in fields(QuasiConvexConfig):
        option = "--" + field.name.replace("_", "-")
        kind = type(getattr(_AS_PRINTED, field.name))
        several: dict[str, Any] = {"nargs": "+"} if kind is tuple else {}
        parser.add_argument(
            option,
            type=float if kind is tuple else kind,
            default=argparse.SUPPRESS,
            help=_HELP[field.name],
            **several,
        )
    parser.add_argument("--out", default="runs/quasi-convex", help="results go here")


_HELP = {
    "step_sizes": "step sizes eta to compare",
    "gradient_error": "B_r, bound on the entries of r",
    "update_error": "B_s, bound on the entries of s",
    "dimension": "d",
    "initial_distance": "C_0, distance of the start to the minimiser",
    "epochs": "steps of each run",
    "repetitions": "runs of each step size",
    "L": "factor of f",
    "p": "exponent of f",
    "seed": "of starting points and errors",
}


def config_from_arguments(arguments: argparse.Namespace) -> QuasiConvexConfig:
    """Return the setting that was named, with the values that were given.

    Args:
        arguments: what a parser with `add_arguments` returned.

    Returns:
        The configuration.

    Raises:
        ValueError: if a value is out of range.
    """
    names = {field.name for field in fields(QuasiConvexConfig)}
    given = {name: x for name, x in vars(arguments).items() if name in names}
    return replace(SETTINGS[arguments.setting], **given)


def steps(config: QuasiConvexConfig) -> int:
    """Return how often a run calls ``advance``: once per epoch."""
    return config.epochs


def run_and_save(
    config: QuasiConvexConfig, out: str, advance: Callable[[], object] = lambda: None
) -> str:
    """Run, and write configuration, metrics, result and figure to a directory.

    Args:
        config: what to run.
        out: directory.
        advance: called after every epoch.

    Returns:
        The table, and where the files are.

    Raises:
        OSError: if the directory cannot be written to; nothing is computed then.
        ImportError: if matplotlib is not installed.
    """
    from . import quasi_convex_figures

    with RunDirectory(out) as directory:
        directory.write_json("config.json", {**asdict(config), **environment()})
        with directory.ledger() as ledger:
            result = run(config, ledger=ledger, advance=advance)
        directory.write_json("result.json", result.summary())
        directory.write_figure("quasi-convex.png", quasi_convex_figures.traces(result))
        return f"{result}\n\nresults: {directory.path}"


def _record(
    ledger: Ledger | None, config: QuasiConvexConfig, epoch: int, distance: Tensor
) -> None:
    if ledger is None:
        return
    largest = (config.L * distance**config.p).amax(dim=1).tolist()  # [E]
    names = (f"max_f_eta_{step_size:g}" for step_size in config.step_sizes)
    ledger.append({"epoch": epoch, **dict(zip(names, largest, strict=True))})
