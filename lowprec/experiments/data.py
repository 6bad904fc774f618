"""Data sets of the experiments; nothing is ever downloaded."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..arithmetic import round

__all__ = [
    "NAMES",
    "Dataset",
    "digits",
    "load",
    "mnist",
    "raw_digits",
    "raw_mnist",
    "read_idx",
    "s1",
    "splitmix64",
]

NAMES = ("digits", "digits-full", "S1", "mnist", "mnist-full")

_COMPONENTS = 2
_S1_CLASSES = 10
_S1_SAMPLES = 512
# round(48 cos(2 pi c / 10)), round(48 sin(2 pi c / 10))
_S1_CENTRES = (
    (48, 0),
    (39, 28),
    (15, 46),
    (-15, 46),
    (-39, 28),
    (-48, 0),
    (-39, -28),
    (-15, -46),
    (15, -46),
    (39, -28),
)
_IDX_LABELS, _IDX_IMAGES = 0x801, 0x803
_MNIST_FILES = (
    "train-images-idx3-ubyte and train-labels-idx1-ubyte, each as it is or with .gz"
)


@dataclass(frozen=True)
class Dataset:
    """Samples of a classification problem.

    Args:
        name: what people call it.
        features: float64 [n, D]; the last column is one, for the bias.
        labels: int64 [n].
        classes: number of classes.
    """

    name: str
    features: Tensor
    labels: Tensor
    classes: int


def splitmix64(seed: int, count: int) -> np.ndarray:
    """Return numbers 0 ... count-1 of the splitmix64 stream of a seed.

    Args:
        seed: 64-bit seed.
        count: how many numbers.

    Returns:
        uint64 array [count].

    Example:
        >>> f"{int(splitmix64(0, 1)[0]):016x}"
        'e220a8397b1dcdaf'

    References:
        Steele, Lea and Flood 2014.
    """
    index = np.arange(1, count + 1, dtype=np.uint64)
    z = np.uint64(seed % 2**64) + index * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def s1(samples: int, seed: int = 1) -> Dataset:
    """Return S1: ten clusters on a circle, the same bits on every platform.

    Args:
        samples: n, positive.
        seed: of the splitmix64 streams.

    Returns:
        Two features rounded to bfloat16, and the bias column.

    Raises:
        ValueError: if ``samples`` is not positive.

    Example:
        >>> s1(3).features[0].tolist()
        [-0.02734375, 0.42578125, 1.0]

    References:
        Specification section 5.4.
    """
    if samples < 1:
        raise ValueError(f"S1 needs a positive number of samples, got {samples}")
    labels = (splitmix64(1000 * seed, samples) % np.uint64(_S1_CLASSES)).astype(
        np.int64
    )
    centres = np.array(_S1_CENTRES, dtype=np.float64)[labels] / 64
    columns = []
    for j in range(_COMPONENTS):
        words = splitmix64(1000 * seed + 1 + j, samples)
        # The four low bytes, summed: a bell-shaped integer.
        total = words.view(np.uint8).reshape(-1, 8)[:, :4].astype(np.int64).sum(axis=1)
        columns.append(centres[:, j] + (total - 510) / 256)
    features = torch.from_numpy(np.stack(columns, axis=1))
    return _dataset(f"S1({samples},{seed})", features, labels, _S1_CLASSES)


def digits(full: bool = False, samples: int | None = None) -> Dataset:
    """Return scikit-learn's digits: 1797 images of 8 x 8 that ship with it.

    Args:
        full: all 64 pixels instead of two principal components.
        samples: keep the first ones only.

    Returns:
        Centred pixels divided by 16, or their principal components; bfloat16.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    pixels, labels = raw_digits()
    pixels, labels = pixels[:samples] / 16, labels[:samples]
    features = torch.from_numpy(pixels)
    if full:
        return _dataset("digits-full", features - features.mean(dim=0), labels, 10)
    return _dataset("digits", _principal_components(features), labels, 10)


def mnist(
    directory: str | Path, full: bool = False, samples: int | None = None
) -> Dataset:
    """Return MNIST's training set from local IDX files.

    Args:
        directory: holds ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``,
            with or without ``.gz``.
        full: all 784 pixels instead of two principal components.
        samples: keep the first ones only.

    Returns:
        Centred pixels divided by 255, or their principal components; bfloat16.

    Raises:
        FileNotFoundError: if the directory or a file is missing.
        ValueError: if a file is not what its name says.
    """
    pixels, labels = raw_mnist(directory)
    features, classes = torch.from_numpy(pixels[:samples] / 255), labels[:samples]
    if full:
        return _dataset("mnist-full", features - features.mean(dim=0), classes, 10)
    return _dataset("mnist", _principal_components(features), classes, 10)


