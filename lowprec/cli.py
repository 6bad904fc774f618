"""The ``lowprec`` command: formats, experiments and figures.

Every error a user can cause is one sentence on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from . import __version__
from .formats import Format, any_format, describe, formats, other_tables

_INTERRUPTED = 130
_USER_ERRORS = (
    *(TypeError, ValueError, OverflowError, NotImplementedError),
    *(OSError, ImportError),
)


@dataclass(frozen=True)
class _Experiment:
    """A module of `lowprec.experiments` behind ``lowprec run NAME``.

    The module has ``add_arguments(parser)``, ``config_from_arguments(arguments)``,
    ``steps(config)``, the calls of ``advance`` a run makes, and ``run_and_save(config,
    out, advance)``, which returns the text to print.
    """

    name: str
    unit: str
    summary: str

    def module(self) -> Any:
        return import_module(f".experiments.{self.name}", __package__)


_EXPERIMENTS = {
    "logistic": _Experiment(
        "logistic_report",
        "gradient steps",
        "logistic regression by normalized gradient descent in low precision",
    ),
    "quasi-convex": _Experiment(
        "quasi_convex", "epochs", "f(w) = 3 ||w||^0.2 with artificial errors r and s"
    ),
    "clt": _Experiment(
        "clt_report",
        "steps",
        "central limit theorems: the covariance of many runs beside its limit",
    ),
    "clt-rounding": _Experiment(
        "clt_rounding_report",
        "steps",
        "covariance of SGD with rounded gradients and parameters beside predictions",
    ),
    "spars-ams": _Experiment(
        "spars_ams", "steps", "SPARS-AMS on many workers: accuracy against bytes sent"
    ),
    "two-moons": _Experiment(
        "two_moons", "epochs", "two moons with weights in {-1, 1}, all methods"
    ),
    "qat-mnist": _Experiment(
        "qat_mnist", "epochs", "perceptrons with weights of one or two bits on MNIST"
    ),
    "qat-cifar": _Experiment(
        "qat_cifar", "epochs", "ResNet-18 with binary weights on CIFAR-10"
    ),
}


def _format_command(arguments: argparse.Namespace) -> None:
    every = list(map(any_format, arguments.names))
    scalars = [one for one in every if isinstance(one, Format)]
    tables = [describe(*scalars)] if scalars else []
    others = [str(one) for one in every if not isinstance(one, Format)]
    print("\n\n".join([*tables, *others]))


def _formats_command(arguments: argparse.Namespace) -> None:
    known = formats()
    first = known._repr_markdown_() if arguments.markdown else str(known)
    print("\n\n".join([first, *other_tables(markdown=arguments.markdown)]))


def _vectors_command(arguments: argparse.Namespace) -> None:
    from .testing import _vectors_csv

    _vectors_csv.run(arguments)


def _plot_command(arguments: argparse.Namespace) -> None:
    from . import plot

    picture, names = arguments.picture, arguments.names
    if picture == "spacing":
        figure, _ = plot.spacing(*names)
    elif len(names) > 1:
        raise ValueError(f"{picture} shows one format, got {' '.join(names)}")
    elif picture == "staircase":
        figure, _ = plot.staircase(names[0], arguments.mode)
    else:
        figure, _ = plot.number_line(names[0])
    path = arguments.out or f"{'-'.join(names)}-{picture}.png"
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def _run_command(arguments: argparse.Namespace) -> None:
    experiment: _Experiment = arguments.entry
    module = experiment.module()
    config = module.config_from_arguments(arguments)
    with _progress(module.steps(config), experiment.unit) as advance:
        text = module.run_and_save(config, arguments.out, advance)
    if text:  # of several processes, one reports
        print(text)


def _report_command(arguments: argparse.Namespace) -> None:
    from .experiments import run_report

    print(run_report.write(arguments.directory, arguments.out))


def _figure_command(arguments: argparse.Namespace) -> None:
    from .experiments import figures

    figure = figures.get(arguments.name)
    total = figure.steps(arguments)
    with _progress(total, "steps") as advance:
        text = figure.make(arguments, advance)
    print(text)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads inside the context; None changes nothing."""
    if count is None:
        yield
        return
    if count < 1:
        raise ValueError(f"threads must be 1 or more, got {count}")
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _add_threads(command: argparse.ArgumentParser) -> None:
    # The steps are short: on a busy machine, waiting for a second thread costs more
    # than ten times what it gains.
    command.add_argument(
        "--threads", type=int, default=1, help="threads of torch and of the kernels"
    )


