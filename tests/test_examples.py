"""The examples run, and write results and a report."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import four_precisions
import numpy
import pytest
import resnet_cifar
import torch
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
TEN_BITS = "fp8, 10-bit accumulator"


def run(script, *arguments):
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def archive(tmp_path):
    """An archive of two images of noise per class, in the tree of CIFAR-10."""
    generator = numpy.random.default_rng(0)
    with tarfile.open(tmp_path / resnet_cifar.ARCHIVE, "w:xz") as tar:
        for part in ("test", "train"):
            for label in resnet_cifar.CLASSES:
                for number in range(2):
                    file = io.BytesIO()
                    pixels = generator.integers(0, 256, (32, 32, 3), numpy.uint8)
                    Image.fromarray(pixels).save(file, "JPEG")
                    member = tarfile.TarInfo(f"{part}/{label}/{number:04}.jpg")
                    member.size = file.tell()
                    file.seek(0)
                    tar.addfile(member, file)
    return tmp_path


def test_a_sum_of_ones_stops_where_ones_are_swamped():
    lines = run("swamping.py").splitlines()
    assert lines[1].split() == ["bfloat16", "256", "4096", "4096"]


def test_images_are_read_from_an_archive_and_from_a_tree(archive, tmp_path):
    images, labels = resnet_cifar.read(archive, "train", 2)
    assert images.shape == (20, 3, 32, 32)
    assert labels.bincount().tolist() == [2] * 10
    with tarfile.open(archive / resnet_cifar.ARCHIVE) as tar:
        tar.extractall(tmp_path / "tree", filter="data")
    again, same = resnet_cifar.read(tmp_path / "tree", "train", 2)
    order, other = labels.argsort(stable=True), same.argsort(stable=True)
    assert torch.equal(images[order], again[other])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(four_precisions.ARITHMETICS))
def test_the_resnet_trains_in_every_arithmetic(name, archive, tmp_path):
    out = run(
        "resnet_cifar.py", "--data-dir", archive, "--per-class", 2, "--steps", 3,
        "--every", 2, "--threads", 1, "--only", name, "--out", tmp_path / "runs",
    )  # fmt: skip
    assert f"| {name} |" in out
    number = list(four_precisions.ARITHMETICS).index(name)
    result = json.loads((tmp_path / f"runs/resnet-{number}.json").read_text())
    assert len(result["losses"]) == 3
    assert all(0 < loss < 10 for loss in result["losses"])
    assert (tmp_path / f"runs/resnet-{number}.html").stat().st_size > 1000


@pytest.mark.slow
def test_the_language_model_trains(tmp_path):
    out = run(
        "gpt_text.py", "--steps", 2, "--every", 2, "--threads", 1, "--only", TEN_BITS,
        "--out", tmp_path,
    )  # fmt: skip
    assert f"| {TEN_BITS} |" in out
    result = json.loads((tmp_path / "gpt-3.json").read_text())
    assert result["parameters"] >= 1_000_000
    assert result["losses"][1] < result["losses"][0]
