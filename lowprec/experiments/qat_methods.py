"""Methods of quantization-aware training, as values that build their optimizers.

Times are in epochs of the published run. A run of fewer epochs passes through the same
schedule faster by the factor ``stretch``; what draws weights to the levels is made
stronger by ``pull``, the ratio of the numbers of steps, so that its sum over the run
stays the same. Step sizes are left alone.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import nn, optim

from ..errors import NumericalWarning
from ..formats import Levels
from ..optim import (
    Annealing,
    ASkewSGD,
    BinaryConnect,
    ExponentialEpsilon,
    LinearLambda,
    ProxQuant,
    Skewed,
    largest_epsilon,
)
from .qat_options import check_positive

__all__ = [
    "AbstractMethod",
    "Askew",
    "Binary",
    "FullPrecision",
    "Proximal",
    "Schedule",
    "Setting",
]

Params: TypeAlias = Sequence[nn.Parameter]
Groups: TypeAlias = list[dict[str, Any]]
QuantizedOptimizer: TypeAlias = ASkewSGD | BinaryConnect | ProxQuant | Skewed


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, and when the step size is halved.

    Args:
        epochs: of this run.
        steps_per_epoch: of this run.
        published_epochs: of the run whose recipe is followed.
        published_steps_per_epoch: of that run.
        halvings: epochs of that run, from 0, at whose start the step size is halved.
        evaluate_every: epochs between evaluations; the end is always evaluated.
    """

    epochs: int
    steps_per_epoch: int
    published_epochs: int
    published_steps_per_epoch: int
    halvings: tuple[float, ...] = ()
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        """Check the numbers of epochs."""
        check_positive(self, "epochs", "steps_per_epoch", "evaluate_every")

    @property
    def evaluations(self) -> list[int]:
        """Numbers of epochs after which the models are evaluated."""
        every = range(self.evaluate_every, self.epochs, self.evaluate_every)
        return [*every, self.epochs]

    @property
    def stretch(self) -> float:
        """Epochs of the published run in one of this run."""
        return self.published_epochs / self.epochs

    @property
    def pull(self) -> float:
        """Steps of the published run in one of this run."""
        ratio = self.published_steps_per_epoch / self.steps_per_epoch
        return self.stretch * ratio

    def factor(self, time: float) -> float:
        """Return what the step size is multiplied by after ``time`` epochs."""
        passed = sum(self.stretch * time >= halving for halving in self.halvings)
        return float(0.5**passed)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the methods of one comparison have in common.

    Args:
        levels: of the quantized weights.
        scale: policy of `lowprec.optim.scale_of`, for each tensor; None means 1.
        base: optimizer that the methods wrap or imitate.
        schedule: length and step sizes.
    """

    levels: Levels
    scale: str | None = None
    base: Literal["sgd", "adam"] = "sgd"
    schedule: Schedule

    def groups(self, weights: Params, others: Params, **options: Any) -> Groups:
        """Return parameter groups: weights with levels, and all others without."""
        shared = {"levels": self.levels, "scale": self.scale}
        quantized = {"params": list(weights), **shared, **options}
        return [quantized, *([{"params": list(others), "levels": None}] * bool(others))]

    def optimizer(self, groups: Groups, lr: float) -> optim.Optimizer:
        """Return the base optimizer."""
        if self.base == "adam":
            return optim.Adam(groups, lr, fused=True)
        return optim.SGD(groups, lr)

    def annealing(
        self,
        optimizer: QuantizedOptimizer,
        key: str,
        schedule: Callable[[float], float],
        factor: float = 1.0,
    ) -> Annealing:
        """Return the schedule in this run's time, multiplied by ``factor``."""
        return Annealing(
            optimizer,
            key,
            lambda time: factor * schedule(self.schedule.stretch * time),
            steps_per_epoch=self.schedule.steps_per_epoch,
        )


class Trainer(NamedTuple):
    """An optimizer, and the schedule that steps after it."""

    optimizer: QuantizedOptimizer
    annealing: Annealing | None


@dataclass(frozen=True, kw_only=True)
class AbstractMethod(ABC):
    """A way to train weights that will be quantized.

    Args:
        lr: step size at the start.
    """

    lr: float

    @abstractmethod
    def build(self, weights: Params, others: Params, setting: Setting) -> Trainer:
        """Return the optimizer of these parameters, and its schedule."""


