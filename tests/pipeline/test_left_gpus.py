"""With ``use_cpu`` no part of a run touches a GPU that the machine has."""

from __future__ import annotations

import json
import os

import pytest
import torch
from worlds import changed_config

from pad_fast import cli, device
from pad_fast.launch.process import ON_CPU
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.open_run import open_run
from pad_fast.pipeline.run_folder import RunFolder
from pad_fast.report.costs import read_costs
from pad_fast.training.trainer import PADTrainer
from tests.students import make_args, make_model, make_rows


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """The starts of a GPU, of which the machine has two: each would take memory of it."""
    found: list[str] = []

    def start() -> None:
        found.append("started")
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: 2, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert torch.cuda.is_available()
    for part in (torch.cuda, torch.cuda.random, torch.cuda.memory):
        monkeypatch.setattr(part, "_lazy_init", start)
    monkeypatch.setattr(device, "has_accelerator", lambda: True)
    module = torch.get_device_module
    monkeypatch.setattr(torch, "get_device_module", lambda *of: module(*of) if of else torch.cuda)
    return found


@pytest.mark.usefixtures("no_report")
def test_a_run_that_leaves_the_gpus_alone(world, tmp_path, capsys, started):
    """Sampling, scoring, a training with checkpoints and slices, evaluation."""
    config = changed_config(world, tmp_path, baseline="seqkd", max_tokens_per_step=64)
    assert cli.main(["run", str(config)]) == 0
    assert not started
    assert RunFolder(tmp_path / "run").manifest()["machine"]["device"] == "cpu"
    assert all(row["peak"] is None or row["peak"] > 2**20 for row in read_costs(tmp_path / "run"))
    assert "visible GPUs" not in capsys.readouterr().out


def test_a_checkpoint_holds_no_states_of_theirs(tmp_path, started, caplog):
    trainer = PADTrainer(make_model(), make_args(tmp_path), make_rows(2))
    trainer._save_rng_state(str(tmp_path))
    before = torch.get_rng_state()
    torch.rand(3)
    trainer._load_rng_state(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    assert not started
    assert "RNG" not in caplog.text
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_plan_and_the_doctor_leave_them_alone(world, tmp_path, capsys, started):
    config = changed_config(world, tmp_path)
    assert cli.main(["plan", str(config), "--json", "true"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["machine"]["name"].startswith("CPU")
    assert plan["tried"]
    assert not plan["notes"]
    assert cli.main(["doctor", str(config), "--num_prompts", "2"]) in (0, 3)
    assert not started


def test_accelerates_own_variable_asks_for_the_same(world, tmp_path, monkeypatch):
    settings = parse_settings("run", [str(changed_config(world, tmp_path, use_cpu=None))])
    assert not settings.on_cpu
    monkeypatch.setenv(ON_CPU, "true")
    assert settings.on_cpu


def test_a_later_run_takes_the_gpu_again(world, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    settings = parse_settings("run", [str(changed_config(world, tmp_path))])
    with open_run(settings):
        assert device.default_device() == torch.device("cpu")
    assert device.default_device() == torch.device("cuda", 1)
