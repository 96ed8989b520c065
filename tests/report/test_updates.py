"""The report of a run that goes on: brought up to date after a phase, at little cost."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from pad_fast.pipeline import rounds


@pytest.fixture
def run(tmp_path):
    """A run that keeps the names of its finished phases."""
    phases: list[str] = []
    folder = SimpleNamespace(root=tmp_path, finished=phases.append, phases=phases)
    return SimpleNamespace(folder=folder, reported=time.monotonic() - 100.0)


def test_it_is_written_after_a_phase(run, monkeypatch):
    written = []
    monkeypatch.setattr("pad_fast.report.write_report", written.append)
    rounds._finish(run, "round-01/sample")
    assert written == [run.folder.root]
    assert run.folder.phases == ["round-01/sample"]  # the report itself is not finished
    # A phase of seconds waits for the next report.
    rounds._finish(run, "round-01/score")
    assert len(written) == 1
    run.reported -= rounds.BETWEEN_REPORTS
    rounds._finish(run, "round-01/train")
    assert len(written) == 2


def test_a_page_that_cannot_be_written_ends_no_run(run, monkeypatch, caplog):
    def full(root):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pad_fast.report.write_report", full)
    rounds._finish(run, "round-01/sample")
    assert "the report could not be brought up to date: [Errno 28]" in caplog.text
    assert run.folder.phases == ["round-01/sample"]