def raw_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits: pixels from 0 to 16, [1797, 64], and classes.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits data ship with scikit-learn: pip install 'lowprec[cli]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels.astype(np.int64)


def raw_mnist(
    directory: str | Path, part: str = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """Return MNIST's pixels from 0 to 255, uint8 [n, 784], and classes, from IDX files.

    Args:
        directory: holds ``{part}-images-idx3-ubyte`` and ``{part}-labels-idx1-ubyte``,
            with or without ``.gz``.
        part: ``"train"`` or ``"t10k"``.

    Raises:
        FileNotFoundError: if the directory or a file is missing.
        ValueError: if a file is not what its name says.
    """
    images = read_idx(directory, f"{part}-images-idx3-ubyte", _IDX_IMAGES)
    labels = read_idx(directory, f"{part}-labels-idx1-ubyte", _IDX_LABELS)
    if len(images) != len(labels):
        which = "" if part == "train" else f"{part} "
        raise ValueError(
            f"{directory} has {len(images)} {which}images but {len(labels)} labels"
        )
    return images.reshape(len(images), -1), labels.astype(np.int64)


def read_idx(directory: str | Path, name: str, magic: int) -> np.ndarray:
    """Return the bytes of an IDX file as an array.

    Args:
        directory: where it lies.
        name: file name without ``.gz``.
        magic: first four bytes, big-endian: type and number of dimensions.

    Returns:
        uint8 array with the file's dimensions.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged or of another type.
    """
    folder = Path(directory)
    path = next(
        (p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None
    )
    if path is None:
        lacking = f"lacks {name}" if folder.is_dir() else "is not a directory"
        raise FileNotFoundError(
            f"{str(folder)!r} {lacking}: MNIST needs a directory with {_MNIST_FILES}"
        )
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if int.from_bytes(data[:4], "big") != magic:
        raise ValueError(
            f"{str(path)!r} is not an IDX file with magic number {magic:#x}"
        )
    dimensions = magic & 0xFF
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise ValueError(f"{str(path)!r} is damaged: it ends within its header")
    shape = tuple(np.frombuffer(data, ">u4", dimensions, 4).tolist())
    if len(data) - start != int(np.prod(shape)):
        raise ValueError(
            f"{str(path)!r} is damaged: {len(data) - start} bytes for shape {shape}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    samples: int | None = None,
    seed: int = 1,
) -> Dataset:
    """Return a data set by name.

    Args:
        name: one of `NAMES`.
        data_dir: directory of the IDX files, for MNIST.
        samples: number of samples; None means all (512 for S1).
        seed: of S1.

    Returns:
        The data set.

    Raises:
        ValueError: if the name is unknown, there are fewer samples, or MNIST lacks
            its directory.
        FileNotFoundError: if files are missing.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be 1 or more, got {samples}")
    full = name.endswith("-full")
    if name == "S1":
        return s1(samples or _S1_SAMPLES, seed)
    if name not in NAMES:
        raise ValueError(f"unknown data {name!r}: it must be one of {', '.join(NAMES)}")
    if name in ("digits", "digits-full"):
        dataset = digits(full, samples)
    elif data_dir is None:
        raise ValueError(
            f"data {name!r} needs --data-dir, the directory of the MNIST IDX files"
        )
    else:
        dataset = mnist(data_dir, full, samples)
    if samples is not None and samples > len(dataset.labels):
        raise ValueError(
            f"{name} has {len(dataset.labels)} samples, fewer than the {samples} "
            "asked for"
        )
    return dataset


def _principal_components(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    leading = vectors.flip(1)[:, :_COMPONENTS]
    # Eigenvectors have no sign of their own: the largest entry is made positive.
    largest = leading.abs().argmax(dim=0, keepdim=True)
    components: Tensor = centred @ (leading * leading.gather(0, largest).sign())
    return components


def _dataset(name: str, x: Tensor, labels: np.ndarray, classes: int) -> Dataset:
    stored = round(x, "bfloat16")
    ones = torch.ones(len(stored), 1, dtype=torch.float64)
    return Dataset(
        name, torch.cat([stored, ones], 1), torch.from_numpy(labels), classes
    )
