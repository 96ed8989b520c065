"""Models, prompts and folders that a run cannot start or resume with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import worlds
from commands import failing
from worlds import changed_config

from pad_fast import cli
from pad_fast.files.own_files import read_json, write_json
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.open_run import open_run
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.train import train_round


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
    (picky / "chat_template.jinja").write_text("{{ 1/0 }}")
    said = failing(capsys, "run", config, "--teacher", picky)
    assert "the teacher's chat template refuses the conversation: division by zero" in said
    assert str(picky) in said


@pytest.mark.parametrize("command", ["run", "doctor"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_templates_that_lose_a_message(world, tmp_path, capsys, command, role):
    model = tmp_path / role
    shutil.copytree(world / role, model)
    (model / "chat_template.jinja").write_text(
        worlds.TEMPLATE.replace(
            "{{ message['content'] }}", "{{ message['content'] if message['role'] != 'system' }}"
        )
    )
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2=?"}]
    rows = [{"prompt": "1+1=?"}, {"prompt": turns}, {"prompt": "3"}, {"prompt": "4"}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = changed_config(world, tmp_path, prompts=str(prompts), heldout_size=1, heldout=None)
    said = failing(capsys, command, config, f"--{role}", model)
    assert (
        f"prompts.jsonl: line 2: the {role}'s chat template leaves out text of message 1 of 2"
        in said
    )
    assert "the system's 'Be brief.'" in said
    assert f"({model})" in said


def test_the_date_in_a_template_is_that_of_the_start(world, tmp_path):
    shutil.copytree(world / "student", tmp_path / "own")
    (tmp_path / "own" / "chat_template.jinja").write_text(
        "{{ strftime_now('%Y %S') }}" + worlds.TEMPLATE
    )
    config = changed_config(world, tmp_path, student="./own")
    assert cli.main(["sample", str(config)]) == 0
    manifest = tmp_path / "run" / "run.json"
    write_json(manifest, {**read_json(manifest), "created": "2001-02-03T04:05:06+00:00"})
    run = RunContext(parse_settings("sample", [str(config)]))
    assert run.student(0).chat.rendered([{"role": "user", "content": "1"}]) == "2001 06<|user|>1"
    assert run.teacher.now == run.student(0).now


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


@pytest.fixture(scope="module")
def begun(world, tmp_path_factory):
    """The settings of a run that was prepared, as a YAML file and as its folder."""
    folder = tmp_path_factory.mktemp("begun")
    config = changed_config(world, folder, learning_rate=None, mcq_floor=0.01)
    with open_run(parse_settings("run", [str(config)])):
        return config, folder / "run"


def resolved(*words):
    settings = parse_settings("run", [str(word) for word in words])
    return settings.resolved(settings.pad_config(Path("unused")))


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--mcq_preset", "paper"],
        ["--mcq_preset", "released"],
        ["--num_generations", "6"],
        ["--num_generations", "6", "--heldout_num_generations", "5"],
        ["--preset", "paper"],
        ["--use_peft", "true"],
        ["--prompts_per_step", "8"],
        ["--teacher_response", "true"],
    ],
)
def test_a_folder_is_read_as_the_settings_that_it_was_started_with(begun, flags):
    """What was left open follows from a changed setting, as it does with the YAML file."""
    config, folder = begun
    assert resolved(folder, *flags) == resolved(config, *flags)


def test_a_given_value_is_kept_beside_a_changed_preset(begun):
    _, folder = begun
    found = resolved(folder, "--mcq_preset", "released")
    names = ("mcq_formula", "mcq_weight", "mcq_floor", "heldout_num_generations")
    assert [found[name] for name in names] == ["paper", 1.0, 0.01, 3]


def test_a_folder_that_holds_what_followed_as_given_still_opens(begun, tmp_path):
    """Earlier manifests did not tell the two apart."""
    folder = tmp_path / "run"
    shutil.copytree(begun[1], folder)
    manifest = read_json(folder / "run.json")
    config = {name: manifest["resolved"][name] for name in manifest["config"]}
    write_json(folder / "run.json", {**manifest, "config": config})
    with open_run(parse_settings("run", [str(folder)])):
        (change,) = read_json(folder / "run.json")["changes"]
    assert change["to"] == {"output_dir": str(folder)}
    assert resolved(folder)["mcq_formula"] == "scale_free"


@pytest.mark.usefixtures("no_report")
def test_what_a_training_chose_is_chosen_again_for_other_settings(
    world, tmp_path, capsys, monkeypatch
):
    """The first one died before its first checkpoint, and teacher_beta is at most beta."""
    config = changed_config(world, tmp_path)
    for phase in ("sample", "score"):
        assert cli.main([phase, str(config)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train_round, "fit", lambda *args: 1 / 0)
        assert cli.main(["train", str(config)]) == 1
    before = read_json(tmp_path / "run" / "run.json")["chosen"]["teacher_beta"]
    smaller = before / 2
    assert cli.main(["train", str(config), "--beta", str(smaller)]) == 0
    assert read_json(tmp_path / "run" / "run.json")["chosen"]["teacher_beta"] == smaller
