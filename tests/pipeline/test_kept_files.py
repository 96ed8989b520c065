"""A run replaces no file of the user, and keeps what others write into its folder."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import failing
from safetensors.torch import load_file, save_file
from worlds import changed_config

from pad_fast import cli
from pad_fast.files.weights import check_model_folder, fault_of
from pad_fast.files.writing import replacing
from pad_fast.pipeline.phases import PHASES
from pad_fast.pipeline.run_folder import RunFolder
from pad_fast.pipeline.train.saved_student import drop_checkpoints


@pytest.mark.parametrize("name", ["prompts.parquet", "heldout/prompts.parquet"])
def test_a_file_of_the_user_is_not_replaced(world, tmp_path, capsys, name):
    config, path = changed_config(world, tmp_path), tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"prompt": ["mine"]}), path)
    before = path.read_bytes()
    assert f"output_dir: {path} is there and no run wrote it" in failing(capsys, "run", config)
    own = changed_config(world, tmp_path, **{"prompts" if name[0] == "p" else "heldout": str(path)})
    assert f"writes its prompts to {path}, which the settings" in failing(capsys, "run", own)
    assert path.read_bytes() == before


def test_a_report_of_somebody_else_is_not_replaced(world, tmp_path, capsys):
    (tmp_path / "run" / "report").mkdir(parents=True)
    (tmp_path / "run" / "report" / "index.html").write_text("mine")
    error = failing(capsys, "run", changed_config(world, tmp_path))
    assert "holds report/index.html and no run.json" in error


def test_the_logs_of_a_tracker_outlive_the_checkpoints(tmp_path):
    trainer = tmp_path / "trainer"
    for name in ("checkpoint-1", "checkpoint-20", "runs/now", "checkpoint-best"):
        (trainer / name).mkdir(parents=True)
        (trainer / name / "file").write_text(name)
    drop_checkpoints(trainer)
    assert sorted(path.name for path in trainer.iterdir()) == ["checkpoint-best", "runs"]
    shutil.rmtree(trainer / "runs")
    shutil.rmtree(trainer / "checkpoint-best")
    drop_checkpoints(trainer)
    assert not trainer.exists()
    drop_checkpoints(trainer)


def test_a_folder_is_replaced_without_a_moment_of_neither(tmp_path, monkeypatch):
    target = tmp_path / "student"
    target.mkdir()
    (target / "old").write_text("old")

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    def replaced() -> None:
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / "new").write_text("new")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", fail)
        with pytest.raises(KeyboardInterrupt):
            replaced()
    assert [path.name for path in tmp_path.rglob("*")] == ["student", "old"]
    replaced()
    assert [path.name for path in tmp_path.rglob("*")] == ["student", "new"]


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_that_were_not_copied_whole(world, tmp_path, capsys, role):
    shutil.copytree(world / role, tmp_path / "own")
    weights = tmp_path / "own" / "model.safetensors"
    config = changed_config(world, tmp_path, **{role: "./own"})
    content = weights.read_bytes()
    for bad in (content[:-1], content[:100], b"", bytes(len(content))):
        weights.write_bytes(bad)
        error = failing(capsys, "run", config)
        assert f"{role}: {weights} is damaged: it is " in error
        assert "copy or download it again" in error
    torch.save(
        load_file(world / role / "model.safetensors"), tmp_path / "own" / "pytorch_model.bin"
    )
    weights.unlink()
    whole = (tmp_path / "own" / "pytorch_model.bin").read_bytes()
    (tmp_path / "own" / "pytorch_model.bin").write_bytes(whole[:-1000])
    assert "pytorch_model.bin is damaged: it is cut short" in failing(capsys, "run", config)
    assert not (tmp_path / "run" / "run.json").exists()


def test_parts_of_weights_that_are_missing(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks b.safetensors, which model.*index.json"):
        check_model_folder(tmp_path)
    save_file({"y": torch.zeros(2)}, tmp_path / "b.safetensors")
    check_model_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged: it is not JSON .*copy or download it again"):
        check_model_folder(tmp_path)


def test_a_bit_of_a_tensor_is_seen_where_torch_load_sees_nothing(tmp_path):
    path = tmp_path / "optimizer.pt"
    torch.save({"x": torch.arange(1000)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(900, 905).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert torch.load(path)["x"][900] == 901
    assert fault_of(path) is None
    assert "the checksum of optimizer/data/0 in it is wrong" in str(fault_of(path, throughout=True))


def test_a_stopped_start_is_begun_again(world, tmp_path, monkeypatch):
    """Its prompts are those of a run, though no manifest says so."""
    config = changed_config(world, tmp_path, num_generations=2)
    run = tmp_path / "run"
    assert cli.main(["sample", str(config)]) == 0
    for path in run.iterdir():
        if path.name not in ("prompts.parquet", "heldout"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(run / "heldout" / "samples")
    assert cli.main(["sample", str(config)]) == 0
    assert (run / "run.json").exists()


@pytest.mark.parametrize("pattern", sorted({each for phase in PHASES for each in phase.kept}))
def test_what_any_phase_kept_belongs_to_a_run(tmp_path, pattern):
    path = tmp_path / pattern.replace("checkpoint-*", "checkpoint-1").replace("*", "round-01", 1)
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(ValueError, match=r"and no run\.json, which says what made it"):
        RunFolder(tmp_path).check_manifest_is_not_lost()
