"""What tests of whole runs with servers share: the comparison, and a run that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from stub_server import Stub
from worlds import contents

from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.cache import ScoreCache
from pad_fast.pipeline.score.model_scores import ModelScores
from pad_fast.pipeline.score.scorer import Scorer

ROLES = ("student", "teacher")
CRASH = Path(__file__).with_name("crash.py")
PLACES = [
    "before:heldout/samples/part-00001",
    "after:round-01/samples/part-00002",
    "before:heldout/groups/part-00001",
    "after:round-01/scores/part-00001",
    "to:trainer/checkpoint-1/trainer_state.json",
    "after:round-01/student",
    "after:samples/student-01/greedy/part-00000",
    "before:evaluation/student-01.json",
]


def engine(path: Path, role: str, config: RunConfig) -> TransformersEngine:
    checkpoint = Checkpoint(role, str(path))
    return TransformersEngine(checkpoint, ModelScores(config, "mean"))


def same(found: Sequence, wanted: Sequence) -> None:
    """Compare to 1e-5, and sums beyond ten nats to float32's rounding."""
    assert len(found) == len(wanted)
    for ours, others in zip(found, wanted, strict=True):
        assert ours == pytest.approx(others, abs=1e-5, rel=1e-6)


def assert_rewards_of_this_process(
    served: Sequence[Row], samples: Path, config: RunConfig, own: Path
) -> None:
    """Compare rows that servers scored with what this process makes of the same samples.

    Args:
        served: the rows.
        samples: the folder of their responses.
        config: of the run.
        own: a folder to be made, for what this process computes.
    """
    student, teacher = (engine(Path(getattr(config, role)), role, config) for role in ROLES)
    cache = ScoreCache(own / "cache", teacher.identity)
    scorer = Scorer(teacher.checkpoint, student.checkpoint, config, teacher, cache)
    count = len(list(samples.glob("part-*.parquet")))
    scorer.score_shards(samples, own / "scores", count, title="")
    expected = read_rows(own / "scores")
    for column in ("teacher_logps", "teacher_choice_probs", "teacher_rewards"):
        same([row[column] for row in served], [row[column] for row in expected])
    prompts, ids = ([row[c] for row in served] for c in ("prompt_ids", "completion_ids"))
    same([row["student_rewards"] for row in served], student.rewards(prompts, ids))


def killed_and_resumed(config: Path, student: Stub, teacher: Stub) -> None:
    """A run through two servers, killed at every place, while the servers die and come back.

    The student's server gets the weights of round 1 when they are there.
    """
    trained = config.parent / "run" / "round-01" / "student"

    def unreliable(handler, body) -> bool:
        stub = handler.server.stub
        if stub is student and trained.exists() and not stub.loaded:
            stub.load(trained)
        if stub.answered % 23 == 22:
            stub.answered += 1
            threading.Thread(target=stub.stop).start()
            threading.Timer(0.3, stub.start).start()
            handler.close_connection = True
            return True
        return False

    student.fault = teacher.fault = unreliable
    done = subprocess.run(
        [sys.executable, str(CRASH), str(config), *PLACES],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def assert_same_results(found: Path, expected: Path) -> None:
    """Compare all results of two run folders, byte by byte."""
    ours, wanted = contents(found), contents(expected)
    common = {name for name in wanted if "report" not in name}
    assert len(common) > 15
    assert {name: ours[name] for name in common} == {name: wanted[name] for name in common}
