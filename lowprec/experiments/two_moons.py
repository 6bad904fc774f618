"""Two moons with weights in {-1, 1}: the methods side by side (Table 1, Figure 5)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..formats import Levels
from ..optim import LinearLambda
from . import qat_results
from .output import RunDirectory
from .qat_methods import (
    AbstractMethod,
    Askew,
    Binary,
    FullPrecision,
    Proximal,
    Schedule,
    Setting,
)
from .qat_options import add_options, check_choices, check_positive, from_options
from .qat_training import Metrics, Task, epoch_generator, train
from .resumable import Parts

__all__ = [
    "METHODS",
    "PROTOCOLS",
    "TwoMoonsConfig",
    "TwoMoonsResult",
    "add_arguments",
    "config_from_arguments",
    "moons",
    "run",
    "run_and_save",
    "steps",
]

_PUBLISHED_EPOCHS = 60
_HALVINGS = (15, 25)
_SAMPLES, _FOR_TRAINING, _BATCH = 2500, 2000, 50
_NOISE = 0.1
_GRID = 121
_MARGIN = 0.3

_askew = partial(Askew, lr=0.5 / 3, clip=1.0)
METHODS: dict[str, AbstractMethod] = {
    "full-precision": FullPrecision(lr=0.5),
    "binary-connect": Binary(lr=0.05),
    # lambda = 2.5e-5 (it - 400) with 40 steps an epoch; the report prints 50 times it.
    "proxquant": Proximal(lr=0.05, strength=LinearLambda(1e-3, start=10)),
    "proxquant-printed": Proximal(lr=0.05, strength=LinearLambda(0.05, start=10)),
    "askew-ext": _askew(remoteness="quartic_ext"),
    "askew-def2": _askew(remoteness="quartic"),
    "askew-def3": _askew(remoteness="quadratic"),
    "askew-displacement": _askew(
        remoteness="quadratic", mode="displacement", alpha=2.0
    ),
}


class Protocol(NamedTuple):
    """What the report leaves open, and how it is filled.

    ``slope`` is that of the activation for negative numbers.
    """

    base: Any
    slope: float


PROTOCOLS = {
    # What the author's code does.
    "recovered": Protocol("adam", 0.01),
    # What the report's text says.
    "report": Protocol("sgd", 0.0),
}


@dataclass(frozen=True, kw_only=True)
class TwoMoonsConfig:
    """What is compared.

    Args:
        protocol: a name from `PROTOCOLS`.
        methods: names from `METHODS`.
        seeds: number of networks of each method, trained side by side.
        epochs: of the published 60, whose schedule is shrunk to them.
        widths: neurons in the hidden layers.
    """

    protocol: str = "recovered"
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 15
    epochs: int = _PUBLISHED_EPOCHS
    widths: tuple[int, ...] = (10, 8, 4)

    def __post_init__(self) -> None:
        """Check the values."""
        check_choices("protocol", [self.protocol], PROTOCOLS)
        check_choices("methods", self.methods, METHODS)
        check_positive(self, "seeds", "epochs", "widths")


class Moons(NamedTuple):
    """Points [n, 2] and their moons, 0 or 1, [n]."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def moons() -> Moons:
    """Return the report's 2000 training and 500 test points, float32.

    The noise is the standard deviation of scikit-learn, which the report calls a
    variance.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import make_moons
    except ImportError as error:
        raise ImportError(
            "the moons come from scikit-learn: pip install 'lowprec[cli]'"
        ) from error
    x, y = make_moons(_SAMPLES, noise=_NOISE, random_state=0)
    points, labels = torch.from_numpy(x).float(), torch.from_numpy(y).long()
    cut = _FOR_TRAINING
    return Moons(points[:cut], labels[:cut], points[cut:], labels[cut:])


class Perceptrons(nn.Module):
    """S perceptrons, whose weights [S, outputs, inputs] are multiplied at once.

    Args:
        sizes: neurons in each layer, inputs and outputs included.
        seeds: S; the initial weights of number s are a function of s.
        slope: of the leaky ReLU between layers.
    """

    def __init__(self, sizes: list[int], seeds: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        networks = [_layers(sizes, seed) for seed in range(seeds)]
        layers = list(zip(*networks, strict=True))
        self.weights = nn.ParameterList(
            [torch.stack([one.weight.detach() for one in layer]) for layer in layers]
        )
        self.biases = nn.ParameterList(
            [
                torch.stack([one.bias.detach()[None] for one in layer])
                for layer in layers
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [S, n, outputs] of points [S, n, inputs]."""
        last = len(self.weights) - 1
        for number, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(b, x, w.transpose(1, 2))
            if number < last:
                x = F.leaky_relu(x, self.slope)
        return x


def _layers(sizes: list[int], seed: int) -> list[nn.Linear]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
        for layer in layers[:-1]:
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(layers[-1].weight)
        return layers


