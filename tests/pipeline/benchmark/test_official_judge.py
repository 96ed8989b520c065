"""The scripts for the official judges run in folders that look like the official tools'."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pad_fast.pipeline.benchmark.official_judge import OfficialJudge, write_official_judge

JUDGE = OfficialJudge("http://judge:8000/v1", "org/Big-Judge")
RECORD = "import os, sys\nopen('calls.txt', 'a').write(' '.join(sys.argv) + '\\n')\n"


def written(folder: Path, benchmark: str, answers: str) -> Path:
    """The script beside an answer file."""
    path = folder / answers
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("answers\n")
    script = write_official_judge(folder, benchmark, JUDGE, "my model", path)
    assert script is not None
    return script


def run(script: Path, *words: Path, **variables: str) -> None:
    tools = script.parent.parent / "bin"
    tools.mkdir(exist_ok=True)
    if not (tools / "python").exists():
        (tools / "python").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", **variables}
    subprocess.run(["bash", str(script), *map(str, words)], check=True, env=environment)


@pytest.mark.parametrize("bench", ["arena-hard-v2.0", "arena-hard-v0.1"])
def test_arena_hard(tmp_path, bench):
    clone = tmp_path / "arena-hard-auto"
    (clone / "config").mkdir(parents=True)
    (clone / "data").mkdir()
    (clone / "config" / f"{bench}.yaml").write_text(
        "judge_model: gpt-4.1\n# judge_model: other\ntemperature: 0.0\nregex: '[[A]]'\n\n"
        "model_list:\n  - deepseek-r1\n"
    )
    for name in ("gen_judgment.py", "show_result.py"):
        (clone / name).write_text(RECORD)
    answers = f"data/{bench}/model_answer/my model.jsonl"
    run(written(tmp_path / "out", "arena_hard", answers), clone)
    assert (clone / answers).read_text() == "answers\n"
    settings = yaml.safe_load((clone / "config" / "pad-fast.yaml").read_text())
    assert settings == {
        "judge_model": "org_Big-Judge",
        "temperature": 0.0,
        "regex": "[[A]]",
        "model_list": ["my model"],
    }
    judged, shown = (clone / "calls.txt").read_text().splitlines()
    endpoints = judged.split("--endpoint-file ")[1]
    entry = yaml.safe_load(Path(endpoints).read_text())["org_Big-Judge"]
    assert entry["model"] == "org/Big-Judge"
    assert entry["endpoints"][0]["api_base"] == "http://judge:8000/v1"
    assert f"--judge-names org_Big-Judge --benchmark {bench}" in shown


def test_mt_bench(tmp_path):
    judging = tmp_path / "FastChat" / "fastchat" / "llm_judge"
    (judging / "data" / "mt_bench" / "model_answer").mkdir(parents=True)
    for name in ("gen_judgment.py", "show_result.py"):
        (judging / name).write_text(
            RECORD + "open('url.txt', 'w').write(os.environ['OPENAI_API_BASE'])\n"
        )
    answers = "data/mt_bench/model_answer/my model.jsonl"
    run(written(tmp_path / "out", "mt_bench", answers), tmp_path / "FastChat")
    assert (judging / answers).exists()
    calls = (judging / "calls.txt").read_text().splitlines()
    assert calls[0] == ("gen_judgment.py --model-list my model --judge-model gpt-4 --parallel 8")
    assert (judging / "url.txt").read_text() == "http://judge:8000/v1"


def test_alpaca_eval(tmp_path):
    package = tmp_path / "site" / "alpaca_eval"
    (package / "configs").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "constants.py").write_text(f"EVALUATORS_CONFIG_DIR = {str(package / 'configs')!r}\n")
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "alpaca_eval"
    tool.write_text(
        f'#!/bin/bash\necho "$OPENAI_CLIENT_CONFIG_PATH" "$@" > "{tmp_path}/calls.txt"\n'
    )
    tool.chmod(0o755)
    script = written(tmp_path / "out", "alpaca_eval", "my model.json")
    run(script, PYTHONPATH=str(tmp_path / "site"))
    client, *words = (tmp_path / "calls.txt").read_text().split(" ")
    assert yaml.safe_load(Path(client).read_text()) == {
        "default": [{"api_key": "EMPTY", "base_url": "http://judge:8000/v1"}]
    }
    assert words[:2] == ["evaluate", "--model_outputs"]
    assert "--annotators_config org_Big-Judge" in " ".join(words)
    config = yaml.safe_load((package / "configs" / "org_Big-Judge" / "configs.yaml").read_text())
    annotator = config["org_Big-Judge"]
    assert annotator["completions_kwargs"]["model_name"] == "org/Big-Judge"
    assert annotator["fn_completion_parser"] == "logprob_parser"


def test_gsm8k_has_no_judge(tmp_path):
    assert write_official_judge(tmp_path, "gsm8k", JUDGE, "m", tmp_path / "a.jsonl") is None
