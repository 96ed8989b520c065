"""Commands in the README and on the site's pages begin as they stand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from docs_pages import DOCUMENTS, ROOT, whole_commands

from pad_fast import cli

SETTINGS = {"student": "me/small", "teacher": "me/large", "prompts": "prompts.jsonl"}
# What first asks the network, or reads a model or a file of the user's, in each command.
FIRST_READ = (
    "pad_fast.pipeline.open_run.check_sources",
    "pad_fast.pipeline.open_run.check_hub",
    "pad_fast.doctor.command.check_sources",
    "pad_fast.plan.command.make_forecast",
    "pad_fast.launch.launcher.hand_over",  # the processes begin as one would
    "pad_fast.pipeline.benchmark.config.load_shots",
    "pad_fast.benchmark.command.load_questions",
    "pad_fast.benchmark.command.check_answers",
    "pad_fast.benchmark.command.read_matches",
)
WITH_COMMANDS = [path for path in DOCUMENTS if whole_commands(path)]


class Begun(BaseException):
    """What a command does first has been reached; no handler of errors takes it."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, in which commands end where they read something."""

    def begin(*args, **kwargs):
        raise Begun

    for name in FIRST_READ:
        monkeypatch.setattr(name, begin)
    vllm = tmp_path / "bin" / "vllm"
    vllm.parent.mkdir()
    vllm.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{vllm.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begins(words: list[str]) -> bool:
    """Whether a command comes as far as what it reads, or to its end."""
    try:
        return cli.main(words) == 0
    except Begun:
        return True


def make_config(words: list[str]) -> None:
    """Make the YAML file or the run's folder that the words begin with, unless it is there."""
    path = Path(words[1]) if len(words) > 1 else Path()
    if path.suffix == ".yaml":
        path.write_text("".join(f"{name}: {value}\n" for name, value in SETTINGS.items()))
    elif path.parts[:1] == ("runs",):
        path.mkdir(parents=True, exist_ok=True)
        (path / "run.json").write_text(json.dumps({"config": SETTINGS}))


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.name)
def test_commands_begin_as_they_stand(path, place, capsys):
    for words in whole_commands(path):
        make_config(words)
        assert begins(words), f"pad-fast {' '.join(words)}: {capsys.readouterr().err}"


def test_the_commands_are_found():
    """The test above looks at something."""
    assert {"README.md", "benchmarks.md", "from-trl.md", "run.md"} <= {
        path.name for path in WITH_COMMANDS
    }
    found = whole_commands(ROOT / "README.md")
    assert ["run", "--student", "NAME", "--teacher", "NAME", "--prompts", "FILE"] in found
    assert ["benchmark", "gsm8k", "--model", "NAME"] in found


@pytest.mark.parametrize("command", ["run", "doctor", "plan", "report", "sample"])
def test_without_a_yaml_file_the_folder_is_called_after_the_student(place, command):
    words = [command, "--student", "me/Small 2.0", "--teacher", "me/large", "--prompts", "p.jsonl"]
    assert begins(words)
    wrote = command not in ("doctor", "plan")
    assert (place / "runs" / "Small-2.0").is_dir() == wrote


def test_a_benchmark_of_a_model_has_a_folder_of_its_own(place, monkeypatch):
    seen = []

    def load(benchmark, questions, folder, limit):
        seen.append(folder)
        raise Begun

    monkeypatch.setattr("pad_fast.pipeline.benchmark.config.load_shots", lambda *given: [])
    monkeypatch.setattr("pad_fast.benchmark.command.load_questions", load)
    for words in (["--name", "mine"], [], ["--output_dir", "here"]):
        assert begins(["benchmark", "mt_bench", "--model", "me/small", *words])
    found = [str(folder.parent) for folder in seen]
    assert found == ["eval/mt_bench/mine", "eval/mt_bench/small", "here"]
