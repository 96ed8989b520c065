"""What the folder of a finished run of two rounds with the baseline holds."""

from __future__ import annotations

import json

import pytest
import worlds
from transformers import AutoModelForCausalLM
from worlds import response_logp, run_config

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.run_folder import Metrics
from pad_fast.pipeline.sample.engines import Sampling
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.model_scores import ModelScores
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.pipeline.train.seqkd import example

OWN = "evaluation/samples/student-02"  # the student's own samples of the held-out prompts


def test_run_folder_holds_what_it_promises(finished):
    run = finished / "run"
    for round, count in ((1, 8), (2, 8)):
        rows = read_rows(run / f"round-{round:02d}" / "scores")
        assert len(rows) == count
        assert all(
            len(row[name]) == 3
            for row in rows
            for name in ("completions", "completion_ids", "student_rewards", "teacher_rewards")
        )
        assert {row["finish_reasons"][0] for row in rows} <= {"stop", "length"}
        assert (
            Checkpoint(
                "student", str(run / f"round-{round:02d}" / "student")
            ).tokenizer.chat_template
            == worlds.TEMPLATE
        )
        assert not (run / f"round-{round:02d}" / "trainer").exists()
        card = (run / f"round-{round:02d}" / "student" / "README.md").read_text()
        assert f"round {round} of a run; its responses, up to 3 a prompt, are sampled from" in card
        assert str(finished) not in card
    assert len({row["prompt_id"] for row in read_rows(run / "round-01" / "scores")}) == 8
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["config"]["learning_rate"] == 0.01
    assert set(manifest["phases"]) == {
        f"round-{r:02d}/{p}" for r in (1, 2) for p in ("sample", "score", "train", "evaluate")
    } | {"report"}
    assert manifest["models"]["student"]["sha256"] != manifest["models"]["teacher"]["sha256"]
    phases = {
        (record["round"], record["phase"]) for record in Metrics(run / "metrics.jsonl").records
    }
    assert phases >= {(r, p) for r in (1, 2) for p in ("sample", "score", "train", "evaluate")} | {
        (0, "score"),
        (2, "seqkd"),
    }
    assert not list(run.rglob(".*.tmp"))


def test_student_rewards_are_those_at_sampling_time(finished):
    """Each round samples from the student of the round before it."""
    run = finished / "run"
    base, first = (
        AutoModelForCausalLM.from_pretrained(folder)
        for folder in (finished / "student", run / "round-01" / "student")
    )
    for student, other, round in ((base, first, 1), (first, base, 2)):
        row = read_rows(run / f"round-{round:02d}" / "scores")[0]
        for ids, reward in zip(row["completion_ids"], row["student_rewards"], strict=True):
            found, wrong = (
                response_logp(model, row["prompt_ids"], ids) / len(ids)
                for model in (student, other)
            )
            assert reward == pytest.approx(found, abs=1e-4)
            assert abs(found - wrong) > 1e-3


@pytest.mark.parametrize(
    ("sampled", "student", "parts"),
    [
        ("heldout/groups", "student", (0, "sample")),
        ("round-01/scores", "student", (1, "sample")),
        ("round-02/scores", "run/round-01/student", (2, "sample")),
        (
            "evaluation/samples/student-02/scored",
            "run/round-02/student",
            (2, "evaluate student-02"),
        ),
    ],
)
def test_each_shard_is_sampled_with_a_seed_of_its_own(finished, sampled, student, parts):
    """By the run's seed, 7, the round, the phase and the shard: so that a resume draws the same."""
    scores = ModelScores(run_config(finished), "mean")
    engine = TransformersEngine(Checkpoint("student", str(finished / student)), scores)
    shards = sorted((finished / "run" / sampled).glob("part-*"))
    assert len(shards) in (2, 4)
    for index, shard in enumerate(shards):
        rows = read_rows(shard)
        seed = derive_seed(derive_seed(7, *parts), index)
        groups = engine.sample([row["prompt_ids"] for row in rows], 3, Sampling(6), seed)
        assert [row["completion_ids"] for row in rows] == [[s.ids for s in g] for g in groups]


def test_seqkd_learns_the_teachers_answer_alone(finished):
    student = Checkpoint("student", str(finished / "student"))
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "completions": ["ok"],
        "finish_reasons": ["stop"],
    }
    found = example(student, row)
    assert student.tokenizer.decode(found["input_ids"]) == "<|user|>hi<|assistant|>ok<end>"
    assert (
        student.tokenizer.decode([token for token in found["labels"] if token != -100]) == "ok<end>"
    )
    steps = [
        record["step"]
        for record in Metrics(finished / "run" / "metrics.jsonl").records
        if record["phase"] == "seqkd"
    ]
    assert max(steps) == 4  # two rounds of eight prompts in batches of four
