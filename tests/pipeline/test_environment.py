"""run.json holds every setting and what the environment set; a resume that differs is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import failing
from worlds import changed_config

from pad_fast import cli
from pad_fast.environment import variables
from pad_fast.files.own_files import read_json, write_json
from pad_fast.pipeline.config import RunConfig
from pad_fast.training.config import PADConfig


@pytest.fixture
def config(world, tmp_path) -> Path:
    return changed_config(world, tmp_path, num_generations=2)


def manifest(config: Path) -> dict[str, Any]:
    return read_json(config.parent / "run" / "run.json")


def rewrite(config: Path, **changes: Any) -> None:
    path = config.parent / "run" / "run.json"
    write_json(path, {**manifest(config), **changes})


def begin_training(config: Path) -> None:
    """What shows that a training has begun."""
    state = config.parent / "run" / "round-01" / "trainer" / "checkpoint-1" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")


def test_the_manifest_holds_every_setting(config, capsys):
    assert cli.main(["sample", str(config), "--hub_token", "hf_secret"]) == 0
    found = manifest(config)
    fields = {*PADConfig.__dataclass_fields__, *RunConfig.__dataclass_fields__}
    left_out = {"hub_token", "accept_environment", "do_train", "do_eval", "do_predict"}
    left_out |= {"local_rank", "resume_from_checkpoint"}
    own = {name for name in fields if not name.startswith("_")} - left_out
    renamed = {name for name in own if "checkpointing" in name}
    assert own - renamed <= set(found["resolved"])
    assert found["resolved"]["weight_decay"] == 0.0  # a default
    assert found["resolved"]["mcq_floor"] == 1e-4  # from a preset
    assert found["resolved"]["mixed_precision"] == "no"
    assert "hf_secret" not in json.dumps(found)
    assert set(found["machine"]) == {"device", "threads"}
    assert cli.main(["sample", str(config.parent / "run")]) == 0  # the folder is its own config
    assert "changes" not in manifest(config)


def test_what_the_environment_sets_is_recorded_and_compared(config, capsys, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "info")
    assert cli.main(["sample", str(config)]) == 0
    assert "the environment sets ACCELERATE_MIXED_PRECISION=bf16" in caplog.text
    assert manifest(config)["environment"]["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert "ACCELERATE_LOG_LEVEL" not in manifest(config)["environment"]
    assert manifest(config)["resolved"]["mixed_precision"] == "bf16"
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    error = failing(capsys, "score", config)
    assert "was made with ACCELERATE_MIXED_PRECISION=bf16, and now it is" in error
    assert "ACCELERATE_MIXED_PRECISION=not set; go on with the former, give" in error
    begin_training(config)
    accepting = ["sample", str(config), "--accept_environment", "true"]
    assert "mixed_precision: " in failing(capsys, *accepting)  # the weights would differ
    (
        config.parent / "run" / "round-01" / "trainer" / "checkpoint-1" / "trainer_state.json"
    ).unlink()
    assert cli.main(accepting) == 0
    found = manifest(config)
    assert "ACCELERATE_MIXED_PRECISION" not in found["environment"]
    assert found["changes"][0]["from"]["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert found["changes"][0]["to"]["mixed_precision"] == "no"
    assert "accept_environment" not in {**found["config"], **found["resolved"]}
    assert cli.main(["sample", str(config)]) == 0  # now the environment is the recorded one


@pytest.mark.parametrize(
    "name",
    [
        "ACCELERATE_DOWNCAST_BF16",
        "ACCELERATE_USE_FSDP",
        "CUBLAS_WORKSPACE_CONFIG",
        "FSDP_OFFLOAD_PARAMS",
        "NVIDIA_TF32_OVERRIDE",
        "PAD_FAST_COMPILE",
        "PAD_FAST_IMPL",
        "PARALLELISM_CONFIG_TP_SIZE",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    ],
)
def test_every_variable_of_the_kind_is_noticed(name, monkeypatch):
    before = variables()
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert variables() == {**before, name: "1"}


@pytest.mark.parametrize("package", ["torch", "transformers", "pad-fast"])
def test_other_versions_are_asked_for_by_a_flag(config, capsys, package):
    assert cli.main(["sample", str(config)]) == 0
    versions = manifest(config)["versions"]
    rewrite(config, versions={**versions, package: "0.0.1", "python": "3.0", "datasets": "1"})
    error = failing(capsys, "sample", config)
    assert f"was made with {package}=0.0.1, and now it is {package}={versions[package]}; " in error
    assert cli.main(["sample", str(config), "--accept_environment", "true"]) == 0
    assert manifest(config)["versions"] == versions


def test_nothing_is_asked_before_anything_is_kept(config, capsys, monkeypatch):
    from pad_fast.pipeline import rounds

    monkeypatch.setitem(rounds.PHASE_FUNCTIONS, "sample", lambda run, round: None)
    assert cli.main(["sample", str(config)]) == 0
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert cli.main(["sample", str(config)]) == 0
    assert manifest(config)["environment"]["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_a_default_of_another_release_does_not_change_a_begun_training(config, capsys):
    assert cli.main(["sample", str(config)]) == 0
    begin_training(config)
    resolved = manifest(config)["resolved"]
    rewrite(config, resolved={**resolved, "weight_decay": 0.1, "gone": 1})
    error = failing(capsys, "sample", config)
    assert "weight_decay: " in error
    assert "has begun to train with 0.1, got 0.0; go on with the former" in error
    assert cli.main(["sample", str(config), "--weight_decay", "0.1"]) == 0


def test_the_machine_is_recorded_and_a_change_is_named(config, caplog):
    assert cli.main(["sample", str(config)]) == 0
    rewrite(config, machine={"device": "cpu", "threads": 64})
    assert cli.main(["sample", str(config)]) == 0
    assert "begun on device=cpu, threads=64, and now it is device=cpu, threads=1" in caplog.text
    assert manifest(config)["changes"][0]["from"] == {"machine": {"device": "cpu", "threads": 64}}


def test_a_run_of_an_older_format_is_refused(config, capsys):
    assert cli.main(["sample", str(config)]) == 0
    rewrite(config, format=1)
    assert "has format 1, and this version reads format 2" in failing(capsys, "sample", config)


def test_what_a_launcher_sets_by_itself_changes_nothing(monkeypatch):
    before = variables()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert variables() == before
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "16")
    assert variables().keys() - before.keys() == {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS"}
