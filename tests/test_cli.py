"""The command ``pad-fast`` itself: its table of commands, its help, and how it reports errors."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import worlds
from commands import failing
from worlds import changed_config, contents

from pad_fast import cli
from pad_fast.commands import COMMANDS
from pad_fast.launch.launcher import Launch
from pad_fast.pipeline import parquet_rows, rounds
from pad_fast.pipeline.setting_groups import MOST_USED, setting_groups
from pad_fast.terminal import suggestion


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    worlds.write_config(folder)
    return folder


def test_bad_commands(tmp_path, capsys):
    assert "did you mean evaluate?" in failing(capsys, "evalute")
    assert "no such file" in failing(capsys, "run", tmp_path / "none.yaml")
    assert "without a run.json" in failing(capsys, "report", tmp_path)
    assert "student: needed, and not given" in failing(capsys, "run")
    assert suggestion("zzz", ["rounds"]) == ""


def test_full_disk(world, tmp_path, capsys, monkeypatch):
    config = changed_config(world, tmp_path)
    assert cli.main(["sample", str(config)]) == 0
    kept = contents(tmp_path / "run")
    own = parquet_rows.write_table

    def write(path, table):
        if "scores" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        own(path, table)

    monkeypatch.setattr(parquet_rows, "write_table", write)
    assert cli.main(["run", str(config)]) == 1
    error = capsys.readouterr().err
    assert "the disk is full" in error
    assert error.count("\n") == 1
    assert kept.items() <= contents(tmp_path / "run").items()
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_failures_in_one_line(world, tmp_path, capsys, monkeypatch):
    config = changed_config(world, tmp_path)
    monkeypatch.setattr(rounds, "run_all", lambda settings: 1 / 0)
    assert cli.main(["run", str(config)]) == 1
    assert capsys.readouterr().err == (
        "pad-fast: ZeroDivisionError: division by zero (pad-fast --traceback COMMAND shows where)\n"
    )
    assert cli.main(["--traceback", "run", str(config)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_collections_leave_out_what_imports_made(tmp_path, monkeypatch):
    """Once in a process, when the command's modules are there and no model is yet."""
    frozen = []
    monkeypatch.setattr(cli.gc, "freeze", lambda: frozen.append(set(sys.modules)))
    cli.leave_imports_to_themselves.cache_clear()
    for _ in range(2):
        cli.main(["report", str(worlds.write_config(tmp_path, models=False))])  # it has not run
    assert len(frozen) == 1
    assert {"torch", "pad_fast.report"} <= frozen[0]


def test_control_c_says_how_to_go_on(world, tmp_path):
    config = changed_config(world, tmp_path, num_train_epochs=2000)  # it is still at it
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pad_fast.cli", "run", str(config)]
    said, deadline = tmp_path / "stderr", time.monotonic() + 120
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            # A process that a shell starts in the background ignores the signal otherwise.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
    ):
        while (
            process.poll() is None
            and time.monotonic() < deadline
            and not (tmp_path / "run" / "run.json").exists()
        ):
            time.sleep(0.002)
        # pyarrow catches signals while it reads or writes and may lose one, so send it again.
        while process.poll() is None and "stopped" not in said.read_text():
            process.send_signal(signal.SIGINT)
            wait = time.monotonic() + 1
            while (
                process.poll() is None
                and time.monotonic() < wait
                and "stopped" not in said.read_text()
            ):
                time.sleep(0.01)
        process.wait(timeout=120)
    error = said.read_text()
    assert process.returncode == 130, error
    assert error.endswith(
        f"pad-fast: stopped; finished work is kept. To resume: pad-fast run {config}\n"
    )
    assert "Traceback" not in error


def test_help_is_quick_and_light(capsys):
    code = (
        "import sys; from pad_fast import cli; cli.main(['--help']); "
        "print({'torch', 'transformers', 'datasets', 'yaml'} & sys.modules.keys())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.endswith("set()\n")
    flat = " ".join(output.split())
    for command in COMMANDS.values():
        assert f"\n    {command.name} " in output
        assert command.help in flat.replace("multiple- choice", "multiple-choice")
    assert cli.main([]) == 2
    assert capsys.readouterr().out.split() == output.removesuffix("set()\n").split()


@pytest.mark.parametrize("columns", [50, 80])
def test_help_fits_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    given = [["--help"], *([name, "--help"] for name in ("run", "init", "env", "benchmark"))]
    given += [["run", "--help-all"], ["plan", "--help-all"], ["benchmark", "judge", "--help"]]
    for words in given:
        assert cli.main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        # A usage is a line to copy, and not broken.
        limits = [max(columns, 80) if " pad-fast " in line else columns for line in lines]
        assert [line for line, limit in zip(lines, limits, strict=True) if len(line) > limit] == []


def test_help_is_short_and_all_of_it_is_long(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = {each.name for group in setting_groups().values() for each in group}
    assert cli.main(["run", "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 60
    assert cli.main(["run", "--help-all"]) == 0
    whole = capsys.readouterr().out
    flags = {text: set(re.findall(r"^  --(\w+)", text, re.M)) for text in (short, whole)}
    assert flags[short] - {"help"} == set(MOST_USED)
    assert flags[whole] - {"help"} == names | {*Launch.__dataclass_fields__}
    assert "Number of responses to each prompt, n. [4]" in short
    assert "--mcq_floor" not in short
    assert f"--help-all shows {len(names - set(MOST_USED))} more settings" in short
    assert cli.main(["plan", "--help"]) == 0
    assert "--device_memory" in capsys.readouterr().out


def test_what_a_command_does_not_know_is_refused(world, capsys):
    assert "env: unknown argument --jsn" in failing(capsys, "env", "--jsn")
    assert "env: unknown argument x" in failing(capsys, "env", "x")
    assert "did you mean --version?" in failing(capsys, "--verion")
    assert "did you mean --student?" in failing(capsys, "run", "--model_name_or_path", "x")
    assert "unexpected word 'b.yaml'" in failing(capsys, "demo", "b.yaml")
    assert "unexpected word 'b'; the usage is: pad-fast benchmark check FILE" in failing(
        capsys, "benchmark", "check", "a", "b"
    )
    assert "did you mean --questions?" in failing(
        capsys, "benchmark", "check", "a", "--question", "b"
    )
    config = world / "other.yaml"
    config.write_text("dataset_name: x\n")
    assert "unknown key 'dataset_name'; did you mean prompts?" in failing(capsys, "run", config)
    config.write_text("num_processes: 8\n")
    assert "num_processes is a flag and no key" in failing(capsys, "run", config)


def test_env_and_version(capsys):
    assert cli.main(["env"]) == 0
    output = capsys.readouterr().out
    for name in (
        "python",
        "torch",
        "triton",
        "transformers",
        "accelerate",
        "datasets",
        "pad-fast",
        "CUDA",
        "implementation",
    ):
        assert f"\n{name}" in f"\n{output}"
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pad-fast ")
