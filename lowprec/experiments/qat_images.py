"""CIFAR-10 from local files, and the random changes that training makes to images."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Cifar", "augmented", "read", "standardized"]

_SIDE = 32
_CLASSES = 10
_EXPECTED = (
    "a directory with train/CLASS/*.jpg and test/CLASS/*.jpg (or .png) for ten "
    "classes, or with the CIFAR-10 batches data_batch_1, ..., test_batch"
)
_MEAN = (0.4914, 0.4822, 0.4465)
_DEVIATION = (0.2470, 0.2435, 0.2616)


class Cifar(NamedTuple):
    """Images, uint8 [n, 3, 32, 32], and labels, 0 to 9, [n]."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def read(directory: str | Path, train: int | None, test: int | None) -> Cifar:
    """Read the first images of each class.

    Args:
        directory: of images in folders, or of the batches in Python's version.
        train: training images of each class; None means all.
        test: test images of each class, likewise.

    Returns:
        Images and labels, class by class.

    Raises:
        FileNotFoundError: if the directory is missing or is neither.
        ValueError: if a file is damaged or there are too few images.
        ImportError: if Pillow is needed and not installed.
    """
    folder = Path(directory)
    if (folder / "train").is_dir():
        parts = [_tree(folder / "train", train), _tree(folder / "test", test)]
    elif (folder / "data_batch_1").is_file():
        names = [f"data_batch_{number}" for number in range(1, 6)]
        parts = [_batches(folder, names, train), _batches(folder, ["test_batch"], test)]
    else:
        lacking = "has neither" if folder.is_dir() else "is not a directory"
        raise FileNotFoundError(
            f"{str(folder)!r} {lacking}: CIFAR-10 needs {_EXPECTED}"
        )
    return Cifar(*parts[0], *parts[1])


def _tree(folder: Path, count: int | None) -> tuple[Tensor, Tensor]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "images are read by Pillow: pip install 'lowprec[plot]', or give the "
            "CIFAR-10 batches"
        ) from error
    classes = sorted(path for path in folder.glob("*") if path.is_dir())
    if len(classes) != _CLASSES:
        raise FileNotFoundError(
            f"{str(folder)!r} has {len(classes)} folders: CIFAR-10 needs {_EXPECTED}"
        )
    images, labels = [], []
    for label, path in enumerate(classes):
        files = sorted(p for p in path.iterdir() if p.suffix in (".jpg", ".png"))
        _check_count(path, len(files), count)
        for file in files[:count]:
            try:
                with Image.open(file) as image:
                    images.append(np.asarray(image.convert("RGB")))
            except OSError as error:
                raise ValueError(f"{str(file)!r} is damaged: {error}") from error
            if images[-1].shape != (_SIDE, _SIDE, 3):
                raise ValueError(
                    f"{str(file)!r} has {images[-1].shape[:2]} pixels, not 32 x 32"
                )
            labels.append(label)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(labels)


def _check_count(where: Path, found: int, count: int | None) -> None:
    if found == 0 or (count is not None and found < count):
        raise ValueError(
            f"{str(where)!r} has {found} images, fewer than the {count or 1} asked for"
        )


class _Arrays(pickle.Unpickler):
    """Reads what the batches consist of: arrays, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the constructors of arrays."""
        allowed = {"_reconstruct", "ndarray", "dtype", "encode"}
        if module.split(".")[0] in ("numpy", "_codecs") and name in allowed:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _batches(
    folder: Path, names: list[str], count: int | None
) -> tuple[Tensor, Tensor]:
    pixels, labels = [], []
    for name in names:
        path = folder / name
        try:
            with path.open("rb") as file:
                content = _Arrays(file, encoding="bytes").load()
            array = np.asarray(content[b"data"], dtype=np.uint8)
            pixels.append(torch.from_numpy(array.reshape(-1, 3, _SIDE, _SIDE).copy()))
            labels.append(torch.tensor(content[b"labels"]))
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"{str(path)!r} is no CIFAR-10 batch: {error}") from error
    images, numbers = torch.cat(pixels), torch.cat(labels)
    rows_of = [(numbers == label).nonzero().squeeze(1) for label in range(_CLASSES)]
    for rows in rows_of:
        _check_count(folder, len(rows), count)
    chosen = torch.cat([rows[:count] for rows in rows_of])
    return images[chosen], numbers[chosen]


def standardized(images: Tensor) -> Tensor:
    """Return float32 images of zero mean and unit deviation over CIFAR-10."""
    mean = torch.tensor(_MEAN, device=images.device).view(3, 1, 1)
    deviation = torch.tensor(_DEVIATION, device=images.device).view(3, 1, 1)
    return (images.to(torch.float32) / 255 - mean) / deviation


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop, mirror and erase images at random.

    A crop has 64 to 100 % of the area and the image's aspect, and is resized back by
    bilinear interpolation; half of the images are mirrored; in half of them a
    rectangle of 2 to 33 % of the area becomes 0.

    Args:
        images: standardized, [n, 3, 32, 32].
        generator: source of the randomness, on the CPU.

    Returns:
        Tensor like ``images``.

    References:
        Specification section 3.3; the crop's aspect is not varied here.
    """
    n = len(images)
    draws = torch.rand(9, n, generator=generator).to(images.device)
    side = (0.64 + 0.36 * draws[0]).sqrt()
    shift = (1 - side) * (2 * draws[1:3] - 1)
    mirror = torch.where(draws[3] < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(side)
    across = torch.stack([side * mirror, zero, shift[0]], dim=1)
    down = torch.stack([zero, side, shift[1]], dim=1)
    grid = F.affine_grid(
        torch.stack([across, down], dim=1), list(images.shape), align_corners=False
    )
    cropped = F.grid_sample(
        images, grid, padding_mode="reflection", align_corners=False
    )
    area, aspect = 0.02 + 0.31 * draws[4], torch.exp((2 * draws[5] - 1) * 1.19)
    erased = draws[6] < 0.5
    pixels = torch.arange(_SIDE, device=images.device)
    inside = []
    for extent, place in (
        ((area * aspect).sqrt(), draws[7]),
        ((area / aspect).sqrt(), draws[8]),
    ):
        length = (extent * _SIDE).clamp(max=_SIDE)
        first = (place * (_SIDE - length)).unsqueeze(1)
        inside.append((pixels >= first) & (pixels < first + length.unsqueeze(1)))
    hole = inside[0].unsqueeze(2) & inside[1].unsqueeze(1) & erased.view(-1, 1, 1)
    return cropped.masked_fill(hole.unsqueeze(1), 0.0)
