"""The world that the tests of this folder share. It is read-only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import worlds


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    worlds.write_config(folder)
    return folder
