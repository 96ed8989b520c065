"""A whole run whose teacher has other token ids: each model reads and writes its own."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM
from worlds import changed_config, greedy_ids

from pad_fast import cli
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.sample.teacher_answers import OWN


@pytest.fixture(scope="module")
def run(world, foreign_teacher, tmp_path_factory):
    """The folder of a run with the teacher's answers in each group, and the baseline."""
    folder = tmp_path_factory.mktemp("run_of_foreign")
    config = changed_config(
        world,
        folder,
        teacher=str(foreign_teacher),
        teacher_response="greedy",
        baseline="seqkd",
        num_generations=2,
        report_to="none",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pad_fast.report.write_report", lambda root: root / "index.html")
        assert cli.main(["run", str(config)]) == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("asked", "prompts"),
    [
        ("round-01/answers", 8),
        ("seqkd/answers", 8),
        ("evaluation/samples/teacher/greedy", 4),
        ("evaluation/samples/teacher/fresh", 4),
    ],
)
def test_the_teacher_is_asked_in_its_own_tokens(run, foreign_teacher, asked, prompts):
    teacher = Checkpoint("teacher", str(foreign_teacher))
    model = AutoModelForCausalLM.from_pretrained(foreign_teacher)
    rows = read_rows(run / asked)
    assert len(rows) == prompts
    for row in rows:
        assert row["prompt_ids"] == teacher.prompt_ids(row["prompt"])
        if not asked.endswith("fresh"):  # the others are greedy
            assert row["completion_ids"] == [greedy_ids(model, row["prompt_ids"])]


def test_its_answers_are_trained_on_in_the_students_tokens(run, world, foreign_teacher):
    student, teacher = (
        Checkpoint(role, str(path)).tokenizer
        for role, path in (("student", world / "student"), ("teacher", foreign_teacher))
    )
    answers = {row["prompt_id"]: row for row in read_rows(run / "round-01" / "answers")}
    for row in read_rows(run / "round-01" / "scores"):
        assert row[OWN] == [False, False, True]
        answer = answers[row["prompt_id"]]
        assert row["completions"][-1] == answer["completions"][0]
        assert teacher.decode(answer["completion_ids"][0]) == student.decode(
            row["completion_ids"][-1]
        )
        for text, ids, reason in zip(
            row["completions"], row["completion_ids"], row["finish_reasons"], strict=True
        ):
            assert student.decode(ids) == text + "<end>" * (reason == "stop")
