"""``pad-fast init``: commented files that parse to what their recipe says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from commands import failing

from pad_fast import cli
from pad_fast.commands import RECIPES
from pad_fast.pipeline import starters
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.setting_groups import MOST_USED, setting_groups
from pad_fast.pipeline.starters import recipe_files, starter

SETTINGS = {each.name: each for group in setting_groups().values() for each in group}


def test_the_command_knows_every_recipe():
    assert set(RECIPES) == set(recipe_files())


@pytest.mark.parametrize("name", RECIPES)
def test_a_starter_holds_the_recipe_and_the_help_of_each_setting(name):
    source = recipe_files()[name].read_text()
    text = starter(source)
    values = yaml.safe_load(text)
    assert values == yaml.safe_load(source)
    assert [line for line in text.splitlines() if len(line) > 100] == []
    flat = re.sub(r"\n# ", " ", text)
    for key in {*values, *MOST_USED} & SETTINGS.keys():
        first = SETTINGS[key].help.partition(". ")[0]
        assert SETTINGS[key].short_help.partition(". ")[0] in flat, first
    for comment in re.findall(r"#.*", source):  # nothing that a recipe says is lost
        assert comment.strip() in text
    shown = set(re.findall(r"^(?:# )?(\w+):(?: |$)", text, re.M))
    assert {*values, *MOST_USED} & SETTINGS.keys() <= shown


def test_what_is_commented_out_is_the_default(tmp_path):
    """Without its comment signs, a line changes nothing."""
    text = starter("student: a\nteacher: b\nprompts: c\n")
    lines = re.findall(r"^# (\w+: .+)$", text, re.M)
    given = [line for line in lines if line.partition(":")[0] in SETTINGS]
    assert len(given) > 8
    (tmp_path / "plain.yaml").write_text("student: a\nteacher: b\nprompts: c\n")
    (tmp_path / "whole.yaml").write_text(text + "\n".join(given))
    flags = ["--output_dir", str(tmp_path / "run")]
    plain, whole = (
        parse_settings("run", [str(tmp_path / f"{name}.yaml"), *flags])
        for name in ("plain", "whole")
    )
    assert plain == whole


def test_files_are_not_overwritten_unasked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init"]) == 0
    assert "pad-fast doctor config.yaml" in capsys.readouterr().out
    Path("config.yaml").write_text("mine")
    assert "config.yaml is there; give another --output" in failing(capsys, "init", "blank")
    assert Path("config.yaml").read_text() == "mine"
    assert cli.main(["init", "blank", "--overwrite"]) == 0
    assert yaml.safe_load(Path("config.yaml").read_text()) == dict.fromkeys(
        ("student", "teacher", "prompts")
    )
    assert cli.main(["init", "gemma-2-9b-to-2b", "--output", "my own.yaml"]) == 0
    assert "pad-fast run 'my own.yaml'" in capsys.readouterr().out
    assert "pad-fast run my own.yaml --use_peft true" in Path("my own.yaml").read_text()
    assert cli.main(["init", "smollm2-135m", "--output", "-"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["mcq_weight"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "my own.yaml"]


def test_what_is_wrong_is_named(tmp_path, capsys, monkeypatch):
    assert "did you mean gemma-2-9b-to-2b?" in failing(capsys, "init", "gemma-2-9b")
    assert "unknown argument --outptu" in failing(capsys, "init", "--outptu", "x.yaml")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "blank.yaml").write_text("student:\n")
    monkeypatch.setattr(starters, "FOLDERS", (tmp_path / "none", tmp_path / "recipes"))
    assert list(recipe_files()) == ["blank"]
    monkeypatch.setattr(starters, "FOLDERS", (tmp_path / "none",))
    assert "has no recipes" in failing(capsys, "init")
