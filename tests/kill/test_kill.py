"""Six random kills of one run in the test command; ``python -m tests.kill`` does sixty."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.kill.comparison import contents, differences
from tests.kill.killer import Kill, attack
from tests.kill.marked_run import PLACES


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process")
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path):
    report = attack(tmp_path, kills=6, per_folder=6, seed=20261126)
    assert report.different == []
    assert sum(report.kills.values()) == 6
    assert report.in_resumes == 5
    assert report.files > 60
    assert set(report.kills) <= set(PLACES)
    _a_changed_byte_is_found(tmp_path)


def _a_changed_byte_is_found(folder):
    """One file of each kind, a byte in its middle; and a number in each kind of JSON."""
    run, copy = folder / "run-001", folder / "copy"
    expected = contents(run)
    shutil.copytree(run, copy)
    kinds = {Path(name).suffix: name for name in expected}
    for name in (kinds[kind] for kind in (".parquet", ".safetensors", ".svg", ".md", ".html")):
        content = bytearray((run / name).read_bytes())
        content[len(content) // 2] ^= 1
        (run / name).write_bytes(content)
        assert differences(expected, contents(run)) == [name]
        shutil.copy(copy / name, run / name)
    state = "round-01/student/trainer_state.json"
    changes = [("metrics.jsonl", '"step": 1', '"step": 9'), (state, '"step": 1', '"step": 9')]
    for name, old, new in (*changes, ("run.json", '"seed": 7', '"seed": 8')):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))
    (run / "extra").touch()
    changed = ["extra", "metrics.jsonl", state, "run.json"]
    assert differences(expected, contents(run)) == changed


def test_kills_are_in_the_order_of_the_run():
    kills = [Kill(place, round, 0, 0.0) for round in (2, 1) for place in reversed(PLACES)]
    ordered = sorted(kills, key=lambda kill: kill.position)
    assert [kill.place for kill in ordered if kill.round == 1][:-1] == list(PLACES)[:-1]
    assert ordered[-1].place == "report"
