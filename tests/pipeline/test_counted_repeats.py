"""What is measured counts equal responses as often as PADTrainer does."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
import statistics
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.evaluate import heldout
from pad_fast.pipeline.findings.first_shard import of_scores
from pad_fast.pipeline.parquet_rows import read_rows, shard_paths, write_rows
from pad_fast.pipeline.run import RunContext
from pad_fast.training.trainer import PADTrainer

RULES = pytest.mark.parametrize("repeats", ["once", "each"])


COLUMNS = ("completions", "completion_ids", "finish_reasons", "student_rewards")


def repeating(row: dict, place: int) -> dict:
    """A row with four of its first response; the row at place 0 has no other one.

    The teacher's rewards are far apart, and those of equal responses are not equal.
    """
    draws, given = random.Random(place), [name for name in COLUMNS if name in row]
    chosen = [0] * 4 + [i for i in range(1, len(row["student_rewards"])) if place]
    found = {**row, **{name: [row[name][i] for i in chosen] for name in given}}
    if "teacher_rewards" in row:
        found["teacher_rewards"] = [draws.gauss(-2, 2) for _ in chosen]
    return found


def repeat_in(folder: Path) -> list[dict]:
    """Make the rows of all shards repeating; the rows."""
    place = itertools.count()
    for shard in shard_paths(folder):
        write_rows(shard, [repeating(row, next(place)) for row in read_rows(shard)])
    return read_rows(folder)


def run_of(folder, repeats: str) -> RunContext:
    return RunContext(parse_settings("run", [str(folder / "config.yaml"), "--repeats", repeats]))


def trained_on(run: RunContext, rows: list[dict], student, folder, **chosen) -> PADTrainer:
    args = run.settings.pad_config(folder, **chosen)
    return PADTrainer(AutoModelForCausalLM.from_pretrained(student), args, rows, rows)


@RULES
def test_held_out_numbers_are_those_of_the_trainer(finished, tmp_path, repeats) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    run = run_of(tmp_path, repeats)
    groups = repeat_in(run.folder.root / "heldout" / "groups")
    repeat_in(run.folder.root / "evaluation" / "samples" / "student-02" / "fixed")
    summary = run.folder.evaluation("student-02")
    summary.unlink()
    heldout.evaluate(run, [heldout.Subject("student-02", 2, run.student(2))])
    found = json.loads(summary.read_text())
    student = run.folder.root / "round-02" / "student"
    trainer = trained_on(run, groups, student, tmp_path / "trainer", **run.chosen)
    wanted = trainer.evaluate()
    assert found["ppd_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-4)
    assert found["kendall_tau"] == pytest.approx(wanted["eval_ranking/kendall_tau"], rel=1e-4)
    assert found["top1"] == pytest.approx(wanted["eval_ranking/top1"], rel=1e-4)
    losses = [row["ppd_loss"] for row in read_rows(summary.with_suffix(".parquet"))]
    assert losses.count(None) == (repeats == "once")


@RULES
def test_the_doctor_reads_what_the_trainer_will(finished, tmp_path, repeats) -> None:
    run = run_of(finished, repeats)
    scored = read_rows(finished / "run" / "round-01" / "scores")
    rows = [repeating(row, place) for place, row in enumerate(scored)]
    found = {each.check: each.numbers for each in of_scores(run, rows, {})}
    trainer = trained_on(run, rows, finished / "student", tmp_path)
    assert found["reward spread"]["teacher_beta"] == trainer.args.teacher_beta < run.training.beta
    wanted = trainer.evaluate()
    assert found["first loss"]["mean_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-4)
    tau = wanted["eval_ranking/kendall_tau"]
    assert found["agreement"]["kendall_tau"] == pytest.approx(tau, rel=1e-4)


def test_the_teachers_mean_reward_is_that_of_all_draws(finished, tmp_path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    run = run_of(tmp_path, "once")
    own = repeat_in(run.folder.root / "evaluation" / "samples" / "student-02" / "scored")
    summary = run.folder.evaluation("student-02")
    summary.unlink()
    heldout.evaluate(run, [heldout.Subject("student-02", 2, run.student(2))])
    found = json.loads(summary.read_text())
    rewards = [statistics.fmean(row["teacher_rewards"]) for row in own]
    assert found["teacher_reward"] == pytest.approx(statistics.fmean(rewards))
    assert math.isfinite(found["fresh_kendall_tau"])
