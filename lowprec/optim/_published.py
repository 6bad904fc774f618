"""Settings of ASkewSGD in its publications and their code, which differ."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..formats import Levels
from ._annealing import ExponentialEpsilon

_BINARY, _INT2 = Levels.binary(), Levels.int_bits(2)

# What all experiments of a source share.
_SHARED: dict[str, dict[str, Any]] = {
    "R": {"remoteness": "quadratic", "coupling": "velocity", "midpoint": "report"},
    "L23": {
        "remoteness": "quartic_ext",
        "coupling": "gradient",
        "midpoint": "gradient",
    },
    "W25": {
        "remoteness": "quartic_ext",
        "coupling": "gradient",
        "midpoint": "gradient",
    },
}


class PublishedSettings(NamedTuple):
    """Arguments of `ASkewSGD`, and the schedule of its slack in epochs."""

    arguments: dict[str, Any]
    schedule: ExponentialEpsilon


def published_settings(source: str, task: str, lr: float) -> PublishedSettings:
    """Return what one publication's code does in one of its experiments.

    ``"R"`` is the report "Revisiting ASkewSGD" as printed, ``"W25"`` the code of its
    author, ``"L23"`` the code of Leconte et al. Tasks of R and W25: ``"two_moons"``,
    ``"mnist_1bit"``, ``"mnist_2bit"``; of L23: ``"two_moons"``, ``"logistic"``,
    ``"imagenet"``.

    Contract:
        R gives no clip, so that of W25 is taken. ``coupling="gradient"`` is their
        replacement of the gradient; where they use Adam, give the arguments that it
        has to `Skewed`. No alpha of L23 is known, so its settings have none; L23 adds
        1e-6 to the slack on ImageNet, here it is the floor.

    Args:
        source: ``"R"``, ``"L23"`` or ``"W25"``.
        task: the experiment.
        lr: learning rate, which clips depend on.

    Returns:
        Arguments and schedule.

    Raises:
        ValueError: for a source or task that there is not.

    Example:
        >>> settings = published_settings("W25", "mnist_2bit", lr=0.06)
        >>> settings.arguments["alpha"], settings.arguments["hull"]
        (0.02, (-2.0, 1.0))
        >>> settings.schedule(21.0)
        0.88

    References:
        Code: aistats2023/537 (L23), SWongHF/Experiment-2025-Summer (W25).
    """
    two_bits = {"levels": _INT2, "alpha": 0.02, "clip": 1 / (4 * lr)}
    one_bit = {"levels": _BINARY, "clip": 2 / lr}
    moons = {"levels": _BINARY, "alpha": 0.2, "clip": 1.0}
    toy = {"levels": _BINARY, "clip": math.inf, "hull": (-1.0, 1.0)}
    late, early = ExponentialEpsilon(30), ExponentialEpsilon(20)
    tasks: dict[tuple[str, str], tuple[dict[str, Any], ExponentialEpsilon]] = {
        ("R", "two_moons"): (moons, late),
        ("R", "mnist_1bit"): ({**one_bit, "alpha": 0.001}, early),
        ("R", "mnist_2bit"): (two_bits, early),
        ("W25", "two_moons"): (moons, late),
        ("W25", "mnist_1bit"): (
            {**one_bit, "alpha": 0.002, "hull": (-1.2, 1.2)},
            early,
        ),
        ("W25", "mnist_2bit"): ({**two_bits, "hull": (-2.0, 1.0)}, early),
        ("L23", "two_moons"): (toy, ExponentialEpsilon(20, 0.99)),
        ("L23", "logistic"): (toy, ExponentialEpsilon(50, 0.96)),
        ("L23", "imagenet"): (
            {"levels": Levels.symmetric_int(4), "clip": None, "hull": (-8.0, 8.0)},
            ExponentialEpsilon(100, 0.95, initial=1 / 16, floor=1e-6),
        ),
    }
    if (source, task) not in tasks:
        known = ", ".join(f"({s!r}, {t!r})" for s, t in tasks)
        raise ValueError(
            f"there are no settings of {source!r} for {task!r}: choose one of {known}"
        )
    arguments, schedule = tasks[source, task]
    return PublishedSettings({**_SHARED[source], **arguments}, schedule)
