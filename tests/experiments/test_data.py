"""G1 (generator part), digits, and the strict reader of MNIST's IDX files."""

import gzip
import struct

import numpy as np
import pytest
import torch

from lowprec import format
from lowprec.experiments import data

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array):
    """Bytes of an IDX file; the layout is LeCun's description, not our reader."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 28, 28))


@pytest.fixture
def directory(tmp_path, pixels):
    (tmp_path / IMAGES).write_bytes(idx(pixels))
    (tmp_path / f"{LABELS}.gz").write_bytes(gzip.compress(idx(np.arange(40) % 10)))
    return tmp_path


def test_splitmix64_reference_stream():
    found = [f"{int(word):016x}" for word in data.splitmix64(0, 3)]
    assert found == ["e220a8397b1dcdaf", "6e789e6aa1b965f4", "06c45d188009454f"]


def test_s1_reference_values():
    s1 = data.s1(512, 1)
    assert s1.features.dtype == torch.float64
    assert s1.labels.dtype == torch.int64
    assert s1.features[:3].tolist() == [
        [-0.02734375, 0.42578125, 1.0],
        [-1.25, -0.109375, 1.0],
        [1.5078125, 1.84375, 1.0],
    ]
    assert s1.labels[:3].tolist() == [6, 5, 1]
    assert s1.features.sum(dim=0).tolist() == [-5.78125, 4.98046875, 512.0]
    assert s1.labels.bincount(minlength=10).tolist() == [
        *(48, 51, 57, 56, 45),
        *(63, 43, 48, 46, 55),
    ]


def test_large_s1_column_sums():
    s1 = data.s1(65536, 1)
    assert s1.features[:, :2].sum(dim=0).tolist() == [137.0078125, 188.8671875]


def test_a_longer_s1_continues_a_shorter_one():
    assert torch.equal(data.s1(100, 3).features, data.s1(200, 3).features[:100])


@pytest.mark.parametrize("name", ["digits", "digits-full"])
def test_digits_are_centred_bfloat16_values_with_a_bias(name):
    digits = data.load(name)
    columns = 3 if name == "digits" else 65
    assert digits.features.shape == (1797, columns)
    assert bool((digits.features[:, -1] == 1).all())
    entries = digits.features.unique().tolist()
    assert all(map(format("bfloat16").is_representable, entries))
    # Each entry is rounded by at most 2^-9 of its size.
    assert digits.features[:, :-1].mean(dim=0).abs().max() < 2**-9
    assert digits.classes == 10


def test_principal_components_agree_with_scikit_learn():
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    pixels, _ = load_digits(return_X_y=True)
    expected = torch.from_numpy(PCA(2, svd_solver="full").fit_transform(pixels / 16))
    found = data.load("digits").features[:, :2]
    signs = (found * expected).sum(dim=0).sign()
    assert (found - expected * signs).abs().max() <= 2**-8 * expected.abs().max()


def test_load_keeps_the_first_samples():
    assert data.load("digits", samples=50).labels.equal(data.load("digits").labels[:50])


def test_idx_files_plain_and_compressed(directory, pixels):
    mnist = data.load("mnist-full", data_dir=directory)
    assert mnist.features.shape == (40, 785)
    assert mnist.labels.tolist() == [i % 10 for i in range(40)]
    exact = pixels.reshape(40, -1) / 255
    exact = torch.from_numpy(exact - exact.mean(axis=0))
    assert (mnist.features[:, :-1] - exact).abs().max() <= 2**-9
    assert data.load("mnist", data_dir=directory, samples=20).features.shape == (20, 3)


@pytest.mark.parametrize("missing", ["directory", IMAGES, f"{LABELS}.gz"])
def test_missing_mnist_says_which_files_are_needed(directory, missing):
    if missing == "directory":
        directory = directory / "nowhere"
    else:
        (directory / missing).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist", data_dir=directory)
    for part in (str(directory), IMAGES, LABELS, ".gz"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def damaged_images():
    """Damaged files, and a part of the sentence that each must give."""
    good = idx(np.zeros((40, 28, 28)))
    return {
        "empty": (b"", "is not an IDX file with magic number 0x803"),
        "labels": (idx(np.zeros(40)), "is not an IDX file with magic number 0x803"),
        "header": (good[:10], "ends within its header"),
        "short": (good[:-1], r"31359 bytes for shape \(40, 28, 28\)"),
        "long": (good + b"\0", r"31361 bytes for shape \(40, 28, 28\)"),
        "count": (idx(np.zeros((39, 28, 28))), "39 images but 40 labels"),
    }


@pytest.mark.parametrize("damage", damaged_images())
def test_damaged_images_are_refused(directory, damage):
    content, message = damaged_images()[damage]
    (directory / IMAGES).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load("mnist", data_dir=directory)


@pytest.mark.parametrize("damage", ["no gzip", "cut", "flipped"])
def test_damaged_compression_is_refused(directory, damage):
    path = directory / f"{LABELS}.gz"
    content = bytearray(path.read_bytes())
    if damage == "no gzip":
        content = bytearray(b"no gzip")
    elif damage == "cut":
        content = content[:-9]
    else:
        content[12:16] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(content))
    with pytest.raises(
        ValueError, match=r"train-labels-idx1-ubyte\.gz' cannot be read"
    ):
        data.load("mnist", data_dir=directory)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar"}, "unknown data 'cifar': it must be one of digits, "),
        ({"name": "mnist"}, "needs --data-dir"),
        ({"name": "S1", "samples": 0}, "samples must be 1 or more, got 0"),
        ({"name": "digits", "samples": 1798}, "digits has 1797 samples, fewer than"),
    ],
)
def test_wrong_requests_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)
