"""From the command line and a YAML file to settings, and one clear line for what is wrong."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from commands import failing
from worlds import changed_config

from pad_fast.pipeline.arguments import parse_settings, read_config
from pad_fast.pipeline.config import RunConfig

ROOT = Path(__file__).parents[2]


def test_an_empty_list_is_a_value(world, tmp_path):
    config = changed_config(world, tmp_path, report_to=[])
    assert parse_settings("run", [str(config)]).flat()["report_to"] == []


def test_flags_override_the_yaml(world, tmp_path):
    config = changed_config(
        world,
        tmp_path,
        beta=3.0,
        mcq_weight="0.25",
        chat_template_kwargs={"a": 1},
        teacher_beta=None,
    )
    settings = parse_settings(
        "run", [str(config), "--beta=5", "--num-generations", "6", "--mcq_every_place", "false"]
    )
    assert settings.training["beta"] == 5.0
    assert (
        settings.run.num_generations,
        settings.run.mcq_weight,
        settings.run.mcq_every_place,
    ) == (6, 0.25, False)
    assert settings.run.chat_template_kwargs == {"a": 1}
    assert settings.run.output_dir == str(tmp_path / "run")
    args = settings.pad_config(tmp_path / "x", seed=5, max_steps=3)
    assert (args.beta, args.seed, args.max_steps, args.temperature) == (5.0, 5, 3, 1.0)
    assert not (tmp_path / "x").exists()


def test_flags_alone_are_enough(world, tmp_path):
    given = {
        "student": world / "student",
        "teacher": world / "teacher",
        "prompts": world / "train.jsonl",
        "output_dir": tmp_path / "run",
    }
    settings = parse_settings(
        "run", [word for key, value in given.items() for word in (f"--{key}", str(value))]
    )
    assert {key: str(value) for key, value in given.items()}.items() <= settings.flat().items()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--num_genrations", "3"],
            "unknown argument --num_genrations; did you mean --num_generations?",
        ),
        (
            ["--num_generations", "1"],
            "num_generations: must be a whole number from 2 to 65,536 (a ranking needs two), got 1",
        ),
        (["--rounds", "many"], "invalid int value: 'many'"),
        (["--mcq_style", "pairs"], "argument --mcq_style"),
        (["--beta", "-1"], "beta must be a number above 0 and at most 1,000,000, got -1.0"),
        (["--loss", "none"], "loss must be one of ppd, vpd"),
        (
            ["--mcq_style=listwise", "--mcq_every_place=false", "--num_generations=27"],
            "at most 26 responses, got one of 27",
        ),
        (["--mcq_opponents", "3"], "mcq_opponents: must be an even number, got 3"),
        (["--mcq_floor", "0"], "mcq_floor: must be a number above 0 and below 1, got 0.0"),
        (["--mcq_template", "{query}"], "mcq_template: must hold the fields"),
        (["--deepspeed", "none.json"], "deepspeed: a package that it needs is not installed: "),
        (
            ["--accelerator_config", "none.json"],
            "accelerator_config: the training's arguments cannot be built: ",
        ),
        (["--chat_template_kwargs", "[1]"], "chat_template_kwargs: must be a JSON object"),
        (["--chat_template_kwargs", '{"a": 1, "a": 2}'], "the key 'a' stands twice"),
        (["--answer_rule", "close"], "argument --answer_rule"),
        (
            ["--student", "nowhere/at-all"],
            "student: nowhere/at-all is neither a folder nor a model that the hub gives",
        ),
        (["--prompts", "missing.jsonl"], "prompts: no such file or folder, missing.jsonl"),
        (
            ["--max_new_tokens", "256"],
            "max_new_tokens: must leave room for a prompt in the student's window of 256 tokens, "
            "got 256",
        ),
        (["--max_prompt_length", "4"], "line 1: the prompt has"),
        (["--max_length", "6"], "line 1: the prompt has"),
        (
            ["--num_generations", "12", "--method", "exact"],
            "at most 10 responses a group for divergence='jsd', got 12",
        ),
        (
            ["--heldout_num_generations", "17", "--method", "exact", "--divergence", "kl"],
            "at most 16 responses a group",
        ),
        (["--num_samples", "2", "--num_generations", "9"], "num_samples must be a whole number"),
        (["--eval_strategy", "epoch"], "eval_strategy: must be no, since a run evaluates every"),
        (["--save_only_model", "true"], "save_only_model: must be false, since checkpoints only"),
        (["--ignore_data_skip", "true"], "ignore_data_skip: must be false, since a training"),
        (["--max_prompt_length", "4", "--long_prompts", "drop"], "every one of them is too long"),
    ],
)
def test_bad_flags(world, tmp_path, capsys, flags, message):
    assert message in failing(capsys, "run", changed_config(world, tmp_path), *flags)
    assert not list((tmp_path / "run").glob("round-*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("roundz: 3\n", "unknown key 'roundz'; did you mean rounds?"),
        ("temprature: 3\n", "did you mean temperature?"),
        ("rounds: [\n", "is not YAML"),
        ("just words\n", "must hold keys and values"),
        ("rounds: 2\n", "student: needed, and not given"),
        ("rounds: 1.5\n", "invalid int value: '1.5'"),
        ("seed: 1\nbeta: 2\nseed: 2\n", "config.yaml: seed stands twice, in lines 1 and 3"),
        ("seed: 1\nseed: 1\n", "seed stands twice"),  # also with the same value
        ("'seed': 1\n? seed\n: 2\nseed: 3\n", "seed stands 3 times, in lines 1, 2 and 4"),
        ("lr_scheduler_kwargs:\n  a: 1\n  a: 2\n", "a stands twice, in lines 2 and 3"),
        ("report_to: [{a: 1, a: 2}]\n", "a stands twice, in lines 1 and 1"),
    ],
)
def test_bad_yaml(tmp_path, capsys, text, message):
    (tmp_path / "config.yaml").write_text(text)
    error = failing(capsys, "run", tmp_path / "config.yaml")
    assert message in error


def test_a_merged_mapping_may_be_overridden(tmp_path):
    text = "kept: &kept {a: 1, b: 2}\nkwargs: {<<: *kept, a: 3}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path / "config.yaml")["kwargs"] == {"a": 3, "b": 2}


def test_every_setting_is_read_by_something():
    source = "".join(path.read_text() for path in (ROOT / "pad_fast" / "pipeline").rglob("*.py"))
    unread = [
        field.name
        for field in dataclasses.fields(RunConfig)
        if not re.search(rf"\b(config|run|self|budget)\.{field.name}\b", source)
    ]
    assert unread == []


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "recipes").glob("*.yaml")), ROOT / "pad_fast" / "tiny_world" / "tiny.yaml"],
    ids=lambda path: path.stem,
)
def test_every_recipe_parses(path):
    blanks = [f"--{name}=filled-in" for name in ("student", "teacher", "prompts")]
    settings = parse_settings("run", [str(path), *(blanks if path.stem == "blank" else ())])
    assert set(yaml.safe_load(path.read_text())) <= set(settings.flat()) | set(
        vars(settings.pad_config(path.parent))
    )
