"""No token is written to a file or to the terminal, wherever it was given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import worlds

from pad_fast import cli
from pad_fast.secret_values import hide_secrets, is_secret, without_secrets
from pad_fast.terminal import command_line
from pad_fast.training.config import PADConfig

SENTINEL = "SENTINEL"
ENVIRONMENT = {
    "HF_TOKEN": "hf_SENTINEL_environment",
    "WANDB_API_KEY": "SENTINEL_wandb",
    "AWS_SECRET_ACCESS_KEY": "SENTINEL_aws",
}
SETTINGS = {
    "hub_token": "hf_SENTINEL_file",
    "chat_template_kwargs": {"api_key": "SENTINEL_template"},
}


def files_with(text: str, folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files if text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_run_writes_no_token_anywhere(tmp_path):
    """Every byte of the folder, checkpoints and published student included, and of the output."""
    config = worlds.write_config(tmp_path, baseline="seqkd", log_level="info", **SETTINGS)
    kept = tmp_path / "kept"
    code = (
        "import shutil, sys; from pad_fast import cli; from pad_fast.pipeline import rounds;"
        f"keep = {str(kept)!r}\n"
        "def copy(folder):\n"
        "    if folder.exists():\n"
        "        shutil.copytree(folder, f'{keep}/{folder.parent.name}', dirs_exist_ok=True)\n"
        "rounds.drop_checkpoints = copy\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(config), "--disable_tqdm", "false"],
        capture_output=True,
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert list(kept.rglob("training_args.bin"))
    assert (tmp_path / "run" / "round-01" / "student" / "training_args.bin").exists()
    assert files_with("0.01", tmp_path / "run")  # a setting that is kept is found
    assert not files_with(SENTINEL, tmp_path / "run")
    assert not files_with(SENTINEL, kept)
    assert SENTINEL.encode() not in done.stdout + done.stderr


def test_pickles_and_trackers_hold_no_token(tmp_path):
    args = PADConfig(
        str(tmp_path),
        hub_token="hf_SENTINEL",
        use_cpu=True,
        model_init_kwargs={"token": "hf_SENTINEL", "revision": "main"},
    )
    path = tmp_path / "training_args.bin"
    torch.save(args, path)
    assert SENTINEL.encode() not in path.read_bytes()
    loaded = torch.load(path, weights_only=False)
    assert loaded.hub_token is None
    assert loaded.model_init_kwargs == {"revision": "main"}
    assert args.hub_token == "hf_SENTINEL"  # the training itself keeps it
    for shown in (args.to_dict(), args.to_sanitized_dict(), args.to_json_string()):
        assert SENTINEL not in str(shown)
        assert "main" in str(shown)


@pytest.mark.parametrize("where", ["environment", "flag", "file", "address"])
def test_messages_hide_tokens(tmp_path, monkeypatch, capsys, where):
    """An error that quotes a token, as libraries' errors may."""
    monkeypatch.setattr("pad_fast.secret_values._remembered", set())
    words, secret = ["run", str(worlds.write_config(tmp_path, models=False))], "hf_SENTINEL_value"
    if where == "environment":
        monkeypatch.setenv("HF_TOKEN", secret)
    elif where == "flag":
        words += ["--hub_token", secret]
    elif where == "file":
        words = ["run", str(worlds.write_config(tmp_path, models=False, hub_token=secret))]
    said = f"http://user:{secret}@host/" if where == "address" else f"refused: {secret}"
    monkeypatch.setattr("pad_fast.pipeline.rounds.run_all", lambda settings: {}[said])
    for options in ([], ["--traceback"]):
        assert cli.main([*options, *words]) == cli.FAILED
        error = capsys.readouterr().err
        assert "(secret)" in error
        assert SENTINEL not in error


def test_a_broken_yaml_line_is_named_and_not_shown(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\nhub_token: hf_SENTINEL: x\n")
    assert cli.main(["run", str(path)]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "line 2" in error
    assert SENTINEL not in error


def test_names_and_texts(monkeypatch):
    secret = ["hub_token", "push_to_hub_token", "OPENAI_API_KEY", "apikey", "token", "db_password"]
    assert all(map(is_secret, secret))
    plain = ["max_new_tokens", "pad_token", "eos_token", "num_input_tokens_seen", "monkey", "seed"]
    assert not any(map(is_secret, plain))
    assert without_secrets([{"a": ({"api_key": 1, "b": 2},)}]) == [{"a": ({"b": 2},)}]
    assert without_secrets("{not JSON") == "{not JSON"
    monkeypatch.setenv("X_TOKEN", "1")  # too short to be hidden in every text
    assert hide_secrets("1 of 10") == "1 of 10"


def test_a_command_to_copy_reads_the_token_from_the_environment():
    words = ["pad-fast", "run", "a b.yaml", "--hub-token", "hf_1", "--my_api_key=2", "--seed", "1"]
    assert command_line(words) == (
        'pad-fast run \'a b.yaml\' --hub-token "$HF_TOKEN" --my_api_key="$MY_API_KEY" --seed 1'
    )
