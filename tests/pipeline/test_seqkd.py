"""What the baseline starts from, and what it learns, in a finished run."""

from __future__ import annotations

import shutil

import torch
from transformers import AutoModelForCausalLM
from worlds import greedy_ids

from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.train import seqkd


def test_answers_are_the_teachers_greedy_ones(finished):
    run = RunContext(parse_settings("run", [str(finished / "config.yaml")]))
    teacher = AutoModelForCausalLM.from_pretrained(finished / "teacher")
    rows = read_rows(finished / "run" / "seqkd" / "answers")
    assert {row["prompt_id"] for row in rows} == {row["prompt_id"] for row in run.train_rows}
    for row in rows:
        assert row["prompt_ids"] == run.teacher.prompt_ids(row["prompt"])
        assert row["completion_ids"] == [greedy_ids(teacher, row["prompt_ids"])]


def test_it_starts_from_the_base_student(finished, tmp_path, monkeypatch):
    """With as many steps as all rounds, on each prompt once."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    found = []

    def fit(trainer, run, student, round, phase, folder, tokens):
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        found.append((weights, trainer.args.max_steps, [*trainer.train_dataset]))

    monkeypatch.setattr(seqkd, "fit", fit)
    run = RunContext(parse_settings("run", [str(tmp_path / "config.yaml")]))
    seqkd.train_seqkd(run, 2)
    [(weights, steps, rows)] = found
    base, trained = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "student", run.folder.student(2))
    )
    for name, value in base.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0)
    assert not torch.equal(weights["lm_head.weight"], trained["lm_head.weight"])
    assert steps == 4  # two rounds of eight prompts in batches of four
    answers = read_rows(run.folder.seqkd / "answers")
    wanted = [[*row["prompt_ids"], *row["completion_ids"][0]] for row in answers]
    assert [row["input_ids"] for row in rows] == wanted
