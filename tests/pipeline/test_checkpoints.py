"""A training goes on from a checkpoint only where that changes nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerState
from worlds import changed_config, contents

from pad_fast import cli
from pad_fast.files.own_files import read_json
from pad_fast.pipeline.train import checkpoints, train_round
from pad_fast.pipeline.train.checkpoints import CHECKSUMS, Checksums, last_checkpoint
from pad_fast.training.config import PADConfig

FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


def made(folder: Path, step: int, *more: str) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in (*FILES, *more):
        path, tensors = checkpoint / name, {"x": torch.arange(1000.0)}
        if path.suffix == ".safetensors":
            save_file(tensors, path)
        elif path.suffix != ".json":
            torch.save(tensors, path)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return checkpoint


@pytest.fixture
def args(tmp_path) -> PADConfig:
    return PADConfig(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_checkpoint_without_a_file_is_not_resumed_from(tmp_path, args, caplog, name, damage):
    before, last = made(tmp_path, 9), made(tmp_path, 10)
    assert last_checkpoint(tmp_path, args) == last
    assert not caplog.text
    (last / name).unlink() if damage == "missing" else (last / name).write_text("")
    assert last_checkpoint(tmp_path, args) == before
    assert f"without {name}; the training goes on from checkpoint-9" in caplog.text
    assert not last.exists()  # so that it is written anew, and is none of those to keep
    (before / name).unlink()
    assert last_checkpoint(tmp_path, args) is None
    assert f"without {name}; the training starts over" in caplog.text


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["one bit", "cut short", "zeros"])
def test_a_damaged_file_is_named_and_not_resumed_from(tmp_path, args, caplog, name, damage):
    before, last = made(tmp_path, 9), made(tmp_path, 10)
    state = TrainerState(global_step=10, is_world_process_zero=True)
    Checksums().on_save(args, state, None)
    assert last_checkpoint(tmp_path, args) == last
    path = last / name
    if damage == "one bit":
        flip(path, path.stat().st_size // 2)
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(bytes(path.stat().st_size))
    assert last_checkpoint(tmp_path, args) == before
    assert f"without {name}" in caplog.text
    assert "the training goes on from checkpoint-9" in caplog.text


def test_a_checkpoint_without_checksums_is_one(tmp_path, args):
    """A kill may come between the checkpoint and its checksums."""
    checkpoint = made(tmp_path, 1)
    assert last_checkpoint(tmp_path, args) == checkpoint
    (checkpoint / CHECKSUMS).write_text('{"half')
    assert last_checkpoint(tmp_path, args) == checkpoint


def test_what_the_system_does_not_read_is_kept(tmp_path, args, monkeypatch):
    checkpoint = made(tmp_path, 1)

    def fail(path: Path, throughout: bool) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoints, "fault_of", fail)
    with pytest.raises(OSError, match="Input/output error"):
        last_checkpoint(tmp_path, args)
    assert checkpoint.is_dir()


def test_other_files_are_not_needed(tmp_path, args):
    checkpoint = made(tmp_path, 1)
    (checkpoint / "model.safetensors").unlink()
    torch.save({}, checkpoint / "pytorch_model.bin")
    assert last_checkpoint(tmp_path, args) == checkpoint


def test_each_part_of_the_weights_is_needed(tmp_path, args, caplog):
    checkpoint = made(tmp_path, 1, "a.safetensors", "b.safetensors")
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert last_checkpoint(tmp_path, args) == checkpoint
    (checkpoint / "b.safetensors").unlink()
    assert last_checkpoint(tmp_path, args) is None
    assert "without b.safetensors; the training starts over" in caplog.text


def test_float16_needs_its_scaler(tmp_path, args, caplog):
    made(tmp_path, 1)
    args.fp16 = True
    assert last_checkpoint(tmp_path, args) is None
    assert "without scaler.pt" in caplog.text


def test_weights_that_are_elsewhere_get_no_checksum(tmp_path, args):
    """DeepSpeed and FSDP may keep them in folders of their own."""
    checkpoint = made(tmp_path, 5)
    (checkpoint / "model.safetensors").unlink()
    Checksums().on_save(args, TrainerState(global_step=5, is_world_process_zero=True), None)
    assert list(read_json(checkpoint / CHECKSUMS)) == ["trainer_state.json"]


class Stop(TrainerCallback):
    """Ends the process's training after its last checkpoint, as a kill would."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps - 1:
            raise RuntimeError("killed")


@pytest.mark.parametrize("limit", [1, 2])
def test_a_training_without_its_optimizer_gives_the_same_student(
    world, tmp_path, monkeypatch, caplog, limit
):
    """Falling back to the checkpoint before, or to the start."""
    options = {"num_generations": 2, "per_device_train_batch_size": 2, "save_total_limit": limit}
    config = changed_config(world, tmp_path, **options)
    for phase in ("sample", "score"):
        assert cli.main([phase, str(config)]) == 0
    own = train_round.fit

    def stopped(trainer, *rest):
        trainer.add_callback(Stop())
        own(trainer, *rest)

    monkeypatch.setattr(train_round, "fit", stopped)
    assert cli.main(["train", str(config)]) == 1
    monkeypatch.undo()
    (tmp_path / "run" / "round-01" / "trainer" / "checkpoint-3" / "optimizer.pt").unlink()
    assert cli.main(["train", str(config)]) == 0
    way = "starts over" if limit == 1 else "goes on from checkpoint-2"
    assert f"without optimizer.pt; the training {way}" in caplog.text

    whole = changed_config(world, tmp_path, **options, output_dir=str(tmp_path / "whole"))
    for phase in ("sample", "score", "train"):
        assert cli.main([phase, str(whole)]) == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
