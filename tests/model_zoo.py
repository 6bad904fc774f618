"""Six small models that use torch as people do, with a batch and a loss for each.

Every model is written as it would be without lowprec: functional calls and operators
in ``forward``, tied weights, dropout, buffers. Sizes are tiny: forward and backward
take a few milliseconds in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]


class Perceptron(nn.Module):
    """Two hidden layers; the second activation is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(12, 16), nn.Tanh())
        self.middle = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.middle(self.hidden(x))))


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm and a shortcut, by a convolution if needed."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, two residual blocks, global average pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(ResidualBlock(4, 4, 1), ResidualBlock(4, 6, 2))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        y = self.blocks(y)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Encoder(nn.Module):
    """Two of torch's encoder layers over embedded tokens, mean and head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        # Nested tensors serve a fast path for padded batches only.
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(dim=1))


class CausalBlock(nn.Module):
    """Attention and a perceptron, each after a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        query, key, value = self.project(self.norm1(x)).view(shape).unbind(2)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
        )
        x = x + self.merge(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class LanguageModel(nn.Module):
    """Token and position embeddings, two causal blocks, a head tied to the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        nn.init.normal_(self.tokens.weight, std=0.3)
        self.positions = nn.Parameter(torch.randn(6, 8) * 0.1)
        self.blocks = nn.ModuleList([CausalBlock(8, 2) for _ in range(2)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class LSTMClassifier(nn.Module):
    """A bidirectional LSTM of two layers over embedded tokens; last state and head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embed(tokens))
        return self.head(outputs[:, -1])


class Autoencoder(nn.Module):
    """Strided convolutions down, transposed ones up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(4, 1, 2, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.up(self.down(x)))


@dataclass(frozen=True)
class Case:
    """A model with its data: ``case.loss(case.build(0), case.batch(0))``."""

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[torch.Generator], Batch]
    criterion: Callable[[Tensor, Tensor], Tensor]

    def build(self, seed: int) -> nn.Module:
        """Return the model in training mode; torch's random state is kept."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model()

    def batch(self, seed: int) -> Batch:
        """Return inputs and targets."""
        return self.data(torch.Generator().manual_seed(seed))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scalar loss of one batch."""
        inputs, targets = batch
        return self.criterion(model(inputs), targets)


def _labels(generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(5, (count,), generator=generator)


def _vectors(generator: torch.Generator) -> Batch:
    return torch.randn(7, 12, generator=generator), _labels(generator, 7)


def _images(generator: torch.Generator) -> Batch:
    return torch.randn(4, 3, 8, 8, generator=generator), _labels(generator, 4)


def _sequences(generator: torch.Generator) -> Batch:
    return torch.randint(11, (3, 6), generator=generator), _labels(generator, 3)


def _text(generator: torch.Generator) -> Batch:
    tokens = torch.randint(11, (3, 7), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def _pictures(generator: torch.Generator) -> Batch:
    picture = torch.rand(4, 1, 8, 8, generator=generator)
    return picture, picture


def _next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


CASES = (
    Case("mlp", Perceptron, _vectors, F.cross_entropy),
    Case("resnet", ResNet, _images, F.cross_entropy),
    Case("encoder", Encoder, _sequences, F.cross_entropy),
    Case("gpt", LanguageModel, _text, _next_token_loss),
    Case("lstm", LSTMClassifier, _sequences, F.cross_entropy),
    Case("autoencoder", Autoencoder, _pictures, F.mse_loss),
)
