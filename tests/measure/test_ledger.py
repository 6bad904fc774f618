"""The ledger: exact round trips, and files that survive a killed process."""

import errno
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from lowprec.measure import Ledger, _ledger


def test_floats_come_back_bit_for_bit(tmp_path):
    values = [0.1, 5e-324, 1.7976931348623157e308, math.inf, -0.0, math.pi]
    with Ledger(tmp_path / "run.jsonl") as ledger:
        for x in values:
            ledger.append({"x": x})
    read = Ledger.load(tmp_path / "run.jsonl")
    assert [x.hex() for x in read["x"].tolist()] == [x.hex() for x in values]


def test_records_hold_scalars_only():
    ledger = Ledger()
    ledger.append(
        {
            "a": torch.tensor(1.5),
            "b": np.float32(0.5),
            "c": np.int64(3),
            "d": True,
            "e": "text",
            "f": None,
        }
    )
    assert ledger[0] == {"a": 1.5, "b": 0.5, "c": 3, "d": True, "e": "text", "f": None}
    assert ledger[0]["d"] is True
    with pytest.raises(TypeError, match=r"'x' must be a float.*got Tensor.*a norm"):
        ledger.append({"y": 1.0, "x": torch.ones(3)})
    assert len(ledger) == 1


def test_columns_have_nan_where_a_record_lacks_them():
    ledger = Ledger()
    ledger.append({"step": 0, "loss": 2.0, "phase": "warm"})
    ledger.append({"step": 1, "phase": "late"})
    assert ledger.names == ["step", "loss", "phase"]
    np.testing.assert_array_equal(ledger["loss"], [2.0, math.nan])
    assert ledger["phase"].tolist() == ["warm", "late"]
    assert [record["step"] for record in ledger] == [0, 1]
    with pytest.raises(
        KeyError, match="no quantity 'los': there are step, loss, phase"
    ):
        ledger["los"]


def test_summary_and_pandas():
    ledger = Ledger()
    for k, x in enumerate([3.0, -5.0, 4.0]):
        ledger.append({"step": k, "x": x, "phase": "a"})
    row = ledger.summary()["x"]
    assert (row.count, row.mean, row.max, row.last) == (3, 2 / 3, 5.0, 4.0)
    assert row.rms == pytest.approx(math.sqrt(50 / 3), rel=1e-15)
    assert "phase" not in str(ledger.summary())
    frame = ledger.to_pandas()
    assert list(frame.columns) == ["step", "x", "phase"]
    assert frame["x"].tolist() == [3.0, -5.0, 4.0]


def test_rms_neither_overflows_nor_underflows():
    ledger = Ledger()
    for x in (3e-200, 4e-200):
        ledger.append({"small": x, "large": x * 1e300 * 1e150})
    summary = ledger.summary()
    assert summary["small"].rms == pytest.approx(5e-200 / math.sqrt(2), rel=1e-14)
    assert summary["large"].rms == pytest.approx(5e250 / math.sqrt(2), rel=1e-14)


def test_an_existing_file_is_continued(tmp_path):
    path = tmp_path / "new" / "run.jsonl"
    for start in (0, 2):
        with Ledger(path) as ledger:
            ledger.append({"step": start})
            ledger.append({"step": start + 1})
    assert Ledger.load(path)["step"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("tail", [b'{"step": 2, "lo', b"{", b'{"step"', b"\xff\xfe"])
def test_a_truncated_last_line_is_ignored_and_then_removed(tmp_path, tail):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1}\n' + tail)
    assert Ledger.load(path)["step"].tolist() == [0, 1]
    with Ledger(path) as ledger:
        ledger.append({"step": 2})
    assert Ledger.load(path)["step"].tolist() == [0, 1, 2]


def test_a_complete_last_record_without_newline_is_kept(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1}')
    assert len(Ledger.load(path)) == 2
    with Ledger(path) as ledger:
        ledger.append({"step": 2})
    assert Ledger.load(path)["step"].tolist() == [0, 1, 2]


def test_a_line_longer_than_one_read_is_continued(tmp_path):
    path = tmp_path / "run.jsonl"
    whole = b'{"text": "' + b"x" * 200_000 + b'"}'
    for tail in (whole[:-2], whole, whole + b"\n"):
        path.write_bytes(b'{"step": 0}\n' + tail)
        with Ledger(path) as ledger:
            ledger.append({"step": 1})
        read = Ledger.load(path)
        assert len(read) == (3 if whole in tail else 2)
        assert (read[0], read[-1]) == ({"step": 0}, {"step": 1})


def test_a_full_disk_leaves_no_half_line_before_the_next_record(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    ledger = Ledger(path)
    ledger.append({"step": 0})
    whole = _ledger._write_line

    def half(file, line):
        file.write(line[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_ledger, "_write_line", half)
    with pytest.raises(OSError, match="No space left"):
        ledger.append({"step": 1})
    assert len(ledger) == 1
    monkeypatch.setattr(_ledger, "_write_line", whole)
    ledger.append({"step": 2})
    ledger.close()
    assert Ledger.load(path)["step"].tolist() == [0, 2]


def test_devices_are_appended_to_without_being_read():
    with Ledger("/dev/null") as ledger:
        ledger.append({"step": 0})
    with pytest.raises(OSError, match="No space left"), Ledger("/dev/full") as full:
        full.append({"step": 0})


def test_a_quantity_that_is_always_none_is_nan():
    ledger = Ledger()
    ledger.append({"step": 0, "loss": None})
    np.testing.assert_array_equal(ledger["loss"], [math.nan])


def test_other_damage_is_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"step": 0}\nnonsense\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*run\.jsonl is no JSON record"):
        Ledger.load(path)
    with pytest.raises(FileNotFoundError):
        Ledger.load(tmp_path / "none")


WRITER = """
import sys
from lowprec.measure import Ledger
ledger = Ledger(sys.argv[1])
step = 0
while True:
    ledger.append({"step": step, "text": "x" * 5000})
    step += 1
"""


def test_a_killed_process_leaves_a_readable_file(tmp_path):
    path = tmp_path / "run.jsonl"
    process = subprocess.Popen([sys.executable, "-c", WRITER, os.fspath(path)])
    try:
        deadline = time.monotonic() + 60
        while not (path.exists() and path.stat().st_size > 200_000):
            assert time.monotonic() < deadline, "the writer wrote nothing"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    steps = Ledger.load(path)["step"]
    assert len(steps) >= 39
    assert steps.tolist() == list(range(len(steps)))
    with Ledger(path) as ledger:
        ledger.append({"step": -1})
    assert Ledger.load(path)["step"][-1] == -1
