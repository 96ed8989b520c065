"""The modules that made the embedded world, which are not part of the package."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``tools.make`` is tools/make_tiny_world.py; the others are in tools/tiny_world/."""
    monkeypatch.syspath_prepend(str(TOOLS))
    modules = {
        name: importlib.import_module(f"tiny_world.{name}")
        for name in ("tasks", "tokenizer", "lessons", "train", "card")
    }
    return SimpleNamespace(make=importlib.import_module("make_tiny_world"), **modules)
