"""The prompts of an optimizer step, which any number of processes may divide."""

from __future__ import annotations

import json

import launched
import pytest
import runs_in_turn
import torch
import worlds
from commands import failing
from safetensors.torch import load_file

from pad_fast.files.own_files import read_json
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.step_size import ACCUMULATION, BATCH, PRODUCT, divided

EIGHT = {BATCH: 8, ACCUMULATION: 1}


@pytest.fixture
def processes(monkeypatch):
    """Sets the number of processes that a launcher says it has started."""
    return lambda count: monkeypatch.setenv("WORLD_SIZE", str(count))


@pytest.mark.parametrize(
    ("prompts", "count", "given", "parts"),
    [
        (128, 1, {}, (8, 16)),
        (128, 8, {}, (8, 2)),
        (128, 32, {}, (4, 1)),
        (128, 8, {BATCH: 4}, (4, 4)),
        (128, 8, {BATCH: 64}, (16, 1)),
        (12, 1, {}, (6, 2)),  # 8 does not divide it
        (7, 1, {}, (7, 1)),
        (128, 8, {BATCH: 4, ACCUMULATION: 4}, (4, 4)),
    ],
)
def test_a_step_is_divided(processes, prompts, count, given, parts):
    processes(count)
    assert divided(prompts, given, 8) == dict(zip((BATCH, ACCUMULATION), parts, strict=True))


@pytest.mark.parametrize(
    ("prompts", "count", "given", "message"),
    [
        (
            10,
            4,
            {},
            "prompts_per_step: must be a multiple of the number of processes, 4.* got 10",
        ),
        (12, 2, {BATCH: 4}, "per_device_train_batch_size: must divide the 6 prompts .* got 4"),
        (12, 2, {BATCH: 3, ACCUMULATION: 4}, "gradient_accumulation_steps: .* make it 2; .* got 4"),
    ],
)
def test_a_step_that_cannot_be_divided(processes, prompts, count, given, message):
    processes(count)
    with pytest.raises(ValueError, match=message):
        divided(prompts, given, 8)


def test_it_is_refused_before_anything_is_read(tmp_path, capsys):
    config = worlds.write_config(tmp_path, models=False, prompts_per_step=6)
    assert "per_device_train_batch_size: must divide the 6 prompts" in failing(
        capsys, "run", config
    )
    assert "prompts_per_step: must be" in failing(capsys, "run", config, "--prompts_per_step", "0")


def test_the_training_has_the_parts_and_the_manifest_the_product(tmp_path, monkeypatch):
    config = worlds.write_config(tmp_path, models=False, per_device_train_batch_size=2)
    for given, product in (([], 2), (["--prompts_per_step", "8"], 8)):
        settings = parse_settings("run", [str(config), *given])
        training = settings.pad_config(tmp_path / "run")
        found = settings.resolved(training)
        assert found[PRODUCT] == product
        assert (BATCH in found, ACCUMULATION in found) == ((False, False) if given else (True,) * 2)
        parts = (training.per_device_train_batch_size, training.gradient_accumulation_steps)
        assert parts == ((2, 4) if given else (2, 1))


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """Killed in the middle of its training on one process, it ends on two as it would have."""
    worlds.write_config(tmp_path)
    worlds.write_prompts(tmp_path / "train.jsonl", 12)
    plain = {"optim": "sgd", "learning_rate": 0.1, "heldout_size": 2, "rounds": 2}
    ends = {}
    for name, changes in (("whole", {}), ("moved", {}), ("fixed", {})):
        folder = tmp_path / name
        folder.mkdir()
        size = {} if name == "fixed" else {"prompts_per_step": 4}
        given = {**plain, **size, **changes, "output_dir": str(folder / "run")}
        ends[name] = worlds.changed_config(tmp_path, folder, per_device_train_batch_size=4, **given)
    launched.script(1, runs_in_turn.__file__, ends["whole"])
    for name in ("moved", "fixed"):
        launched.script(1, runs_in_turn.__file__, ends[name], ends=-9, KILLED_AT_STEP="2")
        trainer = ends[name].parent / "run" / "round-01" / "trainer"
        assert [path.name for path in trainer.glob("checkpoint-*")] == ["checkpoint-2"]
    done = launched.script(2, runs_in_turn.__file__, ends["fixed"], ends=1)
    assert "prompts_per_step: " in done.stderr
    assert "has begun to train with 4, got 8; set prompts_per_step to 4, which any" in done.stderr
    done = launched.script(2, runs_in_turn.__file__, ends["moved"])
    assert "training round-01 begins after step 2\n" in done.stdout  # it did not start over
    runs = [ends[name].parent / "run" for name in ("whole", "moved")]
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines()
    steps = [
        line["step"]
        for line in map(json.loads, lines)
        if (line["phase"], line["round"]) == ("train", 1) and "loss" in line
    ]
    assert steps == [1, 2, 3]  # each is logged once
    assert "changes" not in read_json(runs[1] / "run.json")
    one, two = (load_file(run / "round-01/student/model.safetensors") for run in runs)
    for key, wanted in one.items():
        torch.testing.assert_close(two[key], wanted, rtol=1e-4, atol=1e-5, msg=key)
