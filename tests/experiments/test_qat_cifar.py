"""ResNet-18 on images or batches: reading, augmentation, kills."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from lowprec.cli import main
from lowprec.experiments import qat_cifar, qat_images
from lowprec.experiments.qat_cifar import QatCifarConfig
from lowprec.experiments.qat_images import augmented, read, standardized
from lowprec.experiments.qat_resnet import ResNet18
from lowprec.experiments.resumable import Parts

CLASSES = [f"class-{number}" for number in range(10)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return folders with two training images and one test image of each class."""
    folder = tmp_path_factory.mktemp("cifar")
    random = np.random.default_rng(0)
    for part, count in (("train", 2), ("test", 1)):
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                path = folder / part / name / f"{number:04}.png"
                Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def batches(tmp_path, tree):
    """Return the same images as the CIFAR-10 batches in Python's version."""
    data = read(tree, None, None)
    names = [f"data_batch_{number}" for number in range(1, 6)]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for name, rows in zip(names, order.split(4), strict=True):
        _write(tmp_path / name, data.train[rows], data.train_labels[rows])
    _write(tmp_path / "test_batch", data.test, data.test_labels)
    return tmp_path


def _write(path, images, labels):
    content = {b"data": images.flatten(1).numpy(), b"labels": labels.tolist()}
    path.write_bytes(pickle.dumps(content))


def test_folders_and_batches_give_the_same_images(tree, batches):
    folders, arrays = read(tree, None, 1), read(batches, None, 1)
    assert folders.train.shape == (20, 3, 32, 32)
    assert folders.train_labels.tolist() == sorted([*range(10), *range(10)])
    assert torch.equal(folders.test, arrays.test)
    pixels = np.array(Image.open(tree / "train" / CLASSES[3] / "0001.png"))
    assert torch.equal(folders.train[7], torch.from_numpy(pixels).permute(2, 0, 1))
    for label in range(10):
        mine, theirs = (
            {
                image.numpy().tobytes()
                for image in data.train[data.train_labels == label]
            }
            for data in (folders, arrays)
        )
        assert mine == theirs
    assert read(tree, 1, None).train.shape[0] == 10


class Harmful:
    """Would run a function when unpickled."""

    def __reduce__(self):
        return print, ("harm",)


