"""Handing a command over to a launcher, which starts it on many processes.

``pad-fast run CONFIG --num_processes 8 --accelerate_config fsdp2`` becomes ``accelerate launch
--config_file fsdp2.yaml --num_processes 8 ... -m pad_fast run CONFIG``. accelerate does not start
several processes on CPUs by itself, so that torchrun starts them there.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pad_fast.device import count_gpus, visible_gpus
from pad_fast.files.yaml_files import read_yaml
from pad_fast.launch.process import COMMAND, NEW_STORE, ON_CPU, THREADS
from pad_fast.terminal import command_line

CONFIGS = Path(__file__).parent / "configs"
NAMES = tuple(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
# What a launcher sets in the environment of each process that it starts.
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Launch:
    """On what a command is started."""

    num_processes: int | None = _flag(
        None,
        "Number of processes on all machines together. Default: this machine's GPUs times the "
        "machines, which all have to have as many.",
    )
    accelerate_config: str | None = _flag(
        None, f"One of {', '.join(NAMES)}, or a file that `accelerate config` wrote."
    )
    num_machines: int = _flag(1, "Number of machines.")
    machine_rank: int = _flag(0, "Number of this machine, from 0.")
    main_process_ip: str | None = _flag(None, "Address of machine 0.")
    main_process_port: int | None = _flag(
        None, "A free port on machine 0. Default: the launcher's own choice."
    )
    max_restarts: int = _flag(
        0, "How often all processes are started again after one of them died."
    )


def split_launch(words: Sequence[str]) -> tuple[Launch | None, list[str]]:
    """The flags of a launch among a command's words, and the other words.

    Returns:
        None in place of a launch if none of its flags is given.

    Raises:
        ValueError: a flag's value is wrong; the message names the flag.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name, kind in _flags().items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    found, rest = parser.parse_known_args(list(words))
    if not vars(found):
        return None, rest
    launch = Launch(**vars(found))
    _check(launch)
    return launch, rest


def launch_command(launch: Launch, words: Sequence[str]) -> list[str]:
    """The command that starts ``pad-fast`` with ``words`` on many processes.

    Raises:
        ValueError: there is no such configuration of accelerate.
    """
    path = _config_of(launch)
    processes = launch.num_processes or max(1, _gpus(launch)[0]) * launch.num_machines
    module = ["-m", "pad_fast", *words]
    if count_gpus() == 0:
        return [*_torchrun(launch, processes), *module]
    flags = {
        "config_file": path,
        "num_processes": processes,
        "num_machines": launch.num_machines,
        "machine_rank": launch.machine_rank,
        "main_process_ip": launch.main_process_ip,
        "main_process_port": launch.main_process_port,
        "max_restarts": launch.max_restarts,
    }
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launcher, *_as_flags(flags), *module]


def hand_over(launch: Launch, words: Sequence[str]) -> int:
    """Become the launcher that starts ``pad-fast`` with ``words`` on many processes.

    Signals then reach the launcher itself, which ends its processes. In a block of
    :func:`pad_fast.device.on_cpu` it starts them as on a machine without GPUs.

    Args:
        launch: on what.
        words: the command.

    Returns:
        The exit code of the launcher, where the system cannot replace a process (Windows).

    Raises:
        ValueError: the launch's port is taken, its configuration is not there, there are more
            processes than GPUs, or this process was started by a launcher already.
    """
    if found := [name for name in LAUNCHED if name in os.environ]:
        raise ValueError(
            f"num_processes, accelerate_config: a launcher has started this process ({found[0]} is "
            "set); give these flags to the launcher"
        )
    command = launch_command(launch, words)
    check_gpus(launch)
    if launch.main_process_port and launch.machine_rank == 0:
        check_port(launch.main_process_port)
    print(f"pad-fast: {command_line(command)}", file=sys.stderr, flush=True)
    given = {COMMAND: command_given(launch, words)}
    environment = {THREADS: "1", NEW_STORE: "1", **os.environ, **given}
    if count_gpus() == 0:
        environment[ON_CPU] = "true"
        if note := cpu_note(_config_of(launch)):
            print(f"pad-fast: {note}", file=sys.stderr, flush=True)
    if os.name == "posix":
        os.execve(command[0], command, environment)
    return subprocess.run(command, env=environment, check=False).returncode


def command_given(launch: Launch, words: Sequence[str]) -> str:
    """The line that a user gave, with the launch's flags at its end and without secrets."""
    flags = {
        field.name: getattr(launch, field.name)
        for field in dataclasses.fields(launch)
        if getattr(launch, field.name) != field.default
    }
    return command_line(["pad-fast", *words, *_as_flags(flags)])


def config_path(name: str) -> Path:
    """The file of a configuration of accelerate.

    Raises:
        ValueError: it is neither one of :data:`NAMES` nor a file.
    """
    if name in NAMES:
        return CONFIGS / f"{name}.yaml"
    path = Path(name).expanduser()
    if path.is_file():
        return path
    near = difflib.get_close_matches(name, NAMES, n=1)
    suggestion = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"accelerate_config: must be one of {', '.join(NAMES)}, or a file that `accelerate config` "
        f"wrote, got {name!r}{suggestion}"
    )


