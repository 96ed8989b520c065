"""The numbers of an evaluation, in a finished run and by hand."""

from __future__ import annotations

import json
import math
import shutil
import statistics

import numpy as np
import pytest
import worlds
from scipy.stats import kendalltau
from transformers import AutoModelForCausalLM
from worlds import response_logp

from pad_fast.evaluation.evaluated_model import RewardPair
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.evaluate import heldout
from pad_fast.pipeline.evaluate.losses import prompt_losses
from pad_fast.pipeline.parquet_rows import read_rows, write_rows
from pad_fast.pipeline.run import RunContext


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


def test_every_number_is_read_of_the_responses_it_names(finished):
    """Greedy and sampled, fixed and fresh: each number of student-02 anew from the shards."""
    run = finished / "run"
    found = json.loads((run / "evaluation" / "student-02.json").read_text())
    parts = ("greedy", "scored", "fixed")
    greedy, own, fixed = (
        read_rows(run / "evaluation" / "samples" / "student-02" / part) for part in parts
    )
    groups = read_rows(run / "heldout" / "groups")
    model = AutoModelForCausalLM.from_pretrained(run / "round-02" / "student")
    for row in greedy:
        assert row["completion_ids"] == [worlds.greedy_ids(model, row["prompt_ids"])]
    rows = read_rows(run / "evaluation" / "student-02.parquet")
    assert [row["greedy_text"] for row in rows] == [row["completions"][0] for row in greedy]
    rewards = [reward for row in own for reward in row["teacher_rewards"]]
    lengths = [len(row["completion_ids"][0]) for row in greedy]
    ended = [reason for row in own for reason in row["finish_reasons"]]
    sampled = [tuple(ids) for row in own for ids in row["completion_ids"]]
    of_fixed = _agreement(fixed, groups)
    of_fresh = _agreement(own, own)
    assert of_fixed != of_fresh
    assert len(ended) == 4 * 3
    repeated = [len(set(map(tuple, row["completion_ids"]))) for row in own]
    wanted = {
        "teacher_reward": statistics.fmean(rewards),
        "kendall_tau": of_fixed[0],
        "top1": of_fixed[1],
        "fresh_kendall_tau": of_fresh[0],
        "fresh_top1": of_fresh[1],
        "mean_length": statistics.fmean(lengths),
        "clipped_ratio": ended.count("length") / len(ended),
        "duplicate_ratio": 1 - sum(repeated) / len(sampled),
    }
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


def _agreement(students: list[dict], teachers: list[dict]) -> tuple[float, float]:
    """Kendall's tau-b and top-1, the means over prompts, of rewards without ties."""
    pairs = [
        (one["student_rewards"], other["teacher_rewards"])
        for one, other in zip(students, teachers, strict=True)
    ]
    taus = [kendalltau(*pair).statistic for pair in pairs]
    best = [np.argmax(student) == np.argmax(teacher) for student, teacher in pairs]
    return float(np.mean(taus)), float(np.mean(best))


@pytest.mark.parametrize(("name", "own"), [("student-02", "scored"), ("teacher", "fresh")])
def test_answers_are_right_by_the_rule_of_the_run(finished, tmp_path, name, own):
    """Texts that flexible-extract calls right, and exact wrong."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    words = [str(tmp_path / "config.yaml"), "--answer_rule", "flexible-extract"]
    run = RunContext(parse_settings("run", words))
    subject = heldout.Subject(name, 2, run.teacher if name == "teacher" else run.student(2))
    summary = run.folder.evaluation(name)
    samples = summary.parent / "samples" / name
    for part, right in (("greedy", 1), (own, 2)):
        for shard in sorted((samples / part).glob("part-*.parquet")):
            rows = read_rows(shard)
            for row in rows:
                texts = [f"{row['answer']} apples"] * right + ["none"] * 3
                row["completions"] = texts[: len(row["completions"])]
            write_rows(shard, rows)
    summary.unlink()
    heldout.evaluate(run, [subject])
    found = json.loads(summary.read_text())
    assert found["greedy_accuracy"] == 1.0
    assert found["sampled_accuracy"] == pytest.approx(2 / 3)


def test_masked_prompts_have_no_loss(finished):
    args = parse_settings("run", [str(finished / "config.yaml")]).pad_config(finished / "unused")
    rewards = RewardPair([[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [None, 1.0]])
    found = prompt_losses(rewards, args)
    assert found[0] == pytest.approx(0.0, abs=1e-12)
    assert found[1] is None
