"""What the trainings of a finished run start from, and what they read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from worlds import greedy_ids

from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.pipeline.train import seqkd, train_round
from pad_fast.training.config import PADConfig


@pytest.fixture
def begun(finished, tmp_path, monkeypatch):
    """Begins a training of a copy of the finished run, of which nothing is trained.

    It returns the weights, the arguments and the rows that the trainer is given.
    """
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    run = RunContext(parse_settings("run", [str(tmp_path / "config.yaml")]))

    def begin(module: Any, train: Callable, round: int) -> tuple[dict, PADConfig, list[dict]]:
        found = []

        def fit(trainer, *rest):
            weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
            found.append((weights, trainer.args, [*trainer.train_dataset]))

        monkeypatch.setattr(module, "fit", fit)
        train(run, round)
        [only] = found
        return only

    return begin


def assert_weights(found: dict[str, torch.Tensor], wanted: Path, others: list[Path]) -> None:
    """Compare weights with those of one folder, which differ from the others'."""
    state, *rest = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (wanted, *others)
    )
    for name, value in state.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert not any(torch.equal(found["lm_head.weight"], other["lm_head.weight"]) for other in rest)


@pytest.mark.parametrize("round", [1, 2])
def test_a_round_starts_from_the_student_before_it(begun, finished, round):
    run = finished / "run"
    students = [finished / "student", *sorted(run.glob("round-*/student"))]
    weights, args, rows = begun(train_round, train_round.train_round, round)
    assert args.seed == derive_seed(7, round, "train")
    before = students.pop(round - 1)
    assert_weights(weights, before, students)
    scored = read_rows(run / f"round-{round:02d}" / "scores")
    assert [row["completion_ids"] for row in rows] == [row["completion_ids"] for row in scored]
    for row, own in zip(rows, scored, strict=True):
        assert row["prompt_ids"] == own["prompt_ids"]
        assert row["teacher_rewards"] == pytest.approx(own["teacher_rewards"])


def test_the_baseline_starts_from_the_base_student(begun, finished):
    """With as many steps as all rounds, on each prompt once."""
    run = finished / "run"
    weights, args, rows = begun(seqkd, seqkd.train_seqkd, 2)
    assert_weights(weights, finished / "student", sorted(run.glob("round-*/student")))
    assert args.seed == derive_seed(7, 0, "train")
    assert args.max_steps == 4  # two rounds of eight prompts in batches of four
    answers = read_rows(run / "seqkd" / "answers")
    wanted = [[*row["prompt_ids"], *row["completion_ids"][0]] for row in answers]
    assert [row["input_ids"] for row in rows] == wanted


def test_the_baseline_learns_the_teachers_greedy_answers(finished):
    run = RunContext(parse_settings("run", [str(finished / "config.yaml")]))
    teacher = AutoModelForCausalLM.from_pretrained(finished / "teacher")
    rows = read_rows(finished / "run" / "seqkd" / "answers")
    assert {row["prompt_id"] for row in rows} == {row["prompt_id"] for row in run.train_rows}
    for row in rows:
        assert row["prompt_ids"] == run.teacher.prompt_ids(row["prompt"])
        assert row["completion_ids"] == [greedy_ids(teacher, row["prompt_ids"])]
