"""The data type that models sample and score in: one for a student, whatever it was trained in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from worlds import changed_config, in_bfloat16

from pad_fast import cli
from pad_fast.files.own_files import read_json
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.data_types import stored_dtype
from pad_fast.pipeline.run import RunContext


@pytest.fixture(scope="module")
def narrow(world, tmp_path_factory) -> Path:
    """The world's student, stored in bfloat16."""
    return in_bfloat16(world / "student", tmp_path_factory.mktemp("narrow") / "student")


def test_auto_is_what_transformers_finds(world, narrow, tmp_path):
    """The configuration's, else that of the weights, read from their file without loading them."""
    silent = tmp_path / "silent"
    shutil.copytree(narrow, silent)
    config = json.loads((silent / "config.json").read_text())
    del config["dtype"]
    (silent / "config.json").write_text(json.dumps(config))
    for folder, expected in ((world / "student", "float32"), (narrow, "bfloat16")):
        assert Checkpoint("student", str(folder)).loaded_dtype == getattr(torch, expected)
    for folder in (world / "student", narrow, silent):
        checkpoint = Checkpoint("student", str(folder))
        found = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype
        assert checkpoint.loaded_dtype == checkpoint.load("cpu").dtype == found
    assert Checkpoint("student", str(silent), dtype="float32").loaded_dtype == torch.float32
    unknown = SimpleNamespace(config=LlamaConfig(dtype=None), path="org/model")
    assert stored_dtype(unknown, "auto") == torch.float32


def test_a_trained_student_samples_and_scores_in_the_data_type_of_the_base(
    world, narrow, tmp_path, no_report
):
    """It is saved in float32; the batches were chosen for a model of half the size."""
    config = changed_config(
        world, tmp_path, student=str(narrow), num_generations=2, save_strategy="no"
    )
    assert cli.main(["run", str(config)]) == 0
    run = RunContext(parse_settings("run", [str(config)]))
    saved = run.folder.student(1)
    assert read_json(saved / "config.json")["dtype"] == "float32"
    assert AutoModelForCausalLM.from_pretrained(saved, dtype="auto").dtype == torch.float32
    assert run.student(1).load("cpu").dtype == run.student(0).load("cpu").dtype == torch.bfloat16
    assert run.teacher.loaded_dtype == torch.float32
    engines = run.folder.manifest()["engines"]
    assert [name.split()[-1] for name in engines["student"]] == ["bfloat16"]
    assert [name.split()[-1] for name in engines["teacher"]] == ["float32"]
    given = RunContext(parse_settings("run", [str(config), "--dtype", "float32"]))
    assert given.student(1).loaded_dtype == torch.float32
