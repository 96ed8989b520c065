"""Models that a run takes or refuses before their weights are read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
import worlds
from commands import failing
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from worlds import changed_config
from wrappers import wrapped_model

from pad_fast import cli
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.parquet_rows import read_rows, shard_paths
from pad_fast.pipeline.run import RunContext


def saved(folder: Path, model, tokenizer=None) -> Path:
    tokenizer = tokenizer or worlds.character_tokenizer()
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "last", "changes"),
    [
        ("gemma3", "seqkd", {"baseline": "seqkd"}),
        pytest.param("mllama", "student-02", {"rounds": 2}, marks=pytest.mark.long),
    ],
)
def test_a_whole_run_of_models_with_nested_configs(world, tmp_path, no_report, name, last, changes):
    size = len(worlds.character_tokenizer())
    for seed, role in enumerate(("student", "teacher")):
        saved(tmp_path / role, wrapped_model(name, seed, vocabulary=size, window=256))
    config = changed_config(
        world,
        tmp_path,
        student="./student",
        teacher="./teacher",
        prompts_per_round=2,
        repeats="each",  # so small a model repeats itself
        heldout_size=1,
        **changes,
    )
    assert cli.main(["run", str(config)]) == 0
    root = tmp_path / "run"
    assert {path.stem for path in (root / "evaluation").glob("*.json")} >= {last}


# Tokens and rows of the embedding.


def with_rows(world: Path, folder: Path, rows: int, tokens: tuple = (), role="student") -> Path:
    """A model of the world with another number of rows in its embedding, and more tokens."""
    model = AutoModelForCausalLM.from_pretrained(world / role)
    tokenizer = AutoTokenizer.from_pretrained(world / role)
    tokenizer.add_tokens(list(tokens))
    model.resize_token_embeddings(rows)
    return saved(folder, model, tokenizer)


SIZE = len(worlds.character_tokenizer())


@pytest.mark.parametrize("command", ["run", "doctor", "plan"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_tokens_that_the_embedding_lacks(world, tmp_path, capsys, command, role):
    model = with_rows(world, tmp_path / role, SIZE, ("<extra>",), role)
    said = failing(capsys, command, changed_config(world, tmp_path), f"--{role}", model)
    assert f"{role}: the tokenizer has the token '<extra>' with the id {SIZE}" in said
    assert f"has {SIZE} rows (vocab_size) for {SIZE + 1} ids" in said


def test_padding_and_role_tokens_that_the_embedding_lacks(world, tmp_path, capsys):
    config = changed_config(world, tmp_path)
    model = with_rows(world, tmp_path / "padded", SIZE)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "<more>"})
    tokenizer.save_pretrained(model)
    said = failing(capsys, "run", config, "--student", model)
    assert f"student: the padding has the token '<more>' with the id {SIZE}" in said

    roles = with_rows(world, tmp_path / "roles", SIZE)
    tokenizer = AutoTokenizer.from_pretrained(roles)
    tokenizer.add_tokens([AddedToken("<turn>", special=True)])
    tokenizer.chat_template = "<turn>" + worlds.TEMPLATE
    tokenizer.save_pretrained(roles)
    said = failing(capsys, "run", config, "--teacher", roles)
    assert f"teacher: the chat template has the token '<turn>' with the id {SIZE}" in said


def test_special_tokens_that_nothing_uses_may_be_beyond_the_embedding(world, tmp_path):
    unused = AddedToken("<image>", special=True)
    model = with_rows(world, tmp_path / "unused", SIZE, (unused,))
    config = changed_config(world, tmp_path, student=str(model))
    assert cli.main(["sample", str(config)]) == 0


def test_ids_without_a_token_are_never_sampled(world, tmp_path):
    """Nor is one that the teacher lacks, whose embedding is padded less than the student's."""
    model = with_rows(world, tmp_path / "padded", SIZE + 6)
    weights = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():  # these would nearly always be sampled
        weights.lm_head.weight[SIZE:] = 40 * weights.lm_head.weight[:6]
    saved(model, weights)
    config = changed_config(world, tmp_path, student=str(model))
    run = RunContext(parse_settings("sample", [str(config)]))
    assert run.student(0).ids_without_token() == list(range(SIZE, SIZE + 6))
    assert run.teacher.ids_without_token() == []
    assert cli.main(["score", str(config)]) != 0  # not sampled yet
    assert cli.main(["sample", str(config)]) == 0
    rows = [
        row for path in shard_paths(tmp_path / "run/round-01/samples") for row in read_rows(path)
    ]
    seen = Counter(token for row in rows for ids in row["completion_ids"] for token in ids)
    assert max(seen) < SIZE
    assert cli.main(["score", str(config)]) == 0


# Code that a model brings along.


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_code_of_a_model_is_refused(world, tmp_path, capsys, role):
    model = tmp_path / "own"
    shutil.copytree(world / role, model)
    (model / "configuration_own.py").write_text("raise SystemExit('executed')\n")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (model / "config.json").write_text(json.dumps(config))
    said = failing(capsys, "run", changed_config(world, tmp_path), f"--{role}", model)
    assert f"{role}: {model} brings code of its own (configuration_own.OwnConfig in" in said
    assert "trust_remote_code is off" in said


def test_code_beside_a_known_model_is_not_executed(world, tmp_path):
    model = tmp_path / "own"
    shutil.copytree(world / "student", model)
    for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (model / name).write_text("raise SystemExit('executed')\n")
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text("raise SystemExit('executed')\n")
    for file, maps in (
        (
            "config.json",
            {
                "AutoConfig": "configuration_own.OwnConfig",
                "AutoModelForCausalLM": "modeling_own.OwnModel",
            },
        ),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}),
    ):
        content = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps({**content, "auto_map": maps}))
    config = changed_config(world, tmp_path, student=str(model))
    assert cli.main(["sample", str(config)]) == 0


def test_the_setting_is_refused_with_a_reason(world, tmp_path, capsys):
    config = changed_config(world, tmp_path, trust_remote_code=True)
    reason = "trust_remote_code: a run executes no code that a model or dataset brings along"
    assert reason in failing(capsys, "run", config)
    config = changed_config(world, tmp_path)
    assert reason in failing(capsys, "run", config, "--trust-remote-code", "true")
    said = failing(capsys, "run", config, '--model_init_kwargs={"trust_remote_code": true}')
    assert "model_init_kwargs: must be none, since a run loads its models itself" in said


def test_kinds_of_models(world, tmp_path, capsys):
    model = tmp_path / "other"
    shutil.copytree(world / "student", model)
    config = changed_config(world, tmp_path)
    unheard_of = {**transformers.ViTConfig().to_dict(), "model_type": "unheard_of"}
    for kind, words in (
        (transformers.T5Config().to_dict(), "model, got an encoder-decoder, T5Config"),
        (transformers.ViTConfig().to_dict(), "must be a causal language model, got ViTConfig"),
        (unheard_of, "cannot be read: The checkpoint you are trying to load has model type"),
    ):
        (model / "config.json").write_text(json.dumps(kind))
        said = failing(capsys, "run", config, "--student", model)
        assert said.startswith("pad-fast: student: ")
        assert said.count("student:") == 1
        assert words in said
