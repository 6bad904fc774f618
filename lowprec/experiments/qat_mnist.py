"""A perceptron with weights of one or two bits, on MNIST or on digits (Table 2)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..formats import Levels
from ..optim import LinearLambda
from . import data, qat_results
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
    "QatMnistConfig",
    "add_arguments",
    "config_from_arguments",
    "recipe",
    "run",
    "run_and_save",
    "steps",
]

METHODS = ("full-precision", "binary-connect", "proxquant", "askew-ext", "askew-def3")
_SCALES = ("none", "mean_abs")
_BITS = (1, 2)
_PUBLISHED_EPOCHS = 50
_PUBLISHED_STEPS = 1000  # in an epoch
_ANNEALED_FROM = 20
_HALVINGS = {1: (7, 15, 25, 30), 2: (7, 15, 30)}
_DIGITS_FOR_TRAINING = 1500
_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class QatMnistConfig:
    """What is compared.

    Args:
        data_dir: directory of the MNIST IDX files; None means scikit-learn's digits.
        bits: of the weights: {-1, 1} or {-2, -1, 0, 1}.
        scales: ``"none"`` and policies of `lowprec.optim.scale_of`, one per layer.
        methods: names from `METHODS`.
        epochs: of the published 50, whose schedule is shrunk to them.
        evaluate_every: epochs between evaluations.
        seeds: number of initial weights and orders of the samples.
        hidden: neurons in each of the two hidden layers.
        batch: samples in a step.
        samples: first training samples to use; None means all.
    """

    data_dir: str | None = None
    bits: tuple[int, ...] = _BITS
    scales: tuple[str, ...] = _SCALES
    methods: tuple[str, ...] = METHODS
    epochs: int = _PUBLISHED_EPOCHS
    evaluate_every: int = 1
    seeds: int = 3
    hidden: int = 512
    batch: int = 50
    samples: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_choices("bits", self.bits, _BITS)
        check_choices("scales", self.scales, _SCALES)
        check_choices("methods", self.methods, METHODS)
        check_positive(
            self, "epochs", "evaluate_every", "seeds", "hidden", "batch", "samples"
        )

    @property
    def cases(self) -> list[tuple[int, str, str]]:
        """Bits, scale and method of every row of the table."""
        return list(product(self.bits, self.scales, self.methods))


class Images(NamedTuple):
    """Training and test images as rows of float32 in [0, 1], and their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def images(config: QatMnistConfig) -> Images:
    """Load MNIST, or the digits that ship with scikit-learn.

    Args:
        config: says which, and how many.

    Returns:
        The images.

    Raises:
        FileNotFoundError: if a file of MNIST is missing.
        ValueError: if one is damaged, or there are fewer samples than asked for.
        ImportError: if scikit-learn is needed and not installed.
    """
    loaded = _digits() if config.data_dir is None else _mnist(Path(config.data_dir))
    count = len(loaded.train) if config.samples is None else config.samples
    if not config.batch <= count <= len(loaded.train):
        raise ValueError(
            f"there are {len(loaded.train)} training samples: {count} samples in "
            f"batches of {config.batch} do not fit"
        )
    return loaded._replace(
        train=loaded.train[:count], train_labels=loaded.train_labels[:count]
    )


def _mnist(directory: Path) -> Images:
    parts = []
    for name in ("train", "t10k"):
        pixels, labels = data.raw_mnist(directory, name)
        rows = torch.from_numpy(pixels.astype(np.float32))
        parts += [rows.div_(255), torch.from_numpy(labels)]
    return Images(*parts)


def _digits() -> Images:
    pixels, labels = data.raw_digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy((pixels / 16).astype(np.float32))[order]
    y = torch.from_numpy(labels)[order]
    cut = _DIGITS_FOR_TRAINING
    return Images(x[:cut], y[:cut], x[cut:], y[cut:])


def recipe(bits: int, scale: str, method: str) -> AbstractMethod:
    """Return a method with its hyper-parameters.

    Without a scale they are those of the author's runs where they are known (the
    report permutes its step sizes for 2 bits); those with a scale are ours.

    Args:
        bits: 1 or 2.
        scale: ``"none"`` or a policy.
        method: a name from `METHODS`.

    Returns:
        The method.

    References:
        Revisiting ASkewSGD, section 6; specification section 3.2.
    """
    return (_SCALED if scale != "none" else _UNSCALED[bits])[method]


def _askew(**options: Any) -> dict[str, AbstractMethod]:
    return {
        "askew-ext": Askew(remoteness="quartic_ext", start=_ANNEALED_FROM, **options),
        "askew-def3": Askew(remoteness="quadratic", start=_ANNEALED_FROM, **options),
    }


# lambda = 1e-7 (it - 20000) with 1000 steps an epoch.
_GROWTH = LinearLambda(1e-4, start=_ANNEALED_FROM)
_UNSCALED: dict[int, dict[str, AbstractMethod]] = {
    1: {
        "full-precision": FullPrecision(lr=0.06),
        "binary-connect": Binary(lr=0.0002),
        "proxquant": Proximal(lr=0.06, strength=_GROWTH),
        **_askew(lr=0.06, alpha=0.002, hull=(-1.2, 1.2)),
    },
    2: {
        "full-precision": FullPrecision(lr=0.006),
        "binary-connect": Binary(lr=0.0002),
        "proxquant": Proximal(
            lr=0.0075, strength=LinearLambda(4e-5 / _PUBLISHED_EPOCHS), scale_by_lr=True
        ),
        **_askew(lr=0.06, alpha=0.02, hull=(-2.0, 1.0)),
    },
}
_SCALED: dict[str, AbstractMethod] = {
    "full-precision": FullPrecision(lr=0.06),
    "binary-connect": Binary(lr=0.3),
    "proxquant": Proximal(lr=0.06, strength=_GROWTH),
    **_askew(lr=0.06, alpha=0.1),
}


