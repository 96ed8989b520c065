"""What a run hands on of its settings to its models."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from worlds import TEMPLATE, changed_config, character_tokenizer, save_model

from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.run import RunContext

MODELS = {
    "student": ("v1", lambda run: run.student(0)),
    "trained": (None, lambda run: run.trained(Path(run.student(0).path))),
    "teacher": ("v2", lambda run: run.teacher),
    "reward_model": ("v3", lambda run: run.reward_model),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_settings_of_the_run(world, tmp_path, name):
    revision, model_of = MODELS[name]
    judge = {"reward_model": str(world / "teacher"), "reward_model_revision": "v3", "teacher": None}
    config = changed_config(
        world,
        tmp_path,
        student_revision="v1",
        chat_template_kwargs={"style": "brief"},
        attn_implementation="eager",
        dtype="bfloat16",
        **(judge if name == "reward_model" else {"teacher_revision": "v2"}),
    )
    run = RunContext(parse_settings("run", [str(config)]))
    found: Checkpoint = model_of(run)
    assert found.revision == revision
    assert found.template_kwargs == {"style": "brief"}
    assert found.attn_implementation == "eager"
    assert found.dtype == "bfloat16"
    assert found.now == run.started


def test_what_the_teacher_is_besides(world, tmp_path):
    for changes, system, served in (
        ({}, None, False),
        ({"teacher_system_prompt": "Be strict."}, "Be strict.", False),
        ({"teacher_server": ["http://127.0.0.1:9"]}, None, True),
    ):
        run = RunContext(parse_settings("run", [str(changed_config(world, tmp_path, **changes))]))
        assert (run.teacher.system_prompt, run.teacher.served) == (system, served)


def test_the_students_that_a_server_may_still_have(world, tmp_path):
    """Those that are evaluated one after the other too, whose weights are near to one another."""
    config = changed_config(
        world, tmp_path, baseline="seqkd", compare='{"A": {"loss": "rft"}, "B": {"loss": "rft"}}'
    )
    run = RunContext(parse_settings("run", [str(config)]))
    assert run._other_students(run.student(0)) == []
    root, base = tmp_path / "run", str(world / "student")
    folders = ["round-01/student", "seqkd/student", "compare/A/student", "compare/B/student"]
    for folder in folders:
        (root / folder).mkdir(parents=True)
    names = [base, *(str(root / folder) for folder in folders)]
    for place, folder in enumerate(folders, 1):
        found = [other.path for other in run._other_students(run.trained(root / folder))]
        assert found == [name for name in names if name != names[place]]


def test_the_arguments_of_the_template_reach_the_prompts(world, tmp_path):
    """And the time of the run's start, which a template may write."""
    template = "{{ style }}, {{ strftime_now('%H%M') }}: " + TEMPLATE
    student = save_model(tmp_path / "own", 0, tokenizer=character_tokenizer(template=template))
    config = changed_config(
        world, tmp_path, student=str(student), chat_template_kwargs=json.dumps({"style": "brief"})
    )
    run = RunContext(parse_settings("run", [str(config)]))
    run.started = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    read = run.student(0)
    prompt = read.tokenizer.decode(read.prompt_ids([{"role": "user", "content": "hi"}]))
    assert prompt.startswith("brief")
    assert "0304" in prompt
