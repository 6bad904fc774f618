"""Table and figure of a logistic-regression run, and its command-line options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from ..rounding import Accumulator, Rounding
from .data import NAMES
from .logistic import MODES, LogisticConfig, LogisticResult, Problem, problem, run
from .output import RunDirectory, environment

__all__ = ["add_arguments", "config_from_arguments", "figure", "run_and_save", "table"]

_UNBIASED = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``lowprec run logistic``."""
    parser.add_argument("--data", default="digits", choices=NAMES, help="data set")
    parser.add_argument("--data-dir", help="directory of the MNIST IDX files")
    parser.add_argument("--samples", type=int, help="number of samples (default: all)")
    parser.add_argument("--data-seed", type=int, default=1, help="seed of S1")
    parser.add_argument(
        "--mode",
        default="B",
        choices=list(MODES),
        help="preset of the next four options; each of them overrides it",
    )
    parser.add_argument("--gradient", help="format of the gradient, or float64")
    parser.add_argument("--accumulator", help="format of the sums, or float64")
    parser.add_argument("--update", help="format of the weights, or float64")
    parser.add_argument("--update-rounding", help="rounding mode of the update")
    parser.add_argument("--gradient-rounding", help="rounding mode of the gradient")
    parser.add_argument(
        "--block-size", type=int, help="sum in blocks of this many terms"
    )
    parser.add_argument("--two-step", action="store_true", help="round eta u as well")
    parser.add_argument("--step-size", type=float, default=0.125, help="eta")
    parser.add_argument("--iterations", type=int, default=600, help="number of steps")
    parser.add_argument("--penalty", type=float, default=0.0, help="l2 factor")
    parser.add_argument("--seed", type=int, default=0, help="of stochastic rounding")
    parser.add_argument("--out", default="runs/logistic", help="directory of results")


def _rounding(preset: Any, name: str | None, mode: str | None) -> Rounding | None:
    """Return the rounding that a preset and two options ask for."""
    chosen = preset if name is None else name
    if chosen is None or chosen == "float64":
        if mode is not None:
            raise ValueError(
                f"the rounding mode {mode!r} needs a format: float64 is not rounded"
            )
        return None
    base = chosen if isinstance(chosen, Rounding) else Rounding(chosen)
    return base if mode is None else Rounding(base.format, mode)


def config_from_arguments(arguments: argparse.Namespace) -> LogisticConfig:
    """Return the configuration that the options ask for.

    Raises:
        ValueError: if an option is out of range or names an unknown format.
    """
    preset = MODES[arguments.mode]
    accumulator = None
    sums = _rounding(preset.get("accumulator"), arguments.accumulator, None)
    if sums is not None:
        accumulator = Accumulator(sums)
        if arguments.block_size is not None:
            accumulator = accumulator.replace(
                order="blocked", block_size=arguments.block_size
            )
    elif arguments.block_size is not None:
        raise ValueError("--block-size needs an --accumulator other than float64")
    return LogisticConfig(
        data=arguments.data,
        data_dir=arguments.data_dir,
        samples=arguments.samples,
        data_seed=arguments.data_seed,
        gradient=_rounding(
            preset.get("gradient"), arguments.gradient, arguments.gradient_rounding
        ),
        accumulator=accumulator,
        update=_rounding(
            preset.get("update"), arguments.update, arguments.update_rounding
        ),
        two_step=arguments.two_step,
        step_size=arguments.step_size,
        iterations=arguments.iterations,
        penalty=arguments.penalty,
        seed=arguments.seed,
    )


def steps(config: LogisticConfig) -> int:
    """Return how often a run calls ``advance``: once per gradient step."""
    return config.iterations


def run_and_save(
    config: LogisticConfig,
    out: str,
    advance: Callable[[], object] = lambda: None,
    setting: Problem | None = None,
) -> str:
    """Run, write configuration, ledger, results and figure, and return the table.

    Args:
        config: what to run.
        out: directory of results.
        advance: called after every step.
        setting: the problem, if it is known already.

    Returns:
        A table for people, with the path of the results below.

    Raises:
        OSError: if ``out`` cannot be written to; nothing has been computed then.
    """
    with RunDirectory(out) as directory:
        setting = problem(config) if setting is None else setting
        directory.write_json("config.json", {**describe(config), **environment()})
        with directory.ledger() as ledger:
            result = run(config, ledger=ledger, advance=advance, setting=setting)
            directory.write_json("result.json", result.summary())
            directory.write_figure("logistic.png", figure(result))
            return f"{table(result)}\n\nresults: {directory.path}"


def describe(config: LogisticConfig) -> dict[str, Any]:
    """Return the configuration as plain values; roundings as text that evaluates."""
    text = {
        name: repr(value)
        for name in ("gradient", "accumulator", "update")
        if (value := getattr(config, name)) is not None
    }
    return {**config.__dict__, **text}