@contextmanager
def _progress(total: int, unit: str) -> Iterator[Any]:
    """Yield a function to call once per step; a bar where a person is watching."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda: None
        return
    hidden = not sys.stderr.isatty()
    with tqdm(total=total, unit=f" {unit}", disable=hidden, file=sys.stderr) as bar:
        yield lambda: bar.update(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lowprec",
        description="Software floating point: formats, experiments, figures.",
    )
    parser.add_argument("--version", action="version", version=f"lowprec {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    one = commands.add_parser("format", help="properties of formats, side by side")
    one.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="such as bfloat16, mxfp4, posit16, ternary, int_bits(2)",
    )
    one.set_defaults(handler=_format_command)
    table = commands.add_parser("formats", help="table of all known formats")
    table.add_argument("--markdown", action="store_true", help="as Markdown")
    table.set_defaults(handler=_formats_command)

    bench = commands.add_parser(
        "vectors", help="write test vectors of an operation as CSV"
    )
    _add_vectors(bench)
    picture = commands.add_parser("plot", help="draw a format as a PNG")
    _add_plot(picture)

    run = commands.add_parser("run", help="run an experiment, save JSON and PNG")
    experiments = run.add_subparsers(
        dest="experiment", required=True, metavar="experiment"
    )
    _add_experiments(experiments)

    page = commands.add_parser("report", help="write a page about a run's results")
    page.add_argument("directory", help="what `lowprec run ... --out` wrote to")
    page.add_argument("--out", help="path of the page [DIRECTORY/report.html]")
    page.set_defaults(handler=_report_command)

    figure = commands.add_parser("figure", help="reproduce a figure of the SGD paper")
    _add_figure(figure)
    return parser


def _add_experiments(experiments: Any) -> None:
    for name, entry in _EXPERIMENTS.items():
        command = experiments.add_parser(
            name,
            help=entry.summary,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        entry.module().add_arguments(command)
        _add_threads(command)
        command.set_defaults(handler=_run_command, entry=entry)


def _add_vectors(command: argparse.ArgumentParser) -> None:
    from .testing import _vectors_csv

    _vectors_csv.add_arguments(command)
    command.set_defaults(handler=_vectors_command)


def _add_plot(command: argparse.ArgumentParser) -> None:
    command.add_argument("picture", choices=["number-line", "spacing", "staircase"])
    command.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="such as e4m3fn, mxfp4, posit8, ternary",
    )
    command.add_argument(
        "--mode", default="nearest_even", help="of the staircase [nearest_even]"
    )
    command.add_argument("--out", help="path of the PNG [NAME-PICTURE.png]")
    command.set_defaults(handler=_plot_command)


def _add_figure(figure: argparse.ArgumentParser) -> None:
    from .experiments import figures

    figures.add_arguments(figure)
    _add_threads(figure)
    figure.set_defaults(handler=_figure_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what stands behind ``lowprec``; None takes it from the process.

    Returns:
        Exit status: 0, 2 for a user error, 130 when interrupted.

    Example:
        >>> main(["format", "no-such-format"])
        2
    """
    parsed = _parser().parse_args(arguments)
    if sys.stdout is None:  # Python's way to say that it was closed
        print("lowprec: error: standard output is closed", file=sys.stderr)
        return 2
    try:
        with _threads(getattr(parsed, "threads", None)):
            parsed.handler(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except _USER_ERRORS as error:
        print(f"lowprec: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lowprec: interrupted; metrics up to here are on disk", file=sys.stderr)
        return _INTERRUPTED
    return 0
