"""Which runs show what rounding does to the covariance of SGD: curves and cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, get_args

import torch
from torch import Tensor

from ..formats import Format
from ..formats import format as as_format
from ..measure import LocalModel
from ..rounding import Rounding
from ..schedules import Iteration, PowerSchedule
from .clt_problem import logistic

__all__ = [
    "CASES",
    "CURVES",
    "CURVE_ITERATION",
    "FORMATS",
    "PLACES",
    "Case",
    "Curve",
    "Setting",
    "grid",
    "setting",
]

Mode = Literal["stochastic", "nearest"]
Where = Literal["none", "r", "s", "both"]

_MODES: dict[Mode, str] = {"stochastic": "stochastic", "nearest": "nearest_even"}
_GRID_BITS = 30


def grid(spacing: float) -> Format:
    """Return the multiples of a power of two, 2^30 of them on each side of zero."""
    exponent = torch.frexp(torch.tensor(spacing, dtype=torch.float64)).exponent.item()
    top = int(exponent) - 1 + _GRID_BITS - 1
    text = f"{spacing:g}" if spacing >= 1 else f"1/{1 / spacing:g}"
    return Format(precision=_GRID_BITS, emax=top, emin=top, name=f"multiples of {text}")


@dataclass(frozen=True)
class Curve:
    """One run with decaying steps.

    Args:
        format: of what is rounded; None for a run without rounding.
        where: gradients (``"r"``), parameters (``"s"``), both or none.
        mode: how.
    """

    format: Format | None
    where: Where
    mode: Mode

    @property
    def name(self) -> str:
        """Text that says all of it."""
        if self.format is None:
            return "float64"
        return f"{self.format.name} {self.where} {self.mode}"

    def rounding(self, which: Literal["r", "s"]) -> Rounding | None:
        """Return the rounding of gradients (r) or parameters (s)."""
        if self.format is None or self.where not in (which, "both"):
            return None
        return Rounding(self.format, _MODES[self.mode])


FORMATS = (grid(2**-1), grid(2**-4), grid(2**-7), as_format("bfloat16"))
PLACES: tuple[Where, ...] = ("r", "s", "both")
CURVES = (
    Curve(None, "none", "stochastic"),
    *(
        Curve(one, where, mode)
        for mode, where, one in itertools.product(get_args(Mode), PLACES, FORMATS)
    ),
)
CURVE_ITERATION = Iteration("sgd", PowerSchedule(1.0, 0.6))


@dataclass(frozen=True)
class Case:
    """One comparison of a measured covariance with its prediction.

    Args:
        problem: a name of `problem`.
        iteration: method and step sizes.
        replicas: M.
        places: steps at which the ratio of the traces is taken; it is averaged.
        gradient: format of gradients, all by stochastic rounding.
        param: format of parameters.
        velocity: format of velocities.
    """

    problem: str
    iteration: Iteration
    replicas: int
    places: range
    gradient: Format | None = None
    param: Format | None = None
    velocity: Format | None = None

    @property
    def name(self) -> str:
        """Text that says what differs between the cases."""
        parts = [
            self.problem,
            self.iteration.method,
            f"alpha {self.iteration.schedule}",
        ]
        for what in ("gradient", "param", "velocity"):
            form = getattr(self, what)
            if form is not None:
                parts.append(f"{what} {form.name}")
        return ", ".join(parts)

    @property
    def linear(self) -> bool:
        """Whether the prediction is that of the problem itself."""
        return self.problem != "logistic"


def _linear_cases() -> list[Case]:
    def plane(
        iteration: Iteration,
        places: range,
        x: float | None = None,
        v: float | None = None,
        g: float | None = None,
    ) -> Case:
        grids = (None if one is None else grid(one) for one in (g, x, v))
        return Case("three parameters", iteration, 8000, places, *grids)

    short, long = range(200, 601, 20), range(1000, 3001, 100)
    tenth = Iteration("sgd", 0.1)
    momentum = Iteration("momentum", 0.1, damping=1.0)
    decaying = Iteration("sgd", PowerSchedule(1.0, 0.5))
    late = range(10_000, 20_001, 500)
    return [
        plane(Iteration("sgd", 0.3), short, x=2**-2),
        plane(tenth, short, x=2**-2),
        plane(tenth, short, x=2**-4),
        plane(Iteration("sgd", 0.03), range(600, 1801, 60), x=2**-6),
        plane(tenth, short, g=2.0),
        plane(momentum, long, x=2**-5, v=2**-3),
        plane(momentum, long, x=2**-3),
        plane(momentum, long, v=2**-2),
        plane(momentum, long, x=2**-4, v=2**-4),
        *(
            Case("one parameter", decaying, 5000, late, param=grid(spacing))
            for spacing in (2**-3, 2**-5, 2**-7)
        ),
    ]


def _logistic_cases() -> list[Case]:
    fiftieth, near = Iteration("sgd", 0.02), range(1000, 4001, 150)
    p0 = partial(Case, "logistic")
    return [
        *(p0(fiftieth, 1000, near, gradient=grid(one)) for one in (4.0, 1.0, 2**-2)),
        p0(Iteration("sgd", 0.1), 1000, near, param=grid(2**-4)),
        p0(fiftieth, 1000, near, param=grid(2**-4)),
        p0(fiftieth, 1000, near, param=grid(2**-6)),
        p0(
            Iteration("sgd", 0.004),
            1000,
            range(3000, 10_001, 350),
            param=as_format("bfloat16"),
        ),
    ]


def _combined_cases() -> list[Case]:
    """Gradients and what they are added to, with steps below and above the grid."""
    tenth, places = Iteration("sgd", 0.1), range(200, 601, 20)
    momentum = Iteration("momentum", 0.1, damping=1.0)
    plane = partial(Case, "three parameters")
    return [
        plane(tenth, 8000, places, gradient=grid(2.0), param=grid(2**-2)),
        plane(tenth, 8000, places, gradient=grid(2.0), param=grid(2**-4)),
        plane(
            momentum,
            8000,
            range(1000, 3001, 100),
            gradient=grid(2.0),
            velocity=grid(2**-2),
        ),
    ]


# New ones come last: the seed of a case is that of its place.
CASES = (*_linear_cases(), *_logistic_cases(), *_combined_cases())


@dataclass(frozen=True)
class Setting:
    """A problem as the runner takes it, and what theory needs of it.

    Args:
        loss: of one sample.
        gradient: of the loss, for many parameters and as many samples.
        data: all samples.
        model: minimiser, Hessian and noise.
    """

    loss: Callable[..., Tensor]
    gradient: Callable[..., Tensor]
    data: tuple[Tensor, ...]
    model: LocalModel

    @property
    def identity(self) -> tuple[Tensor, ...]:
        """Data, minimiser and Hessian, which tell one problem from another."""
        return (*self.data, self.model.minimiser, self.model.hessian)


_LINEAR: dict[str, tuple[list[list[float]], list[list[float]]]] = {
    "one parameter": ([[1.0]], [[1.0]]),
    "three parameters": (
        [[1.0, 0.2, 0.0], [0.2, 0.6, -0.1], [0.0, -0.1, 1.6]],
        [[1.0, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]],
    ),
}
_SAMPLES = 1 << 16


@cache
def setting(problem: str) -> Setting:
    """Return a problem by name: ``"logistic"`` or one of the linear ones.

    A linear problem is min x^T A x / 2 - b^T x with normal b of mean 0; its samples are
    moved and scaled so that their mean and covariance are exact.
    """
    if problem == "logistic":
        p0 = logistic()
        return Setting(p0.loss, p0.gradient, p0.data, p0.model)
    hessian, noise = (
        torch.tensor(matrix, dtype=torch.float64) for matrix in _LINEAR[problem]
    )
    generator = torch.Generator().manual_seed(len(hessian))
    b = torch.randn(_SAMPLES, len(hessian), dtype=torch.float64, generator=generator)
    b = b - b.mean(0)
    found = torch.linalg.cholesky(b.T @ b / len(b))
    b = torch.linalg.solve_triangular(found, b.T, upper=False)
    b = (torch.linalg.cholesky(noise) @ b).T.contiguous()

    def loss(x: Tensor, sample: Tensor) -> Tensor:
        return (x * (hessian * x).sum(1)).sum() / 2 - (sample * x).sum()

    def gradient(x: Tensor, samples: Tensor) -> Tensor:
        return (x @ hessian).sub_(samples)

    zero = torch.zeros(len(hessian), dtype=torch.float64)
    model = LocalModel(minimiser=zero, hessian=hessian, noise=noise, gradients=-b)
    return Setting(loss, gradient, (b,), model)
