"""Fixtures: a finished run folder, and its page."""

from pathlib import Path

import pytest
from made_runs import make_run

from pad_fast.report import write_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run. Tests only read it."""
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "made-up"))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run without right answers, with intervals. Tests only read it."""
    run = tmp_path_factory.mktemp("runs") / "judged"
    return write_report(make_run(run, answers=False, intervals=True, baseline=False))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run with answers, three rounds and a SeqKD baseline."""
    return make_run(tmp_path / "made-up")
