"""The official tools' own judges: a script with their commands, and configuration by URL.

The official tools run in environments of their own, with their own pins of packages. What is
written beside the answers is what they read.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pad_fast.files.writing import replacing

SCRIPT, FOLDER = "judge.sh", "judge"
DEFAULT_URL, DEFAULT_NAME = "http://localhost:8000/v1", "my-judge"


@dataclass(frozen=True)
class OfficialJudge:
    """A judge behind a URL, for the official tools.

    Args:
        url: of an OpenAI-compatible server, with its /v1.
        name: the model's name there.
        key: the name of the environment variable with the API key.
    """

    url: str = DEFAULT_URL
    name: str = DEFAULT_NAME
    key: str = "OPENAI_API_KEY"

    @property
    def folder(self) -> str:
        """The judge's name as a folder's."""
        return self.name.replace("/", "_")


def write_official_judge(
    root: Path, benchmark: str, judge: OfficialJudge, model: str, answers: Path
) -> Path | None:
    """Write the script and the configuration for a benchmark's official judge.

    Args:
        root: the benchmark's folder.
        benchmark: its name.
        judge: where it is.
        model: the name in the answer file.
        answers: the answer file, below ``root``.

    Returns:
        The script; None for a benchmark without a judge.
    """
    write = _WRITERS.get(benchmark)
    if write is None:
        return None
    lines, files = write(judge, model, answers.relative_to(root))
    for name, value in files.items():
        with replacing(root / FOLDER / name) as temporary:
            temporary.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    with replacing(root / SCRIPT) as temporary:
        temporary.write_text("\n".join([*_HEAD, *lines]) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
    return root / SCRIPT


Files = dict[str, Any]
_HEAD = (
    "#!/bin/bash",
    "# Judges the answers beside this file with the benchmark's own tool.",
    "set -eu",
    'here="$(cd "$(dirname "$0")" && pwd)"',
)


def _alpaca_eval(judge: OfficialJudge, model: str, answers: Path) -> tuple[list[str], Files]:
    """alpaca_eval, with a judge that answers with one of two letters and their probabilities."""
    annotator = {
        "prompt_template": "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
        "fn_completions": "openai_completions",
        "completions_kwargs": {
            "model_name": judge.name,
            "max_tokens": 1,
            "temperature": 1,
            "logprobs": True,
            "top_logprobs": 5,
            "requires_chatml": True,
        },
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {
            "numerator_token": "m",
            "denominator_tokens": ["m", "M"],
            "is_binarize": False,
        },
        "completion_key": "completions_all",
        "batch_size": 1,
    }
    client = {"default": [{"api_key": "EMPTY", "base_url": judge.url}]}
    name = shlex.quote(judge.folder)
    lines = [
        "# Needs: pip install alpaca-eval   (in an environment of its own)",
        "# Put the API key in judge/openai_client.yaml if the server wants one.",
        'configs="$(python -c "from alpaca_eval import constants as c; '
        'print(c.EVALUATORS_CONFIG_DIR)")"',
        # Its prompts are looked for next to the judge's folder.
        f'cp -r "$here/{FOLDER}/"{name} "$configs/"',
        f'OPENAI_CLIENT_CONFIG_PATH="$here/{FOLDER}/openai_client.yaml" alpaca_eval evaluate \\',
        f'  --model_outputs "$here/"{shlex.quote(str(answers))} \\',
        f'  --annotators_config {name} --output_path "$here/{FOLDER}/results"',
    ]
    return lines, {
        "openai_client.yaml": client,
        f"{judge.folder}/configs.yaml": {judge.folder: annotator},
    }


def _arena_hard(judge: OfficialJudge, model: str, answers: Path) -> tuple[list[str], Files]:
    """arena-hard-auto, whose own settings are used but for the judge and the list of models."""
    bench = answers.parts[1]  # data/arena-hard-v2.0/model_answer/MODEL.jsonl
    entry = {
        "model": judge.name,
        "endpoints": [{"api_base": judge.url, "api_key": "EMPTY"}],
        "api_type": "openai",
        "parallel": 16,
        "max_tokens": 4096,
        "temperature": 0.0,
    }
    lines = [
        "# Needs: a clone of https://github.com/lmarena/arena-hard-auto, with the baseline's",
        "# answers as its README says. Usage: judge.sh PATH/TO/arena-hard-auto",
        'cd "$1"',
        'cp -r "$here/data/." data/',
        f'sed -e "s|^judge_model:.*|judge_model: {judge.folder}|" -e "/^model_list:/,\\$d" \\',
        f"  config/{bench}.yaml > config/pad-fast.yaml",
        f'printf "\\nmodel_list:\\n  - %s\\n" {shlex.quote(model)} >> config/pad-fast.yaml',
        "python gen_judgment.py --setting-file config/pad-fast.yaml \\",
        f'  --endpoint-file "$here/{FOLDER}/api_config.yaml"',
        f"python show_result.py --judge-names {shlex.quote(judge.folder)} --benchmark {bench}"
        + (" --category arena-hard-v0.1" if bench.endswith("v0.1") else ""),
    ]
    return lines, {"api_config.yaml": {judge.folder: entry}}


def _mt_bench(judge: OfficialJudge, model: str, answers: Path) -> tuple[list[str], Files]:
    """FastChat, which knows judges by OpenAI's names alone and reads the URL from a variable."""
    lines = [
        "# Needs: a clone of https://github.com/lm-sys/FastChat, and in its environment",
        '#   pip install -e ".[llm_judge]" "openai<1"',
        "# Usage: judge.sh PATH/TO/FastChat",
        "# FastChat accepts OpenAI's names only: serve your judge under the name gpt-4, as by",
        f"#   vllm serve {judge.name} --served-model-name gpt-4",
        "# The scores are then your judge's, and not GPT-4's.",
        'cd "$1/fastchat/llm_judge"',
        'cp "$here/data/mt_bench/model_answer/"*.jsonl data/mt_bench/model_answer/',
        f"export OPENAI_API_BASE={shlex.quote(judge.url)}",
        f'export OPENAI_API_KEY="${{{judge.key}:-EMPTY}}"',
        f"model={shlex.quote(model)}",
        'python gen_judgment.py --model-list "$model" --judge-model gpt-4 --parallel 8',
        'python show_result.py --model-list "$model"',
    ]
    return lines, {"judge.yaml": {"url": judge.url, "model": judge.name, "served_as": "gpt-4"}}


_WRITERS: dict[str, Callable[[OfficialJudge, str, Path], tuple[list[str], Files]]] = {
    "alpaca_eval": _alpaca_eval,
    "arena_hard": _arena_hard,
    "mt_bench": _mt_bench,
}
