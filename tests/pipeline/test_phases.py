"""Which settings may change between two calls on one run folder."""

from __future__ import annotations

import dataclasses
import json

import pytest
import transformers
from commands import failing
from packaging.version import Version
from worlds import changed_config

from pad_fast import cli
from pad_fast.commands import COMMANDS
from pad_fast.pipeline import rounds
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.phases import FREE, PHASES, PREPARE, SAMPLE, first_phase
from pad_fast.pipeline.run_folder import RunFolder
from pad_fast.pipeline.settings import FIXED, NO_SETTINGS
from pad_fast.training.config import WITHOUT_EFFECT, PADConfig


@pytest.mark.usefixtures("no_report")
def test_a_run_that_died_for_memory_goes_on_with_smaller_batches(
    world, tmp_path, capsys, monkeypatch
):
    """A setting may change until its first phase keeps something; the manifest records changes."""
    config = changed_config(world, tmp_path, num_generations=2, save_strategy="no")
    free = [
        "--score_batch_tokens",
        "64",
        "--max_tokens_per_step",
        "32",
        "--gradient_checkpointing",
        "false",
        "--dataloader_num_workers",
        "0",
    ]
    # The first command dies before anything is kept.
    monkeypatch.setattr(rounds, "PHASES", (SAMPLE,))
    monkeypatch.setitem(rounds.PHASE_FUNCTIONS, "sample", lambda run, round: None)
    assert (
        cli.main(["run", str(config), "--sample_batch_tokens", "9999", "--temperature", "2"]) == 0
    )
    monkeypatch.undo()
    monkeypatch.setattr("pad_fast.report.write_report", lambda root: root)
    assert cli.main(["sample", str(config), "--sample_batch_tokens", "64"]) == 0
    assert "has begun to sample with 1.0, got 0.5" in failing(
        capsys, "run", config, "--temperature", "0.5"
    )
    kept = ["--sample_batch_tokens", "32", *free]
    assert (
        cli.main(["score", str(config), *kept, "--mcq_weight", "0.3", "--mcq_style", "listwise"])
        == 0
    )
    assert "has begun to score with 0.3, got 0.2" in failing(
        capsys, "train", config, *kept, "--mcq_style", "listwise", "--mcq_weight", "0.2"
    )
    kept += ["--mcq_style", "listwise", "--mcq_weight", "0.3"]
    assert "max_length: must be more than the 7 tokens" in failing(
        capsys, "train", config, *kept, "--max_length", "7"
    )
    own = rounds.train_round
    monkeypatch.setattr(
        rounds,
        "train_round",
        lambda run, round: (run.metrics.add(1, 1, "train", {"loss": 99.0}), 1 / 0),
    )
    assert cli.main(["train", str(config), *kept]) == 1
    monkeypatch.setattr(rounds, "train_round", own)
    smaller = [
        "--per_device_train_batch_size",
        "2",
        "--gradient_accumulation_steps",
        "2",
        "--beta",
        "3",
        "--train_dtype",
        "bfloat16",
    ]
    assert cli.main(["train", str(config), *kept, *smaller]) == 0
    losses = [
        json.loads(line).get("loss")
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert 99.0 not in losses
    assert "has begun to train with 3.0, got 4.0" in failing(
        capsys, "run", config, *kept, *smaller, "--beta", "4"
    )
    assert cli.main(["run", str(config), *kept, *smaller, "--score_batch_tokens", "4096"]) == 0
    changes = json.loads((tmp_path / "run" / "run.json").read_text())["changes"]
    assert changes[0]["from"] == {"sample_batch_tokens": 9999, "temperature": 2.0}
    assert changes[0]["to"] == {"sample_batch_tokens": 64, "temperature": 1.0}
    assert changes[1]["from"]["sample_batch_tokens"] == 64  # and its samples stay
    assert changes[1]["to"]["sample_batch_tokens"] == 32
    assert changes[-1]["to"] == {"score_batch_tokens": 4096}
    assert (changes[2]["from"]["beta"], changes[2]["to"]["beta"]) == (10.0, 3.0)


def test_a_checkpoint_holds_the_training(world, tmp_path, capsys):
    config = changed_config(world, tmp_path, num_generations=2)
    assert cli.main(["sample", str(config)]) == 0
    state = tmp_path / "run" / "round-01" / "trainer" / "checkpoint-1" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    assert cli.main(["sample", str(config), "--learning_rate", "0.5"]) == 0
    state.write_text("{}")
    assert "has begun to train with 0.5, got 0.01" in failing(capsys, "sample", config)


PHASE_TABLE = {"always": FREE, **{phase.name: phase.settings for phase in (PREPARE, *PHASES)}}


def test_every_setting_has_its_place():
    """Each stands in one phase, or among those that may always change, Trainer's too.

    What takes only one value cannot change.
    """
    listed = [name for names in PHASE_TABLE.values() for name in names]
    assert len(listed) == len(set(listed))
    known = {field.name for kind in (RunConfig, PADConfig) for field in dataclasses.fields(kind)}
    assert known - {*FIXED, *WITHOUT_EFFECT, *NO_SETTINGS} - set(listed) == set()
    if Version(transformers.__version__) >= Version("5.24"):  # an older one may lack some
        assert set(listed) - known == set()


@pytest.mark.parametrize(
    ("phase", "names"),
    [
        ("always", "output_dir push_to_hub hub_model_id run_name report_to ddp_timeout save_steps"),
        ("prepare", "student seed"),
        ("sample", "top_p"),
        ("score", "mcq_floor"),
        ("train", "beta learning_rate fsdp data_seed impl torch_compile"),
        ("evaluate", "answer_rule"),
    ],
)
def test_a_setting_enters_the_phase_that_shows_it_first(phase, names):
    assert set(names.split()) <= PHASE_TABLE[phase]
    expected = None if phase == "always" else phase
    assert {first_phase(name) for name in names.split()} == {expected}
    assert first_phase("of_a_later_release") == "train"


def test_every_phase_has_a_command_and_a_function():
    assert list(rounds.PHASE_FUNCTIONS) == [phase.name for phase in PHASES]
    for phase in PHASES:
        assert COMMANDS[phase.name].help == phase.help


def test_begun_phases_are_those_with_files(finished, tmp_path):
    names = {phase.name for phase in (PREPARE, *PHASES)}
    assert RunFolder(finished / "run").begun() == names
    assert RunFolder(tmp_path).begun() == set()
