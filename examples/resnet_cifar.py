"""A small ResNet learns a subset of CIFAR-10 in four arithmetics.

The images come from a tar archive of JPEG files `{train,test}/CLASS/NNNN.jpg` (a lossy
copy of CIFAR-10), or from a directory with the same tree; nothing is downloaded. The
model is written in plain torch: `lowprec.nn.convert_` gives it an arithmetic.

    python examples/resnet_cifar.py --data-dir ../shared/data --out runs
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from four_precisions import Problem, arguments, main
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import lowprec

ARCHIVE = "cifar10-jpeg.tar.xz"
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
    "truck",
)  # fmt: skip
WIDTHS = (12, 24, 48)
BATCH = 32


class Residual(nn.Module):
    """Two convolutions with batch norm beside a shortcut."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        stride = 1 if channels == width else 2
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride == 2:
            self.shortcut.append(nn.Conv2d(channels, width, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, width, height / stride, width / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, one residual block for each width, an average and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        inputs = (WIDTHS[0], *WIDTHS)
        self.blocks = nn.Sequential(*map(Residual, inputs, WIDTHS))
        self.head = nn.Linear(WIDTHS[-1], len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, 10] of images [batch, 3, 32, 32]."""
        x = F.max_pool2d(F.relu(self.norm(self.stem(images))), 2)
        return self.head(self.blocks(x).mean(dim=(2, 3)))


def read(data_dir: Path, part: str, per_class: int) -> tuple[Tensor, Tensor]:
    """Return the first images of each class, standardised, and their labels."""
    tree = data_dir / part
    files: dict[str, bytes] = {}
    if tree.is_dir():
        for label in CLASSES:
            paths = sorted((tree / label).iterdir())[:per_class]
            files |= {f"{label}/{path.name}": path.read_bytes() for path in paths}
    else:
        with tarfile.open(data_dir / ARCHIVE) as archive:
            counts = dict.fromkeys(CLASSES, 0)
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                label = folder.removeprefix(f"{part}/")
                if member.isfile() and counts.get(label, per_class) < per_class:
                    content = archive.extractfile(member)
                    files[f"{label}/{name}"] = content.read() if content else b""
                    counts[label] += 1
    images = [numpy.asarray(Image.open(io.BytesIO(data))) for data in files.values()]
    labels = [CLASSES.index(name.partition("/")[0]) for name in files]
    pixels = torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2) / 255
    mean = torch.tensor([0.491, 0.482, 0.447]).view(3, 1, 1)
    return (pixels - mean) / 0.25, torch.tensor(labels)


def problem(data_dir: Path, per_class: int) -> Problem:
    """Return the problem for `four_precisions`."""
    images, labels = read(data_dir, "train", per_class)
    test_images, test_labels = read(data_dir, "test", max(per_class // 4, 1))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            order = torch.randperm(len(labels), generator=generator)
            for rows in order.split(BATCH):
                flipped = torch.rand(len(rows), generator=generator) < 0.5
                batch = images[rows]
                mirror = flipped.view(-1, 1, 1, 1)
                yield torch.where(mirror, batch.flip(3), batch), labels[rows]

    def optimizer(
        model: nn.Module, stored: lowprec.Rounding | None
    ) -> lowprec.optim.SGD:
        return lowprec.optim.SGD(
            model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4,
            param_format=stored,
        )  # fmt: skip

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float]:
        model.eval()
        logits = torch.cat([model(part) for part in test_images.split(BATCH)])
        model.train()
        accuracy = (logits.argmax(1) == test_labels).float().mean().item()
        loss = F.cross_entropy(logits, test_labels).item()
        return {"validation_loss": loss, "accuracy": accuracy}

    return Problem("resnet", ResNet, batches, F.cross_entropy, optimizer, evaluate)


if __name__ == "__main__":
    parser = arguments(__doc__ or "", 320)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--per-class", type=int, default=200, help="training images")
    options: argparse.Namespace = parser.parse_args()
    main(problem(options.data_dir, options.per_class), options)
