"""The student of a training by DeepSpeed is saved in the data type of training."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from students import RENAMED, make_args, make_model, make_rows

from pad_fast.pipeline.ranks import ALONE
from pad_fast.pipeline.train import saved_student
from pad_fast.pipeline.train.adapter import with_adapter
from pad_fast.training.trainer import PADTrainer
from tests.pipeline.ranks.test_whole_models import LORA


@pytest.fixture
def deepspeed(monkeypatch) -> Any:
    """Makes a trainer one that DeepSpeed had: 16 bits in the model, all of them elsewhere."""
    masters: dict[torch.Tensor, torch.Tensor] = {}
    package: Any = ModuleType("deepspeed")
    package.__spec__ = ModuleSpec("deepspeed", None)
    package.utils = ModuleType("deepspeed.utils")
    package.utils.safe_get_full_fp32_param = masters.get
    monkeypatch.setitem(sys.modules, "deepspeed", package)
    monkeypatch.setitem(sys.modules, "deepspeed.utils", package.utils)

    def pretend(trainer) -> dict[str, torch.Tensor]:
        kept = {n: w.detach().clone() for n, w in trainer.model.named_parameters()}
        trainer.model.bfloat16()
        trained = {n: w for n, w in trainer.model.named_parameters() if w.requires_grad}
        masters.update({weight: kept[name] for name, weight in trained.items()})
        trainer.is_deepspeed_enabled = True
        trainer.deepspeed = SimpleNamespace(module=trainer.model)
        monkeypatch.setattr(
            trainer.accelerator, "get_state_dict", lambda engine: engine.module.state_dict()
        )
        return {name: kept[name] for name in trained}

    return pretend


def saved(trainer, folder: Path, **config) -> Path:
    run: Any = SimpleNamespace(
        config=SimpleNamespace(**{"train_dtype": "float32", "use_peft": False} | config),
        ranks=ALONE,
    )
    saved_student._save_whole(trainer, run, folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("tied", [False, True])
def test_every_bit_of_the_student_is_saved(tmp_path, deepspeed, tied):
    model = make_model(tie_word_embeddings=tied)
    trainer = PADTrainer(model, make_args(tmp_path), make_rows(2))
    wanted = deepspeed(trainer)
    folder = saved(trainer, tmp_path)
    found = load_file(folder / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert ("lm_head.weight" in found) != tied
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert (folder / saved_student.STATE).is_file()


@RENAMED
def test_every_bit_of_an_adapter_is_saved(tmp_path, deepspeed, monkeypatch):
    trainer = PADTrainer(with_adapter(make_model(), LORA), make_args(tmp_path), make_rows(2))
    wanted = deepspeed(trainer)
    monkeypatch.setattr(trainer.accelerator, "get_state_dict", None)  # which gathers the base too
    found = load_file(saved(trainer, tmp_path, use_peft=True) / "adapter_model.safetensors")
    assert len(found) == len(wanted) == 8
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name.replace(".default", "")], weight, rtol=0, atol=0)


def test_trainer_saves_what_is_trained_in_16_bits(tmp_path, deepspeed, monkeypatch):
    trainer = PADTrainer(make_model(), make_args(tmp_path), make_rows(2))
    deepspeed(trainer)
    calls: list[str] = []
    monkeypatch.setattr(
        trainer, "save_model", lambda path: calls.append(path) or Path(path).mkdir()
    )
    saved(trainer, tmp_path, train_dtype="bfloat16")
    assert len(calls) == 1


def test_other_processes_take_part_and_write_nothing(tmp_path, deepspeed, monkeypatch):
    trainer = PADTrainer(make_model(), make_args(tmp_path), make_rows(2))
    wanted = deepspeed(trainer)
    asked = []
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    monkeypatch.setattr(trainer.accelerator, "get_state_dict", lambda engine: None)
    monkeypatch.setattr(sys.modules["deepspeed.utils"], "safe_get_full_fp32_param", asked.append)
    assert saved_student.full_weights(trainer, adapter=False) == {}
    assert len(asked) == len(wanted)