@dataclass(frozen=True, kw_only=True)
class FullPrecision(AbstractMethod):
    """The base optimizer alone; quantized only to be evaluated."""

    def build(self, weights: Params, others: Params, setting: Setting) -> Trainer:
        """Return a proximal map of strength 0, which changes nothing."""
        groups = setting.groups(weights, others)
        return Trainer(ProxQuant(setting.optimizer(groups, self.lr)), None)


@dataclass(frozen=True, kw_only=True)
class Binary(AbstractMethod):
    """BinaryConnect, deterministic; also for more than two levels.

    A scale is that of the initial weights: latent weights are clipped to the hull, so
    that a scale computed from them again would shrink from epoch to epoch.
    """

    def build(self, weights: Params, others: Params, setting: Setting) -> Trainer:
        """Return the optimizer."""
        groups = setting.groups(weights, others, scale_until=0)
        return Trainer(BinaryConnect(setting.optimizer(groups, self.lr)), None)


@dataclass(frozen=True, kw_only=True)
class Proximal(AbstractMethod):
    """ProxQuant with the map of the squared distance.

    Args:
        strength: lambda over the epochs of the published run.
        scale_by_lr: whether lambda is multiplied by the step size.
    """

    strength: LinearLambda
    scale_by_lr: bool = False

    def build(self, weights: Params, others: Params, setting: Setting) -> Trainer:
        """Return the optimizer and the growth of lambda."""
        groups = setting.groups(weights, others, scale_until=self.strength.start)
        base = setting.optimizer(groups, self.lr)
        optimizer = ProxQuant(base, prox="sq", scale_by_lr=self.scale_by_lr)
        growth = setting.annealing(
            optimizer, "lam", self.strength, setting.schedule.pull
        )
        return Trainer(optimizer, growth)


@dataclass(frozen=True, kw_only=True)
class Askew(AbstractMethod):
    """ASkewSGD, or its direction around another base.

    Epsilon shrinks from its maximum for the levels, which is the published 1 for
    {-1, 1}. Before that it is held a little above, where no weight is constrained.

    Args:
        remoteness: psi.
        alpha: rate of the published run. ``pull`` multiplies it for SGD only: Adam
            divides by the size of what it is given, skewed directions included.
        start: epoch of the published run from which epsilon shrinks.
        rate: factor of epsilon per epoch of the published run.
        free: epsilon before ``start``, as a multiple of its maximum.
        clip: M_c; None means a quarter gap a step.
        hull: bounds that weights are clamped to, in units of the levels; SGD only.
        mode: of `lowprec.optim.Skewed`; not for SGD.
    """

    remoteness: Literal["quadratic", "quartic", "quartic_ext"]
    alpha: float = 0.2
    start: float = 30.0
    rate: float = 0.88
    free: float = 1.01
    clip: float | None = None
    hull: tuple[float, float] | None = None
    mode: Literal["gradient", "bypass", "displacement"] = "gradient"

    def build(self, weights: Params, others: Params, setting: Setting) -> Trainer:
        """Return the optimizer and the annealing of epsilon."""
        groups = setting.groups(weights, others, scale_until=self.start)
        options: dict[str, Any] = {
            "remoteness": self.remoteness,
            "alpha": self.alpha,
            "epsilon": None,
            "clip": self.clip,
            "midpoint": "gradient",
        }
        optimizer: ASkewSGD | Skewed
        if setting.base == "sgd":
            options["alpha"] *= setting.schedule.pull
            optimizer = ASkewSGD(groups, self.lr, hull=self.hull, **options)
        else:
            base = setting.optimizer(groups, self.lr)
            optimizer = Skewed(base, mode=self.mode, **options)
        largest = largest_epsilon(setting.levels, self.remoteness)
        shrinking = ExponentialEpsilon(self.start, self.rate, largest)

        def epsilon(time: float) -> float:
            return shrinking(time) if time >= self.start else self.free * largest

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumericalWarning)  # free on purpose
            return Trainer(optimizer, setting.annealing(optimizer, "epsilon", epsilon))
