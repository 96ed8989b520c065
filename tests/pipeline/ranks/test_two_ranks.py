"""A run on two ranks leaves what a run on one leaves."""

from __future__ import annotations

import json
from pathlib import Path

import launched
import pytest
import runs_in_turn
import torch
import worlds
from safetensors.torch import load_file
from transformers import Gemma3Config, LlamaConfig, MixtralConfig

from pad_fast.files.own_files import read_json
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.train.train_round import may_leave_weights_unused

pytestmark = pytest.mark.slow

# Batches of one process; two ranks take half of each. Weights move by their gradients, as Adam
# would make a step of the learning rate of a gradient that is nothing but rounding.
BATCH = 4
PLAIN = {"optim": "sgd", "learning_rate": 0.1, "validation_size": 0, "heldout_size": 3}
GIVEN = {"prompts": None, "heldout": None, "responses": "given.jsonl", "num_generations": 2}
LORA = {"use_peft": True, "lora_r": 2, "lora_alpha": 4}
CASES = {
    "15": {"prompts_per_round": 15, "baseline": "seqkd"},
    "given": {**GIVEN, "loss": "dpo", "anchor": "start"},
    "idle": {"prompts_per_round": 7, "shard_size": 16},  # one shard, which one rank takes
    "lora": {"prompts_per_round": 10, **LORA},
    "validated": {"validation_size": 3, "teacher_response": "greedy"},
}
AFTER_TRAINING = ("round-01/student", "round-01/adapter", "seqkd", "student-01", "validation/")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    worlds.write_config(folder)
    worlds.write_prompts(folder / "train.jsonl", 15)
    given = [{"prompt": f"{n}+1=?", "completions": [str(n + 1), "2"]} for n in range(2, 15)]
    (folder / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return folder


@pytest.fixture(scope="module")
def both(world, tmp_path_factory) -> dict[int, Path]:
    """The folders of all cases on one rank and on two."""
    found = {}
    for ranks in (1, 2):
        found[ranks] = folder = tmp_path_factory.mktemp(f"on-{ranks}")
        configs = [config(world, folder / name, ranks, **CASES[name]) for name in CASES]
        done = launched.script(ranks, runs_in_turn.__file__, *configs)
        (folder / "stderr").write_text(done.stderr)
    return found


def config(world: Path, folder: Path, ranks: int, **changes: object) -> Path:
    folder.mkdir()
    size = BATCH // ranks
    given = {"output_dir": str(folder / "run"), "per_device_train_batch_size": size}
    if "responses" in changes:
        changes["responses"] = str(world / str(changes["responses"]))
    return worlds.changed_config(world, folder, **{**PLAIN, **given, **changes})


def folders(both: dict[int, Path], name: str) -> tuple[Path, Path]:
    return both[1] / name / "run", both[2] / name / "run"


def numbers(value: object) -> object:
    """A value with its floats as one that compares to rounding."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True)
    if isinstance(value, dict):
        return {name: numbers(item) for name, item in value.items()}
    return [numbers(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", CASES)
def test_what_comes_before_the_training_is_the_same_to_the_last_bit(both, name):
    one, two = (
        {
            path: digest
            for path, digest in worlds.contents(run).items()
            if not any(part in path for part in AFTER_TRAINING)
        }
        for run in folders(both, name)
    )
    assert one == two
    shards = {path.split("/part-")[0] for path in one if "/part-" in path}
    wanted = {"round-01/samples", "round-01/scores", "heldout/groups", "heldout/samples"}
    assert wanted | {"evaluation/samples/student-00/greedy"} <= shards


@pytest.mark.parametrize("name", CASES)
def test_trained_weights_are_the_same_to_rounding(both, name):
    parts = ["round-01/student/model.safetensors"]
    parts += ["round-01/adapter/adapter_model.safetensors"] if name == "lora" else []
    parts += ["seqkd/student/model.safetensors"] if name == "15" else []
    for part in parts:
        one, two = (load_file(run / part) for run in folders(both, name))
        assert one.keys() == two.keys()
        for key, wanted in one.items():
            torch.testing.assert_close(two[key], wanted, rtol=1e-4, atol=1e-5, msg=f"{part} {key}")


@pytest.mark.parametrize("name", CASES)
def test_the_evaluation_of_the_trained_student_is_the_same_to_rounding(both, name):
    one, two = folders(both, name)
    part = "evaluation/samples/student-01/fixed"
    assert [numbers(row) for row in read_rows(one / part)] == read_rows(two / part)
    assert {path.name for path in one.glob("evaluation/*")} == {
        path.name for path in two.glob("evaluation/*")
    }


def test_a_kill_under_restarts_changes_no_bit(both, world, tmp_path):
    """Of one rank while it scores; tests/pipeline/ranks/test_kills.py has every other place."""
    mark = tmp_path / "mark"
    killed = {"KILLED_IN": "score", "KILLED_RANK": "1", "KILLED_MARK": str(mark)}
    path = config(world, tmp_path / "killed", 2, **CASES["lora"])
    launched.script(2, runs_in_turn.__file__, path, restarts=3, **killed)
    assert mark.exists()
    undisturbed = worlds.contents(both[2] / "lora" / "run")
    assert worlds.contents(tmp_path / "killed" / "run") == undisturbed


def test_the_manifest_and_metrics_are_written_once(both):
    one, two = folders(both, "15")
    phases = [read_json(run / "run.json")["phases"].keys() for run in (one, two)]
    assert phases[0] == phases[1]
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (one, two)]
    assert len(lines[0]) == len(lines[1])


def test_no_rank_searches_for_unused_weights(both):
    assert "find_unused_parameters" not in (both[2] / "stderr").read_text()


@pytest.mark.parametrize(
    ("config", "unused"),
    [(LlamaConfig(), False), (MixtralConfig(), True), (Gemma3Config(), True)],
)
def test_weights_that_a_text_may_leave_unused(config, unused):
    assert may_leave_weights_unused(config) is unused
