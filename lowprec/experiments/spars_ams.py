"""SPARS-AMS on many workers: accuracy against steps and against bytes sent."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import distributed

from .output import RunDirectory, environment
from .resumable import Parts
from .spars_ams_methods import METHODS
from .spars_ams_training import Curve, RunOptions, train
from .spars_ams_workers import Perceptron, shards

__all__ = [
    "SparsAMSConfig",
    "SparsAMSResult",
    "add_arguments",
    "config_from_arguments",
    "run",
    "run_and_save",
    "steps",
]

PARTITIONS = ("iid", "non-iid")
_DATA = ("digits", "mnist")


@dataclass(frozen=True, kw_only=True)
class SparsAMSConfig:
    """Data, methods and optimizer; every method is run on all partitions and seeds.

    Args:
        data: ``"digits"`` or ``"mnist"``.
        data_dir: of the MNIST IDX files.
        methods: names among `METHODS`.
        partitions: ``"iid"`` and ``"non-iid"`` shards.
        seeds: number of repetitions, with seeds 0, 1, ...
        workers: n.
        steps: T.
        batch: samples of each worker and step.
        step_size: eta.
        hidden: width of the network.
        evaluate_every: steps between evaluations.
        compensated: whether eta is multiplied by sqrt(d/k), as compression slows
            AMSGrad down by up to that.
        indices: how indices are sent, ``"packed"`` or ``"int32"``.
        distributed: whether each rank of torchrun is one worker.
    """

    data: str = "digits"
    data_dir: str | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    partitions: tuple[str, ...] = PARTITIONS
    seeds: int = 5
    workers: int = 20
    steps: int = 1000
    batch: int = 16
    step_size: float = 0.003
    hidden: int = 32
    evaluate_every: int = 25
    compensated: bool = False
    indices: str = "packed"
    distributed: bool = False

    def __post_init__(self) -> None:
        """Check names and ranges."""
        for name, allowed in (("methods", METHODS), ("partitions", PARTITIONS)):
            chosen = tuple(getattr(self, name))
            object.__setattr__(self, name, chosen)
            unknown = [one for one in chosen if one not in allowed]
            if unknown or not chosen:
                raise ValueError(
                    f"{name} must be one or more of {', '.join(allowed)}, got "
                    f"{', '.join(unknown) or 'none'}"
                )
        if self.data not in _DATA:
            raise ValueError(f"data must be one of {', '.join(_DATA)}, got {self.data}")
        if self.data == "mnist" and self.data_dir is None:
            raise ValueError(
                "data 'mnist' needs --data-dir, the directory of the MNIST IDX files"
            )
        for name in ("seeds", "workers", "steps", "batch", "hidden", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 < self.step_size < float("inf"):
            raise ValueError(
                f"step_size must be positive and finite, got {self.step_size}"
            )

    def options(self, seed: int) -> RunOptions:
        """Return what one run depends on, beside its data and method."""
        return RunOptions(
            steps=self.steps,
            batch=self.batch,
            step_size=self.step_size,
            hidden=self.hidden,
            seed=seed,
            evaluate_every=self.evaluate_every,
            compensated=self.compensated,
            indices=self.indices,
        )


@dataclass(frozen=True)
class SparsAMSResult:
    """Curves of all runs.

    Args:
        config: what was run.
        curves: by partition and method, one for each seed.
    """

    config: SparsAMSConfig
    curves: dict[tuple[str, str], list[Curve]]

    def rows(self) -> list[dict[str, Any]]:
        """Return the numbers of the table, a row for each partition and method."""
        rows = []
        for (partition, method), curves in self.curves.items():
            accuracies = [curve.accuracy[-1] for curve in curves]
            losses = [curve.loss[-1] for curve in curves]
            sent = sum(curve.sent[-1] for curve in curves) / len(curves)
            rows.append(
                {
                    "partition": partition,
                    "method": method,
                    "accuracy": sum(accuracies) / len(accuracies),
                    "accuracy_min": min(accuracies),
                    "accuracy_max": max(accuracies),
                    "loss": sum(losses) / len(losses),
                    "bytes_per_step": sent / self.config.steps,
                }
            )
        return rows

    def records(self) -> list[dict[str, float]]:
        """Return mean test accuracies, a record for each step of the evaluations."""
        first = next(iter(self.curves.values()))[0]
        records: list[dict[str, float]] = [{"step": step} for step in first.step]
        for (partition, method), curves in self.curves.items():
            for index, record in enumerate(records):
                total = sum(curve.accuracy[index] for curve in curves)
                record[f"accuracy {method}, {partition}"] = total / len(curves)
        return records

    def __str__(self) -> str:
        """Return the table of `rows` as aligned text."""
        config = self.config
        lines = [
            f"{config.data}, {config.workers} workers, {config.steps} steps of "
            f"{config.step_size:g}, {config.seeds} seeds: test accuracy "
            "mean [min, max], training loss",
            f"{'method':34} {'shards':8} {'B/step':>7}  accuracy               loss",
        ]
        for row in self.rows():
            label = METHODS[row["method"]].label
            lines.append(
                f"{label:34} {row['partition']:8} {row['bytes_per_step']:7.0f}  "
                f"{row['accuracy']:.4f} [{row['accuracy_min']:.4f}, "
                f"{row['accuracy_max']:.4f}]  {row['loss']:.4f}"
            )
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """Return rows and curves as plain Python values."""
        curves = [
            {
                "partition": partition,
                "method": method,
                "curves": [vars(curve) for curve in several],
            }
            for (partition, method), several in self.curves.items()
        ]
        return {"rows": self.rows(), "curves": curves}


def run(
    config: SparsAMSConfig,
    *,
    parts: Parts | None = None,
    advance: Callable[[], object] = lambda: None,
) -> SparsAMSResult:
    """Run every method on all partitions and seeds.

    Contract:
        The same config gives the same bits, whatever was killed before. Results of
        `METHODS` do not depend on each other.

    Args:
        config: what to run.
        parts: keeps finished and half-finished runs; None keeps nothing.
        advance: called after every step, also for those that were done before.

    Returns:
        The curves.

    Example:
        >>> config = SparsAMSConfig(
        ...     methods=("topk-1%",), partitions=("iid",), seeds=1, steps=20
        ... )
        >>> curve = run(config).curves["iid", "topk-1%"][0]
        >>> curve.step, curve.sent[-1] / 20 == 24 * (32 + 12) / 8
        ([0, 20], True)

    References:
        "Sparsified Distributed Adaptive Learning with Error Feedback", section of
        experiments; specification section 5.
    """
    curves: dict[tuple[str, str], list[Curve]] = {}
    for partition in config.partitions:
        datas = [
            shards(config.data, partition, config.workers, seed, config.data_dir)
            for seed in range(config.seeds)
        ]
        for method in config.methods:
            curves[partition, method] = [
                _run_one(config, partition, method, seed, data, parts, advance)
                for seed, data in enumerate(datas)
            ]
    return SparsAMSResult(config, curves)


def _run_one(
    config: SparsAMSConfig,
    partition: str,
    method: str,
    seed: int,
    data: Any,
    parts: Parts | None,
    advance: Callable[[], object],
) -> Curve:
    options, definition = config.options(seed), METHODS[method]
    size = Perceptron(data.features.shape[2], config.hidden).size
    description = {
        **asdict(options),
        "data": config.data,
        "data_dir": config.data_dir,
        "compressor": repr(definition.compressor(size)),
        "density": definition.density,
        "error_feedback": definition.error_feedback,
        "error_format": repr(definition.error_format),
        "workers": config.workers,
        "partition": partition,
        "distributed": config.distributed,
    }
    part = None if parts is None else parts.part(method, description)
    if part is not None and part.done:
        for _ in range(config.steps):
            advance()
        return Curve(**part.result())
    curve = train(
        definition,
        data,
        options,
        on_ranks=config.distributed,
        part=part,
        advance=advance,
    )
    if part is not None and _first():
        part.finish(vars(curve))
    return curve


def _first() -> bool:
    """Whether this process is the only one, or rank 0."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this experiment's options.

    Args:
        parser: of the command.
    """
    for field in fields(SparsAMSConfig):
        option = "--" + field.name.replace("_", "-")
        default = field.default
        if default is False:
            parser.add_argument(option, action="store_true", help=_HELP[field.name])
            continue
        several: dict[str, Any] = {"nargs": "+"} if isinstance(default, tuple) else {}
        parser.add_argument(
            option,
            type=str if default is None or several else type(default),
            choices=_CHOICES.get(field.name),
            default=default,
            help=_HELP[field.name],
            **several,
        )
    parser.add_argument("--out", default="runs/spars-ams", help="results go here")


_CHOICES = {
    "data": _DATA,
    "methods": tuple(METHODS),
    "partitions": PARTITIONS,
    "indices": ("packed", "int32"),
}
_HELP = {
    "data": "data set",
    "data_dir": "directory of the MNIST IDX files",
    "methods": "what to compare",
    "partitions": "how samples are dealt out to workers",
    "seeds": "runs of each method",
    "workers": "number n of workers; with --distributed, that of torchrun",
    "steps": "T",
    "batch": "samples of each worker and step",
    "step_size": "eta",
    "hidden": "width of the network",
    "evaluate_every": "steps between evaluations",
    "compensated": "multiply eta by sqrt(d/k)",
    "indices": "how indices are sent",
    "distributed": "one worker in each process that torchrun has started",
}


def config_from_arguments(arguments: argparse.Namespace) -> SparsAMSConfig:
    """Return the configuration.

    Args:
        arguments: what a parser with `add_arguments` returned.

    Returns:
        The configuration; with ``--distributed``, of as many workers as ranks.

    Raises:
        ValueError: if a value is out of range, or torchrun is missing.
    """
    given = {
        field.name: getattr(arguments, field.name) for field in fields(SparsAMSConfig)
    }
    if given["distributed"]:
        from .spars_ams_ranks import started

        given["workers"] = started()
    return SparsAMSConfig(**given)


def steps(config: SparsAMSConfig) -> int:
    """Return how often a run calls ``advance``: once per step."""
    runs = len(config.methods) * len(config.partitions) * config.seeds
    return runs * config.steps


def run_and_save(
    config: SparsAMSConfig, out: str, advance: Callable[[], object] = lambda: None
) -> str:
    """Run, and write configuration, results and figure to a directory.

    A run that was killed continues, if it is started again with the same directory;
    one that has finished starts anew.

    Args:
        config: what to run.
        out: directory.
        advance: called after every step.

    Returns:
        The table, and where the files are; nothing on ranks other than 0.

    Raises:
        OSError: if the directory cannot be written to; nothing is computed then.
        ImportError: if matplotlib is not installed.
    """
    if not _first():
        run(config, parts=Parts(Path(out)))
        distributed.barrier()
        return ""
    from . import spars_ams_figures

    with RunDirectory(out) as directory:
        directory.write_json("config.json", {**asdict(config), **environment()})
        parts = Parts(directory.path)
        result = run(config, parts=parts, advance=advance)
        with directory.ledger() as ledger:
            for record in result.records():
                ledger.append(record)
        directory.write_json("result.json", result.summary())
        directory.write_figure("spars-ams.png", spars_ams_figures.figure(result))
        if config.distributed:
            distributed.barrier()  # the others read the parts, too
        parts.clear()
        return f"{result}\n\nresults: {directory.path}"
