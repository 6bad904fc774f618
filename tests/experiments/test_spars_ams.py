"""The SPARS-AMS experiment: margins, resumption, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lowprec.cli import main
from lowprec.distributed import TopK
from lowprec.experiments import spars_ams
from lowprec.experiments.resumable import Parts
from lowprec.experiments.spars_ams_methods import METHODS
from lowprec.experiments.spars_ams_training import train
from lowprec.experiments.spars_ams_workers import Perceptron, shards
from lowprec.measure import Ledger

D = 2410


def accuracies(methods, seeds, steps=1000):
    """Final mean accuracy of each method on non-iid shards."""
    config = spars_ams.SparsAMSConfig(
        methods=methods,
        partitions=("non-iid",),
        seeds=seeds,
        steps=steps,
        evaluate_every=steps,
    )
    rows = spars_ams.run(config).rows()
    return {row["method"]: row["accuracy"] for row in rows}


def test_without_error_feedback_training_fails():
    # The widest margin of D11, on one seed and a third of the steps.
    found = accuracies(("topk-0.1%", "topk-0.1%-no-ef"), 1, 350)
    assert found["topk-0.1%"] - found["topk-0.1%-no-ef"] >= 0.4


@pytest.mark.slow
def test_margins_of_the_specification():
    # D11.
    methods = (
        "full", "topk-1%", "topk-1%-no-ef", "topk-0.1%", "topk-0.1%-no-ef",
    )  # fmt: skip
    found = accuracies(methods, 3)
    assert found["full"] - found["topk-1%"] <= 0.015
    assert found["topk-1%"] - found["topk-1%-no-ef"] >= 0.03
    assert found["topk-0.1%"] - found["topk-0.1%-no-ef"] >= 0.4


def test_shards_are_those_of_the_protocol():
    for partition, labels in (("iid", 10), ("non-iid", 3)):
        data = shards("digits", partition, 20, 0, None)
        assert data.features.shape == (20, 69, 64)
        assert data.test_labels.shape == (400,)
        most = max(len(row.unique()) for row in data.labels)
        assert most <= labels
        assert partition == "non-iid" or most == 10
        mean = data.features.flatten(0, 1).mean(dim=0)
        assert mean.abs().max() < 1e-6


def test_gradients_of_workers_are_those_of_one_network():
    net = Perceptron(64, 32)
    assert net.size == D
    weights = net.initial(torch.Generator().manual_seed(0)).double()
    x, labels = torch.randn(3, 5, 64, dtype=torch.float64), torch.randint(10, (3, 5))
    plain = torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    ).double()
    torch.nn.utils.vector_to_parameters(weights, plain.parameters())
    for row, gradient in enumerate(net.gradients(weights, x, labels)):
        plain.zero_grad()
        loss = torch.nn.functional.cross_entropy(plain(x[row]), labels[row])
        loss.backward()
        whole = torch.cat([p.grad.flatten() for p in plain.parameters()])
        torch.testing.assert_close(gradient, whole)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_sends_what_it_says(name):
    data = shards("digits", "iid", 4, 0, None)
    config = spars_ams.SparsAMSConfig(steps=3, workers=4)
    curve = train(METHODS[name], data, config.options(0))
    assert curve.step == [0, 3]
    assert curve.loss[1] < curve.loss[0]
    method, sent = METHODS[name], curve.sent[-1] / 3
    k = method.entries(D)
    bits = {
        "bfloat16": 16, "e5m2": 8, "e4m3": 8,
    }.get(name.rpartition("-")[2] if "error" not in name else "", 32)  # fmt: skip
    if name == "threshold":
        assert 4 <= sent < 4 * D
    elif name.startswith("sign"):
        assert sent == 302 + 4
    elif method.density == 1:
        assert sent == D * bits / 8
    else:
        listed = -(-12 * k // 8)
        assert sent == min(listed, 302) + k * bits / 8


class Killed(Exception):
    pass


def test_mnist_is_read_from_its_files(tmp_path):
    pixels = torch.arange(2, dtype=torch.uint8).repeat(10020 * 2).reshape(10020, 2, 2)
    labels = torch.arange(10020, dtype=torch.uint8) % 10
    for name, magic, content in (
        ("train-images-idx3-ubyte", 0x803, pixels),
        ("train-labels-idx1-ubyte", 0x801, labels),
    ):
        header = b"".join(n.to_bytes(4, "big") for n in (magic, *content.shape))
        (tmp_path / name).write_bytes(header + content.numpy().tobytes())
    data = shards("mnist", "non-iid", 4, 0, tmp_path)
    assert data.features.shape == (4, 5, 4)
    assert data.features.abs().max() == 0  # all images are alike
    assert data.test_labels.shape == (10000,)
    with pytest.raises(FileNotFoundError, match="MNIST needs a directory"):
        shards("mnist", "iid", 4, 0, tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["topk-1%-error-bfloat16", "randomk-1%"])
def test_a_killed_run_continues_bit_for_bit(name, tmp_path, monkeypatch):
    module = "lowprec.experiments.spars_ams_training"
    monkeypatch.setattr(f"{module}._SECONDS", 0.0)  # a checkpoint after every step
    data = shards("digits", "non-iid", 4, 0, None)
    options = spars_ams.SparsAMSConfig(steps=6, evaluate_every=2).options(0)
    whole = train(METHODS[name], data, options)
    part = Parts(tmp_path).part(name, {})
    steps = []

    def advance():
        steps.append(1)
        if len(steps) == 4:
            raise Killed

    with pytest.raises(Killed):
        train(METHODS[name], data, options, part=part, advance=advance)
    assert part.state()["step"] == 3
    again = train(METHODS[name], data, options, part=part, advance=advance)
    assert vars(again) == vars(whole)
    assert len(steps) == 4 + 3


def test_command_writes_and_continues(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    arguments = [
        "run", "spars-ams", "--methods", "topk-1%", "--partitions", "iid",
        "--steps", "4", "--workers", "3", "--out", str(out),
    ]  # fmt: skip
    trained = []

    def train_or_die(*given, **options):
        trained.append(given[2].seed)
        if trained == [0, 1]:
            raise Killed
        return train(*given, **options)

    monkeypatch.setattr(spars_ams, "train", train_or_die)
    with pytest.raises(Killed):
        main([*arguments, "--seeds", "2"])
    assert len(list((out / "parts").glob("*.result"))) == 1
    assert main([*arguments, "--seeds", "2"]) == 0
    assert trained == [0, 1, 1]
    assert "Top-k 1 %, EF" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert [row["method"] for row in result["rows"]] == ["topk-1%"]
    assert len(result["curves"][0]["curves"]) == 2
    assert not (out / "parts").exists()
    assert (out / "spars-ams.png").stat().st_size > 1000
    assert json.loads((out / "config.json").read_text())["workers"] == 3
    last = list(Ledger.load(out / "metrics.jsonl"))[-1]
    row = result["rows"][0]
    assert last == {"step": 4, "accuracy topk-1%, iid": row["accuracy"]}
    assert main(["report", str(out)]) == 0


def test_parts_of_other_data_or_methods_are_not_taken(tmp_path, monkeypatch):
    trained = []

    def noted(method, *given, **options):
        trained.append(method)
        return train(method, *given, **options)

    monkeypatch.setattr(spars_ams, "train", noted)
    config = spars_ams.SparsAMSConfig(
        methods=("topk-1%",), partitions=("iid",), seeds=1, steps=2, workers=2
    )
    for changes in ({}, {}, {"data_dir": "elsewhere"}):
        spars_ams.run(replace(config, **changes), parts=Parts(tmp_path))
    assert len(trained) == 2
    other = replace(METHODS["topk-1%"], make=lambda k: TopK(k=k, values="e5m2"))
    monkeypatch.setitem(METHODS, "topk-1%", other)
    spars_ams.run(config, parts=Parts(tmp_path))
    assert trained[2:] == [other]


def test_compensation_lengthens_steps_of_sparse_methods():
    assert METHODS["topk-1%"].step_factor(D) == (D / 24) ** 0.5
    assert METHODS["full"].step_factor(D) == 1


@pytest.mark.slow
def test_torchrun_equals_the_simulation(tmp_path):
    options = [
        "--methods", "topk-1%", "randomk-1%", "--partitions", "non-iid", "--seeds",
        "1", "--steps", "12", "--evaluate-every", "4",
    ]  # fmt: skip
    ranks, alone = tmp_path / "ranks", tmp_path / "alone"
    program = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "4", "-m", "lowprec", "run", "spars-ams", "--distributed",
        *options, "--out", str(ranks),
    ]  # fmt: skip
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results:") == 1  # rank 0 reports
    assert (
        main(["run", "spars-ams", "--workers", "4", *options, "--out", str(alone)]) == 0
    )
    found, known = (
        json.loads((path / "result.json").read_text())["curves"]
        for path in (ranks, alone)
    )
    assert found == known


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--data", "mnist"], "needs --data-dir"),
        (["--seeds", "0"], "seeds must be 1 or more"),
        (["--step-size", "-1"], "step_size must be positive"),
        (["--workers", "5000"], "more than the 1397 training samples"),
        (["--distributed"], "needs the processes of torchrun"),
    ],
)
def test_user_errors_are_one_sentence(options, text, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert main(["run", "spars-ams", *options, "--out", str(tmp_path / "x")]) == 2
    assert text in capsys.readouterr().err
