"""Run directories: refused before computing, and never half-written."""

import json
import os
import signal
import subprocess
import sys

import pytest

from lowprec.experiments import output, quasi_convex
from lowprec.measure import Ledger

TINY = quasi_convex.QuasiConvexConfig(step_sizes=(0.5,), epochs=4, repetitions=2)


class TornFigure:
    """Writes half a file, then fails."""

    def savefig(self, path, **_):
        path.write_bytes(b"half")
        raise RuntimeError("torn")


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_files_are_whole_and_replace_older_ones(tmp_path):
    directory = output.RunDirectory(tmp_path / "a" / "b")
    for number in (1, 2):
        path = directory.write_json("config.json", {"number": number})
        assert json.loads(path.read_text()) == {"number": number}
    assert names(directory.path) == ["config.json"]


@pytest.mark.parametrize("earlier", [None, b"whole"])
def test_a_failing_write_leaves_what_was_there(tmp_path, earlier):
    if earlier is not None:
        (tmp_path / "figure.png").write_bytes(earlier)
    with pytest.raises(RuntimeError, match="torn"):
        output.RunDirectory(tmp_path).write_figure("figure.png", TornFigure())
    with pytest.raises(TypeError, match="not JSON serializable"):
        output.RunDirectory(tmp_path).write_json("result.json", {"bad": object()})
    assert names(tmp_path) == ([] if earlier is None else ["figure.png"])
    if earlier is not None:
        assert (tmp_path / "figure.png").read_bytes() == earlier


@pytest.mark.parametrize("obstacle", ["a file", "below a file", "read-only"])
def test_an_unwritable_directory_is_one_sentence_before_computing(tmp_path, obstacle):
    path = tmp_path / "out"
    if obstacle == "read-only":
        path.mkdir()
        path.chmod(0o555)
        if os.access(path, os.W_OK):
            pytest.skip("the superuser may write everywhere")
    else:
        path.write_text("")
        path = path if obstacle == "a file" else path / "deeper"
    computed = []
    with pytest.raises(OSError, match=r"cannot write results to .*choose another") as e:
        quasi_convex.run_and_save(TINY, str(path), lambda: computed.append(1))
    assert "\n" not in str(e.value)
    assert computed == []


def test_a_complete_run(tmp_path):
    text = quasi_convex.run_and_save(TINY, str(tmp_path))
    assert str(tmp_path) in text
    assert names(tmp_path) == [
        *("config.json", "metrics.jsonl", "quasi-convex.png", "result.json")
    ]
    config = json.loads((tmp_path / "config.json").read_text())
    assert {"lowprec", "torch", "python", "platform", "seed"} <= set(config)
    assert (tmp_path / "quasi-convex.png").read_bytes()[:4] == b"\x89PNG"
    ledger = Ledger.load(tmp_path / "metrics.jsonl")
    assert ledger["epoch"].tolist() == [0, 1, 2, 3, 4]


def test_the_same_configuration_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        quasi_convex.run_and_save(TINY, str(tmp_path / name))
    for name in names(tmp_path / "first"):
        first, second = (tmp_path / run / name for run in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), name


def test_a_failing_run_keeps_its_metrics_and_no_older_result(tmp_path):
    quasi_convex.run_and_save(TINY, str(tmp_path))
    left = iter([None, None])

    def advance():
        if next(left, "done") == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quasi_convex.run_and_save(TINY, str(tmp_path), advance)
    assert "result.json" not in names(tmp_path)
    assert len(Ledger.load(tmp_path / "metrics.jsonl")) == 3


KILLED = """
import os, signal, sys
from lowprec.experiments import quasi_convex as q
steps = iter(range(3))
def advance():
    if next(steps) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
q.run_and_save(q.QuasiConvexConfig(step_sizes=(0.5,), epochs=9), sys.argv[1], advance)
"""


def test_a_killed_run_leaves_whole_files_only(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["config.json", "metrics.jsonl"]
    json.loads((tmp_path / "config.json").read_text())
    assert len(Ledger.load(tmp_path / "metrics.jsonl")) == 3
