"""ResNet-18 with binary weights on CIFAR-10, also reduced (Table 3)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..formats import Levels
from ..optim import LinearLambda, reestimated_batch_norm, split_params
from . import qat_results
from .output import RunDirectory
from .qat_images import Cifar, augmented, read, standardized
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
from .qat_resnet import ResNet18
from .qat_training import Metrics, Task, epoch_generator, train
from .resumable import Parts

__all__ = [
    "METHODS",
    "QatCifarConfig",
    "add_arguments",
    "config_from_arguments",
    "run",
    "run_and_save",
    "steps",
]

_PUBLISHED_EPOCHS = 150
_PUBLISHED_STEPS = 500  # in an epoch
_ANNEALED_FROM = 90
_HALVINGS = (20, 40)
_EVALUATED = 500  # images at once

METHODS: dict[str, AbstractMethod] = {
    "full-precision": FullPrecision(lr=0.06),
    "binary-connect": Binary(lr=0.06),
    # The report is silent: the rate of its two moons, over epochs and not steps.
    "proxquant": Proximal(lr=0.06, strength=LinearLambda(1e-5, start=_ANNEALED_FROM)),
    "askew-ext": Askew(lr=0.06, remoteness="quartic_ext", start=_ANNEALED_FROM),
    "askew-def3": Askew(lr=0.06, remoteness="quadratic", start=_ANNEALED_FROM),
}


@dataclass(frozen=True, kw_only=True)
class QatCifarConfig:
    """What is compared.

    Args:
        data_dir: images in folders ``{train,test}/CLASS``, or the CIFAR-10 batches.
        methods: names from `METHODS`.
        width: channels of the first stage; 64 in the report.
        epochs: of the published 150, whose schedule is shrunk to them.
        evaluate_every: epochs between evaluations.
        seeds: number of initial weights and orders of the images.
        batch: images in a step.
        per_class: training images of each class; None means all 5000.
        test_per_class: test images of each class; None means all 1000.
        device: of torch.
    """

    data_dir: str | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    width: int = 64
    epochs: int = _PUBLISHED_EPOCHS
    evaluate_every: int = 1
    seeds: int = 1
    batch: int = 100
    per_class: int | None = None
    test_per_class: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the values."""
        check_choices("methods", self.methods, METHODS)
        numbers = (
            "width",
            "epochs",
            "evaluate_every",
            "seeds",
            "batch",
            "per_class",
            "test_per_class",
        )
        check_positive(self, *numbers)
        if self.batch < 2:
            raise ValueError("batch must be 2 or more for a normalization, got 1")


def _images(config: QatCifarConfig) -> Cifar:
    """Read the images and move them to the device."""
    if config.data_dir is None:
        raise ValueError(
            "qat-cifar needs --data-dir, the directory of the images "
            "{train,test}/CLASS/*.jpg or of the CIFAR-10 batches"
        )
    data = read(config.data_dir, config.per_class, config.test_per_class)
    if len(data.train) < config.batch:
        raise ValueError(
            f"there are {len(data.train)} training images, fewer than a batch of "
            f"{config.batch}"
        )
    return Cifar(*(tensor.to(config.device) for tensor in data))


