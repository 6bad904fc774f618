"""Data shards and the network of the SPARS-AMS experiment, for n workers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .data import raw_digits, raw_mnist

__all__ = ["Perceptron", "Shards", "shards"]

_TEST = {"digits": 400, "mnist": 10000}


@dataclass(frozen=True)
class Shards:
    """Samples of n workers, and test samples.

    Args:
        features: float32 [n, m, D], centred by the mean of the training samples.
        labels: int64 [n, m].
        test_features: float32 [t, D].
        test_labels: int64 [t].
    """

    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``size`` samples of every worker, with replacement: [n, b, D], [n, b].

        Every call draws for all workers, so that each has the same samples however
        many processes there are.
        """
        workers, samples = self.labels.shape
        chosen = torch.randint(samples, (workers, size), generator=generator)
        rows = torch.arange(workers).unsqueeze(1)
        return self.features[rows, chosen], self.labels[rows, chosen]


def shards(
    data: str, partition: str, workers: int, seed: int, data_dir: str | Path | None
) -> Shards:
    """Return the data of n workers.

    Args:
        data: ``"digits"`` or ``"mnist"``.
        partition: ``"iid"`` deals the samples out; ``"non-iid"`` sorts them by label
            first, so that a worker has one or two labels.
        workers: n.
        seed: of the permutation that chooses the test samples.
        data_dir: of the IDX files, for MNIST; None means the working directory.

    Raises:
        ImportError: if scikit-learn, which has the digits, is not installed.
        FileNotFoundError: if files are missing.
        ValueError: if there are fewer samples than workers.
    """
    pixels, labels = _loaded(data, data_dir)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    test, train = order[: _TEST[data]], order[_TEST[data] :]
    each = len(train) // workers
    if each == 0:
        raise ValueError(
            f"{workers} workers are more than the {len(train)} training samples"
        )
    if partition == "non-iid":
        train = train[labels[train].argsort(stable=True)]
    train = train[: each * workers]
    centred = pixels - pixels[train].mean(dim=0)
    return Shards(
        centred[train].reshape(workers, each, -1),
        labels[train].reshape(workers, each),
        centred[test],
        labels[test],
    )


def _loaded(data: str, data_dir: str | Path | None) -> tuple[Tensor, Tensor]:
    if data == "mnist":
        pixels, labels = raw_mnist(data_dir or ".")
        pixels = pixels / np.float32(255)
    else:
        pixels, labels = raw_digits()
        pixels = pixels / 16
    return torch.from_numpy(pixels.astype(np.float32)), torch.from_numpy(labels)


@dataclass(frozen=True)
class Perceptron:
    """A ReLU network with one hidden layer, of which a vector holds all weights.

    Args:
        inputs: D.
        hidden: width H.
        classes: C.
    """

    inputs: int
    hidden: int
    classes: int = 10

    @property
    def size(self) -> int:
        """Number of weights d."""
        return sum(rows * (columns + 1) for rows, columns in self._shapes)

    @property
    def _shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.hidden, self.inputs), (self.classes, self.hidden)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Return weights of variance 1/fan_in and biases of zero, [d]."""
        parts = []
        for rows, columns in self._shapes:
            weight = torch.randn(rows * columns, generator=generator)
            parts += [weight / columns**0.5, torch.zeros(rows)]
        return torch.cat(parts)

    def logits(self, weights: Tensor, x: Tensor) -> Tensor:
        """Return [n, b, C] for weights [n, d] and inputs [n, b, D]."""
        for index, (rows, columns) in enumerate(self._shapes):
            matrix, bias, weights = weights.split(
                [rows * columns, rows, weights.shape[1] - rows * (columns + 1)], dim=1
            )
            matrix = matrix.view(-1, rows, columns).transpose(1, 2)
            x = torch.baddbmm(bias.unsqueeze(1), x.relu() if index else x, matrix)
        return x

    def gradients(self, weights: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Return every worker's gradient of its mean cross-entropy.

        Args:
            weights: [d], the same for all workers.
            x: [n, b, D].
            labels: [n, b].

        Returns:
            [n, d].
        """
        own = weights.detach().expand(len(x), -1).clone().requires_grad_()
        with torch.enable_grad():
            logits = self.logits(own, x).flatten(0, 1)
            losses = functional.cross_entropy(logits, labels.flatten(), reduction="sum")
            (gradient,) = torch.autograd.grad(losses / labels.shape[1], own)
        return gradient

    @torch.no_grad()
    def accuracy(self, weights: Tensor, x: Tensor, labels: Tensor) -> float:
        """Return the share of samples [t, D] that are classified rightly."""
        found = self.logits(weights.unsqueeze(0), x.unsqueeze(0))[0].argmax(dim=1)
        return float((found == labels).double().mean())

    @torch.no_grad()
    def loss(self, weights: Tensor, x: Tensor, labels: Tensor) -> float:
        """Return the mean cross-entropy of samples [t, D]."""
        logits = self.logits(weights.unsqueeze(0), x.unsqueeze(0))[0]
        return float(functional.cross_entropy(logits, labels))
