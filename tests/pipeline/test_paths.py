"""Paths in settings: the home folder, variables of the environment, and folders that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import failing
from worlds import PLACES, write_config

from pad_fast.pipeline.arguments import parse_settings


def test_home_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    config = write_config(
        tmp_path, models=False, student="~/student", prompts="$DATA/a.jsonl", output_dir="~/run"
    )
    run = parse_settings("run", [str(config), "--teacher", "${DATA}/teacher"]).run
    assert run.student == str(tmp_path / "home" / "student")
    assert run.teacher == str(tmp_path / "data" / "teacher")
    assert run.prompts == str(tmp_path / "data" / "a.jsonl")
    assert run.output_dir == str(tmp_path / "home" / "run")
    assert run.heldout == str(tmp_path / PLACES["heldout"])


def test_what_exists_is_taken_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("$DATA").mkdir()
    config = write_config(tmp_path, models=False, student="$DATA")
    assert parse_settings("run", [str(config)]).run.student == "$DATA"


@pytest.mark.parametrize("setting", ["student", "teacher", "prompts", "heldout", "output_dir"])
def test_a_variable_that_is_not_set(tmp_path, capsys, monkeypatch, setting):
    monkeypatch.delenv("NOWHERE", raising=False)
    config = write_config(tmp_path, models=False, **{setting: "$NOWHERE/x"})
    error = failing(capsys, "run", config)
    assert f"{setting}: the environment has no variable NOWHERE, got '$NOWHERE/x'" in error
    config = write_config(tmp_path, models=False, **{setting: "~nobody_has_this_name/x"})
    assert f"{setting}: ~nobody_has_this_name is no user's folder" in failing(capsys, "run", config)


def test_an_output_dir_that_cannot_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for place in ("file", "file/run", "file/deep/run", "link", "link/run"):
        config = write_config(tmp_path, models=False, output_dir=str(tmp_path / place))
        error = failing(capsys, "run", config)
        assert "output_dir: " in error
        assert str(tmp_path / place.split("/")[0]) in error
        assert "give another output_dir" in error
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "file", "link"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_dir_without_permission(tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    config = write_config(tmp_path, models=False, output_dir=str(tmp_path / "locked" / "run"))
    assert "may write to" in failing(capsys, "run", config)


@pytest.mark.parametrize(
    ("student", "name"),
    [
        ("me/small-2.0", "small-2.0"),
        ("$DATA/teacher of mine/", "teacher-of-mine"),
        ("~/models/../élève", "élève"),
        (".", "work"),
        ("..", "a-home"),
        ("/", "run"),
        ("..-..", "run"),
    ],
)
def test_without_a_yaml_file_the_run_folder_is_called_after_the_student(
    tmp_path, monkeypatch, student, name
):
    """It is one folder below runs/, whatever the student's path looks like."""
    (tmp_path / "a:home" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a:home" / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "a:home"))
    monkeypatch.setenv("DATA", "/somewhere/else")
    words = ["--student", student, "--teacher", "t", "--prompts", "p"]
    assert parse_settings("run", words).run.output_dir == f"runs/{name}"
    Path("own.yaml").write_text("prompts: p\n")
    assert parse_settings("run", ["own.yaml", *words]).run.output_dir == "runs/own"
