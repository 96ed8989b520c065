"""Models, prompts and folders that a run cannot start or resume with."""

from __future__ import annotations

import shutil
from pathlib import Path

import worlds
from commands import failing
from worlds import changed_config

from pad_fast import cli
from pad_fast.pipeline.run_folder import RunFolder


def test_bad_models(world, tmp_path, capsys):
    def broken(name: str, *missing: str) -> Path:
        shutil.copytree(world / "student", tmp_path / name)
        for file in missing:
            (tmp_path / name / file).unlink()
        return tmp_path / name

    config = changed_config(world, tmp_path)
    plain = broken("plain", "chat_template.jinja")
    assert "has no chat template" in failing(capsys, "run", config, "--student", plain)
    assert "teacher: the tokenizer" in failing(capsys, "run", config, "--teacher", plain)
    untold = broken("untold", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    assert "student: " in failing(capsys, "run", config, "--student", untold)
    assert "holds no weights" in failing(
        capsys, "run", config, "--teacher", broken("empty", "model.safetensors")
    )
    assert "holds no config.json" in failing(
        capsys, "run", config, "--teacher", broken("odd", "config.json")
    )
    picky = broken("picky")
    (picky / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    assert "line 1: the student's chat template refuses the conversation: no such role" in failing(
        capsys, "run", config, "--student", picky
    )


def test_changed_models_and_prompts_are_noticed(world, tmp_path, capsys):
    shutil.copytree(world / "student", tmp_path / "own")
    shutil.copy(world / "train.jsonl", tmp_path / "own.jsonl")
    config = changed_config(world, tmp_path, student="./own", prompts="./own.jsonl")
    assert cli.main(["sample", str(config)]) == 0
    with (tmp_path / "own.jsonl").open("a") as file:
        file.write('{"prompt": "more"}\n')
    assert "own.jsonl is not the file" in failing(capsys, "score", config)
    shutil.copy(world / "train.jsonl", tmp_path / "own.jsonl")
    worlds.save_model(tmp_path / "own", seed=9)
    assert "is not the model" in failing(capsys, "score", config)


def test_one_process_at_a_time(world, tmp_path, capsys):
    config = changed_config(world, tmp_path)
    with RunFolder(tmp_path / "run").locked():
        assert "another pad-fast works" in failing(capsys, "sample", config)
