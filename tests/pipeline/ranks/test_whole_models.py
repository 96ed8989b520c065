"""Each process loads, builds and samples from whole models, whatever the training splits."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.generation.utils
from students import RENAMED, make_args, make_model, make_rows
from transformers import GenerationConfig
from transformers.integrations import deepspeed

from pad_fast.models.auto import build_model
from pad_fast.models.whole import FIRST_LOADS, check_values, whole_models
from pad_fast.pipeline import checkpoint
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.ranks import ALONE
from pad_fast.pipeline.sample.transformers_engine import generated_ids
from pad_fast.pipeline.score.reward_model import RewardModel
from pad_fast.pipeline.train import saved_student
from pad_fast.pipeline.train.adapter import check_adapter, merged, trainable, with_adapter
from pad_fast.training.trainer import PADTrainer
from tests.pipeline.test_reward_model import save_reward_model

LORA = SimpleNamespace(
    use_peft=True,
    load_in_4bit=False,
    lora_target_modules=None,
    lora_r=2,
    lora_alpha=8,
    lora_dropout=0.0,
    train_dtype="float32",
)


class Zero3:
    """What TrainingArguments tell transformers of DeepSpeed's configuration."""

    def __init__(self) -> None:
        self.config = {"zero_optimization": {"stage": 3}}

    def is_zero3(self) -> bool:
        return True


@pytest.fixture
def zero3(monkeypatch):
    """TrainingArguments with ZeRO-3 live, and a model that would be split cannot be made."""

    def split(*args, **options):
        raise AssertionError("zero.Init would split this model over all processes")

    stub: Any = ModuleType("deepspeed")
    stub.__spec__ = ModuleSpec("deepspeed", None)
    stub.zero = SimpleNamespace(Init=split, GatheredParameters=split)
    monkeypatch.setitem(sys.modules, "deepspeed", stub)
    config = Zero3()
    deepspeed.set_hf_deepspeed_config(config)
    yield config
    deepspeed.unset_hf_deepspeed_config()


def reward_model(folder) -> RewardModel:
    with whole_models():
        return RewardModel("reward_model", str(save_reward_model(folder)))


def saved_adapter(student: Checkpoint, folder):
    model = with_adapter(student.load("cpu"), LORA)
    model.save_pretrained(folder)
    return folder


@RENAMED
@pytest.mark.parametrize(
    "make",
    [
        lambda student, folder: student.model,
        lambda student, folder: reward_model(folder).model,
        lambda student, folder: build_model(student.config),
        lambda student, folder: trainable(LORA, student, 0),
        lambda student, folder: merged(LORA, student, saved_adapter(student, folder)),
        lambda student, folder: check_adapter(LORA, student),
    ],
    ids=["student", "reward model", "random weights", "trainable", "merged", "checked"],
)
def test_zero_3_splits_no_model_of_a_process(zero3, world, tmp_path, make):
    model = make(Checkpoint("student", str(world / "student")), tmp_path / "made")
    if model is not None:
        assert all(weight.numel() for weight in model.parameters())
    assert deepspeed.is_deepspeed_zero3_enabled(), "the training still knows"


def test_what_was_set_comes_back_after_an_error(zero3, monkeypatch):
    monkeypatch.setenv(FIRST_LOADS, "true")
    inside = []

    @whole_models()
    def fail() -> None:
        inside.extend([deepspeed.is_deepspeed_zero3_enabled(), FIRST_LOADS in os.environ])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert inside == [False, False]
    assert deepspeed.deepspeed_config() is zero3.config
    assert os.environ[FIRST_LOADS] == "true"


def test_nothing_is_set_where_nothing_was():
    with whole_models():
        pass
    assert deepspeed.deepspeed_config() is None
    assert FIRST_LOADS not in os.environ


def test_no_process_waits_for_another_while_it_samples(zero3, monkeypatch):
    monkeypatch.setattr(
        transformers.generation.utils, "_get_torch_distributed_world_size", lambda: 2
    )
    model = make_model().eval()
    model.generation_config = GenerationConfig(max_new_tokens=2, eos_token_id=[1], pad_token_id=0)
    found = generated_ids(model, [[3, 4]], 1)  # a collective call would find no process group
    assert 1 <= len(found[0][0]) <= 2


def test_weights_without_values_name_the_setting(world, monkeypatch):
    with torch.device("meta"):
        empty = make_model()
    with pytest.raises(ValueError, match=r"embed_tokens\.weight was loaded without values"):
        check_values(empty, "teacher: big")
    student = Checkpoint("student", str(world / "student"))
    monkeypatch.setattr(type(empty), "from_pretrained", lambda *args, **options: empty)
    with pytest.raises(ValueError, match=r"student: .*set fsdp_cpu_ram_efficient_loading: false"):
        _ = student.model
    check_values(make_model(), "student")


@RENAMED
def test_an_adapter_is_merged_on_the_cpu_when_the_trainer_holds_nothing(
    world, tmp_path, monkeypatch
):
    student = Checkpoint("student", str(world / "student"))
    saved = saved_adapter(student, tmp_path)
    monkeypatch.setattr(checkpoint, "default_device", lambda: torch.device("meta"))
    assert {weight.device.type for weight in merged(LORA, student, saved).parameters()} == {"cpu"}


def test_a_trainer_whose_student_is_saved_holds_neither_model_nor_optimizer(tmp_path):
    trainer = PADTrainer(make_model(), make_args(tmp_path, max_steps=1), make_rows(2))
    trainer.train()
    held = [weakref.ref(trainer.model), weakref.ref(trainer.optimizer.optimizer)]
    gc.collect()
    assert all(one() is not None for one in held)
    run: Any = SimpleNamespace(
        config=SimpleNamespace(use_peft=False, train_dtype="float32"), ranks=ALONE
    )
    saved_student.save_student(trainer, run, Checkpoint("student", ""), tmp_path / "saved", None)
    assert [one() for one in held] == [None, None]
    assert (tmp_path / "saved" / "model.safetensors").is_file()
