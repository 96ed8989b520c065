"""Code in the README and on the site's pages does what the text around it says."""

import ast
import dataclasses
import json
import re
import warnings

import pytest
import yaml
from docs_pages import DOCUMENTS, ROOT, blocks, commands, downloads
from hub_commands import asked_of_the_hub
from huggingface_hub.utils import filter_repo_objects
from students import RENAMED

from pad_fast import PADConfig
from pad_fast.benchmark.options import AnswerOptions, CheckOptions, JudgeOptions
from pad_fast.commands import COMMANDS
from pad_fast.doctor.command import DoctorOptions
from pad_fast.launch.launcher import Launch
from pad_fast.pipeline.config import RunConfig
from pad_fast.plan.command import PlanOptions

pytestmark = RENAMED
OPTIONS = (RunConfig, PADConfig, Launch, AnswerOptions, CheckOptions, JudgeOptions, PlanOptions)
FLAGS = {field.name for kind in (*OPTIONS, DoctorOptions) for field in dataclasses.fields(kind)}
FLAGS |= {"help", "help-all", "output"}
WITH_PYTHON = [path for path in DOCUMENTS if any(blocks(path, "python"))]


def named(path):
    return path.name


@pytest.mark.parametrize("path", WITH_PYTHON, ids=named)
def test_python_runs_as_it_stands(path, tmp_path, monkeypatch):
    """The blocks of a document run in their order, with the names of those before."""
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "snippet"}
    for line, text in blocks(path, "python"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile("\n" * line + text, str(path), "exec"), space)  # with the page's lines


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_commands_and_flags_exist(path):
    for command, flags in commands(path):
        assert command in {*COMMANDS, "init"}, command
        for flag in flags:
            assert flag in FLAGS, f"pad-fast {command} --{flag}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
@pytest.mark.filterwarnings("error")  # the tool warns of a pattern that it takes for a file's name
def test_downloads_bring_what_a_run_reads(path):
    read = ["config.json", "chat_template.jinja", "tokenizer.json", "tokenizer.model"]
    for command in downloads(path):
        asked = asked_of_the_hub(command)
        files = [*read, "model-00001-of-00030.safetensors"]
        patterns = asked["allow_patterns"]
        assert list(filter_repo_objects(files, allow_patterns=patterns)) == read, command
        assert asked["local_dir"] == asked["repo_id"].split("/")[-1]


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_keys_of_yaml_exist(path):
    for _, text in blocks(path, "yaml"):
        assert set(yaml.safe_load(text)) <= FLAGS


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_json_is_json(path):
    for _, text in blocks(path, "json"):
        for line in text.splitlines():
            json.loads(line)


def test_every_kind_of_code_is_found():
    """The tests above look at something."""
    readme = ROOT / "README.md"
    assert any(blocks(readme, "python"))
    assert ("run", ["rounds"]) in list(commands(readme))
    assert any(downloads(ROOT / "docs" / "engines.md"))
    assert any(blocks(ROOT / "docs" / "start.md", "yaml"))
    assert any(blocks(ROOT / "docs" / "start.md", "json"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_arguments_in_the_text_are_taken(path):
    """``PADConfig(...)`` within a sentence or a table is one that can be made."""
    for call in re.findall(r"`PADConfig\(([^`]*)\)`", path.read_text(encoding="utf-8")):
        words = ast.parse(f"f({call})", mode="eval").body.keywords
        PADConfig("out", **{word.arg: _value(word.value) for word in words})


def _value(node):
    """A literal; a name in capitals stands for any loss."""
    return "vpd" if isinstance(node, ast.Name) and node.id.isupper() else ast.literal_eval(node)


def test_the_diff_from_trl_ends_in_our_trainer():
    """The lines that stay and those that are added are Python with arguments that exist."""
    ((_, diff),) = blocks(ROOT / "docs" / "from-trl.md", "diff")
    ours = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    calls = [node for node in ast.walk(ast.parse("\n".join(ours))) if isinstance(node, ast.Call)]
    (config,) = [call for call in calls if ast.unparse(call.func) == "PADConfig"]
    values = {word.arg: ast.literal_eval(word.value) for word in config.keywords}
    assert PADConfig("out", **values).divergence == "kl"
    assert any(ast.unparse(call.func) == "PADTrainer" for call in calls)
