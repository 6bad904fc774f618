"""The TensorBoard adapter: tags, steps and values, and the real writer if there."""

import numpy as np
import pytest
import torch

import lowprec as lp
from lowprec.integrations import tensorboard
from lowprec.measure import LayerMonitor, Ledger


class Recorder:
    """A writer that remembers."""

    def __init__(self):
        self.scalars, self.histograms = {}, {}

    def add_scalar(self, tag, scalar_value, global_step):
        self.scalars[tag, global_step] = scalar_value

    def add_histogram(self, tag, values, global_step, bins):
        self.histograms[tag, global_step] = np.histogram(values, bins)


def measured():
    model = lp.nn.convert_(torch.nn.Linear(3, 2), lp.Precision(input="e4m3fn"))
    layers = LayerMonitor(model)
    for _ in range(2):
        with layers.observe():
            model(torch.tensor([[0.3, 1.5, 0.0]])).sum().backward()
    return layers


def test_quantities_have_their_name_and_step():
    ledger, writer = Ledger(), Recorder()
    ledger.append({"step": 4, "r_norm": 0.5, "note": "warm", "none": None})
    ledger.append({"r_norm": 0.25, "converged": True})
    assert tensorboard.write(ledger, writer, prefix="run") == 3
    assert writer.scalars == {
        ("run/r_norm", 4): 0.5,
        ("run/r_norm", 1): 0.25,
        ("run/converged", 1): 1.0,
    }


def test_layers_have_their_name_role_and_exponents():
    layers, writer = measured(), Recorder()
    tensorboard.write(layers.ledger, writer)
    error = layers.statistics("", "input").relative_error
    assert writer.scalars["lowprec/input/relative_error", 1] == pytest.approx(error)
    counts, edges = writer.histograms["lowprec/input/exponents", 0]
    assert dict(zip(edges.tolist(), counts.tolist(), strict=False)) == {
        -2: 1,
        -1: 0,
        0: 1,
    }


def test_torch_has_such_a_writer(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        tensorboard.write(measured().ledger, writer)
    assert any(tmp_path.iterdir())
