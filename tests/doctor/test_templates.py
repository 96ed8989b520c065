"""Chat templates that the doctor finds fault with."""

from __future__ import annotations

from pathlib import Path

import worlds
from findings import PROMPTS, check_verdict, doctor_config, findings
from transformers import AutoModelForCausalLM

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.findings import templates


def with_template(world: Path, folder: Path, template: str) -> Path:
    """The student under another chat template."""
    AutoModelForCausalLM.from_pretrained(world / "student").save_pretrained(folder)
    worlds.character_tokenizer(template=template).save_pretrained(folder)
    return folder


def test_template_that_rewrites_the_prompt(world, tmp_path):
    # Templates of reasoning models do so: their generation prompt opens a thought, which is left
    # out of the turn once the answer is there.
    opening = worlds.TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>think{% endif %}")
    student = with_template(world, tmp_path / "student", opening)
    found = findings(doctor_config(world, tmp_path, student=str(student)))
    check_verdict(
        found["student's template"],
        "problem",
        "chat_template_kwargs",
        "student's chat_template.jinja",
    )
    assert found["student's template"].numbers == {
        "rewritten": PROMPTS,
        "merged": 0,
        "prompts": PROMPTS,
    }
    check_verdict(found["teacher's template"], "ok")


def test_template_that_refuses_an_answer(world, tmp_path):
    refusing = (
        "{% if messages[-1]['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
        + worlds.TEMPLATE
    )
    student = Checkpoint("student", str(with_template(world, tmp_path / "student", refusing)))
    rows = [{"prompt": [{"role": "user", "content": "1+1=?"}], "completions": ["2"]}]
    check_verdict(templates.template(student, rows), "problem", "chat_template.jinja")


def test_template_at_whose_border_tokens_merge():
    class Student:
        """Its template ends in a newline, and the tokenizer joins two of them."""

        role = "student"
        ids = {"a": 0, "\n": 1, "\n\n": 2}  # noqa: RUF012

        def rendered(self, messages, *, add_generation_prompt=False):
            return "".join(
                message["content"] + "\n" * (message["role"] == "user") for message in messages
            )

        def conversation_ids(self, messages):
            return [0, 2, 0] if self.rendered(messages) == "a\n\na" else [0, 1]

        prompt_ids = conversation_ids

        @property
        def chat(self):
            return self

    row = {"prompt": [{"role": "user", "content": "a"}], "completions": ["\na"]}
    check_verdict(templates.template(Student(), [row]), "look", "generation prompt")
    check_verdict(templates.template(Student(), [{**row, "completions": ["a"]}]), "ok")
