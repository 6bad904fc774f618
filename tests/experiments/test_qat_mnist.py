"""Perceptrons of one and two bits: recipes, kills, and what the command writes."""

import json

import numpy as np
import pytest
import torch

from lowprec.cli import main
from lowprec.experiments import qat_mnist
from lowprec.experiments.qat_methods import Askew, Binary
from lowprec.experiments.qat_mnist import QatMnistConfig
from lowprec.experiments.resumable import Parts

QUICK = QatMnistConfig(
    methods=("binary-connect", "askew-ext"), epochs=2, seeds=2, hidden=8, samples=200
)


def idx(array):
    """Return an array of bytes as an IDX file."""
    array = np.asarray(array, dtype=np.uint8)
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.tobytes()


@pytest.fixture
def directory(tmp_path):
    """Return a directory with 60 training and 20 test images of 3 x 3 pixels."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        pixels = random.integers(0, 256, (count, 3, 3))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(pixels))
        labels = random.integers(0, 10, count)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def test_every_case_is_a_row(tmp_path):
    config = QatMnistConfig(epochs=1, seeds=1, hidden=8, samples=100)
    rows = qat_mnist.run(config, Parts(tmp_path))
    assert len(rows) == 2 * 2 * len(qat_mnist.METHODS)
    for row in rows:
        bits, scale = row.labels["bits"], row.labels["scale"]
        assert row.has("range_accuracy") == (bits == "2" and scale == "none")
        assert 0 <= row.mean("quantized_accuracy") <= 100
    cells = {tuple(row.labels.values()): row for row in rows}
    # A positive factor for each layer changes no decision, but for ties.
    plain = cells["1", "none", "full-precision"]
    scaled = cells["1", "mean_abs", "full-precision"]
    metric = "quantized_accuracy"
    assert plain.mean(metric) == pytest.approx(scaled.mean(metric), abs=1.5)
    assert plain.mean("quantized_loss") > scaled.mean("quantized_loss")


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole = qat_mnist.run(QUICK, Parts(tmp_path / "a"))
    calls = []

    def killed():
        calls.append(1)
        if len(calls) == 19:  # in the second seed
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qat_mnist.run(QUICK, Parts(tmp_path / "b"), advance=killed)
    again = qat_mnist.run(QUICK, Parts(tmp_path / "b"))
    for first, second in zip(whole, again, strict=True):
        assert first.labels == second.labels
        assert first.result["distance"] == second.result["distance"]
        for metric, values in first.result["curves"].items():
            assert values.shape == (2, 2)
            assert torch.equal(values, second.result["curves"][metric])


def test_the_command_reads_mnist_and_writes_everything(tmp_path, directory, capsys):
    options = ["--data-dir", str(directory), "--bits", "2", "--scales", "none"]
    options += ["--methods", "askew-def3", "--epochs", "1", "--seeds", "1"]
    options += ["--hidden", "4", "--batch", "20", "--out", str(tmp_path / "out")]
    assert main(["run", "qat-mnist", *options]) == 0
    assert "q-accuracy, range %" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "result.json", "qat-mnist.png"}
    [row] = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    assert row["bits"] == "2"
    assert row["diverged_at_step"] == {}


def test_pixels_and_labels_are_those_of_the_files(directory):
    config = QatMnistConfig(data_dir=str(directory), batch=20, samples=40)
    loaded = qat_mnist.images(config)
    content = (directory / "train-images-idx3-ubyte").read_bytes()[16:]
    assert loaded.train.shape == (40, 9)
    assert (loaded.train[3] * 255).round().tolist() == list(content[27:36])
    labels = (directory / "t10k-labels-idx1-ubyte").read_bytes()[8:]
    assert loaded.test_labels.tolist() == list(labels)


def test_bad_directories_are_explained(directory, capsys):
    def message(*options):
        assert main(["run", "qat-mnist", "--data-dir", *map(str, options)]) == 2
        return capsys.readouterr().err

    assert "is not a directory: MNIST needs" in message(directory / "no")
    assert "there are 60 training samples: 70 samples" in message(
        directory, "--samples", "70"
    )
    (directory / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(19)))
    assert "has 20 t10k images but 19 labels" in message(directory, "--batch", "20")
    (directory / "t10k-images-idx3-ubyte").unlink()
    assert "lacks t10k-images-idx3-ubyte" in message(directory)


def test_a_run_that_diverges_is_named(tmp_path, capsys, monkeypatch):
    method = Binary(lr=1e38)
    monkeypatch.setitem(qat_mnist._UNSCALED[1], "binary-connect", method)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", _infinite)
    options = ["--bits", "1", "--scales", "none", "--methods", "binary-connect"]
    options += ["--epochs", "1", "--seeds", "1", "--hidden", "8"]
    main(["run", "qat-mnist", *options, "--out", str(tmp_path)])
    expected = "diverged: 1, none, binary-connect, seed 0: the loss is not finite at"
    assert expected in capsys.readouterr().out


def _infinite(logits, labels):
    return logits.sum() * float("inf")


def test_recipes_are_those_of_the_author():
    one, two = (qat_mnist.recipe(bits, "none", "askew-ext") for bits in (1, 2))
    assert isinstance(one, Askew)
    assert (one.lr, one.alpha, one.hull) == (0.06, 0.002, (-1.2, 1.2))
    assert (two.lr, two.alpha, two.hull) == (0.06, 0.02, (-2.0, 1.0))
    assert qat_mnist.recipe(1, "mean_abs", "askew-ext").hull is None
    growth = qat_mnist.recipe(1, "none", "proxquant").strength
    steps = 1000
    assert growth(45) == pytest.approx(1e-7 * (45 * steps - 20000))
    # The report lists the step sizes of 2 bits in another order.
    rates = [qat_mnist.recipe(2, "none", name).lr for name in qat_mnist.METHODS]
    assert rates == [0.006, 0.0002, 0.0075, 0.06, 0.06]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": (3,)}, r"bits must be some of 1, 2, each once, got \(3,\)"),
        ({"scales": ("sawb",)}, "scales must be some of none, mean_abs"),
        ({"methods": ()}, "methods must be some of full-precision, "),
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"hidden": 0}, "hidden must be 1 or more, got 0"),
    ],
)
def test_wrong_configurations_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        QatMnistConfig(**change)
