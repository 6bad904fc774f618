"""The command line: what it prints, and one clear sentence for every bad input."""

import json
import os
import re
import subprocess
import sys

import pytest

from lowprec.cli import main
from lowprec.measure import Ledger

SHORT = ["run", "logistic", "--data", "S1", "--samples", "128", "--iterations", "5"]


def outcome(capsys, *arguments):
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def _no_data(*_, **__):
    raise ValueError("no data today")


def test_format_prints_a_table(capsys):
    status, out, _ = outcome(capsys, "format", "e4m3fn", "bfloat16", "e8m15")
    assert status == 0
    assert "448" in out
    assert "bfloat16" in out
    assert "2^-16" in out


def test_format_prints_block_formats_too(capsys):
    main(["format", "e2m1fn", "mxfp4"])
    text = capsys.readouterr().out
    assert "e2m1fn" in text.splitlines()[0]
    assert "bits per value       4.25" in text


def test_format_prints_posits_too(capsys):
    assert main(["format", "posit8_0", "e2m1fn"]) == 0
    text = capsys.readouterr().out
    assert "e2m1fn" in text.splitlines()[0]
    assert "posit8_0" in text
    assert "smallest positive  0.015625" in text


def test_format_prints_levels_too(capsys):
    assert main(["format", "ternary", "int_bits(2)", "posit16", "mxfp4"]) == 0
    first, second, third, fourth = capsys.readouterr().out.split("\n\n")
    assert "-1, 0, 1" in first
    assert "int_bits(2)" in second
    assert "exponent bits es   2" in third
    assert "block size           32" in fourth
    assert main(["format", "int_bits(99)"]) == 2
    assert "bits must be from 2 to 16, got 99" in capsys.readouterr().err


def test_formats_lists_known_names(capsys):
    status, out, _ = outcome(capsys, "formats")
    assert status == 0
    assert "e5m2fnuz" in out


def test_logistic_writes_everything(capsys, tmp_path):
    status, out, _ = outcome(capsys, *SHORT, "--out", str(tmp_path / "run"))
    assert status == 0
    assert "Theorem 4.3" in out
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"config.json", "result.json", "metrics.jsonl", "logistic.png"}
    assert len(Ledger.load(tmp_path / "run" / "metrics.jsonl")) == 5
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["certificate_holds"]
    assert (tmp_path / "run" / "logistic.png").read_bytes()[:4] == b"\x89PNG"


def test_options_override_the_mode(capsys, tmp_path):
    options = ["--gradient", "bfloat16", "--accumulator", "e8m10", "--update", "bf16"]
    options += ["--update-rounding", "stochastic", "--block-size", "8"]
    status, *_ = outcome(capsys, *SHORT, *options, "--out", str(tmp_path))
    assert status == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["update"] == "Rounding('bfloat16', 'stochastic')"
    assert "block_size=8" in config["accumulator"]


BAD = {
    "unknown format": (["format", "e9000"], "unknown format|eXmY|e9000"),
    "zero-width mantissa": (["format", "e5m0"], "zero-width mantissa"),
    "unknown gradient": ([*SHORT, "--gradient", "float7"], "float7"),
    "unknown mode": ([*SHORT, "--update-rounding", "up"], "unknown rounding mode 'up'"),
    "negative block": ([*SHORT, "--block-size", "-4"], "block_size must be positive"),
    "wide accumulator": ([*SHORT, "--accumulator", "e11m52"], "at most 51"),
    "wide format": ([*SHORT, "--update", "e15m60"], "float64"),
    "NaN step size": ([*SHORT, "--step-size", "nan"], "step size must be positive"),
    "infinite penalty": ([*SHORT, "--penalty", "inf"], "penalty must be finite"),
    "separable": ([*SHORT, "--samples", "4"], "no minimiser exists"),
    "no threads": ([*SHORT, "--threads", "0"], "threads must be 1 or more"),
    "no samples": ([*SHORT, "--samples", "0"], "samples must be 1 or more"),
    "no data directory": (["run", "logistic", "--data", "mnist"], "needs --data-dir"),
    "missing data": (
        ["run", "logistic", "--data", "mnist", "--data-dir", "/nowhere"],
        "/nowhere",
    ),
    "rounding of nothing": (
        [*SHORT, "--mode", "A", "--update-rounding", "stochastic"],
        "needs a format",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence(capsys, tmp_path, arguments, message):
    if arguments[0] == "run":
        arguments = [*arguments, "--out", str(tmp_path / "new" / "run")]
    status, out, err = outcome(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("lowprec: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [SHORT, ["figure", "sgd-4", "--data", "S1"]])
def test_failing_later_leaves_results_of_earlier_runs(
    capsys, tmp_path, monkeypatch, command
):
    (tmp_path / "kept.txt").write_text("earlier")
    monkeypatch.setattr("lowprec.experiments.data.load", _no_data)
    for out in (tmp_path, tmp_path / "new"):
        assert outcome(capsys, *command, "--out", str(out))[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_unwritable_output_is_refused_first(capsys, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    status, _, err = outcome(capsys, *SHORT, "--out", str(blocked / "run"))
    assert status == 2
    assert "cannot write results" in err
    assert blocked.read_text() == "in the way"


def test_module_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lowprec", "format", "no-such-format"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 2
    assert "no-such-format" in done.stderr


@pytest.mark.parametrize("name", ["sgd-4", "sgd-6", "sgd-14"])
def test_figures_are_drawn(capsys, tmp_path, name):
    arguments = ["--iterations", "3", "--out", str(tmp_path)]
    if name != "sgd-14":
        arguments += ["--data", "S1"]
    status, out, _ = outcome(capsys, "figure", name, *arguments)
    assert status == 0
    assert (tmp_path / f"{name}.png").exists()
    assert f"{name}.png" in out


def test_report_makes_a_page_of_a_run(capsys, tmp_path):
    out = tmp_path / "run"
    assert main([*SHORT, "--out", str(out)]) == 0
    capsys.readouterr()
    status, text, _ = outcome(capsys, "report", str(out))
    assert (status, text.strip()) == (0, str(out / "report.html"))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Theorem 4.3" in page
    assert "5 measured steps, 0 to 4." in page
    (out / "result.json").unlink()  # a run that was killed
    target = tmp_path / "page.html"
    status, text, _ = outcome(capsys, "report", str(out), "--out", str(target))
    assert (status, text.strip()) == (0, str(target))
    assert "5 measured steps" in target.read_text(encoding="utf-8")


def test_report_of_a_directory_without_results_is_refused(capsys, tmp_path):
    status, _, err = outcome(capsys, "report", str(tmp_path))
    assert status == 2
    assert "has no metrics.jsonl: give the directory" in err


@pytest.mark.parametrize("command", [["formats"], ["vectors", "e2m1"]])
def test_closed_standard_output_is_said(capsys, monkeypatch, command):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after `>&-`
    assert main(command) == 2
    monkeypatch.undo()
    err = capsys.readouterr().err
    assert err == "lowprec: error: standard output is closed\n"


def test_formats_lists_block_formats_and_posits(capsys):
    _, out, _ = outcome(capsys, "formats")
    assert all(name in out for name in ("nvfp4", "msfp12", "posit8_0", "positN_ES"))
