"""What a run on several ranks says and does where one of them cannot go on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import launched
import pytest
import torch
import worlds
from commands import failing

from pad_fast.launch import process

SECONDS = 60  # from the death of one rank to the end of all; a hang would take half an hour


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    worlds.write_config(folder)
    return folder


@pytest.mark.slow
def test_what_differs_between_ranks_is_said_once(world, tmp_path):
    config = worlds.changed_config(world, tmp_path, output_dir=str(tmp_path / "run"))
    launched.script(2, Path(__file__).parent / "differing_ranks.py", config, tmp_path, ends=1)
    bad, settings, versions, gpus, folder = (
        said(tmp_path, run) for run in ("bad", "settings", "versions", "gpus", "folder")
    )
    host = process.platform.node()
    assert bad.startswith(f"pad-fast: rank 0 of 2 ({host}): ")
    assert "learning_rate" in bad
    assert f" of 2 ({host}): settings: rank 0 (" in settings
    assert "differ: temperature is 1.0 and 0.5; start all of them with the same command" in settings
    assert "environment: rank 0 (" in versions
    assert "torch is " in versions
    assert "and '1.0'" in versions
    assert f"num_processes: rank 0 and rank 1 on {host} have the same GPU, and each" in gpus
    assert "rank 1 of 2 (" in folder
    assert f"does not see {tmp_path}/elsewhere/run.json, which rank 0 on " in folder
    assert "give a folder that all machines share" in folder


def said(folder: Path, run: str) -> str:
    """The one message of both ranks about a run, without that of a rank that was then ended."""
    texts = [path.read_text() for path in sorted(folder.glob(f"{run}-*.txt"))]
    lines = [line for text in texts for line in text.splitlines()]
    (message,) = (
        line
        for line in lines
        if line.startswith("pad-fast: ") and not line.startswith("pad-fast: stopped")
    )
    return message


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param("0", marks=pytest.mark.long), "1"])
def test_a_rank_that_is_killed_ends_the_others(world, tmp_path, rank):
    config = worlds.changed_config(
        world, tmp_path, output_dir=str(tmp_path / "run"), num_train_epochs=2000
    )
    words = (str(Path(__file__).parents[2] / "runs_in_turn.py"), config)
    changes = {"KILLED_RANK": rank, "KILLED_IN": "train", "KILLED_MARK": str(tmp_path / "killed")}
    started = subprocess.Popen(
        launched.command(2, *words), env=launched.environment(**changes), stderr=subprocess.PIPE
    )
    _, error = started.communicate(timeout=200)
    assert started.returncode == 1
    assert time.time() - (tmp_path / "killed").stat().st_mtime < SECONDS
    assert b"Traceback" not in error.split(b"torch/distributed/elastic")[0]


@pytest.mark.slow
def test_an_interrupt_is_answered_once_with_the_command_that_was_given(world, tmp_path):
    config = worlds.changed_config(
        world, tmp_path, output_dir=str(tmp_path / "run"), num_train_epochs=2000
    )
    words = ["-m", "pad_fast", "run", str(config), "--num_processes", "2"]
    started = subprocess.Popen(
        [sys.executable, *words],
        env=launched.environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/round-01/trainer/checkpoint-*")):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does at Ctrl-C
    _, error = started.communicate(timeout=60)
    command = f"pad-fast run {config} --num_processes 2"
    assert error.count("To resume") == 1
    assert f"pad-fast: stopped; finished work is kept. To resume: {command}\n" in error


def test_a_port_that_is_taken_in_words(world, tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        config = worlds.changed_config(world, tmp_path, output_dir=str(tmp_path / "run"))
        done = subprocess.run(
            [sys.executable, "-m", "pad_fast", "run", str(config)],
            env=launched.environment(
                RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert f"the 2 processes cannot meet at 127.0.0.1:{port}, where rank 0 should" in done.stderr
    assert "give all of them another MASTER_PORT" in done.stderr


def test_what_a_process_says(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert process.named("message") == "message"
    assert process.speaks("message")
    assert not process.is_left_alone(RuntimeError("Connection closed by peer"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert process.named("message").startswith("rank 1 of 2 (")
    assert not process.speaks("message")
    assert process.is_left_alone(RuntimeError("[gloo/pair.cc] Connection closed by peer [::1]"))
    gone = "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server"
    assert process.is_left_alone(torch.distributed.DistNetworkError(gone))
    assert not process.is_left_alone(RuntimeError("mat1 and mat2 cannot be multiplied"))


def test_variables_of_a_launcher_that_are_missing(monkeypatch, capsys, world):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in process.NEEDED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "here")
    error = failing(capsys, "run", world / "config.yaml")
    assert "WORLD_SIZE: is 2, and RANK, LOCAL_RANK, MASTER_PORT are not set" in error


def test_a_command_of_one_process(monkeypatch, capsys, world):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in process.NEEDED:
        monkeypatch.setenv(name, "0")
    assert "report: takes one process, and a launcher has started 2" in failing(
        capsys, "report", world / "config.yaml"
    )


def test_restarts_on_a_store_that_is_kept(monkeypatch, capsys, world):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in process.NEEDED:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    error = failing(capsys, "run", world / "config.yaml")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE: set it to 1 for torchrun's restarts" in error
