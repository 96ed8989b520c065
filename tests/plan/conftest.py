"""Fixtures of the plan's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import worlds

from pad_fast.plan import machine as machines


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quick_measurements(monkeypatch):
    monkeypatch.setattr(machines, "SECONDS", 0.01)
    monkeypatch.setattr(machines, "COPIED", 2**20)
    monkeypatch.setattr(machines, "resident", lambda: 1000)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    worlds.write_config(folder)
    return folder


@pytest.fixture
def paper_machine(monkeypatch):
    """Plan for a machine of given rates, which starts operations in no time."""
    monkeypatch.setattr(machines, "STARTED", 0.0)
    monkeypatch.setattr(
        "pad_fast.plan.forecast.this_machine",
        lambda dtype, memory, others: machines.Machine("paper", memory or 2**40, 1e9, 1e8),
    )
