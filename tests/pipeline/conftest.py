"""Worlds that the tests of this folder share. They are read-only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import worlds

from pad_fast import cli


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder with models, prompts and a config."""
    folder = tmp_path_factory.mktemp("world")
    worlds.write_config(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A world with a finished run of two rounds and the baseline."""
    folder = tmp_path_factory.mktemp("finished")
    torch.set_num_threads(1)
    assert cli.main(["run", str(worlds.write_config(folder, rounds=2, baseline="seqkd"))]) == 0
    return folder


@pytest.fixture
def no_report(monkeypatch):
    """Skip the report, whose pictures take longer than the rest of a run."""
    monkeypatch.setattr("pad_fast.report.write_report", lambda root: root / "report" / "index.html")
