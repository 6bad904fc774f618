"""Parts of runs: found again after a kill, never half-written."""

import pytest
import torch

from lowprec import Levels
from lowprec.experiments.resumable import Parts


def counted(parts, total, stop_at=None):
    """Return the sum of 0 ... total-1, saved after each term, perhaps killed."""
    part = parts.part("sum", {"total": total})
    if part.done:
        return part.result(), 0
    state = part.state() or {"next": 0, "sum": torch.tensor(0.0)}
    steps = 0
    for number in range(state["next"], total):
        if number == stop_at:
            raise KeyboardInterrupt
        state = {"next": number + 1, "sum": state["sum"] + number}
        part.save(state)
        steps += 1
    part.finish(state["sum"])
    return state["sum"], steps


def test_a_part_continues_and_is_done_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        counted(Parts(tmp_path), 6, stop_at=4)
    assert counted(Parts(tmp_path), 6) == (torch.tensor(15.0), 2)
    assert counted(Parts(tmp_path), 6) == (torch.tensor(15.0), 0)
    assert counted(Parts(tmp_path), 7) == (torch.tensor(21.0), 7)


def test_a_description_is_a_part_whatever_its_order(tmp_path):
    parts = Parts(tmp_path)
    first = {"seed": 1, "levels": Levels.binary()}
    parts.part("a", first).finish([1.5, None, "x"])
    assert parts.part("a", dict(reversed(first.items()))).result() == [1.5, None, "x"]
    for name, other in (
        ("b", first),
        ("a", {**first, "seed": 2}),
        ("a", {**first, "levels": Levels.ternary()}),
    ):
        assert not parts.part(name, other).done
    assert parts.part("b", first).state() is None


def test_a_kill_while_writing_keeps_the_state_before(tmp_path, monkeypatch):
    part = Parts(tmp_path).part("a/b: c", {})
    part.save({"step": 1})

    def killed(content, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            part.save({"step": 2})
    assert part.state() == {"step": 1}
    part.finish("end")
    assert part.state() is None
    assert part.result() == "end"


def test_cleared_parts_are_gone(tmp_path):
    parts = Parts(tmp_path)
    parts.clear()
    parts.part("a", {}).finish(1)
    parts.clear()
    assert not parts.part("a", {}).done
    assert list(tmp_path.iterdir()) == []
