"""The numbers of an evaluation, in a finished run and by hand."""

from __future__ import annotations

import json
import math
import statistics

import pytest
from worlds import response_logp

from pad_fast.evaluation.evaluated_model import RewardPair
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.evaluate.losses import prompt_losses
from pad_fast.pipeline.parquet_rows import read_rows


def test_evaluations_against_the_rows(finished):
    folder = finished / "run" / "evaluation"
    names = ["seqkd", "student-00", "student-01", "student-02", "teacher"]
    assert sorted(path.stem for path in folder.glob("*.json")) == names
    groups = read_rows(finished / "run" / "heldout" / "groups")
    for name in names:
        summary, rows = (
            json.loads((folder / f"{name}.json").read_text()),
            read_rows(folder / f"{name}.parquet"),
        )
        assert summary["num_prompts"] == len(rows) == len(groups) == 4
        assert set(summary["skills"]) == {"odd", "even"}
        assert [row["prompt_id"] for row in rows] == [row["prompt_id"] for row in groups]
        if name == "teacher":
            assert summary["kendall_tau"] is None
            continue
        assert summary["ppd_loss"] == pytest.approx(
            statistics.fmean(row["ppd_loss"] for row in rows)
        )
        assert 0 <= summary["ppd_loss"] <= math.log(2)
        pair = RewardPair(
            [row["student_rewards"] for row in rows], [row["teacher_rewards"] for row in groups]
        )
        assert summary["kendall_tau"] == pair.agreement("kendall_tau")
    base = json.loads((folder / "student-00.json").read_text())
    assert (base["fresh_kendall_tau"], base["fresh_top1"]) == (base["kendall_tau"], base["top1"])
    last = Checkpoint("student", str(finished / "run" / "round-02" / "student"))
    reward = read_rows(folder / "student-02.parquet")[3]["student_rewards"][2]
    ids = groups[3]["completion_ids"][2]
    assert reward == pytest.approx(
        response_logp(last.model, groups[3]["prompt_ids"], ids) / len(ids), abs=1e-4
    )


def test_masked_prompts_have_no_loss(finished):
    args = parse_settings("run", [str(finished / "config.yaml")]).pad_config(finished / "unused")
    rewards = RewardPair([[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [None, 1.0]])
    found = prompt_losses(rewards, args)
    assert found[0] == pytest.approx(0.0, abs=1e-12)
    assert found[1] is None
