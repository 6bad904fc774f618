"""Two moons: the published comparison, kills, and what the command writes."""

import json

import pytest
import torch

from lowprec.cli import main
from lowprec.experiments import two_moons, two_moons_figures
from lowprec.experiments.qat_methods import FullPrecision
from lowprec.experiments.resumable import Parts
from lowprec.experiments.two_moons import TwoMoonsConfig

QUICK = TwoMoonsConfig(methods=("binary-connect", "askew-def3"), seeds=2, epochs=3)


def test_the_points_are_the_published_ones():
    data = two_moons.moons()
    assert data.train.shape == (2000, 2)
    assert data.test.shape == (500, 2)
    # The two accuracies of a constant classifier in Table 1.
    assert data.test_labels.float().mean().item() in (
        pytest.approx(0.522),
        pytest.approx(0.478),
    )


def test_networks_side_by_side_are_networks_alone():
    config = TwoMoonsConfig(seeds=3)
    data = two_moons.moons()
    together = two_moons.task(config, data)
    alone = two_moons.task(TwoMoonsConfig(seeds=1), data)
    x, y = next(together.batches(4))
    x1, y1 = next(alone.batches(4))
    assert torch.equal(x[:1], x1)
    assert torch.equal(y[:1], y1)
    assert not torch.equal(x[0], x[1])
    losses = together.losses(together.model, x, y)
    torch.testing.assert_close(losses[:1], alone.losses(alone.model, x1, y1))
    losses.sum().backward()
    alone.losses(alone.model, x1, y1).sum().backward()
    for both, one in zip(
        together.model.parameters(), alone.model.parameters(), strict=True
    ):
        torch.testing.assert_close(both.grad[:1], one.grad)
    reference = torch.nn.Sequential()
    for number, (w, b) in enumerate(
        zip(alone.model.weights, alone.model.biases, strict=True)
    ):
        layer = torch.nn.Linear(w.shape[2], w.shape[1])
        layer.weight.data, layer.bias.data = w.detach()[0], b.detach()[0, 0]
        reference.append(layer)
        if number < 3:
            reference.append(torch.nn.LeakyReLU(0.01))
    torch.testing.assert_close(alone.model(x1)[0], reference(x1[0]))


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole = two_moons.run(QUICK, Parts(tmp_path / "a"))
    calls = []

    def killed():
        calls.append(1)
        if len(calls) == 5:  # in the second method
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two_moons.run(QUICK, Parts(tmp_path / "b"), advance=killed)
    again = two_moons.run(QUICK, Parts(tmp_path / "b"))
    for first, second in zip(whole.rows, again.rows, strict=True):
        assert first.labels == second.labels
        for metric, values in first.result["curves"].items():
            assert torch.equal(values, second.result["curves"][metric])
    for name, (before, after) in whole.probabilities.items():
        assert torch.equal(before, again.probabilities[name][0])
        assert torch.equal(after, again.probabilities[name][1])


def test_the_command_writes_table_numbers_and_figure(tmp_path, capsys):
    options = ["--seeds", "2", "--epochs", "1", "--protocol", "report"]
    options += ["--methods", "full-precision", "askew-def2", "--out", str(tmp_path)]
    assert main(["run", "two-moons", *options]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:2] == ["method", "loss"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "result.json",
        "two-moons.png",
    }
    first, second = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [first["method"], second["method"]] == ["full-precision", "askew-def2"]
    assert len(first["quantized_accuracy"]["values"]) == 2


def test_the_figure_has_a_panel_before_and_after_quantization(tmp_path):
    config = TwoMoonsConfig(methods=("full-precision",), seeds=1, epochs=1)
    figure = two_moons_figures.boundaries(two_moons.run(config, Parts(tmp_path)))
    assert len(figure.axes) == 2
    assert "full-precision" in figure.axes[0].get_title()
    figure.draw_without_rendering()


def test_a_network_that_diverges_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(two_moons.METHODS, "full-precision", FullPrecision(lr=1e30))
    options = ["--seeds", "1", "--epochs", "1", "--methods", "full-precision"]
    main(["run", "two-moons", *options, "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "diverged: full-precision, seed 0: the loss is not finite at step" in out
    assert "nan" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "paper"}, "protocol must be some of recovered, report"),
        ({"methods": ("sgd",)}, "methods must be some of full-precision, "),
        ({"methods": ()}, "methods must be some of full-precision, "),
        ({"methods": ("proxquant",) * 2}, "each once"),
        ({"seeds": 0}, "seeds must be 1 or more, got 0"),
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"widths": (4, 0)}, r"widths must be 1 or more, got \(4, 0\)"),
    ],
)
def test_wrong_configurations_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        TwoMoonsConfig(**change)


def means(config, directory):
    rows = two_moons.run(config, Parts(directory)).rows
    return {
        row.labels["method"]: {
            metric: row.mean(metric) for metric in ("loss", "quantized_accuracy")
        }
        for row in rows
    }


def test_training_that_knows_the_levels_survives_quantization(tmp_path):
    methods = ("full-precision", "askew-def3")
    config = TwoMoonsConfig(methods=methods, seeds=5, epochs=10)
    found = means(config, tmp_path)
    assert found["full-precision"]["loss"] <= 0.3
    assert found["full-precision"]["quantized_accuracy"] <= 60
    assert found["askew-def3"]["quantized_accuracy"] >= 85


@pytest.mark.slow
def test_five_seeds_are_within_the_measured_ranges(tmp_path):
    # Check 10 of section 4 of the specification.
    methods = ("full-precision", "binary-connect", "proxquant-printed")
    methods += ("askew-ext", "askew-def3")
    found = means(TwoMoonsConfig(methods=methods, seeds=5), tmp_path)
    assert found["askew-def3"]["quantized_accuracy"] >= 94
    assert found["askew-def3"]["loss"] <= 0.12
    assert found["full-precision"]["quantized_accuracy"] <= 60
    assert found["binary-connect"]["loss"] >= 5 * found["askew-def3"]["loss"]
    assert found["askew-ext"]["quantized_accuracy"] >= 91
    assert found["proxquant-printed"]["quantized_accuracy"] >= 93
    assert found["binary-connect"]["quantized_accuracy"] >= 85
