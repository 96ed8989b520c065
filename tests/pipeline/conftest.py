"""Worlds that the tests of this folder share. They are read-only."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import worlds
from transformers import AutoModelForCausalLM

from pad_fast import cli
from pad_fast.progress.bar import Bar
from pad_fast.progress.work import Work


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


@pytest.fixture(scope="session")
def foreign_teacher(world, tmp_path_factory) -> Path:
    """The same teacher with other token ids, from a tokenizer with the characters reordered."""
    folder = tmp_path_factory.mktemp("foreign")
    order = random.Random(1).sample(range(len(worlds.CHARACTERS)), len(worlds.CHARACTERS))
    tokenizer = worlds.character_tokenizer([worlds.CHARACTERS[i] for i in order])
    model = AutoModelForCausalLM.from_pretrained(world / "teacher")
    rows = torch.tensor([*range(6), *(6 + i for i in order)])
    with torch.no_grad():
        for weight in {model.model.embed_tokens.weight, model.lm_head.weight}:
            weight.copy_(weight[rows])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def no_report(monkeypatch):
    """Skip the report, whose pictures take longer than the rest of a run."""
    monkeypatch.setattr("pad_fast.report.write_report", lambda root: root / "report" / "index.html")


@pytest.fixture
def bars(monkeypatch) -> list[Work]:
    """What each bar of a run showed at its end."""
    found, leave = [], Bar.__exit__
    monkeypatch.setattr(Bar, "__exit__", lambda bar, *e: (found.append(bar.work), leave(bar, *e)))
    return found
