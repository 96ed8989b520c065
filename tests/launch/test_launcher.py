"""Handing a command over to a launcher."""

from __future__ import annotations

import os
import shlex
import socket
import sys

import pytest
import torch
import worlds
from accelerate.commands.config.config_args import load_config_from_file
from commands import failing

from pad_fast import cli
from pad_fast.launch import launcher
from pad_fast.launch.launcher import CONFIGS, LAUNCHED, NAMES, Launch, launch_command, split_launch
from pad_fast.launch.process import NEW_STORE

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
KINDS = {
    "single_gpu": "NO",
    "multi_gpu": "MULTI_GPU",
    "fsdp2": "FSDP",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
}


@pytest.fixture
def gpus(monkeypatch):
    """Sets the number of GPUs of this machine."""
    for name in (*LAUNCHED, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.fixture
def started(gpus, monkeypatch):
    """The command and the environment that a process becomes, on a machine without GPUs."""
    gpus(0)
    found = []

    def execve(path: str, command: list[str], env: dict[str, str]) -> None:
        found.append((command, env))
        raise SystemExit  # the process is another one now

    monkeypatch.setattr(os, "execve", execve)
    return found


def hand_over(*words: str) -> None:
    """Become the launcher of ``pad-fast run`` with ``words``."""
    launch, rest = split_launch(words)
    with pytest.raises(SystemExit):
        launcher.hand_over(launch, ["run", *rest])


def options(command: list[str]) -> dict[str, str]:
    """The launcher's flags before ``-m pad_fast``."""
    words = command[3 : command.index("pad_fast") - 1]
    words = [word for word in words if word != "--standalone"]
    return dict(zip([word[2:] for word in words[::2]], words[1::2], strict=True))


def test_flags_of_a_launch_are_taken_out_of_a_command():
    words = ["run.yaml", "--num_processes", "8", "--seed=3", "--accelerate_config=fsdp2"]
    launch, rest = split_launch(words)
    assert launch == Launch(num_processes=8, accelerate_config="fsdp2")
    assert rest == ["run.yaml", "--seed=3"]


def test_a_command_without_them_is_left_as_it_is():
    assert split_launch(["run.yaml", "--num_proc", "2"]) == (None, ["run.yaml", "--num_proc", "2"])


def test_gpus_are_started_by_accelerate(gpus):
    gpus(8)
    command = launch_command(Launch(num_processes=8, accelerate_config="fsdp2"), ["run", "a.yaml"])
    assert command[:3] == ACCELERATE
    assert command[-4:] == ["-m", "pad_fast", "run", "a.yaml"]
    found = options(command)
    assert found["config_file"] == str(CONFIGS / "fsdp2.yaml")
    assert (found["num_processes"], found["num_machines"]) == ("8", "1")
    assert "main_process_ip" not in found


def test_four_nodes(gpus):
    gpus(8)
    launch = Launch(32, "zero3", 4, 2, "10.0.0.1", 29501, max_restarts=3)
    found = options(launch_command(launch, ["run", "a.yaml"]))
    assert found == {
        "config_file": str(CONFIGS / "zero3.yaml"),
        "num_processes": "32",
        "num_machines": "4",
        "machine_rank": "2",
        "main_process_ip": "10.0.0.1",
        "main_process_port": "29501",
        "max_restarts": "3",
    }


@pytest.mark.parametrize(
    ("count", "launch", "config", "processes"),
    [
        (8, Launch(num_machines=1), "multi_gpu", "8"),
        (8, Launch(num_machines=2, main_process_ip="a"), "multi_gpu", "16"),
        (1, Launch(), "single_gpu", "1"),
        (8, Launch(num_processes=1), "single_gpu", "1"),
    ],
)
def test_every_gpu_is_used_by_default(gpus, count, launch, config, processes):
    gpus(count)
    found = options(launch_command(launch, ["run"]))
    assert found["config_file"].endswith(f"{config}.yaml")
    assert found["num_processes"] == processes


def test_cpus_are_started_by_torchrun(gpus):
    gpus(0)
    command = launch_command(Launch(num_processes=2, max_restarts=1), ["run", "a.yaml"])
    assert command[:3] == TORCHRUN
    assert "--standalone" in command  # torchrun finds a free port
    assert options(command) == {
        "nproc_per_node": "2",
        "nnodes": "1",
        "node_rank": "0",
        "max_restarts": "1",
    }


def test_cpus_of_two_machines(gpus):
    gpus(0)
    command = launch_command(Launch(4, None, 2, 1, "10.0.0.1"), ["run"])
    assert "--standalone" not in command
    found = options(command)
    assert (found["nproc_per_node"], found["nnodes"], found["node_rank"]) == ("2", "2", "1")
    assert (found["master_addr"], found["master_port"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_each_configuration(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type.value == KINDS[name]
    assert config.mixed_precision == "no"  # the run's bf16 sets autocast
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])


def test_every_name_has_a_kind():
    assert set(NAMES) == set(KINDS)


@pytest.mark.parametrize(("name", "asked"), [("fsdp2", "FSDP"), ("zero2", "DEEPSPEED")])
def test_what_a_cpu_makes_of_a_configuration_is_said(name, asked, started, capsys):
    hand_over("c.yaml", "--num_processes", "2", "--accelerate_config", name)
    shown = capsys.readouterr().err
    assert f"{name} asks for {asked}, which needs GPUs: on these CPUs each process trains" in shown
    assert launcher.cpu_note(CONFIGS / "multi_gpu.yaml") is None


def test_a_file_of_the_users(gpus, tmp_path):
    gpus(2)
    path = tmp_path / "mine.yaml"
    path.write_text((CONFIGS / "multi_gpu.yaml").read_text())
    assert options(launch_command(Launch(2, str(path)), ["run"]))["config_file"] == str(path)
    path.write_text("- a list\n")
    with pytest.raises(ValueError, match=r"accelerate_config: .*mine.yaml must hold keys"):
        launcher.cpu_note(path)


REFUSED = {
    ("--num_processes", "0"): "num_processes: must be 1 or more, got 0",
    ("--num_processes", "two"): "num_processes: invalid int value: 'two'",
    ("--num_machines", "0"): "num_machines: must be 1 or more, got 0",
    ("--machine_rank", "1"): "machine_rank: must be from 0 to num_machines - 1, which is 0, got 1",
    ("--num_machines", "2"): "main_process_ip: needed on several machines",
    (
        *("--num_machines", "2", "--main_process_ip", "10.0.0.1"),
        *("--num_processes", "3"),
    ): "num_processes: must be a multiple of num_machines, 2",
    ("--max_restarts", "-1"): "max_restarts: must be 0 or more, got -1",
    ("--main_process_port", "70000"): "main_process_port: must be from 1 to 65535, got 70000",
    ("--accelerate_config", "fsdp"): "accelerate_config: must be one of fsdp2, multi_gpu",
    ("--accelerate_config", "zero4"): "did you mean zero",
}


@pytest.mark.parametrize(("flags", "message"), REFUSED.items(), ids=map(" ".join, REFUSED))
def test_a_launch_that_cannot_be(flags, message, started, tmp_path, capsys):
    config = worlds.write_config(tmp_path, models=False)
    assert message in failing(capsys, "run", config, *flags)
    assert not started


FOUR_MACHINES = ("--num_machines", "4", "--main_process_ip", "10.0.0.1")


def test_more_processes_than_gpus_are_refused(started, gpus, tmp_path, capsys, monkeypatch):
    gpus(4)
    config = worlds.write_config(tmp_path, models=False, use_cpu=None)
    said = failing(capsys, "run", config, "--num_processes", "8")
    assert (
        "num_processes: 8 processes need a GPU each, and this machine has 4 visible GPUs "
        "(CUDA_VISIBLE_DEVICES is not set); give --num_processes 4, or" in said
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    said = failing(capsys, "run", config, "--num_processes", "32", *FOUR_MACHINES)
    assert (
        "num_processes: 32 processes on 4 machines, 8 on each, need a GPU each, and this machine "
        "has 4 visible GPUs (CUDA_VISIBLE_DEVICES is '4,5,6,7'); give --num_processes 16" in said
    )
    assert not started
    hand_over("c.yaml", "--num_processes", "4")
    hand_over("c.yaml", "--num_processes", "16", *FOUR_MACHINES)
    assert len(started) == 2


def test_processes_of_a_cpu_need_no_gpus(started, gpus, tmp_path):
    gpus(1)
    mine = tmp_path / "mine.yaml"
    mine.write_text((CONFIGS / "multi_gpu.yaml").read_text().replace("cpu: false", "cpu: true"))
    hand_over("c.yaml", "--num_processes", "2", "--accelerate_config", str(mine))
    config = worlds.write_config(tmp_path, models=False, use_cpu=True)
    with pytest.raises(SystemExit):
        cli._run(["run", str(config), "--num_processes", "2"])
    (first, environment), (second, _) = started[1], started[0]
    assert "torch.distributed.run" in first
    assert environment["ACCELERATE_USE_CPU"] == "true"
    assert "accelerate.commands.launch" in second


def test_a_file_of_the_users_may_choose_gpus(started, gpus, tmp_path):
    gpus(8)
    path = tmp_path / "mine.yaml"
    path.write_text((CONFIGS / "multi_gpu.yaml").read_text().replace("ids: all", "ids: 2,3"))
    assert options(launch_command(Launch(None, str(path)), ["run"]))["num_processes"] == "2"
    with pytest.raises(
        ValueError, match=r"has 2 GPUs \(gpu_ids in .*mine.yaml is 2,3\); give --num_p"
    ):
        launcher.hand_over(Launch(4, str(path)), ["run", "c.yaml"])
    assert not started


def test_wrong_settings_are_found_before_anything_is_started(started, tmp_path, capsys):
    config = worlds.write_config(tmp_path, models=False, learning_rate=-1)
    error = failing(capsys, "run", config, "--num_processes", "2")
    assert "learning_rate" in error
    assert not started


def test_a_process_that_a_launcher_started_is_no_launcher(started, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    launch, words = split_launch(["c.yaml", "--num_processes", "2"])
    with pytest.raises(ValueError, match=r"a launcher has started this process \(RANK is set\)"):
        launcher.hand_over(launch, words)
    assert not started


def test_a_port_that_is_taken(started):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launch = Launch(num_processes=2, main_process_port=port)
        with pytest.raises(ValueError, match=f"main_process_port: {port} cannot be used on this"):
            launcher.hand_over(launch, ["run", "c.yaml"])
    assert not started
    launcher.check_port(port)  # is free again


def test_the_command_that_was_given_goes_along(started):
    hand_over("my run.yaml", "--num_processes", "2", "--seed", "3")
    ((command, environment),) = started
    assert command[-6:] == ["-m", "pad_fast", "run", "my run.yaml", "--seed", "3"]
    given = shlex.split(environment[launcher.COMMAND])
    assert given == ["pad-fast", "run", "my run.yaml", "--seed", "3", "--num_processes", "2"]
    assert environment["ACCELERATE_USE_CPU"] == "true"
    assert environment[NEW_STORE] == "1"  # or restarts read what dead processes wrote


def test_no_secret_is_shown(started, capsys):
    hand_over("c.yaml", "--num_processes", "2", "--hub_token", "hf_secret")
    ((command, environment),) = started
    assert "hf_secret" in command
    assert "hf_secret" not in environment[launcher.COMMAND] + capsys.readouterr().err
