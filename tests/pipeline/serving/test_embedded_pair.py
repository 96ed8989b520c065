"""Whole runs of the embedded pair through servers, killed in each phase and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from embedded_world import WORLD
from served_runs import (
    ROLES,
    assert_rewards_of_this_process,
    assert_same_results,
    killed_and_resumed,
)
from stub_server import Stub
from worlds import write_config

from pad_fast import cli
from pad_fast.pipeline import rounds
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.parquet_rows import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.long]


def demo_config(folder: Path, student: Stub, teacher: Stub) -> Path:
    """The demo's own settings for a few prompts, without the methods that it compares."""
    settings = yaml.safe_load((WORLD / "tiny.yaml").read_text())
    places = {name: str(WORLD / settings[name]) for name in (*ROLES, "prompts", "heldout")}
    changes = {
        "rounds": 1,
        "prompts_per_round": 6,
        "heldout_size": 4,
        "num_generations": 4,
        "max_new_tokens": 12,
        "shard_size": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "compare": None,
        "teacher_response": "none",
        "student_server": [student.url],
        "teacher_server": [teacher.url],
    }
    own = {**settings, **places, "output_dir": "./run", **changes}
    return write_config(folder, models=False, **own)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    stubs = [Stub(WORLD / role) for role in ROLES]
    own_train = rounds.train_round

    def train(run, round) -> None:
        own_train(run, round)
        stubs[0].load(folder / "run" / "round-01" / "student")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pad_fast.report.write_report", lambda root: root / "report.html")
        patch.setattr(rounds, "train_round", train)
        assert cli.main(["run", str(demo_config(folder, *stubs))]) == 0
    for stub in stubs:
        stub.stop()
    return folder / "run"


def test_rewards_are_those_of_this_process(uninterrupted, tmp_path):
    config = parse_settings("run", [str(uninterrupted.parent / "config.yaml")]).run
    for samples, scores in (
        ("round-01/samples", "round-01/scores"),
        ("heldout/samples", "heldout/groups"),
    ):
        served = read_rows(uninterrupted / scores)
        assert_rewards_of_this_process(served, uninterrupted / samples, config, tmp_path / scores)


def test_killed_in_each_phase_the_result_is_the_same(uninterrupted, tmp_path):
    stubs = [Stub(WORLD / role) for role in ROLES]
    killed_and_resumed(demo_config(tmp_path, *stubs), *stubs)
    assert_same_results(tmp_path / "run", uninterrupted)
    for stub in stubs:
        stub.stop()