def task(config: QatMnistConfig, loaded: Images, seed: int) -> Task:
    """Return the training of one perceptron without biases.

    Args:
        config: sizes.
        loaded: the images.
        seed: of the initial weights and of the order of the samples.

    Returns:
        The task.
    """
    sizes = [loaded.train.shape[1], config.hidden, config.hidden]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            hidden += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
        model = nn.Sequential(*hidden, nn.Linear(sizes[-1], _CLASSES, bias=False))

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(loaded.train)
        order = torch.randperm(count, generator=epoch_generator(seed, epoch))
        steps = len(order) // config.batch
        for rows in order[: steps * config.batch].split(config.batch):
            yield loaded.train[rows], loaded.train_labels[rows]

    def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y).unsqueeze(0)

    def evaluate(model: nn.Module) -> Metrics:
        logits = model(loaded.test)
        right = logits.argmax(dim=1) == loaded.test_labels
        loss = F.cross_entropy(logits, loaded.test_labels)
        return {
            "loss": loss.unsqueeze(0),
            "accuracy": right.float().mean().unsqueeze(0),
        }

    return Task(
        model=model,
        weights=list(model.parameters()),
        others=[],
        batches=batches,
        losses=losses,
        evaluate=evaluate,
    )


def run(
    config: QatMnistConfig,
    parts: Parts,
    *,
    advance: Callable[[], object] = lambda: None,
) -> list[qat_results.Row]:
    """Train all methods from all seeds, or continue a killed run.

    Args:
        config: what is compared.
        parts: where finished and half-finished trainings are kept.
        advance: called after every epoch of every training.

    Returns:
        A row for each of the config's cases.

    Raises:
        FileNotFoundError: as `images`.
        ValueError: as `images`.
    """
    loaded = images(config)
    results: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for seed, case in product(range(config.seeds), config.cases):
        bits, scale, name = case
        method = recipe(bits, scale, name)
        schedule = Schedule(
            epochs=config.epochs,
            steps_per_epoch=len(loaded.train) // config.batch,
            published_epochs=_PUBLISHED_EPOCHS,
            published_steps_per_epoch=_PUBLISHED_STEPS,
            halvings=_HALVINGS[bits],
            evaluate_every=config.evaluate_every,
        )
        setting = Setting(
            levels=Levels.binary() if bits == 1 else Levels.int_bits(bits),
            scale=None if scale == "none" else scale,
            schedule=schedule,
        )
        description = {
            "data": config.data_dir,
            "sizes": [*loaded.train.shape, config.hidden, config.batch],
            "method": method,
            "setting": setting,
            "seed": seed,
        }
        result = train(
            partial(task, config, loaded, seed),
            method,
            setting,
            parts.part(f"{bits}-bit {scale} {name} {seed}", description),
            range_scale=bits > 1 and scale == "none",
            advance=advance,
        )
        results.setdefault(case, []).append(result)
    return [
        qat_results.Row(
            {"bits": str(bits), "scale": scale, "method": name},
            qat_results.merged(results[bits, scale, name]),
        )
        for bits, scale, name in config.cases
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``lowprec run qat-mnist``."""
    texts = {
        "data_dir": "directory of MNIST's IDX files; None means scikit-learn's digits",
        "bits": "of the weights",
        "scales": "of the levels, per layer",
        "methods": "to compare",
        "epochs": "length of the shrunk schedule",
        "evaluate_every": "epochs between evaluations",
        "seeds": "number of runs of each method",
        "hidden": "neurons in each hidden layer",
        "batch": "samples in a step",
        "samples": "first training samples to use; None means all",
    }
    choices = {"bits": _BITS, "scales": _SCALES, "methods": METHODS}
    kinds = {"data_dir": str, "samples": int}
    add_options(parser, QatMnistConfig(), texts, choices, kinds)
    parser.add_argument("--out", default="runs/qat-mnist", help="directory of results")


def config_from_arguments(arguments: argparse.Namespace) -> QatMnistConfig:
    """Return the configuration that the options ask for.

    Raises:
        ValueError: if a value is out of range.
    """
    return from_options(QatMnistConfig, arguments)


def steps(config: QatMnistConfig) -> int:
    """Return how often a run calls ``advance``: once per epoch of every training."""
    return len(config.cases) * config.seeds * config.epochs


def run_and_save(
    config: QatMnistConfig, out: str, advance: Callable[[], object] = lambda: None
) -> str:
    """Run or continue, and write configuration, results and figure to a directory.

    Args:
        config: what is compared.
        out: directory; a killed run continues with what it finds there.
        advance: called after every epoch of every training.

    Returns:
        The table, and where the files are.

    Raises:
        OSError: if the directory cannot be written to, or data cannot be read.
        ValueError: if data are damaged.
        ImportError: if matplotlib or scikit-learn is needed and not installed.
    """
    with RunDirectory(out) as directory:
        parts = Parts(directory.path)
        rows = run(config, parts, advance=advance)
        text = qat_results.save(directory, config, rows)
        figure = qat_results.curves(rows, ("bits", "scale"))
        directory.write_figure("qat-mnist.png", figure)
        parts.clear()
        return text