def _numbers(result: LogisticResult) -> list[tuple[str, str]]:
    summary, config = result.summary(), result.config

    def arithmetic(value: Any) -> str:
        return "float64" if value is None else repr(value)

    return [
        (
            "data",
            f"{result.problem.dataset.name}, {len(result.problem.targets)} samples",
        ),
        ("gradient", arithmetic(config.gradient)),
        ("accumulator", arithmetic(config.accumulator)),
        ("update", arithmetic(config.update)),
        ("step size eta, steps", f"{result.step_size:g}, {config.iterations}"),
        ("minimum f*", f"{summary['f_star']:.8g}"),
        ("growth f - f* <= L d^p", f"L = {summary['L']:.4g}, p = {summary['p']:.4g}"),
        ("f - f*: smallest", f"{summary['smallest_gap']:.4g}"),
        ("f - f*: mean of second half", f"{summary['tail_mean_gap']:.4g}"),
        ("V_r = mean ||r_k||^2", f"{summary['V_r']:.4g}"),
        ("V_s = mean ||s_k||^2", f"{summary['V_s']:.4g}"),
        ("radius Gamma_s", f"{summary['Gamma_s']:.4g}"),
        (
            "bound of Theorem 4.2 on f - f*",
            "vacuous (worst-case errors reach the step size)"
            if summary["worst_case_vacuous"]
            else f"{summary['worst_case_gap']:.4g}",
        ),
        ("bound of Theorem 4.3 on f - f*", f"{summary['stochastic_bound_gap']:.4g}"),
    ]


def verdict(result: LogisticResult) -> str:
    """Say whether Theorem 4.3's bound holds for this run, and if not why.

    Args:
        result: of `run`.

    Returns:
        Sentences.
    """
    summary = result.summary()
    if summary["stochastic_bound_holds"]:
        text = "The bound holds: the smallest f - f* is below it."
        if summary["theorem_4_3_applies"]:
            return text
        return text + (
            " Its hypothesis does not: the errors are correlated with the iterates, "
            "and the bound describes where the run would settle without that."
        )
    ratio = summary["smallest_gap"] / summary["stochastic_bound_gap"]
    text = f"The bound does not hold: the smallest f - f* is {ratio:.3g} times it. "
    if summary["stagnation_tail"] > 0.99 and summary["s_bias_tail"] > _UNBIASED:
        return text + (
            "The weights stopped moving: every update is rounded back, so s_k = eta "
            "u_k has no zero mean, which the theorem needs. Stochastic rounding of the "
            "update restores it."
        )
    # Of the certificate's parts, Theorem 4.3 leaves out the progress and the bias.
    certificate = result.certificate("second_half")
    cross = certificate.cross
    parts = {
        "": certificate.progress,
        "r_k": cross.direction_gradient + cross.gradient_offset,
        "s_k": cross.direction_update + cross.update_offset,
    }
    cause = max(parts, key=lambda name: parts[name])
    if not cause:
        return text + (
            "It is a statement about the limit, which the run has not reached: the "
            "distance to the minimum is still falling. Take more steps."
        )
    # Drift along shifts of all classes, which change no loss, cancels in this sum.
    excess = certificate.mean_phi - certificate.gamma_stochastic
    return text + (
        f"The errors {cause} are correlated with the iterates, which the theorem "
        f"excludes: in the second half that adds {excess:.3g} to the radius Gamma_s = "
        f"{certificate.gamma_stochastic:.3g}."
    )


def table(result: LogisticResult) -> str:
    """Return what was run, what was measured, and what theory says, for people.

    Args:
        result: of `run`.

    Returns:
        Aligned lines.
    """
    rows = _numbers(result)
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}  {value}" for label, value in rows]
    return "\n".join([*lines, "", verdict(result)])


def figure(result: LogisticResult) -> Any:
    """Draw the loss with its bound, and the measured errors below.

    Args:
        result: of `run`.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: if matplotlib is not installed.

    References:
        Cacciola et al., Figures 5 to 8, with a second panel.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7.0, 6.5), layout="constrained")
    upper, lower = picture.subplots(2, 1, sharex=True)
    f_star = result.problem.optimum.value
    gaps = (result.losses - f_star).clamp(min=1e-16)
    steps = torch.arange(len(gaps))
    upper.semilogy(steps, gaps, color="C0", label="$f(w_k) - f^*$")
    bound = float(result.floor()) - f_star
    upper.axhline(bound, color="C3", ls="--", label=r"Theorem 4.3: $L\,\Gamma_s^p$")
    worst = result.worst_case()
    if bool(worst.vacuous):
        upper.plot(
            [], [], color="C4", ls="-.", label="Theorem 4.2 (worst case): vacuous"
        )
    else:
        level = float(worst) - f_star
        upper.axhline(level, color="C4", ls="-.", label="Theorem 4.2 (worst case)")
    upper.set_ylabel("distance to the minimum")
    upper.set_title(_title(result), fontsize=9)
    upper.legend()
    for name, label, color in (
        ("r_norm", r"$\|r_k\|$, gradient error", "C1"),
        ("s_norm", r"$\|s_k\|$, update error", "C2"),
    ):
        values = torch.as_tensor(result.trace.ledger[name])
        shown = torch.where(values > 0, values, torch.nan)
        if bool((values > 0).any()):
            lower.semilogy(steps, shown, color=color, lw=0.8, label=label)
        else:
            lower.plot([], [], color=color, label=f"{label}: zero")
    lower.axhline(
        result.step_size, color="0.5", ls=":", label=rf"$\eta$ = {result.step_size:g}"
    )
    lower.set_xlabel("step $k$")
    lower.set_ylabel("measured error")
    lower.legend()
    return picture


def _title(result: LogisticResult) -> str:
    config = result.config

    def short(value: Any) -> str:
        if value is None:
            return "float64"
        rounding = value.rounding if isinstance(value, Accumulator) else value
        name = rounding.format.name or repr(rounding.format)
        return f"{name} {rounding.mode}" if rounding.stochastic else name

    return (
        f"{result.problem.dataset.name}: gradient {short(config.gradient)}, "
        f"accumulator {short(config.accumulator)}, update {short(config.update)}"
    )