def test_bad_directories_are_explained(tree, batches, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="is not a directory: CIFAR-10 needs"):
        read(tmp_path / "no", None, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has neither: CIFAR-10 needs"):
        read(tmp_path / "empty", None, None)
    (tmp_path / "one" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has 1 folders"):
        read(tmp_path / "one", None, None)
    for folder in (tree, batches):
        with pytest.raises(ValueError, match="images, fewer than the 3 asked for"):
            read(folder, 3, None)
    (batches / "data_batch_2").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match=r"is no CIFAR-10 batch: it holds builtins\."):
        read(batches, None, None)
    assert "harm" not in capsys.readouterr().out
    assert main(["run", "qat-cifar"]) == 2
    assert "qat-cifar needs --data-dir" in capsys.readouterr().err


def test_damaged_images_are_named(tree, tmp_path):
    for part in ("train", "test"):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            source = (tree / "test" / name / "0000.png").read_bytes()
            (tmp_path / part / name / "0000.png").write_bytes(source)
    damaged = tmp_path / "test" / CLASSES[4] / "0000.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"class-4/0000\.png' is damaged"):
        read(tmp_path, None, None)
    Image.new("RGB", (16, 32)).save(damaged)
    with pytest.raises(ValueError, match=r"has \(32, 16\) pixels, not 32 x 32"):
        read(tmp_path, None, None)


def test_augmentation_crops_mirrors_and_erases(tree):
    generator = torch.Generator().manual_seed(0)
    constant = torch.ones(1000, 3, 32, 32)
    changed = augmented(constant, generator)
    holes = changed[:, 0] == 0
    assert torch.equal(changed.eq(0).any(1), changed.eq(0).all(1))
    assert (changed[~changed.eq(0)] - 1).abs().max() < 1e-6
    areas = holes.float().mean(dim=(1, 2))
    assert 0.45 < (areas > 0).float().mean() < 0.55
    assert areas.max() < 0.4
    ramp = torch.linspace(-1, 1, 32).expand(1000, 3, 32, 32)
    changed = augmented(ramp, generator)[:, 0]
    whole = changed[(changed != 0).all(dim=2).all(dim=1)]
    slopes = whole[:, 16].diff(dim=1).median(dim=1).values / (2 / 31)
    assert 0.42 < (slopes < 0).float().mean() < 0.58
    assert slopes.abs().min() > 0.79
    assert slopes.abs().max() < 1.01
    again = augmented(constant[:9], torch.Generator().manual_seed(0))
    assert torch.equal(again, augmented(constant[:9], torch.Generator().manual_seed(0)))


def test_standardized_images_have_the_published_moments():
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    expected = [(128 / 255 - 0.4914) / 0.2470, (128 / 255 - 0.4822) / 0.2435]
    values = standardized(grey)[0, :2, 5, 5]
    torch.testing.assert_close(values, torch.tensor(expected))


def test_the_network_is_the_published_one():
    with torch.device("meta"):
        model = ResNet18()
    # 11,173,962 of the usual one, less 9,600 of the norms and 10 biases.
    assert sum(p.numel() for p in model.parameters()) == 11_164_352
    assert len(list(model.parameters())) == 21
    logits = ResNet18(width=2)(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10)


def config(tree, **changes):
    return QatCifarConfig(data_dir=str(tree), width=2, epochs=2, batch=10, **changes)


def test_all_but_the_head_is_quantized_and_evaluation_changes_nothing(tree):
    settings = config(tree)
    task = qat_cifar.task(settings, read(tree, None, None), seed=0)
    assert [p.dim() for p in task.weights] == [4] * 20
    assert task.others == [task.model.head.weight]
    buffers = {k: v.clone() for k, v in task.model.named_buffers()}
    with torch.no_grad():
        first = task.evaluate(task.model)
        assert torch.equal(task.evaluate(task.model)["loss"], first["loss"])
    assert task.model.training
    for name, buffer in task.model.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_a_killed_run_ends_with_the_same_bits(tree, tmp_path):
    settings = config(tree, methods=("proxquant", "askew-def3"))
    whole = qat_cifar.run(settings, Parts(tmp_path / "a"))
    calls = []

    def killed():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qat_cifar.run(settings, Parts(tmp_path / "b"), advance=killed)
    again = qat_cifar.run(settings, Parts(tmp_path / "b"))
    for first, second in zip(whole, again, strict=True):
        for metric, values in first.result["curves"].items():
            assert torch.equal(values, second.result["curves"][metric])
        assert first.result["distance"] == second.result["distance"]


def test_the_command_writes_everything(batches, tmp_path, capsys):
    options = ["--data-dir", str(batches), "--width", "2", "--batch", "10"]
    options += ["--epochs", "1", "--methods", "binary-connect", "full-precision"]
    assert main(["run", "qat-cifar", *options, "--out", str(tmp_path / "out")]) == 0
    assert "binary-connect" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "result.json", "qat-cifar.png"}
    rows = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["binary-connect", "full-precision"]


def test_a_loss_that_is_lost_is_reported(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(
        qat_images, "standardized", lambda images: images.float() * torch.nan
    )
    monkeypatch.setattr(qat_cifar, "standardized", qat_images.standardized)
    settings = config(tree, methods=("askew-ext",))
    [row] = qat_cifar.run(settings, Parts(tmp_path))
    assert row.diverged == {0: 0}
    assert np.isnan(row.mean("quantized_loss"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("sgd",)}, "methods must be some of full-precision, "),
        ({"width": 0}, "width must be 1 or more, got 0"),
        ({"batch": 1}, "batch must be 2 or more"),
    ],
)
def test_wrong_configurations_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        QatCifarConfig(**change)


def test_too_few_images_are_refused(tree, tmp_path):
    settings = QatCifarConfig(data_dir=str(tree), width=2, epochs=1, batch=21)
    with pytest.raises(ValueError, match="20 training images, fewer than a batch"):
        qat_cifar.run(settings, Parts(tmp_path))
