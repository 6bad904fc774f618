"""Settings of the publications make optimizers."""

import math

import pytest
import torch

from lowprec.optim import ASkewSGD, published_settings

TASKS = [
    *((s, t) for s in ("R", "W25") for t in ("two_moons", "mnist_1bit", "mnist_2bit")),
    *(("L23", t) for t in ("two_moons", "logistic", "imagenet")),
]


@pytest.mark.filterwarnings("ignore::lowprec.NumericalWarning")
@pytest.mark.parametrize(("source", "task"), TASKS)
def test_every_setting_makes_steps(source, task):
    settings = published_settings(source, task, lr=0.05)
    p = torch.nn.Parameter(torch.linspace(-1, 1, 7))
    optimizer = ASkewSGD([p], 0.05, **settings.arguments)
    p.grad = torch.ones(7)
    optimizer.step()
    assert p.isfinite().all()
    assert settings.schedule(1e3) < settings.schedule(0.0) <= 1


def test_what_the_sources_differ_in():
    def of(source, task):
        return published_settings(source, task, lr=0.1).arguments

    assert of("R", "two_moons")["midpoint"] == "report"
    assert of("W25", "two_moons")["clip"] == 1.0
    assert of("W25", "mnist_1bit")["clip"] == 20.0
    assert of("W25", "mnist_1bit")["hull"] == (-1.2, 1.2)
    assert of("W25", "mnist_2bit")["clip"] == 2.5
    assert of("L23", "logistic")["clip"] == math.inf
    assert of("L23", "imagenet")["clip"] is None
    assert len(of("L23", "imagenet")["levels"].values) == 17
    assert published_settings("L23", "logistic", 0.1).schedule(51.0) == 0.96
    with pytest.raises(ValueError, match="choose one of"):
        published_settings("L23", "mnist_1bit", 0.1)
