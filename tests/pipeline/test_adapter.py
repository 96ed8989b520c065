"""A run that trains an adapter: the merged student, the adapter that is kept, and its settings."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import worlds
from commands import failing
from peft import PeftModel
from safetensors.torch import load_file
from students import make_model
from transformers import AutoModelForCausalLM

from pad_fast import cli
from pad_fast.environment import install_extra
from pad_fast.pipeline.train import adapter
from pad_fast.pipeline.train.train_round import MetricsLines

# PEFT's own use of a name that transformers will drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

# With dropout, so that a resume has to take the random generators up too.
LORA = {
    "use_peft": True,
    "lora_r": 2,
    "lora_alpha": 8,
    "lora_dropout": 0.2,
    "disable_dropout": False,
    "heldout_size": 2,
    "per_device_train_batch_size": 2,
}


@pytest.fixture(scope="module")
def adapted(world, tmp_path_factory) -> Path:
    """The folder of a finished run of two rounds."""
    folder = tmp_path_factory.mktemp("adapted")
    config = worlds.changed_config(world, folder, output_dir=str(folder / "run"), rounds=2, **LORA)
    assert cli.main(["run", str(config)]) == 0
    return folder / "run"


def test_the_adapter_is_as_the_settings_say(world):
    changes = {**LORA, "lora_target_modules": ["q_proj"]}
    names = ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
    config = worlds.run_config(world, **{name: changes[name] for name in names})
    model = adapter.with_adapter(make_model(), config)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.lora_dropout["default"].p == 0.2
    assert layer.lora_A["default"].weight.shape[0] == 2
    assert layer.scaling["default"] == 8 / 2
    assert set(model.peft_config["default"].target_modules) == {"q_proj"}


@pytest.mark.parametrize("round", [1, 2])
def test_the_merged_student_says_what_the_base_with_the_adapter_says(world, adapted, round):
    before = world / "student" if round == 1 else adapted / "round-01" / "student"
    base = AutoModelForCausalLM.from_pretrained(before, dtype=torch.float32)
    ids = torch.arange(6, 30)[None]
    plain = base(ids).logits
    folder = adapted / f"round-{round:02d}"
    wanted = PeftModel.from_pretrained(base, folder / "adapter").eval()(ids).logits
    found = AutoModelForCausalLM.from_pretrained(folder / "student")(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (wanted - plain).abs().max() > 1e-3  # it has learned something


def test_what_is_saved(adapted):
    folder = adapted / "round-01"
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 8)
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert weights
    assert all("lora_" in name for name in weights)
    student = load_file(folder / "student" / "model.safetensors")
    assert not any("lora" in name for name in student)  # any program reads it
    assert {"tokenizer.json", "README.md"} <= {path.name for path in (folder / "student").iterdir()}
    assert not (folder / "trainer").exists()


def test_a_training_goes_on_from_its_middle_to_the_same_bits(
    world, adapted, tmp_path, monkeypatch, no_report
):
    config = worlds.changed_config(
        world, tmp_path, output_dir=str(tmp_path / "run"), rounds=2, **LORA
    )
    own = MetricsLines.on_log

    def stop(self, args, state, *rest, **kwargs):
        own(self, args, state, *rest, **kwargs)
        if self.phase == "train" and (self.round, state.global_step) == (2, 3):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLines, "on_log", stop)
        assert cli.main(["run", str(config)]) == 130
    checkpoints = list((tmp_path / "run" / "round-02" / "trainer").glob("checkpoint-*"))
    assert [path.name for path in checkpoints] == ["checkpoint-2"]
    assert (checkpoints[0] / "adapter_model.safetensors").is_file()
    assert cli.main(["run", str(config)]) == 0
    assert worlds.contents(tmp_path / "run") == worlds.contents(adapted)


def refused(world, folder, capsys, **changes) -> str:
    config = worlds.changed_config(world, folder, output_dir=str(folder / "run"), **changes)
    error = failing(capsys, "run", config)
    assert not list(folder.glob("run/round-*"))
    return error


def test_an_adapter_of_the_head_is_refused_before_anything_is_sampled(world, tmp_path, capsys):
    error = refused(world, tmp_path, capsys, use_peft=True, lora_target_modules=["lm_head"])
    assert "pad-fast: lora_target_modules: model must not have an adapter on its output" in error


def test_modules_that_are_not_there_are_refused(world, tmp_path, capsys):
    error = refused(world, tmp_path, capsys, use_peft=True, lora_target_modules=["query"])
    assert "pad-fast: lora_target_modules: " in error
    assert "query" in error


@pytest.mark.parametrize(
    "targets",
    [["q_proj"], ["self_attn.q_proj"], [".*q_proj"], ["q_proj", "v_proj"], ["all-linear"]],
)
def test_targets_are_names_or_a_pattern(targets):
    config = SimpleNamespace(lora_target_modules=targets, lora_r=2, lora_alpha=8, lora_dropout=0.0)
    model = adapter.with_adapter(make_model(), config)
    found = {
        name.split(".lora_")[0].split(".")[-1] for name in model.state_dict() if "lora_" in name
    }
    wanted = {name.split(".")[-1].removeprefix("*") for name in targets}
    assert found == wanted if targets != ["all-linear"] else len(found) == 7


def test_four_bits_need_an_adapter_and_bitsandbytes(world, tmp_path, capsys, monkeypatch):
    error = refused(world, tmp_path, capsys, load_in_4bit=True)
    assert "load_in_4bit: weights in 4 bits are not trained, only an adapter on them is" in error
    spec = importlib.util.find_spec
    missing = lambda name: None if name == "bitsandbytes" else spec(name)  # noqa: E731
    monkeypatch.setattr(adapter, "find_spec", missing)
    error = refused(world, tmp_path, capsys, use_peft=True, load_in_4bit=True)
    assert "load_in_4bit: needs bitsandbytes, which is not installed: pip install" in error


def test_peft_that_is_not_installed(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    error = refused(world, tmp_path, capsys, use_peft=True)
    assert f"use_peft: needs PEFT, which is not installed: {install_extra('peft')}" in error
