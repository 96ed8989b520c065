"""A run in one process on a machine with several GPUs uses the first one, and says so."""

from __future__ import annotations

import os

import pytest
import torch
from worlds import changed_config, run_config

from pad_fast import cli
from pad_fast.launch.process import COMMAND
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.idle_gpus import tell_of_idle_gpus


@pytest.fixture
def gpus(monkeypatch):
    """Sets the number of GPUs that PyTorch sees."""
    for name in ("CUDA_VISIBLE_DEVICES", "WORLD_SIZE", COMMAND):
        monkeypatch.delenv(name, raising=False)
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_run_takes_the_first_of_eight(world, tmp_path, capsys, gpus, no_report):
    gpus(8)
    config = changed_config(
        world,
        tmp_path,
        use_cpu=None,
        num_generations=2,
        save_strategy="no",
    )
    compared = ["--compare", '{"RFT": {"loss": "rft", "train_on": "best"}}']
    settings = parse_settings("run", [str(config), *compared])
    methods = [settings.pad_config(tmp_path), settings.method_config("RFT", tmp_path)]
    assert [args.n_gpu for args in methods] == [1, 1]
    assert [args.train_batch_size for args in methods] == [4, 4]
    assert cli.main(["run", str(config)]) == 0
    said = capsys.readouterr().out
    line = (
        "this process uses the first of 8 visible GPUs, and the other 7 are idle; "
        "--num_processes 8 uses them all"
    )
    assert said.count("visible GPUs") == said.count(line) == 1
    assert "CUDA_VISIBLE_DEVICES" not in os.environ  # which a server that the run starts reads
    assert cli.main(["evaluate", str(config)]) == 0
    assert line in capsys.readouterr().out
    assert cli.main(["report", str(config)]) == 0
    assert "GPU" not in capsys.readouterr().out


def test_servers_that_it_starts_see_all(world, capsys, gpus):
    gpus(2)
    tell_of_idle_gpus(run_config(world))
    assert "the other one is idle" in capsys.readouterr().out
    serve = {"student_serve": "./serve {model} --port {port} --data-parallel-size 2"}
    tell_of_idle_gpus(run_config(world, **serve))
    assert "the servers that it starts see all of them" in capsys.readouterr().out


def test_nothing_is_said_of_a_single_gpu_or_of_chosen_processes(
    world, capsys, gpus, monkeypatch: pytest.MonkeyPatch
):
    config = run_config(world)
    for count in (0, 1):
        gpus(count)
        tell_of_idle_gpus(config)
    gpus(8)
    for name, value in (("WORLD_SIZE", "4"), (COMMAND, "pad-fast run a.yaml --num_processes 1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            tell_of_idle_gpus(config)
    assert capsys.readouterr().out == ""