def task(config: QatCifarConfig, data: Cifar, seed: int) -> Task:
    """Return the training of one ResNet-18; all convolutions are quantized.

    Statistics of the batch normalizations are estimated anew, over the first training
    images in the run's order, for whatever weights are evaluated: those of the
    training say nothing about quantized ones.

    Args:
        config: sizes.
        data: the images.
        seed: of the initial weights, of the order and of the augmentation.

    Returns:
        The task.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet18(config.width).to(config.device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights, others = split_params(model, skip_last=True)
    order = torch.randperm(
        len(data.train), generator=torch.Generator().manual_seed(seed)
    )
    familiar = standardized(data.train[order[:_EVALUATED]])

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = epoch_generator(seed, epoch)
        order = torch.randperm(len(data.train), generator=generator)
        count = len(order) // config.batch * config.batch
        for rows in order[:count].split(config.batch):
            x = augmented(standardized(data.train[rows]), generator)
            x = x.contiguous(memory_format=torch.channels_last)
            yield x, data.train_labels[rows]

    def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y).unsqueeze(0)

    def evaluate(model: nn.Module) -> Metrics:
        with reestimated_batch_norm(model, [familiar]):
            model.eval()
            pieces = data.test.split(_EVALUATED)
            logits = torch.cat([model(standardized(piece)) for piece in pieces])
            model.train()
        right = logits.argmax(dim=1) == data.test_labels
        loss = F.cross_entropy(logits, data.test_labels)
        return {
            "loss": loss.unsqueeze(0),
            "accuracy": right.float().mean().unsqueeze(0),
        }

    return Task(
        model=model,
        weights=weights,
        others=others,
        batches=batches,
        losses=losses,
        evaluate=evaluate,
    )


def run(
    config: QatCifarConfig,
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
        A row for each method.

    Raises:
        FileNotFoundError: as `qat_images.read`.
        ValueError: as `qat_images.read`, or without a directory.
        ImportError: as `qat_images.read`.

    References:
        Revisiting ASkewSGD, section 6; specification section 3.3.
    """
    data = _images(config)
    schedule = Schedule(
        epochs=config.epochs,
        steps_per_epoch=len(data.train) // config.batch,
        published_epochs=_PUBLISHED_EPOCHS,
        published_steps_per_epoch=_PUBLISHED_STEPS,
        halvings=_HALVINGS,
        evaluate_every=config.evaluate_every,
    )
    setting = Setting(
        levels=Levels.binary(),
        base="adam",
        schedule=schedule,
    )
    results: dict[str, list[dict[str, Any]]] = {}
    for seed, name in product(range(config.seeds), config.methods):
        method = METHODS[name]
        shared = {**asdict(config), "methods": None, "seeds": None}
        result = train(
            partial(task, config, data, seed),
            method,
            setting,
            parts.part(f"{name} {seed}", {**shared, "method": method, "seed": seed}),
            advance=advance,
        )
        results.setdefault(name, []).append(result)
    return [
        qat_results.Row({"method": name}, qat_results.merged(results[name]))
        for name in config.methods
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``lowprec run qat-cifar``."""
    texts = {
        "data_dir": "directory of the images or of the CIFAR-10 batches",
        "methods": "to compare",
        "width": "channels of the first stage; 8 without a GPU",
        "epochs": "length of the shrunk schedule",
        "evaluate_every": "epochs between evaluations",
        "seeds": "number of runs of each method",
        "batch": "images in a step",
        "per_class": "training images of each class; None means all",
        "test_per_class": "test images of each class; None means all",
        "device": "where to compute, such as cuda",
    }
    kinds = {"data_dir": str, "per_class": int, "test_per_class": int}
    add_options(parser, QatCifarConfig(), texts, {"methods": METHODS}, kinds)
    parser.add_argument("--out", default="runs/qat-cifar", help="directory of results")


def config_from_arguments(arguments: argparse.Namespace) -> QatCifarConfig:
    """Return the configuration that the options ask for.

    Raises:
        ValueError: if a value is out of range.
    """
    return from_options(QatCifarConfig, arguments)


def steps(config: QatCifarConfig) -> int:
    """Return how often a run calls ``advance``: once per epoch of every training."""
    return len(config.methods) * config.seeds * config.epochs


def run_and_save(
    config: QatCifarConfig, out: str, advance: Callable[[], object] = lambda: None
) -> str:
    """Run or continue, and write configuration, results and figure to a directory.

    Args:
        config: what is compared.
        out: directory; a killed run continues with what it finds there.
        advance: called after every epoch of every training.

    Returns:
        The table, and where the files are.

    Raises:
        OSError: if the directory cannot be written to, or images cannot be read.
        ValueError: if images are damaged or too few.
        ImportError: if matplotlib or Pillow is not installed.
    """
    with RunDirectory(out) as directory:
        parts = Parts(directory.path)
        rows = run(config, parts, advance=advance)
        text = qat_results.save(directory, config, rows)
        figure = qat_results.curves(rows, ())
        directory.write_figure("qat-cifar.png", figure)
        parts.clear()
        return text