def cpu_note(config: Path) -> str | None:
    """What accelerate makes of a configuration on a CPU where that is something else, or None."""
    asked = _read(config).get("distributed_type")
    if asked in ("FSDP", "DEEPSPEED"):
        return (
            f"{config.stem} asks for {asked}, which needs GPUs: on these CPUs each process trains "
            "a whole copy of the student, and gradients are averaged (DDP)"
        )
    return None


def check_gpus(launch: Launch) -> None:
    """Raise ValueError if a launch starts more processes on this machine than it has GPUs."""
    gpus, where = _gpus(launch)
    processes, machines = launch.num_processes or 0, launch.num_machines
    if not 0 < gpus < processes // machines or _read(_config_of(launch)).get("use_cpu"):
        return
    what = f"{processes} processes"
    if machines > 1:
        what += f" on {machines} machines, {processes // machines} on each,"
    raise ValueError(
        f"num_processes: {what} need a GPU each, and this machine has {where}; give "
        f"--num_processes {gpus * machines}, or let the processes see more GPUs"
    )


def check_port(port: int) -> None:
    """Raise ValueError if a port of this machine is taken."""
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"main_process_port: {port} cannot be used on this machine "
                f"({error.strerror or error}); give another one, such as {port + 1}"
            ) from None


def _read(config: Path) -> dict[str, Any]:
    """The configuration in a file.

    Raises:
        ValueError: the file holds something else.
    """
    values = read_yaml(config)
    if not isinstance(values, dict):
        raise ValueError(
            f"accelerate_config: {config} must hold keys and values, got {type(values).__name__}"
        )
    return values


def _config_of(launch: Launch) -> Path:
    """The file of a launch's configuration, which its processes decide where none is given."""
    many = (launch.num_processes or count_gpus()) > 1 or launch.num_machines > 1
    return config_path(launch.accelerate_config or ("multi_gpu" if many else "single_gpu"))


def _gpus(launch: Launch) -> tuple[int, str]:
    """The number of GPUs that a launch's processes see on this machine, and the same in words."""
    chosen = _read(_config_of(launch)).get("gpu_ids")
    if count_gpus() == 0 or chosen in (None, "all"):
        return count_gpus(), visible_gpus()
    count = len(str(chosen).split(","))
    return count, f"{count} GPUs (gpu_ids in {launch.accelerate_config} is {chosen})"


def _torchrun(launch: Launch, processes: int) -> list[str]:
    """torchrun with its own choice of a port, or with that of a launch."""
    flags: dict[str, Any] = {
        "nproc_per_node": processes // launch.num_machines,
        "nnodes": launch.num_machines,
        "node_rank": launch.machine_rank,
        "max_restarts": launch.max_restarts,
    }
    words = [sys.executable, "-m", "torch.distributed.run"]
    if launch.num_machines == 1 and launch.main_process_port is None:
        return [*words, "--standalone", *_as_flags(flags)]
    flags["master_addr"] = launch.main_process_ip or "127.0.0.1"
    flags["master_port"] = launch.main_process_port or 29500
    return [*words, *_as_flags(flags)]


def _as_flags(values: dict[str, Any]) -> list[str]:
    return [
        word
        for name, value in values.items()
        if value is not None
        for word in (f"--{name}", str(value))
    ]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(message.removeprefix("argument --").removeprefix("argument "))


def _flags() -> dict[str, type]:
    """Each field of a launch with the type of its flag."""
    kinds = {"accelerate_config": str, "main_process_ip": str}
    return {name: kinds.get(name, int) for name in Launch.__dataclass_fields__}


def _check(launch: Launch) -> None:
    """Raise ValueError for numbers that no launcher can use."""
    if launch.num_processes is not None and launch.num_processes < 1:
        raise ValueError(f"num_processes: must be 1 or more, got {launch.num_processes}")
    if launch.num_machines < 1:
        raise ValueError(f"num_machines: must be 1 or more, got {launch.num_machines}")
    if not 0 <= launch.machine_rank < launch.num_machines:
        raise ValueError(
            f"machine_rank: must be from 0 to num_machines - 1, which is {launch.num_machines - 1},"
            f" got {launch.machine_rank}"
        )
    if launch.num_machines > 1 and launch.main_process_ip is None:
        raise ValueError("main_process_ip: needed on several machines, the address of machine 0")
    if (launch.num_processes or launch.num_machines) % launch.num_machines:
        raise ValueError(
            f"num_processes: must be a multiple of num_machines, {launch.num_machines}, since each "
            f"machine starts as many; got {launch.num_processes}"
        )
    if launch.max_restarts < 0:
        raise ValueError(f"max_restarts: must be 0 or more, got {launch.max_restarts}")
    if launch.main_process_port is not None and not 1 <= launch.main_process_port <= 65535:
        raise ValueError(
            f"main_process_port: must be from 1 to 65535, got {launch.main_process_port}"
        )