def task(config: TwoMoonsConfig, data: Moons) -> Task:
    """Return the training of all seeds of a method."""
    sizes = [2, *config.widths, 2]
    model = Perceptrons(sizes, config.seeds, PROTOCOLS[config.protocol].slope)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(data.train)
        orders = [
            torch.randperm(count, generator=epoch_generator(seed, epoch))
            for seed in range(config.seeds)
        ]
        for rows in torch.stack(orders).split(_BATCH, dim=1):
            yield data.train[rows], data.train_labels[rows]

    def evaluate(model: nn.Module) -> Metrics:
        logits = model(data.test.expand(config.seeds, -1, -1))
        labels = data.test_labels.expand(config.seeds, -1)
        right = (logits.argmax(dim=2) == labels).float()
        return {"loss": _losses(logits, labels), "accuracy": right.mean(dim=1)}

    def probe(model: nn.Module) -> Metrics:
        x, y = torch.meshgrid(*_axes(data), indexing="xy")
        points = torch.stack([x, y], dim=2).reshape(1, -1, 2)
        logits = model(points.expand(config.seeds, -1, -1))
        share = logits.softmax(dim=2)[..., 1].reshape(config.seeds, *x.shape)
        return {"probability": share[0]}

    return Task(
        models=config.seeds,
        model=model,
        weights=list(model.weights),
        others=list(model.biases),
        batches=batches,
        losses=lambda model, x, y: _losses(model(x), y),
        evaluate=evaluate,
        probe=probe,
    )


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of each model, [S]."""
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(dim=1)


def _axes(data: Moons) -> tuple[Tensor, Tensor]:
    """Return the coordinates of the grid on which boundaries are drawn."""
    low, high = data.train.amin(dim=0) - _MARGIN, data.train.amax(dim=0) + _MARGIN
    x, y = (
        torch.linspace(a, b, _GRID)
        for a, b in zip(low.tolist(), high.tolist(), strict=True)
    )
    return x, y


class TwoMoonsResult(NamedTuple):
    """What the methods gave.

    Args:
        rows: one for each method.
        probabilities: of moon 1 on the grid, for the first seed: by method, before
            and after quantization.
        axes: coordinates of the grid.
        data: the points.
    """

    rows: list[qat_results.Row]
    probabilities: dict[str, tuple[Tensor, Tensor]]
    axes: tuple[Tensor, Tensor]
    data: Moons


def run(
    config: TwoMoonsConfig,
    parts: Parts,
    *,
    advance: Callable[[], object] = lambda: None,
) -> TwoMoonsResult:
    """Train all methods, or continue a killed run.

    Args:
        config: what is compared.
        parts: where finished and half-finished trainings are kept.
        advance: called after every epoch of every method.

    Returns:
        Metrics of every seed, and decision boundaries of the first.

    Raises:
        ImportError: if scikit-learn is not installed.

    References:
        Revisiting ASkewSGD, section 6; specification section 3.1.
    """
    data = moons()
    schedule = Schedule(
        epochs=config.epochs,
        steps_per_epoch=_FOR_TRAINING // _BATCH,
        published_epochs=_PUBLISHED_EPOCHS,
        published_steps_per_epoch=_FOR_TRAINING // _BATCH,
        halvings=_HALVINGS,
    )
    setting = Setting(
        levels=Levels.binary(),
        base=PROTOCOLS[config.protocol].base,
        schedule=schedule,
    )
    rows, probabilities = [], {}
    for name in config.methods:
        method = METHODS[name]
        shared = {**asdict(config), "methods": None}
        result = train(
            partial(task, config, data),
            method,
            setting,
            parts.part(f"{config.protocol} {name}", {**shared, "method": method}),
            advance=advance,
        )
        rows.append(qat_results.Row({"method": name}, result))
        probe = result["probe"]
        probabilities[name] = (
            probe["unquantized"]["probability"],
            probe["quantized"]["probability"],
        )
    return TwoMoonsResult(rows, probabilities, _axes(data), data)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``lowprec run two-moons``."""
    texts = {
        "protocol": "what the author's code does, or what the report's text says",
        "methods": "to compare",
        "seeds": "networks of each method",
        "epochs": "of the shrunk schedule",
        "widths": "neurons in the hidden layers",
    }
    choices = {"protocol": tuple(PROTOCOLS), "methods": tuple(METHODS)}
    add_options(parser, TwoMoonsConfig(), texts, choices, {})
    parser.add_argument("--out", default="runs/two-moons", help="directory of results")


def config_from_arguments(arguments: argparse.Namespace) -> TwoMoonsConfig:
    """Return the configuration that the options ask for.

    Raises:
        ValueError: if a value is out of range.
    """
    return from_options(TwoMoonsConfig, arguments)


def steps(config: TwoMoonsConfig) -> int:
    """Return how often a run calls ``advance``: once per epoch of every method."""
    return len(config.methods) * config.epochs


def run_and_save(
    config: TwoMoonsConfig, out: str, advance: Callable[[], object] = lambda: None
) -> str:
    """Run or continue, and write configuration, results and figure to a directory.

    Args:
        config: what is compared.
        out: directory; a killed run continues with what it finds there.
        advance: called after every epoch of every method.

    Returns:
        The table, and where the files are.

    Raises:
        OSError: if the directory cannot be written to.
        ImportError: if matplotlib or scikit-learn is not installed.
    """
    from . import two_moons_figures

    with RunDirectory(out) as directory:
        parts = Parts(directory.path)
        result = run(config, parts, advance=advance)
        text = qat_results.save(directory, config, result.rows)
        picture = two_moons_figures.boundaries(result)
        directory.write_figure("two-moons.png", picture)
        parts.clear()
        return text
